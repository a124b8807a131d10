"""The events as those read them who forward them: from a position on, and what is gone told as a gap."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any, Final

from twisted.internet.defer import Deferred, inlineCallbacks

from controller.store import forwarding
from controller.store.database import Database
from controller.store.events import EventStore
from controller.store.ingest import NOTES_AGENT, note_id
from controller.store.query import Query
from defender.contract.audit import SCHEMA_VERSION, Event, gap_event
from defender.contract.packing import identity_text, timestamp_of

Row = tuple[int | str, Mapping[str, object]]

_REASON: Final = "these events were removed, since they were older than is kept, before they were read"


class EventFeed:
    """What a forwarding reads: all events that a query wants, in the order in which they came."""

    def __init__(self, store: EventStore, query: Query | None = None) -> None:
        self._store = store
        self._query = query or Query()

    @inlineCallbacks
    def after(self, position: int | str | None, limit: int) -> Generator[Deferred[Any], Any, list[Row]]:
        """Up to `limit` events behind a position, None for the first that is kept; fewer only at the end.

        Events that retention removed before they were read are a `gap` event with their number. A position
        that was never reached, as after a restore from a backup, counts as the newest there is.
        """
        store = self._store
        rows: list[Row] = []
        first = store.first_position
        at = first - 1 if position is None else min(int(position), store.position)
        if at < first - 1:
            page = yield store.after(first - 1, Query(), 1)
            micros = page.events[0].received if page.events else 0
            rows.append((first - 1, removed_event(at, first, micros)))
            at = first - 1
        while len(rows) < limit:
            page = yield store.after(at, self._query, limit - len(rows))
            rows.extend((each.position, each.event) for each in page.events)
            at = int(page.place)
            if not page.more:
                break
        return rows

    def wait(self) -> Deferred[int]:
        """Fires once an event is stored after this call. It may be cancelled."""
        return self._store.wait(self._store.position)

    @inlineCallbacks
    def behind(self, position: int | str | None) -> Generator[Deferred[Any], Any, int]:
        """How many events are stored behind a position, those included that a query leaves out."""
        first = self._store.first_position - 1
        yield from ()
        return max(self._store.position - max(int(position or 0), first), 0)


class ForwardingCursor:
    """Where the position of the forwarding `name` is kept. `clock` gives unix seconds."""

    def __init__(self, database: Database, name: str, clock: Callable[[], float]) -> None:
        self._database = database
        self._name = name
        self._clock = clock

    def load(self) -> Deferred[int | None]:
        """The position, None if there is none yet."""
        return self._database.read(forwarding.find, self._name)

    def save(self, position: int | str) -> Deferred[None]:
        """Keep it; fires when it is on disk."""
        return self._database.write(forwarding.keep, self._name, int(position), self._clock())


def removed_event(position: int, first: int, micros: int) -> Event:
    """The `gap` event that stands for the events behind `position` and before `first`: always the same.

    `micros` is when the first one that is left was stored, in unix microseconds.
    """
    name = identity_text(note_id(position + 1, first, micros))
    event = gap_event(first - 1 - position, 0, 0.0, _REASON)
    event["req"] = {"action": "audit_removed", "fields": {"after": str(position), "before": str(first)}}
    return {
        "v": SCHEMA_VERSION,
        "id": name,
        "agent": NOTES_AGENT,
        "epoch": "0" * 16,
        "seq": first - 1,
        "ts_wall": timestamp_of(micros),
        **event,
        "corr": name,
    }
