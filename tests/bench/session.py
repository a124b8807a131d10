"""One run of the bench: targets in turn over all cases, and what was found."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench import real_engine
from tests.bench.cases import Case, Effort, Figures, cases, measure
from tests.bench.children import Running, TargetError
from tests.bench.decisions import policy_cost
from tests.bench.durable import disk, latency, syncs
from tests.bench.spool import spool_cost
from tests.bench.stage import Stage, cores, free_stage, prepare
from tests.bench.targets import TARGETS

ALONE = frozenset({"engine", "policy", "spool"})
"""Groups that need no proxy before the free Engine."""

Samples = dict[str, dict[str, list[Figures]]]


class Run:
    """One run: what is wanted, and what was found.

    Attributes:
        samples: {case: {target: figures of each repetition}}.
        problems: what could not be measured, with the reason.
        found: figures of the defender alone, by group.
    """

    def __init__(self, effort: Effort, targets: Sequence[str], groups: Sequence[str]) -> None:
        self.effort = effort
        self.targets = targets
        self.groups = groups
        self.samples: Samples = {}
        self.problems: dict[str, str] = {}
        self.found: dict[str, Any] = {}

    def do(self, directory: Path) -> None:
        """Take all measurements; raises `TargetError` when not even the stage can be set."""
        program = prepare(directory)
        if "policy" in self.groups:
            self.found["policy"] = policy_cost(self.effort.policy_rounds)
        if "spool" in self.groups:
            self._spool(directory)
        if set(self.groups) - ALONE:
            with free_stage(directory, program) as stage:
                self._free(stage)
        if "engine" in self.groups:
            self._real(directory, program)
        print(file=sys.stderr)

    def medians(self) -> dict[str, dict[str, Figures]]:
        """The median of every figure."""
        return {
            case: {name: median(items) for name, items in by_name.items()}
            for case, by_name in self.samples.items()
        }

    def _spool(self, directory: Path) -> None:
        taken = []
        for _ in range(self.effort.repetitions):
            with self._noting("the spool alone"):
                core = cores()[0]
                taken.append(spool_cost(directory, self.effort.events, core) | disk(directory, core))
        if taken:
            self.found["spool"] = median(taken)

    def _free(self, stage: Stage) -> None:
        wanted = [case for case in cases(self.effort, stage.scene) if case.group in self.groups]
        running: list[Running] = []
        durable: list[dict[str, Figures]] = []
        try:
            for name in self.targets:
                with self._noting(name):
                    running.append(TARGETS[name](stage.scene))
            ours = [target for target in running if target.name == "defender"]
            for repetition in range(self.effort.repetitions):
                self._rounds(running, wanted, repetition, partial(measure, stage))
                for defender in ours if "durable" in self.groups else ():
                    with self._noting("durable calls"):
                        durable.append(latency(stage, defender, self.effort.seconds, repetition))
        finally:
            for target in running:
                target.stop()
        if durable:
            self.found["durable"] = {key: median([item[key] for item in durable]) for key in durable[0]}
            with self._noting("syncs"):
                self.found["syncs"] = syncs(stage, self.effort.seconds)

    def _real(self, directory: Path, program: Path) -> None:
        names = [name for name in real_engine.TARGET_NAMES if name == "dockerd" or name in self.targets]
        running: list[Running] = []
        try:
            with real_engine.real_engine(directory) as engine:
                stage = real_engine.stage_of(engine, directory, program)
                wanted = real_engine.engine_cases(self.effort)
                try:
                    for name in names:
                        with self._noting(f"{name} before the real Engine"):
                            running.append(real_engine.start_target(name, engine, stage))
                    for repetition in range(self.effort.repetitions):
                        self._rounds(running, wanted, repetition, partial(real_engine.measure_engine, stage))
                finally:
                    for target in running:
                        target.stop()
        except TargetError as error:
            self.problems["dockerd"] = str(error)

    def _rounds(
        self,
        running: Sequence[Running],
        wanted: Sequence[Case],
        repetition: int,
        take: Callable[[Running, Case], Figures],
    ) -> None:
        # Turn the order, so that nobody always follows the same neighbor.
        turn = repetition % max(1, len(running))
        for case in wanted:
            for target in [*running[turn:], *running[:turn]]:
                if target.name not in case.without:
                    with self._noting(f"{target.name}, {case.name}"):
                        figures = take(target, case)
                        self.samples.setdefault(case.name, {}).setdefault(target.name, []).append(figures)

    @contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        """Note why something cannot be measured; the others go on."""
        mark = "."
        try:
            yield
        except TargetError as error:
            self.problems[what] = str(error)
            mark = "!"
        print(mark, end="", file=sys.stderr, flush=True)


def median(items: Sequence[Mapping[str, Any]]) -> Figures:
    """The median of each number that all items have."""
    keys = [key for key, value in items[0].items() if isinstance(value, (int, float))]
    return {key: statistics.median(item[key] for item in items) for key in keys}
