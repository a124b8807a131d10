"""The spool's segments and records: bytes in, bytes out. docs/specification/spool.md is the normative text.

A segment is a file of a header of `HEADER_SIZE` bytes, records, and zeros up to its preallocated size. A
record holds its payload's length, a CRC, its sequence number, the hash chain so far and the payload; the
chain ties it to everything recorded before it in its epoch (one run of the defender). A payload is what
`packing.assemble` makes: it begins with `PAYLOAD_MARK`, and that is how a reader finds the next record
behind damage. No text that a client sends can hold that mark, since it is not UTF-8.

Reading several segments in order is `spool_reading`'s part.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, NamedTuple
from zlib import crc32

from defender.contract.errors import ContractError

#: Bytes of a segment where the settings say nothing else, and the most that a reader takes for one.
SEGMENT_SIZE: Final = 16 * 1024 * 1024
MAX_SEGMENT_SIZE: Final = 256 * 1024 * 1024
#: Bytes before the first record.
HEADER_SIZE: Final = 512
#: Bytes of a record besides its payload.
RECORD_OVERHEAD: Final = 48
#: Bytes of the largest payload, and of the largest that a segment of a given size holds: see `room`.
MAX_PAYLOAD: Final = 1024 * 1024
#: The last sequence number; the first is 1.
MAX_SEQ: Final = 2**63 - 1
#: What follows the map header in every payload: the key `id` and the head of 16 bytes of msgpack's bin.
PAYLOAD_MARK: Final = b"\xa2id\xc4\x10"
#: Bytes of payloads that one scan checks in search of a record behind damage.
MAX_SEARCH: Final = 256 * 1024 * 1024

VERSION: Final = 1
MAGIC: Final = b"DFSPOOL\n"
#: Bytes of UTF-8 of a header's texts.
MAX_AGENT: Final = 256
MAX_BOOT: Final = 64
NO_CHAIN: Final = bytes(32)

_HEADER: Final = struct.Struct(">8sHHHxxQQQ32sQQ32s")
_HEADER_CRC: Final = struct.Struct(">I")
_TEXTS: Final = _HEADER.size
_RECORD: Final = struct.Struct(">IIQ32s")
_HEAD: Final = struct.Struct(">II")
_SEQ: Final = struct.Struct(">Q")
_NAME: Final = re.compile(r"([0-9a-f]{16})-([0-9]{20})\.seg(\.bad(\.[1-9][0-9]{0,5})?)?", re.ASCII)


class SpoolError(ContractError):
    """Bytes that should be a header, a record or a payload of a spool are not."""


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What a segment says of itself.

    `epoch` (1 to 2**64 - 1) is a random number, new with each start of the defender `agent`; `first_seq` is
    the sequence number of the segment's first record and `previous` the chain before it: `first_chain` in an
    epoch's first segment, else the chain of the record before. `created` is unix time in microseconds,
    `boot` the id of the machine's boot.

    All segments of an epoch name the epoch that the spool held last before theirs, with the sequence number
    and the chain of its last record: `predecessor`, 0 if there was none.
    """

    agent: str
    epoch: int
    first_seq: int
    previous: bytes
    created: int = 0
    boot: str = ""
    predecessor: int = 0
    predecessor_seq: int = 0
    predecessor_chain: bytes = NO_CHAIN


def segment_name(epoch: int, first_seq: int) -> str:
    """The file name of a segment: ``9f3c0a6d51e8b274-00000000000000004711.seg``."""
    return f"{epoch:016x}-{first_seq:020d}.seg"


def quarantine_name(name: str, number: int = 0) -> str:
    """The name of a quarantined segment: ``.bad`` is appended, and a number if that name is taken."""
    return f"{name}.bad.{number}" if number else f"{name}.bad"


def parse_segment_name(name: str) -> tuple[int, int] | None:
    """The epoch and first sequence number in a file name, quarantined or not; None for any other file."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    epoch, first_seq = int(match[1], 16), int(match[2])
    return (epoch, first_seq) if epoch and 0 < first_seq <= MAX_SEQ else None


def is_quarantined(name: str) -> bool:
    """Whether a segment's file name says that it was put aside."""
    match = _NAME.fullmatch(name)
    return match is not None and match[3] is not None


def first_chain(agent: str, epoch: int) -> bytes:
    """The chain before an epoch's first record."""
    return sha256(b"dfleet spool 1" + agent.encode() + _SEQ.pack(epoch)).digest()


