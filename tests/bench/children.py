"""The bench's children: what they share, how one is started, measured and ended, always by its id."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent


class TargetError(Exception):
    """A program of the bench is missing or did not start; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What all targets share: a directory, the Engine's socket, certificates, and the core of the proxy."""

    directory: Path
    engine: Path
    chain: Path
    key: Path
    client_ca: Path
    proxy_core: int

    def log(self, name: str) -> Path:
        """Where a target's output goes."""
        return self.directory / f"{name}.log"


class Running:
    """A started target."""

    def __init__(self, name: str, port: int, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.port = port
        self.process = process

    def cpu_seconds(self) -> float:
        """User and system time of the process so far."""
        return cpu_seconds(self.process.pid)

    def stop(self) -> None:
        """End the process by its id: politely, then not."""
        stop_process(self.process)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, ended threads included."""
    return time.clock_gettime(~pid << 3 | 2)  # CPUCLOCK_SCHED: what clock_getcpuclockid(3) returns


def stop_process(process: subprocess.Popen[bytes]) -> None:
    """Terminate one child and wait for it; kill it after ten seconds."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def pinned(core: int, command: list[str]) -> list[str]:
    """Prefix a command so that it stays on one core, where ``taskset`` exists and there is more than one."""
    taskset = shutil.which("taskset")
    if taskset is None or len(os.sched_getaffinity(0)) < 2:
        return command
    return [taskset, "-c", str(core), *command]


def environment() -> dict[str, str]:
    """Return the environment of Python children: this checkout first on the path."""
    known = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG", "TMPDIR")}
    return {**known, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


def launch(scene: Scene, name: str, command: list[str], port: int, *, core: int | None = None) -> Running:
    """Start a target and wait until its port answers; raises `TargetError` with the end of its log."""
    log = scene.log(name)
    with log.open("wb") as output:
        process = subprocess.Popen(
            pinned(scene.proxy_core if core is None else core, command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=scene.directory,
            env=environment(),
        )
    try:
        wait_for_port(process, port, log)
    except TargetError:
        stop_process(process)
        raise
    return Running(name, port, process)


def wait_for_port(process: subprocess.Popen[bytes], port: int, log: Path, seconds: float = 20.0) -> None:
    """Return when something listens on the port; raises `TargetError` when the process ends or time is up."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
            continue
        return
    tail = "\n".join(log.read_text("utf-8", "replace").splitlines()[-8:])
    raise TargetError(f"{log.stem} did not start listening on 127.0.0.1:{port}; the end of its log:\n{tail}")
