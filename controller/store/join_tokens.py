"""Join tokens and their uses. Only the SHA-256 of a secret is kept. Times are unix seconds."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from controller.store.errors import ExistsError, MissingError
from controller.store.rows import from_json, to_json


@dataclass(frozen=True, slots=True)
class JoinTokenRow:
    """A token; `terms` is a document that says for whom and from where it is. `revoked` is when it was."""

    id: str
    digest: bytes = field(repr=False)
    created: float
    expires: float
    max_uses: int
    author: str
    terms: Mapping[str, Any]
    uses: int = 0
    revoked: float | None = None


@dataclass(frozen=True, slots=True)
class JoinUseRow:
    """One use of a token by one key (SHA-256 of its SubjectPublicKeyInfo), for one defender.

    `state` is ``waiting``, ``approved``, ``denied`` or ``issued``; `issued` is 0 before that.
    """

    token: str
    key: bytes
    defender: str
    name: str
    state: str
    address: str
    begun: float
    issued: float = 0


_TOKEN = "id, digest, created, expires, max_uses, author, terms_json, uses, revoked"  # noqa: S105
_USE = "token, key, defender, name, state, address, begun, issued"


def add(connection: sqlite3.Connection, token: JoinTokenRow) -> None:
    """A new token; ExistsError if there is one of this id."""
    try:
        connection.execute(
            f"INSERT INTO join_tokens ({_TOKEN}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
            (
                token.id,
                token.digest,
                token.created,
                token.expires,
                token.max_uses,
                token.author,
                to_json(token.terms),
                token.uses,
                token.revoked,
            ),
        )
    except sqlite3.IntegrityError:
        raise ExistsError(f"there is a join token {token.id!r} already") from None


def find(connection: sqlite3.Connection, ident: str) -> JoinTokenRow | None:
    """The token of this id."""
    row = connection.execute(f"SELECT {_TOKEN} FROM join_tokens WHERE id = ?", (ident,)).fetchone()  # noqa: S608
    return None if row is None else _token(row)


def page(connection: sqlite3.Connection, after: str = "", limit: int = 100) -> list[JoinTokenRow]:
    """The next ones, the newest first, behind the id `after`."""
    where = "WHERE (created, id) < (SELECT created, id FROM join_tokens WHERE id = ?)" if after else ""
    rows = connection.execute(
        f"SELECT {_TOKEN} FROM join_tokens {where} ORDER BY created DESC, id DESC LIMIT ?",  # noqa: S608
        (after, limit) if after else (limit,),
    )
    return [_token(row) for row in rows]


def consume(connection: sqlite3.Connection, ident: str, digest: bytes, now: float) -> int | None:
    """Take one use; gives the number of uses taken, None if there is none to take.

    One statement: of two that race for the last use, one gets it. It belongs into the transaction that keeps
    what was issued.
    """
    row = connection.execute(
        "UPDATE join_tokens SET uses = uses + 1 WHERE id = ? AND digest = ?"
        " AND revoked IS NULL AND expires > ? AND uses < max_uses RETURNING uses",
        (ident, digest, now),
    ).fetchone()
    return None if row is None else int(row[0])


def revoke(connection: sqlite3.Connection, ident: str, now: float) -> bool:
    """Revoke a token; whether it was not revoked before. MissingError."""
    if find(connection, ident) is None:
        raise MissingError(f"there is no join token {ident!r}")
    done = connection.execute(
        "UPDATE join_tokens SET revoked = ? WHERE id = ? AND revoked IS NULL", (now, ident)
    )
    return done.rowcount == 1


def forget(connection: sqlite3.Connection, before: float) -> int:
    """Remove tokens, with their uses, that ended before this time; gives how many."""
    gone = "SELECT id FROM join_tokens WHERE expires < ?"
    connection.execute(f"DELETE FROM join_uses WHERE token IN ({gone})", (before,))  # noqa: S608
    return connection.execute("DELETE FROM join_tokens WHERE expires < ?", (before,)).rowcount


def keep_use(connection: sqlite3.Connection, use: JoinUseRow) -> None:
    """Keep a use, in place of the one by the same key."""
    connection.execute(
        f"INSERT OR REPLACE INTO join_uses ({_USE}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
        (use.token, use.key, use.defender, use.name, use.state, use.address, use.begun, use.issued),
    )


def find_use(connection: sqlite3.Connection, token: str, key: bytes) -> JoinUseRow | None:
    """The use of a token by a key."""
    row = connection.execute(
        f"SELECT {_USE} FROM join_uses WHERE token = ? AND key = ?",  # noqa: S608
        (token, key),
    ).fetchone()
    return None if row is None else JoinUseRow(*row)


def waiting(connection: sqlite3.Connection, since: float = 0) -> list[JoinUseRow]:
    """Who waits for approval and asked at `since` or later, the longest first."""
    rows = connection.execute(
        f"SELECT {_USE} FROM join_uses WHERE state = 'waiting' AND begun >= ? ORDER BY begun",  # noqa: S608
        (since,),
    )
    return [JoinUseRow(*row) for row in rows]


def _token(row: tuple[Any, ...]) -> JoinTokenRow:
    ident, digest, created, expires, max_uses, author, terms, uses, revoked = row
    return JoinTokenRow(ident, digest, created, expires, max_uses, author, from_json(terms), uses, revoked)
