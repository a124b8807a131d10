"""Who is shut out of the whole fleet. Times are unix seconds."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from controller.store.errors import MissingError


@dataclass(frozen=True, slots=True)
class LockRow:
    """A lock: its kind and value as `defender.contract.locks` has them, and why and by whom."""

    id: str
    kind: str
    value: str
    issuer: str
    reason: str
    author: str
    created: float


def add(connection: sqlite3.Connection, lock: LockRow) -> tuple[LockRow, bool]:
    """Keep a lock; gives the one that is kept, and whether it is new: the same lock twice is the first."""
    done = connection.execute(
        "INSERT OR IGNORE INTO locks VALUES (?, ?, ?, ?, ?, ?, ?)",
        (lock.id, lock.kind, lock.value, lock.issuer, lock.reason, lock.author, lock.created),
    )
    row = connection.execute(
        "SELECT * FROM locks WHERE kind = ? AND value = ? AND issuer = ?",
        (lock.kind, lock.value, lock.issuer),
    ).fetchone()
    return LockRow(*row), done.rowcount == 1


def find(connection: sqlite3.Connection, ident: str) -> LockRow | None:
    """The lock of this id."""
    row = connection.execute("SELECT * FROM locks WHERE id = ?", (ident,)).fetchone()
    return None if row is None else LockRow(*row)


def every(connection: sqlite3.Connection) -> list[LockRow]:
    """All of them, the oldest first."""
    return [LockRow(*row) for row in connection.execute("SELECT * FROM locks ORDER BY created, id")]


def remove(connection: sqlite3.Connection, ident: str) -> LockRow:
    """Remove a lock and give what it was; MissingError."""
    row = connection.execute("DELETE FROM locks WHERE id = ? RETURNING *", (ident,)).fetchone()
    if row is None:
        raise MissingError(f"there is no lock {ident!r}")
    return LockRow(*row)
