"""The certificates of defenders: the one in use, the one on offer, and those that must not come again.

What becomes of them is decided elsewhere; a set is read, judged and written in one transaction. Times are
unix seconds.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class CertificateRow:
    """A certificate: SHA-256 of its DER and of its key, its times, and what it is.

    `state` is ``used``, ``offered`` or ``superseded``, and `since` when it became that. `chain` is the PEM
    text as it was sent to the defender.
    """

    fingerprint: bytes
    key: bytes
    not_before: int
    not_after: int
    state: str
    since: int
    chain: bytes = field(default=b"", repr=False)


def of(connection: sqlite3.Connection, defender: str) -> list[CertificateRow]:
    """The certificates of a defender, the oldest first."""
    rows = connection.execute(
        "SELECT fingerprint, key, not_before, not_after, state, since, chain FROM certificates"
        " WHERE defender = ? ORDER BY not_before, since",
        (defender,),
    )
    return [CertificateRow(*row) for row in rows]


def keep(connection: sqlite3.Connection, defender: str, rows: Iterable[CertificateRow]) -> None:
    """These are the certificates of a defender; others that were kept are forgotten.

    One without its `chain` keeps the one that is stored. Raises sqlite3.IntegrityError for a defender that is
    not there.
    """
    chains = {row.fingerprint: row.chain for row in of(connection, defender)}
    connection.execute("DELETE FROM certificates WHERE defender = ?", (defender,))
    connection.executemany(
        "INSERT INTO certificates VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                row.fingerprint,
                defender,
                row.key,
                row.not_before,
                row.not_after,
                row.state,
                row.since,
                row.chain or chains.get(row.fingerprint, b""),
            )
            for row in rows
        ],
    )


def owner(connection: sqlite3.Connection, fingerprint: bytes) -> str | None:
    """The defender that a certificate was issued for."""
    row = connection.execute(
        "SELECT defender FROM certificates WHERE fingerprint = ?", (fingerprint,)
    ).fetchone()
    return None if row is None else str(row[0])


def expiry(connection: sqlite3.Connection) -> dict[str, int]:
    """When the certificate in use of each defender ends."""
    rows = connection.execute(
        "SELECT defender, max(not_after) FROM certificates WHERE state = 'used' GROUP BY 1"
    )
    return dict(rows.fetchall())
