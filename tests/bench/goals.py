"""The project's targets: each measure beside what it must reach and what it aims at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tests.bench.durable import COUNTS as DURABLE_COUNTS
from tests.bench.report import Figures, Medians, layout

GO_RATE = 1.15
CLOSE_RATES = {1: 0.7, 8: 0.65, 64: 0.4}
READ_SYNCS = 20.0
"""Syncs for 1,000 reads: batches of the spool, of which every one holds the events of many reads."""


@dataclass(frozen=True, slots=True)
class Goal:
    """One measure.

    Attributes:
        measure: what it is, for people.
        value: what was measured.
        must: the bound that holds or not.
        aim: the better one, or `None`.
        rising: whether the bounds are lower ones.
        digits: after the point.
    """

    measure: str
    value: float
    must: float
    aim: float | None = None
    rising: bool = False
    digits: int = 2

    def reaches(self, bound: float) -> bool:
        """Whether the value, as it is printed, is on the right side of a bound."""
        value = round(self.value, self.digits)
        return value >= bound if self.rising else value <= bound

    @property
    def verdict(self) -> str:
        """`NO`, `yes`, or `aim` where that is reached too."""
        if not self.reaches(self.must):
            return "NO"
        return "aim" if self.aim is not None and self.reaches(self.aim) else "yes"

    def plain(self) -> dict[str, object]:
        """For the JSON."""
        names = ("measure", "value", "must", "aim")
        return {name: getattr(self, name) for name in names} | {"ok": self.verdict}

    def cells(self) -> tuple[str, ...]:
        """A row of the table."""
        sign = ">=" if self.rising else "<="

        def bound(value: float | None) -> str:
            return "-" if value is None else f"{sign} {value:.{self.digits}f}"

        value = f"{self.value:.{self.digits}f}"
        return (self.measure, value, bound(self.must), bound(self.aim), self.verdict)


def _relative(targets: Mapping[str, Figures], key: str, base: str) -> float | None:
    """The defender's figure as a multiple of a target's, `None` where one is missing."""
    ours, theirs = targets.get("defender", {}).get(key), targets.get(base, {}).get(key)
    return None if ours is None or not theirs else ours / theirs


def _against(medians: Medians) -> Iterator[tuple[str, str, str, str, float, float | None, bool]]:
    """Yield (case, key, target, words, must, aim, rising) of every relative target."""
    for count, close in CLOSE_RATES.items():
        said = f"requests/s, keep-alive, {count}"
        yield f"keep {count}", "rps", "go", said, GO_RATE, None, True
        yield f"keep {count}", "rps", "haproxy-close", said, close, 1.0, True
    yield "keep 1", "p50_us", "haproxy", "p50 of a request, keep-alive, 1", 1.4, 1.0, False
    yield "new 4", "cpu_us", "haproxy", "CPU of a new connection with a request", 0.8, 0.6, False
    yield "get", "cpu_gb", "haproxy", "CPU per GB, download", 1.3, 1.0, False
    yield "put", "cpu_gb", "haproxy", "CPU per GB, upload", 1.0, 1.0, False
    yield "echo", "cpu_gb", "haproxy", "CPU per GB, echo on a tunnel", 1.4, 1.0, False
    yield "rtt", "p50_us", "haproxy", "64 bytes there and back, p50", 1.5, 1.1, False
    # With eight at a time dockerd's own listener serves some connections at once and lets others wait: the
    # median tells of the lucky half alone. The rate tells what all of them cost.
    for path in ("/containers/json", "/info"):
        yield f"{path} 1", "p50_us", "dockerd", f"real Engine, {path}, 1, p50", 1.15, 1.1, False
        yield f"{path} 8", "rps", "dockerd", f"real Engine, {path}, 8, requests/s", 0.87, 0.91, True


def goals(
    medians: Medians,
    policy: Figures | None = None,
    durable: Figures | None = None,
    disk: Figures | None = None,
    syncs: Mapping[str, Figures] | None = None,
) -> list[Goal]:
    """Return the targets that these figures can tell about."""
    found = []
    for case, key, base, words, must, aim, rising in _against(medians):
        value = _relative(medians.get(case, {}), key, base)
        if value is not None:
            found.append(Goal(f"{words}: x {base}", value, must, aim, rising))
    memory = medians.get("idle", {}).get("defender")
    if memory is not None:
        found.append(Goal("memory of an idle TLS connection, KiB", memory["kib"], 36, 25, digits=1))
    if policy:
        found.append(Goal("policy decision, 1,000 rules: x 10 rules", policy["ratio"], 1.5, 1.0))
    if durable and disk:
        fsync = disk["paced_p50_us"] / 1000
        found.append(
            Goal("durable call, 1 at a time, added p50, ms (one fsync)", durable["p50_1"] / 1000, fsync)
        )
        for count in DURABLE_COUNTS:
            measure = f"durable call, {count} at a time, added p99, ms"
            found.append(Goal(measure, durable[f"p99_{count}"] / 1000, 5.0))
    reads = syncs.get("reads") if syncs else None
    if reads and reads["requests"]:
        found.append(
            Goal("syncs for 1,000 reads", reads["syncs"] * 1000 / reads["requests"], READ_SYNCS, digits=1)
        )
    return found


def goals_table(found: list[Goal]) -> str:
    """Lay the targets out, or return "" without any."""
    if not found:
        return ""
    headings = ("measure", "value", "must reach", "aim", "ok?")
    return "targets\n\n" + layout(headings, [goal.cells() for goal in found], left=1)