def room(segment_size: int) -> int:
    """Bytes of the largest payload that a segment of this size holds."""
    return min(MAX_PAYLOAD, segment_size - HEADER_SIZE - RECORD_OVERHEAD)


def encode_header(header: SegmentHeader) -> bytes:
    """The first `HEADER_SIZE` bytes of a segment; SpoolError for what no header can hold."""
    agent, boot = header.agent.encode(), header.boot.encode()
    if len(agent) > MAX_AGENT or len(boot) > MAX_BOOT:
        raise SpoolError(f"the defender's name ({len(agent)} bytes) or the boot id ({len(boot)}) is too long")
    if not 0 < header.first_seq <= MAX_SEQ or header.epoch == 0:
        raise SpoolError(f"no segment begins with epoch {header.epoch}, sequence number {header.first_seq}")
    if len(header.previous) != 32 or len(header.predecessor_chain) != 32:
        raise SpoolError("a chain is not 32 bytes")
    try:
        fixed = _HEADER.pack(
            MAGIC,
            VERSION,
            len(agent),
            len(boot),
            header.epoch,
            header.first_seq,
            header.created,
            header.previous,
            header.predecessor,
            header.predecessor_seq,
            header.predecessor_chain,
        )
    except struct.error as error:
        raise SpoolError(f"a number does not fit a segment's header: {error}") from None
    data = (fixed + agent + boot).ljust(HEADER_SIZE - _HEADER_CRC.size, b"\0")
    return data + _HEADER_CRC.pack(crc32(data))


def decode_header(data: bytes | memoryview) -> SegmentHeader:
    """Read the first `HEADER_SIZE` bytes of a segment; SpoolError says what is wrong with them."""
    data = bytes(data[:HEADER_SIZE])
    if len(data) < HEADER_SIZE or not any(data):
        raise SpoolError("has no header")
    if not data.startswith(MAGIC):
        raise SpoolError("is not a segment of a spool")
    body, (crc,) = data[: -_HEADER_CRC.size], _HEADER_CRC.unpack(data[-_HEADER_CRC.size :])
    if crc32(body) != crc:
        raise SpoolError("has a damaged header")
    fields = _HEADER.unpack_from(data)
    version, agent_size, boot_size, epoch, first_seq = fields[1:6]
    if version != VERSION:
        raise SpoolError(f"has version {version} of the format, which is not known here")
    if agent_size > MAX_AGENT or boot_size > MAX_BOOT or not epoch or not 0 < first_seq <= MAX_SEQ:
        raise SpoolError("has a header that no defender wrote")
    texts = data[_TEXTS : _TEXTS + agent_size + boot_size]
    try:
        agent, boot = texts[:agent_size].decode(), texts[agent_size:].decode()
    except UnicodeDecodeError:
        raise SpoolError("has a header that no defender wrote") from None
    created, previous, *predecessor = fields[6:]
    return SegmentHeader(agent, epoch, first_seq, previous, created, boot, *predecessor)


def seal(previous: bytes, first_seq: int, payloads: Sequence[bytes]) -> tuple[bytes, bytes]:
    """The records of `payloads`, numbered from `first_seq` on, and the chain of the last one.

    `previous` is the chain of the record before (`first_chain` in a new epoch). The caller keeps payloads
    between 1 and `room` bytes. Hot: every event that the defender records goes through here.
    """
    hashed, check, pack_seq, pack_head = sha256, crc32, _SEQ.pack, _HEAD.pack
    parts: list[bytes] = []
    add = parts.append
    seq = first_seq
    for payload in payloads:
        mark = pack_seq(seq)
        previous = hashed(previous + mark + payload).digest()
        body = mark + previous + payload
        add(pack_head(len(payload), check(body)))
        add(body)
        seq += 1
    return b"".join(parts), previous


class Record(NamedTuple):
    """One good record: the file offset where it begins, and what it holds."""

    offset: int
    seq: int
    chain: bytes
    payload: bytes


class Place(NamedTuple):
    """Where a reading goes on: file offset, and the sequence number and chain of the record before it.

    An empty `chain` means that the record before is not known: the next one is believed on its CRC alone.
    """

    offset: int
    seq: int
    chain: bytes


class Damage(NamedTuple):
    """Bytes `start` to `end` of a file are not what was written.

    Sequence numbers from `first_seq` on belong there; `next_seq` is that of the good record at `end`, 0 if
    none follows. `reason` is for people.
    """

    start: int
    end: int
    first_seq: int
    next_seq: int
    reason: str


