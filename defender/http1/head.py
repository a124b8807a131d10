"""Reading and writing the heads of HTTP/1 messages: RFC 9112 sections 2 to 6, stricter where it leaves a
choice.

A head is every byte from the start line to the empty line, both included. Whatever the Docker Engine and
the defender could read differently is refused, not repaired: bare LF, folded lines, space before a colon, a
second Content-Length, Transfer-Encoding beside Content-Length or on HTTP/1.0. Heads that are written here
are written from values that were read here, so neither side ever sees the other's raw bytes.

The functions are pure; what they remember of earlier lines changes only their speed. The caller owns the
buffer and bounds it (:data:`MAX_HEAD`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from defender.contract.memo import Memo
from defender.http1.errors import HTTPError, excerpt

MAX_HEAD = 65536
"""Bytes of one head, start line and empty line included. A longer one is answered with 431."""

MAX_HEADERS = 100
"""Header lines of one head. More are answered with 431."""

MAX_LENGTH = 2**63 - 1
"""The largest Content-Length and chunk size: what the Engine keeps in a signed 64-bit integer."""

Headers = list[tuple[bytes, bytes]]
"""Header fields in the order received: (lower-case name, value without surrounding blanks)."""

_TOKEN = rb"!#$%&'*+\-.^_`|~0-9A-Za-z"
_START_OF_REQUEST = re.compile(rb"([" + _TOKEN + rb"]{1,16}+) ([\x21-\x7e]++) HTTP/1\.([01])")
_START_OF_RESPONSE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*+))?+")
_FIELD = re.compile(rb"([" + _TOKEN + rb"]++):([\t\x20-\x7e\x80-\xff]*+)")
_REQUEST_LINE = re.compile(rb"([" + _TOKEN + rb"]+) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
_NAME = re.compile(rb"[" + _TOKEN + rb"]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_BARE_LF = re.compile(rb"(?<!\r)\n")
# Go's httpguts.ValidHostHeader table, so that no Host passes here that the Engine would refuse.
_HOST_BYTES = b"!$%&'()*+,-.:;=[]_~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_TOKEN_BYTES = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")

_ONCE = (b"host", b"content-length", b"transfer-encoding", b"content-type", b"expect", b"upgrade")


class Framing(Enum):
    """How the end of a message body is found (RFC 9112 section 6)."""

    NONE = "none"
    """There is no body."""
    LENGTH = "length"
    """``length`` bytes follow."""
    CHUNKED = "chunked"
    """Chunks follow, ended by the last chunk and trailers."""
    UNTIL_CLOSE = "until-close"
    """The body ends when the sender closes: responses only."""


def _first(headers: Headers, name: bytes) -> bytes | None:
    for field, value in headers:
        if field == name:
            return value
    return None


@dataclass(slots=True)
class RequestHead:
    """One request head, read.

    ``method`` as received (case kept: only exact upper-case methods are known operations), ``target`` the
    raw printable ASCII request target for :func:`defender.http1.target.read_target`, ``version`` (1, 0) or
    (1, 1). ``framing`` is never UNTIL_CLOSE; ``length`` counts body bytes when it is LENGTH, else 0.
    ``keep_alive``: the client wants to use the connection again. ``expect_continue``: it waits for a 100
    before it sends the body (only on 1.1 and only with a body). ``upgrade``: value of the Upgrade header,
    b"" when it is present and empty, None when absent: its mere presence makes the Engine answer exec and
    attach with 101. ``content_type``: as received. ``brief``: its header lines are short and hold no
    credential, so that memory may keep them for longer than their request. ``block``: the header lines as
    received, with the empty line.

    Heads with the same block share one list of headers: nobody changes it.
    """

    method: str
    target: str
    version: tuple[int, int]
    headers: Headers
    framing: Framing
    length: int
    keep_alive: bool
    expect_continue: bool
    upgrade: bytes | None
    content_type: bytes | None
    brief: bool = False
    block: bytes = b""

    def get(self, name: bytes) -> bytes | None:
        """The first value of the header ``name`` (lower case), None when absent."""
        return _first(self.headers, name)


@dataclass(slots=True)
class ResponseHead:
    """One response head, read. ``status`` 100-999; ``reason`` may be empty; ``keep_alive``: the Engine
    connection can be used again once the body was read to its end (False for 101 and for a body that ends
    with the connection).
    """

    status: int
    reason: bytes
    version: tuple[int, int]
    headers: Headers
    framing: Framing
    length: int
    keep_alive: bool

    def get(self, name: bytes) -> bytes | None:
        """The first value of the header ``name`` (lower case), None when absent."""
        return _first(self.headers, name)


def find_head_end(buffer: bytes | bytearray, start: int) -> int:
    """Where the head at the front of ``buffer`` ends: the index after its empty line, -1 while it is
    incomplete.

    ``start``: how many bytes of ``buffer`` an earlier call has seen already (0 the first time), so that a
    head that trickles in is searched once. Never raises. When the bytes can no longer become a head (a line
    ended by a bare LF, a first byte that starts no message, such as a TLS record) the index just after the
    proof is returned at once: parsing ``buffer[:index]`` then refuses it, and nobody has to wait for a
    time-out.
    """
    if start == 0 and buffer and buffer[0] not in _TOKEN_BYTES:
        return 1
    end = buffer.find(b"\r\n\r\n", start - 3 if start > 3 else 0)
    if end >= 0:
        return end + 4
    bare = _BARE_LF.search(buffer, start)
    return -1 if bare is None else bare.end()


def parse_request_head(
    data: bytes, *, max_headers: int = MAX_HEADERS, max_head: int = MAX_HEAD
) -> RequestHead:
    """Read one request head: ``data`` from the first byte of the request line to the empty line, and
    nothing more.

    Raises HTTPError 400 (malformed), 417 (an Expect other than 100-continue), 431 (too large, too many
    headers), 501 (a transfer coding other than chunked), 505 (a version other than HTTP/1.0 and 1.1).
    """
    line, crlf, block = data.partition(b"\r\n")
    match = _START_OF_REQUEST.fullmatch(line)
    if match is None or not crlf or len(data) > max_head:
        raise _request_fault(data, max_head)
    method, target, minor = match.groups()
    new = minor == b"1"
    said = _BLOCKS.get((block, new))
    if said is None:
        said = _read_block(data, block, new, max_headers, max_head)
        if said[-1]:
            if len(_BLOCKS) >= _KEPT_BLOCKS:
                _BLOCKS.clear()
            _BLOCKS[block, new] = said
    elif len(said[0]) > max_headers:
        raise _too_many(said[0], max_headers)
    return RequestHead(
        method.decode("ascii"), target.decode("ascii"), (1, 1) if new else (1, 0), *said, block
    )


_Said = tuple[Headers, Framing, int, bool, bool, "bytes | None", "bytes | None", bool]
"""The fields of a RequestHead from `headers` to `brief`."""

_BLOCKS: dict[tuple[bytes, bool], _Said] = {}
"""What whole header blocks say, on HTTP/1.1 or not: a client's differ little from one request to the next."""

