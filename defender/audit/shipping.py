"""Reads the spool in order for the controller: records that are certainly on disk, after those it has.

Pure: the shell says which segments there are and how far they are durable, reads the slices that `next` names
and gives each to `feed`, which gives batches. A batch holds records as they stand in the segment, byte for
byte, with consecutive sequence numbers. Where records are missing the next batch begins behind the gap, and
the controller, which knows what it has, notes that.

What holds:

* No record leaves before it is known to be on disk.
* A record that cannot be read (damage, a segment that made room) is passed over, never an end.
* Records come in the order in which they were made, epoch after epoch, each once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from defender.audit.commands import SegmentFile
from defender.audit.inspection import Slice
from defender.audit.recovery import first_place
from defender.contract.spool import (
    HEADER_SIZE,
    MAX_PAYLOAD,
    RECORD_OVERHEAD,
    Place,
    Record,
    Scan,
    SegmentHeader,
    scan,
)
from defender.contract.spool_order import Segment, segment_of

#: Bytes of a slice: about a millisecond of work, in which the reactor has to wait for the interpreter.
SLICE: Final = 128 * 1024
#: The most records of one batch, and their bytes; one record of the largest size is less.
BATCH: Final = 200
BATCH_BYTES: Final = MAX_PAYLOAD + RECORD_OVERHEAD

_MADE_ROOM: Final = "made room for newer ones, or was removed"

_Key = tuple[int, int]
"""A segment's epoch and first sequence number: its name changes when it is put aside."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of one epoch with the numbers `first_seq` to `last_seq`, as the segment holds them.

    `previous` is the hash chain before the first of them, empty if that is not known (behind damage), and
    `chain` that of the last one. `header` is the segment's, None if it cannot be read. `lost` says why
    numbers before `first_seq` are missing, as far as that is known here; empty if none are.
    """

    epoch: int
    first_seq: int
    previous: bytes
    data: bytes
    count: int
    last_seq: int
    chain: bytes
    header: SegmentHeader | None
    lost: str


class Shipping:
    """See the module. Nothing is wanted before `resume` has been called."""

    def __init__(self) -> None:
        self._wanted: Slice | None = None
        self._read_out: Slice | None = None  # what the shell is reading
        self._stale = False  # what it is reading is of no use any more
        self._segments: list[SegmentFile] = []
        self._epoch = 0
        self._durable = 0
        self._running = False
        self._key: _Key | None = None  # of the segment that is read
        self._segment: Segment | None = None  # with its header, once that was read
        self._place = Place(0, 0, b"")
        self._size = SLICE
        self._after: tuple[int, int] = (0, 0)  # epoch and number of the last record the controller has

    # -- what the shell knows

    def spool(self, segments: Sequence[SegmentFile], epoch: int, durable: int) -> None:
        """What is there: segments in order, and how far the present `epoch` is on disk."""
        self._segments = list(segments)
        self._epoch, self._durable = epoch, durable
        self._choose()

    def resume(self, epoch: int, seq: int) -> None:
        """Begin behind the last record that the controller has stored; (0, 0) if it has none.

        Of an epoch that is not there any more everything is sent that is left: the controller knows which
        epochs it has had.
        """
        self._after = (epoch, seq)
        self._running = True
        self._stale = self._read_out is not None
        self._enter(self._segment_after(epoch, seq))

    def pause(self) -> None:
        """Want nothing until `resume`: the channel is gone."""
        self._running = False
        self._stale = self._read_out is not None
        self._enter(None)

    @property
    def position(self) -> tuple[int, int]:
        """Epoch and number of the last record that a batch had, or that the controller said it has."""
        return self._after

    # -- reading

    def next(self) -> Slice | None:
        """What is to be read now; None if nothing is, or if `feed` was not called for the one before."""
        if self._read_out is not None or self._wanted is None:
            return None
        self._read_out, self._wanted = self._wanted, None
        return self._read_out

    def feed(self, data: bytes | None) -> list[Batch]:
        """The bytes that `next` named, fewer at the end of the file, None if it is gone; what to send."""
        wanted, self._read_out = self._read_out, None
        if wanted is None or self._stale or self._key is None:
            self._stale = False
            self._choose()
            return []
        if data is None:
            # It made room, or was put aside a moment ago: then it is there under another name.
            if self._name_of(self._key) == wanted.name:
                self._enter(self._key_behind(self._key))
            self._choose()
            return []
        if self._segment is None:
            self._read_header(wanted.name, data)
            self._choose()
            return []
        batches = self._read(data, whole=len(data) < wanted.size)
        self._choose()
        return batches

    def _read_header(self, name: str, data: bytes) -> None:
        segment = segment_of(name, data)
        if segment is None:
            self._enter(self._key_behind(self._key))
            return
        self._segment = segment
        self._place = first_place(segment)

    def _read(self, data: bytes, *, whole: bool) -> list[Batch]:
        """Take the records of a slice; `whole` if the file ends with it."""
        segment, before = self._segment, self._place
        assert segment is not None
        found = scan(data, segment.header, before)
        durable = self._durable if segment.header.epoch == self._epoch else None
        records = [each for each in found.records if durable is None or each.seq <= durable]
        batches = self._batches(records, data, before, found)
        if records:
            last = records[-1]
            self._place = Place(_end_of(last), last.seq, last.chain)
            self._size = SLICE
        elif found.records:
            # What was durable before them cannot be read any more.
            assert durable is not None
            self._place = Place(before.offset, durable, b"")
        elif not whole:
            # Damage, a large record, or nothing but zeros: what follows tells.
            self._size *= 8
            return batches
        if whole and len(records) == len(found.records):
            self._finish()
        return batches

    def _batches(self, records: list[Record], data: bytes, before: Place, found: Scan) -> list[Batch]:
        """Those behind the controller's, divided where numbers are missing or they are too many."""
        segment = self._segment
        assert segment is not None
        header = segment.header
        batches: list[Batch] = []
        last, chain = before.seq, before.chain
        index = 0
        while index < len(records):
            first = records[index]
            previous = chain if first.seq == last + 1 else b""
            end = index
            start = first.offset
            while end < len(records) and records[end].seq == first.seq + end - index:
                stop = _end_of(records[end])
                if end > index and (end - index == BATCH or stop - start > BATCH_BYTES):
                    break
                end += 1
            run = records[index:end]
            last, chain = run[-1].seq, run[-1].chain
            index = end
            epoch, at = self._after
            known = at if epoch == header.epoch else 0
            if last <= known:
                continue
            if run[0].seq <= known:
                # The controller has the first of them.
                index -= last - known
                last, chain = known, run[known - run[0].seq].chain
                continue
            lost = ""
            if run[0].seq != known + 1:
                lost = found.damage[0].reason if found.damage else _MADE_ROOM
            stop = _end_of(run[-1])
            batches.append(
                Batch(
                    header.epoch,
                    run[0].seq,
                    previous,
                    data[start - before.offset : stop - before.offset],
                    len(run),
                    last,
                    chain,
                    None if segment.problem else header,
                    lost,
                )
            )
            self._after = (header.epoch, last)
        return batches

    # -- the way through the segments

    def _choose(self) -> None:
        """Say what is wanted next."""
        if not self._running or self._read_out is not None:
            return
        if self._key is None or self._name_of(self._key) is None:
            self._enter(self._segment_after(*self._after))
        if self._key is None:
            return
        name = self._name_of(self._key)
        assert name is not None
        if self._segment is None:
            self._wanted = Slice(name, 0, HEADER_SIZE)
            return
        following = self._key_behind(self._key)
        if following is not None and self._is_done(following):
            self._enter(following)
            self._choose()
        elif not (self._place.offset < 0 or self._waits()):
            self._wanted = Slice(name, self._place.offset, self._size)

    def _is_done(self, following: _Key) -> bool:
        """Whether nothing more can come of this segment."""
        assert self._key is not None
        same = following[0] == self._key[0]
        return self._place.offset < 0 or (same and self._place.seq + 1 >= following[1])

    def _waits(self) -> bool:
        """Whether the next record is not known to be on disk."""
        assert self._key is not None
        return self._key[0] == self._epoch and self._place.seq >= self._durable

    def _finish(self) -> None:
        """The end of the file was read: nothing more is in this segment, unless it is being written."""
        assert self._key is not None
        if self._waits():
            return
        if self._key[0] == self._epoch and self._key_behind(self._key) is None:
            # What should be here cannot be read; what follows it will be.
            self._place = Place(self._place.offset, self._durable, b"")
        else:
            self._place = self._place._replace(offset=-1)

    def _enter(self, key: _Key | None) -> None:
        self._key, self._segment = key, None
        self._size = SLICE
        self._wanted = None

    def _segment_after(self, epoch: int, seq: int) -> _Key | None:
        """The segment that holds the record behind this one, or what comes first if there is none such."""
        keys = [(each.epoch, each.first_seq) for each in self._segments]
        own = [key for key in keys if key[0] == epoch and key[1] <= seq + 1]
        if own:
            return own[-1]
        later = [key for key in keys if key[0] == epoch]
        return later[0] if later else keys[0] if keys else None

    def _key_behind(self, key: _Key | None) -> _Key | None:
        keys = [(each.epoch, each.first_seq) for each in self._segments]
        if key is None or key not in keys:
            return None
        index = len(keys) - keys[::-1].index(key)
        return keys[index] if index < len(keys) else None

    def _name_of(self, key: _Key) -> str | None:
        names = [each.name for each in self._segments if (each.epoch, each.first_seq) == key]
        return names[-1] if names else None


def _end_of(record: Record) -> int:
    return record.offset + RECORD_OVERHEAD + len(record.payload)
