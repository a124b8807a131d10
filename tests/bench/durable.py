"""What durable events cost a call: calls whose event is on disk first, beside calls whose event is not.

Both change something and go the same way through the defender; the first wait for the disk. The disk's own
time is taken in the same directory, in turn with them."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from tests.bench.cases import DISTINCT_TARGETS, TARGET_PATH, Figures
from tests.bench.children import Running, TargetError, stop_pid
from tests.bench.stage import Stage
from tests.bench.targets import start_defender

RECORD_FIRST = "start"
OTHER = "resize"
COUNTS = (1, 64)
PAUSE = 0.0005
PROBES = (("fsync", os.fsync, 0.0), ("fdatasync", os.fdatasync, 0.0), ("paced", os.fsync, PAUSE))
PROBED = 200
BLOCK = b"\x5a" * 4096
SETTLING = 1.0
"""Seconds after which the events of reads are on disk too."""


def latency(stage: Stage, defender: Running, seconds: float, repetition: int) -> dict[str, Figures]:
    """Measure both kinds of call, one and 64 at a time, and the disk; see `added` for what it means."""
    figures = {"disk": disk(stage.scene.directory, stage.scene.proxy_core)}
    verbs = (RECORD_FIRST, OTHER) if repetition % 2 == 0 else (OTHER, RECORD_FIRST)
    for count in COUNTS:
        for verb in verbs:
            options = {**_load(stage, verb), "connections": count, "seconds": seconds}
            figures[f"{verb} {count}"] = stage.client.run("keep", defender, options)
    return figures


def _load(stage: Stage, verb: str) -> dict[str, object]:
    paths = stage.scene.directory / f"{verb}.txt"
    if not paths.exists():
        query = "?h=40&w=80" if verb == OTHER else ""
        lines = (target.removesuffix("json") + verb + query for target in DISTINCT_TARGETS)
        paths.write_text("\n".join(lines) + "\n")
    return {"method": "POST", "targets": paths}


def disk(directory: Path, core: int | None) -> Figures:
    """Microseconds, p50 and p99, of one durable write of 4 KiB in a directory, on the proxy's core.

    ``fsync``: appended to a file; ``fdatasync``: over blocks that were written before; ``paced``: as
    ``fsync``, one each `PAUSE` and not one after the other. What is idle between two of them, the disk and
    the core, takes its time to wake, as it does for calls that come one by one.
    """
    path = directory / "disk-probe"
    figures: Figures = {}
    with _on(core), path.open("wb", buffering=0) as file:
        for name, sync, pause in PROBES:
            if name == "fdatasync":
                file.seek(0)  # over what the pass before appended
            times = []
            for _ in range(PROBED):
                began = time.perf_counter()
                file.write(BLOCK)
                sync(file.fileno())
                times.append((time.perf_counter() - began) * 1e6)
                time.sleep(pause)
            times.sort()
            figures[f"{name}_p50_us"] = statistics.median(times)
            figures[f"{name}_p99_us"] = times[len(times) * 99 // 100]
    path.unlink()
    return figures


@contextmanager
def _on(core: int | None) -> Iterator[None]:
    """Keep this thread on a core for a while."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def added(medians: Mapping[str, Mapping[str, float]]) -> Figures:
    """Microseconds that waiting for the disk adds, from the medians of `latency`: at p50 and p99, by load."""
    return {
        f"{name}_{count}": medians[f"{RECORD_FIRST} {count}"][f"{name}_us"]
        - medians[f"{OTHER} {count}"][f"{name}_us"]
        for count in COUNTS
        for name in ("p50", "p99")
    }


def syncs(stage: Stage, seconds: float) -> dict[str, Figures]:
    """Count the defender's fsync and fdatasync calls, as strace sees them, while it idles, reads and writes.

    Returns:
        For "idle", "reads" (8 connections) and "record_first" (1 connection): ``requests``, ``syncs``,
        ``seconds``.

    Raises:
        TargetError: when strace is missing or may not do it.
    """
    strace = shutil.which("strace")
    if strace is None:
        raise TargetError("strace is not installed (Debian: apt-get install strace)")
    directory = stage.scene.directory / "syncs"
    directory.mkdir(exist_ok=True)
    trace = directory / "trace.txt"
    wrapper = [strace, "-f", "--seccomp-bpf", "-qq", "-e", "trace=fsync,fdatasync", "-o", str(trace)]
    tracer = start_defender(replace(stage.scene, directory=directory), wrapper)
    try:
        traced = int(Path(f"/proc/{tracer.pid}/task/{tracer.pid}/children").read_text().split()[0])
        defender = replace(tracer, pid=traced, stop=lambda: stop_pid(traced))
        return _count(stage, defender, trace, seconds)
    finally:
        with suppress(NameError):
            defender.stop()  # strace ends with what it runs
        tracer.stop()


def _count(stage: Stage, defender: Running, trace: Path, seconds: float) -> dict[str, Figures]:
    reads: dict[str, object] = {"connections": 8, "seconds": seconds, "target": TARGET_PATH}
    first = {**_load(stage, RECORD_FIRST), "connections": 1, "seconds": seconds}
    figures = {}
    time.sleep(SETTLING)
    for name, options in (("idle", None), ("reads", reads), ("record_first", first)):
        before, began = _lines(trace), time.monotonic()
        done = stage.client.run("keep", defender, options) if options else {"answered": 0}
        time.sleep(SETTLING)
        requests = float(done["answered"])
        spent = time.monotonic() - began
        figures[name] = {"requests": requests, "syncs": float(_lines(trace) - before), "seconds": spent}
    return figures


def _lines(trace: Path) -> int:
    """Count the calls in a trace, not their second halves."""
    text = trace.read_text("utf-8", "replace")
    return sum("sync(" in line for line in text.splitlines())
