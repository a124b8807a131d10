"""The accounts of people, and the secrets that stand for them: sessions and API tokens.

Only hashes are kept, and no repr shows one. Times are unix seconds.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from controller.store.errors import ExistsError, MissingError
from controller.store.rows import fold, from_json, to_json


@dataclass(frozen=True, slots=True)
class UserRow:
    """An account. `password` is the hash with its parameters."""

    id: str
    name: str
    roles: tuple[str, ...]
    password: str = field(repr=False)
    created: float
    changed: float
    disabled: bool = False
    must_change: bool = False
    last_login: float | None = None


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session; `digest` is the SHA-256 of its secret, `user` the account's id."""

    id: str
    digest: bytes = field(repr=False)
    user: str
    created: float
    expires: float
    used: float
    address: str


@dataclass(frozen=True, slots=True)
class ApiTokenRow:
    """An API token; `digest` is the SHA-256 of its secret, `user` the account's id."""

    id: str
    digest: bytes = field(repr=False)
    user: str
    name: str
    permissions: tuple[str, ...]
    created: float
    expires: float
    used: float | None = None
    revoked: float | None = None


_USER = "id, name, roles_json, password, created, changed, disabled, must_change, last_login"
_TOKEN = "id, digest, user, name, permissions_json, created, expires, used, revoked"  # noqa: S105


def add(connection: sqlite3.Connection, user: UserRow) -> None:
    """A new account; ExistsError if one of this name, however it is written, is there."""
    try:
        connection.execute(
            f"INSERT INTO users ({_USER}, folded) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
            (*_values(user), fold(user.name)),
        )
    except sqlite3.IntegrityError:
        raise ExistsError(f"there is an account {user.name!r} already") from None


def keep(connection: sqlite3.Connection, user: UserRow) -> None:
    """Keep an account as it is now, by its id; its name stays. MissingError."""
    done = connection.execute(
        "UPDATE users SET roles_json = ?, password = ?, changed = ?, disabled = ?, must_change = ?,"
        " last_login = ? WHERE id = ?",
        (
            to_json(user.roles),
            user.password,
            user.changed,
            user.disabled,
            user.must_change,
            user.last_login,
            user.id,
        ),
    )
    if done.rowcount != 1:
        raise MissingError(f"there is no account {user.name!r}")


def find(connection: sqlite3.Connection, name: str) -> UserRow | None:
    """The account of this name, however it is written."""
    row = connection.execute(f"SELECT {_USER} FROM users WHERE folded = ?", (fold(name),)).fetchone()  # noqa: S608
    return None if row is None else _user(row)


def find_id(connection: sqlite3.Connection, ident: str) -> UserRow | None:
    """The account of this id."""
    row = connection.execute(f"SELECT {_USER} FROM users WHERE id = ?", (ident,)).fetchone()  # noqa: S608
    return None if row is None else _user(row)


def every(connection: sqlite3.Connection) -> list[UserRow]:
    """All of them, by name."""
    return [_user(row) for row in connection.execute(f"SELECT {_USER} FROM users ORDER BY folded")]  # noqa: S608


def remove(connection: sqlite3.Connection, ident: str) -> None:
    """Remove an account with its sessions and API tokens; MissingError."""
    if connection.execute("DELETE FROM users WHERE id = ?", (ident,)).rowcount != 1:
        raise MissingError(f"there is no account {ident!r}")


def add_session(connection: sqlite3.Connection, session: SessionRow) -> None:
    """Keep a new session."""
    connection.execute(
        "INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            session.id,
            session.digest,
            session.user,
            session.created,
            session.expires,
            session.used,
            session.address,
        ),
    )


def find_session(connection: sqlite3.Connection, digest: bytes) -> SessionRow | None:
    """The session with a secret of this digest."""
    row = connection.execute("SELECT * FROM sessions WHERE digest = ?", (digest,)).fetchone()
    return None if row is None else SessionRow(*row)


