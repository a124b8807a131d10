"""JSON bodies as the Engine's decoder (Go's encoding/json) reads them.

Names match whatever their case, with two letters beyond ASCII that fold to `s` and `k`. Repeated names merge:
objects are decoded into one another, a later value replaces an earlier one, `null` leaves a scalar and clears
an object or list, a list is decoded into the elements of the one before it. What follows the first value is
ignored by old Engines.

A map (of labels, options) has names of its own: `items` gives those as they are written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

#: Most times that one name may be repeated in an object: merging is paid for each time.
MAX_REPEATS: Final = 16
#: Most repeated names of a body that are listed: each new one is compared with those before it.
MAX_NAMED: Final = 64

_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_SPACE: Final = " \t\r\n"


class UnreadableError(ValueError):
    """A body that the Engine does not read either, or that nobody would send in good faith."""


@dataclass(frozen=True, slots=True)
class Document:
    """A body: its first value, whether anything follows it, and the first `MAX_NAMED` names that it repeats
    (a growing list: names are looked at as they are asked for).
    """

    value: object
    trailing: bool
    repeated: list[str]


class Object:
    """A JSON object; values are str, int, bool, None, list, Object, and str for any other number."""

    __slots__ = ("_fields", "_pairs", "_repeated")

    def __init__(self, pairs: list[tuple[str, object]], repeated: list[str]) -> None:
        self._pairs = pairs
        self._repeated = repeated
        self._fields: dict[str, object] | None = None

    def get(self, name: str) -> object:
        """The value of a field; `name` in lower case. None if there is none, or if it is null."""
        fields = self._fields
        if fields is None:
            fields = self._fields = self._merged()
        return fields.get(name)

    def items(self) -> Iterator[tuple[str, object]]:
        """The entries of a map; of a repeated name the last."""
        return iter({clean(name): value for name, value in self._pairs}.items())

    def __len__(self) -> int:
        return len(self._pairs)

    def _merged(self) -> dict[str, object]:
        fields: dict[str, object] = {}
        times: dict[str, int] = {}
        for key, value in self._pairs:
            name = fold(key)
            if name not in fields:
                fields[name] = value
                continue
            times[name] = times.get(name, 1) + 1
            if times[name] > MAX_REPEATS:
                raise UnreadableError(f"{key!r} is repeated too often")
            if len(self._repeated) < MAX_NAMED and name not in self._repeated:
                self._repeated.append(name)
            fields[name] = self._merge(fields[name], value)
        return fields

    def _merge(self, old: object, new: object) -> object:
        if new is None:
            return None if isinstance(old, Object | list) else old
        if isinstance(old, Object) and isinstance(new, Object):
            return Object(old._pairs + new._pairs, self._repeated)
        if isinstance(old, list) and isinstance(new, list):
            kept = (
                Object(before._pairs + after._pairs, self._repeated)
                if isinstance(before, Object) and isinstance(after, Object)
                else before
                if after is None
                else after
                for before, after in zip(old, new, strict=False)
            )
            return [*kept, *new[len(old) :]]
        return new


def fold(name: str) -> str:
    """A name as the decoder compares it."""
    if not name.isascii():
        name = name.replace("\u017f", "s").replace("\u212a", "k")
    return name.lower()


def clean(text: str) -> str:
    """Text that UTF-8 can hold: a lone surrogate becomes U+FFFD, as in Go."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def read_json(body: bytes) -> Document:
    """Read a body. Raises UnreadableError for what is no JSON."""
    repeated: list[str] = []

    def constant(name: str) -> object:
        raise UnreadableError(f"{name} is no JSON")

    def integer(digits: str) -> object:
        return int(digits) if len(digits) < 19 else digits[:32]

    decoder = json.JSONDecoder(
        object_pairs_hook=lambda pairs: Object(pairs, repeated),
        parse_float=lambda text: text[:32],
        parse_int=integer,
        parse_constant=constant,
    )
    text = body.decode("utf-8", "replace").lstrip(_SPACE)
    try:
        value, end = decoder.raw_decode(text)
    except (ValueError, RecursionError) as error:
        raise UnreadableError(str(error)) from None
    return Document(value, bool(text[end:].strip(_SPACE)), repeated)
