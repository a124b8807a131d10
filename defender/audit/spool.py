"""The spool's decisions: where events go on disk, what is removed, and what happens when the disk fails.

Inputs in, commands out. The shell (`journal` on the reactor, `store` in its thread) performs each command
and answers it once: `Open` with ``opened`` or ``failed``, `Commit` with ``committed`` or ``failed``,
`Prepare` with ``prepared`` or ``unprepared``, `Survey` with ``surveyed`` or ``failed``, `Inspect` with
``inspected``. `Retry` is a timer that ends in ``retry``.

Invariants:

* A record is given its number, its place in the chain and its bytes once, in `add`. Whatever fails after
  that, the same bytes are written again, at another place, until the disk has them.
* At most one command of the disk is under way. What arrives meanwhile is the next commit's.
* A segment whose write or sync failed is never written again: the kernel forgets what it could not write,
  and says that all is well the next time. What it held and the disk may not have goes to a new segment,
  which begins with the first record that was not known to be on disk. A segment without any such record is
  replaced by the new one, which has its name; others give back the room that they do not need, so that a
  disk that fails again and again does not fill the spool with empty segments and push out what is old.
* Nothing but `max_bytes` ever makes an old segment go, and if `refuse` is set, only one that was delivered. A
  disk that is full because of others is a failure, not a reason to forget.
* A number is never given twice within an epoch, and none is left out: what is dropped before `add` has none,
  and a gap event says how many there were.

States: *closed*, *opening*, *ready*, *committing*, *preparing* room,
*inspecting* what earlier runs left, *waiting* for ``retry`` after a failure,
*surveying* what is there after one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise
from typing import Final

from defender.audit.commands import (
    Command,
    Commit,
    Inspect,
    Open,
    Opened,
    Part,
    Prepare,
    Pressure,
    Removed,
    Retry,
    SegmentFile,
    Survey,
    Tail,
)
from defender.contract.spool import (
    HEADER_SIZE,
    NO_CHAIN,
    RECORD_OVERHEAD,
    SegmentHeader,
    encode_header,
    first_chain,
    seal,
    segment_name,
)

FIRST_RETRY: Final = 1.0
LONGEST_RETRY: Final = 30.0
#: Seconds until room for the next segment is asked for again.
PREPARE_AGAIN: Final = 30.0
#: What only denials, locks and the administration may fill, where a full spool refuses; of `max_bytes`.
RESERVE: Final = 0.05

FULL: Final = "the audit spool is full (audit.max_bytes)"


class State(Enum):
    """See the module."""

    CLOSED = "closed"
    OPENING = "opening"
    READY = "ready"
    COMMITTING = "committing"
    PREPARING = "preparing"
    INSPECTING = "inspecting"
    WAITING = "waiting"
    SURVEYING = "surveying"


@dataclass(frozen=True, slots=True)
class _Batch:
    """Sealed records that are not known to be on disk; `chain` is that of the record before the first."""

    first_seq: int
    count: int
    chain: bytes
    data: bytes


class Spool:
    """See the module.

    Args:
        agent: name of the defender.
        boot: the host's boot id, for the headers.
        segment_bytes: size of a segment.
        max_bytes: what all segments together may take, the one that is prepared included.
        refuse: at `max_bytes` take nothing more, instead of removing the oldest segment; one that the
            controller has all of may go.
    """

    def __init__(self, agent: str, boot: str, *, segment_bytes: int, max_bytes: int, refuse: bool) -> None:
        self.state = State.CLOSED
        self.problem = ""
        self.pressure = Pressure.NONE
        self.epoch = 0
        self.is_fresh = False
        """Whether the epoch began in this life of the defender."""
        self.next_seq = 0
        self.durable_seq = 0
        self.durable_chain = b""
        """The chain of the record `durable_seq`."""
        self.segments: list[SegmentFile] = []
        self.removed: list[Removed] = []
        """What made room since the shell last looked; it empties the list."""
        self.vanished: list[Removed] = []
        """The same of what somebody else took away."""
        self._agent = agent
        self._boot = boot
        self._segment_bytes = segment_bytes
        self._max_bytes = max_bytes
        self._refuse = refuse
        self._delivered = (0, 0)
        self._chain = b""
        self._tail: Tail | None = None
        self._spare = False
        self._predecessor = (0, 0, NO_CHAIN)
        self._prepare_at = 0.0
        self._batches: list[_Batch] = []
        self._parts: tuple[Part, ...] = ()
        self._leaving: list[tuple[SegmentFile, Removed]] = []
        self._attempt = 0
        self._opened = False

    # -- what is there

    @property
    def size(self) -> int:
        """Bytes that the segments take from `max_bytes`."""
        return sum(segment.size for segment in self.segments) + self._segment_bytes * self._spare

    @property
    def first_seq(self) -> int:
        """The oldest record's number in its epoch; 0 if there is no segment."""
        return self.segments[0].first_seq if self.segments else 0

    # -- inputs

    def start(self) -> list[Command]:
        """Once, before anything else."""
        self.state = State.OPENING
        return [Open()]

    def opened(self, found: Opened, now: float) -> list[Command]:
        self.epoch = found.epoch
        self.next_seq = found.next_seq
        self.durable_seq = found.next_seq - 1
        self.segments = list(found.segments)
        self._chain = self.durable_chain = found.chain
        self._tail = found.tail
        self._spare = found.spare
        self._predecessor = found.predecessor
        self.is_fresh = found.next_seq == 1 and found.tail is None
        self._opened = True
        self._works()
        return self._prepare(now)

    def begin_epoch(self, epoch: int) -> None:
        """Go on with the number 1 of another epoch, which is not here yet; only in state *ready*.

        It names the one that is left, and where that ends.
        """
        assert self.state is State.READY, self.state
        if self.durable_seq:
            self._predecessor = (self.epoch, self.durable_seq, self.durable_chain)
        self.epoch = epoch
        self.next_seq, self.durable_seq = 1, 0
        self._chain = self.durable_chain = first_chain(self._agent, epoch)
        self._tail = None
        self.is_fresh = True

    def delivered(self, epoch: int, seq: int) -> None:
        """The controller has all records up to this one, of earlier epochs too."""
        self._delivered = (epoch, seq)
        if self.pressure is not Pressure.FULL:
            self._press(full=False)

    def add(self, payloads: Sequence[bytes], micros: int) -> tuple[int, list[Command]]:
        """Give records their numbers and bring them to disk; only in state *ready*.

        Returns how many of `payloads` were taken, less than all only if the spool is full, and the commands.
        `micros` is the wall clock, for the header of a segment.
        """
        assert self.state is State.READY, self.state
        parts: list[Part] = []
        remove: list[str] = []
        taken = 0
        while taken < len(payloads):
            count = self._fitting(payloads, taken)
            if not count:
                if not self._begin(parts, remove, self.next_seq, self._chain, micros):
                    break
                continue
            chosen = payloads[taken : taken + count]
            data, chain = seal(self._chain, self.next_seq, chosen)
            self._batches.append(_Batch(self.next_seq, count, self._chain, data))
            self._put(parts, data)
            self.next_seq += count
            self._chain = chain
            taken += count
        was_full = self.pressure is Pressure.FULL
        self._press(full=taken < len(payloads))
        commands: list[Command] = []
        if parts:
            commands += self._commit(parts, remove)
        if self.pressure is Pressure.FULL and not was_full:
            commands.append(Retry(LONGEST_RETRY))
        return taken, commands

    def committed(self, now: float) -> list[Command]:
        """Everything that was added is on disk."""
        self._batches.clear()
        self.durable_seq = self.next_seq - 1
        self.durable_chain = self._chain
        self._left(len(self._leaving))
        self._works()
        return self._prepare(now)

    def failed(self, reason: str, done: int = 0, removed: int = 0) -> list[Command]:
        """An `Open`, `Survey` or `Commit` did not work.

        `done` parts were brought to disk before, and `removed` segments are gone.
        """
        self._left(removed)
        for batch in self._batches[:done]:
            self.durable_seq = batch.first_seq + batch.count - 1
        if done:
            self.durable_chain = self._batches[done].chain if done < len(self._batches) else self._chain
        del self._batches[:done]
        committing = self.state is State.COMMITTING
        if committing:
            self._tail = None
            self.segments = [each for each in self.segments if not self._holds_unsynced(each)]
        self._attempt += 1
        if committing and self._attempt == 1:
            # Another file may well work, and those who wait are spared the refusal.
            self.state = State.SURVEYING
            part = self._parts[done]
            return [Survey() if part.fresh else Survey((part.name, part.offset))]
        self.problem = reason
        self.state = State.WAITING
        return [Retry(min(FIRST_RETRY * 2 ** min(max(0, self._attempt - 2), 10), LONGEST_RETRY))]

    def surveyed(
        self, segments: Sequence[SegmentFile], spare: bool, micros: int, now: float
    ) -> list[Command]:
        """What is in the directory now; what is not known to be on disk goes to a new segment."""
        there = {segment.name for segment in segments}
        for index, segment in enumerate(self.segments):
            if segment.name not in there:
                self.vanished.append(self._range(index))
        self.segments = list(segments)
        self._spare = spare
        if self._tail is not None and self._tail.name not in there:
            self._tail = None
        if not self._batches:
            self.pressure = Pressure.NONE
            self._works()
            return self._prepare(now)
        parts: list[Part] = []
        remove: list[str] = []
        for batch in self._batches:
            full = self._tail is None or self._tail.offset + len(batch.data) > self._tail.capacity
            if full and not self._begin(parts, remove, batch.first_seq, batch.chain, micros):
                return self.failed(FULL)
            self._put(parts, batch.data)
        return self._commit(parts, remove)

    def retry(self) -> list[Command]:
        """The delay of a `Retry` is over."""
        if self.state is State.WAITING and not self._opened:
            return self.start()
        # Where the spool is full, somebody may have made room.
        if self.state is State.WAITING or (self.state is State.READY and self.pressure is Pressure.FULL):
            self.state = State.SURVEYING
            return [Survey()]
        if self.pressure is Pressure.FULL:
            return [Retry(LONGEST_RETRY)]
        return []

    def prepared(self) -> list[Command]:
        """There is room for the next segment."""
        self._spare = True
        self._left(len(self._leaving))
        self.state = State.READY
        return []

    def unprepared(self, now: float, removed: int = 0) -> list[Command]:
        """There is no room for the next segment, which is no failure before it is needed."""
        self._prepare_at = now + PREPARE_AGAIN
        self._left(removed)
        self.state = State.READY
        return []

    def inspect(self) -> list[Command]:
        """The shell has time for a look at what earlier runs left; only in state *ready*."""
        assert self.state is State.READY, self.state
        self.state = State.INSPECTING
        return [Inspect()]

    def inspected(self, renamed: Mapping[str, str]) -> list[Command]:
        """The look is over; some segments have other names now."""
        self.segments = [
            replace(segment, name=renamed.get(segment.name, segment.name)) for segment in self.segments
        ]
        self.state = State.READY
        return []

    # -- places

    def _commit(self, parts: list[Part], remove: list[str]) -> list[Command]:
        self._parts = tuple(parts)
        self.state = State.COMMITTING
        return [Commit(self._parts, tuple(remove))]

    def _fitting(self, payloads: Sequence[bytes], start: int) -> int:
        """How many of the payloads from `start` on the segment takes."""
        if self._tail is None:
            return 0
        room = self._tail.capacity - self._tail.offset
        rest = payloads[start:] if start else payloads
        if sum(map(len, rest)) + RECORD_OVERHEAD * len(rest) <= room:
            return len(rest)
        count = 0
        for payload in rest:
            room -= len(payload) + RECORD_OVERHEAD
            if room < 0:
                break
            count += 1
        return count

    def _put(self, parts: list[Part], data: bytes) -> None:
        """Place bytes at the tail; every batch is a part of its own, so that `done` counts batches."""
        tail = self._tail
        assert tail is not None
        if parts and parts[-1].fresh and parts[-1].name == tail.name and len(parts[-1].data) == HEADER_SIZE:
            parts[-1] = replace(parts[-1], data=parts[-1].data + data)
        else:
            parts.append(Part(tail.name, tail.offset, data, fresh=False))
        self._tail = Tail(tail.name, tail.offset + len(data), tail.capacity)

    def _begin(self, parts: list[Part], remove: list[str], first_seq: int, chain: bytes, micros: int) -> bool:
        """Begin a segment, with the room that is ready or with new room; False if there is none."""
        name = segment_name(self.epoch, first_seq)
        if self._spare:
            self._spare = False
        else:
            leaving = self._leave(name)
            if leaving is None:
                return False
            remove += leaving
        header = SegmentHeader(
            agent=self._agent,
            epoch=self.epoch,
            first_seq=first_seq,
            previous=chain,
            created=micros,
            boot=self._boot,
            predecessor=self._predecessor[0],
            predecessor_seq=self._predecessor[1],
            predecessor_chain=self._predecessor[2],
        )
        self.segments = [segment for segment in self.segments if segment.name != name]
        self.segments.append(SegmentFile(name, self.epoch, first_seq, self._segment_bytes))
        parts.append(Part(name, 0, encode_header(header), fresh=True))
        self._tail = Tail(name, HEADER_SIZE, self._segment_bytes)
        return True

    def _leave(self, name: str = "") -> list[str] | None:
        """Which segments make room for one more; None if that is not to be. `name` is replaced anyway."""
        over = self.size + self._segment_bytes - self._max_bytes
        over -= sum(segment.size for segment in self.segments if segment.name == name)
        names: list[str] = []
        current = self._tail.name if self._tail is not None else ""
        if self._refuse and over > sum(segment.size for segment in self.segments[: self._given_away()]):
            return None
        while over > 0:
            oldest = self.segments[0] if self.segments else None
            if oldest is None or oldest.name in (current, name) or self._holds_unsynced(oldest):
                break  # a limit that was made smaller than what is in use
            self._leaving.append((oldest, self._range(0)))
            self.segments.pop(0)
            names.append(oldest.name)
            over -= oldest.size
        return names

    def _given_away(self) -> int:
        """How many of the segments the controller has all of; the one that is written to is none of them."""
        epoch, seq = self._delivered
        count = 0
        for number, (segment, following) in enumerate(pairwise(self.segments), 1):
            if segment.epoch != epoch:
                # Of an earlier epoch, if one of this epoch comes after it.
                whole = any(each.epoch == epoch for each in self.segments[number:])
            else:
                whole = following.epoch == epoch and following.first_seq - 1 <= seq
            if not whole:
                break
            count = number
        return count

    def _range(self, index: int) -> Removed:
        """What a segment holds, as far as the next one tells."""
        segment = self.segments[index]
        last = 0
        if index + 1 < len(self.segments):
            following = self.segments[index + 1]
            last = following.first_seq - 1 if following.epoch == segment.epoch else 0
        elif segment.epoch == self.epoch:
            last = self.durable_seq
        return Removed(segment.name, segment.epoch, segment.first_seq, last)

    def _holds_unsynced(self, segment: SegmentFile) -> bool:
        if not self._batches or segment.epoch != self.epoch:
            return False
        return segment.first_seq >= self._batches[0].first_seq

    def _prepare(self, now: float) -> list[Command]:
        """Have room for the next segment while the disk still has some."""
        if self._spare or now < self._prepare_at:
            return []
        remove = self._leave()
        if remove is None:
            return []
        self.state = State.PREPARING
        return [Prepare(tuple(remove))]

    # -- conditions

    def _works(self) -> None:
        self.state = State.READY
        self.problem = ""
        self._attempt = 0
        if self.pressure is not Pressure.FULL:
            self._press(full=False)

    def _left(self, count: int) -> None:
        """The first `count` of the segments that were to go are gone; the others are still there."""
        self.removed += [removed for _, removed in self._leaving[:count]]
        self.segments[:0] = [segment for segment, _ in self._leaving[count:]]
        self._leaving.clear()

    def _press(self, *, full: bool) -> None:
        if not self._refuse:
            return
        tail = self._tail
        used = sum(segment.size for segment in self.segments[self._given_away() :])
        used -= tail.capacity - tail.offset if tail is not None else 0
        if full:
            self.pressure = Pressure.FULL
        else:
            over = used > self._max_bytes * (1 - RESERVE)
            self.pressure = Pressure.RESERVED if over else Pressure.NONE
