"""The mixed load: a warm-up, a look at what is held at rest, the load itself, and the same look again."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.engine.dockerd import docker_clis
from tests.engine.guarded import defenderctl
from tests.soak import clients, verdict
from tests.soak.clients import Caller
from tests.soak.commands import Commands
from tests.soak.ledger import Ledger
from tests.soak.samples import Sample, elapsed
from tests.soak.stage import BRUCE, EXACT, LOCKED, SEGMENT, SPOOL, STRANGER, Stage
from tests.soak.verdict import Check
from tests.soak.work import Worker, WorkError
from tests.spool import Follower

SAMPLE = 5.0
"""Seconds from one sample to the next."""

WARM_UP = (30.0, 300.0)
"""The warm-up is a fifth of the load, and between these, in seconds."""

RESTARTS = 600.0
"""Seconds from one restart of the Engine to the next; in a short run there is one in the middle."""

TURN = (2.0, 20.0)
"""Seconds from one thing that the operator does to the next, the shortest and the longest mean."""

Say = Callable[[str], None]


@dataclass(slots=True)
class Result:
    """What a phase found."""

    checks: list[Check] = field(default_factory=list)
    text: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


class Watch(threading.Thread):
    """Takes samples and reads the record until it is told to stop."""

    def __init__(self, stage: Stage, trail: Follower, ledger: Ledger, say: Say) -> None:
        super().__init__(name="watch", daemon=True)
        self.trail = trail
        self._stage = stage
        self._ledger = ledger
        self._say = say
        self._end = threading.Event()
        self.began = time.monotonic()
        self.samples: list[Sample] = []
        self.problem = ""

    def run(self) -> None:
        due = time.monotonic()
        try:
            while not self._end.wait(0.5):
                self._ledger.enter(self.trail.take())
                if time.monotonic() >= due:
                    due += SAMPLE
                    self.samples.append(self._stage.sample(self.began))
                    self._say(progress(self.samples[-1]))
        except Exception as error:
            # Without samples there is no verdict: it is said there.
            self.problem = repr(error)

    def stop(self) -> None:
        """End after the look that it is at."""
        self._end.set()
        self.join()


def progress(sample: Sample) -> str:
    """One line about a moment."""
    kinds = sample.descriptors
    audit, load = sample.status["audit"], sample.load
    return (
        f"{int(sample.at) // 60:3}:{int(sample.at) % 60:02} RssAnon {sample.rss_anon / 1024:.1f} MiB, "
        f"clients {kinds.get('tls', 0)}+{kinds.get('unix', 0)}, Engine {sample.engine_connections}, "
        f"probe {sample.probe.get('p50', 0):.1f}/{sample.probe.get('p99', 0):.1f} ms, "
        f"requests {sample.status['counters']['requests']}, events {audit['written']}, "
        f"done {load['done']}, disturbed {load['disturbed']}, failed {load['failed']}"
    )


def make_workers(stage: Stage, seed: int) -> list[Worker]:
    """Everybody who asks something, bounded in number and rate."""
    made: list[Worker] = []
    defender = stage.defender
    old, new = docker_clis()[0], docker_clis()[-1]

    def dice(name: str) -> random.Random:
        return random.Random(f"{seed} {name} choices")

    def put(name: str, tasks: dict[str, Callable[[], None]], pause: float, *needs: str) -> None:
        made.append(
            Worker(
                name,
                tasks,
                books=stage.books,
                weather=stage.weather,
                needs=("engine", *needs),
                pause=pause,
                seed=seed,
            )
        )

    tls = Commands(stage, new, defender.tls(), dice("tls"))
    unix = Commands(stage, old, defender.unix(), dice("unix"))
    put("commands over TLS", tls.tasks(), 1.5)
    put("commands on unix", unix.tasks(), 1.5, "unix")
    put("killed commands", tls.kills(), 2.0)
    put("killed commands on unix", unix.kills(), 3.0, "unix")
    bruce = Commands(stage, new, defender.tls(BRUCE), dice("bruce"))
    put("bruce", {"conversation": bruce.converse}, 0.3, "policy")
    for user in (*EXACT[:2], LOCKED):
        put(user, {"kept connection": clients.reads(Caller(stage, user), dice(user))}, 0.1)
    newcomer = Caller(stage, EXACT[2], kept=False)
    put("newcomer", {"new connection": clients.reads(newcomer, dice("newcomer"))}, 0.5)
    put("probe", {"probe": clients.probe(Caller(stage, EXACT[3]), stage)}, 0.1)
    put("stranger", {"denied": clients.denied(Caller(stage, STRANGER), dice("denied"))}, 0.25)
    slow = {"slow download over TLS": clients.slow_download(stage, dice("slow"), tls=True)}
    put("slow reader", slow, 3.0)
    slow = {"slow download on unix": clients.slow_download(stage, dice("slow too"), tls=False)}
    put("slow reader on unix", slow, 3.0, "unix")
    rest = {
        "events left": clients.leave_events(stage),
        "upload reset": clients.reset_upload(stage),
        "no certificate": clients.stranger(stage, dice("nobody")),
    }
    put("passers-by", rest, 1.0)
    put("nonsense", {"nonsense": clients.garble(stage)}, 2.0, "unix")
    return made


def works(stage: Stage, seed: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """What the operator does, in an order that never ends; the Engine's restarts are apart."""
    dice = random.Random(f"{seed} operator")
    while True:
        turns = [
            stage.switch_listeners,
            stage.change_policy,
            stage.break_policy,
            stage.lock,
            stage.hang_up,
            stage.stall_engine,
        ]
        dice.shuffle(turns)
        for turn in turns:
            yield f"operator: {turn.__name__}", turn


