"""The fake Engine's reading of HTTP/1.1: as lenient as Go 1.19's ``net/http``, on purpose.

A proxy is tested against what the Engine would have understood, so this parser takes bare LF, folded headers,
``Content-Length`` beside ``Transfer-Encoding`` (the latter wins), equal duplicate lengths, and ignores
``Transfer-Encoding`` on HTTP/1.0, where Engine 20.10.24 (Go 1.19.8) does. It refuses with the same lines.
Blocking sockets, one thread a connection: a script of bytes reads from top to bottom.
"""

from __future__ import annotations

import hashlib
import re
import select
import socket
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

KEPT_BODY = 1 << 20
"""Bytes of a request body that are kept; the digest and the length cover all of it."""

MAX_HEAD = (1 << 20) + 4096
"""``http.DefaultMaxHeaderBytes`` plus Go's slop: a longer head is answered 431."""

DISCARD_LIMIT = 256 << 10
"""What Go reads of a body the handler left unread; more than this closes the connection."""

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_BAD_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_VERSION = re.compile(r"HTTP/([0-9])\.([0-9])\Z")


class GoneError(Exception):
    """The peer has closed, or the fake is stopping: the connection's thread ends."""


class RefusedError(Exception):
    """The head or body is not what Go would read; `answer` is its last word, then the connection closes."""

    def __init__(self, status: str, text: str = "", body: str = "") -> None:
        super().__init__(status, text)
        line = f"{status}: {text}" if text else status
        head = "Content-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
        self.answer = f"HTTP/1.1 {line}\r\n{head}{body or line}".encode()


@dataclass(eq=False, slots=True)
class EngineRequest:
    """One request as it reached the Engine, raw and read. Fields of the body fill up while it is read."""

    connection: int
    """Number of the connection, from 1 in the order of acceptance."""
    number: int
    """Position on that connection, from 1."""
    method: str
    target: str
    version: tuple[int, int]
    headers: list[tuple[str, str]]
    """Names as received, values trimmed, in order; latin-1."""
    raw_head: bytes
    path: str
    """Percent-decoded path as received, with its version prefix."""
    query: str
    length: int
    """Declared Content-Length; 0 without a body, -1 when chunked."""
    raw_body: bytearray = field(default_factory=bytearray)
    """Body with its framing, up to `KEPT_BODY`."""
    body: bytearray = field(default_factory=bytearray)
    """Decoded body, up to `KEPT_BODY`."""
    body_length: int = 0
    trailers: list[tuple[str, str]] = field(default_factory=list)
    body_complete: bool = False
    stdin: bytearray = field(default_factory=bytearray)
    """Bytes of the tunnel after a hijack, up to `KEPT_BODY`."""
    stdin_length: int = 0
    stdin_ended: bool = False
    """The client half-closed the tunnel."""
    lost: bytes = b""
    """Bytes that came with the request and were dropped at the hijack, as the Engine drops them."""
    hijacked: bool = False
    written: int = 0
    """Response bytes the kernel has taken, head included."""
    error: str = ""
    """Why serving it ended early, empty otherwise."""
    _digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    @property
    def raw(self) -> bytes:
        """Everything received for this request (head, then body with framing up to `KEPT_BODY`)."""
        return self.raw_head + bytes(self.raw_body)

    @property
    def digest(self) -> str:
        """SHA-256 of the decoded body read so far, hex; of the tunnel's input after a hijack."""
        return self._digest.hexdigest()

    def get(self, name: str) -> str | None:
        """Return the first value of a header, names compared without case, or None."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def get_all(self, name: str) -> list[str]:
        """Return all values of a header in order."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def take(self, data: bytes) -> None:
        """Account for decoded body bytes."""
        self._digest.update(data)
        self.body_length += len(data)
        self.body += data[: KEPT_BODY - len(self.body)]

    def take_stdin(self, data: bytes) -> None:
        """Account for bytes of the tunnel."""
        if not self.stdin_length:
            self._digest = hashlib.sha256()
        self._digest.update(data)
        self.stdin_length += len(data)
        self.stdin += data[: KEPT_BODY - len(self.stdin)]