@dataclass(frozen=True, slots=True)
class Scan:
    """What a segment holds.

    `records` are its good ones, in order of the file, their sequence numbers rising; `damage` lies between
    them, or runs to the end of the file if the search behind it was given up. `place` is after the last good
    record. `torn` is "" if only zeros follow there; else it says what is wrong with what follows: a record
    whose writing was cut off, or is still under way.
    """

    records: list[Record]
    damage: list[Damage]
    place: Place
    torn: str = ""


def begin(header: SegmentHeader) -> Place:
    """The place of a segment's first record."""
    return Place(HEADER_SIZE, header.first_seq - 1, header.previous)


def scan(buffer: bytes, header: SegmentHeader, at: Place | None = None) -> Scan:
    """Read the records of a segment.

    `buffer` is the whole file; or, where `at` is given, the bytes of the file from `at.offset` on, so that
    one can go on where an earlier scan ended. Never raises for what is in the buffer, and takes time in
    proportion to its length, whatever is damaged.
    """
    base = at.offset if at else 0
    offset, last, chain = at or begin(header)
    offset -= base
    size = len(buffer)
    hashed, check, unpack, pack_seq = sha256, crc32, _RECORD.unpack_from, _SEQ.pack
    records: list[Record] = []
    damage: list[Damage] = []
    add = records.append
    search = _Search(buffer)
    while True:
        reason = ""
        if offset + RECORD_OVERHEAD > size:
            reason = "a record's head is cut off"
        else:
            length, crc, seq, stated = unpack(buffer, offset)
            end = offset + RECORD_OVERHEAD + length
            if length == 0:
                reason = "there are bytes behind the last record"
            elif length > MAX_PAYLOAD:
                reason = f"a record would have {length} bytes"
            elif end > size:
                reason = "a record is cut off"
            else:
                body = buffer[offset + 8 : end]
                payload = body[40:]
                if check(body) != crc:
                    reason = "a record's checksum does not hold"
                elif not last < seq <= MAX_SEQ:
                    reason = f"a record has the impossible sequence number {seq}"
                elif chain and hashed(chain + pack_seq(seq) + payload).digest() != stated:
                    reason = "a record does not fit the hash chain: it or its place was altered"
                else:
                    add(Record(base + offset, seq, stated, payload))
                    last, chain, offset = seq, stated, end
                    continue
        found, seq = search.after(offset, last)
        if not found:
            break
        damage.append(Damage(base + offset, base + found, last + 1, seq, reason))
        last, chain, offset = seq - 1, b"", found
    place = Place(base + offset, last, chain)
    if search.given_up:
        damage.append(Damage(base + offset, base + size, last + 1, 0, f"{reason}; too much is damaged here"))
        return Scan(records, damage, place)
    return Scan(records, damage, place, reason if buffer[offset:].strip(b"\0") else "")


class _Search:
    """Finds the next good record behind damage; what it checks in all is bounded."""

    def __init__(self, buffer: bytes) -> None:
        self._buffer = buffer
        self._left = MAX_SEARCH
        self.given_up = False

    def after(self, bad: int, last: int) -> tuple[int, int]:
        """Offset and sequence number of the first good record behind the offset `bad`; (0, 0) if there is
        none.

        `last` is the last good sequence number: what follows has a higher one, and not higher than the bytes
        in between have room for.
        """
        buffer, size = self._buffer, len(self._buffer)
        mark = buffer.find(PAYLOAD_MARK, bad + RECORD_OVERHEAD + 1)
        while mark >= 0:
            for start in (mark - RECORD_OVERHEAD - 1, mark - RECORD_OVERHEAD - 3):
                if start <= bad:
                    continue
                length, crc, seq, _ = _RECORD.unpack_from(buffer, start)
                end = start + RECORD_OVERHEAD + length
                most = last + 1 + (start - bad) // RECORD_OVERHEAD
                if not 0 < length <= MAX_PAYLOAD or end > size or not last < seq <= min(most, MAX_SEQ):
                    continue
                if self._left < length:
                    self.given_up = True
                    return 0, 0
                self._left -= length
                if crc32(buffer[start + 8 : end]) == crc:
                    return start, seq
            mark = buffer.find(PAYLOAD_MARK, mark + 1)
        return 0, 0
