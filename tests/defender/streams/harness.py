"""Receivers that remember, sockets in pairs, a reactor driven by hand, a blocking TLS client for threads."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import ssl
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.threads import deferToThreadPool
from twisted.trial.unittest import TestCase

from defender.listener.tls import TLSFiles, server_context
from defender.streams.descriptor import SocketStream
from defender.streams.interface import Lost, Stream
from defender.streams.plain import PlainStream
from defender.streams.poll import Poll
from defender.streams.tls import TLSStream
from tests.fakes.authority import Credentials, TestAuthority, UserFiles


class Recorder:
    """A receiver that writes everything down; subclass or set hooks to act from inside a call."""

    def __init__(self, stream: Stream | None = None) -> None:
        self.stream = stream
        self.calls: list[str] = []
        self.data = bytearray()
        self.largest = 0
        self.lost: Lost | None = None
        self.hooks: dict[str, Callable[[], object]] = {}
        self._waiting: list[tuple[Callable[[], bool], Deferred[None]]] = []
        if stream is not None:
            stream.set_receiver(self)

    def data_received(self, data: bytes) -> None:
        assert data
        self.data += data
        self.largest = max(self.largest, len(data))
        self._called("data_received")

    def end_received(self) -> None:
        self._called("end_received")

    def write_full(self) -> None:
        self._called("write_full")

    def write_drained(self) -> None:
        self._called("write_drained")

    def connection_lost(self, reason: Lost) -> None:
        self.lost = reason
        self._called("connection_lost")

    def until(self, condition: Callable[[], bool]) -> Deferred[None]:
        """Fires in or after the first call that makes ``condition`` hold."""
        done: Deferred[None] = Deferred()
        self._waiting.append((condition, done))
        self._check()
        return done

    def until_lost(self) -> Deferred[None]:
        return self.until(lambda: self.lost is not None)

    def until_ended(self) -> Deferred[None]:
        return self.until(lambda: "end_received" in self.calls)

    def until_bytes(self, count: int) -> Deferred[None]:
        return self.until(lambda: len(self.data) >= count)

    def _called(self, name: str) -> None:
        if self.calls and self.calls[-1] == "connection_lost":
            raise AssertionError(f"{name} after connection_lost")
        if name != "data_received" or self.calls[-1:] != [name]:
            self.calls.append(name)
        try:
            if name in self.hooks:
                self.hooks[name]()
        finally:
            self._check()

    def _check(self) -> None:
        for entry in list(self._waiting):
            if entry[0]():
                self._waiting.remove(entry)
                entry[1].callback(None)


class Producer(Recorder):
    """Writes ``total`` bytes in pieces of ``chunk``; stops at write_full, goes on at write_drained, ends."""

    def __init__(self, stream: Stream, total: int, chunk: int = 64 * 1024) -> None:
        super().__init__()
        self.left = total
        self.chunk = os.urandom(chunk)
        self.blocked = False
        self.most_pending = 0
        self.target = stream
        stream.set_receiver(self)

    def produce(self) -> None:
        while self.left and not self.blocked:
            piece = self.chunk[: self.left]
            self.left -= len(piece)
            self.target.write(piece)
            self.most_pending = max(self.most_pending, self.target.pending)
        if not self.left:
            self.target.half_close()

    def write_full(self) -> None:
        self.blocked = True
        super().write_full()

    def write_drained(self) -> None:
        self.blocked = False
        super().write_drained()
        self.produce()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return the client's and the server's end of a TCP connection on loopback."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    client.settimeout(30)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client, server


def unix_pair() -> tuple[socket.socket, socket.socket]:
    left, right = socket.socketpair()
    left.settimeout(30)
    return left, right


def read_all(sock: socket.socket) -> bytes:
    """Read until FIN. Raises ConnectionResetError."""
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def open_sockets() -> int:
    """Count the sockets of this process (the reactor opens and closes pipes of its own)."""
    count = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            count += os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
    return count


class StreamCase(TestCase):
    """Runs on the real reactor; aborts at its end the streams that it made."""

    timeout = 20

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.poll = Poll(reactor)
        self.streams: list[SocketStream] = []
        self.addCleanup(self._end_streams)

    def plain(self, sock: socket.socket, **options: Any) -> PlainStream:
        stream = PlainStream(self.poll, sock, **options)
        self.streams.append(stream)
        return stream

    def tls(self, sock: socket.socket, context: SSL.Context, **options: Any) -> TLSStream:
        stream = TLSStream(self.poll, sock, context, **options)
        self.streams.append(stream)
        return stream

    def turn(self, seconds: float = 0.0) -> Deferred[None]:
        """Fires in a later turn of the reactor."""
        done: Deferred[None] = Deferred()
        self.reactor.callLater(seconds, done.callback, None)
        return done

    def in_thread(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        return deferToThreadPool(self.reactor, self.reactor.getThreadPool(), function, *arguments)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let the reactor turn until ``condition`` holds: for what no receiver is told of."""
        while not condition():
            await self.turn(0.001)

    def _end_streams(self) -> Deferred[None]:
        for stream in self.streams:
            stream.abort()
        return self.turn()


