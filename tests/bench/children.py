"""The bench's children: what they share, how one is started, measured and ended, always by its id."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent


class TargetError(Exception):
    """A program of the bench is missing or did not start; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What all targets share.

    Attributes:
        directory: for the targets' files.
        engine: the Engine's socket.
        chain: certificates of the server, and `key` its key.
        client_ca: what client certificates are checked against, to the root; `user_ca` is the authority of
            users alone, as the defender wants it.
        proxy_core: that targets stay on; without one they run where there is room.
    """

    directory: Path
    engine: Path
    chain: Path
    key: Path
    client_ca: Path
    user_ca: Path
    proxy_core: int | None = None

    def log(self, name: str) -> Path:
        """Where a target's output goes."""
        return self.directory / f"{name}.log"


@dataclass(frozen=True, slots=True)
class Running:
    """A started target.

    Attributes:
        name: in the tables.
        port: of 127.0.0.1 where it speaks TLS.
        pid: the process whose CPU time and memory are the target's.
        stop: ends it.
    """

    name: str
    port: int
    pid: int
    stop: Callable[[], None]

    def resident_kib(self) -> int:
        """Memory that the process has, in KiB (proc(5), VmRSS)."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise TargetError(f"{self.name} has ended")


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


def stop_pid(pid: int) -> None:
    """Terminate a process that is not our own child, and wait until it is gone."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        for number, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
            signal.pidfd_send_signal(handle, number)
            if select.select([handle], [], [], patience)[0]:
                return
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def pinned(core: int | None, command: list[str]) -> list[str]:
    """Prefix a command so that it stays on one core, where ``taskset`` exists and there is more than one."""
    taskset = shutil.which("taskset")
    if core is None or taskset is None or len(os.sched_getaffinity(0)) < 2:
        return command
    return [taskset, "-c", str(core), *command]


def environment() -> dict[str, str]:
    """Return the environment of Python children: this checkout first on the path."""
    known = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG", "TMPDIR")}
    return {**known, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


def launch(scene: Scene, name: str, command: list[str], port: int) -> Running:
    """Start a target and wait until its port answers; raises `TargetError` with the end of its log."""
    log = scene.log(name)
    with log.open("wb") as output:
        process = subprocess.Popen(
            pinned(scene.proxy_core, command),
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
    return Running(name, port, process.pid, partial(stop_process, process))


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
