"""User, action and effect of a packed event, which is what the event store has an index of.

Every event that a defender stores goes through here, so an event of the usual shape is not unpacked: its keys
are looked for in their places. What is looked for cannot be in a client's text: a byte of 80 to 8f behind an
ASCII letter, a map's head here, is no UTF-8. An event of another shape is unpacked.
"""

from __future__ import annotations

import re
from typing import Final

import msgpack

from defender.contract.packing import MAX_ITEMS
from defender.contract.spool import PAYLOAD_MARK

#: Bytes of UTF-8 of a text that is kept for searching.
MAX_NAME: Final = 512

_IDENTITY: Final = PAYLOAD_MARK + b".{16}\xa1t\xcf.{8}\xa1m\xcf.{8}(?:\xa4corr\xc4\x10.{16})?"
_USER: Final = re.compile(
    b"(?:[\x80-\x8f]|\xde..)" + _IDENTITY + b"\xa4kind[\xa0-\xbf][a-z_]*\xa5phase[\xa0-\xbf][a-z_]*"
    b"\xa5actor[\x80-\x8f]\xa4user(?:([\xa0-\xbf])|\xd9(.))",
    re.DOTALL,
).match
_ACTION: Final = re.compile(b"\xa3req[\x80-\x8f]\xa6action([\xa0-\xbf])").search
_DECISION: Final = b"\xa8decision"
_EFFECT: Final = b"\xa8decision\x85\xa6effect"
_EFFECT_SIZE: Final = len(_EFFECT)


def searchable(payload: bytes) -> tuple[bytes, bytes, bytes]:
    """User, action and effect of an event, in UTF-8; empty for what it does not say, or cannot be read."""
    found = _USER(payload)
    if found is None:
        return _unpacked(payload)
    start = found.end()
    short = found[1]
    end = start + (short[0] & 0x1F if short else found[2][0])
    user = payload[start:end]
    found = _ACTION(payload, end)
    if found is None:
        return _unpacked(payload)
    start = found.end()
    end = start + (payload[start - 1] & 0x1F)
    action = payload[start:end]
    at = payload.find(_EFFECT, end)
    if at < 0:
        return (user, action, b"") if payload.find(_DECISION, end) < 0 else _unpacked(payload)
    at += _EFFECT_SIZE
    head = payload[at : at + 1]
    if not b"\xa0" <= head <= b"\xbf":
        return _unpacked(payload)
    at += 1
    return user, action, payload[at : at + (head[0] & 0x1F)]


def _unpacked(payload: bytes) -> tuple[bytes, bytes, bytes]:
    try:
        event = msgpack.unpackb(
            payload,
            raw=False,
            strict_map_key=True,
            unicode_errors="surrogatepass",
            max_ext_len=0,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
        )
        user = event["actor"].get("user", "")
        action = event["req"].get("action", "")
        decision = event.get("decision")
        effect = decision.get("effect", "") if decision else ""
        return _encoded(user), _encoded(action), _encoded(effect)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, msgpack.UnpackException):
        return b"", b"", b""


def _encoded(value: object) -> bytes:
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else b""


def name_text(name: bytes) -> str:
    """A text for searching as SQLite can hold it: what is no UTF-8 as escapes, a long one's beginning."""
    return name[:MAX_NAME].decode("utf-8", "backslashreplace")
