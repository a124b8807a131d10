"""What is measured against the free Engine, and how one measurement is taken."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tests.bench.children import Running, Scene
from tests.bench.stage import Stage
from tests.bench.targets import TARGETS

Figures = dict[str, float]

TARGET_PATH = "/v1.41/containers/json?all=1"

DISTINCT_TARGETS = tuple(
    f"/v1.41/containers/{hashlib.sha256(b'%d' % number).hexdigest()}/json" for number in range(1000)
)
"""Asked for in turn, so that what a proxy remembers of a request's head cannot flatter it."""

ATTACH = f"/v1.41/containers/{7 << 200:064x}/attach?stream=1&stdin=1&stdout=1&stderr=1"

WEB_PART = 8
"""twisted.web holds a whole body in memory: it is given an eighth of the others' bytes."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long and how often: `FULL`, or `QUICK` for a first look."""

    repetitions: int
    seconds: float
    bulk_mib: int
    echo_mib: int
    idle: int
    policy_rounds: int
    events: int


FULL = Effort(5, 3.0, 1024, 256, 1500, 100_000, 200_000)
QUICK = Effort(1, 0.7, 192, 64, 400, 20_000, 20_000)


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of load.

    Attributes:
        name: in tables and JSON.
        group: what ``--cases`` chooses by.
        mode: of the load client, "idle" included.
        options: of the load client.
        without: targets that cannot do it.
    """

    name: str
    group: str
    mode: str
    options: Mapping[str, object] = field(default_factory=dict)
    without: frozenset[str] = frozenset()


GROUPS = {
    "keep": "small requests over kept connections, 1, 8 and 64 at a time",
    "distinct": "the same with a thousand different container ids in turn",
    "new": "a new TLS connection for each small request",
    "get": "a download",
    "put": "an upload",
    "echo": "a tunnel, both ways at once",
    "rtt": "round trips of 64 bytes on a tunnel",
    "idle": "memory of idle connections",
    "durable": "calls whose event is on disk first",
    "spool": "the spool by itself, and the disk",
    "policy": "the policy decision by itself",
    "engine": "a real Engine",
}
"""What ``--cases`` takes."""

COUNTS = (1, 8, 64)


def cases(effort: Effort, scene: Scene) -> list[Case]:
    """Return the cases that compare proxies, in the order of the tables; files they need are in the scene."""
    paths = scene.directory / "targets.txt"
    paths.write_text("\n".join(DISTINCT_TARGETS) + "\n")
    timed = {"seconds": effort.seconds}
    keep = {**timed, "target": TARGET_PATH}
    distinct = {**timed, "targets": paths}
    no_tunnel = frozenset({"web"})
    mib = 1 << 20
    return [
        *(Case(f"keep {count}", "keep", "keep", {**keep, "connections": count}) for count in COUNTS),
        *(
            Case(f"distinct {count}", "distinct", "keep", {**distinct, "connections": count})
            for count in COUNTS
        ),
        Case("new 4", "new", "new", {**keep, "connections": 4}),
        Case("get", "get", "get", {"target": "/v1.41/images/get?names=", "mib": effort.bulk_mib}),
        Case("put", "put", "put", {"target": "/v1.41/images/load", "bytes": effort.bulk_mib * mib}),
        Case("echo", "echo", "echo", {"target": ATTACH, "bytes": effort.echo_mib * mib}, no_tunnel),
        Case("rtt", "rtt", "rtt", {**timed, "target": ATTACH}, no_tunnel),
        Case("idle", "idle", "idle", {"connections": effort.idle}),
    ]


def measure(stage: Stage, target: Running, case: Case) -> Figures:
    """Take one measurement.

    Returns:
        What the load client prints, and where they mean something: ``cpu_us`` of the proxy by request,
        ``cpu_gb`` CPU seconds by 10^9 bytes, ``mb_s``, ``kib`` of memory by idle connection, and ``load``:
        percent of their core that client and Engine used.

    Raises:
        TargetError: when the target did not do what was asked.
    """
    if case.mode == "idle":
        return idle_memory(stage, target.name, int(str(case.options["connections"])))
    options = dict(case.options)
    part = WEB_PART if target.name == "web" else 1
    if "bytes" in options:
        options["bytes"] = int(str(options["bytes"])) // part
    if "mib" in options:
        options["target"] = f"{options['target']}{int(str(options.pop('mib'))) // part}"
    others, began = stage.others_cpu(), time.monotonic()
    figures: Figures = stage.client.run(case.mode, target, options)
    figures["load"] = (stage.others_cpu() - others) / (time.monotonic() - began) * 100
    if figures.get("requests"):
        figures["cpu_us"] = figures["cpu"] * 1e6 / figures["requests"]
    if figures.get("bytes"):
        figures["mb_s"] = figures["bytes"] / figures["seconds"] / 1e6
        figures["cpu_gb"] = figures["cpu"] * 1e9 / figures["bytes"]
    return figures


def idle_memory(stage: Stage, name: str, connections: int) -> Figures:
    """KiB that a new instance of a target grows by for each idle connection that has been used once."""
    scene = stage.scene
    directory = scene.directory / "idle"
    directory.mkdir(exist_ok=True)
    target = TARGETS[name](replace(scene, directory=directory))
    try:
        warm = {"connections": 8, "seconds": 0.5, "target": TARGET_PATH}
        stage.client.run("keep", target, warm)
        before = target.resident_kib()
        with stage.client.holding(target, connections, TARGET_PATH):
            after = target.resident_kib()
    finally:
        target.stop()
    return {"kib": (after - before) / connections, "resident_kib": float(after), "connections": connections}
