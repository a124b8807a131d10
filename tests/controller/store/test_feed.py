"""What a forwarding reads of the store, and where it keeps how far it is."""

from __future__ import annotations

from typing import cast

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, inlineCallbacks
from twisted.internet.interfaces import IReactorFromThreads

from controller.store.database import Database
from controller.store.feed import EventFeed, ForwardingCursor
from controller.store.query import Query
from tests.controller.store.trails import DAY, NOON, Steps, StoreCase, Trail


class Feeding(StoreCase):
    @inlineCallbacks
    def test_pages_are_full_up_to_the_end(self) -> Steps[None]:
        store, trail = self.open_store(), Trail("d1")
        feed = EventFeed(store)
        self.assertEqual((yield feed.after(None, 10)), [])
        trail.many(6)
        trail.many(2, user="alice")
        trail.many(6)
        yield store.ingest(trail.batch(1, 14))
        rows = yield feed.after(None, 5)
        self.assertEqual([position for position, _ in rows], [1, 2, 3, 4, 5])
        rows = yield feed.after("12", 5)
        self.assertEqual([event["seq"] for _, event in rows], [13, 14])
        self.assertEqual((yield feed.after(14, 5)), [])
        rows = yield EventFeed(store, Query(users=("alice",))).after(None, 5)
        self.assertEqual([position for position, _ in rows], [7, 8])
        self.assertEqual((yield feed.behind(None)), 14)
        self.assertEqual((yield feed.behind(5)), 9)
        # A position of a store that was lost: nothing that comes now is passed over.
        self.assertEqual((yield feed.after(1000, 5)), [])
        self.assertEqual((yield feed.behind(1000)), 0)

    @inlineCallbacks
    def test_what_retention_removed_is_a_gap(self) -> Steps[None]:
        store, trail = self.open_store(), Trail("d1")
        for day in range(4):
            self.now = NOON + day * DAY
            trail.many(3)
            yield store.ingest(trail.batch(trail.seq - 2, trail.seq))
        yield store.retain(1)
        feed = EventFeed(store)
        rows = yield feed.after(2, 3)
        self.assertEqual([position for position, _ in rows], [6, 7, 8])
        gap = rows[0][1]
        self.assertEqual((gap["kind"], gap["result"]["dropped"]), ("gap", 4))
        self.assertEqual((yield feed.after(2, 3)), rows)
        # Who knows that position has no gap, and who begins has none either.
        self.assertEqual([position for position, _ in (yield feed.after(6, 2))], [7, 8])
        self.assertEqual([position for position, _ in (yield feed.after(None, 2))], [7, 8])
        self.assertEqual((yield feed.behind(2)), 6)

    @inlineCallbacks
    def test_waiting_for_what_comes(self) -> Steps[None]:
        store, trail = self.open_store(), Trail("d1")
        trail.many(2)
        feed = EventFeed(store)
        waiting: Deferred[int] = feed.wait()
        given_up: Deferred[int] = feed.wait()
        given_up.cancel()
        yield self.assertFailure(given_up, CancelledError)
        self.assertNoResult(waiting)
        yield store.ingest(trail.batch(1, 2))
        self.assertEqual((yield waiting), 2)
        self.assertEqual((yield store.wait(1)), 2)
        # Nobody is told any more.
        trail.many(1)
        yield store.ingest(trail.batch(3, 3))

    @inlineCallbacks
    def test_how_far_it_is(self) -> Steps[None]:
        database = Database(self.directory, cast("IReactorFromThreads", reactor))
        database.start()
        self.addCleanup(database.stop)
        cursor = ForwardingCursor(database, "siem", lambda: 5.0)
        self.assertEqual((yield cursor.load()), None)
        yield cursor.save(7)
        yield cursor.save("9")
        self.assertEqual((yield cursor.load()), 9)
        self.assertEqual((yield ForwardingCursor(database, "other", lambda: 5.0).load()), None)
