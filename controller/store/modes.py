"""Where each defender should listen, and the orders that said so. Times are unix seconds."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from controller.store.rows import from_json, to_json


@dataclass(frozen=True, slots=True)
class ModeRow:
    """What was ordered for a defender. `drain` is in seconds, None for its own setting; `serial` rises with
    every order."""

    defender: str
    listener: str
    drain: float | None
    serial: int
    author: str
    changed: float


@dataclass(frozen=True, slots=True)
class ModeChangeRow:
    """One order for several defenders: the serial that it is for each."""

    id: str
    listener: str
    drain: float | None
    author: str
    asked: float
    serials: Mapping[str, int]


def order(
    connection: sqlite3.Connection,
    ident: str,
    defenders: Iterable[str],
    *,
    listener: str,
    drain: float | None,
    author: str,
    now: float,
) -> ModeChangeRow:
    """Order a mode for defenders, and keep the order. Those that were removed meanwhile are left out."""
    serials: dict[str, int] = {}
    for defender in defenders:
        row = connection.execute(
            "INSERT INTO modes SELECT id, ?2, ?3, 1, ?4, ?5 FROM defenders WHERE id = ?1"
            " ON CONFLICT (defender) DO UPDATE SET listener = excluded.listener, drain = excluded.drain,"
            " serial = serial + 1, author = excluded.author, changed = excluded.changed RETURNING serial",
            (defender, listener, drain, author, now),
        ).fetchone()
        if row is not None:
            serials[defender] = row[0]
    connection.execute(
        "INSERT INTO mode_changes VALUES (?, ?, ?, ?, ?, ?)",
        (ident, listener, drain, author, now, to_json(serials)),
    )
    return ModeChangeRow(ident, listener, drain, author, now, serials)


def ordered(connection: sqlite3.Connection, defender: str) -> ModeRow | None:
    """What was ordered for a defender."""
    row = connection.execute("SELECT * FROM modes WHERE defender = ?", (defender,)).fetchone()
    return None if row is None else ModeRow(*row)


def every(connection: sqlite3.Connection) -> list[ModeRow]:
    """What was ordered for all of them."""
    return [ModeRow(*row) for row in connection.execute("SELECT * FROM modes ORDER BY defender")]


def change(connection: sqlite3.Connection, ident: str) -> ModeChangeRow | None:
    """The order of this id."""
    row = connection.execute("SELECT * FROM mode_changes WHERE id = ?", (ident,)).fetchone()
    if row is None:
        return None
    key, listener, drain, author, asked, serials = row
    return ModeChangeRow(key, listener, drain, author, asked, from_json(serials))


def forget_changes(connection: sqlite3.Connection, before: float) -> int:
    """Remove orders that are older than this; what was ordered stays. Gives how many."""
    return connection.execute("DELETE FROM mode_changes WHERE asked < ?", (before,)).rowcount
