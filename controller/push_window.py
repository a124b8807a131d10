"""How many pushes are on their way at a time: so many unanswered ones, so many bytes.

A controller that pushed a policy to five thousand defenders in one turn would hold all of it in its buffers,
and a lock would wait behind it. What does not fit waits here: of a defender and a stream the newest only, the
streams in the order of `STREAMS`, each in the order in which it was asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from controller.releases import Position
from defender.contract.trust import STREAMS

MOST_PUSHES: Final = 256
MOST_BYTES: Final = 64 * 1024 * 1024
PATIENCE: Final = 5.0
"""Seconds after which a push without an answer no longer holds up others."""


class Push(NamedTuple):
    """What is to be sent: the bundle at a position of a stream, to a defender."""

    defender: str
    stream: str
    position: Position


@dataclass(frozen=True, slots=True)
class _Sent:
    size: int
    until: float


_Queue: TypeAlias = "OrderedDict[str, tuple[Position, int]]"
"""By defender: where the bundle stands, and its size."""


class PushWindow:
    """See the module. Times are seconds of a clock that never goes back, sizes are bytes."""

    def __init__(self, pushes: int = MOST_PUSHES, size: int = MOST_BYTES) -> None:
        self._most_pushes = pushes
        self._most_bytes = size
        # What is taken from the front of a plain dict leaves a hole, which each look at the front passes.
        self._waiting: dict[str, _Queue] = {stream: OrderedDict() for stream in STREAMS}
        self._barred: dict[str, _Queue] = {stream: OrderedDict() for stream in STREAMS}
        self._sent: OrderedDict[tuple[str, str], _Sent] = OrderedDict()  # the first one ends first
        self._bytes = 0

    @property
    def waiting(self) -> int:
        """Pushes that wait for their turn."""
        return sum(map(len, self._waiting.values()))

    @property
    def unanswered(self) -> int:
        """Pushes on their way."""
        return len(self._sent)

    def ask(self, push: Push, size: int) -> None:
        """Something is to be sent; what waits for the same defender and stream need not be any more."""
        self._barred[push.stream].pop(push.defender, None)
        self._waiting[push.stream][push.defender] = (push.position, size)

    def next(
        self, now: float, may: Callable[[str, Position], bool] = lambda stream, position: True
    ) -> Iterator[Push]:
        """What is to be sent now; each counts as sent once it is given.

        What may not be sent at present, by its stream and position, is put aside until `unbar`.
        """
        while self._sent:
            key = next(iter(self._sent))
            if self._sent[key].until > now:
                break
            self._free(key)
        for stream, waiting in self._waiting.items():
            while waiting:
                who = next(iter(waiting))
                position, size = waiting[who]
                if not may(stream, position):
                    self._barred[stream][who] = waiting.pop(who)
                    continue
                # One push always fits, whatever its size.
                if self._sent and (
                    len(self._sent) >= self._most_pushes or self._bytes + size > self._most_bytes
                ):
                    return
                del waiting[who]
                self._free((who, stream))
                self._sent[who, stream] = _Sent(size, now + PATIENCE)
                self._bytes += size
                yield Push(who, stream, position)

    def unbar(self, stream: str) -> None:
        """What was put aside has its turn again, behind what waits."""
        barred, self._barred[stream] = self._barred[stream], OrderedDict()
        self._waiting[stream].update(barred)

    def answered(self, defender: str, stream: str) -> None:
        """A defender took or refused what it was sent of a stream."""
        self._free((defender, stream))

    def gone(self, defender: str) -> None:
        """A defender's session is over: nothing waits for it, and nothing will be answered."""
        for stream, waiting in self._waiting.items():
            waiting.pop(defender, None)
            self._barred[stream].pop(defender, None)
            self._free((defender, stream))

    def _free(self, key: tuple[str, str]) -> None:
        sent = self._sent.pop(key, None)
        if sent is not None:
            self._bytes -= sent.size
