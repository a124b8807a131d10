"""The controller's own audit events, in the same chain and form as a defender's.

One is written in the transaction of the change that it tells of, so that neither is there without the other.
From there `TrailMover` brings it to the event store, which knows what it has: once, in order, whatever ends
in between.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator, Mapping
from typing import Any, Final, NamedTuple

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.python.failure import Failure

from controller.store import facts
from controller.store.batch import Batch, Predecessor, Taken, chained
from controller.store.database import Database
from controller.store.events import EventStore
from controller.store.rows import from_u64, to_u64
from defender.contract.packing import assemble, pack_body
from defender.contract.spool import first_chain, seal

#: Whose these events are, and the name that their chain begins with.
CONTROLLER: Final = "controller"
AGENT: Final = "controller"
#: Events that are moved at once.
MOST_AT_ONCE: Final = 500

_EPOCH: Final = "epoch of the trail"
_BEFORE: Final = "epoch of the trail before"


class End(NamedTuple):
    """The last event that was written: its epoch, number and chain; number 0 before the first."""

    epoch: int
    seq: int
    chain: bytes


def begin(connection: sqlite3.Connection, epoch: int) -> int:
    """Have an epoch: the one that there is, else `epoch`, a random number, 1 to 2**64 - 1; gives it."""
    kept = facts.keep_first(connection, _EPOCH, to_u64(epoch))
    assert isinstance(kept, bytes)
    return from_u64(kept)


def begin_anew(connection: sqlite3.Connection, epoch: int) -> None:
    """Go on in a new epoch: this store is an earlier copy of the one that the event store knows."""
    facts.keep(connection, _BEFORE, to_u64(end(connection).epoch))
    facts.keep(connection, _EPOCH, to_u64(epoch))


def end(connection: sqlite3.Connection) -> End:
    """Where the trail ends; after `begin`."""
    number = facts.find(connection, _EPOCH)
    assert isinstance(number, bytes)
    epoch = from_u64(number)
    row = connection.execute(
        "SELECT seq, chain FROM trail WHERE epoch = ? ORDER BY seq DESC LIMIT 1", (number,)
    ).fetchone()
    return End(epoch, 0, first_chain(AGENT, epoch)) if row is None else End(epoch, *row)


def append(
    connection: sqlite3.Connection, event: Mapping[str, Any], *, identity: bytes, micros: int, mono: int
) -> int:
    """Write an event, in the transaction of what it tells of; gives its number.

    `event` has the keys from `kind` on; `identity` is its UUIDv7, `micros` unix time and `mono` the monotonic
    clock in microseconds. SpoolError for what no event can hold.
    """
    last = end(connection)
    pairs, body = pack_body({key: value for key, value in event.items() if key != "corr"})
    payload = assemble(pairs, body, identity, micros, mono)
    seq = last.seq + 1
    connection.execute(
        "INSERT INTO trail VALUES (?, ?, ?, ?)",
        (to_u64(last.epoch), seq, chained(last.chain, seq, payload), payload),
    )
    return seq


def pending(connection: sqlite3.Connection, stored: Callable[[int], int], limit: int) -> Batch | None:
    """The next events that are not stored; `stored` gives the last stored number of an epoch, 0 for none."""
    epochs = [facts.find(connection, name) for name in (_BEFORE, _EPOCH)]
    for number in epochs:
        if not isinstance(number, bytes):
            continue
        epoch = from_u64(number)
        rows = connection.execute(
            "SELECT seq, payload FROM trail WHERE epoch = ? AND seq > ? ORDER BY seq LIMIT ?",
            (number, stored(epoch), limit),
        ).fetchall()
        if not rows:
            continue
        first = rows[0][0]
        row = connection.execute(
            "SELECT chain FROM trail WHERE epoch = ? AND seq = ?", (number, first - 1)
        ).fetchone()
        previous: bytes = first_chain(AGENT, epoch) if row is None else row[0]
        records, _ = seal(previous, first, [payload for _, payload in rows])
        before = _predecessor(connection, epochs[0]) if number is epochs[1] else None
        return Batch(CONTROLLER, AGENT, epoch, first, previous, records, before)
    return None


def forget(connection: sqlite3.Connection, epoch: int, seq: int) -> None:
    """Remove what is stored up to a number, but the last one."""
    connection.execute("DELETE FROM trail WHERE epoch = ? AND seq < ?", (to_u64(epoch), seq))


def _predecessor(connection: sqlite3.Connection, number: object) -> Predecessor | None:
    if not isinstance(number, bytes):
        return None
    row = connection.execute(
        "SELECT seq, chain FROM trail WHERE epoch = ? ORDER BY seq DESC LIMIT 1", (number,)
    ).fetchone()
    return None if row is None else Predecessor(from_u64(number), *row)


class TrailMover:
    """Brings the trail to the event store. `make_epoch` gives a random number, 1 to 2**64 - 1."""

    def __init__(self, database: Database, events: EventStore, make_epoch: Callable[[], int]) -> None:
        self._database = database
        self._events = events
        self._make_epoch = make_epoch
        self._moving = False
        self._again = False
        self._waiting: list[Deferred[None]] = []

    @inlineCallbacks
    def start(self) -> Generator[Deferred[Any], Any, None]:
        """Have an epoch, before the first event is written, and move what waits.

        A store that was restored from a backup may not know events that were stored already. It must not
        write others under their numbers, so it goes on in a new epoch.
        """
        yield self._database.write(begin, self._make_epoch())
        last: End = yield self._database.read(end)
        cursor = self._events.cursor(CONTROLLER, last.epoch)
        if cursor is not None and (cursor.seq, cursor.chain) != (last.seq, last.chain):
            kept = yield self._database.read(_holds, last.epoch, cursor.seq, cursor.chain)
            if not kept:
                yield self._database.write(begin_anew, self._make_epoch())
        yield self.move()

    def move(self) -> Deferred[None]:
        """Move what waits. Fails if a store cannot be written; call it again later then."""
        self._again = True
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        if not self._moving:
            self._moving = True
            self._move().addBoth(self._moved)
        return waiting

    def _moved(self, result: Any) -> None:
        self._moving = False
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if isinstance(result, Failure):
                each.errback(result)
            else:
                each.callback(None)

    @inlineCallbacks
    def _move(self) -> Generator[Deferred[Any], Any, None]:
        while self._again:
            self._again = False
            while True:
                batch = yield self._database.read(pending, self._stored, MOST_AT_ONCE)
                if batch is None:
                    break
                taken: Taken = yield self._events.ingest(batch)
                yield self._database.write(forget, batch.epoch, taken.seq)

    def _stored(self, epoch: int) -> int:
        cursor = self._events.cursor(CONTROLLER, epoch)
        return cursor.seq if cursor else 0


def _holds(connection: sqlite3.Connection, epoch: int, seq: int, chain: bytes) -> bool:
    row = connection.execute(
        "SELECT chain FROM trail WHERE epoch = ? AND seq = ?", (to_u64(epoch), seq)
    ).fetchone()
    return bool(row == (chain,))
