"""A connection at the channel's port: TLS over the socket itself, and as little of it as there can be.

A controller holds thousands of connections that say something every fifteen seconds. With Twisted's TLS each
has a transport, a protocol around it, two buffers between the two, and OpenSSL reads and writes by way of
them. Here OpenSSL has the socket, and one object stands for the connection: for the reactor it is a
descriptor, for a `Visit` its transport.

What a transport does and what it does not:

* `write` collects what is written in one turn of the reactor and hands it to OpenSSL at its end (`Flushing`).
  What the kernel does not take waits here. Nobody is told to pause, since all that a controller sends by
  itself has a window: one push a stream, so many commands. What it only answers has none, so a peer that does
  not take its answers is not listened to until it does (`WAITING`).
* `loseConnection` sends what waits and close_notify, and then reads until the peer closes. Whoever calls it
  sees to it that this takes no longer than it should.
* `abortConnection` resets.
* `connectionLost` of the protocol comes once, and from none of the above.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from OpenSSL import SSL

# SSL_read and SSL_write are called without pyOpenSSL, which makes a new buffer for each read and raises an
# exception for each that finds nothing. What is no success goes back to it, to be explained.
from OpenSSL._util import ffi, lib
from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

#: The most plaintext of one TLS record.
RECORD: Final = 16 * 1024
#: Plaintext that is read in one turn, and delivered at once; what the C library's allocator keeps.
READ_BUDGET: Final = 128 * 1024
#: What one SSL_write is given: it tells of all of that or of none.
PIECE: Final = 64 * 1024
#: Writes that may wait before their peer is not listened to. No sender comes near that by itself.
WAITING: Final = 1024

_SPACE: Final = ffi.new("char[]", READ_BUDGET)
"""Where SSL_read puts what it decrypts, of all connections: it is copied out before anybody is called."""
_RESET: Final = struct.pack("ii", 1, 0)

_SSL_read = lib.SSL_read
_SSL_write = lib.SSL_write
# What an earlier call left in OpenSSL's list of errors, of whomever, would be taken for that of the next one.
_forget_errors = lib.ERR_clear_error
_SSL_get_error = lib.SSL_get_error
_WANT_READ: Final = lib.SSL_ERROR_WANT_READ
_WANT_WRITE: Final = lib.SSL_ERROR_WANT_WRITE
_bytes_at = ffi.buffer


class Flushing:
    """Sends at the end of a turn of the reactor what was written in it."""

    log = Logger()
    __slots__ = ("_reactor", "_streams")

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._streams: list[ChannelStream] = []

    def ask(self, stream: ChannelStream) -> None:
        """A stream has something to send."""
        if not self._streams:
            self._reactor.callLater(0, self._flush)
        self._streams.append(stream)

    def _flush(self) -> None:
        streams, self._streams = self._streams, []
        for stream in streams:
            try:
                stream.flush()
            except Exception:  # noqa: BLE001 - one connection's fault must not keep the others waiting
                self.log.failure("a connection could not be written to; it is cut")
                stream.abortConnection()


@implementer(IReadWriteDescriptor)
class ChannelStream:
    """See the module. `protocol` has `handshakeCompleted`, `dataReceived` and `connectionLost`.

    An exception of the protocol's ends the connection: the reactor logs it and calls `connectionLost`.
    """

    __slots__ = (
        "_aborting",
        "_asked",
        "_blocked",
        "_closing",
        "_deaf",
        "_flushing",
        "_offset",
        "_out",
        "_over",
        "_protocol",
        "_reactor",
        "_refused",
        "_shaken",
        "_socket",
        "_ssl",
        "_stalled",
        "_tls",
    )

    def __init__(
        self,
        context: SSL.Context,
        flushing: Flushing,
        sock: socket.socket,
        protocol: Any,
        reactor: Any,
    ) -> None:
        """Take over ``sock``, which was accepted, and wait for the peer's first word."""
        self._socket = sock
        self._protocol = protocol
        self._reactor = reactor
        self._flushing = flushing
        self._tls: Any = None
        self._ssl: Any = None
        self._out: list[bytes] | None = None
        self._offset = 0  # how much of the first of them is sent
        self._refused = 0  # how much behind that OpenSSL was given and has not sent
        self._asked = False  # `flush` will be called
        self._blocked = False  # the kernel takes nothing more; it says when it does
        self._stalled = False  # nothing can be written before something is read
        self._deaf = False  # not listened to until something is written
        self._shaken = False
        self._closing = False
        self._aborting = False
        self._over = False
        try:
            sock.setblocking(False)
            # A frame is written as a whole: there is nothing to wait for.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._tls = SSL.Connection(context, sock)
            self._tls.set_accept_state()
            self._ssl = self._tls._ssl
            # One record a read: else OpenSSL would go on for as long as a peer sends new keys. All records of
            # a write: else each would be a call of its own.
            lib.SSL_clear_mode(self._ssl, lib.SSL_MODE_AUTO_RETRY | lib.SSL_MODE_ENABLE_PARTIAL_WRITE)
            reactor.addReader(self)
        except (OSError, SSL.Error) as error:
            # The protocol has no transport yet; it hears of it when it does.
            self._closing = self._aborting = True
            reactor.callLater(0, self._end, error)

    # -- for the protocol

    def getHandle(self) -> SSL.Connection:  # noqa: N802 - Twisted's name
        """The TLS connection."""
        handle: SSL.Connection = self._tls
        return handle

    def write(self, data: bytes) -> None:
        """Send; nothing happens once the connection is being closed."""
        if self._closing or self._over or not data:
            return
        if self._out is None:
            self._out = [data]
        else:
            self._out.append(data)
        if self._blocked:
            if len(self._out) > WAITING and not self._deaf:
                self._deaf = True
                self._reactor.removeReader(self)
        elif not self._asked:
            self._asked = True
            self._flushing.ask(self)

    def loseConnection(self) -> None:
        """Send what waits, then close."""
        if self._closing or self._over:
            return
        if not self._shaken:
            self.abortConnection()
            return
        self._closing = True
        if not self._blocked:
            why = self._send()
            if why is not None:
                self._reactor.callLater(0, self._end, why)

    def abortConnection(self) -> None:
        """Reset the connection."""
        if not self._aborting and not self._over:
            self._aborting = self._closing = True
            self._out = None
            self._reactor.removeReader(self)
            self._reactor.removeWriter(self)
            self._reactor.callLater(0, self._end, ConnectionAborted())

    # -- for the reactor

    def fileno(self) -> int:
        return self._socket.fileno()

    def logPrefix(self) -> str:
        return "channel"

    def doRead(self) -> Any:
        if self._closing:
            return None if self._aborting else self._drain()
        if not self._shaken:
            return self._shake()
        _forget_errors()
        got = _SSL_read(self._ssl, _SPACE, RECORD)
        if self._stalled:
            self._stalled = False
            self._asked = True
            self._flushing.ask(self)
        if 0 < got < RECORD:
            # Nearly always: one short record. If there are more, the kernel says so.
            self._protocol.dataReceived(_bytes_at(_SPACE, got)[:])
            return None
        have = 0
        while got > 0:
            have += got
            if have > READ_BUDGET - RECORD:
                break
            got = _SSL_read(self._ssl, _SPACE + have, RECORD)
        why = None if got > 0 else self._why(got)
        if have:
            self._protocol.dataReceived(_bytes_at(_SPACE, have)[:])
        return why

    def doWrite(self) -> Any:
        if not self._blocked:
            return None
        if not self._shaken:
            self._unblock()
            return self._shake()
        return self._send()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor says that the connection is over."""
        if self._over:
            return
        self._over = True
        self._tls = self._ssl = self._out = None
        if self._aborting:
            with suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._socket.close()
        protocol, self._protocol = self._protocol, None
        protocol.connectionLost(reason)

    # -- small

    def flush(self) -> None:
        """Send what was written."""
        self._asked = False
        if self._blocked or self._stalled or self._out is None or not self._shaken:
            return
        why = self._send()
        if why is not None:
            self._end(why)

    def _end(self, why: Exception) -> None:
        if not self._over:
            self._reactor.removeReader(self)
            self._reactor.removeWriter(self)
            self.connectionLost(Failure(why))

    def _shake(self) -> Exception | None:
        _forget_errors()
        result = lib.SSL_do_handshake(self._ssl)
        if result != 1:
            return self._why(result)
        self._shaken = True
        self._protocol.handshakeCompleted()
        # A client whose handshake is over speaks first, and what it says has mostly come with that.
        why: Exception | None = self.doRead()
        return why

    def _send(self) -> Exception | None:
        """Send what waits, and close behind it if that is wanted."""
        out = self._out
        if not out or len(out[0]) <= RECORD:
            return self._hand_over()
        # Each record is a write of its own: together they make fuller segments, and fewer.
        sock = self._socket
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        try:
            return self._hand_over()
        finally:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)

    def _hand_over(self) -> Exception | None:
        """Give OpenSSL what waits, as far as the kernel takes it."""
        out = self._out
        _forget_errors()
        while out:
            # What was refused is given again as it was, with the same bytes and as long.
            if not self._refused and not self._offset and len(out) > 1 and len(out[0]) < RECORD:
                _join_first(out)
            first, offset = out[0], self._offset
            size = self._refused or min(PIECE, len(first) - offset)
            at = first if not offset else ffi.from_buffer(first) + offset
            result = _SSL_write(self._ssl, at, size)
            if result <= 0:
                self._refused = size
                return self._why(result, writing=True)
            self._refused = 0
            if offset + result < len(first):
                self._offset = offset + result
            else:
                self._offset = 0
                del out[0]
        self._out = None
        if self._blocked:
            self._unblock()
        return self._goodbye() if self._closing else None

    def _goodbye(self) -> Exception | None:
        """Say that nothing follows; the peer has then a while to close."""
        result = lib.SSL_shutdown(self._ssl)
        if result < 0 and _SSL_get_error(self._ssl, result) == _WANT_WRITE:
            self._block()
            return None
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            return CONNECTION_LOST
        return None

    def _drain(self) -> Exception | None:
        """Read to the end; what still comes is nobody's."""
        try:
            return None if self._socket.recv_into(_bytes_at(_SPACE)) else CONNECTION_DONE
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST

    def _block(self) -> None:
        if not self._blocked:
            self._blocked = True
            self._reactor.addWriter(self)

    def _unblock(self) -> None:
        self._blocked = False
        self._reactor.removeWriter(self)
        if self._deaf:
            self._deaf = False
            self._reactor.addReader(self)

    def _why(self, result: int, *, writing: bool = False) -> Exception | None:
        """Why OpenSSL did not do it; None if it will, later."""
        kind = _SSL_get_error(self._ssl, result)
        if kind == _WANT_READ:
            if writing:
                # Half a message about new keys has come, and the other half must come first.
                self._stalled = True
                if self._blocked:
                    self._unblock()
            return None
        if kind == _WANT_WRITE:
            self._block()
            if not writing and not self._deaf:
                # What was read has an answer of TLS's own, and nothing more is read before that is sent.
                self._deaf = True
                self._reactor.removeReader(self)
            return None
        try:
            self._tls._raise_ssl_error(self._ssl, result)
        except SSL.ZeroReturnError:
            # The peer has said all; so have we.
            lib.SSL_shutdown(self._ssl)
            return CONNECTION_DONE
        except SSL.SysCallError:
            return CONNECTION_LOST
        except Exception as error:  # noqa: BLE001 - what a callback of the context has raised comes out here
            return error
        return None


def _join_first(out: list[bytes]) -> None:
    """Make one of the first small ones, so that they share a record."""
    count = size = 0
    while count < len(out) and size + len(out[count]) <= RECORD:
        size += len(out[count])
        count += 1
    if count > 1:
        out[:count] = [b"".join(out[:count])]


def transports(
    context: Callable[[], SSL.Context], reactor: Any
) -> Callable[[socket.socket, Any, Any, Any, int, Any], ChannelStream]:
    """What makes the transport of each connection that a port accepts, for `twisted.internet.tcp.Port`."""
    flushing = Flushing(reactor)

    def make(
        sock: socket.socket, protocol: Any, client: Any, server: Any, number: int, owner: Any
    ) -> ChannelStream:
        return ChannelStream(context(), flushing, sock, protocol, owner)

    return make
