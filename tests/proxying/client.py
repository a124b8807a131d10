"""Raw clients of the defender: bytes, TLS records and ends exactly as a test wants them.

`Peer` blocks, with a limit on every wait, and reads while it writes, so that neither side can stall the other
by accident. Over TLS the two ends, close_notify and TCP's FIN, are sent apart: Go clients send the first
alone, Node clients both.
"""

from __future__ import annotations

import functools
import select
import socket
import ssl
import struct
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tests.fakes.authority import TestAuthority, UserFiles
from tests.proxying.reading import Answer, Reading, Source, read_answer

PATIENCE = 30.0
"""Longest wait of a client, in seconds; a test that hangs fails with it."""

RECORD = 16 * 1024


@functools.cache
def _directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="dfleet-people-")


@functools.cache
def authority() -> TestAuthority:
    """Return the authority of all defenders and clients of this test process."""
    return TestAuthority()


@functools.cache
def certificates(user: str, groups: Sequence[str] = ()) -> UserFiles:
    """Return a user's certificate files, a DOCKER_CERT_PATH."""
    path = Path(_directory().name) / f"user{len(list(Path(_directory().name).iterdir()))}"
    return authority().write_user(path, authority().user(user, groups))


@functools.cache
def _context(user: str) -> ssl.SSLContext:
    files = certificates(user)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(files.ca)
    context.load_cert_chain(files.certificate_chain, files.private_key)
    return context


class _Transport(Protocol):
    """What is between a peer's bytes and its socket."""

    def wrap(self, data: bytes) -> bytes: ...
    def unwrap(self, data: bytes, into: Source) -> None: ...
    def end(self) -> bytes: ...


class _Plain:
    def wrap(self, data: bytes) -> bytes:
        return data

    def unwrap(self, data: bytes, into: Source) -> None:
        into.buffer += data

    def end(self) -> bytes:
        return b""


class _TLS:
    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname="localhost")
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(self._out.read())
                if not (data := sock.recv(65536)):
                    raise ConnectionError("the server closed during the handshake") from None
                self._in.write(data)
        sock.sendall(self._out.read())

    def wrap(self, data: bytes) -> bytes:
        for start in range(0, len(data), RECORD):
            self._tls.write(data[start : start + RECORD])
        return self._out.read()

    def unwrap(self, data: bytes, into: Source) -> None:
        self._in.write(data)
        try:
            while part := self._tls.read(65536):
                into.buffer += part
            into.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            into.ended = True

    def end(self) -> bytes:
        try:
            self._tls.unwrap()
        except (ssl.SSLWantReadError, ssl.SSLSyscallError):
            pass
        return self._out.read()


