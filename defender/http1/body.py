"""Reading and writing message bodies: RFC 9112 sections 6 and 7.

A decoder is fed what was read and gives back payload and surplus; it takes one call per read, however many
chunks the read holds, and a read that is all payload comes back as the same object. Where the input is cut
makes no difference. A decoder keeps at most one unfinished line of framing between two calls, so its state
is bounded whatever is sent.

What a decoder accepts is re-encoded by :func:`encode_chunk` before it goes on: chunk extensions and the
sender's chunk boundaries end here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from defender.http1.errors import HTTPError, excerpt
from defender.http1.head import MAX_LENGTH, Headers, parse_fields

MAX_CHUNK_LINE = 512
"""Bytes of one chunk-size line, CRLF included."""

MAX_CHUNK_EXTENSION = 256
"""Bytes of the chunk extensions in one chunk-size line, the first semicolon included."""

MAX_CHUNK_EXCESS = 16384
"""How many bytes framing may exceed payload by (16 bytes and twice its payload are free for each chunk):
the bound of Go's net/http since 1.20.12, against bodies that are nearly all framing."""

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t\x20-\x7e\x80-\xff]{0,255})?+\r\n")

FORBIDDEN_TRAILERS = frozenset(
    b"age authorization cache-control connection content-encoding content-length content-location"
    b" content-range content-type cookie date expect expires forwarded host http2-settings if-match"
    b" if-modified-since if-none-match if-range if-unmodified-since keep-alive location max-forwards"
    b" pragma proxy-authenticate proxy-authorization proxy-connection range retry-after set-cookie te"
    b" trailer transfer-encoding upgrade vary via warning www-authenticate x-registry-auth"
    b" x-registry-config".split()
)
"""Fields that decide about framing, routing, identity or the meaning of the body (RFC 9110 section 6.5.1)
and the Engine's credential headers: a message that puts one of them after its body is refused."""


class LengthDecoder:
    """A body of exactly ``length`` bytes. ``finished`` is True once all of them were decoded (at once for
    0).
    """

    __slots__ = ("finished", "remaining")

    def __init__(self, length: int) -> None:
        self.remaining = length
        self.finished = length == 0

    def decode(self, data: bytes) -> tuple[bytes, bytes]:
        """Split ``data`` into the payload in it and the surplus after the body's end. Never raises."""
        size = len(data)
        remaining = self.remaining
        if size < remaining:
            self.remaining = remaining - size
            return data, b""
        self.remaining = 0
        self.finished = True
        if size == remaining:
            return data, b""
        return data[:remaining], data[remaining:]


class UntilCloseDecoder:
    """A body that ends with the connection: everything is payload. The owner sets ``finished`` at a clean
    end.
    """

    __slots__ = ("finished",)

    def __init__(self) -> None:
        self.finished = False

    def decode(self, data: bytes) -> tuple[bytes, bytes]:
        """All of ``data`` is payload. Never raises."""
        return data, b""


