"""What a defender holds at one moment, seen from outside: memory, descriptors by kind, Engine connections."""

from __future__ import annotations

import dataclasses
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.engine import system_tool

KIB = 1024
_TICKS = os.sysconf("SC_CLK_TCK")
_LISTENING = 0x10000  # SO_ACCEPTCON in /proc/net/unix


@dataclass(frozen=True, slots=True)
class Sample:
    """One moment.

    Attributes:
        at: seconds since the begin of the phase.
        rss_anon, rss: KiB of memory (proc(5), RssAnon and VmRSS).
        cpu: seconds of CPU time used since the start of the process.
        descriptors: open ones by kind: "tls", "unix" and "control" clients, "listener", "engine", "file", ...
        engine_side: connections that the Engine's socket has, whoever made them.
        engine_files: open descriptors of the Engine's process.
        status: of `defenderctl local status`: engine, clients, counters, audit.
        probe: p50, p99, max in milliseconds of the probe's round trips since the last sample; their count.
        load: what the workers have done so far, by outcome.
    """

    at: float
    rss_anon: int
    rss: int
    cpu: float
    descriptors: Mapping[str, int]
    engine_side: int
    engine_files: int
    status: Mapping[str, Any]
    probe: Mapping[str, float] = field(default_factory=dict)
    load: Mapping[str, int] = field(default_factory=dict)

    @property
    def engine_connections(self) -> int:
        """As the defender's pool counts them."""
        return int(self.status["engine"]["connections"])

    @property
    def engine_idle(self) -> int:
        """Those of them that are kept for the next call."""
        return int(self.status["engine"]["idle"])

    @property
    def steady(self) -> dict[str, int]:
        """Descriptors by kind without those that the pool keeps."""
        kinds = dict(self.descriptors)
        kinds["engine"] = kinds.get("engine", 0) - self.engine_idle
        return {kind: count for kind, count in sorted(kinds.items()) if count}

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


def memory(pid: int) -> tuple[int, int]:
    """RssAnon and VmRSS of a process in KiB."""
    found = {}
    for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines():
        key, _, value = line.partition(":")
        if key in ("RssAnon", "VmRSS"):
            found[key] = int(value.split()[0])
    return found["RssAnon"], found["VmRSS"]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _links(pid: int) -> Iterator[str]:
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            yield os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue


def descriptors(pid: int, *, port: int, unix: Path, control: Path) -> dict[str, int]:
    """Count a defender's descriptors by kind; `port`, `unix` and `control` are where it listens."""
    sockets = _sockets(port, {str(unix): "unix", str(control): "control"})
    kinds: Counter[str] = Counter()
    for link in _links(pid):
        if link.startswith("socket:["):
            kinds[sockets.get(link[8:-1], "socket")] += 1
        elif link.startswith("anon_inode:"):
            kinds[link.removeprefix("anon_inode:").strip("[]")] += 1
        else:
            kinds["pipe" if link.startswith("pipe:") else "file"] += 1
    return dict(kinds)


def _sockets(port: int, paths: Mapping[str, str]) -> dict[str, str]:
    """Kinds of sockets by inode; a unix socket without a name is one that connects: to the Engine."""
    kinds = {}
    for line in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]:
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == port:
            kinds[fields[9]] = "listener" if fields[3] == "0A" else "tls"
    for flags, inode, path in _unix_sockets():
        if path in paths:
            kinds[inode] = "listener" if flags & _LISTENING else paths[path]
        elif not path:
            kinds[inode] = "engine"
    return kinds


def _unix_sockets() -> Iterator[tuple[int, str, str]]:
    for line in Path("/proc/net/unix").read_text("utf-8", "replace").splitlines()[1:]:
        fields = line.split(maxsplit=7)
        yield int(fields[3], 16), fields[6], fields[7] if len(fields) > 7 else ""


def engine_side(socket: Path) -> int:
    """Connections of the listener at this path whose other end is open.

    An Engine keeps the sockets of streams that have ended until its garbage collector comes by, whoever the
    client was; they have no other end (ss(8) shows it as inode 0).
    """
    done = system_tool("ss", "-xnH", "state", "connected")
    rows = (line.split() for line in done.stdout.splitlines())
    return sum(1 for row in rows if str(socket) in row and row[-1] != "0")


def quantiles(milliseconds: Sequence[float]) -> dict[str, float]:
    """p50, p99, the longest, and how many; nothing of nothing."""
    if not milliseconds:
        return {}
    ordered = sorted(milliseconds)

    def at(part: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(part * len(ordered)))], 3)

    return {"p50": at(0.5), "p99": at(0.99), "max": round(ordered[-1], 3), "count": len(ordered)}


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Rise of the line of least squares through these points, by unit of the first coordinate."""
    if len(points) < 2:
        return 0.0
    middle = sum(x for x, _ in points) / len(points)
    level = sum(y for _, y in points) / len(points)
    spread = sum((x - middle) ** 2 for x, _ in points)
    return sum((x - middle) * (y - level) for x, y in points) / spread if spread else 0.0


def elapsed(since: float) -> float:
    """Seconds since a moment of `time.monotonic`, rounded for people."""
    return round(time.monotonic() - since, 1)