class Peer:
    """One connection of a client.

    `source` holds what came and was not taken; `source.ended` after an orderly end (close_notify under TLS,
    FIN on a unix socket). `cut` says how it ended otherwise: "truncated", "reset" or "alert". `received`,
    `sent` and `unsent` count bytes of the socket (TLS, if there is any): read, given to the kernel, and those
    that nobody took any more.
    """

    def __init__(self, sock: socket.socket, transport: _Transport) -> None:
        self.sock = sock
        self._transport = transport
        self.source = Source()
        self.cut = ""
        self.received = 0
        self.sent = 0
        self.unsent = 0
        sock.setblocking(False)

    @property
    def name(self) -> str:
        """Our address as events show it, "" on a unix socket."""
        return "" if self.sock.family == socket.AF_UNIX else "{}:{}".format(*self.sock.getsockname())

    @property
    def over(self) -> bool:
        """Nothing more will come."""
        return self.source.ended or bool(self.cut)

    # -- sending

    def send(self, data: bytes) -> Peer:
        """Send all of it, reading meanwhile; stops quietly when the connection is over."""
        self._send_raw(self._transport.wrap(data))
        return self

    def _send_raw(self, data: bytes) -> None:
        view = memoryview(data)
        while view and not self.cut:
            readable, writable = self._wait(writing=True)
            if readable:
                self._receive()
            if writable and not self.cut:
                try:
                    count = self.sock.send(view[: 1 << 20], socket.MSG_NOSIGNAL)
                    self.sent += count
                    view = view[count:]
                except BlockingIOError:
                    pass
                except OSError:
                    self._drain_after_reset()
        self.unsent = len(view)

    def _drain_after_reset(self) -> None:
        # What the other side said before it went may still be here.
        while not self.over:
            self._receive()
        self.cut = self.cut or "reset"

    def end(self) -> Peer:
        """End our direction as Go does: close_notify alone; FIN on a unix socket."""
        if isinstance(self._transport, _TLS):
            self._send_raw(self._transport.end())
        else:
            self.sock.shutdown(socket.SHUT_WR)
        return self

    def fin(self) -> Peer:
        """TCP's end. After `end` that is what Node does; without it the stream is truncated."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the other side was first
        return self

    def close(self) -> None:
        """Close the descriptor without another word."""
        self.sock.close()

    def reset(self) -> None:
        """Close with RST (TCP only)."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    # -- receiving

    def _wait(self, *, writing: bool = False) -> tuple[bool, bool]:
        poll = select.poll()
        wanted = 0 if self.source.ended else select.POLLIN
        poll.register(self.sock, wanted | (select.POLLOUT if writing else 0))
        end = time.monotonic() + PATIENCE
        if not (ready := poll.poll(PATIENCE * 1000)) or time.monotonic() > end:
            raise AssertionError(
                f"nothing happened in {PATIENCE} s; unread: {bytes(self.source.buffer[:300])!r}"
            )
        events = ready[0][1]
        return bool(events & ~select.POLLOUT), bool(events & select.POLLOUT)

    def _receive(self) -> None:
        try:
            data = self.sock.recv(262144)
        except BlockingIOError:
            return
        except OSError:
            self.cut = "reset"
            return
        self.received += len(data)
        if data:
            try:
                self._transport.unwrap(data, self.source)
            except ssl.SSLError:
                self.cut = "alert"
        elif isinstance(self._transport, _TLS) and not self.source.ended:
            self.cut = "truncated"
        else:
            self.source.ended = True

    def poll(self, seconds: float) -> None:
        """Take what comes within this time; a slow client's pause."""
        if not self.over and select.select([self.sock], [], [], seconds)[0]:
            self._receive()

    def fill(self) -> bool:
        """Wait for more to come; False when nothing more will."""
        if self.over:
            return False
        self._wait()
        self._receive()
        return True

    def _run(self, reading: Reading) -> None:
        source = self.source
        for _ in reading:
            if not self.fill():
                # Readers ask once more after the end, to say what is missing.
                source.ended = True

    def answers(self, method: str = "GET") -> list[Answer]:
        """Read one answer, with the 1xx ones before it. Raises BrokenError when it is not whole."""
        found: list[Answer] = []
        self._run(read_answer(self.source, found, method))
        return found

    def answer(self, method: str = "GET") -> Answer:
        """Read one answer; there must be no 1xx one before it."""
        found = self.answers(method)
        if len(found) != 1:
            raise AssertionError(f"a 1xx answer nobody waits for: {found[0].raw_head!r}")
        return found[0]

    def head(self, method: str = "GET") -> Answer:
        """Read one answer's head; its body stays in `source`."""
        while (end := self.source.buffer.find(b"\r\n\r\n")) < 0 and self.fill():
            pass
        head = Source()
        head.buffer += self.source.take(end + 4)
        head.ended = end < 0
        found: list[Answer] = []
        try:
            next(read_answer(head, found, method))
        except StopIteration:
            pass
        return found[0]

    def ask(self, data: bytes) -> Answer:
        """Send a request and read its answer."""
        return self.send(data).answer(data.split(b" ", 1)[0].decode("latin-1"))

    def take(self, count: int) -> bytes:
        """Read exactly that many bytes."""
        while len(self.source.buffer) < count:
            if not self.fill():
                raise AssertionError(f"ended ({self.cut or 'orderly'}) after {bytes(self.source.buffer)!r}")
        return self.source.take(count)

    def rest(self) -> bytes:
        """Read to the end, whatever it is."""
        while self.fill():
            pass
        return self.source.take(len(self.source.buffer))

    def until_closed(self) -> bytes:
        """Read to the end of the connection itself, behind a close_notify too."""
        rest = self.rest()
        if isinstance(self._transport, _TLS) and not self.cut:
            self.sock.setblocking(True)
            self.sock.settimeout(PATIENCE)
            try:
                while self.sock.recv(65536):
                    pass
            except ConnectionError:
                pass
        return rest


def connect_tls(port: int, user: str = "admin", *, receive_buffer: int = 0) -> Peer:
    """Connect and shake hands as `user`. `receive_buffer` (bytes) shrinks what the kernel takes for us."""
    sock = socket.socket()
    sock.settimeout(PATIENCE)
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.connect(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Peer(sock, _TLS(sock, _context(user)))


def connect_unix(path: str) -> Peer:
    """Connect to a unix socket, of the defender or of an Engine."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    sock.connect(path)
    return Peer(sock, _Plain())