class ChunkedDecoder:
    """A body in chunks, ended by the last chunk and its trailers (RFC 9112 section 7.1).

    Strict: CRLF only, sizes of 1 to 16 hexadecimal digits up to 2^63-1 with nothing before or after them
    but an extension of at most :data:`MAX_CHUNK_EXTENSION` bytes, which is dropped. ``trailers`` is filled
    when ``finished`` turns True. ``max_trailers``: bytes of the trailer section. ``status``: of the
    HTTPError that is raised, 400 for a request; give 502 for a response of the Engine. After an error the
    decoder refuses all further input.
    """

    __slots__ = (
        "_excess",
        "_in_data",
        "_max_trailers",
        "_remaining",
        "_status",
        "_tail",
        "finished",
        "trailers",
    )

    def __init__(self, max_trailers: int = 8192, *, status: int = 400) -> None:
        self.finished = False
        self.trailers: Headers = []
        self._max_trailers = max_trailers
        self._status = status
        self._tail = b""  # an unfinished piece of framing, never payload
        self._remaining = 0  # payload bytes of the current chunk still to come; -1: trailers; -2: broken
        self._in_data = False  # the CRLF after the current chunk's payload is still to come
        self._excess = 0

    def decode(self, data: bytes) -> tuple[bytes, bytes]:
        """Split ``data`` into the payload in it and the surplus after the body's end. Raises HTTPError."""
        if self._remaining > len(data):
            self._remaining -= len(data)
            return data, b""
        if self.finished:
            return b"", data
        try:
            return self._decode(data)
        except HTTPError:
            self._remaining = -2
            self._tail = b""
            raise

    def _decode(self, data: bytes) -> tuple[bytes, bytes]:
        if self._tail:
            data = self._tail + data
            self._tail = b""
        parts: list[bytes] = []
        remaining = self._remaining
        in_data = self._in_data
        end = len(data)
        position = 0
        while remaining >= 0:
            if remaining:
                stop = position + remaining
                if stop > end:
                    if position < end:
                        parts.append(data[position:])
                    remaining = stop - end
                    position = end
                    break
                parts.append(data[position:stop])
                position = stop
                remaining = 0
            if in_data:
                if not data.startswith(b"\r\n", position):
                    if data[position:] in (b"", b"\r"):
                        break
                    raise HTTPError(self._status, "a chunk is longer than its size says")
                position += 2
                in_data = False
            line = _SIZE_LINE.match(data, position)
            if line is None:
                self._check_unfinished_line(data, position)
                break
            remaining = self._read_size(line)
            position = line.end()
            in_data = remaining > 0
            if not in_data:
                remaining = -1
        self._remaining = remaining
        self._in_data = in_data
        if remaining == -1:
            surplus = self._read_trailers(data, position)
        elif remaining == -2:
            raise HTTPError(self._status, "the chunked body is broken")
        else:
            self._tail = data[position:]
            surplus = b""
        return (parts[0] if len(parts) == 1 else b"".join(parts)), surplus

    def check(self, data: bytes) -> tuple[bytes, int, bytes]:
        """As `decode`, for one who passes the body on in the chunks it came in: (chunks, bytes of payload in
        them, surplus). Raises HTTPError.

        The chunks are checked as strictly, and each is what `encode_chunk` makes of its payload: a size that
        is spelled in another way, or has an extension, is written anew. The last chunk and the trailers are
        not among them: write `last_chunk` once `finished` is True. Where nothing was to be changed they are
        `data` itself, so that a large body is never copied. One body is either decoded or checked.
        """
        size = len(data)
        if self._remaining > size:
            self._remaining -= size
            return data, size, b""
        if self.finished:
            return b"", 0, data
        try:
            return self._check(data)
        except HTTPError:
            self._remaining = -2
            self._tail = b""
            raise

    def _check(self, data: bytes) -> tuple[bytes, int, bytes]:
        if self._tail:
            data = self._tail + data
            self._tail = b""
        parts: list[bytes] = []
        count = start = position = 0
        line: re.Match[bytes] | None = None
        remaining = self._remaining
        in_data = self._in_data
        end = len(data)
        while remaining >= 0:
            if remaining:
                stop = position + remaining
                if stop > end:
                    count += end - position
                    remaining = stop - end
                    position = end
                    break
                count += remaining
                position = stop
                remaining = 0
            if in_data:
                if not data.startswith(b"\r\n", position):
                    if data[position:] in (b"", b"\r"):
                        break
                    raise HTTPError(self._status, "a chunk is longer than its size says")
                position += 2
                in_data = False
            line = _SIZE_LINE.match(data, position)
            if line is None:
                self._check_unfinished_line(data, position)
                break
            remaining = self._read_size(line)
            in_data = remaining > 0
            if not in_data:
                remaining = -1
                break
            size = b"%x\r\n" % remaining
            if line[0] != size:
                parts += (data[start:position], size)
                start = line.end()
            position = line.end()
        self._remaining = remaining
        self._in_data = in_data
        if remaining == -2:
            raise HTTPError(self._status, "the chunked body is broken")
        surplus = b""
        if remaining == -1:
            surplus = self._read_trailers(data, line.end() if line is not None else position)
        else:
            self._tail = data[position:]
        if parts or start or position != end:
            parts.append(data[start:position])
            data = b"".join(parts)
        return data, count, surplus

    def _read_size(self, line: re.Match[bytes]) -> int:
        size = int(line[1], 16)
        if size > MAX_LENGTH:
            raise HTTPError(self._status, "a chunk size is larger than 2^63-1")
        excess = self._excess + line.end() - line.start() - 16 - 2 * size
        if excess > MAX_CHUNK_EXCESS:
            raise HTTPError(self._status, "the chunked body holds much more framing than data")
        self._excess = excess if excess > 0 else 0
        return size

    def _check_unfinished_line(self, data: bytes, position: int) -> None:
        """Refuse what cannot become a chunk-size line any more: a complete line, or one that is too long."""
        limit = position + MAX_CHUNK_LINE
        if data.find(b"\n", position, limit) >= 0 or len(data) >= limit:
            raise HTTPError(self._status, "a chunk size line is malformed")

    def _read_trailers(self, data: bytes, position: int) -> bytes:
        """Take the trailer section when it is complete; give back what follows it."""
        if data.startswith(b"\r\n", position):
            self.finished = True
            self._remaining = 0
            return data[position + 2 :]
        stop = data.find(b"\r\n\r\n", position, position + self._max_trailers)
        if stop < 0:
            if len(data) - position >= self._max_trailers:
                raise HTTPError(self._status, f"the trailers are longer than {self._max_trailers} bytes")
            self._tail = data[position:]
            return b""
        trailers = parse_fields(data[position : stop + 2], self._status)
        for name, _ in trailers:
            if name in FORBIDDEN_TRAILERS:
                raise HTTPError(self._status, f"the trailer {excerpt(name)} is not allowed after a body")
        self.trailers = trailers
        self.finished = True
        self._remaining = 0
        return data[stop + 4 :]


def encode_chunk(payload: bytes) -> bytes:
    """``payload`` as one chunk; b"" for an empty payload, because an empty chunk would end the body."""
    return b"%x\r\n%b\r\n" % (len(payload), payload) if payload else b""


def last_chunk(trailers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The end of a chunked body with its trailers. Raises ValueError when one would break out of its line."""
    if not trailers:
        return b"0\r\n\r\n"
    block = b"".join([b"%b: %b\r\n" % field for field in trailers])
    if block.count(b"\n") != len(trailers) or block.count(b"\r") != len(trailers) or b"\0" in block:
        raise ValueError("a CR, LF or NUL in a trailer")
    return b"0\r\n" + block + b"\r\n"
