"""The course of a sink: which events go out next, what an answer means, and how far the receiver has come.

Inputs in, commands out: the shell (`follower`) performs the commands in order and answers `Fetch` with
`fetched` or `fetch_failed`, `Send` with `answered`, `Save` with `saved` or `save_failed`, `Rest` and `Pause`
with `rested`; it calls `tick` every second. `confirmed` and `lost` come from the receiver by themselves. A
`Fetch`, `Rest` or `Pause` takes the place of the one before: that one's answer must not come any more.

What holds:

* At least once, in the order of the positions. The saved position is never beyond an event that the receiver
  has not confirmed, unless that event was refused for good.
* Nothing is passed silently. An event that is refused for good is passed only when the receiver has taken
  others, is counted, and is told (`Passed`). A receiver that refuses everything is taken for a mistake in the
  settings: nothing is passed, and it is tried again until somebody mends it.
* One page of events is held, nothing else: after any trouble the page is dropped and read again from the
  last confirmed position. A backlog stays in the store.
* Positions are opaque: they are kept and handed back, never compared.

Times are seconds of a clock that goes forward; `chance` gives numbers from 0 to 1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from controller.sinks.answers import Answer, Refused, Taken, TooLarge, Unavailable
from controller.sinks.jsonl import text_of

Position = int | str
Row = tuple[Position, Mapping[str, object]]

FIRST_DELAY: Final = 1.0
LONGEST_DELAY: Final = 60.0
REFUSED_IN_A_ROW: Final = 10
"""So many events refused one after the other, and it is the receiver that is doubted, not the events."""
LEAST_BATCH: Final = 16 * 1024
"""Octets below which a batch is not made smaller for a receiver that finds it too large."""
SAVE_EVERY: Final = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What one batch holds at most, and how long the sink rests once it has caught up.

    `events` per page and batch; `octets` per batch (one event may be larger by itself); `linger` seconds
    before it looks again, so that a trickle of events does not become a request each; `poll` seconds after
    which it looks even if nobody woke it; `window` batches that may be unconfirmed.
    """

    events: int = 200
    octets: int = 1024 * 1024
    linger: float = 0.5
    poll: float = 5.0
    window: int = 64


@dataclass(frozen=True, slots=True)
class Fetch:
    """Read up to `limit` events after a position (None: from the beginning)."""

    position: Position | None
    limit: int


@dataclass(frozen=True, slots=True)
class Send:
    """Give the receiver a batch; `ticket` names it until it is confirmed."""

    ticket: int
    payloads: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Rest:
    """Wait for `linger` seconds, then until there are new events, `poll` seconds at most."""

    linger: float
    poll: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait for so many seconds, whatever comes."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Save:
    """Keep the position where a restart finds it."""

    position: Position


@dataclass(frozen=True, slots=True)
class Passed:
    """An event was refused for good and is passed: tell somebody. `event` is its id."""

    position: Position
    event: str
    reason: str


@dataclass(frozen=True, slots=True)
class Troubled:
    """The sink does not get on, and why; once for each new reason, and "" once it gets on again."""

    reason: str


Command = Fetch | Send | Rest | Pause | Save | Passed | Troubled


@dataclass(frozen=True, slots=True)
class Standing:
    """How a sink stands.

    `lag_seconds` is an upper bound: no event that has been in the store for longer is unconfirmed. `problem`
    is "" while it gets on. `refused`, `retries` and `delivered` count since the start.
    """

    position: Position | None
    delivered: int
    refused: int
    retries: int
    lag_seconds: float
    problem: str


@dataclass(frozen=True, slots=True)
class _Item:
    position: Position
    event: str
    payload: bytes = field(repr=False)


@dataclass(slots=True)
class _Mark:
    """A place up to which everything is confirmed once `ticket` is (None: it is).

    `complete` is the time of a reading that found nothing behind this place, None if there was more.
    """

    ticket: int | None
    position: Position
    count: int
    complete: float | None = None


