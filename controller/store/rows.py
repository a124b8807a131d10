"""How values that SQLite does not know stand in its tables, and names as they are compared."""

from __future__ import annotations

import json
import unicodedata
from typing import Any, Final

#: The highest number of 64 bits without sign.
MAX_U64: Final = 2**64 - 1

_ENCODE: Final = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False
).encode


def to_json(value: object) -> str:
    """A document as text: the same document is the same text."""
    return _ENCODE(value)


def from_json(text: str) -> Any:
    """The document of a text that `to_json` made."""
    return json.loads(text)


def to_u64(value: int) -> bytes:
    """A number of 64 bits without sign, which SQLite's integers do not hold, so that it sorts."""
    return value.to_bytes(8)


def from_u64(data: bytes) -> int:
    """The number of `to_u64`."""
    return int.from_bytes(data)


def fold(name: str) -> str:
    """A name as names are compared: without regard to case and to how its accents are written."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())
