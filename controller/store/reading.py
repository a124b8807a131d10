# ruff: noqa: S608 - what is put together here holds no text of others but as parameters
"""Reads the events of one day's file, as far as a query wants them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import msgpack

from controller.store.errors import StoreError
from controller.store.query import Query, Stored, matcher, unreadable
from defender.contract.actions import names_of
from defender.contract.audit import Event
from defender.contract.packing import MAX_ITEMS, unpack
from defender.contract.pattern import compile_glob
from defender.contract.rule import ACTIONS
from defender.contract.spool import MAX_SEQ, PAYLOAD_MARK, SpoolError

#: Positions that are read through at once.
STRIDE: Final = 5_000


class Place(NamedTuple):
    """Between two events in the order of time: `t` and position of the one that was given last."""

    t: int
    position: int

    def __str__(self) -> str:
        return f"{self.t}.{self.position}"

    @classmethod
    def read(cls, text: str) -> Place:
        t, dot, position = text.partition(".")
        if not dot or not all(part.isascii() and part.isdigit() and len(part) < 20 for part in (t, position)):
            raise StoreError("this is no place that a search ended at")
        return cls(min(int(t), MAX_SEQ), min(int(position), MAX_SEQ))


class Reading:
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
                if column == "defender":
                    patterns = (*patterns, *self._called(patterns))
                numbers = self._numbers(patterns, actions=column == "action")
                self.impossible = self.impossible or not numbers
                conditions.append(f"e.{column} IN ({','.join(map(str, numbers))})")
        self._where = " AND ".join(conditions)
        self._values = values

    def stride(self, position: int, stop: int | None) -> tuple[int, int]:
        """The last of the next events behind a position, and how many they are at most."""
        (last,) = self._connection.execute("SELECT max(position) FROM events").fetchone()
        last = min(last or 0, position + STRIDE, MAX_SEQ if stop is None else stop)
        return (last, last - position) if last > position else (position, 0)

    def by_position(self, first: int, last: int) -> Iterator[tuple[Stored | None, Place]]:
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

    def window(self, at: Place, size: int, newest: bool, end: Place | None) -> tuple[Place | None, int]:
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
            return Place(*row), size
        (count,) = self._connection.execute(f"SELECT count(*) FROM ({inside})", values).fetchone()
        return end, count

    def by_time(self, at: Place, end: Place | None, newest: bool) -> Iterator[tuple[Stored | None, Place]]:
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

    def _rows(self, rows: sqlite3.Cursor) -> Iterator[tuple[Stored | None, Place]]:
        matches = self._matches
        for position, t, defender, payload, first, first_seq, chain, received in rows:
            place = Place(t, position)
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

    def _called(self, patterns: Iterable[str]) -> set[str]:
        """The ids of the defenders whose name in their own records one of the patterns matches."""
        tests = [compile_glob(pattern) for pattern in patterns]
        rows = self._connection.execute("SELECT DISTINCT defender, agent FROM chains")
        return {defender for defender, agent in rows if any(test(agent.casefold()) for test in tests)}

    def _numbers(self, patterns: Iterable[str], *, actions: bool = False) -> list[int]:
        """The names of this file that one of the patterns matches; `actions` by any of their names."""
        tests = [compile_glob(pattern) for pattern in patterns]
        found = []
        for number, name in self._connection.execute("SELECT id, name FROM names"):
            names = names_of(name) | {name} if actions and name in ACTIONS else (name,)
            if any(test(each.casefold()) for test in tests for each in names):
                found.append(number)
        return found


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