class Delivery:
    """The machine of one sink.

    Args:
        encode: makes the receiver's form of an event; never raises for what the store holds.
        limits: of a batch.
        chance: a random source.
    """

    def __init__(
        self,
        encode: Callable[[Mapping[str, object]], bytes],
        limits: Limits,
        *,
        chance: Callable[[], float],
    ) -> None:
        self._encode = encode
        self._limits = limits
        self._chance = chance
        self._octets = limits.octets
        self._queue: deque[_Item] = deque()
        self._sending = 0
        self._sending_octets = 0
        self._stalled = False
        self._ticket = 0
        self._marks: deque[_Mark] = deque()
        self._read: Position | None = None
        self._confirmed: Position | None = None
        self._saved: Position | None = None
        self._saving: Position | None = None
        self._save_due = 0.0
        self._fetched_at = 0.0
        self._page_ends: float | None = None
        self._suspects = 0
        self._named: int | None = None
        self._proved = False
        self._in_a_row = 0
        self._aside: list[tuple[_Item, str]] = []
        self._failures = 0
        self._stopped = False
        self._idle_since: float | None = None
        self._complete_at = 0.0
        self._save_problem = ""
        self._problem = ""
        self._told = ""
        self.delivered = 0
        self.refused = 0
        self.retries = 0

    # --- inputs

    def start(self, position: Position | None, now: float) -> list[Command]:
        """Begin behind a position, or at the beginning; once."""
        self._read = self._confirmed = self._saved = position
        self._complete_at = now
        return self._fetch(now)

    def fetched(self, rows: Sequence[Row], now: float) -> list[Command]:
        """The events of a `Fetch`, in order."""
        if self._stopped:
            return []
        for position, event in rows:
            self._queue.append(_Item(position, text_of(event.get("id"))[:64], self._encode(event)))
        if rows:
            self._read = rows[-1][0]
        self._page_ends = self._fetched_at if len(rows) < self._limits.events else None
        return self._go_on(now)

    def fetch_failed(self, reason: str, now: float) -> list[Command]:
        """The store could not be read."""
        return self._back_off(f"the events cannot be read: {reason}", now)

    def answered(self, answer: Answer, now: float) -> list[Command]:
        """What became of the last `Send`."""
        if self._stopped:
            return []
        count, self._sending = self._sending, 0
        if isinstance(answer, Unavailable):
            return self._back_off(answer.reason, now, answer.after)
        if isinstance(answer, TooLarge) and count > 1 and self._sending_octets > LEAST_BATCH:
            self._octets = max(LEAST_BATCH, self._sending_octets // 2)
            return self._go_on(now)
        if isinstance(answer, (Refused, TooLarge)):
            return self._refused(answer, count, now)
        return self._taken(answer, count, now)

    def confirmed(self, ticket: int, now: float) -> list[Command]:
        """The receiver has all batches up to this one for good, or is taken to have."""
        for mark in self._marks:
            if mark.ticket is not None and mark.ticket <= ticket:
                mark.ticket = None
        self._advance(now)
        if self._stopped or not self._stalled:
            return []
        self._stalled = False
        return self._go_on(now)

    def lost(self, reason: str, now: float) -> list[Command]:
        """The connection is gone between two batches, and with it perhaps what is not confirmed."""
        if self._stopped or self._sending or not self._unconfirmed:
            return []
        return self._back_off(reason, now)

    def rested(self, now: float) -> list[Command]:
        """A `Rest` or a `Pause` is over."""
        return [] if self._stopped else self._fetch(now)

    def tick(self, now: float) -> list[Command]:
        """Some time has passed: keep the position if it has moved."""
        if self._confirmed is None or self._confirmed == self._saved or self._saving is not None:
            return []
        if now < self._save_due and not self._stopped:
            return []
        self._saving = self._confirmed
        self._save_due = now + SAVE_EVERY
        return [Save(self._confirmed)]

    def saved(self) -> list[Command]:
        """The last `Save` is done."""
        self._saved, self._saving = self._saving, None
        self._save_problem = ""
        return self._tell()

    def save_failed(self, reason: str) -> list[Command]:
        """It is not; it is tried again. Until then a restart sends some events once more."""
        self._saving = None
        self._save_problem = f"the position cannot be saved: {reason}"
        return self._tell()

    def stop(self, now: float) -> list[Command]:
        """Send nothing more; what is confirmed is saved."""
        self._stopped = True
        self._queue.clear()
        return self.tick(now)

    # --- what is so

    def standing(self, now: float) -> Standing:
        """How the sink stands now."""
        idle = self._idle_since is not None and not self._problem
        return Standing(
            self._confirmed,
            self.delivered,
            self.refused,
            self.retries,
            0.0 if idle else max(0.0, now - self._complete_at),
            self._problem or self._save_problem,
        )

    @property
    def _unconfirmed(self) -> bool:
        return bool(self._marks) or bool(self._aside)

    # --- the course

    def _fetch(self, now: float) -> list[Command]:
        self._fetched_at = now
        return [Fetch(self._read, self._limits.events)]

    def _go_on(self, now: float) -> list[Command]:
        """Send the next batch of the page, or read on; with too much unconfirmed neither."""
        if len(self._marks) >= self._limits.window:
            self._stalled = True
            return []
        if self._queue:
            self._idle_since = None
            return self._send()
        if self._page_ends is None:
            return self._fetch(now)
        if self._aside:
            # The receiver took none of the last events there are, and nothing proves that it takes any.
            return self._doubt(now)
        if self._marks:
            self._marks[-1].complete = self._page_ends
        else:
            self._complete_at = self._page_ends
            self._idle_since = self._page_ends
        return [*self._tell(), Rest(self._limits.linger, self._limits.poll)]

    def _send(self) -> list[Command]:
        most = len(self._queue)
        if self._suspects:
            most = 1 if self._suspects == 1 else self._suspects // 2
            if self._named is not None:
                most = self._named or 1
        batch: list[bytes] = []
        octets = 0
        for item in self._queue:
            octets += len(item.payload)
            if len(batch) >= most or (batch and octets > self._octets):
                break
            batch.append(item.payload)
        self._sending = len(batch)
        self._sending_octets = sum(map(len, batch))
        self._ticket += 1
        return [Send(self._ticket, tuple(batch))]

    def _taken(self, answer: Taken, count: int, now: float) -> list[Command]:
        commands: list[Command] = []
        self._proved = True
        self._in_a_row = 0
        self._failures = 0
        self._problem = ""
        for item, reason in self._aside:
            commands.append(self._pass(item, reason))
        self._aside.clear()
        last = [self._queue.popleft() for _ in range(count)][-1]
        self._marks.append(_Mark(None if answer.confirmed else self._ticket, last.position, count))
        self._suspects = max(0, self._suspects - count)
        if self._named is not None:
            self._named -= count
            if self._named < 0:
                self._named = None
        self._advance(now)
        return [*commands, *self._tell(), *self._go_on(now)]

    def _refused(self, answer: Refused | TooLarge, count: int, now: float) -> list[Command]:
        if count > 1:
            self._suspects = count
            first = answer.first if isinstance(answer, Refused) else None
            # The receiver's word is where to look first, no more: that event is sent alone before it counts.
            self._named = first if first is not None and first < count else None
            return self._go_on(now)
        self._suspects = 0
        self._named = None
        self._in_a_row += 1
        if self._in_a_row > REFUSED_IN_A_ROW:
            return self._doubt(now, answer.reason)
        item = self._queue.popleft()
        commands: list[Command] = []
        if self._proved:
            commands.append(self._pass(item, answer.reason))
            self._marks.append(_Mark(None, item.position, 0))
            self._advance(now)
        else:
            self._aside.append((item, answer.reason))
        return [*commands, *self._go_on(now)]

    def _pass(self, item: _Item, reason: str) -> Command:
        self.refused += 1
        return Passed(item.position, item.event, reason)

    def _doubt(self, now: float, reason: str = "") -> list[Command]:
        reason = reason or self._aside[-1][1]
        self._proved = False
        self._in_a_row = 0
        return self._back_off(f"it refuses every event, so none is passed: {reason}", now)

    def _back_off(self, reason: str, now: float, after: float = 0.0) -> list[Command]:
        """Drop the page, go back to the last confirmed position, and wait longer each time."""
        if self._stopped:
            return []
        self._queue.clear()
        self._marks.clear()
        self._aside.clear()
        self._sending = self._suspects = 0
        self._stalled = False
        self._named = None
        self._read = self._confirmed
        self._idle_since = None
        self._problem = reason
        self.retries += 1
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(self._failures, 16))
        self._failures += 1
        # Half of it is chance: sinks that lost one receiver do not come back to it as one.
        return [*self._tell(), Pause(max(after, delay * (0.5 + 0.5 * self._chance())))]

    def _advance(self, now: float) -> None:
        while self._marks and self._marks[0].ticket is None:
            mark = self._marks.popleft()
            self._confirmed = mark.position
            self.delivered += mark.count
            if mark.complete is not None:
                self._complete_at = mark.complete
                if not self._marks and not self._queue and not self._sending:
                    self._idle_since = now

    def _tell(self) -> list[Command]:
        problem = self._problem or self._save_problem
        if problem == self._told:
            return []
        self._told = problem
        return [Troubled(problem)]
