"""Records as a defender sends them: what a batch is, and whether its bytes are what they should be."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, NamedTuple

from controller.store.errors import RecordsError
from defender.contract.spool import MAX_SEQ, Place, Record, SegmentHeader, scan

#: Records and bytes of one batch.
MAX_RECORDS: Final = 10_000
MAX_BYTES: Final = 8 * 1024 * 1024

_NO_HEADER: Final = SegmentHeader("", 1, 1, bytes(32))


class Predecessor(NamedTuple):
    """What a segment's header says of the epoch before its own: `seq` and `chain` of its last record."""

    epoch: int
    seq: int
    chain: bytes


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of one epoch of a defender, as its spool has them, one after the other.

    `defender` is its id. The sequence numbers rise by one from `first_seq` on; `previous` is the chain before
    the first record, empty where damage has made it unknown. `agent` is the name in the segments' headers and
    `predecessor` the epoch before, as they say; "" and None where the defender does not repeat them. `lost`
    is why records before these are missing, "" if it does not say.
    """

    defender: str
    agent: str
    epoch: int
    first_seq: int
    previous: bytes
    records: bytes
    predecessor: Predecessor | None = None
    lost: str = ""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a batch. It is on disk.

    `seq` and `chain` are those of its last record: what to acknowledge. `stored` records are new,
    `repeated` were there, `missing` are known to be lost before them (-1: some, nobody knows how many).
    `quarantined` says why the records were put aside, "" if they were not. `position` is that of the last
    event stored.
    """

    seq: int
    chain: bytes
    stored: int = 0
    repeated: int = 0
    missing: int = 0
    quarantined: str = ""
    position: int = 0


class Cursor(NamedTuple):
    """How far an epoch of a defender is stored: number and chain of its last record.

    `agent` is the name that its chain begins with, `gaps` how often something was missing or put aside,
    `received` when the last record came, in unix microseconds.
    """

    epoch: int
    seq: int
    chain: bytes
    agent: str
    gaps: int
    received: int


def check(batch: Batch) -> list[Record]:
    """The records of a batch, each one's checksum and place in the chain from `previous` on checked.

    Raises RecordsError for bytes that are not whole records, numbered without a hole and chained.
    """
    if (
        not 0 < batch.first_seq <= MAX_SEQ
        or not 0 < batch.epoch < 2**64
        or len(batch.previous) not in (0, 32)
    ):
        raise RecordsError(f"no records begin with epoch {batch.epoch}, sequence number {batch.first_seq}")
    if len(batch.records) > MAX_BYTES:
        raise RecordsError(f"a batch has {len(batch.records)} bytes")
    found = scan(batch.records, _NO_HEADER, Place(0, batch.first_seq - 1, batch.previous))
    records = found.records
    if found.damage or found.place.offset != len(batch.records):
        reason = found.damage[0].reason if found.damage else found.torn or "there are bytes behind the last"
        raise RecordsError(f"after record {batch.first_seq - 1 + len(records)}: {reason}")
    if not records or len(records) > MAX_RECORDS:
        raise RecordsError(f"a batch has {len(records)} records")
    if records[-1].seq - batch.first_seq + 1 != len(records):
        raise RecordsError("the sequence numbers of a batch have a hole")
    return records


def chained(previous: bytes, seq: int, payload: bytes) -> bytes:
    """The chain of a record."""
    return hashlib.sha256(previous + seq.to_bytes(8) + payload).digest()


def chain_before(batch: Batch, records: list[Record], expected: bytes) -> bytes:
    """The chain before the first record of a batch; where the defender does not know it, `expected` if the
    first record follows from that.
    """
    if batch.previous:
        return batch.previous
    first = records[0]
    return expected if chained(expected, first.seq, first.payload) == first.chain else b""
