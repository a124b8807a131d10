"""Processes that are ours: started, found again by pid and start time, ended by pid."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """One process, told from a later one with the same pid by its start time.

    Attributes:
        pid: the process id.
        started: start time in clock ticks since boot (field 22 of /proc/PID/stat, see proc(5)).
    """

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """Return the process that has this pid now, or None; a zombie does not count."""
        started = _start_time(pid)
        return None if started is None else cls(pid, started)

    @property
    def alive(self) -> bool:
        return _start_time(self.pid) == self.started

    def end(self, patience: float) -> bool:
        """Send SIGTERM, wait, then SIGKILL; return whether the first was enough.

        Args:
            patience: seconds to wait before SIGKILL.
        """
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            if not self.alive:
                return True
            signal.pidfd_send_signal(handle, signal.SIGTERM)
            if select.select([handle], [], [], patience)[0]:
                return True
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            select.select([handle], [], [], 10)
            return False
        finally:
            os.close(handle)


def _start_time(pid: int) -> int | None:
    try:
        # The command's name is in parentheses and may itself hold any byte; what follows is plain.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def read_pidfile(path: Path) -> Process | None:
    """Return the live process that a pid file names, or None."""
    try:
        return Process.of(int(path.read_text("ascii").strip()))
    except (OSError, ValueError):
        return None


def command_line(pid: int) -> list[str]:
    """Return the arguments of a process, or an empty list when it has none or is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")[:-1]
    except OSError:
        return []


def processes_naming(path: Path) -> Iterator[Process]:
    """Yield the processes one of whose arguments is the path or lies below it."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        for argument in command_line(int(entry.name)):
            value = argument.rpartition("=")[2].removeprefix("unix://")
            if value == str(path) or value.startswith(f"{path}/"):
                process = Process.of(int(entry.name))
                if process is not None:
                    yield process
                break


def wait_until(ready: Callable[[], bool], patience: float, pause: float = 0.05) -> bool:
    """Call `ready` until it says true; return False when it has not within `patience` seconds."""
    deadline = time.monotonic() + patience
    while True:
        if ready():
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)


def remove(path: Path) -> None:
    """Unlink a file that may be missing."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