_LONG_BLOCK = 1024
_KEPT_BLOCKS = 256
"""Bytes from which on a block is not kept; how many are."""

_CREDENTIALS = (b"x-registry-", b"authorization:")
"""A header block with one of these, in lower case, is not kept."""


def _too_many(headers: Headers, most: int) -> HTTPError:
    return HTTPError(431, f"the request has {len(headers)} headers; at most {most} are accepted")


def _read_block(data: bytes, block: bytes, new: bool, max_headers: int, max_head: int) -> _Said:
    """Read the header lines of the head `data`, with the empty line at their end."""
    headers = _read_fields(block[:-4].split(b"\r\n"), 0) if block != b"\r\n" else []
    if headers is None or data[-4:] != b"\r\n\r\n":
        raise _request_fault(data, max_head)
    if len(headers) > max_headers:
        raise _too_many(headers, max_headers)
    fields = dict(headers)
    if len(fields) != len(headers):
        _refuse_duplicates(headers, 400)
    host = fields.get(b"host")
    if host is None:
        if new:
            raise HTTPError(400, "the Host header is missing; HTTP/1.1 requires exactly one")
    elif host.translate(None, _HOST_BYTES):
        raise HTTPError(400, f"the Host header {excerpt(host.rpartition(b'@')[2])} is malformed")
    framing = Framing.NONE
    length = 0
    coding = fields.get(b"transfer-encoding")
    counted = fields.get(b"content-length")
    if coding is not None:
        if counted is not None:
            raise HTTPError(400, "Transfer-Encoding and Content-Length exclude each other")
        if not new:
            raise HTTPError(400, "Transfer-Encoding is not part of HTTP/1.0")
        if coding.lower() != b"chunked":
            raise HTTPError(501, f"the transfer coding {excerpt(coding)} is not supported; send chunked")
        framing = Framing.CHUNKED
    elif counted is not None:
        length = _read_length(counted, 400)
        framing = Framing.LENGTH
    expect = fields.get(b"expect")
    if expect is not None and expect.lower() != b"100-continue":
        raise HTTPError(417, f"the expectation {excerpt(expect)} is not supported; only 100-continue is")
    return (
        headers,
        framing,
        length,
        _keeps_alive(headers, fields, new),
        expect is not None and new and (length > 0 or coding is not None),
        fields.get(b"upgrade"),
        fields.get(b"content-type"),
        len(block) < _LONG_BLOCK and not any(mark in block.lower() for mark in _CREDENTIALS),
    )


