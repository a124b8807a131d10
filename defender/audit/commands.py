"""What the spool's decisions are made of: the commands, and what the directory looks like."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from defender.contract.spool import NO_CHAIN


class Pressure(Enum):
    """What the spool still takes: everything, what is reserved, nothing."""

    NONE = 0
    RESERVED = 1
    FULL = 2


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """A segment in the directory; `size` is what it takes from `max_bytes`."""

    name: str
    epoch: int
    first_seq: int
    size: int


@dataclass(frozen=True, slots=True)
class Tail:
    """Where the next record goes: the segment, the offset in it, and its size."""

    name: str
    offset: int
    capacity: int


@dataclass(frozen=True, slots=True)
class Opened:
    """What is in the directory, oldest segment first, and how it goes on.

    `chain` is that of the record before `next_seq`. Without a `tail` the next record begins a segment.
    `predecessor` is the epoch before, with the number and chain of its last record.
    """

    epoch: int
    next_seq: int
    chain: bytes
    segments: tuple[SegmentFile, ...] = ()
    tail: Tail | None = None
    spare: bool = False
    predecessor: tuple[int, int, bytes] = (0, 0, NO_CHAIN)


@dataclass(frozen=True, slots=True)
class Open:
    """Take the directory into possession, mend it and say what is there."""


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes for one segment. A `fresh` one is made first, with these bytes, in the place of any other."""

    name: str
    offset: int
    data: bytes
    fresh: bool


@dataclass(frozen=True, slots=True)
class Commit:
    """Remove segments, then bring each part to disk, in order."""

    parts: tuple[Part, ...]
    remove: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Prepare:
    """Remove segments, then have the room of one segment ready under a name of its own."""

    remove: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Survey:
    """See that the directory is still ours, and say what is in it.

    A segment that is not written again gives back its room, as far as it begins behind `poisoned`: its name
    and the offset up to which it is known to be on disk.
    """

    poisoned: tuple[str, int] = ("", 0)


@dataclass(frozen=True, slots=True)
class Inspect:
    """Look at a little more of what earlier runs left; rename segments that turn out to be damaged."""


@dataclass(frozen=True, slots=True)
class Close:
    """Give the directory back, its lock first of all."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Give ``retry`` after `delay` seconds."""

    delay: float


@dataclass(frozen=True, slots=True)
class Fetch:
    """Read bytes of a segment; asked for by whoever ships the spool, not by the spool itself."""

    name: str
    offset: int
    size: int


Command = Open | Commit | Prepare | Survey | Inspect | Fetch | Close | Retry


@dataclass(frozen=True, slots=True)
class Removed:
    """A range of records that made room for new ones."""

    name: str
    epoch: int
    first_seq: int
    last_seq: int
