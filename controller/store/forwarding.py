"""How far each forwarding of events has come: the position of the last event that its receiver confirmed."""

from __future__ import annotations

import sqlite3


def find(connection: sqlite3.Connection, name: str) -> int | None:
    """The position of a forwarding, None if it never confirmed anything."""
    row = connection.execute("SELECT position FROM forwarding WHERE name = ?", (name,)).fetchone()
    return None if row is None else int(row[0])


def keep(connection: sqlite3.Connection, name: str, position: int, now: float) -> None:
    """Keep how far it is; `now` is in unix seconds."""
    connection.execute("INSERT OR REPLACE INTO forwarding VALUES (?, ?, ?)", (name, position, now))


def every(connection: sqlite3.Connection) -> dict[str, tuple[int, float]]:
    """Position, and when it was confirmed, of each."""
    rows = connection.execute("SELECT name, position, changed FROM forwarding")
    return {name: (position, changed) for name, position, changed in rows}


def forget(connection: sqlite3.Connection, name: str) -> None:
    """A forwarding is no more."""
    connection.execute("DELETE FROM forwarding WHERE name = ?", (name,))
