"""The hosts of the fleet and their labels. Times are unix seconds."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from controller.store.errors import ExistsError, MissingError
from controller.store.rows import fold, from_json, to_json


@dataclass(frozen=True, slots=True)
class DefenderRow:
    """A defender. `lock` is why it is shut out, "" if it is not; `token` is the id of its join token.

    `generation` counts its sessions: the newest one wins. `status` is how it described itself last.
    """

    id: str
    name: str
    enrolled: float
    token: str
    lock: str = ""
    generation: int = 0
    last_seen: float | None = None
    address: str = ""
    program: str = ""
    status: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


_COLUMNS = "id, name, enrolled, token, lock, generation, last_seen, address, program, status_json"


def add(
    connection: sqlite3.Connection,
    ident: str,
    name: str,
    *,
    enrolled: float,
    token: str,
    labels: Mapping[str, str] | None = None,
) -> None:
    """A new defender; ExistsError if one of this id or name, however it is written, is there."""
    try:
        connection.execute(
            "INSERT INTO defenders (id, name, folded, enrolled, token) VALUES (?, ?, ?, ?, ?)",
            (ident, name, fold(name), enrolled, token),
        )
    except sqlite3.IntegrityError:
        raise ExistsError(f"there is a defender {name!r} already") from None
    connection.executemany(
        "INSERT INTO labels VALUES (?, ?, ?)", [(ident, key, value) for key, value in (labels or {}).items()]
    )


def find(connection: sqlite3.Connection, ident: str) -> DefenderRow | None:
    """The defender of this id."""
    rows = _read(connection, "WHERE id = ?", (ident,))
    return rows[0] if rows else None


def find_named(connection: sqlite3.Connection, name: str) -> DefenderRow | None:
    """The defender of this name, however it is written."""
    rows = _read(connection, "WHERE folded = ?", (fold(name),))
    return rows[0] if rows else None


def every(connection: sqlite3.Connection) -> list[DefenderRow]:
    """All of them, by name."""
    return _read(connection, "ORDER BY folded", ())


def page(connection: sqlite3.Connection, after: str = "", limit: int = 100) -> list[DefenderRow]:
    """The next ones by name, behind the name `after`."""
    return _read(connection, "WHERE folded > ? ORDER BY folded LIMIT ?", (fold(after), limit))


def relabel(
    connection: sqlite3.Connection, ident: str, changes: Mapping[str, str | None]
) -> tuple[dict[str, str], dict[str, str]]:
    """Set labels, remove those that are None; gives the labels before and after. MissingError."""
    known = find(connection, ident)
    if known is None:
        raise missing(ident)
    for key, value in changes.items():
        if value is None:
            connection.execute("DELETE FROM labels WHERE defender = ? AND name = ?", (ident, key))
        else:
            connection.execute("INSERT OR REPLACE INTO labels VALUES (?, ?, ?)", (ident, key, value))
    after = connection.execute("SELECT name, value FROM labels WHERE defender = ?", (ident,)).fetchall()
    return dict(known.labels), dict(after)


def set_lock(connection: sqlite3.Connection, ident: str, reason: str) -> None:
    """Shut a defender out, or let it in again with ""; MissingError."""
    done = connection.execute("UPDATE defenders SET lock = ? WHERE id = ?", (reason, ident))
    if done.rowcount != 1:
        raise missing(ident)


def begin_session(
    connection: sqlite3.Connection, ident: str, *, now: float, address: str, program: str
) -> int:
    """The number of a new session, higher than all before; MissingError for a defender that was removed."""
    row = connection.execute(
        "UPDATE defenders SET generation = generation + 1, last_seen = ?, address = ?, program = ?"
        " WHERE id = ? RETURNING generation",
        (now, address, program, ident),
    ).fetchone()
    if row is None:
        raise missing(ident)
    return int(row[0])


def keep_seen(connection: sqlite3.Connection, seen: Iterable[tuple[str, float]]) -> None:
    """When defenders were last seen; for many at once, every now and then."""
    connection.executemany(
        "UPDATE defenders SET last_seen = max(coalesce(last_seen, 0), ?) WHERE id = ?",
        [(when, ident) for ident, when in seen],
    )


def keep_status(connection: sqlite3.Connection, ident: str, status: Mapping[str, Any]) -> None:
    """How a defender describes itself; nothing happens if it was removed."""
    connection.execute("UPDATE defenders SET status_json = ? WHERE id = ?", (to_json(status), ident))


def remove(connection: sqlite3.Connection, ident: str) -> DefenderRow:
    """Remove a defender with all that is about it, and give what it was; MissingError.

    Who is not here is not let in: its certificates end with it. Its events stay.
    """
    known = find(connection, ident)
    if known is None:
        raise missing(ident)
    connection.execute("DELETE FROM defenders WHERE id = ?", (ident,))
    return known


def missing(ident: str) -> MissingError:
    """There is no such defender."""
    return MissingError(f"there is no defender {ident!r}")


def _read(connection: sqlite3.Connection, where: str, values: tuple[object, ...]) -> list[DefenderRow]:
    rows = connection.execute(f"SELECT {_COLUMNS} FROM defenders {where}", values).fetchall()  # noqa: S608
    labels: dict[str, dict[str, str]] = {}
    if len(rows) == 1:
        found = connection.execute("SELECT * FROM labels WHERE defender = ?", (rows[0][0],))
    elif rows:
        found = connection.execute("SELECT * FROM labels")
    else:
        return []
    for ident, key, value in found:
        labels.setdefault(ident, {})[key] = value
    return [_defender(row, labels.get(row[0], {})) for row in rows]


def _defender(row: tuple[Any, ...], labels: dict[str, str]) -> DefenderRow:
    key, name, enrolled, token, lock, generation, last_seen, address, program, status = row
    return DefenderRow(
        key,
        name,
        enrolled,
        token,
        lock,
        generation,
        last_seen,
        address,
        program,
        from_json(status),
        labels,
    )
