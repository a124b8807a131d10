"""The fleet's state: one SQLite file, one thread that writes it, a few that read it.

Functions that work on it take a `sqlite3.Connection` first; the modules beside this one are made of them.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, cast

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure

from controller.store.connection import (
    PRIVATE_FILE,
    copy_to,
    open_reader,
    open_writer,
    transaction,
    try_to_write,
)
from controller.store.errors import (
    DamagedStoreError,
    SharedStoreError,
    StoreError,
    fault_text,
    is_damage,
    is_fault,
)
from controller.store.migrations import migrate, migrations_of, version_of
from controller.store.readers import Readers
from controller.store.writer import WriterThread

P = ParamSpec("P")
T = TypeVar("T")
Step = Callable[[sqlite3.Connection], Any]

FILE: Final = "control.db"
LOCK: Final = "lock"
#: Writes that may wait, and that one transaction takes.
MOST_WAITING: Final = 20_000
MOST_AT_ONCE: Final = 1_000


class Database:
    """The file ``control.db`` in `directory`, which is made with mode 0700 if it is not there."""

    def __init__(self, directory: Path, reactor: IReactorFromThreads, *, readers: int = 2) -> None:
        self.path = directory / FILE
        self._directory = directory
        self._readers = Readers(reactor, "the controller's store", readers)
        self._local = threading.local()
        self._opened: list[sqlite3.Connection] = []
        self._lock = -1
        self._connection: sqlite3.Connection | None = None
        self._writer: WriterThread[Step, object] = WriterThread(
            reactor,
            "the controller's store",
            self._execute,
            self._probe,
            self._finish,
            most_waiting=MOST_WAITING,
            most_at_once=MOST_AT_ONCE,
        )

    @property
    def problem(self) -> str:
        """Why nothing can be written, for people; "" if all is well."""
        return self._writer.problem

    def start(self) -> None:
        """Open the store, check it and bring it to the present schema. Blocks; for the start of the program.

        Raises SharedStoreError, NewerStoreError, DamagedStoreError, or StoreError for what cannot be opened.
        A store that is migrated is copied first, beside itself: ``control.db.schema-3``.
        """
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._take_lock()
            self._connection = self._open()
        except (sqlite3.Error, OSError) as error:
            self._release()
            if is_damage(error):
                raise damaged(self.path, fault_text(error)) from None
            raise StoreError(f"{self.path}: cannot be opened: {fault_text(error)}") from None
        except BaseException:
            self._release()
            raise
        self._readers.start()
        self._writer.start()

    def stop(self) -> Deferred[None]:
        """Write what waits and close the store."""
        if self._connection is None:
            return cast("Deferred[None]", maybeDeferred(lambda: None))
        self._readers.stop()
        for connection in self._opened:
            connection.close()
        return self._writer.stop()

    def write(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> Deferred[T]:
        """Run a function in the writing thread, inside a transaction: all that it did, or nothing.

        The Deferred fires once it is on disk. It fails with what the function raised (what it did is undone),
        with UnwritableStoreError or with OverloadedStoreError.
        """
        step: Step = lambda connection: function(connection, *args, **kwargs)  # noqa: E731
        return cast("Deferred[T]", self._writer.submit(step))

    def read(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> Deferred[T]:
        """Run a function in a reading thread, on one consistent state of the store."""
        return self._readers.call(partial(self._read, function), *args, **kwargs)

    def backup(self, path: Path) -> Deferred[None]:
        """Copy the store, consistent, to a new file with mode 0600, while it is in use.

        Fails with FileExistsError if there is one, or the OSError or sqlite3.Error of the writing.
        """
        return self.read(copy_to, path)

    def _open(self) -> sqlite3.Connection:
        connection = open_writer(self.path)
        try:
            problems = connection.execute("PRAGMA quick_check(3)").fetchall()
            if problems != [("ok",)]:
                raise damaged(self.path, "; ".join(str(text) for (text,) in problems))
            steps = migrations_of("control")
            before = version_of(connection, self.path, steps)
            if 0 < before < len(steps):
                copy = self.path.with_name(f"{FILE}.schema-{before}")
                copy.unlink(missing_ok=True)
                copy_to(connection, copy)
            migrate(connection, self.path, steps)
        except BaseException:
            connection.close()
            raise
        return connection

    def _take_lock(self) -> None:
        path = self._directory / LOCK
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_FILE)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._lock, 32, 0).decode("ascii", "replace").strip()
            text = f"{self._directory} is in use by process {owner or '?'}; one store serves one controller"
            raise SharedStoreError(text) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _execute(self, steps: Sequence[Step]) -> list[object]:
        assert self._connection is not None
        connection = self._connection
        answers: list[object] = []
        with transaction(connection):
            for step in steps:
                connection.execute("SAVEPOINT step")
                try:
                    answers.append(step(connection))
                except BaseException as error:
                    if is_fault(error) or not connection.in_transaction:
                        raise
                    answers.append(Failure(error))
                    connection.execute("ROLLBACK TO step")
                connection.execute("RELEASE step")
        return answers

    def _probe(self) -> None:
        assert self._connection is not None
        try_to_write(self._connection)

    def _finish(self) -> None:
        assert self._connection is not None
        self._connection.close()
        self._release()

    def _read(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = open_reader(self.path)
            self._opened.append(connection)
        connection.execute("BEGIN")
        try:
            return function(connection, *args, **kwargs)
        finally:
            connection.execute("ROLLBACK")


def damaged(path: Path, detail: str) -> DamagedStoreError:
    """What is said of a file that is not what was written."""
    return DamagedStoreError(f"{path} is damaged ({detail}): restore it from a backup, or move it away")