def sessions_of(connection: sqlite3.Connection, user: str) -> list[SessionRow]:
    """The sessions of an account, the oldest first."""
    rows = connection.execute("SELECT * FROM sessions WHERE user = ? ORDER BY created", (user,))
    return [SessionRow(*row) for row in rows]


def end_sessions(connection: sqlite3.Connection, ids: Iterable[str]) -> None:
    """End sessions; those that are over already are no error."""
    connection.executemany("DELETE FROM sessions WHERE id = ?", [(ident,) for ident in ids])


def forget_sessions(connection: sqlite3.Connection, now: float) -> int:
    """Remove the sessions that are over; gives how many."""
    return connection.execute("DELETE FROM sessions WHERE expires <= ?", (now,)).rowcount


def add_token(connection: sqlite3.Connection, token: ApiTokenRow) -> None:
    """Keep a new API token."""
    connection.execute(
        f"INSERT INTO api_tokens ({_TOKEN}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
        (
            token.id,
            token.digest,
            token.user,
            token.name,
            to_json(token.permissions),
            token.created,
            token.expires,
            token.used,
            token.revoked,
        ),
    )


def find_token(connection: sqlite3.Connection, digest: bytes) -> ApiTokenRow | None:
    """The API token with a secret of this digest, revoked or not."""
    row = connection.execute(f"SELECT {_TOKEN} FROM api_tokens WHERE digest = ?", (digest,)).fetchone()  # noqa: S608
    return None if row is None else _token(row)


def tokens(connection: sqlite3.Connection, user: str | None = None) -> list[ApiTokenRow]:
    """The API tokens of an account, or all, the oldest first."""
    rows = connection.execute(
        f"SELECT {_TOKEN} FROM api_tokens WHERE ?1 IS NULL OR user = ?1 ORDER BY created, id",  # noqa: S608
        (user,),
    )
    return [_token(row) for row in rows]


def revoke_token(
    connection: sqlite3.Connection, ident: str, now: float, user: str | None = None
) -> ApiTokenRow:
    """Revoke an API token (of an account, or anybody's); MissingError."""
    row = connection.execute(
        f"UPDATE api_tokens SET revoked = coalesce(revoked, ?2) WHERE id = ?1 AND (?3 IS NULL OR user = ?3)"  # noqa: S608
        f" RETURNING {_TOKEN}",
        (ident, now, user),
    ).fetchone()
    if row is None:
        raise MissingError(f"there is no API token {ident!r}")
    return _token(row)


def keep_used(
    connection: sqlite3.Connection, sessions: Iterable[tuple[str, float]], tokens: Iterable[tuple[str, float]]
) -> None:
    """When sessions and API tokens, by id, were used last; for many at once, every now and then."""
    connection.executemany(
        "UPDATE sessions SET used = max(used, ?) WHERE id = ?", [(when, ident) for ident, when in sessions]
    )
    connection.executemany(
        "UPDATE api_tokens SET used = max(coalesce(used, 0), ?) WHERE id = ?",
        [(when, ident) for ident, when in tokens],
    )


def _values(user: UserRow) -> tuple[object, ...]:
    return (
        user.id,
        user.name,
        to_json(user.roles),
        user.password,
        user.created,
        user.changed,
        user.disabled,
        user.must_change,
        user.last_login,
    )


def _user(row: tuple[Any, ...]) -> UserRow:
    ident, name, roles, password, created, changed, disabled, must_change, last_login = row
    return UserRow(
        ident,
        name,
        tuple(from_json(roles)),
        password,
        created,
        changed,
        bool(disabled),
        bool(must_change),
        last_login,
    )


def _token(row: tuple[Any, ...]) -> ApiTokenRow:
    ident, digest, user, name, permissions, *rest = row
    return ApiTokenRow(ident, digest, user, name, tuple(from_json(permissions)), *rest)
