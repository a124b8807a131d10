"""msgpack with one way to write a value and bounds on what is read: what both programs sign and send.

A value is None, a bool, an int of 64 bits (signed or unsigned), a finite float, text, bytes, a list of
values, or a dict of values with text as keys. Tuples are written as lists. There are no extension types.

The canonical form, which `encode` writes: the shortest head for every length and number, floats in 64 bits,
keys in the order of their UTF-8 bytes, each once. `decode` takes any msgpack of the same values, unless it is
asked for the canonical form; a key that appears twice and a float of 32 bits are refused either way.

`decode` measures first: it reads the heads alone, and nothing is allocated for a message that declares more
than it may. Without that, five kilobytes of nested heads make a reader allocate gigabytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, Final, TypeAlias

import msgpack

from defender.contract.errors import ContractError

#: How deep lists and maps are nested at most, where the caller says nothing else; the outermost is level 1.
MAX_DEPTH: Final = 16
#: The most list elements and map pairs in all, where the caller says nothing else.
MAX_ITEMS: Final = 65_536

#: What can be encoded.
Value: TypeAlias = "bool | int | float | str | bytes | Sequence[Value] | Mapping[str, Value] | None"

# A packer keeps its buffer: one that has become larger than this is given up.
_KEPT_BUFFER: Final = 1024 * 1024

_DEEPEST: Final = 64


class CodecError(ContractError):
    """Bytes that are no value, or a value that has no bytes."""


def encode(value: object) -> bytes:
    """The canonical bytes of a value. Raises CodecError for what is none, or has more than 64 levels."""
    global _pack
    try:
        packed: bytes = _pack(_ordered(value, _DEEPEST))
    except (ValueError, TypeError, OverflowError) as error:
        # What was packed before the fault may be left in the packer.
        _pack = _packer()
        raise CodecError(f"a value cannot be encoded: {error}") from None
    if len(packed) > _KEPT_BUFFER:
        _pack = _packer()
    return packed


def decode(
    data: bytes, *, max_items: int = MAX_ITEMS, max_depth: int = MAX_DEPTH, canonical: bool = False
) -> Any:
    """The value of `data`; raises CodecError, and nothing else, for any bytes that are not exactly one value.

    At most `max_items` list elements and map pairs in all, nested at most `max_depth` deep, which must be
    below 500. With `canonical`, also for bytes that `encode` would not have written.
    """
    _measure(data, max_items, max_depth)
    try:
        value = msgpack.unpackb(data, raw=False, object_pairs_hook=_map, max_ext_len=0)
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise CodecError(f"not msgpack: {error}") from None
    if canonical and encode(value) != data:
        raise CodecError("not in canonical form")
    return value


def _packer() -> Any:
    return msgpack.Packer(use_bin_type=True, strict_types=True).pack


_pack = _packer()

_PLAIN: Final = frozenset({int, str, bytes, bool, type(None)})


def _ordered(value: object, depth: int) -> object:
    """The same value with the keys of every map in order; TypeError for what is no value."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if isinstance(value, (list, tuple)):
        if not depth:
            raise ValueError("it is nested too deep")
        return [item if type(item) in _PLAIN else _ordered(item, depth - 1) for item in value]
    if isinstance(value, Mapping):
        if not depth:
            raise ValueError("it is nested too deep")
        if not all(type(key) is str for key in value):
            raise TypeError("a key is no text")
        # The order of code points is that of UTF-8's bytes.
        return {key: _ordered(value[key], depth - 1) for key in sorted(value)}
    if isinstance(value, float):
        if not isfinite(value):
            raise ValueError(f"{value} is no number")
        return float(value)
    raise TypeError(f"a {kind.__name__} has no form in msgpack here")


def _map(pairs: list[tuple[object, object]]) -> dict[object, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    for key in found:
        if type(key) is not str:
            raise ValueError("a key is no text")
    return found


# Bytes of an item by its first byte; 0 where more must be looked at.
_SIZES: Final = bytes(
    [1] * 0x80  # positive fixint
    + [0] * 0x20  # fixmap, fixarray
    + [1 + length for length in range(0x20)]  # fixstr
    + [1, 0, 1, 1]  # nil, never used, false, true
    + [0] * 6  # bin, ext
    + [0, 0]  # float 32, which is not used, and float 64
    + [2, 3, 5, 9] * 2  # uint, int
    + [0] * 5  # fixext
    + [0] * 3  # str
    + [0] * 4  # array, map
    + [1] * 0x20  # negative fixint
)
# Bytes of the length that follows the first byte of bin and str.
_LENGTHS: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_CONTAINERS: Final = {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}


def _measure(data: bytes, max_items: int, max_depth: int) -> None:
    """Read the heads of one value; CodecError if it declares too much, or is not all of `data`."""
    sizes, widths = _SIZES, _LENGTHS
    offset = declared = 0
    left = 1  # items missing in the present container
    outer: list[int] = []  # the same for those around it
    try:
        while True:
            first = data[offset]
            size = sizes[first]
            if size:
                offset += size
            elif width := widths.get(first):
                end = offset + 1 + width
                offset = end + int.from_bytes(data[offset + 1 : end], "big")
            elif first == 0xCB:
                if data[offset + 1] & 0x7F == 0x7F and data[offset + 2] >= 0xF0:
                    raise CodecError("a float is no number")
                offset += 9
            else:
                if first < 0xA0:
                    count, is_map = first & 0x0F, first < 0x90
                    offset += 1
                elif first in _CONTAINERS:
                    end = offset + 1 + _CONTAINERS[first]
                    count, is_map = int.from_bytes(data[offset + 1 : end], "big"), first >= 0xDE
                    offset = end
                else:
                    raise CodecError(f"the type {first:#04x} of msgpack is not used here")
                declared += count
                if declared > max_items:
                    raise CodecError(f"it has more than {max_items} parts")
                if len(outer) >= max_depth:
                    raise CodecError(f"it is nested more than {max_depth} levels deep")
                if count:
                    outer.append(left - 1)
                    left = 2 * count if is_map else count
                    continue
            left -= 1
            while not left:
                if not outer:
                    break
                left = outer.pop()
            if not left:
                break
    except IndexError:
        raise CodecError("it is cut off") from None
    if offset != len(data):
        raise CodecError("it is cut off" if offset > len(data) else "bytes follow it")
