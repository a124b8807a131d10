"""The events of the whole fleet, over the event store."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from typing import Any, Final

from controller.api.ports import (
    AuditWish,
    Batch,
    ConflictError,
    InvalidError,
    Json,
    NotFoundError,
    PageWish,
    Positioned,
)
from controller.api.schema import Fault
from controller.api.shapes import moment
from controller.ports.ledger import Ledger, answered
from controller.ports.paging import made_up, part
from controller.sinks.overview import SinkState
from controller.store import defenders
from controller.store.batch import Cursor
from controller.store.errors import StoreError
from controller.store.events import EventStore
from controller.store.query import Query, Stored, check_query
from controller.store.trail import AGENT, CONTROLLER
from controller.store.verification import Walk
from defender.contract.spool import MAX_SEQ

_POSITION: Final = re.compile(r"(?:0|[1-9][0-9]{0,18})")
MOST_PROBLEMS: Final = 1000
"""That are told of one part of a day."""

_PLACE: Final = re.compile(r"[0-9]{1,19}\.[0-9]{1,19}")


class Audit:
    """`controller.api.ports.Audit`. A position is the event store's number, as text; `sinks` says how those
    stand that events are forwarded to.
    """

    def __init__(
        self,
        ledger: Ledger,
        events: EventStore,
        sinks: Callable[[], Iterable[SinkState]] = tuple,
    ) -> None:
        self._ledger = ledger
        self._events = events
        self._sinks = sinks
        self._verifying = False

    async def search(self, wanted: AuditWish, newest_first: bool, page: PageWish) -> Json:
        """`EventPage`. One may be empty and not the last, since a page looks at so many events at most."""
        if page.cursor and _PLACE.fullmatch(page.cursor) is None:
            raise made_up()
        found = await answered(self._events.search(_query(wanted, newest_first), page.cursor, page.limit))
        return {
            "items": [_shown(each) for each in found.events],
            "next": found.place if found.more else None,
        }

    async def event(self, event: str) -> Json:
        """`StoredEvent`."""
        found = await answered(self._events.event(event))
        if found is None:
            raise NotFoundError(f"there is no event {event!r}, or it is no longer kept")
        return _shown(found)

    async def end(self) -> str:
        """The position of the newest event."""
        return str(self._events.position)

    async def after(self, position: str, limit: int, wanted: AuditWish, stop: str = "") -> Batch:
        """The next events that match."""
        store = self._events
        at = self._read(position) if position else store.first_position - 1
        first = store.first_position
        lost = ""
        if at < first - 1:
            lost = f"{first - 1 - at} events behind position {at} are no longer kept"
            at = first - 1
        last = self._read(stop) if stop else None
        if last is not None and at >= last:
            return Batch((), str(at), lost)
        page = await answered(store.after(at, _query(wanted, False), limit, last))
        items: list[Positioned] = [(str(each.position), each.event) for each in page.events]
        return Batch(items, page.place, lost)

    async def wait(self, position: str) -> None:
        """Fires once there is an event after the position."""
        await self._events.wait(self._read(position))

    async def chains(self, page: PageWish) -> Json:
        """`ChainPage`: one of each epoch of each defender, the controller's own among them."""
        rows = await self._ledger.read(defenders.every)
        names = {CONTROLLER: AGENT, **{row.id: row.name for row in rows}}

        def show(entry: tuple[str, Cursor]) -> Mapping[str, Any]:
            ident, cursor = entry
            return {
                "defender": ident,
                # A defender that was removed is called as its records call it.
                "name": names.get(ident) or cursor.agent or ident,
                "epoch": f"{cursor.epoch:016x}",
                "seq": cursor.seq,
                "chain": cursor.chain.hex(),
                "stored_at": moment(cursor.received / 1_000_000),
                "gaps": cursor.gaps,
            }

        return part(
            self._events.cursors(), page, key=lambda entry: f"{entry[0]} {entry[1].epoch:016x}", show=show
        )

    async def verify(self, day: str) -> AsyncGenerator[Json, None]:
        """`Verified`."""
        files = [(number, each) for number, each in self._events.files if day in ("", each)]
        if not files:
            raise NotFoundError(f"no events of {day} are kept")
        if self._verifying:
            raise ConflictError("the events are being verified already; wait for that to end")
        self._verifying = True
        try:
            for number, each in files:
                walk = Walk()
                while not walk.is_done:
                    problems = await answered(self._events.verify(number, walk))
                    shown = [problem[:1000] for problem in problems[:MOST_PROBLEMS]]
                    yield {"day": each, "events": walk.events, "done": walk.is_done, "problems": shown}
        finally:
            self._verifying = False

    async def sinks(self) -> Json:
        """`SinkPage`."""
        return {"items": [state.as_json() for state in self._sinks()], "next": None}

    def _read(self, position: str) -> int:
        if _POSITION.fullmatch(position) is None or int(position) > self._events.position:
            told = "is no position of this controller; after a restore from a backup begin anew"
            raise InvalidError([Fault("/after", told)], "query")
        return int(position)


def _query(wanted: AuditWish, newest_first: bool) -> Query:
    query = Query(
        since=max(wanted.since or 0, 0),
        until=MAX_SEQ if wanted.until is None else min(max(wanted.until, 0), MAX_SEQ),
        defenders=wanted.defenders,
        users=wanted.users,
        actions=wanted.actions,
        effects=wanted.effects,
        fields=wanted.fields,
        newest_first=newest_first,
    )
    try:
        check_query(query)
    except StoreError as error:
        raise InvalidError([Fault("", str(error))], "query") from None
    return query


def _shown(stored: Stored) -> Mapping[str, Any]:
    return {
        "position": str(stored.position),
        "defender": stored.defender,
        "stored_at": moment(stored.received / 1_000_000),
        "event": stored.event,
    }
