"""One request and its answer at the fake Engine: what stock operations and fault scripts are written with."""

from __future__ import annotations

import os
import select
import socket
from typing import TYPE_CHECKING

from tests.fakes.engine_wire import DISCARD_LIMIT, EngineRequest, GoneError, Wire, read_body

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Headers = Iterable[tuple[str, str]]

API_VERSION = "1.41"
SERVER = "Docker/20.10.24+dfsg1 (linux)"
DATE = "Sun, 22 Nov 2026 00:00:00 GMT"
"""A constant, so that answers can be compared byte by byte."""

MIDDLEWARE = (
    ("Api-Version", API_VERSION),
    ("Docker-Experimental", "false"),
    ("Ostype", "linux"),
    ("Server", SERVER),
)
"""Headers the Engine's middleware puts on every answer of a known route."""

REASONS = {
    200: "OK",
    201: "Created",
    202: "Accepted",
    204: "No Content",
    301: "Moved Permanently",
    304: "Not Modified",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    409: "Conflict",
    413: "Request Entity Too Large",
    417: "Expectation Failed",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
}


class Gate:
    """A count that a test releases and a connection's thread waits for; never a sleep."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_SEMAPHORE | os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def release(self, count: int = 1) -> None:
        """Let `count` waits pass."""
        os.eventfd_write(self._descriptor, count)

    def open(self) -> None:
        """Let every wait pass from now on."""
        self.release(1 << 32)

    def fileno(self) -> int:
        """Return the descriptor, for select."""
        return self._descriptor

    def take(self) -> bool:
        """Take one release if there is one."""
        try:
            os.eventfd_read(self._descriptor)
        except BlockingIOError:
            return False
        return True

    def __del__(self) -> None:
        os.close(self._descriptor)


class Exchange:
    """The Engine's side of one request: read its body, answer as Go would, or send any bytes at all.

    After the script ends, `keep` says whether the connection is read on.
    """

    def __init__(self, wire: Wire, request: EngineRequest, stopping: Callable[[], bool]) -> None:
        self.wire = wire
        self.request = request
        self.keep = self._wants_keep_alive()
        self.started = False
        """True once a final (not 1xx) answer began."""
        self.stopping = stopping
        self._sent_before = wire.sent
        self._chunked = False
        self.on_hijack: Callable[[], None] = lambda: None
        self.on_body: Callable[[], None] = lambda: None
        self._body_noted = False

    def note_body(self, *, ended: bool = False) -> None:
        """Tell once that the request has arrived whole, or that its answer was over before."""
        if (ended or self.request.body_complete) and not self._body_noted:
            self._body_noted = True
            self.on_body()

    def _wants_keep_alive(self) -> bool:
        options = ",".join(self.request.get_all("connection")).lower()
        words = {word.strip() for word in options.split(",")}
        if self.request.version < (1, 1):
            return "keep-alive" in words
        return "close" not in words

    # -- reading

    @property
    def expects_continue(self) -> bool:
        """The client waits for 100 before it sends the body."""
        value = (self.request.get("expect") or "").lower()
        return value == "100-continue" and self.request.version >= (1, 1) and self.request.length != 0

    def read_body(self, limit: int | None = None) -> EngineRequest:
        """Read the body (all of it, or about `limit` bytes), sending 100 first where it is awaited."""
        if self.expects_continue and not self.request.raw_body and not self.started:
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        read_body(self.wire, self.request, limit)
        self.note_body()
        return self.request

    def wait(self, gate: Gate) -> None:
        """Wait for a release; a client that ends its connection meanwhile cancels (`GoneError`), as in Go."""
        watched = True
        while not gate.take():
            if self.stopping():
                raise GoneError("the fake is stopping")
            sources: list[Gate | socket.socket] = [gate, self.wire.sock] if watched else [gate]
            try:
                ready = select.select(sources, [], [], 0.1)[0]
            except (OSError, ValueError) as failure:
                raise GoneError(str(failure)) from failure
            if self.wire.sock in ready:
                if not self.wire.fill():
                    raise GoneError("the client ended the connection")
                watched = False  # a pipelined request: leave the rest to the kernel

    # -- writing

    def send(self, data: bytes) -> None:
        """Send raw bytes, whatever they are."""
        try:
            self.wire.send(data)
        finally:
            self.request.written = self.wire.sent - self._sent_before

    def answer(
        self,
        status: int,
        body: bytes = b"",
        headers: Headers = MIDDLEWARE,
        content_type: str | None = None,
        reason: str | None = None,
    ) -> None:
        """Send a whole answer of known length, with Go's header order and its care for an unread body."""
        fields = sorted([*headers, *([("Content-Type", content_type)] if content_type else [])])
        fields.append(("Date", DATE))
        if status not in (204, 304):
            fields.append(("Content-Length", str(len(body))))
        self._start(status, fields, reason)
        if self.request.method != "HEAD" and status not in (204, 304):
            self.send(body)

    def start_chunked(
        self, status: int = 200, headers: Headers = MIDDLEWARE, content_type: str | None = None
    ) -> None:
        """Send the head of an answer of unknown length at once, as a flushing handler does."""
        fields = sorted([*headers, *([("Content-Type", content_type)] if content_type else [])])
        fields.append(("Date", DATE))
        self._chunked = self.request.version >= (1, 1)
        if not self._chunked:
            self.keep = False
        self._start(status, fields, None, chunked=self._chunked)

    def chunk(self, data: bytes) -> None:
        """Send one chunk of the answer `start_chunked` began."""
        if data and self.request.method != "HEAD":
            self.send(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def end_chunks(self, trailers: Headers = ()) -> None:
        """End a chunked answer."""
        if self._chunked and self.request.method != "HEAD":
            lines = "".join(f"{name}: {value}\r\n" for name, value in trailers)
            self.send(f"0\r\n{lines}\r\n".encode("latin-1"))

    def error(self, status: int, message: str, headers: Headers = MIDDLEWARE, *, plain: bool = False) -> None:
        """Send the Engine's error shape; plain text is what API versions below 1.24 get."""
        if plain:
            extra = [*headers, ("X-Content-Type-Options", "nosniff")]
            self.answer(status, message.encode() + b"\n", extra, "text/plain; charset=utf-8")
            return
        text = message.replace("\\", "\\\\").replace('"', '\\"')
        self.answer(
            status, f'{{"message":"{text}"}}\n'.encode("utf-8", "replace"), headers, "application/json"
        )

    def _start(
        self, status: int, fields: list[tuple[str, str]], reason: str | None, chunked: bool = False
    ) -> None:
        self._settle_body()
        minor = self.request.version[1] if self.request.version[0] == 1 else 1
        if not self.keep and minor:
            fields.append(("Connection", "close"))
        elif self.keep and not minor:
            fields.append(("Connection", "keep-alive"))
        if chunked:
            fields.append(("Transfer-Encoding", "chunked"))
        text = reason if reason is not None else REASONS.get(status, "Status")
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
        self.started = True
        self.send(f"HTTP/1.{min(minor, 1)} {status} {text}\r\n{lines}\r\n".encode("latin-1", "replace"))

    def _settle_body(self) -> None:
        """Do with an unread body what net/http does when the head of the answer is written."""
        if self.started or self.request.body_complete:
            return
        left = self.request.length - self.request.body_length
        unsent = self.expects_continue and not self.request.raw_body
        if unsent or left >= DISCARD_LIMIT:
            self.keep = False
        else:
            try:
                read_body(self.wire, self.request, DISCARD_LIMIT)
            except ValueError:
                self.keep = False
            self.keep = self.keep and self.request.body_complete

    # -- tunnels

    def hijack(self, head: bytes, *, tty: bool = True) -> Tunnel:
        """Send `head` and turn the connection into a tunnel; bytes read ahead are lost, as at the Engine."""
        self.keep = False
        self.started = True
        self.request.hijacked = True
        self.request.lost = self.wire.take(len(self.wire.buffer))
        self.send(head)
        self.on_hijack()
        return Tunnel(self, tty=tty)


class Tunnel:
    """A hijacked connection seen from a program: stdin to read, stdout and stderr to write."""

    def __init__(self, exchange: Exchange, *, tty: bool) -> None:
        self.exchange = exchange
        self.request = exchange.request
        self._tty = tty

    def read(self) -> bytes:
        """Return the next input, b"" once the client has half-closed."""
        wire = self.exchange.wire
        if not wire.buffer and not wire.fill():
            self.request.stdin_ended = True
            return b""
        data = wire.take(len(wire.buffer))
        self.request.take_stdin(data)
        return data

    def write(self, data: bytes, stream: int = 1) -> None:
        """Write output: one frame of Docker's raw stream, or the bare bytes on a terminal."""
        if data:
            frame = b"" if self._tty else bytes((stream, 0, 0, 0)) + len(data).to_bytes(4, "big")
            self.exchange.send(frame + data)

    def half_close(self) -> None:
        """End the output; input can still be read."""
        self.exchange.wire.half_close()
