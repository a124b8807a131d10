"""Who is shut out: users, groups and certificates by the stream `locks`, defenders by the store alone.

A defender is shut out by not being let in, so its lock is a mark in the store and not part of what defenders
are sent. Its id is ``defender:`` and the defender's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any, Final

from controller.admin_audit import compare
from controller.api.ports import Actor, Json, NotFoundError, PageWish
from controller.api.shapes import moment
from controller.ports.ledger import Ledger, Tell, Told
from controller.ports.links import Links
from controller.ports.orders import Orders
from controller.ports.paging import in_time, part
from controller.ports.refusals import refusals
from controller.ports.rollouts import counts_of
from controller.store import defenders, facts, locks
from controller.store.defenders import DefenderRow
from controller.store.locks import LockRow
from controller.store.rows import from_json, to_json
from defender.contract.locks import make_lock
from defender.contract.trust import LOCKS

DEFENDER: Final = "defender"
_PREFIX: Final = "defender:"
_ALONE: Final = {"acked": 1, "refused": 0, "waiting": 0, "offline": 0, "total": 1}


class Locks:
    """`controller.api.ports.Locks`."""

    def __init__(self, ledger: Ledger, orders: Orders, links: Links) -> None:
        self._ledger = ledger
        self._orders = orders
        self._links = links

    async def locks(self, page: PageWish) -> Json:
        """`LockPage`, the oldest first."""
        rows = await self._ledger.read(_every)
        counts = counts_of(self._orders, LOCKS, "")

        def show(row: LockRow) -> Json:
            return _shown(row, _ALONE if row.kind == DEFENDER else counts)

        return part(rows, page, key=lambda row: in_time(row.created, row.id), show=show)

    async def add_lock(self, actor: Actor, wanted: Json) -> tuple[Json, bool]:
        """`Lock`, and whether it is new. It is in force on the defenders that are online within seconds."""
        reason = wanted.get("reason", "")
        if wanted["kind"] == DEFENDER:
            row, new = await self._shut_out(actor, wanted["value"], reason)
            return _shown(row, _ALONE), new
        with refusals():
            lock = make_lock(wanted["kind"], wanted["value"], wanted.get("issuer", ""))
            record = self._ledger.record(actor, "lock_add", lock.describe(), reason)
            row, new = await self._orders.add_lock(lock, reason, actor.user, record=record)
        self._ledger.move()
        return _shown(row, counts_of(self._orders, LOCKS, "")), new

    async def remove_lock(self, actor: Actor, lock: str) -> None:
        """Remove by id."""
        if lock.startswith(_PREFIX):
            await self._let_in(actor, lock.removeprefix(_PREFIX))
            return
        row = await self._ledger.read(locks.find, lock)
        if row is None:
            raise NotFoundError(f"there is no lock {lock!r}")
        record = self._ledger.record(actor, "lock_remove", f"{row.kind} {row.value}")
        with refusals():
            await self._orders.remove_lock(lock, actor.user, record=record)
        self._ledger.move()

    async def _shut_out(self, actor: Actor, ref: str, reason: str) -> tuple[LockRow, bool]:
        def lock(connection: sqlite3.Connection, tell: Tell) -> tuple[LockRow, bool]:
            row = find_defender(connection, ref)
            if row.lock:
                return _lock_of(connection, row), False
            why = reason or f"locked by {actor.user}"
            defenders.set_lock(connection, row.id, why)
            now = self._ledger.clock()
            note = {"reason": why, "by": actor.user, "at": now}
            facts.keep(connection, _fact(row.id), to_json(note))
            changed = compare(None, {"kind": DEFENDER, "value": row.id, "reason": why})
            tell(Told("lock_add", f"defender {row.name}", changed, comment=reason))
            return LockRow(_PREFIX + row.id, DEFENDER, row.id, "", why, actor.user, now), True

        row, new = await self._ledger.act(actor, lock)
        self._links.cut(row.value, f"this defender is locked: {row.reason}")
        return row, new

    async def _let_in(self, actor: Actor, ident: str) -> None:
        def unlock(connection: sqlite3.Connection, tell: Tell) -> None:
            row = defenders.find(connection, ident)
            if row is None or not row.lock:
                raise NotFoundError(f"there is no lock {_PREFIX + ident!r}")
            defenders.set_lock(connection, ident, "")
            changed = compare({"kind": DEFENDER, "value": ident, "reason": row.lock}, None)
            tell(Told("lock_remove", f"defender {row.name}", changed))

        await self._ledger.act(actor, unlock)


def find_defender(connection: sqlite3.Connection, ref: str) -> DefenderRow:
    """The defender of this id, else of this name; NotFoundError."""
    row = defenders.find(connection, ref) or defenders.find_named(connection, ref)
    if row is None:
        raise NotFoundError(f"there is no defender {ref!r}")
    return row


def _every(connection: sqlite3.Connection) -> list[LockRow]:
    shut = [_lock_of(connection, row) for row in defenders.every(connection) if row.lock]
    return [*locks.every(connection), *shut]


def _lock_of(connection: sqlite3.Connection, row: DefenderRow) -> LockRow:
    """The lock of a defender; one that nobody asked for, as when a certificate was copied, is the
    controller's own."""
    kept = facts.find(connection, _fact(row.id))
    note: Mapping[str, Any] = from_json(kept) if isinstance(kept, str) else {}
    own = note.get("reason") != row.lock
    by, when = ("controller", row.last_seen or row.enrolled) if own else (note["by"], note["at"])
    return LockRow(_PREFIX + row.id, DEFENDER, row.id, "", row.lock, by, when)


def _fact(ident: str) -> str:
    return f"lock of defender {ident}"


def _shown(row: LockRow, counts: Mapping[str, int]) -> Mapping[str, Any]:
    return {
        "id": row.id,
        "kind": row.kind,
        "value": row.value,
        "issuer": row.issuer,
        "reason": row.reason[:1000],
        "by": row.author,
        "created_at": moment(row.created),
        "counts": dict(counts),
    }
