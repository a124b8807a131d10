"""The controller's own events: with the change or not at all, and in the event store once."""

from __future__ import annotations

import sqlite3
from typing import Any, cast
from unittest import mock

from twisted.internet import reactor
from twisted.internet.defer import DeferredList, fail, inlineCallbacks
from twisted.internet.interfaces import IReactorFromThreads

from controller.store import facts, trail
from controller.store.database import Database
from controller.store.errors import UnwritableStoreError
from controller.store.events import EventStore
from controller.store.query import Query
from controller.store.trail import CONTROLLER, TrailMover
from tests.controller.store.trails import NOON, Steps, StoreCase


def event(number: int) -> dict[str, Any]:
    return {
        "kind": "admin",
        "phase": "result",
        "corr": "",
        "actor": {"user": "alice", "groups": [], "via": "session"},
        "req": {"action": "policy_publish", "target": f"{number}"},
        "result": {"ok": True},
    }


def act(connection: sqlite3.Connection, number: int) -> int:
    """A change of the fleet, and its event."""
    facts.keep(connection, "number", number)
    micros = int(NOON * 1_000_000) + number
    return trail.append(connection, event(number), identity=number.to_bytes(16), micros=micros, mono=number)


class TrailCase(StoreCase):
    def setUp(self) -> None:
        super().setUp()
        self.epochs = iter(range(100, 200))

    def open_database(self) -> Database:
        database = Database(self.directory, cast("IReactorFromThreads", reactor))
        database.start()
        self.addCleanup(database.stop)
        return database

    @inlineCallbacks
    def open(self) -> Steps[tuple[Database, EventStore, TrailMover]]:
        database, store = self.open_database(), self.open_store()
        mover = TrailMover(database, store, lambda: next(self.epochs))
        yield mover.start()
        return database, store, mover

    @inlineCallbacks
    def targets(self, store: EventStore) -> Steps[list[str]]:
        found = yield self.events(store, Query(actions=("policy_*",)))
        return [each.event["req"]["target"] for each in found]


class Moving(TrailCase):
    @inlineCallbacks
    def test_in_order_and_once(self) -> Steps[None]:
        database, store, mover = yield self.open()
        for number in range(1, 6):
            self.assertEqual((yield database.write(act, number)), number)
        yield DeferredList([mover.move(), mover.move()], fireOnOneErrback=True)
        yield mover.move()
        self.assertEqual((yield self.targets(store)), ["1", "2", "3", "4", "5"])
        (first, *_) = yield self.events(store)
        self.assertEqual(
            (first.defender, first.event["agent"], first.event["seq"]), (CONTROLLER, "controller", 1)
        )
        self.assertEqual(first.event["kind"], "admin")
        # All but the last are gone from the fleet's state.
        last = yield database.read(trail.end)
        self.assertEqual(last.seq, 5)
        self.assertEqual((yield database.read(_rows)), [5])
        yield database.write(act, 6)
        yield mover.move()
        self.assertEqual((yield self.targets(store)), ["1", "2", "3", "4", "5", "6"])
        self.assertEqual((yield self.gaps(store)), [])
        yield self.assert_whole(store)

    @inlineCallbacks
    def test_no_change_without_its_event_and_no_event_without_its_change(self) -> Steps[None]:
        database, store, mover = yield self.open()

        def refused(connection: sqlite3.Connection) -> None:
            act(connection, 1)
            raise ValueError("no")

        yield self.assertFailure(database.write(refused), ValueError)
        yield mover.move()
        self.assertEqual((yield self.targets(store)), [])
        self.assertEqual((yield database.read(facts.find, "number")), None)

    @inlineCallbacks
    def test_what_was_stored_and_not_forgotten_is_not_stored_again(self) -> Steps[None]:
        """As after a kill between the two: the event store knows what it has."""
        database, store, mover = yield self.open()
        yield database.write(act, 1)
        yield database.write(act, 2)
        refused = fail(UnwritableStoreError("full"))
        with mock.patch.object(database, "write", return_value=refused):
            yield self.assertFailure(mover.move(), UnwritableStoreError)
        self.assertEqual((yield self.targets(store)), ["1", "2"])
        yield database.write(act, 3)
        yield mover.move()
        self.assertEqual((yield self.targets(store)), ["1", "2", "3"])
        self.assertEqual(store.counts.repeated, 0)

    @inlineCallbacks
    def test_after_a_restart(self) -> Steps[None]:
        database, store, _ = yield self.open()
        yield database.write(act, 1)
        yield store.stop()
        yield database.stop()
        database, store, _ = yield self.open()
        yield database.write(act, 2)
        yield store.stop()
        yield database.stop()
        database, store, _ = yield self.open()
        self.assertEqual((yield self.targets(store)), ["1", "2"])
        self.assertEqual((yield self.gaps(store)), [])

    @inlineCallbacks
    def test_a_store_from_a_backup_goes_on_in_an_epoch_of_its_own(self) -> Steps[None]:
        database, store, mover = yield self.open()
        yield database.write(act, 1)
        yield mover.move()
        copy = self.directory / "copy.db"
        yield database.backup(copy)
        for number in (2, 3):
            yield database.write(act, number)
        yield mover.move()
        yield store.stop()
        yield database.stop()
        for name in ("control.db-wal", "control.db-shm"):
            (self.directory / name).unlink(missing_ok=True)
        copy.replace(self.directory / "control.db")
        database, store, mover = yield self.open()
        yield database.write(act, 4)
        yield mover.move()
        self.assertEqual((yield self.targets(store)), ["1", "2", "3", "4"])
        last = yield database.read(trail.end)
        self.assertEqual(last.seq, 1)
        told = yield self.gaps(store)
        self.assertEqual([each[0] for each in told], ["audit_gap"])
        self.assertEqual(store.counts.quarantined, 0)
        yield self.assert_whole(store)


def _rows(connection: sqlite3.Connection) -> list[int]:
    return [seq for (seq,) in connection.execute("SELECT seq FROM trail ORDER BY seq")]
