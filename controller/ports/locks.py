"""Who is shut out: by the stream `locks`, and defenders in doubt by not being let in.

A lock that somebody asks for is sent to all defenders, one of a defender too: that one stays in touch, so
that it can be unlocked. When a certificate was copied, nobody can tell which of two hosts is the defender;
then the controller itself marks it in the store and lets neither in. Such a mark is listed among the locks,
under the id ``defender:`` and the defender's, and it is removed as they are.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any, Final

from controller.admin_audit import compare
from controller.api.ports import Actor, Json, NotFoundError, PageWish
from controller.api.shapes import moment
from controller.distribution import RolloutError
from controller.ports.ledger import Ledger, Tell, Told
from controller.ports.orders import Orders
from controller.ports.paging import in_time, part
from controller.ports.refusals import refusals
from controller.ports.rollouts import count_steps, counts_of
from controller.store import defenders, locks
from controller.store.defenders import DefenderRow
from controller.store.locks import LockRow
from defender.contract.locks import DEFENDER, make_lock
from defender.contract.trust import LOCKS

_PREFIX: Final = "defender:"
_ALONE: Final = {"acked": 1, "refused": 0, "waiting": 0, "offline": 0, "total": 1}


class Locks:
    """`controller.api.ports.Locks`."""

    def __init__(self, ledger: Ledger, orders: Orders) -> None:
        self._ledger = ledger
        self._orders = orders

    async def locks(self, page: PageWish) -> Json:
        """`LockPage`, the oldest first."""
        rows = await self._ledger.read(_every)
        counts = counts_of(self._orders, LOCKS, "")
        return part(
            rows,
            page,
            key=lambda row: in_time(row.created, row.id),
            show=lambda row: self._shown(row, counts),
        )

    async def add_lock(self, actor: Actor, wanted: Json) -> tuple[Json, bool]:
        """`Lock`, and whether it is new. It is in force on the defenders that are online within seconds.

        A defender may be named by its id or its name; NotFoundError if there is none.
        """
        reason = wanted.get("reason", "")
        with refusals():
            lock = make_lock(wanted["kind"], wanted["value"], wanted.get("issuer", ""))
            target = lock.describe()
            if lock.kind == DEFENDER:
                host = await self._ledger.read(find_defender, lock.value)
                lock, target = make_lock(DEFENDER, host.id), f"defender {host.name}"
            record = self._ledger.record(actor, "lock_add", target, reason)
            row, new = await self._orders.add_lock(lock, reason, actor.user, record=record)
        self._ledger.move()
        return self._shown(row, counts_of(self._orders, LOCKS, "")), new

    async def remove_lock(self, actor: Actor, lock: str) -> None:
        """Remove by id."""
        if lock.startswith(_PREFIX):
            await self._let_in(actor, lock.removeprefix(_PREFIX))
            return
        row = await self._ledger.read(locks.find, lock)
        if row is None:
            raise NotFoundError(f"there is no lock {lock!r}")
        name = self._name(row) or row.value
        record = self._ledger.record(actor, "lock_remove", f"{row.kind} {name}")
        with refusals():
            await self._orders.remove_lock(lock, actor.user, record=record)
        self._ledger.move()

    async def _let_in(self, actor: Actor, ident: str) -> None:
        def unlock(connection: sqlite3.Connection, tell: Tell) -> None:
            row = defenders.find(connection, ident)
            if row is None or not row.lock:
                raise NotFoundError(f"there is no lock {_PREFIX + ident!r}")
            defenders.set_lock(connection, ident, "")
            changed = compare({"kind": DEFENDER, "value": ident, "reason": row.lock}, None)
            tell(Told("lock_remove", f"defender {row.name}", changed))

        await self._ledger.act(actor, unlock)

    def _name(self, row: LockRow) -> str:
        return self._orders.name_of(row.value)[:255] if row.kind == DEFENDER else ""

    def _shown(self, row: LockRow, counts: Mapping[str, int]) -> Mapping[str, Any]:
        if row.kind == DEFENDER:
            counts = _ALONE if row.id.startswith(_PREFIX) else self._of_host(row.value)
        return {
            "id": row.id,
            "kind": row.kind,
            "value": row.value,
            "name": self._name(row),
            "issuer": row.issuer,
            "reason": row.reason[:1000],
            "by": row.author,
            "created_at": moment(row.created),
            "counts": dict(counts),
        }

    def _of_host(self, ident: str) -> Mapping[str, int]:
        """`Counts` of the one defender that a lock is for; whether others have it is of no matter."""
        try:
            return count_steps(step for step in self._orders.steps(LOCKS, "") if step.defender == ident)
        except RolloutError:
            return count_steps(())


def find_defender(connection: sqlite3.Connection, ref: str) -> DefenderRow:
    """The defender of this id, else of this name; NotFoundError."""
    row = defenders.find(connection, ref) or defenders.find_named(connection, ref)
    if row is None:
        raise NotFoundError(f"there is no defender {ref!r}")
    return row


def _every(connection: sqlite3.Connection) -> list[LockRow]:
    return [*locks.every(connection), *(_mark(row) for row in defenders.every(connection) if row.lock)]


def _mark(row: DefenderRow) -> LockRow:
    """What the controller has against a defender."""
    when = row.last_seen or row.enrolled
    return LockRow(_PREFIX + row.id, DEFENDER, row.id, "", row.lock, "controller", when)
