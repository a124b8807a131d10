# ruff: noqa: S608 - what is put together here holds no text of others but as parameters
"""Finds events: by time with filters on every field, or by position to go on where one was.

The index holds time, defender, user, action and effect, and is all that is looked at for these; filters on
other fields look into the events that are left. One call looks at `MOST_EXAMINED` events at most: a page may
be empty and not the last.
"""

from __future__ import annotations

import heapq
import sqlite3
import threading
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgpack

from controller.store.connection import copy_to, open_reader
from controller.store.days import DayFile, Days
from controller.store.errors import StoreError
from controller.store.query import Aside, Page, Query, Stored, check_query, matcher, unreadable
from controller.store.verification import broken_chains
from defender.contract.audit import Event
from defender.contract.packing import MAX_ITEMS, unpack
from defender.contract.pattern import compile_glob, is_glob
from defender.contract.spool import MAX_SEQ, PAYLOAD_MARK, SpoolError

#: Events that one call looks at: entries of the index, and those that have to be opened.
MOST_EXAMINED: Final = 400_000
MOST_OPENED: Final = 10_000
#: Events of a page.
MOST_ON_PAGE: Final = 5_000
_WINDOW: Final = 40_000
_LEAST: Final = 500
_STRIDE: Final = 5_000
_OPEN_FILES: Final = 8
#: Microseconds between the time in an event's id and its own: ids of one moment are drawn from the next ones.
_ID_SLACK: Final = 2_000_000


class _Place(NamedTuple):
    """Between two events in the order of time: `t` and position of the one that was given last."""

    t: int
    position: int

    def __str__(self) -> str:
        return f"{self.t}.{self.position}"

    @classmethod
    def read(cls, text: str) -> _Place:
        t, dot, position = text.partition(".")
        if not dot or not all(part.isascii() and part.isdigit() and len(part) < 20 for part in (t, position)):
            raise StoreError("this is no place that a search ended at")
        return cls(min(int(t), MAX_SEQ), min(int(position), MAX_SEQ))


