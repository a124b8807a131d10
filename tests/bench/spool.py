"""The spool by itself: a journal in a process of its own, as the defender has it, with nothing before it.

    python -m tests.bench.spool DIRECTORY EVENTS

Prints one JSON object: ``events_s`` and ``cpu_us`` of one event from `append` to the disk (the journal's
thread included), ``append_us`` that `append` itself takes, ``bytes`` of an event; and ``commit_p50_1_us``
and so on: microseconds from `append_durable` until its writer is told, one and 64 at a time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from defender.audit.journal import Journal
from defender.contract.packing import assemble, pack_body
from tests.bench.children import ROOT, TargetError, environment, pinned

EVENT: dict[str, object] = {
    "kind": "engine",
    "phase": "result",
    "actor": {
        "user": "bench@example.com",
        "groups": ["Dev team"],
        "via": "mtls",
        "src": "127.0.0.1:51234",
        "serial": "2f0c8a61d5b7493e8a7d1b2c3d4e5f60",
    },
    "req": {
        "action": "container_inspect",
        "method": "GET",
        "api": "1.41",
        "path": f"/containers/{1 << 200:064x}/json",
        "query": {},
        "target": f"{1 << 200:064x}",
    },
    "decision": {
        "effect": "allow",
        "rule": "developers",
        "version": 7,
        "digest": "6f1ed002ab5595859014ebf0951522d9e1f4a1bb1f0f4a5ac4c4b3e6c1d1a2b3",
        "reason": "action listed",
    },
    "result": {"status": 200, "ms": 1.25, "in": 0, "out": 306},
}
"""What a read leaves behind."""

BATCH = 50
AHEAD = 5000
"""Events that are appended in one turn of the reactor, and that may be on their way to the disk."""

WAITED = 400
COUNTS = (1, 64)


def spool_cost(directory: Path, events: int, core: int) -> dict[str, float]:
    """Run this module in a new process, with the spool below a directory, on the proxy's core.

    Raises:
        TargetError: with what it wrote, when it gives no figures.
    """
    with tempfile.TemporaryDirectory(prefix="spool", dir=directory) as spool:
        command = [sys.executable, "-m", "tests.bench.spool", spool, str(events)]
        try:
            done = subprocess.run(
                pinned(core, command),
                capture_output=True,
                text=True,
                timeout=300,
                cwd=ROOT,
                env=environment(),
            )
        except subprocess.TimeoutExpired:
            raise TargetError("the spool alone: no end after 300 s") from None
    try:
        figures: dict[str, float] = json.loads(done.stdout)
    except ValueError:
        raise TargetError(f"the spool alone: {done.stderr[-1000:] or done.stdout}") from None
    return figures


async def measure(reactor: Any, directory: str, events: int) -> dict[str, float]:
    """Append events as fast as the disk takes them, then wait for some one by one and for some together."""
    journal = Journal(Path(directory) / "audit", "bench", reactor=reactor, max_bytes=8 << 30)
    pairs, body = pack_body(EVENT)
    journal.start()
    await _waited(reactor, journal, pairs, body, 1)
    figures: dict[str, float] = {}
    for together in COUNTS:
        times: list[float] = []
        for _ in range(WAITED // together * (1 if together == 1 else 8)):
            times += await _waited(reactor, journal, pairs, body, together)
        times.sort()
        for name, hundredths in (("p50", 50), ("p99", 99)):
            figures[f"commit_{name}_{together}_us"] = times[len(times) * hundredths // 100] * 1e6
    began, cpu, inside, before = time.perf_counter(), time.process_time(), 0.0, journal.written
    for _ in range(events // BATCH):
        turn = time.perf_counter()
        for _ in range(BATCH):
            journal.append(pairs, body)
        inside += time.perf_counter() - turn
        before += BATCH
        while before - journal.written > AHEAD:
            await _turn(reactor)
        await _turn(reactor)
    await _waited(reactor, journal, pairs, body, 1)
    spent, cpu = time.perf_counter() - began, time.process_time() - cpu
    count = events // BATCH * BATCH
    figures |= {
        "events_s": count / spent,
        "cpu_us": cpu * 1e6 / count,
        "append_us": inside * 1e6 / count,
        "bytes": float(len(assemble(pairs, body, bytes(16), 0, 0))),
        "dropped": float(journal.dropped),
    }
    await journal.stop()
    return figures


async def _waited(reactor: Any, journal: Journal, pairs: int, body: bytes, together: int) -> list[float]:
    """Seconds that each of some events, appended in one turn, took until its writer was told."""
    times: list[float] = []
    done: Deferred[None] = Deferred()

    def told(reason: str) -> None:
        if reason and not done.called:
            done.errback(TargetError(f"the spool: {reason}"))
        times.append(time.perf_counter() - began)
        if len(times) == together and not done.called:
            done.callback(None)

    began = time.perf_counter()
    for _ in range(together):
        journal.append_durable(pairs, body, b"", told)
    await done
    return times


async def _turn(reactor: Any) -> None:
    """Let the reactor do what it has to."""
    passed: Deferred[None] = Deferred()
    reactor.callLater(0, passed.callback, None)
    await passed


def main(directory: str, events: str) -> None:
    """Measure and print."""

    def begin(reactor: Any) -> Deferred[None]:
        measured: Deferred[dict[str, float]] = Deferred.fromCoroutine(
            measure(reactor, directory, int(events))
        )
        return measured.addCallback(lambda figures: print(json.dumps(figures)))

    react(begin)


if __name__ == "__main__":
    main(*sys.argv[1:])