class Wire:
    """A connection's socket with a read buffer and counted writes. All calls block; `GoneError` ends them."""

    def __init__(self, sock: socket.socket, on_stall: Callable[[], None]) -> None:
        self.sock = sock
        self.buffer = bytearray()
        self.received = 0
        self.sent = 0
        self._on_stall = on_stall
        self._ended = False
        self._lock = threading.Lock()

    def fill(self, limit: int = 65536) -> bool:
        """Read once into the buffer; False at the peer's end. Raises `GoneError` on reset or stop."""
        if self._ended:
            return False
        try:
            data = self.sock.recv(limit)
        except (OSError, ValueError) as failure:
            raise GoneError(str(failure)) from failure
        self.received += len(data)
        self.buffer += data
        self._ended = not data
        return bool(data)

    def take(self, count: int) -> bytes:
        """Remove and return the first `count` bytes of the buffer."""
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        return data

    def skip_line_ends(self) -> None:
        """Drop up to four CR or LF before a head, as Go does after a POST (old browsers sent them)."""
        while len(self.buffer) < 4 and self.fill():
            pass
        while self.buffer and self.buffer[0] in b"\r\n":
            del self.buffer[:1]

    def read_line(self, limit: int = 4096) -> bytes:
        """Return one line with its LF; raises `GoneError` at the end, `ValueError` beyond `limit` bytes."""
        while (end := self.buffer.find(b"\n")) < 0:
            if len(self.buffer) > limit:
                raise ValueError("line too long")
            if not self.fill():
                raise GoneError("end of stream inside a line")
        return self.take(end + 1)

    def send(self, data: bytes) -> None:
        """Write everything, counting what the kernel took; not writable for 0.3 s is a stall."""
        view = memoryview(data)
        while view:
            try:
                count = self.sock.send(view, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self._wait_writable()
                continue
            except (OSError, ValueError) as failure:
                raise GoneError(str(failure)) from failure
            self.sent += count
            view = view[count:]

    def _wait_writable(self) -> None:
        told = False
        while True:
            try:
                if select.select([], [self.sock], [], 0.3 if not told else 5.0)[1]:
                    return
            except (OSError, ValueError) as failure:
                raise GoneError(str(failure)) from failure
            if not told:
                told = True
                self._on_stall()

    def half_close(self) -> None:
        """Send FIN; reading goes on."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # already gone: the reader will see it

    def wake(self) -> None:
        """From any thread: end both directions, so that a blocked call of the connection's thread returns."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self) -> None:
        """Close the descriptor; unread input makes it a reset on a unix socket, as with the Engine."""
        with self._lock:
            self.sock.close()


def read_head(wire: Wire) -> bytes | None:
    """Read one head up to its empty line (CRLF or LF); None at a clean end before the first byte.

    Raises `RefusedError` (431) beyond `MAX_HEAD`, `GoneError` at an end inside the head.
    """
    start = 0
    while True:
        if (match := re.compile(rb"\n\r?\n").search(wire.buffer, max(0, start - 3))) is not None:
            return wire.take(match.end())
        start = len(wire.buffer)
        if start > MAX_HEAD:
            raise RefusedError("431 Request Header Fields Too Large")
        if not wire.fill():
            if wire.buffer.strip(b"\r\n"):
                raise RefusedError("400 Bad Request")
            return None


def parse_head(raw: bytes, connection: int, number: int) -> EngineRequest:
    """Read a head as Go 1.19's ``http.ReadRequest`` does; raises `RefusedError` with its answer."""
    lines = [line.removesuffix("\r") for line in raw.decode("latin-1").split("\n")]
    parts = lines[0].split(" ", 1)
    if len(parts) != 2 or " " not in parts[1]:
        raise RefusedError("400 Bad Request")
    method = parts[0]
    target, proto = parts[1].split(" ", 1)
    version = _VERSION.match(proto)
    if not _TOKEN.match(method) or version is None:
        raise RefusedError("400 Bad Request")
    if (major := int(version[1])) != 1 and (method, target, proto) != ("PRI", "*", "HTTP/2.0"):
        raise RefusedError("505 HTTP Version Not Supported", "unsupported protocol version")
    numbers = (major, int(version[2]))
    path, query = _split_target(method, target)
    headers = _read_headers(lines[1:])
    length = _framing(numbers, headers)
    names = [name.lower() for name, _ in headers]
    if numbers == (1, 1) and "host" not in names and method != "CONNECT":
        raise RefusedError("400 Bad Request", "missing required Host header")
    if names.count("host") > 1:
        raise RefusedError("400 Bad Request")
    host = next((value for name, value in headers if name.lower() == "host"), "")
    if re.search(r"[^A-Za-z0-9!$%&'()*+,\-.:;=\[\]_~]", host):
        raise RefusedError("400 Bad Request", "malformed Host header")
    for name, value in headers:
        if not _TOKEN.match(name):
            raise RefusedError("400 Bad Request", "invalid header name")
        if _BAD_VALUE.search(value):
            raise RefusedError("400 Bad Request", "invalid header value")
    return EngineRequest(connection, number, method, target, numbers, headers, raw, path, query, length)


def _split_target(method: str, target: str) -> tuple[str, str]:
    """Return (decoded path, raw query) as ``url.ParseRequestURI`` gives them."""
    if not target or re.search(r"[\x00-\x20\x7f]", target):
        raise RefusedError("400 Bad Request")
    if target == "*":
        return "*", ""
    if method == "CONNECT" and not target.startswith("/"):
        return "/" + target.partition("/")[2] if "/" in target else "", ""
    path, _, query = target.partition("?")
    if not path.startswith("/"):
        scheme = re.match(r"[A-Za-z][A-Za-z0-9+.\-]*:", path)
        if scheme is None:
            raise RefusedError("400 Bad Request")
        path = path[scheme.end() :]
        if "\\" in path.partition("//")[2].partition("/")[0]:
            raise RefusedError("400 Bad Request")
        if path.startswith("//"):
            path = "/" + path[2:].partition("/")[2] if "/" in path[2:] else ""
        elif not path.startswith("/"):
            path = ""  # opaque, as in "mailto:x"
    if _BAD_PERCENT.search(path):
        raise RefusedError("400 Bad Request")
    return unquote_to_bytes(path.encode("latin-1")).decode("utf-8", "surrogateescape"), query


def _read_headers(lines: list[str]) -> list[tuple[str, str]]:
    headers: list[tuple[str, str]] = []
    for line in lines:
        if not line:
            break
        if line[0] in " \t":
            if not headers:
                raise RefusedError("400 Bad Request")
            headers[-1] = (headers[-1][0], f"{headers[-1][1]} {line.strip(' 	')}".strip(" "))
            continue
        name, colon, value = line.partition(":")
        if not colon:
            raise RefusedError("400 Bad Request")
        if name:  # Go 1.19 drops a header without a name
            headers.append((name, value.strip(" \t")))
    return headers


def _framing(version: tuple[int, int], headers: list[tuple[str, str]]) -> int:
    encodings = [value for name, value in headers if name.lower() == "transfer-encoding"]
    if encodings and version >= (1, 1):
        if len(encodings) != 1 or encodings[0].lower() != "chunked":
            raise RefusedError("501 Not Implemented", body="Unsupported transfer encoding")
        return -1
    lengths = [value for name, value in headers if name.lower() == "content-length"]
    if not lengths or lengths[0] == "":
        return 0
    if any(value != lengths[0] for value in lengths[1:]):
        raise RefusedError("400 Bad Request")
    if re.fullmatch(r"[0-9]+", lengths[0]) is None or int(lengths[0]) >= 1 << 63:
        raise RefusedError("400 Bad Request")
    return int(lengths[0])


def read_body(wire: Wire, request: EngineRequest, limit: int | None = None) -> None:
    """Read the request's body (at most `limit` decoded bytes of it) into the request.

    Raises `GoneError` when the client ends inside it, `ValueError` for a chunk Go would not read.
    """
    budget = limit if limit is not None else 1 << 63
    if request.length >= 0:
        while request.body_length < request.length and budget > 0:
            if not wire.buffer and not wire.fill():
                raise GoneError("end of stream inside the body")
            data = wire.take(min(len(wire.buffer), request.length - request.body_length))
            budget -= len(data)
            _keep(request, data)
            request.take(data)
        request.body_complete = request.body_length >= request.length
        return
    while not request.body_complete and budget > 0:
        line = wire.read_line()
        _keep(request, line)
        size = line.partition(b";")[0].rstrip(b" \t\r\n")
        if re.fullmatch(rb"[0-9A-Fa-f]{1,16}", size) is None:
            raise ValueError("invalid byte in chunk length")
        left = int(size, 16)
        if left == 0:
            _read_trailers(wire, request)
            return
        budget -= left
        while left:
            if not wire.buffer and not wire.fill():
                raise GoneError("end of stream inside a chunk")
            data = wire.take(min(len(wire.buffer), left))
            left -= len(data)
            _keep(request, data)
            request.take(data)
        while len(wire.buffer) < 2:
            if not wire.fill():
                raise GoneError("end of stream after a chunk")
        if bytes(wire.buffer[:2]) != b"\r\n":
            raise ValueError("malformed chunked encoding")
        _keep(request, wire.take(2))


def _keep(request: EngineRequest, data: bytes) -> None:
    request.raw_body += data[: KEPT_BODY - len(request.raw_body)]


def _read_trailers(wire: Wire, request: EngineRequest) -> None:
    while (line := wire.read_line()) not in (b"\r\n", b"\n"):
        _keep(request, line)
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon:
            raise ValueError("malformed trailer")
        request.trailers.append((name, value.strip(" \t\r\n")))
    _keep(request, line)
    request.body_complete = True
