"""Signed bundles, as they are sent. A version is a number of 64 bits without sign. Times are unix seconds."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from controller.store import facts
from controller.store.errors import ExistsError
from controller.store.rows import from_json, from_u64, to_json, to_u64


class PositionRow(NamedTuple):
    """Where a bundle stands in its stream."""

    key_epoch: int
    version: int


@dataclass(frozen=True, slots=True)
class BundleRow:
    """A bundle: its place in its stream, what of the stream it is (`line`), and its envelope.

    `origin` is where its content was published first: another position only if it was signed again.
    `audience` are ids of defenders, None for the whole fleet. `digest` is the one that goes over the channel.
    """

    stream: str
    position: PositionRow
    line: str
    origin: PositionRow
    digest: bytes
    audience: tuple[str, ...] | None
    created: float
    envelope: bytes = field(repr=False)


_COLUMNS = (
    "stream, key_epoch, version, line, origin_epoch, origin_version, digest, audience_json, created, envelope"
)


def next_version(connection: sqlite3.Connection, stream: str) -> int:
    """The next number of a stream. It is taken, whether or not a bundle comes of it."""
    return facts.next_number(connection, f"version of {stream}")


def raise_version(connection: sqlite3.Connection, stream: str, version: int) -> None:
    """Let the next number of a stream be above `version`: a defender proved that it was issued before."""
    name = f"version of {stream}"
    known = facts.find(connection, name)
    if not isinstance(known, int) or known < version:
        facts.keep(connection, name, min(version, 2**63 - 2))


def add(connection: sqlite3.Connection, bundle: BundleRow) -> None:
    """Keep a bundle for good; ExistsError if its position is taken by other bytes."""
    known = find(connection, bundle.stream, bundle.position)
    if known is not None and known.envelope == bundle.envelope:
        return
    if known is not None:
        raise ExistsError(f"there is a bundle {bundle.position} of stream {bundle.stream} already")
    connection.execute(
        f"INSERT INTO bundles ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
        (
            bundle.stream,
            bundle.position.key_epoch,
            to_u64(bundle.position.version),
            bundle.line,
            bundle.origin.key_epoch,
            to_u64(bundle.origin.version),
            bundle.digest,
            to_json(bundle.audience),
            bundle.created,
            bundle.envelope,
        ),
    )


def find(connection: sqlite3.Connection, stream: str, position: PositionRow) -> BundleRow | None:
    """The bundle at a position."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM bundles WHERE stream = ? AND key_epoch = ? AND version = ?",  # noqa: S608
        (stream, position.key_epoch, to_u64(position.version)),
    ).fetchone()
    return None if row is None else _bundle(row)


def newest(connection: sqlite3.Connection, stream: str, line: str | None = None) -> BundleRow | None:
    """The bundle with the highest position of a stream, or of one of its lines."""
    where, values = ("", ()) if line is None else (" AND line = ?", (line,))
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM bundles WHERE stream = ?{where}"  # noqa: S608
        " ORDER BY key_epoch DESC, version DESC LIMIT 1",
        (stream, *values),
    ).fetchone()
    return None if row is None else _bundle(row)


def forget(connection: sqlite3.Connection, stream: str, keep: int) -> int:
    """Remove the bundles of a stream but the `keep` newest of each line; gives how many went.

    What was published stays in the policies' versions; a bundle is only needed as long as it can be sent.
    """
    done = connection.execute(
        "DELETE FROM bundles WHERE stream = :stream AND (key_epoch, version) IN ("
        " SELECT key_epoch, version FROM (SELECT key_epoch, version, row_number() OVER ("
        "  PARTITION BY line ORDER BY key_epoch DESC, version DESC) AS place FROM bundles"
        "  WHERE stream = :stream) WHERE place > :keep)",
        {"stream": stream, "keep": max(keep, 1)},
    )
    return done.rowcount


def _bundle(row: tuple[Any, ...]) -> BundleRow:
    stream, key_epoch, version, line, origin_epoch, origin, digest, audience, created, envelope = row
    ids = from_json(audience)
    return BundleRow(
        stream,
        PositionRow(key_epoch, from_u64(version)),
        line,
        PositionRow(origin_epoch, from_u64(origin)),
        digest,
        None if ids is None else tuple(ids),
        created,
        envelope,
    )
