"""The event store as a source: every position is seen, and what retention took is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from controller.sinks.jsonl import event_line
from controller.sinks.stored import StoredEvents, removed_event
from controller.sinks.syslog import ERROR, severity
from tests.controller.sinks.receivers import event


class Stored(NamedTuple):
    position: int
    event: dict[str, Any]


class Page(NamedTuple):
    events: list[Stored]
    place: str
    more: bool


class Store:
    """A store with small pages of its own, the oldest events removed."""

    def __init__(self, first: int, last: int, page: int = 3) -> None:
        self.first_position = first
        self.position = last
        self.page = page
        self.listeners: list[Callable[[int], None]] = []

    def after(self, position: int, query: str, limit: int = 1000, /) -> Deferred[Page]:
        assert query == "all"
        start = max(position + 1, self.first_position)
        end = min(self.position, start + min(limit, self.page) - 1)
        found = [Stored(n, event(n)) for n in range(start, end + 1)]
        place = found[-1].position if found else position
        return succeed(Page(found, str(place), place < self.position))

    def listen(self, listener: Callable[[int], None]) -> Callable[[], None]:
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)


class StoredEventsTests(SynchronousTestCase):
    """The adapter."""

    def rows(self, store: Store, position: int | None, limit: int = 100) -> list[tuple[Any, Any]]:
        rows = self.successResultOf(StoredEvents(store, "all").after(position, limit))
        return [(place, told["seq"]) for place, told in rows]

    def test_pages_of_the_store_are_joined(self) -> None:
        self.assertEqual(self.rows(Store(1, 8), None), [(n, n) for n in range(1, 9)])
        self.assertEqual(self.rows(Store(1, 8), 5), [(6, 6), (7, 7), (8, 8)])
        self.assertEqual(self.rows(Store(1, 8), 8), [])

    def test_no_more_than_the_limit(self) -> None:
        self.assertEqual(self.rows(Store(1, 8), 0, 4), [(1, 1), (2, 2), (3, 3), (4, 4)])

    def test_a_new_sink_begins_with_what_is_kept(self) -> None:
        self.assertEqual(self.rows(Store(5, 6), None), [(5, 5), (6, 6)])

    def test_what_retention_took_is_told(self) -> None:
        rows = self.successResultOf(StoredEvents(Store(5, 6), "all", wall=lambda: 0).after(2, 100))
        self.assertEqual([place for place, _ in rows], [4, 5, 6])
        told: Any = rows[0][1]
        self.assertEqual((told["kind"], told["result"]["dropped"]), ("gap", 2))
        self.assertEqual(told, removed_event(3, 4, 0))
        self.assertEqual(told["id"], removed_event(3, 4, 99)["id"])
        self.assertEqual(severity(told), ERROR)
        self.assertIn(b"positions 3 to 4", event_line(told))

    def test_a_day_that_is_removed_during_the_reading_is_counted(self) -> None:
        store = Store(1, 8)
        after = store.after

        def removing(position: int, query: str, limit: int = 1000, /) -> Deferred[Page]:
            store.first_position = 5
            return after(position, query, limit)

        store.after = removing  # type: ignore[method-assign]
        rows = self.rows(store, 2)
        self.assertEqual([place for place, _ in rows], [4, 5, 6, 7, 8])

    def test_a_sink_that_has_everything_up_to_what_is_kept_is_told_nothing(self) -> None:
        self.assertEqual(self.rows(Store(5, 6), 4), [(5, 5), (6, 6)])

    def test_everything_was_removed(self) -> None:
        self.assertEqual([place for place, _ in self.rows(Store(9, 8), 2)], [8])

    def test_it_wakes_once(self) -> None:
        store = Store(1, 1)
        waiting = StoredEvents(store, "all").wait()
        self.assertNoResult(waiting)
        for listener in list(store.listeners):
            listener(2)
        self.successResultOf(waiting)
        self.assertEqual(store.listeners, [])

    def test_a_wait_may_be_given_up(self) -> None:
        store = Store(1, 1)
        waiting = StoredEvents(store, "all").wait()
        waiting.addErrback(lambda _: None)
        waiting.cancel()
        self.assertEqual(store.listeners, [])

    def test_what_is_behind(self) -> None:
        source = StoredEvents(Store(5, 8), "all")
        self.assertEqual(self.successResultOf(source.behind(6)), 2)
        self.assertEqual(self.successResultOf(source.behind(None)), 4)
        self.assertEqual(self.successResultOf(source.behind(99)), 0)
