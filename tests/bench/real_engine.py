"""The real Engine: its own TLS listener beside the proxies before its socket.

The Engine is in a network namespace of its own, so the client of its listener goes there; loopback is
loopback. Nothing is kept to a core here: an Engine takes what there is, with a proxy before it as without.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from deploy.docker_api import ApiError, call, connection
from deploy.engine import EngineError, OwnEngine
from tests.bench.cases import Case, Effort, Figures
from tests.bench.children import Running, TargetError
from tests.bench.stage import LoadClient, Stage, scene_of
from tests.bench.targets import TARGETS

CONTAINERS = 20
PORT = 2376
PATHS = ("/v1.41/containers/json?all=1", "/v1.41/info", "/_ping")
TARGET_NAMES = ("dockerd", "defender", "haproxy")


def engine_cases(effort: Effort) -> list[Case]:
    """The cases of the real Engine: small requests, one and eight at a time."""
    return [
        Case(
            f"{path.removeprefix('/v1.41').partition('?')[0]} {count}",
            "engine",
            "keep",
            {"connections": count, "seconds": effort.seconds, "target": path},
        )
        for path in PATHS
        for count in (1, 8)
    ]


@contextmanager
def real_engine(directory: Path) -> Iterator[OwnEngine]:
    """A real Engine with a TLS listener and `CONTAINERS` containers that were created and not started.

    Args:
        directory: with the bench's certificates.

    Raises:
        TargetError: saying why there can be none.
    """
    options = (
        f"--host=tcp://127.0.0.1:{PORT}",
        "--tlsverify",
        f"--tlscacert={directory / 'clients.pem'}",
        f"--tlscert={directory / 'server.pem'}",
        f"--tlskey={directory / 'server.key'}",
    )
    engine = OwnEngine(directory / "engine", isolated=True, ends_with_parent=True, options=options)
    try:
        engine.start()
        _make_containers(engine)
        yield engine
    except (EngineError, ApiError, OSError) as error:
        raise TargetError(f"the real Engine: {error}") from error
    finally:
        engine.stop()


def _make_containers(engine: OwnEngine) -> None:
    link = connection(engine.address)
    try:
        for number in range(CONTAINERS):
            body = json.dumps({"Image": "busybox:latest", "Cmd": ["sleep", "1000"]}).encode()
            path = f"/v1.41/containers/create?name=bench-{number}"
            call(link, "POST", path, body, **{"Content-Type": "application/json"})
    finally:
        link.close()


def stage_of(engine: OwnEngine, directory: Path, program: Path) -> Stage:
    """The stage before a real Engine."""
    below = directory / "real"
    below.mkdir(exist_ok=True)
    process = engine.process()
    if process is None:
        raise TargetError("the real Engine has ended")
    scene = replace(scene_of(directory, engine.socket, None), directory=below)
    return Stage(scene, LoadClient(program, directory / "user", None), (process.pid,))


def dockerd_target(engine: OwnEngine) -> Running:
    """The Engine's own listener."""
    process = engine.process()
    if process is None:
        raise TargetError("the real Engine has ended")
    return Running("dockerd", PORT, process.pid, lambda: None)


def start_target(name: str, engine: OwnEngine, stage: Stage) -> Running:
    """Start one of `TARGET_NAMES` before the real Engine."""
    return dockerd_target(engine) if name == "dockerd" else TARGETS[name](stage.scene)


def measure_engine(stage: Stage, target: Running, case: Case) -> Figures:
    """Take one measurement; the client of dockerd's listener runs in the Engine's network."""
    prefix: tuple[str, ...] = ()
    if target.name == "dockerd":
        prefix = ("nsenter", f"--net=/proc/{target.pid}/ns/net", "--")
    figures: Figures = stage.client.run(case.mode, target, dict(case.options), prefix)
    return figures