class DrivenPoll(Poll):
    """A poll that says which reactor it is in."""

    def __init__(self, reactor: EPollReactor) -> None:
        super().__init__(reactor)
        self.reactor = reactor


@contextlib.contextmanager
def driven_poll() -> Iterator[DrivenPoll]:
    """Yield a poll in a reactor that nobody runs: `turn` makes it do one round."""
    reactor = EPollReactor()
    try:
        yield DrivenPoll(reactor)
    finally:
        reactor.removeAll()
        reactor._poller.close()
        reactor.waker.connectionLost(None)


def turn(poll: DrivenPoll) -> None:
    poll.reactor.runUntilCurrent()
    poll.reactor.doIteration(0)


class TruncatedError(Exception):
    """TCP ended without close_notify."""


class TLSClient:
    """A blocking TLS client over memory BIOs: TLS's ends and TCP's are sent apart. For use in threads."""

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, session: ssl.SSLSession | None = None
    ) -> None:
        self.socket = sock
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname="localhost", session=session)

    def handshake(self) -> TLSClient:
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.flush()
                self._fill()
            except ssl.SSLError:
                self.flush()  # the alert
                raise
        self.flush()
        return self

    def first_flight(self) -> bytes:
        """Return the ClientHello, unsent."""
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            pass
        return self._out.read()

    def send(self, data: bytes) -> None:
        for start in range(0, len(data), 65536):
            self.tls.write(data[start : start + 65536])
            self.flush()

    def recv(self) -> bytes:
        """Return some bytes; b"" after close_notify. Raises TruncatedError, SSLError (an alert), OSError."""
        while True:
            try:
                return self.tls.read(65536)
            except ssl.SSLWantReadError:
                self._fill()
            except ssl.SSLZeroReturnError:
                return b""

    def recv_exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = self.recv()
            if not part:
                raise AssertionError(f"ended after {len(data)} of {count} bytes")
            data += part
        return bytes(data)

    def recv_all(self) -> bytes:
        return b"".join(iter(self.recv, b""))

    def close_notify(self) -> None:
        """End our direction; TCP stays open (as Go's CloseWrite does)."""
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        self.flush()

    def fin(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.socket.close()

    def flush(self) -> None:
        data = self._out.read()
        if data:
            self.socket.sendall(data)

    def _fill(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise TruncatedError
        self._in.write(data)


class Fleet:
    """One authority for all tests of a process, with the files of a server and of a user."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self.path = Path(self._directory.name)
        self.pki = TestAuthority()
        files = self.pki.write_server(self.path / "server")
        self.files = TLSFiles(str(files.certificate_chain), str(files.private_key), str(files.client_ca))
        self.user = self.pki.write_user(self.path / "user")

    def context(self, minimum: str = "1.2") -> SSL.Context:
        return server_context(self.files, trust_domain=self.pki.trust_domain, minimum=minimum)

    def write(self, name: str, credentials: Credentials) -> UserFiles:
        return self.pki.write_user(self.path / name, credentials)

    def client_context(
        self,
        version: ssl.TLSVersion | None = None,
        files: UserFiles | None = None,
        *,
        certificate: bool = True,
    ) -> ssl.SSLContext:
        files = files or self.user
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.user.ca)
        if certificate:
            context.load_cert_chain(files.certificate_chain, files.private_key)
        if version is not None:
            context.minimum_version = context.maximum_version = version
        return context


@functools.cache
def fleet() -> Fleet:
    return Fleet()


class TLSCase(StreamCase):
    """A test case that connects clients to TLS streams."""

    version = ssl.TLSVersion.TLSv1_3

    async def connect(self, **options: Any) -> tuple[TLSClient, TLSStream]:
        sock, server = tcp_pair()
        self.addCleanup(sock.close)
        client = TLSClient(sock, fleet().client_context(self.version))
        stream = self.tls(server, fleet().context(), **options)
        shaken = stream.handshake()
        await gatherResults([self.in_thread(client.handshake), shaken])
        return client, stream
