"""The order of a spool's segments: which epoch follows which, and who else's files lie there.

Pure: `segment_of` makes a `Segment` of a file's name and first bytes, `arrange` puts segments in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from defender.contract.spool import (
    SegmentHeader,
    SpoolError,
    decode_header,
    is_quarantined,
    parse_segment_name,
)

NO_HEADER: Final = "has no header"


@dataclass(frozen=True, slots=True)
class Segment:
    """A file of the spool. `problem` says why its header cannot be used; then `header` is what its name
    says, without agent and chain."""

    name: str
    header: SegmentHeader
    quarantined: bool = False
    problem: str = ""

    @property
    def key(self) -> tuple[int, int, int]:
        """Tells it from every other segment, also after it was quarantined."""
        return self.header.epoch, self.header.first_seq, self.header.created


@dataclass(frozen=True, slots=True)
class Epoch:
    """One run of a defender: its segments in order of their first sequence number.

    `foreign` if it is of another defender than the rest, and not linked to it.
    """

    number: int
    agent: str
    segments: tuple[Segment, ...]
    foreign: bool = False

    @property
    def header(self) -> SegmentHeader:
        """The first header that can be read."""
        return next((each.header for each in self.segments if not each.problem), self.segments[0].header)

    @property
    def text(self) -> str:
        """As in events and file names."""
        return f"{self.number:016x}"


def segment_of(name: str, head: bytes) -> Segment | None:
    """A file of the spool by its name and its first `HEADER_SIZE` bytes; None if it is no segment's name."""
    named = parse_segment_name(name)
    if named is None:
        return None
    try:
        header = decode_header(head)
    except SpoolError as error:
        return Segment(name, SegmentHeader("", *named, b""), is_quarantined(name), str(error))
    problem = "" if (header.epoch, header.first_seq) == named else "is named as another segment"
    return Segment(name, header, is_quarantined(name), problem)


def arrange(segments: Iterable[Segment], agent: str = "") -> list[Epoch]:
    """The epochs in the order in which they were: each behind its predecessor, else by time.

    `agent` is the name of the defender whose spool it is; without it that of the newest epoch counts.
    """
    groups: dict[tuple[int, str], list[Segment]] = {}
    nameless: list[Segment] = []
    for segment in segments:
        if segment.header.agent:
            groups.setdefault((segment.header.epoch, segment.header.agent), []).append(segment)
        else:
            nameless.append(segment)
    for segment in nameless:
        number = segment.header.epoch
        key = next((key for key in groups if key[0] == number), (number, ""))
        groups.setdefault(key, []).append(segment)
    epochs = [
        Epoch(number, name, tuple(sorted(group, key=_within))) for (number, name), group in groups.items()
    ]
    ordered = _succession(epochs)
    if not ordered:
        return []
    if not agent:
        agent = next((epoch.agent for epoch in reversed(ordered) if epoch.agent), "")
    # A defender that was given another name goes on in the same spool: its old epochs are linked to the new.
    before: set[int] = set()
    foreign: set[int] = set()
    for place in reversed(range(len(ordered))):
        epoch = ordered[place]
        if epoch.agent in ("", agent) or epoch.number in before:
            before.add(epoch.header.predecessor)
        else:
            foreign.add(place)
    return [replace(epoch, foreign=place in foreign) for place, epoch in enumerate(ordered)]


def _within(segment: Segment) -> tuple[int, int, int, str]:
    header = segment.header
    return header.first_seq, header.created, not segment.quarantined, segment.name


def _succession(epochs: list[Epoch]) -> list[Epoch]:
    begun: dict[int, int] = {}
    for epoch in epochs:
        header = epoch.header
        begun[header.predecessor] = min(begun.get(header.predecessor, header.created), header.created)

    def moment(epoch: Epoch) -> tuple[int, int]:
        """When it began; without a header that says so, just before the one that follows, if there is one."""
        return epoch.header.created or begun.get(epoch.number, 2**64), epoch.number

    epochs = sorted(epochs, key=moment)
    numbers = {epoch.number for epoch in epochs}
    after: dict[int, list[Epoch]] = {}
    for epoch in epochs:
        before = epoch.header.predecessor
        after.setdefault(before if before in numbers else 0, []).append(epoch)
    ordered: list[Epoch] = []
    seen: set[tuple[int, str]] = set()
    # Who is left when the roots are done follows itself, which no defender writes: by time, then.
    for root in [*after.get(0, ()), *epochs]:
        waiting = [root]
        while waiting:
            epoch = waiting.pop()
            if (epoch.number, epoch.agent) not in seen:
                seen.add((epoch.number, epoch.agent))
                ordered.append(epoch)
                waiting += reversed(after.get(epoch.number, []))
    return ordered


def flatten(epochs: Sequence[Epoch]) -> list[tuple[Epoch, Segment]]:
    """All segments in order, without those of other defenders."""
    return [(epoch, segment) for epoch in epochs if not epoch.foreign for segment in epoch.segments]
