"""What to make of a spool's directory at the start: which segments are ours, and where to go on.

Pure: the shell reads names, headers and records, and does what is decided here. Nothing that is found is
fatal, nothing is removed, and everything that is not as a defender left it is a `Finding`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from defender.audit.commands import SegmentFile
from defender.contract.spool import (
    HEADER_SIZE,
    NO_CHAIN,
    Damage,
    Place,
    Scan,
    begin,
)
from defender.contract.spool_order import Epoch, Segment, arrange, flatten, segment_of

#: Names in the directory that are no segments: the lock, the next segment's room, what was set aside, and
#: what a file system has at its root.
LOCK: Final = "lock"
SPARE: Final = "spare"
ASIDE: Final = "quarantine"
OWN_NAMES: Final = frozenset({LOCK, SPARE, ASIDE, "lost+found"})

Kind = Literal["altered", "aside", "damaged", "missing", "torn", "unclosed"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as a defender left it, in words for people.

    "altered": the hash chain does not hold; "aside": a file that is no segment of this spool was moved to
    `ASIDE`; "damaged": a segment was renamed and its good records still count; "missing": the records
    `first_seq` to `last_seq` are lost; "torn": the last write was cut off, and what was left of it was moved
    to `ASIDE`; "unclosed": the last run did not stop in good order. A range of 0 is not known.
    """

    kind: Kind
    name: str
    detail: str
    first_seq: int = 0
    last_seq: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """A name in the directory, and the first `HEADER_SIZE` bytes; `flaw` says why it cannot be ours."""

    name: str
    size: int = 0
    head: bytes = b""
    flaw: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """`segments` are ours, oldest first, with their sizes; `aside` is to be set aside, with why.

    `going_on`: the last of them is of an epoch that goes on, and not of one that is over.
    """

    segments: tuple[tuple[Epoch, Segment], ...]
    files: tuple[SegmentFile, ...]
    going_on: bool
    aside: dict[str, str]


def judge(seen: Iterable[Seen], agent: str) -> Judgement:
    """Tell segments of this defender from what does not belong here.

    Where all are of one other name, the defender was given a new one: it goes on, with a new epoch.
    """
    aside: dict[str, str] = {}
    sizes: dict[str, int] = {}
    segments: list[Segment] = []
    for each in seen:
        segment = None if each.flaw else segment_of(each.name, each.head)
        if segment is None:
            aside[each.name] = each.flaw or "is not a segment of a spool"
        elif segment.problem and segment.header.agent:
            aside[each.name] = segment.problem
        else:
            segments.append(segment)
            sizes[each.name] = each.size
    epochs = arrange(segments, agent)
    agents = {epoch.agent for epoch in epochs if epoch.agent}
    if len(agents) == 1 and agents != {agent}:
        epochs = arrange(segments, agents.pop())
    for epoch in epochs:
        if epoch.foreign:
            aside |= {each.name: f"is of the defender {epoch.agent!r}" for each in epoch.segments}
    ours = flatten(epochs)
    kept = [epoch for epoch in epochs if not epoch.foreign]
    files = tuple(
        SegmentFile(each.name, each.header.epoch, each.header.first_seq, sizes[each.name]) for _, each in ours
    )
    return Judgement(tuple(ours), files, bool(kept) and kept[-1].agent == agent, aside)


def first_place(segment: Segment) -> Place:
    """Where the records of a segment begin; without a header the first is believed on its CRC alone."""
    if segment.problem:
        return Place(HEADER_SIZE, segment.header.first_seq - 1, b"")
    return begin(segment.header)


@dataclass(frozen=True, slots=True)
class Continuation:
    """How the last segment is gone on with.

    `usable`: numbers go on after `last_seq` and `chain`; if not, a new epoch begins, because records of this
    one may exist that nobody can count. `append`: at `offset` of the same segment, which is cut there if
    `cut`; if not, in a new one, and the old one is put aside if `quarantine`.
    """

    usable: bool
    append: bool
    last_seq: int
    chain: bytes
    offset: int
    cut: bool
    quarantine: bool
    findings: tuple[Finding, ...]


def continuation(segment: Segment, scan: Scan) -> Continuation:
    """Decide it from what the last segment holds."""
    old = segment.quarantined
    place = scan.place
    chain = place.chain or NO_CHAIN
    endless = any(not damage.next_seq for damage in scan.damage)
    usable = not endless and bool(place.chain)
    damaged = bool(scan.damage) or bool(segment.problem)
    findings: list[Finding] = []
    if damaged and not old:
        findings.append(Finding("damaged", segment.name, segment.problem or scan.damage[0].reason))
        findings += missing(segment.name, scan.damage)
    cut = bool(scan.torn) and not damaged and not old
    if cut:
        findings.append(Finding("torn", segment.name, scan.torn, place.seq + 1, 0))
    append = usable and not damaged and not old
    return Continuation(
        usable, append, place.seq, chain, place.offset, cut, damaged and not old, tuple(findings)
    )


def missing(name: str, damage: Sequence[Damage]) -> list[Finding]:
    """The records that lay in damage; only those whose numbers are known to have been given."""
    return [
        Finding("missing", name, each.reason, each.first_seq, each.next_seq - 1 if each.next_seq else 0)
        for each in damage
        if not each.next_seq or each.next_seq > each.first_seq
    ]
