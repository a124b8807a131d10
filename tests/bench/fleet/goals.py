"""The project's targets for a fleet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tests.bench.fleet.cases import Figures
from tests.bench.goals import Goal


def fleet_goals(medians: Mapping[str, Figures]) -> list[Goal]:
    """The targets that these medians can tell about."""
    return list(_goals(medians))


def _goals(medians: Mapping[str, Figures]) -> Iterator[Goal]:
    if idle := medians.get("idle"):
        yield Goal("memory for an idle defender, KiB", idle["kib"], 45, 25, digits=1)
    if push := medians.get("push"):
        yield Goal("100 KiB to everybody, CPU until the last ACK, ms each", push["cpu_ms"], 0.35, 0.2)
    if back := medians.get("back"):
        yield Goal("everybody back after a restart, CPU, ms each", back["cpu_ms"], 2.0, 1.2)
    if ingest := medians.get("ingest"):
        measure = "events of 50 defenders, stored in a second"
        yield Goal(measure, ingest["events_s"], 20_000, 50_000, rising=True, digits=0)
    if tail := medians.get("tail"):
        yield Goal("event to terminal with 50 busy defenders, p99, s", tail["p99_s"], 1.0, 0.3)
    if policy := medians.get("policy"):
        yield Goal("policy change to active on 1,000 defenders, p99, s", policy["p99_s"], 2.0, 1.0)
    if lock := medians.get("lock"):
        yield Goal("lock to cut stream, 1,000 defenders, 10 streams, p99, s", lock["p99_s"], 1.0, 0.3)
