"""HTTP/1.1 as the tests read it: their own strict reader, which shares nothing with the defender's.

It reads what the defender writes, on both of its sides, and takes nothing but the defender's own canonical
spelling there: one space after a colon, CRLF, one framing. Readers are generators that yield when they need
more bytes, so that the same one serves a client that blocks and a relay that is fed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Generator
from dataclasses import dataclass, field

Reading = Generator[None, None, None]

KEPT = 1 << 20
"""Bytes of a body or stream that are kept; the count and the digest cover all of it."""

Headers = list[tuple[str, str]]
"""Names in lower case."""

_FIELDS = rb"((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+: ?[\t\x20-\x7e\x80-\xff]*\r\n)*)\r\n"
_REQUEST = re.compile(rb"([A-Z]{1,16}) (/[\x21-\x7e]*) HTTP/1\.1\r\n" + _FIELDS)
_ANSWER = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9]) ?([\t\x20-\x7e]*)\r\n" + _FIELDS)
_CHUNK = re.compile(rb"([0-9a-f]{1,16})\r\n")


class BrokenError(Exception):
    """The bytes are not what the reader takes, or they ended too early."""


class Source:
    """The bytes of one direction that have come and are not read yet; `ended` when no more will come."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.ended = False

    def take(self, count: int) -> bytes:
        """Remove the first `count` bytes."""
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        return data


@dataclass(slots=True)
class Kept:
    """Bytes that passed: the first `KEPT` of them, how many there were, and their digest."""

    data: bytearray = field(default_factory=bytearray)
    count: int = 0
    hash: hashlib._Hash = field(default_factory=hashlib.sha256)

    def add(self, data: bytes) -> None:
        self.count += len(data)
        self.hash.update(data)
        if len(self.data) < KEPT:
            self.data += data[: KEPT - len(self.data)]

    @property
    def digest(self) -> str:
        return self.hash.hexdigest()


def get_all(headers: Headers, name: str) -> list[str]:
    """Return every value of a header, in order."""
    return [value for key, value in headers if key == name]


@dataclass(eq=False, slots=True)
class Request:
    """One request as the Engine gets it. `framing` is "none", "length" or "chunked"."""

    method: str
    target: str
    headers: Headers
    framing: str
    length: int
    raw_head: bytes
    body: Kept = field(default_factory=Kept)
    complete: bool = False

    def get(self, name: str) -> str | None:
        return next(iter(get_all(self.headers, name)), None)

    @property
    def line(self) -> str:
        return f"{self.method} {self.target}"


@dataclass(eq=False, slots=True)
class Answer:
    """One answer. `framing` is "none", "length", "chunked" or "close" (the body ends with the connection)."""

    status: int
    reason: str
    headers: Headers
    framing: str
    length: int
    raw_head: bytes
    body: Kept = field(default_factory=Kept)
    trailers: Headers = field(default_factory=list)
    complete: bool = False

    def get(self, name: str) -> str | None:
        return next(iter(get_all(self.headers, name)), None)

    @property
    def text(self) -> bytes:
        """The kept body."""
        return bytes(self.body.data)

    @property
    def closes(self) -> bool:
        """The connection ends after this answer."""
        return self.framing == "close" or "close" in (self.get("connection") or "").lower()

    @property
    def hijacked(self) -> bool:
        """What follows the head is a stream: 101, or the Engine's 200 to a client without Upgrade."""
        kind = self.get("content-type") or ""
        return self.status == 101 or (
            self.status == 200
            and self.framing == "close"
            and kind.startswith("application/vnd.docker.")
            and kind.endswith("-stream")
        )


def _fields(block: bytes) -> Headers:
    pairs = [line.partition(":") for line in block.decode("latin-1").split("\r\n")[:-1]]
    return [(name.lower(), value.strip(" \t")) for name, _, value in pairs]


def _framing(headers: Headers) -> tuple[str, int]:
    lengths, codings = get_all(headers, "content-length"), get_all(headers, "transfer-encoding")
    if len(lengths) + len(codings) > 1:
        raise BrokenError(f"two framings: {lengths} {codings}")
    if codings:
        if codings != ["chunked"]:
            raise BrokenError(f"transfer coding {codings[0]!r}")
        return "chunked", 0
    if not lengths:
        return "none", 0
    if re.fullmatch("[0-9]{1,18}", lengths[0]) is None:
        raise BrokenError(f"length {lengths[0]!r}")
    return "length", int(lengths[0])


def _head(source: Source) -> Generator[None, None, bytes]:
    while (end := source.buffer.find(b"\r\n\r\n")) < 0:
        if source.ended:
            raise BrokenError(f"ended before a whole head: {bytes(source.buffer[:200])!r}")
        yield
    return source.take(end + 4)


def read_request(source: Source, requests: list[Request]) -> Reading:
    """Read one request; it is appended to `requests` once its head is there, and filled from then on."""
    raw = yield from _head(source)
    match = _REQUEST.fullmatch(raw)
    if match is None:
        raise BrokenError(f"not a canonical request head: {raw[:300]!r}")
    headers = _fields(match[3])
    framing, length = _framing(headers)
    request = Request(match[1].decode(), match[2].decode(), headers, framing, length, raw)
    requests.append(request)
    yield from _body(source, request.body, framing, length)
    request.complete = True


def read_answer(source: Source, answers: list[Answer], method: str) -> Reading:
    """Read one answer to a request of this method; 1xx answers before it are appended as well."""
    while True:
        raw = yield from _head(source)
        match = _ANSWER.fullmatch(raw)
        if match is None:
            raise BrokenError(f"not an answer's head: {raw[:300]!r}")
        status = int(match[2])
        headers = _fields(match[4])
        framing, length = _framing(headers)
        if status < 200 or status in (204, 304) or method == "HEAD":
            framing, length = "none", 0
        elif framing == "none":
            framing = "close"
        answer = Answer(status, match[3].decode(), headers, framing, length, raw)
        answers.append(answer)
        if status >= 200 or status == 101:
            break
        answer.complete = True
    if not answer.hijacked:
        answer.trailers = yield from _body(source, answer.body, framing, length)
    answer.complete = True


def _body(source: Source, body: Kept, framing: str, length: int) -> Generator[None, None, Headers]:
    if framing == "length":
        yield from _some(source, body, length)
    elif framing == "close":
        while not source.ended:
            body.add(source.take(len(source.buffer)))
            yield
        body.add(source.take(len(source.buffer)))
    elif framing == "chunked":
        while True:
            line = yield from _line(source)
            match = _CHUNK.fullmatch(line)
            if match is None:
                raise BrokenError(f"not a chunk's size: {line!r}")
            size = int(match[1], 16)
            if size == 0:
                break
            yield from _some(source, body, size)
            end = yield from _line(source)
            if end != b"\r\n":
                raise BrokenError("a chunk does not end where it should")
        block = b""
        while (line := (yield from _line(source))) != b"\r\n":
            block += line
        return _fields(block)
    return []


def _some(source: Source, body: Kept, left: int) -> Reading:
    while left:
        if not source.buffer:
            if source.ended:
                raise BrokenError(f"ended {left} bytes before the end of a body")
            yield
        data = source.take(min(left, len(source.buffer)))
        body.add(data)
        left -= len(data)


def _line(source: Source) -> Generator[None, None, bytes]:
    while (end := source.buffer.find(b"\r\n")) < 0:
        if source.ended:
            raise BrokenError("ended inside a line of framing")
        yield
    return source.take(end + 2)
