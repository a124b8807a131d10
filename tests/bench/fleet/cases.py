"""What is measured of a controller, each by a function that gives one sample."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.children import TargetError
from tests.bench.fleet.guards import Guards
from tests.bench.fleet.herd import Herd
from tests.bench.fleet.plant import Plant
from tests.bench.fleet.population import populate
from tests.bench.fleet.records import MARKED
from tests.bench.fleet.terminal import PATIENCE, Terminal

Figures = dict[str, float]

BUNDLE: Final = 100 * 1024
SETTLED: Final = 3.0
"""Seconds that a controller is left alone before its memory is looked at."""

GROUPS: Final = {
    "idle": "memory of the controller for each connected defender that does nothing",
    "push": "a policy of 100 KiB to everybody: CPU of the controller until the last ACK",
    "back": "everybody comes back after a restart of the controller: CPU for each",
    "policy": "a policy published in waves: until it is active on each of 1,000 defenders",
    "lock": "a user is locked: until the stream of that user on each of 10 real defenders is cut",
    "ingest": "events of 50 defenders: how many are stored in a second",
    "tail": "an event of one of 50 busy defenders: until `defenderctl audit tail -f` shows it",
}
"""What ``--cases`` takes."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How many and how often: `FULL`, or `QUICK` for a first look.

    `defenders` is the size of the fleet for memory, pushes and restarts, `followers` for policy changes,
    `senders` for events, each of which sends `batches` of 200. `guards` of the followers are real defenders,
    with a stream through each. `marks` is how many events the tail is waited for, while the senders record.
    """

    repetitions: int
    defenders: int
    processes: int
    followers: int
    senders: int
    batches: int
    guards: int
    marks: int


FULL: Final = Effort(3, 5000, 2, 1000, 50, 50, 10, 100)
QUICK: Final = Effort(1, 500, 1, 200, 50, 10, 4, 30)

BUSY: Final = 100
"""Events that each sender records in a second while somebody looks on."""


@contextlib.contextmanager
def fleet(directory: Path, name: str, count: int) -> Iterator[Plant]:
    """A controller that knows `count` defenders and runs; its files go with it."""
    home = directory / name
    home.mkdir()
    plant = Plant(home / "state")
    try:
        # The first start founds the authority, whose certificates the defenders have.
        plant.start()
        plant.stop()
        populate(plant.state, home / "defenders", count)
        plant.start()
        plant.sign_in()
        yield plant
    finally:
        plant.stop()
        shutil.rmtree(home, ignore_errors=True)


def files_of(plant: Plant) -> Path:
    """Where the defenders of a fleet have their certificates."""
    return plant.state.parent / "defenders"


def joined(plant: Plant, herd: Herd) -> Figures:
    """Let everybody connect for the first time, and take what there is for them."""
    before = plant.cpu()
    seconds = herd.connect(plant.channel)
    for stream in ("trust", "locks", "policy"):
        herd.acknowledged(stream)
    herd.quiet()
    return {"first_ms": (plant.cpu() - before) * 1e3 / herd.count, "first_seconds": seconds}


def policy_text(number: int, size: int = 0) -> str:
    """A policy, other for each number, of at least `size` bytes."""
    lines = [
        "schema: 1",
        "rules:",
        f"  - name: number_{number}",
        '    groups: ["Dev team"]',
        "    effect: allow",
    ]
    have = sum(len(line) + 1 for line in lines)
    rule = 0
    while have < size:
        users = ", ".join(f"user{rule:04}-{each:02}@example.com" for each in range(20))
        more = [f"  - name: rule_{rule}", f"    users: [{users}]", "    effect: allow"]
        more.append("    actions: [container_list, container_inspect, container_logs]")
        lines += more
        have += sum(len(line) + 1 for line in more)
        rule += 1
    return "\n".join(lines) + "\n"


def idle_memory(plant: Plant, herd: Herd, alone_kib: int) -> Figures:
    """Memory with everybody connected and quiet, over that of a controller of its own without defenders."""
    time.sleep(SETTLED)
    kib = plant.anonymous_kib()
    return {"kib": (kib - alone_kib) / herd.count, "resident_kib": kib, "files": plant.open_files()}


def push(plant: Plant, herd: Herd, number: int) -> Figures:
    """Publish a large policy to everybody at once."""
    etag = plant.draft("bench", policy_text(number, BUNDLE))
    herd.quiet()
    herd.ask("forget")
    before, began = plant.cpu(), time.monotonic()
    plant.publish("bench", etag, waves=False)
    times = herd.acknowledged("policy")
    herd.quiet(0.5)
    spent = plant.cpu() - before
    return {
        "cpu_ms": spent * 1e3 / herd.count,
        "seconds": times[-1] - began,
        "p99_s": at(times, 99) - began,
    }


def back(plant: Plant, herd: Herd) -> Figures:
    """End the controller without a word, start it again, and let everybody come back."""
    plant.stop(signal.SIGKILL)
    herd.ask("forget")
    plant.start()
    before = plant.cpu()
    seconds = herd.connect(plant.channel)
    herd.quiet()
    spent = plant.cpu() - before
    if herd.heard_of("policy"):
        raise TargetError("the controller pushed what everybody had already")
    return {"cpu_ms": spent * 1e3 / herd.count, "seconds": seconds}


def policy_change(plant: Plant, herd: Herd, number: int) -> Figures:
    """Publish a small policy in waves, as a person does it."""
    etag = plant.draft("bench", policy_text(number))
    herd.quiet()
    herd.ask("forget")
    before, began = plant.cpu(), time.monotonic()
    plant.publish("bench", etag, waves=True)
    published = time.monotonic() - began
    times = [each - began for each in herd.acknowledged("policy")]
    herd.quiet(0.3)
    return {
        "p50_s": at(times, 50),
        "p99_s": at(times, 99),
        "last_s": times[-1],
        "published_s": published,
        "cpu_ms": (plant.cpu() - before) * 1e3 / herd.count,
    }


def lock(guards: Guards) -> Figures:
    """Lock the user of all streams."""
    guards.open()
    began = time.monotonic()
    number = guards.lock()
    answered = time.monotonic() - began
    times = [each - began for each in guards.cut()]
    guards.unlock(number)
    return {"p50_s": at(times, 50), "p99_s": at(times, 99), "answered_s": answered}


def ingest(plant: Plant, herd: Herd, senders: int, batches: int) -> Figures:
    """Let some defenders send what they have recorded, as fast as they may."""
    made = herd.first("record", count=senders, each=batches)
    herd.ask("forget")
    before = plant.cpu()
    began = herd.first("ship")["began"]
    done = herd.first("await", what="stored", count=made["events"], timeout=50.0)
    if done["count"] < made["events"]:
        raise TargetError(f"{done['count']} of {made['events']} events were stored: {done['why']}")
    seconds = done["stored_at"] - began
    return {
        "events_s": made["events"] / seconds,
        "cpu_us": (plant.cpu() - before) * 1e6 / made["events"],
        "events": made["events"],
        "bytes": made["bytes"] / made["events"],
        "seconds": seconds,
    }


def tail(plant: Plant, herd: Herd, senders: int, marks: int) -> Figures:
    """Look at a terminal while all senders record; from when an event is sent until its line is there."""
    terminal = Terminal(plant, MARKED)
    try:
        herd.first("drip", count=senders, rate=BUSY)
        herd.first("mark")
        end = time.monotonic() + PATIENCE
        while not terminal.began():
            if time.monotonic() > end:
                raise TargetError("the tail shows nothing")
            herd.first("mark")
        seen = terminal.settled()
        waited = []
        for number in range(seen + 1, seen + marks + 1):
            sent = herd.first("mark")["at"]
            waited.append(terminal.line(number) - sent)
    finally:
        herd.first("drip", count=0, rate=0)
        terminal.close()
    waited.sort()
    return {"p50_s": at(waited, 50), "p99_s": at(waited, 99), "last_s": waited[-1], "rate": senders * BUSY}


def at(ordered: Sequence[float], percent: int) -> float:
    """A percentile of ordered numbers."""
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
