"""The results of Engine calls, packed: the one event that is built for every request.

What `defender.contract.packing.pack_body` makes of a `request_event` is made here from parts that were packed
before: who asked, once per connection; what was asked, once per distinct request; the decision, once per rule
and policy. A test holds the two together.
"""

from __future__ import annotations

import struct

import msgpack

#: Strings that no encoding holds (lone surrogates) are kept as they are; the reader does the same.
_pack = msgpack.Packer(use_bin_type=True, unicode_errors="surrogatepass", autoreset=True).pack


def packed(value: object) -> bytes:
    """`value`, of what JSON knows, as msgpack."""
    data: bytes = _pack(value)
    return data


_KIND = packed("kind") + packed("engine") + packed("phase")
_HEAD = _KIND + packed("result") + packed("actor")
_ATTEMPT = _KIND + packed("attempt") + packed("actor")
_REQ = packed("req")
_DECISION = packed("decision")
_RESULT = packed("result")
_REDACTED = packed("redacted")
_STATUS = b"\x83" + packed("status")
_STATUS_ERROR = b"\x84" + packed("status")
_BYTES = packed("bytes")
_MS = packed("ms")
_ERROR = packed("error")
#: Small whole numbers, and any float, as msgpack has them.
_NUMBERS = tuple(packed(number) for number in range(4096))
_FLOAT = struct.Struct(">Bd").pack


def request_fragment(fields: dict[str, object], redacted: tuple[str, ...]) -> tuple[bytes, bytes]:
    """The `req` of an event, and its `redacted` with the key, b"" if nothing is hidden."""
    return packed(fields), _REDACTED + packed(redacted) if redacted else b""


def attempt_body(actor: bytes, request: tuple[bytes, bytes], decision: bytes) -> tuple[int, bytes]:
    """The same as `result_body` for a `request_event` that is an attempt."""
    fields, redacted = request
    body = b"".join((_ATTEMPT, actor, _REQ, fields, _DECISION, decision, redacted))
    return 6 if redacted else 5, body


def result_body(
    actor: bytes,
    request: tuple[bytes, bytes],
    decision: bytes,
    status: int,
    sent: int,
    ms: float,
    error: str = "",
) -> tuple[int, bytes]:
    """The pairs and the body of a `request_event` that is a result, as `CallRecorder.append` takes them.

    `request` comes from `request_fragment`, the others are `packed`; `status` (three digits), `sent` and `ms`
    as in `request_event`. The `error` was shortened already.
    """
    fields, redacted = request
    body = b"".join(
        (
            _HEAD,
            actor,
            _REQ,
            fields,
            _DECISION,
            decision,
            _RESULT,
            _STATUS_ERROR if error else _STATUS,
            _NUMBERS[status],
            _BYTES,
            _NUMBERS[sent] if sent < 4096 else _pack(sent),
            _MS,
            _FLOAT(0xCB, round(ms, 3)),
            _ERROR + _pack(error) if error else b"",
            redacted,
        )
    )
    return 7 if redacted else 6, body
