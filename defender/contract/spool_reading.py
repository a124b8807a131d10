"""Reads a spool's segments as one: records in order of epoch and sequence number, and all that is amiss.

Pure: the caller lists the directory and reads files, `spool_order` puts them in order, and a `Walk` is led
through them, segment by segment. `walk` does that for files that nobody writes; who follows a living spool
calls the methods of `Walk` itself.

Nothing is fatal and nothing is passed over in silence: what is not a good record becomes a `Finding`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from typing import Final, NamedTuple

from defender.contract.packing import is_closing
from defender.contract.spool import (
    HEADER_SIZE,
    Damage,
    Place,
    Record,
    Scan,
    SegmentHeader,
    SpoolError,
    first_chain,
    is_quarantined,
    scan,
)
from defender.contract.spool_order import NO_HEADER, Epoch, Segment, arrange, flatten, segment_of


class Trouble(Enum):
    """What a `Finding` is about."""

    #: Events are missing.
    GAP = "gap"
    #: An epoch ended without its closing record: events at its end may be missing.
    UNCLOSED = "unclosed"
    #: Bytes of a segment are not what was written.
    DAMAGE = "damage"
    #: Something was altered or put elsewhere: the hash chain does not hold.
    CHAIN = "chain"
    #: Two segments hold different records of one sequence number.
    CONFLICT = "conflict"
    #: A segment belongs to another defender, or is named as another segment.
    FOREIGN = "foreign"
    #: A segment's last bytes are no record: its writing was cut off, or goes on. Nothing is lost by it that
    #: was said to be on disk, unless a `GAP` follows.
    TORN = "torn"
    #: Bytes of a quarantined segment are not what was written; the next segment has all of it.
    MENDED = "mended"
    #: A segment was made, and nothing was written to it.
    EMPTY = "empty"


_NOTES: Final = frozenset({Trouble.TORN, Trouble.MENDED, Trouble.EMPTY})


class Finding(NamedTuple):
    """Something amiss: where, which sequence numbers are missing (0 and 0 for none or unknown), and why."""

    trouble: Trouble
    epoch: int
    file: str
    offset: int
    first_seq: int
    last_seq: int
    reason: str

    @property
    def missing(self) -> int:
        """How many events are known to be missing."""
        return self.last_seq - self.first_seq + 1 if self.last_seq else 0

    @property
    def harmless(self) -> bool:
        """Whether nothing is lost or altered by it."""
        return self.trouble in _NOTES


class Entry(NamedTuple):
    """A good record and the segment that holds it."""

    epoch: Epoch
    segment: Segment
    record: Record


Item = Entry | Finding


class Walk:
    """Follows the records through the segments, which it is given in order.

    For each segment `enter`, then `read` with what a scan of it found, once or in several parts, and `leave`
    where it is known that nothing will be appended to it. Between epochs `enter` notices by itself. What a
    segment repeats of the one before is passed over if it is the same.
    """

    def __init__(self) -> None:
        self.repeated = 0
        """Records that two segments hold alike."""
        self.last_seq = 0
        """Sequence number of the last record of the present epoch, 0 before the first."""
        self.place: Place | None = None
        """Where the last scan of the present segment ended; None before the first."""
        self._epoch: Epoch | None = None
        self._segment: Segment | None = None
        self._expected = 0  # 0: any number may come first
        self._chain = b""
        self._closed = False
        # Of the epoch before that had records: its number, the last record's and its chain.
        self._before = (0, 0, b"")
        # What the next segment may repeat, by ascending number: what is held back, the chain of what is not.
        self._held: dict[int, Entry] = {}
        self._given: dict[int, bytes] = {}
        self._damage: deque[tuple[str, Damage]] = deque()
        self._conflict = False

    @property
    def segment(self) -> Segment | None:
        """The present segment, None before the first."""
        return self._segment

    def enter(self, epoch: Epoch, segment: Segment, *, oldest: bool = False) -> Iterator[Item]:
        """Begin a segment; `oldest` if what was before it may have been removed in good order."""
        if self._epoch is None or self._epoch.number != epoch.number:
            yield from self._end()
            self._epoch = epoch
            yield from self._succeed(epoch.header, segment.name)
            self._expected = 0 if oldest else 1
            self.last_seq, self._chain, self._closed = 0, b"", False
            self._given.clear()
        self._segment = segment
        self._conflict = False
        header = segment.header
        if segment.problem and segment.problem != NO_HEADER:
            trouble = Trouble.FOREIGN if header.agent else Trouble.DAMAGE
            yield Finding(trouble, epoch.number, segment.name, 0, 0, 0, segment.problem)
        chain = b""
        if header.first_seq == 1:
            chain = first_chain(header.agent, header.epoch)
        elif header.first_seq - 1 in self._given:
            chain = self._given[header.first_seq - 1]
        elif header.first_seq - 1 == self.last_seq:
            chain = self._chain
        self._given = {seq: chain for seq, chain in self._given.items() if seq >= header.first_seq}
        if chain and header.previous and chain != header.previous:
            reason = "the segment does not follow the one before it: its hash chain begins elsewhere"
            yield Finding(Trouble.CHAIN, epoch.number, segment.name, 0, 0, 0, reason)

    def read(self, found: Scan, below: int = 0) -> Iterator[Item]:
        """Take what a scan of the present segment found.

        What has sequence numbers from `below` on is held back for the next segment, which begins with that
        number; 0 if none is known to follow.
        """
        assert self._epoch is not None
        assert self._segment is not None
        epoch, segment, held, given = self._epoch, self._segment, self._held, self._given
        damage = iter(found.damage)
        following = next(damage, None)
        for record in found.records:
            while following is not None and following.start < record.offset:
                self._damage.append((segment.name, following))
                following = next(damage, None)
            seq = record.seq
            entry = Entry(epoch, segment, record)
            if seq == self._expected and not held and not given and (not below or seq < below):
                self._expected, self.last_seq, self._chain = seq + 1, seq, record.chain
                yield entry
            else:
                yield from self._take(entry, below)
        while following is not None:
            self._damage.append((segment.name, following))
            following = next(damage, None)
        self.place = found.place
        if found.records:
            self._closed = is_closing(found.records[-1].payload)

    def remember(self, found: Scan) -> None:
        """Keep in mind what was given out: a segment that is not there yet may begin before its end."""
        for record in found.records:
            self._given[record.seq] = record.chain

    def leave(self, found: Scan) -> Iterator[Item]:
        """Nothing more will be appended to the present segment; `found` is the scan of its end."""
        assert self._epoch is not None
        assert self._segment is not None
        epoch, segment = self._epoch.number, self._segment
        if segment.problem == NO_HEADER:
            trouble = Trouble.DAMAGE if found.records else Trouble.EMPTY
            yield Finding(trouble, epoch, segment.name, 0, 0, 0, segment.problem)
        if found.torn:
            offset, last, _ = found.place
            self._damage.append((segment.name, Damage(offset, offset, last + 1, 0, found.torn)))

    def end(self) -> Iterator[Item]:
        """There are no more segments; that the last epoch is not closed is in order, it may still go on."""
        yield from self._flush(0)
        for name, damage in self._damage:
            yield self._without_loss(name, damage)
        self._damage.clear()

    def skip(self) -> Iterator[Item]:
        """Segments were removed in this moment: what comes next begins anew."""
        yield from self.end()
        self._epoch = self._segment = None
        self._before = (0, 0, b"")

    def _without_loss(self, name: str, damage: Damage) -> Finding:
        """Damage from which no missing record is known."""
        trouble = Trouble.DAMAGE
        if damage.start == damage.end:
            trouble = Trouble.TORN
        elif damage.next_seq and is_quarantined(name):
            trouble = Trouble.MENDED
        number = self._epoch.number if self._epoch else 0
        return Finding(trouble, number, name, damage.start, 0, 0, damage.reason)

    def _end(self) -> Iterator[Item]:
        """The present epoch is over."""
        yield from self.end()
        epoch, segment = self._epoch, self._segment
        if epoch is None or segment is None:
            return
        if self.last_seq:
            self._before = (epoch.number, self.last_seq, self._chain)
        if not self._closed:
            reason = "the defender did not end this epoch in good order: its last events may be missing"
            yield Finding(Trouble.UNCLOSED, epoch.number, segment.name, 0, 0, 0, reason)

    def _succeed(self, header: SegmentHeader, name: str) -> Iterator[Item]:
        """What the header of a new epoch says of the one before it."""
        number, last, chain = self._before
        if not number or not header.predecessor:
            return
        if header.predecessor != number:
            reason = f"epoch {header.predecessor:016x}, which this one follows, is not in this place"
            yield Finding(Trouble.GAP, header.epoch, name, 0, 0, 0, reason)
        elif header.predecessor_seq > last:
            reason = "events that were on disk when the defender started again are gone"
            yield Finding(Trouble.GAP, number, name, 0, last + 1, header.predecessor_seq, reason)
        elif header.predecessor_seq == last and chain != header.predecessor_chain:
            reason = "the epoch before does not end as it did when this one began"
            yield Finding(Trouble.CHAIN, header.epoch, name, 0, 0, 0, reason)

    def _take(self, entry: Entry, below: int) -> Iterator[Item]:
        """A record that does not simply follow the one before."""
        seq, chain = entry.record.seq, entry.record.chain
        yield from self._flush(min(seq, below) if below else seq)
        earlier = self._held.pop(seq, None)
        given = self._given.pop(seq, None)
        known = earlier.record.chain if earlier else given
        if known == chain:
            self.repeated += 1
            if given is not None:
                return
        elif known is not None and not self._conflict:
            self._conflict = True
            reason = f"holds another record {seq} than the segment before it"
            name, offset = entry.segment.name, entry.record.offset
            yield Finding(Trouble.CONFLICT, entry.epoch.number, name, offset, 0, 0, reason)
        if below and seq >= below:
            if self._held and seq < next(reversed(self._held)):
                self._held = dict(sorted([*self._held.items(), (seq, entry)]))
            else:
                self._held[seq] = entry
            return
        yield from self._give(entry)

    def _flush(self, before: int) -> Iterator[Item]:
        """Give out what was held back and has a number below `before`, 0 for all."""
        while self._held:
            seq = next(iter(self._held))
            if before and seq >= before:
                return
            yield from self._give(self._held.pop(seq))

    def _give(self, entry: Entry) -> Iterator[Item]:
        seq = entry.record.seq
        if self._expected and seq > self._expected:
            yield from self._gap(entry, self._expected, seq - 1)
        if seq >= self._expected:
            self._expected, self.last_seq, self._chain = seq + 1, seq, entry.record.chain
            self._closed = is_closing(entry.record.payload)
        yield entry

    def _gap(self, entry: Entry, first: int, last: int) -> Iterator[Finding]:
        """Why these numbers are missing: the damage that lies where they should be, if there is one."""
        epoch = entry.epoch.number
        while self._damage:
            name, damage = self._damage[0]
            if damage.next_seq and damage.next_seq <= first:
                yield self._without_loss(name, damage)
            elif damage.first_seq <= first and (not damage.next_seq or damage.next_seq > last):
                self._damage.popleft()
                yield Finding(Trouble.DAMAGE, epoch, name, damage.start, first, last, damage.reason)
                return
            else:
                break
            self._damage.popleft()
        name, offset = entry.segment.name, entry.record.offset
        yield Finding(Trouble.GAP, epoch, name, offset, first, last, "events are missing here")


def foreign_findings(epochs: Sequence[Epoch]) -> list[Finding]:
    """A finding for each segment of another defender; their records are not read."""
    return [
        Finding(Trouble.FOREIGN, epoch.number, segment.name, 0, 0, 0, f"belongs to defender {epoch.agent!r}")
        for epoch in epochs
        if epoch.foreign
        for segment in epoch.segments
    ]


def walk(
    segments: Sequence[tuple[Epoch, Segment]],
    load: Callable[[Segment], bytes | None],
    state: Walk | None = None,
    *,
    living: bool = False,
) -> Iterator[Item]:
    """Every good record of segments that `flatten` gave, and all that is amiss.

    `segments` may begin in the middle of the spool; nothing is said of what comes before. `load` gives a
    file's content, None if it was removed meanwhile, with all before it; it raises SpoolError if the file
    cannot be read. With `living`, more may come: the end of the last segment is not judged, and `state` can
    go on from there.
    """
    state = state or Walk()
    oldest = True
    for place, (epoch, segment) in enumerate(segments):
        trouble = ""
        try:
            data = load(segment)
        except SpoolError as error:
            data, trouble = b"", str(error)
        if data is None:
            yield from state.skip()
            oldest = True
            continue
        yield from state.enter(epoch, segment, oldest=oldest)
        oldest = False
        if trouble:
            yield Finding(Trouble.DAMAGE, epoch.number, segment.name, 0, 0, 0, trouble)
        following = segments[place + 1] if place + 1 < len(segments) else None
        below = following[1].header.first_seq if following and following[0] == epoch else 0
        found = scan(data.ljust(HEADER_SIZE, b"\0"), segment.header)
        yield from state.read(found, below)
        if living and following is None:
            state.remember(found)
        else:
            yield from state.leave(found)
    if not living:
        yield from state.end()


def read_spool(files: Iterable[tuple[str, bytes]], agent: str = "") -> Iterator[Item]:
    """All of a spool whose files are in memory: names and contents."""
    contents = dict(files)
    segments = [segment_of(name, data[:HEADER_SIZE]) for name, data in contents.items()]
    epochs = arrange([segment for segment in segments if segment is not None], agent)
    yield from foreign_findings(epochs)
    yield from walk(flatten(epochs), lambda segment: contents[segment.name])