def load(stage: Stage, seconds: float, seed: int) -> None:
    """Run the workers and the operator for so long; the operator's part is done here, in the main thread.

    An Engine ends with the thread that started it.
    """
    workers = make_workers(stage, seed)
    for worker in workers:
        worker.start()
    end = time.monotonic() + seconds
    turn = min(max(seconds / 40, TURN[0]), TURN[1])
    restart = time.monotonic() + min(RESTARTS, seconds / 2)
    plan = works(stage, seed)
    try:
        while time.monotonic() < end:
            what, task = next(plan)
            if time.monotonic() >= restart:
                restart += RESTARTS
                what, task = "operator: restart_engine", stage.restart_engine
            try:
                task()
                stage.books.note(what, "done")
            except WorkError as error:
                stage.books.note(what, "failed", str(error))
            time.sleep(max(0.0, min(turn, end - time.monotonic())))
    finally:
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.join()


def at_rest(stage: Stage, began: float) -> tuple[Sample, list[Check]]:
    """Wait until nobody is there, and look."""
    drained = stage.drain()
    checks = [] if drained else [Check("drain", False, f"not everything ended: {stage.status()}")]
    # Counts of floods are recorded every ten seconds, and memory is given back meanwhile.
    time.sleep(12)
    return stage.sample(began), checks


def verify(stage: Stage, when: str) -> Check:
    """`defenderctl audit verify`."""
    done = defenderctl("audit", "verify", "--state", str(stage.defender.state), check=False)
    found = done.stdout.strip() if done.returncode else done.stdout.strip().splitlines()[-1]
    return Check(f"audit verify {when}", done.returncode == 0, found)


def mixed(seconds: float, seed: int, say: Say) -> Result:
    """Do all of it."""
    stage = Stage().open()
    result = Result()
    try:
        ledger = Ledger()
        trail = Follower(stage.defender.state)
        warm = Watch(stage, trail, ledger, lambda line: say(f"warm-up {line}"))
        warm.start()
        load(stage, min(max(seconds / 5, WARM_UP[0]), WARM_UP[1]), seed)
        rest, checks = at_rest(stage, warm.began)
        result.checks += checks
        warm.stop()
        watch = Watch(stage, trail, ledger, say)
        watch.start()
        load(stage, seconds, seed + 1)
        loaded = len(watch.samples)
        end, checks = at_rest(stage, watch.began)
        result.checks += checks
        watch.stop()
        samples = watch.samples[:loaded]
        for each in (warm, watch):
            if each.problem:
                result.checks.append(Check("samples", False, each.problem))
        result.checks.append(verify(stage, "at rest"))
        pid = stage.defender.pid
        stage.close()
        ledger.enter(trail.take())
        result.checks.append(verify(stage, "after the stop"))
        result.checks += [
            *verdict.memory_checks(rest, samples, end),
            *verdict.descriptor_checks(rest, end),
            *verdict.audit_checks(ledger, end, rotations=int(seconds // 60)),
            *verdict.count_checks(ledger, stage.books, (*EXACT, STRANGER)),
            *verdict.work_checks(stage.books),
            verdict.nothing_in("log", stage.complaints(), "no traceback"),
            *(
                [Check("streams cut by policies", ledger.cut > 0, str(ledger.cut))]
                if stage.books.done["operator: change_policy"] > 2
                else []
            ),
        ]
        result.text = verdict.table(rest, samples, end)
        result.figures = {
            "seconds": seconds,
            "seed": seed,
            "pid": pid,
            "spool": {"segment_bytes": SEGMENT, "max_bytes": SPOOL},
            "rest": rest.plain(),
            "end": end.plain(),
            "samples": [sample.plain() for sample in itertools.chain(warm.samples, watch.samples)],
            "work": {
                outcome: dict(getattr(stage.books, outcome)) for outcome in ("done", "disturbed", "failed")
            },
            "statuses": dict(stage.books.statuses),
            "record": {
                "events": ledger.events,
                "notes": dict(ledger.notes),
                "results": {f"{user} {status}": count for (user, status), count in ledger.results.items()},
                "errors": dict(ledger.errors.most_common(20)),
                "cut": ledger.cut,
            },
            "minutes": elapsed(warm.began) / 60,
        }
    finally:
        stage.close()
    return result
