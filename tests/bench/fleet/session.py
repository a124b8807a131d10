"""One run of the bench of a fleet: which case on which fleet, in which order."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.children import TargetError
from tests.bench.fleet import cases
from tests.bench.fleet.cases import Effort, Figures
from tests.bench.fleet.guards import Guards
from tests.bench.fleet.herd import Herd
from tests.bench.fleet.plant import Plant
from tests.bench.report import layout
from tests.bench.session import median

LARGE = frozenset({"idle", "push", "back"})
"""Cases that share the large fleet."""
FOLLOWERS = frozenset({"policy", "lock"})
"""Cases that share the fleet of followers."""
SENDERS = frozenset({"ingest", "tail"})
"""Cases that share the fleet of senders."""


class FleetRun:
    """What was measured: `samples` by case, and in `problems` why something could not be."""

    def __init__(self, effort: Effort, groups: Sequence[str]) -> None:
        self.effort = effort
        self.groups = groups
        self.samples: dict[str, list[Figures]] = {}
        self.problems: dict[str, str] = {}
        self._began = time.monotonic()

    def do(self, directory: Path) -> None:
        """Measure everything that was asked for."""
        if LARGE.intersection(self.groups):
            with self._noting("the large fleet"):
                self._large(directory)
        if FOLLOWERS.intersection(self.groups):
            with self._noting("the followers"):
                self._followers(directory)
        if SENDERS.intersection(self.groups):
            with self._noting("the senders"):
                self._senders(directory)

    def medians(self) -> dict[str, Figures]:
        """The median of every figure."""
        return {case: median(items) for case, items in self.samples.items()}

    def _large(self, directory: Path) -> None:
        effort = self.effort
        alone = 0
        if "idle" in self.groups:
            with cases.fleet(directory, "alone", 0) as plant:
                alone = plant.anonymous_kib()
        self._say(f"a fleet of {effort.defenders} is made")
        with _stage(directory, "large", effort.defenders, effort.processes) as (plant, herd):
            self._take("first", partial(cases.joined, plant, herd))
            if "idle" in self.groups:
                self._take("idle", partial(cases.idle_memory, plant, herd, alone))
            for number in range(effort.repetitions if "push" in self.groups else 0):
                self._take("push", partial(cases.push, plant, herd, number))
            for _ in range(effort.repetitions if "back" in self.groups else 0):
                self._take("back", partial(cases.back, plant, herd))

    def _followers(self, directory: Path) -> None:
        effort = self.effort
        self._say(f"a fleet of {effort.followers} is made")
        with _stage(directory, "followers", effort.followers) as (plant, herd):
            cases.joined(plant, herd)
            for number in range(effort.repetitions if "policy" in self.groups else 0):
                self._take("policy", partial(cases.policy_change, plant, herd, number))
            if "lock" in self.groups:
                # They let in who the policy allows.
                plant.publish(
                    "bench", plant.draft("bench", cases.policy_text(effort.repetitions)), waves=False
                )
                with Guards(plant, effort.guards) as guards:
                    guards.start()
                    for _ in range(effort.repetitions):
                        self._take("lock", partial(cases.lock, guards))

    def _senders(self, directory: Path) -> None:
        senders, batches, marks = self.effort.senders, self.effort.batches, self.effort.marks
        self._say(f"a fleet of {senders} is made")
        with _stage(directory, "senders", senders) as (plant, herd):
            cases.joined(plant, herd)
            for _ in range(self.effort.repetitions if "ingest" in self.groups else 0):
                self._take("ingest", partial(cases.ingest, plant, herd, senders, batches))
            for _ in range(self.effort.repetitions if "tail" in self.groups else 0):
                self._take("tail", partial(cases.tail, plant, herd, senders, marks))

    def _take(self, case: str, measure: Callable[[], Figures]) -> None:
        with self._noting(case):
            taken = measure()
            samples = self.samples.setdefault(case, [])
            samples.append(taken)
            self._say(f"{WORDS[case][0]}, {len(samples)}")

    @contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        """Note why something cannot be measured; the others go on."""
        try:
            yield
        except TargetError as error:
            self.problems[what] = str(error)
            self._say(f"{what} cannot be measured")

    def _say(self, text: str) -> None:
        """Say what is going on."""
        print(f"{time.monotonic() - self._began:6.0f} s  {text}", file=sys.stderr, flush=True)


@contextmanager
def _stage(directory: Path, name: str, count: int, processes: int = 1) -> Iterator[tuple[Plant, Herd]]:
    """A controller and defenders that are not connected yet."""
    with (
        cases.fleet(directory, name, count) as plant,
        Herd(cases.files_of(plant), count, processes) as herd,
    ):
        yield plant, herd


WORDS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "first": (
        "everybody comes for the first time",
        {"first_ms": "ms of CPU each", "first_seconds": "s until all are there"},
    ),
    "idle": (
        "idle defenders",
        {"kib": "KiB for each", "resident_kib": "KiB in all", "files": "descriptors"},
    ),
    "push": (
        "100 KiB to everybody",
        {"cpu_ms": "ms of CPU each", "p99_s": "s until p99", "seconds": "s until all have it"},
    ),
    "back": (
        "everybody back after a restart",
        {"cpu_ms": "ms of CPU each", "seconds": "s until all are back"},
    ),
    "policy": (
        "a policy in waves",
        {
            "p50_s": "s until p50",
            "p99_s": "s until p99",
            "last_s": "s until the last",
            "published_s": "s until the API answers",
            "cpu_ms": "ms of CPU each",
        },
    ),
    "lock": (
        "a user is locked",
        {
            "p50_s": "s until half of the streams are cut",
            "p99_s": "s until p99",
            "answered_s": "s until the API answers",
        },
    ),
    "ingest": (
        "events",
        {
            "events_s": "events/s",
            "cpu_us": "us of CPU each",
            "bytes": "bytes each",
            "events": "events",
            "seconds": "s",
        },
    ),
    "tail": (
        "an event at a terminal",
        {
            "p50_s": "s until p50",
            "p99_s": "s until p99",
            "last_s": "s until the last",
            "rate": "other events/s meanwhile",
        },
    ),
}
"""What the figures of each case are."""


def medians_table(medians: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay the medians out."""
    rows = []
    for case, figures in medians.items():
        title, words = WORDS[case]
        for index, (key, meaning) in enumerate(words.items()):
            if key in figures:
                rows.append(["" if index else title, meaning, f"{figures[key]:,.{_digits(figures[key])}f}"])
    return layout(("case", "what", "median"), rows) if rows else ""


def _digits(value: float) -> int:
    return 0 if value >= 1000 else 1 if value >= 100 else 2 if value >= 1 else 3
