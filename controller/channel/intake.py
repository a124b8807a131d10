"""Events from the channel into the store, and the word that they are there back to the defender.

An EVENTS is acknowledged when its records are on disk and not before. The credits of a session bound what one
defender may have waiting here, so that one that drains a long backlog takes its turn among the others; while
the disk is slow a part of what was used is given back only later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from typing import Protocol as Typed

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from controller.channel.protocol import Visit
from controller.store.batch import Batch, Predecessor, Taken
from controller.store.errors import OverloadedStoreError, RecordsError, UnwritableStoreError
from defender.contract.controller_session import CREDIT_BYTES, CREDIT_EVENTS
from defender.contract.messages import Events
from defender.contract.spool import RECORD_OVERHEAD

#: Seconds that a commit may take, in the slowest of a hundred, before credits are held back.
SLOW: Final = 0.25
#: The most that is held back: with the rest a defender can still send its largest record.
HELD_EVENTS: Final = CREDIT_EVENTS * 3 // 4
HELD_BYTES: Final = CREDIT_BYTES * 3 // 4
#: Seconds within which a defender comes back whose events could not be stored.
AGAIN: Final = 60.0


class Store(Typed):
    """`controller.store.events.EventStore`."""

    @property
    def commit_seconds(self) -> Sequence[float]: ...
    def ingest(self, batch: Batch) -> Deferred[Taken]: ...


class Intake:
    """See the module. `refused` counts batches that were no records, `unstored` those that the store did not
    take."""

    log = Logger()

    def __init__(self, store: Store) -> None:
        self.refused = self.unstored = 0
        self._store = store
        self._held: dict[Visit, tuple[int, int]] = {}  # events and bytes that are to be given back

    def arrived(self, visit: Visit, events: Events) -> None:
        """A defender has sent records."""
        identity = visit.identity
        assert identity is not None
        opening = events.opening
        predecessor = None
        if opening is not None and opening.predecessor:
            predecessor = Predecessor(opening.predecessor, opening.seq, opening.chain)
        batch = Batch(
            defender=identity.identifier,
            agent=opening.agent if opening is not None else "",
            epoch=events.epoch,
            first_seq=events.first_seq,
            previous=events.previous,
            records=events.records,
            predecessor=predecessor,
            lost=events.lost,
        )
        storing = self._store.ingest(batch)
        storing.addCallbacks(self._stored, self._failed, callbackArgs=(visit, events), errbackArgs=(visit,))
        storing.addErrback(lambda failure: self.log.failure("events are at a standstill", failure))

    def left(self, visit: Visit) -> None:
        """The session is over."""
        self._held.pop(visit, None)

    def _stored(self, taken: Taken, visit: Visit, events: Events) -> None:
        session = visit.session
        if session is None or session.is_closed:
            return
        last = events.first_seq + events.count - 1
        if taken.quarantined:
            self.log.error(
                "events {first} to {last} of epoch {epoch:016x} of {name} were put aside: {reason}",
                first=events.first_seq,
                last=last,
                epoch=events.epoch,
                name=visit.identity.name if visit.identity is not None else "",
                reason=taken.quarantined,
            )
        # What the defender compares with is its own record, whether it was stored or put aside.
        chain = taken.chain if taken.seq == last and not taken.quarantined else last_chain(events.records)
        give_events, give_size = self._share(visit, events.count, len(events.records))
        visit.say(session.acknowledge_events(events.epoch, last, chain, events=give_events, size=give_size))

    def _failed(self, failure: Failure, visit: Visit) -> None:
        if failure.check(RecordsError):
            self.refused += 1
            visit.refuse("records", str(failure.value))
            return
        self.unstored += 1
        if failure.check(UnwritableStoreError, OverloadedStoreError) is None:
            self.log.failure("events could not be stored", failure)
        session = visit.session
        if session is not None and not session.is_closed:
            # What is not acknowledged comes again, from where the store is then.
            visit.leave("store", "the controller cannot store events at present", AGAIN)

    def _share(self, visit: Visit, events: int, size: int) -> tuple[int, int]:
        """How much of what was used is given back now."""
        held_events, held_size = self._held.get(visit, (0, 0))
        if not self._is_slow():
            self._held.pop(visit, None)
            return events + held_events, size + held_size
        keep_events = min(events // 2, HELD_EVENTS - held_events)
        keep_size = min(size // 2, HELD_BYTES - held_size)
        self._held[visit] = (held_events + keep_events, held_size + keep_size)
        return events - keep_events, size - keep_size

    def _is_slow(self) -> bool:
        seconds = sorted(self._store.commit_seconds)
        return bool(seconds) and seconds[len(seconds) * 99 // 100] > SLOW


def last_chain(records: bytes) -> bytes:
    """The chain of the last record of some, which were checked."""
    offset = 0
    chain = b""
    while offset + RECORD_OVERHEAD <= len(records):
        length = int.from_bytes(records[offset : offset + 4], "big")
        chain = records[offset + 16 : offset + RECORD_OVERHEAD]
        offset += RECORD_OVERHEAD + length
    return chain
