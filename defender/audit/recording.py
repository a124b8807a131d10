"""Takes events in the reactor: makes payloads of them, within the bounds of what may wait for the disk.

`append` only makes a payload and puts it on a list; `journal` brings what is on the list to disk. While the
disk fails, events wait up to a bound; what comes then is dropped and counted, and a gap event says so later.
"""

from __future__ import annotations

import os
import random
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from defender.audit import notes
from defender.audit.commands import Pressure
from defender.audit.identities import Identities
from defender.audit.mishaps import Losses
from defender.audit.spool import FULL, Spool, State
from defender.contract.audit import Event
from defender.contract.packing import assemble, pack_body, unpack
from defender.contract.spool import SpoolError, room

#: Seconds from an event to its commit, and bytes of events that do not wait for that.
INTERVAL: Final = 0.25
BATCH: Final = 64 * 1024
#: What waits in memory while the disk fails, events and bytes; while it is only slow, the bytes alone count.
MAX_WAITING: Final = 1000
MAX_WAITING_BYTES: Final = 4 * 1024 * 1024
#: Reserved events find this much room more.
RESERVED_WAITING: Final = 1.25

STALLED: Final = "the audit disk does not answer"
STOPPED: Final = "the defender is stopping"

Told = Callable[[str], object]


class Recording(ABC):
    """A recorder (`defender.contract.audit.CallRecorder`) whose `_flush` and `_advance` bring the events on.

    `dropped` counts the events that are lost, `reduced` those that were too large; `problem` says why nothing
    is written at present, "" if all is well.
    """

    _log = Logger()

    def __init__(
        self,
        agent: str,
        spool: Spool,
        reactor: Any,
        *,
        segment_bytes: int,
        wall: Callable[[], int],
        monotonic: Callable[[], int],
    ) -> None:
        self.reduced = 0
        self.problem = ""
        self._agent = agent
        self._reactor = reactor
        self._largest = room(segment_bytes)
        self._batch = min(BATCH, self._largest)
        self._spool = spool
        self._wall = wall
        self._monotonic = monotonic
        # Ids must be unique, not secret: a seeded generator costs a tenth of the system's.
        self._identities = Identities(random.Random(os.urandom(32)).getrandbits)  # noqa: S311
        self._new_id = self._identities.new
        self._payloads: list[bytes] = []
        self._size = 0
        self._limit = self._batch
        self._waiting: list[tuple[int, Told]] = []  # index in _payloads
        self._timer: IDelayedCall | None = None
        self._overdue = False
        self._stalled = False
        self._losses = Losses()
        self._stopping: Deferred[None] | None = None

    @property
    def dropped(self) -> int:
        """How many events are lost."""
        return self._losses.total

    @abstractmethod
    def _flush(self) -> None:
        """Begin a commit of all that waits; only in state *ready* of the spool."""

    @abstractmethod
    def _advance(self) -> None:
        """Commit what waits, if the disk is free and it is time."""

    # -- recording

    def record(self, event: Event) -> None:
        """Take one event; see `Recorder`."""
        corr = _corr(event.pop("corr", None))
        decision = event.get("decision")
        reserved = event.get("kind") in notes.RESERVED_KINDS or (
            isinstance(decision, dict) and decision.get("effect") == "deny"
        )
        try:
            pairs, body = pack_body(event)
        except SpoolError as error:
            self._log.error("audit: an event was reduced: {error}", error=error)
            self.reduced += 1
            pairs, body = _small(event, 0)
        self.append(pairs, body, corr, reserved=reserved)

    def append(self, pairs: int, body: bytes, corr: bytes = b"", *, reserved: bool = False) -> bytes:
        """Take one packed event; see `CallRecorder`. Hot: a few microseconds."""
        nanos = self._wall()
        identity = self._new_id(nanos)
        payload = assemble(pairs, body, identity, nanos // 1000, self._monotonic() // 1000, corr)
        self._payloads.append(payload)
        self._size += len(payload)
        if self._size > self._limit:
            self._over(reserved)
        elif self._timer is None:
            self._timer = self._reactor.callLater(INTERVAL, self._due)
        return identity

    def append_durable(self, pairs: int, body: bytes, corr: bytes, told: Told) -> bytes:
        """Take one packed event whose writer waits for the disk; see `CallRecorder`."""
        reason = self._refusal()
        if reason:
            identity = self.append(pairs, body, corr)
            self._reactor.callLater(0, self._tell, [told], reason)
            return identity
        waiter = (len(self._payloads), told)
        self._waiting.append(waiter)
        identity = self.append(pairs, body, corr)
        if self._waiting and self._waiting[-1] is waiter:
            if len(self._payloads) == waiter[0]:  # it found no room
                self._waiting.pop()
                self._reactor.callLater(0, self._tell, [told], self._losses.because)
            elif self._spool.state is State.READY:
                self._flush()
        return identity

    def new_id(self) -> str:
        """An id that joins the events of one call (`corr`), as text."""
        return str(uuid.UUID(bytes=self._new_id(self._wall())))

    def _assemble(self, pairs: int, body: bytes, corr: bytes = b"") -> bytes:
        nanos = self._wall()
        return assemble(pairs, body, self._new_id(nanos), nanos // 1000, self._monotonic() // 1000, corr)

    def _over(self, reserved: bool) -> None:
        """The payload that was just appended is not an ordinary one: commit, or see whether it may stay."""
        if self._stopping is not None:
            self._drop(STOPPED)
            return
        pressure = self._spool.pressure
        if pressure is Pressure.FULL or (pressure is Pressure.RESERVED and not reserved):
            self._drop(FULL)
            return
        more = RESERVED_WAITING if reserved else 1.0
        if self._size > MAX_WAITING_BYTES * more or (
            self.problem and len(self._payloads) > MAX_WAITING * more
        ):
            self._drop(self.problem or "the audit disk is too slow")
            return
        if self._size > self._batch and self._spool.state is State.READY:
            self._flush()
        elif self._timer is None:
            self._timer = self._reactor.callLater(INTERVAL, self._due)

    def _drop(self, reason: str) -> None:
        self._size -= len(self._payloads.pop())
        self._lose(1, reason)

    def _lose(self, count: int, reason: str) -> None:
        self._losses.add(count, reason, self._monotonic())

    def _due(self) -> None:
        self._timer = None
        self._overdue = True
        self._advance()

    def _reduce(self, payload: bytes) -> bytes:
        self.reduced += 1
        try:
            event = unpack(payload, agent=self._agent, epoch=1, seq=1)
        except SpoolError:
            event = {}
        self._log.error("audit: an event of {size} bytes was reduced", size=len(payload))
        return self._assemble(*_small(event, len(payload)), _corr(event.get("corr")))

    # -- telling

    def _tell(self, waiting: list[Told], reason: str) -> None:
        for told in waiting:
            try:
                told(reason)
            except Exception:  # noqa: BLE001  the others still have to be told
                self._log.failure("audit: telling of a commit failed")

    def _tell_of(self, event: Event | None) -> None:
        """A warning in the log as well as in the spool."""
        if event is not None:
            self._log.warn("audit: {detail}", detail=event["result"]["detail"])  # type: ignore[index]
            self._note(event)

    def _note(self, event: Event) -> None:
        if self._stopping is None:
            self.append(*pack_body(event), reserved=True)

    def _refusal(self) -> str:
        """Why nothing can be made durable at present, "" if it can."""
        if self._stopping is not None:
            return STOPPED
        if self._spool.pressure is Pressure.FULL:
            return FULL
        return STALLED if self._stalled else self.problem

    def _set_limit(self) -> None:
        """From how many bytes on an event is looked at; -1 for every one."""
        if self._stopping is not None or self.problem or self._spool.pressure is not Pressure.NONE:
            self._limit = -1
        elif self._spool.state is State.READY:
            self._limit = self._batch
        else:
            self._limit = MAX_WAITING_BYTES


def _small(event: Mapping[str, object], size: int) -> tuple[int, bytes]:
    try:
        return pack_body(notes.reduced(event, size))
    except (SpoolError, ValueError):
        return pack_body(notes.reduced({}, size))


def _corr(value: object) -> bytes:
    """16 bytes from what an event has as its `corr`; empty if it stands alone."""
    if isinstance(value, str) and value:
        try:
            return uuid.UUID(value).bytes
        except ValueError:
            return b""
    return value if isinstance(value, bytes) and len(value) == 16 else b""
