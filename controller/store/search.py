"""Finds events: by time with filters on every field, or by position to go on where one was.

The index holds time, defender, user, action and effect, and is all that is looked at for these; filters on
other fields look into the events that are left. One call looks at `MOST_EXAMINED` events at most: a page may
be empty and not the last.
"""

from __future__ import annotations

import heapq
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from controller.store.connection import copy_to
from controller.store.days import DayFile, Days
from controller.store.open_files import OpenFiles
from controller.store.query import Aside, Page, Query, Stored, check_query
from controller.store.reading import Place, Reading
from controller.store.verification import Walk
from defender.contract.spool import MAX_SEQ

#: Events that one call looks at: entries of the index, and those that have to be opened.
MOST_EXAMINED: Final = 400_000
MOST_OPENED: Final = 10_000
#: Events of a page.
MOST_ON_PAGE: Final = 5_000
_WINDOW: Final = 40_000
_LEAST: Final = 500
#: Microseconds between the time in an event's id and its own: ids of one moment are drawn from the next ones.
_ID_SLACK: Final = 2_000_000


class Searcher:
    """Reads the files of `days`, in any thread."""

    def __init__(self, days: Days) -> None:
        self._days = days
        self._open = OpenFiles(days)
        self._spans: dict[Path, tuple[int, int]] = {}

    def close(self) -> None:
        """Close what is open; when no other thread reads any more."""
        self._open.close()

    def let_go(self) -> None:
        """Have no file open that was removed."""
        self._open.let_go()

    def after(self, position: int, query: Query, limit: int, stop: int | None = None) -> Page:
        """Wanted events behind a position and not behind `stop`, in the order in which they came."""
        with self._open.use():
            return self._after(position, query, limit, stop)

    def _after(self, position: int, query: Query, limit: int, stop: int | None) -> Page:
        check_query(query)
        limit = max(1, min(limit, MOST_ON_PAGE))
        found: list[Stored] = []
        examined = opened = 0
        files = self._days.files
        for place, file in enumerate(files):
            if place + 1 < len(files) and files[place + 1].first_position <= position + 1:
                continue
            reading = self._read(file, query)
            if reading is None:
                continue
            position = max(position, file.first_position - 1)
            while True:
                last, count = reading.stride(position, stop)
                if not count:
                    break
                examined += count
                if not reading.impossible:
                    for stored, where in reading.by_position(position, last):
                        opened += 1
                        if stored is not None:
                            found.append(stored)
                        if len(found) >= limit:
                            return Page(found, str(where.position), True, examined)
                position = last
                if examined >= MOST_EXAMINED or opened >= MOST_OPENED:
                    return Page(found, str(position), True, examined)
        return Page(found, str(position), False, examined)

    def search(self, query: Query, place: str, limit: int) -> Page:
        """Wanted events in the order of their time, from `place` on ("": from the beginning)."""
        with self._open.use():
            return self._search(query, place, limit)

    def _search(self, query: Query, place: str, limit: int) -> Page:
        check_query(query)
        limit = max(1, min(limit, MOST_ON_PAGE))
        newest = query.newest_first
        if place:
            at = Place.read(place)
        elif newest:
            at = Place(min(query.until, MAX_SEQ), 0)
        else:
            at = Place(max(query.since, 0), 0)
        found: list[Stored] = []
        examined = opened = 0
        files = self._overlapping(query)
        readings: dict[Path, Reading | None] = {}
        while True:
            end: Place | None = None
            share = max(_WINDOW // max(min(len(files), 4), 1), _LEAST)
            living = []
            for file, first, last in files:
                # A file that has nothing between here and the end of the window is not opened.
                if (
                    (first > at.t or (end and last < end.t))
                    if newest
                    else (last < at.t or (end and first > end.t))
                ):
                    continue
                if file.path not in readings:
                    readings[file.path] = self._read(file, query)
                reading = readings[file.path]
                if reading is None:
                    continue
                border, count = reading.window(at, share, newest, end)
                examined += count
                if count:
                    living.append(reading)
                if border is not None:
                    end = border
            streams = [each.by_time(at, end, newest) for each in living if not each.impossible]
            merged = heapq.merge(*streams, key=lambda item: item[1], reverse=newest)
            for stored, where in merged:
                opened += 1
                if stored is not None:
                    found.append(stored)
                if len(found) >= limit or opened >= MOST_OPENED:
                    return Page(found, str(where), True, examined)
            if end is None:
                return Page(found, str(at), False, examined)
            at = end
            if examined >= MOST_EXAMINED:
                return Page(found, str(at), True, examined)

    def _overlapping(self, query: Query) -> list[tuple[DayFile, int, int]]:
        """The files that may have events of the time that is asked for, with that of their first and last, in
        the order in which a search comes to them.
        """
        files = self._days.files
        found = []
        for file in files:
            span = self._spans.get(file.path)
            if span is None:
                connection = None if file is files[-1] else self._open.find(file)
                row = (0, MAX_SEQ)
                if connection is not None:
                    row = connection.execute(
                        "SELECT coalesce((SELECT min(t) FROM events), 1),"
                        " coalesce((SELECT max(t) FROM events), 0)"
                    ).fetchone()
                    # Only the newest file changes.
                    self._spans[file.path] = row
                span = row
            if span[0] < query.until and span[1] >= query.since and span[0] <= span[1]:
                found.append((file, *span))
        found.sort(key=lambda each: -each[2] if query.newest_first else each[1])
        return found

    def event(self, identity: str) -> Stored | None:
        """The event with this id; None if there is none, or its clock ran far from the time in its id."""
        try:
            wanted = uuid.UUID(identity)
        except ValueError:
            return None
        micros = (wanted.int >> 80) * 1000
        query = Query(since=max(micros - _ID_SLACK, 0), until=min(micros + _ID_SLACK, MAX_SEQ))
        with self._open.use():
            for file, _, _ in self._overlapping(query):
                reading = self._read(file, query)
                if reading is not None and (found := reading.by_id(wanted.bytes)) is not None:
                    return found
        return None

    def aside(self, day: str, after: int) -> list[Aside]:
        """What was put aside on a day, at most 100 batches behind the number `after`."""
        found: list[Aside] = []
        for connection in self._of(day):
            for number, received, defender, agent, epoch, *rest in connection.execute(
                "SELECT id, received, defender, agent, epoch, first_seq, previous, records, reason"
                " FROM quarantine WHERE id > ? ORDER BY id LIMIT 100",
                (after,),
            ):
                found.append(Aside(number, received, defender, agent, int.from_bytes(epoch), *rest))
        return found

    def verify(self, number: int, walk: Walk, budget: int) -> list[str]:
        """What is wrong with the next events of the file of this number, for people; about `budget` of them.

        A file that retention has removed is at its end.
        """
        with self._open.use():
            file = next((each for each in self._days.files if each.number == number), None)
            connection = None if file is None else self._open.find(file)
            if connection is None:
                walk.is_done = True
                return []
            connection.execute("BEGIN")
            try:
                return list(walk.proceed(connection, budget))
            finally:
                connection.execute("ROLLBACK")

    def copy(self, directory: Path) -> list[str]:
        """Copy all files, the newest one first: it has the cursors."""
        directory.mkdir(mode=0o700)
        copied: list[str] = []
        for file in reversed(self._days.files):
            with self._open.use():
                connection = self._open.find(file)
                if connection is not None:
                    copy_to(connection, directory / file.path.name)
                    copied.append(file.path.name)
        return copied

    def _of(self, day: str) -> Iterator[sqlite3.Connection]:
        """The file of a day; several, if a clock was set back."""
        for file in self._days.files:
            if file.day == day:
                with self._open.use():
                    connection = self._open.find(file)
                    if connection is not None:
                        yield connection

    def _read(self, file: DayFile, query: Query) -> Reading | None:
        """A reading of one file; None if retention has removed it meanwhile."""
        connection = self._open.find(file)
        return None if connection is None else Reading(connection, query)
