"""Whether a soak went well: what must hold after it, with the tolerances, and the figures for people."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tests.soak.ledger import Ledger
from tests.soak.samples import KIB, Sample, slope
from tests.soak.work import Books

RISE = 4 * KIB
"""KiB by which the line through the samples' RssAnon may rise over the second half of the mixed load."""

GROWTH = 6 * KIB
"""KiB by which RssAnon may be higher after the load than after the warm-up, nobody being connected."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold: `found` says what was seen, in words."""

    name: str
    ok: bool
    found: str

    def line(self) -> str:
        """For a report."""
        return f"{'ok  ' if self.ok else 'FAIL'}  {self.name}: {self.found}"


def nothing_in(name: str, problems: Sequence[str], all_well: str) -> Check:
    """A check that holds when there are no problems."""
    return Check(name, not problems, "; ".join(problems) if problems else all_well)


def memory_checks(rest: Sample, samples: Sequence[Sample], end: Sample) -> list[Check]:
    """No growth: `rest` is after the warm-up, `samples` are of the load after it, `end` is after the load."""
    half = [(sample.at, float(sample.rss_anon)) for sample in samples[len(samples) // 2 :]]
    span = half[-1][0] - half[0][0] if half else 0.0
    rise = slope(half) * span
    grown = end.rss_anon - rest.rss_anon
    return [
        Check(
            "memory, slope",
            rise <= RISE,
            f"RssAnon changes by {rise / KIB:+.2f} MiB over the second half ({span / 60:.1f} min), "
            f"at most {RISE // KIB}",
        ),
        Check(
            "memory, level",
            grown <= GROWTH,
            f"RssAnon at rest {rest.rss_anon / KIB:.1f} MiB before, {end.rss_anon / KIB:.1f} MiB after, "
            f"at most {GROWTH // KIB} more",
        ),
    ]


def descriptor_checks(rest: Sample, end: Sample) -> list[Check]:
    """Nothing is left open."""
    pool = f"pool {end.engine_connections}, idle {end.engine_idle}, at the Engine {end.engine_side}"
    idle = end.engine_connections == end.engine_idle == end.engine_side
    clients = end.status["clients"]
    return [
        Check(
            "descriptors",
            rest.steady == end.steady,
            f"{sum(end.steady.values())} beside the idle Engine connections, as before"
            if rest.steady == end.steady
            else f"before {rest.steady}, after {end.steady}",
        ),
        Check("Engine connections", idle, pool),
        Check("clients", clients == {"connections": 0, "streams": 0}, f"{clients}"),
    ]


def audit_checks(ledger: Ledger, end: Sample, *, rotations: int) -> list[Check]:
    """The record is whole."""
    audit = end.status["audit"]
    lost = {name: audit[name] for name in ("failed", "dropped", "reduced", "repaired") if audit[name]}
    counters = end.status["counters"]
    refused = {name: counters[name] for name in ("turned_down", "unrecorded") if counters[name]}
    return [
        nothing_in("record", ledger.close(), f"{ledger.events} events, every call whole"),
        Check("audit counters", not lost and not audit["problem"], f"{lost or 'nothing failed or dropped'}"),
        Check("shares", not refused, f"{refused or 'no call was beyond a limit or went unrecorded'}"),
        Check(
            "rotation", audit["rotated"] >= rotations, f"{audit['rotated']} segments, at least {rotations}"
        ),
    ]


def count_checks(ledger: Ledger, books: Books, users: Sequence[str]) -> list[Check]:
    """Clients and the record have counted the same requests."""
    wrong = []
    total = 0
    for user in users:
        least, most = books.between(user)
        recorded = ledger.answered(user)
        total += recorded
        if not least <= recorded <= most:
            wrong.append(f"{user}: {recorded} recorded, {least} to {most} asked")
    return [nothing_in("requests counted twice", wrong, f"{total} of {len(users)} users, at both ends")]


def work_checks(books: Books) -> list[Check]:
    """What failed without a reason."""
    failures = [failure.strip() for failure in books.failures]
    more = books.failed.total() - len(failures)
    return [
        nothing_in(
            "work",
            ["\n      " + "\n      ".join([*failures, f"and {more} more"] if more else failures)]
            if failures
            else [],
            f"{books.done.total()} pieces done, {books.disturbed.total()} failed while the Engine, a "
            "listener or a policy was taken away",
        )
    ]


def table(rest: Sample, samples: Sequence[Sample], end: Sample) -> str:
    """The figures, as a Markdown table: at rest, over the load by quarters, at rest again."""
    rows = [
        "| | at rest, warm | 1st quarter | 2nd | 3rd | 4th | at rest, after |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    quarters = [samples[len(samples) * n // 4 : len(samples) * (n + 1) // 4] for n in range(4)]

    def row(name: str, before: str, middle: Sequence[str], after: str) -> None:
        rows.append(f"| {name} | {before} | {' | '.join(middle)} | {after} |")

    def median(quarter: Sequence[Sample], figure: str) -> str:
        values = [sample.probe[figure] for sample in quarter if sample.probe]
        return f"{statistics.median(values):.2f}" if values else ""

    def mean(quarter: Sequence[Sample]) -> str:
        return f"{statistics.fmean(s.rss_anon for s in quarter) / KIB:.1f}" if quarter else ""

    def most(quarter: Sequence[Sample], kind: str) -> str:
        return str(max((s.descriptors.get(kind, 0) for s in quarter), default=""))

    row(
        "RssAnon, MiB", f"{rest.rss_anon / KIB:.1f}", [mean(q) for q in quarters], f"{end.rss_anon / KIB:.1f}"
    )
    row(
        "descriptors, most",
        str(sum(rest.descriptors.values())),
        [str(max((sum(s.descriptors.values()) for s in q), default="")) for q in quarters],
        str(sum(end.descriptors.values())),
    )
    for kind, words in (("tls", "TLS clients"), ("unix", "unix clients"), ("engine", "Engine connections")):
        row(
            f"{words}, most",
            str(rest.descriptors.get(kind, 0)),
            [most(q, kind) for q in quarters],
            str(end.descriptors.get(kind, 0)),
        )
    for figure in ("p50", "p99"):
        row(f"probe {figure}, ms", "", [median(q, figure) for q in quarters], "")
    ends = [rest, *(q[-1] for q in quarters if q), end]
    for key, words in (("requests", "requests"), ("denied", "denied"), ("streams_ended", "streams")):
        figures = [str(sample.status["counters"][key]) for sample in ends]
        row(f"{words}, so far", figures[0], figures[1:-1], figures[-1])
    for key, words in (("written", "events on disk"), ("rotated", "segments rotated")):
        figures = [str(sample.status["audit"][key]) for sample in ends]
        row(f"{words}, so far", figures[0], figures[1:-1], figures[-1])
    figures = [f"{sample.cpu:.0f}" for sample in ends]
    row("CPU time, s, so far", figures[0], figures[1:-1], figures[-1])
    return "\n".join(rows)
