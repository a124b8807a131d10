"""A file a day: the turn of the day, retention, files that are damaged or newer than the program."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Any, cast
from unittest import mock

from twisted.internet import reactor
from twisted.internet.defer import DeferredList, inlineCallbacks
from twisted.internet.interfaces import IReactorFromThreads

from controller.store import events as events_module
from controller.store.days import EPOCHS
from controller.store.errors import StoreError, UnwritableStoreError
from controller.store.events import EventStore
from controller.store.ingest import Day
from controller.store.query import Query
from tests.controller.store.trails import DAY, NOON, NOTES_EPOCH, Steps, StoreCase, Trail, numbers, verified


class TurnOfTheDay(StoreCase):
    @inlineCallbacks
    def test_cursors_go_on_in_the_new_file(self) -> Steps[None]:
        store, trail = self.open_store(), Trail("d1")
        trail.many(9)
        yield store.ingest(trail.batch(1, 3))
        self.now += DAY
        taken = yield store.ingest(trail.batch(2, 5))
        self.assertEqual((taken.stored, taken.repeated, taken.position), (2, 2, 5))
        self.assertEqual(store.days, ("2026-11-22", "2026-11-23"))
        # What is stored the day before is known to be, though this day's file has none of it.
        taken = yield store.ingest(trail.batch(1, 2))
        self.assertEqual((taken.repeated, taken.quarantined), (2, ""))
        yield store.stop()
        store = self.open_store()
        taken = yield store.ingest(trail.batch(5, 7))
        self.assertEqual((taken.stored, taken.repeated), (2, 1))
        self.assertEqual(numbers((yield self.events(store))), [1, 2, 3, 4, 5, 6, 7])
        yield self.assert_whole(store)

    @inlineCallbacks
    def test_a_clock_that_is_set_back(self) -> Steps[None]:
        store, trail = self.open_store(), Trail("d1")
        trail.many(9)
        for place, (offset, days) in enumerate(((0, 1), (-DAY, 1), (DAY, 2), (-3 * DAY, 3), (-3 * DAY, 3))):
            self.now = NOON + offset
            yield store.ingest(trail.batch(place + 1, place + 1))
            self.assertEqual(len(store.days), days, offset)
        self.assertEqual(store.days, ("2026-11-22", "2026-11-23", "2026-11-19"))
        self.assertEqual(numbers((yield self.events(store))), [1, 2, 3, 4, 5])

    @inlineCallbacks
    def test_old_epochs_are_forgotten_some_day(self) -> Steps[None]:
        store = self.open_store()
        trails = [Trail("d1", 1)]
        trails[0].close()
        for epoch in range(2, EPOCHS + 4):
            trail = Trail("d1", epoch, after=trails[-1])
            trail.close()
            trails.append(trail)
        for trail in trails:
            yield store.ingest(trail.batch(1, 1))
        self.now += DAY
        other = Trail("d2")
        other.many(1)
        yield store.ingest(other.batch(1, 1))
        known = [cursor.epoch for defender, cursor in store.cursors() if defender == "d1"]
        self.assertEqual(sorted(known), list(range(4, EPOCHS + 4)))

    @inlineCallbacks
    def test_a_file_that_was_just_being_made(self) -> Steps[None]:
        folder = self.directory / "events"
        folder.mkdir()
        (folder / ".000001-2026-11-22.db.new").write_bytes(b"half")
        (folder / ".000001-2026-11-22.db.new-wal").write_bytes(b"half")
        store = self.open_store()
        self.assertEqual([path.name for path in folder.iterdir() if ".new" in path.name], [])
        for path in folder.iterdir():
            self.assertEqual(path.stat().st_mode & 0o777, 0o600, path)
        yield store.stop()


class Retention(StoreCase):
    @inlineCallbacks
    def test_old_days_are_removed_and_their_cursors_stay(self) -> Steps[None]:
        store, trail = self.open_store(), Trail("d1")
        for day in range(5):
            self.now = NOON + day * DAY
            trail.many(2)
            yield store.ingest(trail.batch(trail.seq - 1, trail.seq))
        # A reader has it open, and is in the middle of it.
        page = yield store.after(0, Query(), 1)
        self.assertEqual(page.place, "1")
        self.assertEqual((yield store.retain(2)), ["2026-11-22", "2026-11-23"])
        self.assertEqual(store.days, ("2026-11-24", "2026-11-25", "2026-11-26"))
        left = sorted(path.name for path in (self.directory / "events").glob("*.db"))
        self.assertEqual([name[7:17] for name in left], list(store.days))
        self.assertEqual(store.first_position, 5)
        page = yield store.after(1, Query(), 100)
        self.assertEqual([each.position for each in page.events], list(range(5, 11)))
        page = yield store.search(Query(), "", 100)
        self.assertEqual(len(page.events), 6)
        taken = yield store.ingest(trail.batch(1, 10))
        self.assertEqual((taken.stored, taken.repeated), (0, 10))
        # The newest file stays, however old: it has the cursors.
        self.now += 1000 * DAY
        self.assertEqual((yield store.retain(1)), ["2026-11-24", "2026-11-25", "2026-11-26"])
        self.assertEqual(len(store.days), 1)
        taken = yield store.ingest(trail.batch(9, 10))
        self.assertEqual(taken.repeated, 2)

    @inlineCallbacks
    def test_a_full_disk_does_not_keep_old_days(self) -> Steps[None]:
        """Removing them is what helps; and nobody who has read them keeps their room."""
        store, trail = self.open_store(), Trail("d1")
        trail.many(4)
        for day in range(3):
            self.now = NOON + day * DAY
            yield store.ingest(trail.batch(day + 1, day + 1))
            yield store.after(0, Query())
        full = OSError(28, "No space left on device")
        with (
            mock.patch.object(Day, "commit", side_effect=full),
            mock.patch.object(events_module, "try_to_write", side_effect=full),
        ):
            yield self.assertFailure(store.ingest(trail.batch(4, 4)), UnwritableStoreError)
            self.assertIn("No space left on device", store.problem)
            self.assertEqual((yield store.retain(1)), ["2026-11-22"])
        self.assertEqual([path for path in _open_files() if "2026-11-22" in path], [])


def _open_files() -> list[str]:
    """The files that this process has open."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(entry))
    return found


