"""The controller's event store as the source of a sink: positions are the store's, none is passed unseen.

Where retention has removed events before the sink had them, the sink's receiver is told: a `gap` event with
their number stands in their place.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from twisted.internet.defer import Deferred, succeed

from controller.sinks.delivery import Position, Row
from defender.contract.audit import SCHEMA_VERSION, Event, gap_event, timestamp
from defender.contract.packing import identity_text

Q = TypeVar("Q")
_Q = TypeVar("_Q", contravariant=True)


class StoredEvent(Protocol):
    """An event and its position."""

    @property
    def position(self) -> int: ...
    @property
    def event(self) -> Event: ...


class Page(Protocol):
    """Some events in the order of their positions; `more` if there may be others behind `place`."""

    @property
    def events(self) -> Sequence[Any]: ...
    @property
    def place(self) -> str: ...
    @property
    def more(self) -> bool: ...


class Events(Protocol[_Q]):
    """What of the event store a sink needs."""

    @property
    def position(self) -> int:
        """The newest event's."""

    @property
    def first_position(self) -> int:
        """The oldest that is kept."""

    def after(self, position: int, query: _Q, limit: int = 1000, /) -> Deferred[Any]:
        """A `Page` of the events behind a position."""

    def listen(self, listener: Callable[[int], None]) -> Callable[[], None]:
        """Tell when events were stored; what is returned ends it."""


class StoredEvents(Generic[Q]):
    """A `follower.Source` over the event store.

    `everything` is the store's query without a condition, `wall` gives unix seconds.
    """

    def __init__(self, store: Events[Q], everything: Q, *, wall: Callable[[], float] = time.time) -> None:
        self._store = store
        self._everything = everything
        self._wall = wall

    def after(self, position: Position | None, limit: int) -> Deferred[list[Row]]:
        """Up to `limit` events behind a position, and one for those that were removed."""
        return Deferred.fromCoroutine(self._after(position, limit))

    async def _after(self, position: Position | None, limit: int) -> list[Row]:
        while True:
            first = self._store.first_position
            rows = await self._behind(position, first, limit)
            if first == self._store.first_position:
                return rows
            # A day was removed while it was read: begin again, to count what went.

    async def _behind(self, position: Position | None, first: int, limit: int) -> list[Row]:
        rows: list[Row] = []
        place = first - 1 if position is None else int(position)
        if place < first - 1:
            rows.append((first - 1, removed_event(place + 1, first - 1, self._wall())))
            place = first - 1
        while len(rows) < limit:
            page: Page = await self._store.after(place, self._everything, limit - len(rows))
            for stored in page.events:
                rows.append((stored.position, stored.event))
            if not page.more or int(page.place) <= place:
                break
            place = int(page.place)
        return rows

    def wait(self) -> Deferred[object]:
        """Fires once something is stored."""
        ends: list[Callable[[], None]] = []

        def end(_: object = None) -> None:
            while ends:
                ends.pop()()

        waiting: Deferred[object] = Deferred(end)

        def told(newest: int) -> None:
            end()
            if not waiting.called:
                waiting.callback(None)

        ends.append(self._store.listen(told))
        return waiting

    def behind(self, position: Position | None) -> Deferred[int]:
        """How many events are stored behind a position."""
        place = self._store.first_position - 1 if position is None else int(position)
        return succeed(max(0, self._store.position - place))


def removed_event(first: int, last: int, now: float) -> Event:
    """The `gap` event for the positions from `first` to `last`; its id is the same each time that it is told.

    It is of no defender: whose events they were went with them. `now` is unix seconds.
    """
    identity = bytearray(16)
    identity[6:] = hashlib.sha256(f"removed {first} {last}".encode()).digest()[:10]
    identity[6] = 0x70 | identity[6] & 0x0F
    identity[8] = 0x80 | identity[8] & 0x3F
    name = identity_text(bytes(identity))
    reason = f"retention removed the events at the positions {first} to {last} before this sink had sent them"
    return {
        "v": SCHEMA_VERSION,
        "id": name,
        "agent": "controller",
        "epoch": "0" * 16,
        "seq": last,
        "ts_wall": timestamp(now),
        **gap_event(last - first + 1, first, 0.0, reason),
        "corr": name,
    }
