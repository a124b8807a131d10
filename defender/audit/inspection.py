"""Looks through the segments of earlier runs, a slice at a time, for what is damaged, altered or missing.

Pure: the shell reads the slices that are `wanted` and gives them to `feed`. What an event of the spool has
told already, by name or by sequence numbers, is not told again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from defender.audit.recovery import Finding, first_place
from defender.contract.packing import unpack
from defender.contract.spool import Place, SpoolError, is_quarantined, scan
from defender.contract.spool_order import Epoch, Segment
from defender.contract.spool_reading import Finding as Found
from defender.contract.spool_reading import Item, Trouble, Walk

#: Bytes of a slice: about a millisecond of work, in which the reactor has to wait for the interpreter.
SLICE: Final = 128 * 1024

_OWN: Final = b"audit_"
_ALTERED: Final = frozenset({Trouble.CHAIN, Trouble.CONFLICT})


class Slice(NamedTuple):
    """Bytes of a file that are to be read; fewer may be there."""

    name: str
    offset: int
    size: int


class Inspection:
    """See the module; `told` is what the start has found already."""

    def __init__(self, segments: Sequence[tuple[Epoch, Segment]], told: Iterable[Finding]) -> None:
        self.wanted: Slice | None = None
        self._segments = list(segments)
        self._index = -1
        self._place = Place(0, 0, b"")
        self._walk = Walk()
        self._oldest = True
        self._entered = False
        self._names: set[tuple[str, str]] = set()
        self._ranges: list[tuple[int, int, int]] = []  # epoch, first and last sequence number
        self._found: list[Found] = []
        for finding in told:
            epoch = next((e.number for e, s in self._segments if s.name == finding.name), 0)
            self._tell("audit_damaged", finding.name, epoch, finding.first_seq, finding.last_seq)
        self._next()

    def feed(self, data: bytes | None) -> None:
        """The bytes of `wanted`, fewer at the end of the file; None if it is gone."""
        wanted = self.wanted
        assert wanted is not None
        epoch, segment = self._segments[self._index]
        if data is None:
            # It made room. What is before it is gone as well, so nothing is missing between.
            self._walk, self._oldest = Walk(), True
            self._next()
            return
        if not self._entered:
            self._take(self._walk.enter(epoch, segment, oldest=self._oldest))
            self._oldest, self._entered = False, True
        following = self._segments[self._index + 1] if self._index + 1 < len(self._segments) else None
        below = following[1].header.first_seq if following and following[0] == epoch else 0
        whole = len(data) < wanted.size
        found = scan(data, segment.header, self._place)
        if not whole and found.place == self._place:
            # Damage, the end of what was written, or a large record: what follows tells.
            self.wanted = Slice(segment.name, wanted.offset, wanted.size * 8)
            return
        if not whole:
            found = replace(found, torn="")  # the rest is read again with the next slice
        self._take(self._walk.read(found, below))
        if whole:
            self._take(self._walk.leave(found))
            self._next()
        else:
            self._place = found.place
            self.wanted = Slice(segment.name, found.place.offset, SLICE)

    def findings(self) -> list[Finding]:
        """When nothing is wanted any more: what is told neither by the start nor by an event."""
        self._take(self._walk.end())
        found: list[Finding] = []
        for each in self._found:
            if each.trouble in _ALTERED and not self._is_told("audit_altered", each.file):
                self._tell("audit_altered", each.file)
                found.append(Finding("altered", each.file, each.reason))
            damaged = each.trouble is Trouble.DAMAGE and not is_quarantined(each.file)
            if damaged and not self._is_told("audit_damaged", each.file):
                self._tell("audit_damaged", each.file)
                found.append(Finding("damaged", each.file, each.reason))
            if each.missing and not self._covered(each):
                found.append(Finding("missing", each.file, each.reason, each.first_seq, each.last_seq))
        return found

    def _next(self) -> None:
        self._entered = False
        self._index += 1
        if self._index == len(self._segments):
            self.wanted = None
            return
        segment = self._segments[self._index][1]
        self._place = first_place(segment)
        self.wanted = Slice(segment.name, self._place.offset, SLICE)

    def _take(self, items: Iterable[Item]) -> None:
        for item in items:
            if isinstance(item, Found):
                self._found.append(item)
            elif _OWN in item.record.payload:
                self._heard(item.epoch.number, item.record.payload)

    def _heard(self, epoch: int, payload: bytes) -> None:
        """Note what an event of the spool itself has told."""
        try:
            event = unpack(payload, agent="", epoch=epoch, seq=1)
        except SpoolError:
            return
        request, result = event.get("req"), event.get("result")
        if event["kind"] not in ("defender", "gap") or not isinstance(request, dict):
            return
        first = last = 0
        if isinstance(result, dict) and isinstance(result.get("first_seq"), int):
            first = result["first_seq"]
            last = first + int(result.get("dropped") or 1) - 1
        self._tell(str(request.get("action")), str(request.get("target", "")), epoch, first, last)

    def _tell(self, action: str, name: str, epoch: int = 0, first: int = 0, last: int = 0) -> None:
        self._names.add((action, name.partition(".seg")[0]))
        if first:
            self._ranges.append((epoch, first, last or 2**63))

    def _is_told(self, action: str, name: str) -> bool:
        return (action, name.partition(".seg")[0]) in self._names

    def _covered(self, found: Found) -> bool:
        return any(
            epoch == found.epoch and first <= found.first_seq and found.last_seq <= last
            for epoch, first, last in self._ranges
        )
