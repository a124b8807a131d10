"""Changes of the store and the audit events that tell of them: both in one transaction, or neither."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar
from uuid import UUID

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from controller.admin_audit import AdminActor, Changed, admin_event, compare
from controller.api.ports import Actor
from controller.ports.refusals import store_refusals
from controller.store import trail
from controller.store.database import Database
from controller.store.errors import StoreError

P = ParamSpec("P")
T = TypeVar("T")

_log = Logger()


@dataclass(frozen=True, slots=True)
class Told:
    """What an audit event says: `action` is NOUN_VERB, `refused` is why it was not done, "" if it was."""

    action: str
    target: str
    changed: Changed | None = None
    refused: str = ""
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Ledger:
    """The store, with the trail of what people do to it.

    `clock` gives unix seconds, `steady` seconds that never go back, `entropy` so many random bytes; `moved`
    brings what was written to the event store, and may fail: what is written waits there for the next time.
    """

    database: Database
    moved: Callable[[], Deferred[None]]
    clock: Callable[[], float] = time.time
    steady: Callable[[], float] = time.monotonic
    entropy: Callable[[int], bytes] = field(default=os.urandom, repr=False)

    def new_id(self) -> str:
        """A random UUID."""
        return str(UUID(bytes=self.entropy(16), version=4))

    async def read(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What a function finds in the store."""
        return await answered(self.database.read(function, *args, **kwargs))

    async def write(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a function that writes, in one transaction. Errors are those of `answered`."""
        return await answered(self.database.write(function, *args, **kwargs))

    async def act(self, actor: Actor, step: Callable[[sqlite3.Connection, Tell], T]) -> T:
        """Run a step that writes and tells of it; what it raises undoes all of it, its events too."""
        result = await self.write(self._step, actor, step)
        self.move()
        return result

    def move(self) -> None:
        """Have what was written brought to the event store; nobody waits for it."""
        self.moved().addErrback(_left)

    async def tell(self, actor: Actor, told: Told) -> None:
        """Write an event of what changed nothing."""
        await self.act(actor, lambda connection, tell: tell(told))

    def _step(
        self, connection: sqlite3.Connection, actor: Actor, step: Callable[[sqlite3.Connection, Tell], T]
    ) -> T:
        def tell(told: Told) -> None:
            self.append(connection, actor, told)

        return step(connection, tell)

    def append(self, connection: sqlite3.Connection, actor: Actor, told: Told) -> None:
        """Write an event in a transaction that somebody else has begun."""
        who = AdminActor(actor.user, actor.via or "none", actor.credential, actor.address)
        event = admin_event(
            who,
            told.action,
            told.target,
            changed=told.changed,
            refused=told.refused,
            comment=told.comment,
            request=actor.request,
        )
        now = self.clock()
        trail.append(
            connection,
            event,
            identity=self._identity(now),
            micros=int(now * 1_000_000),
            mono=int(self.steady() * 1_000_000),
        )

    def record(
        self, actor: Actor, action: str, target: str, comment: str = ""
    ) -> Callable[[sqlite3.Connection, Mapping[str, Any] | None, Mapping[str, Any] | None], None]:
        """Writes the event of a change that somebody else makes, from what was before and what is after."""

        def write(
            connection: sqlite3.Connection, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
        ) -> None:
            self.append(connection, actor, Told(action, target, compare(before, after), comment=comment))

        return write

    def _identity(self, now: float) -> bytes:
        """A UUIDv7 (RFC 9562 section 5.7)."""
        data = bytearray(int(now * 1000).to_bytes(6) + self.entropy(10))
        data[6] = 0x70 | data[6] & 0x0F
        data[8] = 0x80 | data[8] & 0x3F
        return bytes(data)


Tell = Callable[[Told], None]
"""Writes an event in the transaction of the step that it was given to."""


async def answered(asked: Deferred[T]) -> T:
    """What the store answers; its errors as those of a port: NotFoundError for what is missing, ConflictError
    for what is there already, UnavailableError for a store that cannot do it now.
    """
    with store_refusals():
        return await asked


def _left(failure: Failure) -> None:
    """It waits in the trail for the next time."""
    if failure.check(StoreError):
        told = failure.getErrorMessage()
        _log.warn("audit events wait to be moved to the event store: {reason}", reason=told)
    else:
        _log.failure("audit events wait to be moved to the event store", failure)