class Searcher:
    """Reads the files of `days`, in any thread."""

    def __init__(self, days: Days) -> None:
        self._days = days
        self._local = threading.local()
        self._opened: list[dict[Path, sqlite3.Connection]] = []

    def close(self) -> None:
        """Close what is open; when no other thread reads any more."""
        for files in self._opened:
            for connection in files.values():
                connection.close()
            files.clear()

    def after(self, position: int, query: Query, limit: int, stop: int | None = None) -> Page:
        """Wanted events behind a position and not behind `stop`, in the order in which they came."""
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
        check_query(query)
        limit = max(1, min(limit, MOST_ON_PAGE))
        newest = query.newest_first
        if place:
            at = _Place.read(place)
        elif newest:
            at = _Place(min(query.until, MAX_SEQ), 0)
        else:
            at = _Place(max(query.since, 0), 0)
        found: list[Stored] = []
        examined = opened = 0
        readings = [reading for file in self._days.files if (reading := self._read(file, query)) is not None]
        while True:
            end: _Place | None = None
            share = max(_WINDOW // max(len(readings), 1), _LEAST)
            living = []
            for reading in readings:
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

    def event(self, identity: str) -> Stored | None:
        """The event with this id; None if there is none, or its clock ran far from the time in its id."""
        try:
            wanted = uuid.UUID(identity)
        except ValueError:
            return None
        micros = (wanted.int >> 80) * 1000
        query = Query(since=max(micros - _ID_SLACK, 0), until=min(micros + _ID_SLACK, MAX_SEQ))
        for file in reversed(self._days.files):
            reading = self._read(file, query)
            if reading is not None and (found := reading.by_id(wanted.bytes)) is not None:
                return found
        return None

    def aside(self, day: str, after: int) -> list[Aside]:
        """What was put aside on a day, at most 100 batches behind the number `after`."""
        found: list[Aside] = []
        for file in self._days.files:
            connection = self._open(file) if file.day == day else None
            if connection is None:
                continue
            for number, received, defender, agent, epoch, *rest in connection.execute(
                "SELECT id, received, defender, agent, epoch, first_seq, previous, records, reason"
                " FROM quarantine WHERE id > ? ORDER BY id LIMIT 100",
                (after,),
            ):
                found.append(Aside(number, received, defender, agent, int.from_bytes(epoch), *rest))
        return found

    def verify(self, day: str) -> list[str]:
        """What is wrong with the chains of a day, for people."""
        found: list[str] = []
        for file in self._days.files:
            connection = self._open(file) if file.day == day else None
            if connection is None:
                continue
            connection.execute("BEGIN")
            try:
                found.extend(f"{file.path.name}: {text}" for text in broken_chains(connection))
            finally:
                connection.execute("ROLLBACK")
        return found

    def copy(self, directory: Path) -> list[str]:
        """Copy all files, the newest one first: it has the cursors."""
        directory.mkdir(mode=0o700)
        copied: list[str] = []
        for file in reversed(self._days.files):
            connection = self._open(file)
            if connection is not None:
                copy_to(connection, directory / file.path.name)
                copied.append(file.path.name)
        return copied

    def _read(self, file: DayFile, query: Query) -> _Reading | None:
        """A reading of one file; None if retention has removed it meanwhile."""
        connection = self._open(file)
        return None if connection is None else _Reading(connection, query)

    def _open(self, file: DayFile) -> sqlite3.Connection | None:
        opened: dict[Path, sqlite3.Connection] | None = getattr(self._local, "opened", None)
        if opened is None:
            opened = self._local.opened = {}
            self._opened.append(opened)
        connection = opened.pop(file.path, None)
        if connection is None:
            try:
                connection = open_reader(file.path)
            except sqlite3.OperationalError:
                if file not in self._days.files:
                    return None
                raise
        opened[file.path] = connection
        kept = {each.path for each in self._days.files}
        for path in [*(path for path in opened if path not in kept), *list(opened)[:-_OPEN_FILES]]:
            if path in opened and path != file.path:
                # One that a reading of this call uses still is closed when that is done with it.
                opened.pop(path)
        return connection


class _Reading:
    """One file, and what of a query is asked of it."""

    def __init__(self, connection: sqlite3.Connection, query: Query) -> None:
        self._connection = connection
        self._query = query
        self._chains: dict[int, tuple[str, int]] = {}
        self._names: dict[int, str] = {}
        self._matches = matcher(query)
        # Whether the event's own keys are all that is asked for: then most need not be unpacked with care.
        self._plain = all(path.split(".")[0] in _OWN for path, _ in query.fields)
        self.impossible = False
        """Whether no event in this file can be wanted: it has none of these names."""
        conditions = ["e.t >= :since", "e.t < :until"]
        values: dict[str, Any] = {"since": query.since, "until": query.until}
        for column, patterns in (
            ("defender", query.defenders),
            ("user", query.users),
            ("action", query.actions),
            ("effect", query.effects),
        ):
            if patterns:
                numbers = self._numbers(patterns)
                self.impossible = self.impossible or not numbers
                conditions.append(f"e.{column} IN ({','.join(map(str, numbers))})")
        self._where = " AND ".join(conditions)
        self._values = values

    def stride(self, position: int, stop: int | None) -> tuple[int, int]:
        """The last of the next events behind a position, and how many they are at most."""
        (last,) = self._connection.execute("SELECT max(position) FROM events").fetchone()
        last = min(last or 0, position + _STRIDE, MAX_SEQ if stop is None else stop)
        return (last, last - position) if last > position else (position, 0)

    def by_position(self, first: int, last: int) -> Iterator[tuple[Stored | None, _Place]]:
        """Events behind `first`, up to `last`; None for one that the index let through and is not wanted."""
        rows = self._connection.execute(
            f"SELECT {_COLUMNS} FROM events e NOT INDEXED {_JOIN}"
            f" WHERE e.position > :first AND e.position <= :last AND {self._where} ORDER BY e.position",
            {**self._values, "first": first, "last": last},
        )
        return self._rows(rows)

    def by_id(self, identity: bytes) -> Stored | None:
        """The event with this id, within the time of the query."""
        rows = self._connection.execute(
            f"SELECT {_COLUMNS} FROM events e INDEXED BY events_by_time {_JOIN}"
            f" WHERE {self._where} AND instr(substr(e.payload, 1, 32), :id) > 0",
            {**self._values, "id": PAYLOAD_MARK + identity},
        )
        return next((stored for stored, _ in self._rows(rows)), None)

    def window(self, at: _Place, size: int, newest: bool, end: _Place | None) -> tuple[_Place | None, int]:
        """Where `size` entries of the index from `at` on end (None: it ends before), but not behind `end`;
        and how many entries are up to there.
        """
        sign, order = ("<", "DESC") if newest else (">", "ASC")
        bound = "" if end is None else f" AND (t, position) {'>=' if newest else '<='} (:end, :last)"
        inside = (
            f"SELECT t, position FROM events INDEXED BY events_by_time"
            f" WHERE (t, position) {sign} (:t, :position) AND t >= :since AND t < :until{bound}"
            f" ORDER BY t {order}, position {order}"
        )
        values = {
            "t": at.t,
            "position": at.position,
            "since": self._query.since,
            "until": self._query.until,
            "skip": size - 1,
            **({} if end is None else {"end": end.t, "last": end.position}),
        }
        row = self._connection.execute(f"{inside} LIMIT 1 OFFSET :skip", values).fetchone()
        if row is not None:
            return _Place(*row), size
        (count,) = self._connection.execute(f"SELECT count(*) FROM ({inside})", values).fetchone()
        return end, count

    def by_time(self, at: _Place, end: _Place | None, newest: bool) -> Iterator[tuple[Stored | None, _Place]]:
        """Events behind `at`, up to `end`, as `by_position` gives them."""
        sign, order = ("<", "DESC") if newest else (">", "ASC")
        bound = "" if end is None else f" AND (e.t, e.position) {'>=' if newest else '<='} (:end, :last)"
        rows = self._connection.execute(
            f"SELECT {_COLUMNS} FROM events e INDEXED BY events_by_time {_JOIN}"
            f" WHERE (e.t, e.position) {sign} (:t, :position) AND {self._where}{bound}"
            f" ORDER BY e.t {order}, e.position {order}",
            {
                **self._values,
                "t": at.t,
                "position": at.position,
                **({} if end is None else {"end": end.t, "last": end.position}),
            },
        )
        return self._rows(rows)

    def _rows(self, rows: sqlite3.Cursor) -> Iterator[tuple[Stored | None, _Place]]:
        matches = self._matches
        for position, t, defender, payload, first, first_seq, chain, received in rows:
            place = _Place(t, position)
            if matches is not None and self._plain:
                own = _opened(payload)
                if own is not None and not matches(own):
                    yield None, place
                    continue
            agent, epoch = self._chains.get(chain) or self._chain(chain)
            name = self._names.get(defender) or self._name(defender)
            seq = first_seq + position - first
            try:
                event = unpack(payload, agent=agent, epoch=epoch, seq=seq)
            except SpoolError as error:
                event = unreadable(t, agent, epoch, seq, str(error))
            if matches is None or matches(event):
                yield Stored(position, name, received, event), place
            else:
                yield None, place

    def _chain(self, number: int) -> tuple[str, int]:
        agent, epoch = self._connection.execute(
            "SELECT agent, epoch FROM chains WHERE id = ?", (number,)
        ).fetchone()
        found = self._chains[number] = (agent, int.from_bytes(epoch))
        return found

    def _name(self, number: int) -> str:
        (name,) = self._connection.execute("SELECT name FROM names WHERE id = ?", (number,)).fetchone()
        self._names[number] = name
        return str(name)

    def _numbers(self, patterns: Iterable[str]) -> list[int]:
        """The names of this file that one of the patterns matches."""
        found: set[int] = set()
        tests = []
        for pattern in patterns:
            # Most searches name one user as it is written: no need to look at all names.
            if not is_glob(pattern):
                row = self._connection.execute("SELECT id FROM names WHERE name = ?", (pattern,)).fetchone()
                if row is not None:
                    found.add(row[0])
            tests.append(compile_glob(pattern))
        for number, name in self._connection.execute("SELECT id, name FROM names"):
            folded = name.casefold()
            if any(test(folded) for test in tests):
                found.add(number)
        return sorted(found)


_OWN: Final = frozenset({"kind", "phase", "actor", "req", "decision", "result", "redacted"})


def _opened(payload: bytes) -> Event | None:
    """The event's own keys, unchecked; None if it cannot be read."""
    try:
        event = msgpack.unpackb(
            payload,
            raw=False,
            strict_map_key=True,
            unicode_errors="surrogatepass",
            max_ext_len=0,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
        )
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException):
        return None
    return event if isinstance(event, dict) else None


_COLUMNS: Final = (
    "e.position, e.t, e.defender, e.payload, b.first_position, b.first_seq, b.chain_id, b.received"
)
_JOIN: Final = (
    "CROSS JOIN batches b ON b.first_position ="
    " (SELECT max(first_position) FROM batches WHERE first_position <= e.position)"
)
