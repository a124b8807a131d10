"""The fleet's state: transactions and groups of them, migrations, what is newer, damaged or shared."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import threading
from pathlib import Path
from typing import Any, cast
from unittest import mock

from twisted.internet import reactor
from twisted.internet.defer import DeferredList, inlineCallbacks
from twisted.internet.interfaces import IReactorFromThreads
from twisted.trial.unittest import SynchronousTestCase, TestCase

from controller.store import database as database_module
from controller.store import facts
from controller.store import writer as writer_module
from controller.store.connection import open_writer, try_to_write
from controller.store.database import Database
from controller.store.errors import (
    DamagedStoreError,
    NewerStoreError,
    OverloadedStoreError,
    SharedStoreError,
    StoreError,
    UnwritableStoreError,
)
from controller.store.migrations import Migration, migrate, migrations_of, statements
from tests.controller.store.trails import Steps


class DatabaseCase(TestCase):
    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="store"))
        self.addCleanup(shutil.rmtree, self.directory, True)

    def make(self) -> Database:
        return Database(self.directory / "store", cast("IReactorFromThreads", reactor))

    def open(self) -> Database:
        database = self.make()
        database.start()
        self.addCleanup(database.stop)
        return database


class Transactions(DatabaseCase):
    @inlineCallbacks
    def test_all_or_nothing(self) -> Steps[None]:
        database = self.open()

        def fail(connection: sqlite3.Connection) -> None:
            facts.keep(connection, "a", 2)
            raise ValueError("no")

        def constrain(connection: sqlite3.Connection) -> None:
            facts.keep(connection, "a", 3)
            connection.execute("INSERT INTO facts VALUES ('a', 4)")

        waiting = [
            database.write(facts.keep, "a", 1),
            database.write(fail),
            database.write(constrain),
            database.write(facts.keep, "b", 5),
        ]
        results = yield DeferredList(waiting, consumeErrors=True)
        self.assertEqual([good for good, _ in results], [True, False, False, True])
        self.assertIsInstance(results[1][1].value, ValueError)
        self.assertIsInstance(results[2][1].value, sqlite3.IntegrityError)
        self.assertEqual((yield database.read(facts.find, "a")), 1)
        self.assertEqual((yield database.read(facts.find, "b")), 5)
        self.assertEqual(database.problem, "")

    @inlineCallbacks
    def test_numbers_that_rise_under_a_race(self) -> Steps[None]:
        database = self.open()
        results = yield DeferredList([database.write(facts.next_number, "n") for _ in range(300)])
        self.assertEqual([number for _, number in results], list(range(1, 301)))

    @inlineCallbacks
    def test_who_only_reads_cannot_write(self) -> Steps[None]:
        database = self.open()
        yield self.assertFailure(database.read(facts.keep, "a", 1), UnwritableStoreError)

    @inlineCallbacks
    def test_nobody_waits_without_end(self) -> Steps[None]:
        self.patch(database_module, "MOST_WAITING", 10)
        database = self.open()
        results = yield DeferredList(
            [database.write(facts.keep, f"{n}", n) for n in range(2000)], consumeErrors=True
        )
        refused = [result.value for good, result in results if not good]
        self.assertTrue(refused)
        self.assertIsInstance(refused[0], OverloadedStoreError)

    @inlineCallbacks
    def test_one_who_does_not_wait_any_more(self) -> Steps[None]:
        database = self.open()
        written = database.write(facts.keep, "a", 1)
        written.addErrback(lambda _: None)
        written.cancel()
        yield database.write(facts.keep, "b", 1)
        self.assertEqual((yield database.read(facts.find, "a")), 1)

    @inlineCallbacks
    def test_it_is_closed_after_what_waits(self) -> Steps[None]:
        database = self.make()
        database.start()
        waiting = [database.write(facts.keep, f"{n}", n) for n in range(50)]
        yield database.stop()
        results = yield DeferredList(waiting)
        self.assertEqual([good for good, _ in results], [True] * 50)
        yield self.assertFailure(database.write(facts.keep, "a", 1), StoreError)
        yield self.assertFailure(database.read(facts.find, "a"), StoreError)
        database = self.open()
        self.assertEqual((yield database.read(facts.find, "49")), 49)

    @inlineCallbacks
    def test_a_backup_is_whole_and_private(self) -> Steps[None]:
        database = self.open()
        yield database.write(facts.keep, "a", 1)
        target = self.directory / "copy.db"
        yield database.backup(target)
        self.assertEqual(target.stat().st_mode & 0o777, 0o600)
        connection = sqlite3.connect(target)
        self.assertEqual(connection.execute("SELECT value FROM facts").fetchall(), [(1,)])
        connection.close()
        yield self.assertFailure(database.backup(target), FileExistsError)


class Faults(DatabaseCase):
    @inlineCallbacks
    def test_a_disk_that_does_not_answer_is_a_problem(self) -> Steps[None]:
        self.patch(writer_module, "PATIENCE", 0.0)
        database = self.open()
        began, go_on = threading.Event(), threading.Event()

        def hang(connection: sqlite3.Connection) -> None:
            began.set()
            go_on.wait(30)

        hanging = database.write(hang)
        self.assertTrue(began.wait(30))
        self.assertEqual(database.problem, "the controller's store: the disk does not answer")
        yield self.assertFailure(database.write(facts.keep, "a", 1), UnwritableStoreError)
        go_on.set()
        yield hanging

    @inlineCallbacks
    def test_a_fault_refuses_the_whole_group_and_passes(self) -> Steps[None]:
        self.patch(writer_module, "PAUSE", 0.01)
        database = self.open()
        good = {"probe": False}

        def trying(connection: sqlite3.Connection) -> None:
            if not good["probe"]:
                raise OSError(28, "No space left on device")
            try_to_write(connection)

        def fault(connection: sqlite3.Connection) -> None:
            raise OSError(5, "Input/output error")

        with mock.patch.object(database_module, "try_to_write", trying):
            waiting = [database.write(facts.keep, "a", 1), database.write(fault)]
            results = yield DeferredList(waiting, consumeErrors=True)
            self.assertFalse(results[1][0])
            self.assertIsInstance(results[1][1].value, UnwritableStoreError)
            self.assertIn("Input/output error", str(results[1][1].value))
            self.assertNotEqual(database.problem, "")
            yield self.assertFailure(database.write(facts.keep, "b", 1), UnwritableStoreError)
            good["probe"] = True
            while database.problem:
                yield database.read(facts.find, "a")
        yield database.write(facts.keep, "b", 2)
        self.assertEqual((yield database.read(facts.find, "b")), 2)


class Opening(DatabaseCase):
    def test_modes(self) -> None:
        self.open()
        folder = self.directory / "store"
        self.assertEqual(folder.stat().st_mode & 0o777, 0o700)
        for path in folder.iterdir():
            self.assertEqual(path.stat().st_mode & 0o777, 0o600, path)

    def test_every_commit_is_synced_to_a_write_ahead_log(self) -> None:
        connection = open_writer(self.directory / "x.db")
        self.addCleanup(connection.close)
        values = [
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
        ]
        self.assertEqual(values, ["wal", 2])

    def test_a_second_controller_is_refused(self) -> None:
        self.open()
        error = self.assertRaises(SharedStoreError, self.make().start)
        self.assertRegex(str(error), r"is in use by process \d+; one store serves one controller")

    @inlineCallbacks
    def test_a_newer_store_is_refused_and_left_alone(self) -> Steps[None]:
        yield self._closed()
        self._change("PRAGMA user_version = 99")
        before = (self.directory / "store" / "control.db").read_bytes()
        error = self.assertRaises(NewerStoreError, self.make().start)
        self.assertRegex(
            str(error), "control.db has schema 99, and this version .* knows 1 at most: a newer one"
        )
        self.assertEqual((self.directory / "store" / "control.db").read_bytes(), before)
        # Its lock was given back.
        self._change("PRAGMA user_version = 1")
        self.open()

    @inlineCallbacks
    def test_what_is_no_store_is_refused(self) -> Steps[None]:
        yield self._closed()
        path = self.directory / "store" / "control.db"
        good = path.read_bytes()
        other = self.directory / "other.db"
        connection = sqlite3.connect(other)
        connection.execute("CREATE TABLE t (x)")
        connection.close()
        half = len(good) // 2 // 4096 * 4096
        for content in (
            b"no database" * 1000,
            other.read_bytes(),
            good[:half] + bytes(8192) + good[half + 8192 :],
        ):
            path.write_bytes(content)
            self.assertRaises(DamagedStoreError, self.make().start)
        path.write_bytes(good)
        self.open()

    @inlineCallbacks
    def test_an_older_store_is_copied_and_migrated(self) -> Steps[None]:
        database = self.open()
        yield database.write(facts.keep, "a", 1)
        yield database.stop()
        first = migrations_of("control")
        later = (
            *first,
            Migration(len(first) + 1, "more", "CREATE TABLE more (x);\nINSERT INTO more VALUES (1);\n"),
        )
        self.patch(database_module, "migrations_of", lambda _: later)
        database = self.open()

        def more(connection: sqlite3.Connection) -> Any:
            return connection.execute("SELECT x FROM more").fetchall()

        self.assertEqual((yield database.read(more)), [(1,)])
        self.assertEqual((yield database.read(facts.find, "a")), 1)
        copy = self.directory / "store" / f"control.db.schema-{len(first)}"
        self.assertEqual(copy.stat().st_mode & 0o777, 0o600)
        connection = sqlite3.connect(copy)
        self.assertEqual(connection.execute("PRAGMA user_version").fetchone(), (len(first),))
        self.assertEqual(connection.execute("SELECT value FROM facts").fetchall(), [(1,)])
        connection.close()

    @inlineCallbacks
    def _closed(self) -> Steps[None]:
        database = self.make()
        database.start()
        yield database.stop()

    def _change(self, statement: str) -> None:
        connection = sqlite3.connect(self.directory / "store" / "control.db")
        connection.execute(statement)
        connection.close()


class Migrations(SynchronousTestCase):
    def setUp(self) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.addCleanup(self.connection.close)
        self.path = Path("x.db")

    def test_a_step_that_fails_leaves_the_file_as_the_step_before(self) -> None:
        steps = [
            Migration(1, "one", "CREATE TABLE a (x);\n"),
            Migration(2, "two", "CREATE TABLE b (x);\nCREATE TABLE a (x);\n"),
        ]
        self.assertRaises(sqlite3.OperationalError, migrate, self.connection, self.path, steps)
        tables = self.connection.execute("SELECT name FROM sqlite_schema").fetchall()
        self.assertEqual(tables, [("a",)])
        self.assertEqual(self.connection.execute("PRAGMA user_version").fetchone(), (1,))
        steps[1] = Migration(2, "two", "CREATE TABLE b (x);\n")
        self.assertEqual(migrate(self.connection, self.path, steps), 1)
        self.assertEqual(migrate(self.connection, self.path, steps), 2)

    def test_statements_are_told_apart(self) -> None:
        trigger = "CREATE TRIGGER t BEFORE DELETE ON a\nBEGIN\n    SELECT 1;\nEND;\n"
        text = f"-- a; b\nCREATE TABLE a (x);\n\n{trigger}INSERT INTO a VALUES (';');\n"
        self.assertEqual(len(list(statements(text))), 3)

    def test_the_schemas_are_whole(self) -> None:
        for schema in ("control", "events"):
            connection = sqlite3.connect(":memory:", isolation_level=None)
            migrate(connection, self.path, migrations_of(schema))
            self.assertEqual(connection.execute("PRAGMA foreign_key_check").fetchall(), [])
            connection.execute("SELECT count FROM probe")
            connection.close()
