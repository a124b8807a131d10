"""`defenderctl audit verify`: walks a spool from end to end and says what it holds and what is amiss."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import click

from controller.cli.event_table import describe, part
from controller.cli.output import complain, print_json, print_line, print_table
from controller.cli.spool_files import SpoolFiles
from defender.contract.packing import is_closing, micros_of, timestamp_of, unpack
from defender.contract.spool import Record, SpoolError
from defender.contract.spool_order import Epoch, Segment
from defender.contract.spool_reading import Finding, Trouble, Walk, foreign_findings, walk


@dataclass(slots=True)
class SegmentReport:
    """What one segment holds: its records that count, and the trouble with it."""

    epoch: Epoch
    segment: Segment
    records: int = 0
    first_seq: int = 0
    last_seq: int = 0
    first: bytes = b""
    last: bytes = b""
    troubles: list[Trouble] = field(default_factory=list)

    @property
    def closes(self) -> bool:
        """Whether it ends with its epoch's closing record."""
        return is_closing(self.last)

    @property
    def verdict(self) -> str:
        """Its state in a few words."""
        words = ["quarantined"] if self.segment.quarantined else []
        words += dict.fromkeys(trouble.value for trouble in self.troubles)
        return ", ".join(words) or "ok"


@dataclass(slots=True)
class Recorded:
    """What the defender itself recorded of losses."""

    gaps: int = 0
    """`gap` events."""
    dropped: int = 0
    """The events that they count; some may not know how many."""
    unclosed: int = 0
    """Runs that did not stop in good order, so that what was not synced may be lost."""

    def add(self, record: Record) -> None:
        """Look at one record; quick, for nearly all say nothing of that."""
        payload = record.payload
        if _GAP in payload:
            try:
                event = unpack(payload, agent="", epoch=1, seq=record.seq)
            except SpoolError:
                return
            if event["kind"] == "gap":
                dropped = part(event, "result").get("dropped")
                self.gaps += 1
                self.dropped += dropped if isinstance(dropped, int) else 0
        elif _UNCLOSED in payload:
            self.unclosed += 1


# No client's text has these bytes: the first of each is not UTF-8 where it stands.
_GAP: Final = b"\xa4kind\xa3gap"
_UNCLOSED: Final = b"\xa6action\xaeaudit_unclosed"


@dataclass(slots=True)
class Report:
    """What a spool holds."""

    path: str
    segments: list[SegmentReport]
    findings: list[Finding]
    recorded: Recorded
    repeated: int
    unknown: list[str]

    @property
    def good(self) -> bool:
        """Whether nothing is missing, damaged or altered."""
        return not self.recorded.gaps and all(finding.harmless for finding in self.findings)

    @property
    def records(self) -> int:
        """All good records."""
        return sum(each.records for each in self.segments)

    @property
    def missing(self) -> int:
        """All events that are known to be missing."""
        return sum(finding.missing for finding in self.findings)

    def epochs(self) -> Iterator[tuple[Epoch, list[SegmentReport]]]:
        """The segments of each epoch, in order."""
        groups: dict[int, list[SegmentReport]] = {}
        for each in self.segments:
            groups.setdefault(id(each.epoch), []).append(each)
        for group in groups.values():
            yield group[0].epoch, group


def verify_spool(files: SpoolFiles, *, as_json: bool) -> bool:
    """Print what a spool holds; whether nothing is missing, damaged or altered. Raises OSError if it cannot
    be read at all."""
    report = check(files, _progress() if sys.stderr.isatty() else None)
    if as_json:
        print_json(_document(report))
    else:
        _print(report)
    return report.good


def check(files: SpoolFiles, progress: Callable[[int, int], None] | None = None) -> Report:
    """Walk a spool. `progress` is told how many of how many segments were read."""
    listing = files.look()
    segments = listing.segments
    reports = {segment.name: SegmentReport(epoch, segment) for epoch, segment in segments}
    read = 0

    def load(segment: Segment) -> bytes | None:
        nonlocal read
        if progress is not None:
            progress(read, len(segments))
        read += 1
        data = files.load(segment)
        if data is None:  # it made room in this moment
            del reports[segment.name]
        return data

    state, recorded = Walk(), Recorded()
    findings = foreign_findings(listing.epochs)
    for item in walk(segments, load, state):
        if isinstance(item, Finding):
            findings.append(item)
            if item.file in reports:
                reports[item.file].troubles.append(item.trouble)
            continue
        seq, payload = item.record.seq, item.record.payload
        recorded.add(item.record)
        report = reports[item.segment.name]
        if not report.records:
            report.first_seq, report.first = seq, payload
        report.records += 1
        report.last_seq, report.last = seq, payload
    if progress is not None:
        progress(read, len(segments))
    return Report(
        str(files.path), list(reports.values()), findings, recorded, state.repeated, listing.unknown
    )


