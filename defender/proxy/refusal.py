"""What the defender says itself: denials and errors in the Engine's own shape.

Docker clients print the ``message`` of a JSON error body after "Error response from daemon: " (Engine API
v1.24 and later, schema ``ErrorResponse``), so every answer of ours has that shape and a person sees one
sentence. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from defender.contract.errors import one_line
from defender.contract.policy import Decision

_REASONS: dict[int, bytes] = {
    400: b"Bad Request",
    403: b"Forbidden",
    408: b"Request Timeout",
    413: b"Content Too Large",
    417: b"Expectation Failed",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
    505: b"HTTP Version Not Supported",
}


def reason_phrase(status: int) -> bytes:
    """The reason phrase that goes with `status` (RFC 9110 section 15)."""
    return _REASONS.get(status, b"Error")


def denial_message(prefix: str, action: str, user: str, decision: Decision) -> str:
    """The sentence a denied person reads; the rule's own message follows after one space."""
    sentence = (
        f"The command '{action}' denied for user '{one_line(user)}' by rule '{one_line(decision.rule)}'"
    )
    if prefix:
        sentence = f"{prefix} {sentence}"
    if decision.message:
        sentence = f"{sentence} {one_line(decision.message)}"
    return sentence


def error_response(
    status: int,
    message: str,
    *,
    engine_headers: Iterable[tuple[bytes, bytes]] = (),
    head_only: bool = False,
    close: bool = False,
    retry_after: int = 0,
) -> bytes:
    """One whole HTTP/1.1 answer in the Engine's error shape.

    `engine_headers` are the Engine's version and OS headers: clients negotiate their API version from them
    even when the ping itself is denied. A HEAD request gets the same head without the body (RFC 9110 section
    9.3.2). `retry_after`: seconds for the header of that name (RFC 9110 section 10.2.3), 0 for none.
    """
    body = (
        json.dumps({"message": message}, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        + b"\n"
    )
    lines = [b"HTTP/1.1 %d %s\r\n" % (status, reason_phrase(status))]
    lines += [name + b": " + value + b"\r\n" for name, value in engine_headers]
    lines.append(b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body))
    if retry_after:
        lines.append(b"Retry-After: %d\r\n" % retry_after)
    if close:
        lines.append(b"Connection: close\r\n")
    lines.append(b"\r\n")
    if not head_only:
        lines.append(body)
    return b"".join(lines)


def body_length(answer: bytes) -> int:
    """Bytes of body in one whole answer, as its event counts them."""
    return len(answer) - answer.index(b"\r\n\r\n") - 4
