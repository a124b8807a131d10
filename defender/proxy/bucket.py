"""A token bucket in one number: the moment at which it is full again."""

from __future__ import annotations

import math
from typing import Final

_EXACT: Final = 0.99  # a hundredth of a token of room, so that the rounding of a sum costs no whole one


class Bucket:
    """Holds `burst` tokens and gets `rate` more a second; a rate of 0 sets no limit.

    `full` is when it is full again, on the clock of `now`, which never goes back. So a bucket that nobody
    uses needs no timer, and one whose `full` has passed can be thrown away.
    """

    __slots__ = ("full", "gap", "room")

    def __init__(self, rate: float, burst: float) -> None:
        self.full = -math.inf
        self.gap = 0.0
        self.room = math.inf
        self.resize(rate, burst)

    def resize(self, rate: float, burst: float) -> None:
        """Another rate and burst from now on; the time until it is full stays."""
        self.gap = 1.0 / rate if rate > 0 else 0.0
        self.room = (burst - _EXACT) * self.gap if rate > 0 else math.inf

    def take(self, now: float) -> bool:
        """Take one token; False if there is none."""
        full = self.full
        if full <= now:
            self.full = now + self.gap
            return True
        if full <= now + self.room:
            self.full = full + self.gap
            return True
        return False

    def spend(self, tokens: float, now: float) -> bool:
        """Take `tokens` whether they are there or not; False while more was taken than there is."""
        full = self.full
        self.full = full = (full if full > now else now) + tokens * self.gap
        return full <= now + self.room

    def free(self) -> float:
        """When a token can be taken again."""
        return self.full - self.room

    def wait(self, now: float) -> float:
        """Seconds until a token can be taken."""
        return max(0.0, self.free() - now)

    def used(self, now: float) -> float:
        """How much is taken: 0 for nothing, 1 or more while `take` refuses."""
        return max(0.0, self.full - now) / (self.room or 1.0)