def _progress() -> Callable[[int, int], None]:
    """A line on the terminal that goes away at the end."""

    def show(done: int, total: int) -> None:
        if total < 4:
            return
        text = "" if done == total else f"segment {done + 1} of {total}"
        click.echo(f"\r\x1b[K{text}", nl=False, err=True)

    return show


def _time(payload: bytes) -> str:
    try:
        return timestamp_of(micros_of(payload)) if payload else ""
    except SpoolError:
        return "?"


def _print(report: Report) -> None:
    last = None
    for epoch, _ in report.epochs():
        last = epoch
    for epoch, group in report.epochs():
        end = "closed" if group[-1].closes else "open" if epoch is last else "not closed"
        records = sum(each.records for each in group)
        print_line(f"Epoch {epoch.text} of {epoch.agent or '?'}: {records} events, {end}", style="bold")
        print_table(
            ("segment", "events", "first", "last", "from (utc)", "to (utc)", "state"),
            [
                (
                    each.segment.name.partition("-")[2] or each.segment.name,
                    each.records,
                    each.first_seq or "",
                    each.last_seq or "",
                    _time(each.first)[5:19].replace("T", " "),
                    _time(each.last)[5:19].replace("T", " "),
                    each.verdict,
                )
                for each in group
            ],
        )
        click.echo()
    for name in report.unknown:
        print_line(f"{name}: is no segment; left alone", style="dim")
    for finding in report.findings:
        print_line(describe(finding), style="dim" if finding.harmless else "bold red")
    recorded = report.recorded
    if recorded.gaps:
        text = f"The defender recorded {recorded.gaps} gaps, with {recorded.dropped} events or more lost"
        print_line(f"{text}: defenderctl audit tail --json -n 1000000 | grep audit_gap", style="bold red")
    if recorded.unclosed:
        text = f"{recorded.unclosed} runs of the defender did not stop in good order"
        print_line(f"{text}: what they had not brought to disk may be lost", style="yellow")
    counts = f"{len(report.segments)} segments, {report.records} events"
    if report.good:
        print_line(f"{counts}: the chain holds, nothing is missing", style="green")
        return
    faults = recorded.gaps + sum(not finding.harmless for finding in report.findings)
    missing = report.missing + recorded.dropped
    complain(f"{counts}: {faults} faults; at least {missing} events are missing")


def _document(report: Report) -> dict[str, object]:
    return {
        "ok": report.good,
        "spool": report.path,
        "records": report.records,
        "missing": report.missing,
        "repeated": report.repeated,
        "recorded": {
            "gaps": report.recorded.gaps,
            "dropped": report.recorded.dropped,
            "unclosed": report.recorded.unclosed,
        },
        "epochs": [
            {
                "epoch": epoch.text,
                "agent": epoch.agent,
                "boot": epoch.header.boot,
                "predecessor": f"{epoch.header.predecessor:016x}" if epoch.header.predecessor else "",
                "closed": group[-1].closes,
                "records": sum(each.records for each in group),
                "segments": [
                    {
                        "file": each.segment.name,
                        "records": each.records,
                        "first_seq": each.first_seq,
                        "last_seq": each.last_seq,
                        "from": _time(each.first),
                        "to": _time(each.last),
                        "quarantined": each.segment.quarantined,
                        "ok": not any(trouble not in _HARMLESS for trouble in each.troubles),
                    }
                    for each in group
                ],
            }
            for epoch, group in report.epochs()
        ],
        "findings": [
            {
                "kind": finding.trouble.value,
                "harmless": finding.harmless,
                "epoch": f"{finding.epoch:016x}" if finding.epoch else "",
                "file": finding.file,
                "offset": finding.offset,
                "first_seq": finding.first_seq,
                "last_seq": finding.last_seq,
                "reason": finding.reason,
            }
            for finding in report.findings
        ],
        "unknown_files": report.unknown,
    }


_HARMLESS = frozenset({Trouble.TORN, Trouble.MENDED, Trouble.EMPTY})
