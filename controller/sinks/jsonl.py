"""The native format: an event as the one line of JSON that every program of the fleet prints.

Every event has a line: kinds and keys that this version does not know pass through, and a value that JSON
has no word for is told in one that it has, so that one odd event stops no export.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from defender.contract.audit import Event, to_line

# What `to_line` writes for halves of surrogate pairs and for floats that are no numbers. Strict readers
# refuse both, and with them the whole batch. Whole pairs and names like "NaN" match too; `plain` leaves those
# alone.
_SUSPECT: Final = re.compile(rb"\\ud[89a-f]|NaN|Infinity")

MAX_DEPTH: Final = 32
"""Levels of maps and lists that are shown; deeper ones become their text."""


def event_line(event: Mapping[str, object]) -> bytes:
    """The event as one line of ASCII JSON with its line feed. Never raises for maps, lists and scalars."""
    try:
        line = to_line(event)
    except (TypeError, ValueError, RecursionError):
        return to_line(_plain_event(event))
    return to_line(_plain_event(event)) if _SUSPECT.search(line) else line


def plain(value: object, depth: int = 0) -> object:
    """A value of JSON for any value: bytes in hexadecimal, halves of surrogates as U+FFFD, NaN as text."""
    if isinstance(value, str):
        if value.isascii():
            return value
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, int) and value.bit_length() > 64:
        return hex(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    if depth >= MAX_DEPTH:
        return "..."
    if isinstance(value, Mapping):
        return {str(plain(str(key))): plain(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(inner, depth + 1) for inner in value]
    return str(plain(str(value)))


def _plain_event(event: Mapping[str, object]) -> Event:
    return {str(plain(str(key))): plain(value, 1) for key, value in event.items()}


def part(event: Mapping[str, object], key: str) -> Mapping[str, Any]:
    """A part of an event that should be a map; an empty one if it is not."""
    value = event.get(key)
    return value if isinstance(value, Mapping) else {}


def text_of(value: object) -> str:
    """A scalar as text, "" for None; anything else in its JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value if value.isascii() else str(plain(value))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float)):
        return str(plain(value))
    return to_line({"": plain(value)})[4:-2].decode("ascii")


def seconds_of(event: Mapping[str, object]) -> float | None:
    """When the event was recorded in unix seconds, None if it does not say so in a way that is understood."""
    stamp = event.get("ts_wall")
    if not isinstance(stamp, str) or len(stamp) > 40:
        return None
    try:
        moment = datetime.fromisoformat(stamp)
        return moment.timestamp() if moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None
