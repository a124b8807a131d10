"""Streams in the clear, and how to connect one."""

from __future__ import annotations

import errno
import os
import socket
from ipaddress import ip_address
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReadWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from defender.streams.descriptor import SocketStream


class PlainStream(SocketStream):
    """A stream in the clear: a unix socket or TCP on loopback."""

    __slots__ = ()


def connect_unix(reactor: Any, path: str, timeout: float) -> Deferred[PlainStream]:
    """Connect to the unix socket at ``path``.

    Errors: an OSError (FileNotFoundError, ConnectionRefusedError, PermissionError ...), or TimeoutError after
    ``timeout`` seconds, in which a listener whose backlog was full never had room. Cancelling closes the
    socket.
    """
    return _connect(reactor, socket.AF_UNIX, path, timeout)


def connect_tcp(reactor: Any, host: str, port: int, timeout: float) -> Deferred[PlainStream]:
    """Connect in the clear to ``host``, an IP address as text.

    Errors and cancelling as for `connect_unix`.
    """
    family = socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET
    return _connect(reactor, family, (host, port), timeout)


def _connect(
    reactor: Any, family: int, address: str | tuple[str, int], timeout: float
) -> Deferred[PlainStream]:
    try:
        return _Attempt(reactor, family, address, timeout).start()
    except OSError as error:  # no descriptor left, or a path that is too long
        return fail(error)


@implementer(IReadWriteDescriptor)
class _Attempt:
    """One connection being made."""

    RETRY = 0.02
    """Seconds between attempts while the backlog is full: unix sockets give no event for it (EAGAIN)."""

    def __init__(self, reactor: Any, family: int, address: str | tuple[str, int], timeout: float) -> None:
        self._reactor = reactor
        self._address = address
        self._timeout = timeout
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._writing = False
        self._retry: IDelayedCall | None = None
        self._deferred: Deferred[PlainStream] = Deferred(lambda _: self._stop())
        self._deadline: IDelayedCall | None = None

    def start(self) -> Deferred[PlainStream]:
        try:
            self._try()
        except OSError:
            self._stop()
            raise
        if not self._deferred.called:
            self._deadline = self._reactor.callLater(self._timeout, self._timed_out)
        return self._deferred

    def fileno(self) -> int:
        return self._socket.fileno()

    def logPrefix(self) -> str:
        return "-"

    def doRead(self) -> None:
        """Never asked for."""

    def doWrite(self) -> None:
        self._decided(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def connectionLost(self, reason: Failure) -> None:
        self._writing = False
        if not self._deferred.called:
            code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._decided(code or errno.ECONNREFUSED)

    def _try(self) -> None:
        self._retry = None
        code = self._socket.connect_ex(self._address)
        if code == errno.EAGAIN:
            self._retry = self._reactor.callLater(self.RETRY, self._try)
        elif code == errno.EINPROGRESS:
            self._writing = True
            self._reactor.addWriter(self)
        else:
            self._decided(code)

    def _decided(self, code: int) -> None:
        sock = self._socket
        if code:
            self._stop()
            self._deferred.errback(OSError(code, os.strerror(code), self._named()))
        else:
            self._stop(keep_socket=True)
            self._deferred.callback(PlainStream(self._reactor, sock))

    def _timed_out(self) -> None:
        self._deadline = None
        self._stop()
        self._deferred.errback(TimeoutError(f"no connection to {self._named()} in {self._timeout:g} s"))

    def _named(self) -> str:
        return self._address if isinstance(self._address, str) else "{}:{}".format(*self._address)

    def _stop(self, *, keep_socket: bool = False) -> None:
        if self._writing:
            self._writing = False
            self._reactor.removeWriter(self)
        for delayed in (self._deadline, self._retry):
            if delayed is not None:
                delayed.cancel()
        self._deadline = self._retry = None
        if not keep_socket:
            self._socket.close()
