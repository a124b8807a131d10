"""An event as a record's payload and back: docs/specification/spool.md, section "Payload".

The parts of an event that are known early are packed once (`pack_body`); what makes it one event, its
identity and time, is put in front of them when it is recorded (`assemble`). The result is one msgpack map.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

import msgpack

from defender.contract.audit import SCHEMA_VERSION, SYSTEM, Event
from defender.contract.spool import MAX_PAYLOAD, PAYLOAD_MARK, SpoolError

#: How deep a payload's maps and lists are nested at most; the event itself is level 1.
MAX_DEPTH: Final = 16
#: The most keys or elements of one map or list, and in all.
MAX_ITEMS: Final = 65_536

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_MICROS: Final = 253_402_300_799_999_999  # of the year 9999
_FIXED: Final = struct.Struct(">16s3sQ3sQ")
_WALL: Final = b"\xa1t\xcf"
_MONO: Final = b"\xa1m\xcf"
_CORR: Final = b"\xa4corr\xc4\x10"


def _map_head(pairs: int) -> bytes:
    return bytes([0x80 | pairs]) if pairs < 16 else b"\xde" + pairs.to_bytes(2, "big")


# The map's head and the first key, by the number of the event's own keys: without `corr`, and with it.
_HEADS: Final = tuple(_map_head(pairs + 3) + PAYLOAD_MARK for pairs in range(64))
_JOINED_HEADS: Final = tuple(_map_head(pairs + 4) + PAYLOAD_MARK for pairs in range(64))

_pack: Final = msgpack.Packer(use_bin_type=True, unicode_errors="surrogatepass").pack


def pack_body(event: Mapping[str, object]) -> tuple[int, bytes]:
    """An event's own keys (`kind` and what follows; neither `corr` nor what the recorder adds), packed.

    Gives their number, at most 63, and the msgpack of keys and values one after the other. Raises SpoolError
    for what msgpack cannot hold or a reader would not take: objects, whole numbers of more than 64 bits.
    """
    pairs = len(event)
    try:
        packed: bytes = _pack(event)
    except (TypeError, ValueError, OverflowError) as error:
        raise SpoolError(f"an event cannot be packed: {error}") from None
    if pairs < 16:
        return pairs, packed[1:]
    if pairs > 63:
        raise SpoolError(f"an event has {pairs} keys")
    return pairs, packed[3:]


def assemble(pairs: int, body: bytes, identity: bytes, micros: int, mono: int, corr: bytes = b"") -> bytes:
    """The payload of one event.

    `identity` is its UUIDv7 (16 bytes), `micros` unix time and `mono` the monotonic clock in microseconds,
    `corr` the 16 bytes that join it to other events, empty if it stands alone. Hot, so nothing is checked.
    """
    if corr:
        return _JOINED_HEADS[pairs] + _FIXED.pack(identity, _WALL, micros, _MONO, mono) + _CORR + corr + body
    return _HEADS[pairs] + _FIXED.pack(identity, _WALL, micros, _MONO, mono) + body


#: The closing record of an epoch: `assemble(*CLOSING, ...)`. The last that a defender records when it stops
#: in good order; an epoch without it may have lost its last events.
CLOSING: Final = pack_body(
    {
        "kind": "defender",
        "phase": "result",
        "actor": SYSTEM,
        "req": {"action": "audit_close"},
        "result": {"ok": True, "detail": "the end of this epoch", "program": ""},
    }
)


def is_closing(payload: bytes) -> bool:
    """Whether a payload is an epoch's closing record. No client's text can make another one look so."""
    return payload.endswith(CLOSING[1])


def micros_of(payload: bytes) -> int:
    """When an event was recorded, unix microseconds, without unpacking it; 0 if that is not plain."""
    start = 22 if payload[:1] < b"\x90" else 24
    if payload[start : start + 3] != _WALL:
        return 0
    return int.from_bytes(payload[start + 3 : start + 11], "big")


def identity_text(identity: bytes) -> str:
    """16 bytes as a UUID in its usual form."""
    text = identity.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def timestamp_of(micros: int) -> str:
    """Unix microseconds as UTC text with milliseconds: ``2026-11-21T22:13:03.402Z``; SpoolError for a time
    after the year 9999."""
    if not 0 <= micros <= _LAST_MICROS:
        raise SpoolError(f"no clock shows the time {micros}")
    second, rest = divmod(micros, 1_000_000)
    return f"{_second(second)}.{rest // 1000:03d}Z"


@lru_cache(maxsize=64)
def _second(second: int) -> str:
    return (_EPOCH + timedelta(seconds=second)).isoformat()[:19]


def unpack(payload: bytes, *, agent: str, epoch: int, seq: int) -> Event:
    """The event of a record's payload, with all its keys, of values that JSON has.

    `agent` and `epoch` are the segment header's, `seq` is the record's. Raises SpoolError for anything that
    `assemble` does not make, bounded in time and memory whatever the payload is.
    """
    if len(payload) > MAX_PAYLOAD:
        raise SpoolError(f"a payload has {len(payload)} bytes")
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
    # MemoryError and RecursionError have no place here: lengths are checked against the payload's own.
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise SpoolError(f"a payload is not msgpack: {error}") from None
    if not isinstance(event, dict):
        raise SpoolError("a payload is not a map")
    identity, micros, mono = event.pop("id", None), event.pop("t", None), event.pop("m", None)
    corr = event.pop("corr", identity)
    if not isinstance(identity, bytes) or len(identity) != 16:
        raise SpoolError("an event has no id")
    if not isinstance(corr, bytes) or len(corr) != 16:
        raise SpoolError("an event's corr is not 16 bytes")
    # A bool is no number here, though Python has it so.
    if type(micros) is not int or type(mono) is not int or mono < 0:
        raise SpoolError("an event has no time")
    if not isinstance(event.get("kind"), str) or not isinstance(event.get("phase"), str):
        raise SpoolError("an event has no kind or no phase")
    for key in ("actor", "req"):
        if not isinstance(event.get(key), dict):
            raise SpoolError(f"an event has no {key}")
    if not event.keys().isdisjoint(_ADDED):
        raise SpoolError("an event holds a key that its record gives it")
    _check(event, 1, [MAX_ITEMS])
    return {
        "v": SCHEMA_VERSION,
        "id": identity_text(identity),
        "agent": agent,
        "epoch": f"{epoch:016x}",
        "seq": seq,
        "ts_wall": timestamp_of(micros),
        "ts_mono": mono,
        "kind": event.pop("kind"),
        "phase": event.pop("phase"),
        "corr": identity_text(corr),
        **event,
    }


_ADDED: Final = frozenset({"v", "agent", "epoch", "seq", "ts_wall", "ts_mono"})
_PLAIN: Final = frozenset({str, int, bool, type(None)})


def _check(value: object, depth: int, left: list[int]) -> None:
    """SpoolError unless a container holds only what JSON has; `left[0]` more items there may be."""
    if depth > MAX_DEPTH:
        raise SpoolError("an event is nested too deep")
    if isinstance(value, dict):
        for key in value:
            if type(key) is not str:
                raise SpoolError("an event has a key that is no text")
        items = list(value.values())
    else:
        assert isinstance(value, list)
        items = value
    left[0] -= len(items)
    if left[0] < 0:
        raise SpoolError("an event has too many parts")
    for item in items:
        kind = type(item)
        if kind in _PLAIN:
            continue
        if kind is dict or kind is list:
            _check(item, depth + 1, left)
        elif kind is not float or item != item or item in (float("inf"), float("-inf")):
            raise SpoolError(f"an event holds a {kind.__name__} that JSON has not")
