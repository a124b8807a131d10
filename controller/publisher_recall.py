"""After a restore from a backup: the locks that defenders hold, and that this store has forgotten.

What a defender says of itself moves no number and locks nobody. But the bundle that it holds is signed, and a
signature of ours proves that it was published here. So a defender whose locks have a number that was never
issued, or another content than was issued under it, is asked for that bundle. Whoever is locked in it is
locked again, and all of it is published above that number, to everybody.
"""

from __future__ import annotations

import base64
import binascii
import sqlite3
from collections.abc import Mapping
from typing import Any, Final
from typing import Protocol as Typed

from twisted.internet.defer import Deferred

from controller.publisher_steps import ALL, Issued, Issuer, Wanted, all_locks, take_back_locks
from controller.releases import AT_ONCE, Held, Release
from controller.store import bundles
from controller.store.bundles import BundleRow, PositionRow
from defender.contract.bundle import PART, Bundle, open_envelope
from defender.contract.trust import LOCKS, Root

#: Bytes of the largest bundle that is asked for: some 40,000 locks.
LARGEST: Final = 4 * 1024 * 1024

_NEWEST_AGENT: Final = "65535.65535.65535"


class RecallError(Exception):
    """A defender does not prove what it says; the text says why."""


class Desk(Typed):
    """Where defenders are asked."""

    def ask(self, defender: str, verb: str, arguments: Mapping[str, Any]) -> Deferred[Mapping[str, Any]]:
        """Have a defender do something; gives its answer."""


async def recall(desk: Desk, defender: str, held: Held, root: Root) -> tuple[Bundle, bytes]:
    """The bundle of locks that a defender holds, verified, and its envelope.

    Raises RecallError, BundleError for what is not signed by us, or what `desk.ask` fails with.
    """
    data = b""
    while True:
        answer = await desk.ask(defender, "bundle", {"stream": LOCKS, "offset": len(data)})
        size, text = answer.get("size"), answer.get("data")
        if isinstance(size, bool) or not isinstance(size, int) or not 0 < size <= LARGEST:
            raise RecallError(f"it names no size of a bundle: {size!r:.40}")
        try:
            part = base64.b64decode(text if isinstance(text, str) else "", validate=True)
        except (binascii.Error, ValueError):
            part = b""
        if len(part) != min(PART, size - len(data)):
            raise RecallError("it sends another part of the bundle than it was asked for")
        data += part
        if len(data) == size:
            break
    bundle = open_envelope(data, root, stream=LOCKS, defender=defender, agent_version=_NEWEST_AGENT, now=None)
    if (bundle.key_epoch, bundle.version, bundle.digest) != (*held.position, held.digest):
        raise RecallError("it sends another bundle than it says it has in force")
    return bundle, data


def lock_again(
    connection: sqlite3.Connection, issuer: Issuer, bundle: Bundle, data: bytes, base: Release | None
) -> tuple[list[str], Issued] | None:
    """Lock whom a bundle locks and publish all locks above it; gives who is locked again, and what is to be
    offered. None if nothing is to be done. For `Database.write`.
    """
    position = PositionRow(bundle.key_epoch, bundle.version)
    known = bundles.find(connection, LOCKS, position)
    if known is not None and known.digest == bundle.digest:
        return None
    bundles.raise_version(connection, LOCKS, bundle.version)
    if known is None:
        row = BundleRow(LOCKS, position, ALL, position, bundle.digest, None, issuer.wall(), data)
        bundles.add(connection, row)
    found = [lock.describe() for lock in take_back_locks(connection, bundle, bundle.author, issuer.wall())]
    newest = bundles.newest(connection, LOCKS)
    if not found and newest is not None and newest.position > position:
        return None  # another defender has proved it, and what was published then is for this one too
    wanted = Wanted(LOCKS, ALL, all_locks(connection), author=bundle.author)
    return found, issuer.begin(connection, wanted, AT_ONCE, base)
