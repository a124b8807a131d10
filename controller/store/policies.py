"""Policies: what is in force of each, its draft, and every version there ever was. Times are unix seconds.

Targets and drafts are documents; who publishes knows what is in them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controller.store.errors import ExistsError, MissingError
from controller.store.rows import from_json, to_json


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """A policy in the fleet: the number that is in force, and the draft; None for none."""

    name: str
    published: int | None = None
    draft: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class VersionRow:
    """What was published under a number, for good; `rolled_back_to` is the version its content is from."""

    policy: str
    number: int
    text: str
    target: Mapping[str, Any]
    digest: str
    author: str
    published: float
    comment: str = ""
    rolled_back_to: int | None = None


_VERSION = "policy, number, text, target_json, digest, author, published, comment, rolled_back_to"


def find(connection: sqlite3.Connection, name: str) -> PolicyRow | None:
    """The policy of this name, unless it was removed."""
    row = connection.execute("SELECT * FROM policies WHERE name = ?", (name,)).fetchone()
    return None if row is None else _policy(row)


def every(connection: sqlite3.Connection) -> list[PolicyRow]:
    """All of them, by name."""
    return [_policy(row) for row in connection.execute("SELECT * FROM policies ORDER BY name")]


def keep(connection: sqlite3.Connection, policy: PolicyRow) -> None:
    """Keep a policy as it is now. The number that is in force must be one of its versions (MissingError)."""
    if policy.published is not None and find_version(connection, policy.name, policy.published) is None:
        raise MissingError(f"policy {policy.name!r} has no version {policy.published}")
    draft = None if policy.draft is None else to_json(policy.draft)
    connection.execute(
        "INSERT OR REPLACE INTO policies VALUES (?, ?, ?)", (policy.name, policy.published, draft)
    )


def remove(connection: sqlite3.Connection, name: str) -> None:
    """Remove a policy from the fleet; its versions stay. MissingError."""
    if connection.execute("DELETE FROM policies WHERE name = ?", (name,)).rowcount != 1:
        raise MissingError(f"there is no policy {name!r}")


def add_version(connection: sqlite3.Connection, version: VersionRow) -> None:
    """A new version; ExistsError if its number is taken: a version never changes."""
    try:
        connection.execute(
            f"INSERT INTO policy_versions ({_VERSION}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
            (
                version.policy,
                version.number,
                version.text,
                to_json(version.target),
                version.digest,
                version.author,
                version.published,
                version.comment,
                version.rolled_back_to,
            ),
        )
    except sqlite3.IntegrityError:
        text = f"policy {version.policy!r} has a version {version.number} already"
        raise ExistsError(text) from None


def find_version(connection: sqlite3.Connection, name: str, number: int) -> VersionRow | None:
    """One version."""
    row = connection.execute(
        f"SELECT {_VERSION} FROM policy_versions WHERE policy = ? AND number = ?",  # noqa: S608
        (name, number),
    ).fetchone()
    return None if row is None else _version(row)


def versions(
    connection: sqlite3.Connection, name: str, before: int | None = None, limit: int = 100
) -> list[VersionRow]:
    """The versions of a policy, the newest first, below the number `before`."""
    rows = connection.execute(
        f"SELECT {_VERSION} FROM policy_versions"  # noqa: S608
        " WHERE policy = ? AND number < ? ORDER BY number DESC LIMIT ?",
        (name, 2**63 - 1 if before is None else before, limit),
    )
    return [_version(row) for row in rows]


def _policy(row: tuple[Any, ...]) -> PolicyRow:
    name, published, draft = row
    return PolicyRow(name, published, None if draft is None else from_json(draft))


def _version(row: tuple[Any, ...]) -> VersionRow:
    policy, number, text, target, *rest = row
    return VersionRow(policy, number, text, from_json(target), *rest)
