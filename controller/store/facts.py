"""Single values that the controller keeps: its trust domain, the present key epoch, numbers that rise."""

from __future__ import annotations

import sqlite3

Value = str | int | float | bytes


def find(connection: sqlite3.Connection, name: str) -> Value | None:
    """The value of this name, None if there is none."""
    row = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
    return None if row is None else row[0]


def keep(connection: sqlite3.Connection, name: str, value: Value) -> None:
    """Keep a value, in place of the one that is there."""
    connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))


def keep_first(connection: sqlite3.Connection, name: str, value: Value) -> Value:
    """Keep a value unless there is one, and give the one that is kept."""
    connection.execute("INSERT OR IGNORE INTO facts VALUES (?, ?)", (name, value))
    kept: Value = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()[0]
    return kept


def next_number(connection: sqlite3.Connection, name: str) -> int:
    """A number that is one higher than the last one given for this name; the first is 1."""
    (number,) = connection.execute(
        "INSERT INTO facts VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value",
        (name,),
    ).fetchone()
    return int(number)