def parse_response_head(data: bytes, *, request_method: str) -> ResponseHead:
    """Read one response head of the Engine: ``data`` from the status line to the empty line, and nothing
    more.

    ``request_method`` decides with the status whether a body follows: none after HEAD, 1xx, 204 and 304.
    Raises HTTPError 502 for anything malformed or ambiguous; a response is never repaired.
    """
    lines = data[:-4].split(b"\r\n")
    match = _START_OF_RESPONSE.fullmatch(lines[0])
    headers = _read_fields(lines, 1)
    if match is None or headers is None or len(data) > MAX_HEAD or data[-4:] != b"\r\n\r\n":
        raise _response_fault(data)
    minor, digits, reason = match.groups()
    if len(headers) > MAX_HEADERS:
        raise HTTPError(
            502, f"the Engine's response has {len(headers)} headers; at most {MAX_HEADERS} are accepted"
        )
    status = int(digits)
    fields = dict(headers)
    if len(fields) != len(headers):
        _refuse_duplicates(headers, 502)
    new = minor == b"1"
    coding = fields.get(b"transfer-encoding")
    counted = fields.get(b"content-length")
    length = 0 if counted is None else _read_length(counted, 502)
    if coding is not None:
        if counted is not None:
            raise HTTPError(502, "the Engine sent Transfer-Encoding together with Content-Length")
        if not new or coding.lower() != b"chunked":
            raise HTTPError(
                502, f"the Engine sent the transfer coding {excerpt(coding)}, not chunked on HTTP/1.1"
            )
    if status < 200 or status == 204:
        if coding is not None or length:
            raise HTTPError(502, f"the Engine announced a body with status {status}, which has none")
        framing = Framing.NONE
    elif status == 304 or request_method == "HEAD":
        framing, length = Framing.NONE, 0
    elif coding is not None:
        framing = Framing.CHUNKED
    elif counted is not None:
        framing = Framing.LENGTH
    else:
        framing = Framing.UNTIL_CLOSE
    keep_alive = _keeps_alive(headers, fields, new)
    if framing is Framing.UNTIL_CLOSE or status == 101:
        keep_alive = False
    return ResponseHead(
        status, reason or b"", (1, 1) if new else (1, 0), headers, framing, length, keep_alive
    )


def parse_fields(block: bytes, status: int) -> Headers:
    """Read header lines that stand alone, as trailers do: each ended by CRLF, without the empty line.

    Raises HTTPError with ``status`` for what is not a header line by the rules of the head.
    """
    lines = block.split(b"\r\n")
    fields = _read_fields(lines[:-1], 0)
    if fields is None or lines[-1]:
        raise _field_fault(lines[:-1] or [block], status)
    return fields


def write_request_head(method: str, target: str, headers: Headers) -> bytes:
    """An HTTP/1.1 request head. Raises ValueError when a part would break out of its line."""
    return _join_head(f"{method} {target} HTTP/1.1".encode("ascii"), headers)


def write_response_head(status: int, reason: bytes, headers: Headers) -> bytes:
    """An HTTP/1.1 response head. Raises ValueError when a part would break out of its line."""
    return _join_head(b"HTTP/1.1 %d %b" % (status, reason), headers)


def _join_head(start: bytes, headers: Headers) -> bytes:
    lines = [start]
    lines += [b"%b: %b" % field for field in headers]
    lines += (b"", b"")
    head = b"\r\n".join(lines)
    # The values were read by the strict readers above; this counts line ends so that a value from elsewhere
    # (a user name, a rule's message) cannot smuggle a header in.
    expected = len(headers) + 2
    if head.count(b"\n") != expected or head.count(b"\r") != expected or b"\0" in head:
        raise ValueError("a CR, LF or NUL in the start line or in a header")
    return head


def _read_field(line: bytes) -> tuple[bytes, bytes] | None:
    match = _FIELD.fullmatch(line)
    if match is None:
        return None
    name, value = match.groups()
    return name.lower(), value.strip(b" \t")


class _Fields(Memo[bytes, "tuple[bytes, bytes] | None"]):
    """Header lines and what they say, but for lines that hold a credential, or cannot be read and might."""

    __slots__ = ()

    def __missing__(self, line: bytes) -> tuple[bytes, bytes] | None:
        field = _read_field(line)
        if field is None or field[0].startswith(_SECRET_FIELDS):
            return field
        return super().__missing__(line)


