"""What was found out about a value, remembered for the next time: bounded, without an order to keep up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Memo(dict[K, V], Generic[K, V]):
    """A dictionary that fills itself with ``find(key)`` and starts anew when it holds ``limit`` entries.

    A hit costs one look-up in a dictionary, which no least-recently-used order does. Whoever sends ever new
    keys empties it for all: that costs them the finding, and nobody the answer. ``find`` may raise; then
    nothing is remembered.
    """

    __slots__ = ("_find", "_limit")

    def __init__(self, find: Callable[[K], V], limit: int) -> None:
        super().__init__()
        self._find = find
        self._limit = limit

    def __missing__(self, key: K) -> V:
        value = self._find(key)
        if len(self) >= self._limit:
            self.clear()
        self[key] = value
        return value
