"""Where defenders listen."""

from __future__ import annotations

import sqlite3

from controller.api.ports import Actor, InvalidError, Json, NotFoundError, Selection
from controller.api.schema import Fault
from controller.api.shapes import moment
from controller.distribution import RolloutError
from controller.fleet import Mode, ModeError
from controller.ports.ledger import Ledger
from controller.ports.locks import find_defender
from controller.ports.orders import Orders
from controller.ports.refusals import refusals
from controller.ports.rollouts import count_steps, show_step
from controller.rollout_view import Step
from controller.selection import Selection as Selected
from controller.store import modes
from defender.contract.trust import MODE

_LATER = "a later order took its place"


class Listeners:
    """`controller.api.ports.Listeners`."""

    def __init__(self, ledger: Ledger, orders: Orders) -> None:
        self._ledger = ledger
        self._orders = orders

    async def set_listener(self, actor: Actor, wanted: Selection, mode: str, drain: float | None) -> Json:
        """`Change`. NotFoundError for a defender that is named and not there: then nothing is ordered."""
        try:
            ordered = Mode(mode, None if drain is None else int(drain))
        except ModeError as error:
            raise InvalidError([Fault("/mode", str(error))]) from None

        def resolve(connection: sqlite3.Connection) -> tuple[str, ...]:
            return tuple(find_defender(connection, ref).id for ref in wanted.ids)

        ids = await self._ledger.read(resolve)
        with refusals("/select"):
            selection = Selected(ids=ids, names=wanted.names, labels=wanted.labels)
            record = self._ledger.record(actor, "listener_set", f"{mode} for {selection.describe()}"[:500])
            ident = await self._orders.set_mode(selection, ordered, actor.user, record=record)
        self._ledger.move()
        return await self.change(ident)

    async def change(self, change: str) -> Json:
        """`Change`. Who was ordered something else since counts as waiting, and its step says why."""
        row = await self._ledger.read(modes.change, change)
        if row is None:
            raise NotFoundError(f"there is no change {change!r}")
        try:
            found = {step.defender: step for step in self._orders.steps(MODE, change)}
        except RolloutError:
            found = {}
        steps = [
            found.get(who) or Step(who, self._orders.name_of(who), "waiting", _LATER) for who in row.serials
        ]
        return {
            "id": row.id,
            "mode": row.listener,
            "drain": row.drain,
            "asked_at": moment(row.asked),
            "asked_by": row.author,
            "counts": count_steps(steps),
            "defenders": [show_step(step) for step in steps],
        }