_SECRET_FIELDS = (b"x-registry-", b"authorization", b"proxy-authorization")

_FIELDS = _Fields(_read_field, 1024)
"""A client's lines hardly change from one request to the next, and the Engine's change with the second; so
most are read once."""

_LONG_LINE = 128
"""Bytes of a header line from which on it is not kept, so that memory is bounded."""


def _read_fields(lines: list[bytes], start: int) -> Headers | None:
    """The header fields of `lines` from index `start` on; None if one is malformed."""
    headers: Headers = []
    append = headers.append
    for line in lines[start:] if start else lines:
        field = _FIELDS[line] if len(line) < _LONG_LINE else _read_field(line)
        if field is None:
            return None
        append(field)
    return headers


def _refuse_duplicates(headers: Headers, status: int) -> None:
    names = [name for name, _ in headers]
    for name in _ONCE:
        if names.count(name) > 1:
            raise HTTPError(status, f"the header {name.decode().title()} is given more than once")


def _read_length(value: bytes, status: int) -> int:
    # Leading zeros are digits like any other (RFC 9110 section 8.6); 19 digits hold MAX_LENGTH.
    if not value.isdigit() or len(value) > 19 or (length := int(value)) > MAX_LENGTH:
        raise HTTPError(status, f"the Content-Length {excerpt(value)} is not a number from 0 to 2^63-1")
    return length


def _keeps_alive(headers: Headers, fields: dict[bytes, bytes], new: bool) -> bool:
    """Whether the connection outlives this message (RFC 9112 section 9.3)."""
    value = fields.get(b"connection")
    if value is None:
        return new
    if len(fields) == len(headers) and value == b"keep-alive":  # the common one, without its cost
        return True
    options: set[bytes] = set()
    for name, value in headers:
        if name == b"connection":
            options.update(option.strip(b" \t") for option in value.lower().split(b","))
    return b"close" not in options and (new or b"keep-alive" in options)


def _request_fault(data: bytes, max_head: int) -> HTTPError:
    """Find out, slowly, why ``data`` is no request head."""
    if len(data) > max_head:
        return HTTPError(431, f"the request head is longer than {max_head} bytes")
    line, *rest = data.split(b"\r\n")
    parts = _REQUEST_LINE.fullmatch(line)
    if parts is not None and parts[3] == b"2":
        return HTTPError(505, "HTTP/2 is not served here; use HTTP/1.1")
    if parts is not None and (parts[3] != b"1" or parts[4] not in b"01"):
        version = f"{parts[3].decode()}.{parts[4].decode()}"
        return HTTPError(505, f"HTTP/{version} is not served here; use HTTP/1.1")
    if data[:1] in (b"\r", b"\n"):
        return HTTPError(400, "the request starts with an empty line")
    if not data.endswith(b"\r\n\r\n"):
        return HTTPError(400, "the request head is not made of lines ended by CRLF")
    if parts is None:
        # Without showing it: it may be a URL with a password, or a body that was counted wrongly.
        return HTTPError(400, "the request line is not of the form: METHOD /path HTTP/1.1")
    if len(parts[1]) > 16:
        return HTTPError(400, f"the method {excerpt(parts[1])} is longer than 16 characters")
    return _field_fault(rest[:-2], 400)


def _response_fault(data: bytes) -> HTTPError:
    """Find out, slowly, why ``data`` is no response head."""
    if len(data) > MAX_HEAD:
        return HTTPError(502, f"the Engine's response head is longer than {MAX_HEAD} bytes")
    if not data.endswith(b"\r\n\r\n"):
        return HTTPError(502, "the Engine's response head is not made of lines ended by CRLF")
    line, *rest = data.split(b"\r\n")
    if _START_OF_RESPONSE.fullmatch(line) is None:
        return HTTPError(502, f"the Engine's status line {excerpt(line)} is malformed")
    return _field_fault(rest[:-2], 502)


def _field_fault(lines: list[bytes], status: int) -> HTTPError:
    """Name the first bad header line by its number: its text may be a secret, or a body read as trailers."""
    for number, line in enumerate(lines, 1):
        name, colon, value = line.partition(b":")
        if line[:1] in (b" ", b"\t"):
            return HTTPError(
                status, f"header line {number} is folded; a header must not continue on a second line"
            )
        if not colon:
            return HTTPError(status, f"header line {number} has no colon")
        if _NAME.fullmatch(name) is None:
            return HTTPError(status, f"the name in header line {number} is malformed")
        if _VALUE.fullmatch(value) is None:
            return HTTPError(status, f"the value in header line {number} holds a control character")
    return HTTPError(status, "the header lines are malformed")
