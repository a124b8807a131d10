"""A program that runs on a node until it is stopped or killed, and faults that are put into it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from deploy.processes import Process, wait_until
from tests.system.hosts.node import Node, tool, until_death

START_PATIENCE = 60.0
STOP_PATIENCE = 30.0


class Clock:
    """A wall clock that is off, for programs that are started with `environment` (libfaketime).

    It can be set while they run. Go programs do not ask libc for the time: clients and the Engine have the
    machine's own clock.

    Args:
        file: where the offset is kept.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set(0)

    def set(self, offset: int) -> None:
        """Put the clock so many seconds before (-) or after the machine's."""
        beside = self._file.with_suffix(".new")
        beside.write_text(f"{offset:+d}\n", "ascii")
        beside.rename(self._file)  # they read it at every look at the clock

    @property
    def environment(self) -> dict[str, str]:
        (library,) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }


class Program:
    """One program of a node, which may be started again after its end.

    Args:
        node: where it runs.
        name: of its log file, ``NAME.log`` in the node's directory.
        command: program and arguments; it must not go to the background.
        environment: all of it.
        ready: tells whether it does its work; asked again and again while it starts.
    """

    def __init__(
        self,
        node: Node,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        ready: Callable[[], bool],
    ) -> None:
        self.node = node
        self.name = name
        self.log = node.directory / f"{name}.log"
        self.command = list(command)
        """Of the next start."""
        self._environment = environment
        self._ready = ready
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._child is not None, f"{self.name} was not started"
        return self._child.pid

    @property
    def runs(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def launch(self) -> None:
        """Start it and do not wait; `await_ready` does."""
        assert not self.runs, f"{self.name} on {self.node.name} runs"
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                until_death("TERM", *self.node.command(*self.command)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )

    def await_ready(self, patience: float = START_PATIENCE) -> None:
        """Wait until it does its work.

        Raises:
            AssertionError: with its log, when it ends, or does not in time.
        """
        ready = False

        def decided() -> bool:
            nonlocal ready
            ready = self.runs and self._ready()
            return ready or not self.runs

        wait_until(decided, patience, 0.02)
        if not ready:
            self.stop()
            raise AssertionError(f"{self.name} on {self.node.name} did not come up:\n{self.words()}")

    def start(self) -> None:
        """Start it and wait until it does its work."""
        self.launch()
        self.await_ready()

    def stop(self) -> None:
        """End it in good order, by its pid; it may have ended already."""
        child, self._child = self._child, None
        if child is not None:
            process = Process.of(child.pid)
            if process is not None:
                process.end(STOP_PATIENCE)
            child.wait(STOP_PATIENCE)

    def kill(self) -> None:
        """End it with SIGKILL."""
        child, self._child = self._child, None
        assert child is not None, f"{self.name} was not started"
        child.kill()
        child.wait(STOP_PATIENCE)

    def words(self) -> str:
        """Return what it has written."""
        try:
            return self.log.read_text("utf-8", "replace")
        except FileNotFoundError:
            return ""

    @contextlib.contextmanager
    def failing(self, call: str, fault: str) -> Iterator[None]:
        """Have a system call of the running program fail meanwhile.

        Args:
            call: such as ``fdatasync``.
            fault: such as ``error=EIO`` or ``delay_enter=3000000:when=2``; see inject in strace(1).
        """
        trace = ("-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:{fault}")
        strace = subprocess.Popen(
            until_death("TERM", tool("strace"), *trace, "-p", str(self.pid)),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            wait_until(lambda: self._is_traced() or strace.poll() is not None, START_PATIENCE, 0.01)
            if not self._is_traced():
                strace.kill()
                raise AssertionError(f"strace: {strace.communicate()[1].decode('utf-8', 'replace').strip()}")
            yield
        finally:
            if strace.poll() is None:
                strace.terminate()  # it lets go of the program and ends
            strace.communicate(timeout=STOP_PATIENCE)

    def _is_traced(self) -> bool:
        """Tell whether each of its threads has a tracer (TracerPid, proc(5))."""
        tasks = Path(f"/proc/{self.pid}/task")
        return not any("\nTracerPid:\t0\n" in _status(tasks / task) for task in os.listdir(tasks))


def _status(task: Path) -> str:
    try:
        return (task / "status").read_text("ascii", "replace")
    except OSError:  # a thread that has ended meanwhile
        return ""
