"""What was measured of the defender alone, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tests.bench.decisions import RULES
from tests.bench.durable import COUNTS, OTHER, RECORD_FIRST, added
from tests.bench.report import listing


def findings(found: Mapping[str, Any]) -> str:
    """Lay out the figures that are compared with nothing."""
    return "\n\n".join(_listings(found))


def _listings(found: Mapping[str, Any]) -> Iterator[str]:
    if policy := found.get("policy"):
        values = {}
        for rules in RULES:
            usual, first = policy[f"us_{rules}"], policy[f"first_us_{rules}"]
            values[f"{rules:,} rules"] = f"{usual:.2f} us; a user's first {first:.1f} us"
        yield listing("policy decision, 1,000 users", values)
    if spool := found.get("spool"):
        yield listing("the spool by itself", dict(_spool(spool)))
    if durable := found.get("durable"):
        yield listing("calls whose event is on disk first", dict(_durable(durable)))
    if counted := found.get("syncs"):
        values = {
            name: f"{item['syncs']:.0f} in {item['seconds']:.1f} s, {item['requests']:.0f} requests"
            for name, item in counted.items()
        }
        yield listing("fsync and fdatasync calls of the defender", values)


def _disk(disk: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    for words, key in (
        ("4 KiB appended, fsync", "fsync"),
        ("the same, one each 0.5 ms", "paced"),
        ("4 KiB rewritten, fdatasync", "fdatasync"),
    ):
        yield words, f"p50 {disk[f'{key}_p50_us']:.0f} us, p99 {disk[f'{key}_p99_us']:.0f} us"


def _spool(spool: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    yield "events to disk", f"{spool['events_s']:.0f}/s of {spool['bytes']:.0f} bytes"
    yield (
        "CPU of an event",
        f"{spool['cpu_us']:.1f} us, of which its caller waits {spool['append_us']:.1f} us",
    )
    for count in COUNTS:
        p50, p99 = spool[f"commit_p50_{count}_us"], spool[f"commit_p99_{count}_us"]
        yield f"commit, {count} at a time", f"p50 {p50:.0f} us, p99 {p99:.0f} us"
    yield from _disk(spool)


def _durable(durable: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[str, str]]:
    yield from _disk(durable["disk"])
    extra = added(durable)
    for count in COUNTS:
        for words, verb in (("on disk first", RECORD_FIRST), ("others", OTHER)):
            figures = durable[f"{verb} {count}"]
            speed = f"{figures['rps']:.0f}/s, p50 {figures['p50_us']:.0f} us, p99 {figures['p99_us']:.0f} us"
            yield f"{count} at a time, {words}", speed
        yield (
            f"{count} at a time, added",
            f"p50 {extra[f'p50_{count}']:.0f} us, p99 {extra[f'p99_{count}']:.0f} us",
        )
