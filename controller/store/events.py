"""The audit trail of the whole fleet: every event that a defender was told is stored, once and in order.

Each event has a position: they rise in the order in which events were taken in, across all defenders and
days, and are what a tail, a forwarding or an export goes on from.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Final

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure

from controller.store.batch import Batch, Cursor, Taken, check
from controller.store.connection import try_to_write
from controller.store.days import Days, day_of
from controller.store.errors import RecordsError, StoreError, fault_text, is_fault
from controller.store.ingest import Day
from controller.store.query import Aside, Page, Query, Stored
from controller.store.readers import Readers
from controller.store.search import Searcher
from controller.store.verification import Walk
from controller.store.writer import WriterThread

FOLDER: Final = "events"
#: Bytes of records that may wait, and that one transaction takes: some 3,000 events.
MOST_WAITING: Final = 64 * 1024 * 1024
MOST_AT_ONCE: Final = 2 * 1024 * 1024

Listener = Callable[[int], None]


@dataclass(slots=True)
class Counts:
    """What was done since the start."""

    stored: int = 0
    """Events stored."""
    repeated: int = 0
    """Records that came again."""
    gaps: int = 0
    """Times that something was missing."""
    missing: int = 0
    """Records known to be missing."""
    quarantined: int = 0
    """Batches put aside."""
    refused: int = 0
    """Batches whose bytes were no records."""


class EventStore:
    """The folder ``events`` in the store's `directory`; `Database` holds that directory's lock.

    `notes_epoch` is the number under which the store records what it finds missing: random, made once with
    the store, 1 to 2**64 - 1. `clock` gives unix seconds, in any thread.
    """

    def __init__(
        self,
        directory: Path,
        reactor: IReactorFromThreads,
        notes_epoch: int,
        *,
        clock: Callable[[], float] = time.time,
        readers: int = 2,
    ) -> None:
        self.counts = Counts()
        self._days = Days(directory / FOLDER)
        self._reactor = reactor
        self._notes_epoch = notes_epoch
        self._clock = clock
        self._day: Day | None = None
        self._stale = False
        self._listeners: list[Listener] = []
        self._searcher = Searcher(self._days)
        self._readers = Readers(reactor, "the event store", readers)
        self._writer: WriterThread[Batch, Taken] = WriterThread(
            reactor,
            "the event store",
            self._execute,
            self._probe,
            self._finish,
            most_waiting=MOST_WAITING,
            most_at_once=MOST_AT_ONCE,
        )

    @property
    def problem(self) -> str:
        """Why no event can be taken in, for people; "" if all is well."""
        return self._writer.problem

    @property
    def position(self) -> int:
        """The position of the newest event, 0 before the first."""
        return self._day.position if self._day else 0

    @property
    def first_position(self) -> int:
        """The position of the oldest event that is kept; what was before it, retention has removed."""
        files = self._days.files
        return files[0].first_position if files else 1

    @property
    def waiting(self) -> int:
        """Bytes of records that wait to be stored."""
        return self._writer.waiting

    @property
    def commit_seconds(self) -> Sequence[float]:
        """How long the last commits took."""
        return tuple(self._writer.seconds)

    @property
    def days(self) -> tuple[str, ...]:
        """The days that are kept, oldest first."""
        return tuple(file.day for file in self._days.files)

    def start(self) -> list[str]:
        """Open the store; blocks, for the start of the program. Gives what was found damaged, for people.

        Raises StoreError for what cannot be opened.
        """
        try:
            self._days.open(day_of(self._clock()))
            self._day = Day(self._days.connection, self._notes_epoch)
            for text in self._days.put_aside:
                self._day.connection.execute("BEGIN IMMEDIATE")
                self._day.note("audit_put_aside", text, self._micros())
                self._day.commit()
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self._days.path}: cannot be opened: {fault_text(error)}") from None
        self._readers.start()
        self._writer.start()
        return list(self._days.put_aside)

    def stop(self) -> Deferred[None]:
        """Store what waits and close."""
        if self._day is None:
            return succeed(None)
        self._readers.stop()
        self._searcher.close()
        return self._writer.stop()

    def cursor(self, defender: str, epoch: int | None = None) -> Cursor | None:
        """How far a defender's epoch (None: the one it used last) is stored; None if not at all."""
        if self._day is None:
            return None
        if epoch is None:
            return self._day.newest.get(defender)
        return self._day.cursors.get((defender, epoch))

    def cursors(self) -> list[tuple[str, Cursor]]:
        """All of them, with the ids of their defenders."""
        return [] if self._day is None else [(key[0], each) for key, each in self._day.cursors.copy().items()]

    def ingest(self, batch: Batch) -> Deferred[Taken]:
        """Store a batch of records, each one once. The Deferred fires when they are on disk.

        It fails with RecordsError if the bytes are no records (the peer is broken; they are put aside), with
        UnwritableStoreError or OverloadedStoreError: then nothing is stored, and it may come again.
        """
        return self._writer.submit(batch, len(batch.records))

    def retain(self, days: int) -> Deferred[list[str]]:
        """Remove the days that are more than `days` days old, at least 1; gives those that went.

        It needs no room, so it is done while a full disk takes nothing else.
        """
        today = date.fromisoformat(day_of(self._clock()))
        oldest = (today - timedelta(days=max(days, 1))).isoformat()

        def remove() -> list[str]:
            with suppress(sqlite3.Error, OSError):
                self._turn()
            gone = self._days.remove_before(oldest)
            self._searcher.let_go()
            return gone

        return self._writer.call(remove)

    def search(self, query: Query, place: str = "", limit: int = 100) -> Deferred[Page]:
        """Events in the order of their time. `place` is the `Page.place` of the page before."""
        return self._readers.call(self._searcher.search, query, place, limit)

    def after(
        self, position: int, query: Query, limit: int = 1000, stop: int | None = None
    ) -> Deferred[Page]:
        """Events in the order in which they came, behind a position: to follow, forward and export.

        None behind the position `stop`, if one is given.
        """
        return self._readers.call(self._searcher.after, position, query, limit, stop)

    def event(self, identity: str) -> Deferred[Stored | None]:
        """The event with this id, a UUID as text; None if there is none."""
        return self._readers.call(self._searcher.event, identity)

    def aside(self, day: str, after: int = 0) -> Deferred[list[Aside]]:
        """Batches that were put aside on a day, at most 100 behind the number `after`."""
        return self._readers.call(self._searcher.aside, day, after)

    @property
    def files(self) -> tuple[tuple[int, str], ...]:
        """The number and the day of each file of events, oldest first; a day has several if a clock was set
        back."""
        return tuple((file.number, file.day) for file in self._days.files)

    def verify(self, number: int, walk: Walk, budget: int = 20_000) -> Deferred[list[str]]:
        """What is wrong with the chains of a file as they are stored, for people: of about so many events.

        To be called with the same `walk` until that is done.
        """
        return self._readers.call(self._searcher.verify, number, walk, budget)

    def backup(self, directory: Path) -> Deferred[list[str]]:
        """Copy the files of all days, consistent, while they are in use; gives their names.

        Fails with FileExistsError if `directory` is there, or the OSError or sqlite3.Error of the writing.
        """
        return self._readers.call(self._searcher.copy, directory)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with the newest position, in the reactor's thread, when events were stored.

        Call what is returned to end it.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def wait(self, position: int) -> Deferred[int]:
        """Fires with the newest position once there is an event behind `position`; may be cancelled."""
        if self.position > position:
            return succeed(self.position)
        waiting: Deferred[int] = Deferred(lambda _: stop())

        def told(newest: int) -> None:
            if newest > position:
                stop()
                waiting.callback(newest)

        stop = self.listen(told)
        return waiting

    def _micros(self) -> int:
        return int(self._clock() * 1_000_000)

    def _execute(self, group: Sequence[Batch]) -> list[Taken | Failure]:
        try:
            answers = self._together(group)
        except Exception as error:
            if is_fault(error) or len(group) == 1:
                raise
            # One of them is what the code did not foresee: the others must not suffer for it.
            answers = [self._alone(batch) for batch in group]
        self._reactor.callFromThread(self._tell)
        return answers

    def _turn(self) -> None:
        """Begin a new day, if it is time; forget what a transaction that failed has left in memory."""
        assert self._day is not None
        today = day_of(self._clock())
        if self._days.due(today):
            self._days.turn(today)
            self._stale = True
        if self._stale:
            if self._day.connection is self._days.connection:
                self._day.reload()
            else:
                self._day = Day(self._days.connection, self._notes_epoch)
            self._stale = False

    def _alone(self, batch: Batch) -> Taken | Failure:
        try:
            return self._together([batch])[0]
        except Exception as error:
            if is_fault(error):
                raise
            return Failure(error)

    def _together(self, group: Sequence[Batch]) -> list[Taken | Failure]:
        self._turn()
        day = self._day
        assert day is not None
        answers: list[Taken | Failure] = []
        day.connection.execute("BEGIN IMMEDIATE")
        try:
            for batch in group:
                answers.append(self._one(day, batch))
            day.commit()
        except BaseException:
            self._stale = True
            if day.connection.in_transaction:
                day.connection.execute("ROLLBACK")
            raise
        self._count(answers)
        return answers

    def _one(self, day: Day, batch: Batch) -> Taken | Failure:
        received = self._micros()
        try:
            return day.take(batch, check(batch), received)
        except RecordsError as error:
            day.refuse(batch, str(error), received)
            return Failure(error)

    def _count(self, answers: Sequence[Taken | Failure]) -> None:
        counts = self.counts
        for answer in answers:
            if isinstance(answer, Failure):
                counts.refused += 1
            else:
                counts.stored += answer.stored
                counts.repeated += answer.repeated
                counts.gaps += bool(answer.missing)
                counts.missing += max(answer.missing, 0)
                counts.quarantined += bool(answer.quarantined)

    def _tell(self) -> None:
        for listener in list(self._listeners):
            listener(self.position)

    def _probe(self) -> None:
        try_to_write(self._days.connection)

    def _finish(self) -> None:
        self._days.close()
