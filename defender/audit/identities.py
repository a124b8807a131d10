"""Ids of events: UUIDs of version 7 (RFC 9562 section 5.7) that only rise, whatever the clock does."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

_PACK: Final = struct.Struct(">QQ").pack


class Identities:
    """`bits(n)` gives n random bits; they need not be secret."""

    __slots__ = ("_bits", "_high", "_low", "_millisecond")

    def __init__(self, bits: Callable[[int], int]) -> None:
        self._bits = bits
        self._millisecond = -1
        self._high = self._low = 0

    def new(self, nanos: int) -> bytes:
        """The id of an event at `nanos` of unix time. Hot: every event has one.

        Within a millisecond, or when the clock was set back, it is the one before plus one.
        """
        millisecond = nanos // 1_000_000
        if millisecond > self._millisecond:
            self._millisecond = millisecond
            self._high = millisecond << 16 | 0x7000 | self._bits(12)
            # The highest random bit is 0: room to count.
            self._low = 1 << 63 | self._bits(61)
        else:
            self._low += 1
        return _PACK(self._high, self._low)

    def rise_above(self, micros: int) -> None:
        """Ids of another run were given up to this time, unix microseconds."""
        if micros // 1000 > self._millisecond:
            self._millisecond = micros // 1000
            self._high = self._millisecond << 16 | 0x7FFF
            self._low = 1 << 63 | 1 << 61 | self._bits(60)
