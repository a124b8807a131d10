"""What defenders follow, hold and refused of each stream, and how far each line went. Times: unix seconds."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from controller.store.bundles import PositionRow
from controller.store.rows import from_json, from_u64, to_json, to_u64


class HeldRow(NamedTuple):
    """Which line of a stream a defender follows (None: not decided), and what it says it has in force."""

    defender: str
    stream: str
    line: str | None
    position: PositionRow | None
    digest: bytes | None
    at: float | None


class RefusalRow(NamedTuple):
    """What a defender refused, by the position of its origin, and why."""

    defender: str
    stream: str
    origin: PositionRow
    code: str
    detail: str
    at: float


def follow(connection: sqlite3.Connection, stream: str, lines: Iterable[tuple[str, str | None]]) -> None:
    """Which line of a stream each of these defenders follows."""
    connection.executemany(
        "INSERT INTO positions (defender, stream, line) VALUES (?, ?, ?)"
        " ON CONFLICT (defender, stream) DO UPDATE SET line = excluded.line",
        [(defender, stream, line) for defender, line in lines],
    )


def hold(
    connection: sqlite3.Connection,
    defender: str,
    stream: str,
    position: PositionRow,
    digest: bytes,
    at: float,
) -> None:
    """What a defender has in force. Nothing happens if it was removed meanwhile."""
    connection.execute(
        "INSERT INTO positions (defender, stream, key_epoch, version, digest, at)"
        " SELECT id, ?2, ?3, ?4, ?5, ?6 FROM defenders WHERE id = ?1"
        " ON CONFLICT (defender, stream) DO UPDATE SET key_epoch = excluded.key_epoch,"
        " version = excluded.version, digest = excluded.digest, at = excluded.at",
        (defender, stream, position.key_epoch, to_u64(position.version), digest, at),
    )


def held(
    connection: sqlite3.Connection, stream: str | None = None, defender: str | None = None
) -> list[HeldRow]:
    """What is held: of a stream, of a defender, of both, or all there is."""
    rows = connection.execute(
        "SELECT defender, stream, line, key_epoch, version, digest, at FROM positions"
        " WHERE (?1 IS NULL OR stream = ?1) AND (?2 IS NULL OR defender = ?2) ORDER BY defender, stream",
        (stream, defender),
    )
    return [
        HeldRow(
            each,
            its,
            line,
            None if version is None else PositionRow(key_epoch, from_u64(version)),
            digest,
            at,
        )
        for each, its, line, key_epoch, version, digest, at in rows
    ]


def refuse(connection: sqlite3.Connection, refusal: RefusalRow) -> None:
    """Keep that a defender refused something; the latest reason counts."""
    connection.execute(
        "INSERT OR REPLACE INTO refusals SELECT id, ?2, ?3, ?4, ?5, ?6, ?7 FROM defenders WHERE id = ?1",
        (
            refusal.defender,
            refusal.stream,
            refusal.origin.key_epoch,
            to_u64(refusal.origin.version),
            refusal.code,
            refusal.detail,
            refusal.at,
        ),
    )


def refusals(connection: sqlite3.Connection, stream: str) -> list[RefusalRow]:
    """What was refused of a stream."""
    rows = connection.execute(
        "SELECT * FROM refusals WHERE stream = ? ORDER BY key_epoch, version, defender", (stream,)
    )
    return [
        RefusalRow(defender, its, PositionRow(key_epoch, from_u64(version)), code, detail, at)
        for defender, its, key_epoch, version, code, detail, at in rows
    ]


def forget_refusals(connection: sqlite3.Connection, stream: str, before: PositionRow) -> None:
    """Forget what was refused below a position that can no longer be offered."""
    connection.execute(
        "DELETE FROM refusals WHERE stream = ? AND (key_epoch, version) < (?, ?)",
        (stream, before.key_epoch, to_u64(before.version)),
    )


def keep_line(
    connection: sqlite3.Connection, stream: str, line: str, document: Mapping[str, Any], now: float
) -> None:
    """How far a line went; the document is the distribution's."""
    connection.execute(
        "INSERT OR REPLACE INTO lines VALUES (?, ?, ?, ?)", (stream, line, to_json(document), now)
    )


def lines(connection: sqlite3.Connection, stream: str) -> dict[str, Any]:
    """The documents of a stream's lines."""
    rows = connection.execute(
        "SELECT line, document_json FROM lines WHERE stream = ? ORDER BY line", (stream,)
    )
    return {line: from_json(text) for line, text in rows}


def forget_line(connection: sqlite3.Connection, stream: str, line: str) -> None:
    """A line is no more."""
    connection.execute("DELETE FROM lines WHERE stream = ? AND line = ?", (stream, line))