class Backup(StoreCase):
    @inlineCallbacks
    def test_a_copy_that_was_made_while_events_came(self) -> Steps[None]:
        store, trail = self.open_store(), Trail("d1")
        trail.many(400)
        for day in range(2):
            self.now = NOON + day * DAY
            yield store.ingest(trail.batch(day * 20 + 1, day * 20 + 20))
        copy = self.directory / "copy"
        copy.mkdir()
        waiting = [store.ingest(trail.batch(each, each + 9)) for each in range(41, 391, 10)]
        names = yield store.backup(copy / "events")
        yield DeferredList(waiting, fireOnOneErrback=True)
        self.assertEqual(names, ["000002-2026-11-23.db", "000001-2026-11-22.db"])
        yield self.assertFailure(store.backup(copy / "events"), FileExistsError)
        for path in (copy / "events").iterdir():
            self.assertEqual(path.stat().st_mode & 0o777, 0o600, path)
        yield store.stop()
        self.directory = copy
        store = self.open_store()
        cursor = store.cursor("d1")
        assert cursor is not None
        self.assertEqual(numbers((yield self.events(store))), list(range(1, cursor.seq + 1)))
        yield self.assert_whole(store)
        # What was stored after the copy was made and is gone at the defender is missing, and told to be.
        yield store.ingest(trail.batch(399, 400))
        self.assertEqual([told[2] for told in (yield self.gaps(store))], [398 - cursor.seq])


class Damage(StoreCase):
    @inlineCallbacks
    def test_a_newest_file_that_is_damaged_is_put_aside(self) -> Steps[None]:
        """What was in it is missing, is told to be, and what comes goes on."""
        store, trail = self.open_store(), Trail("d1")
        trail.many(9)
        yield store.ingest(trail.batch(1, 3))
        self.now += DAY
        yield store.ingest(trail.batch(4, 6))
        yield store.stop()
        newest = sorted((self.directory / "events").glob("*.db"))[-1]
        newest.write_bytes(b"SQLite format 3\0" + bytes(range(200)) * 100)
        store = self._store()
        (said,) = store.start()
        self.addCleanup(store.stop)
        self.assertIn("is damaged", said)
        self.assertTrue(newest.with_name(f"{newest.name}.bad").exists())
        cursor = store.cursor("d1")
        self.assertEqual(cursor and cursor.seq, 3)
        taken = yield store.ingest(trail.batch(7, 9))
        self.assertEqual((taken.stored, taken.missing), (3, 3))
        told = yield self.gaps(store)
        self.assertEqual([each[0] for each in told], ["audit_put_aside", "audit_gap"])
        self.assertGreater(taken.position, 2**32)
        yield self.assert_whole(store)

    @inlineCallbacks
    def test_the_only_file_is_damaged(self) -> Steps[None]:
        store, trail = self.open_store(), Trail("d1")
        trail.many(3)
        yield store.ingest(trail.batch(1, 3))
        yield store.stop()
        (only,) = (self.directory / "events").glob("*.db")
        only.write_bytes(b"")
        store = self._store()
        self.assertEqual(len(store.start()), 1)
        self.addCleanup(store.stop)
        taken = yield store.ingest(trail.batch(1, 3))
        self.assertEqual(taken.stored, 3)

    @inlineCallbacks
    def test_what_was_altered_is_found(self) -> Steps[None]:
        store, trail = self.open_store(), Trail("d1")
        trail.many(6)
        yield store.ingest(trail.batch(1, 3))
        yield store.ingest(trail.batch(4, 6))
        yield store.stop()
        (path,) = (self.directory / "events").glob("*.db")
        for statement, found in (
            ("UPDATE events SET payload = payload || x'00' WHERE position = 2", "are not what was stored"),
            ("DELETE FROM events WHERE position = 5", "1 of the events 4 to 6 are gone"),
            ("UPDATE batches SET previous = zeroblob(32) WHERE first_seq = 4", "does not follow the one"),
            ("UPDATE chains SET seq = 5", "its cursor is at event 5, and the last one stored is 6"),
            ("DELETE FROM batches WHERE first_seq = 4; DELETE FROM events WHERE position > 3", ""),
        ):
            copy = path.read_bytes()
            connection = sqlite3.connect(path)
            connection.executescript(statement)
            connection.close()
            store = self.open_store()
            for budget in (1, 20_000):
                said: list[Any] = yield verified(store, store.files[0][0], budget)
                self.assertIn(found, "\n".join(said))
                self.assertEqual(bool(said), bool(found))
            yield store.stop()
            path.write_bytes(copy)

    @inlineCallbacks
    def test_a_file_of_a_newer_program_is_refused(self) -> Steps[None]:
        store = self.open_store()
        yield store.stop()
        (path,) = (self.directory / "events").glob("*.db")
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA user_version = 99")
        connection.close()
        error = self.assertRaises(StoreError, self._store().start)
        self.assertIn("has schema 99, and this version of the controller knows", str(error))
        self.assertTrue(path.exists())

    def _store(self) -> EventStore:
        threads = cast("IReactorFromThreads", reactor)
        return EventStore(self.directory, threads, NOTES_EPOCH, clock=lambda: self.now)
