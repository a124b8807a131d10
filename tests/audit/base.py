"""Real processes that record, on real file systems that fail."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.spool import Event, events_in, findings

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30.0


class Writing:
    """A process of `program`, a module; `wrapper` is what it is run under, such as strace."""

    def __init__(
        self,
        directory: Path,
        *options: str,
        wrapper: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        program: str = "tests.audit.writer",
    ) -> None:
        self._buffer = b""
        self._selector = selectors.DefaultSelector()
        command = [sys.executable, "-m", program, str(directory), *options]
        self.process = subprocess.Popen(
            [*wrapper, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in, self._out = self.process.stdin, self.process.stdout
        self._selector.register(self._out, selectors.EVENT_READ)

    def tell(self, *lines: str) -> None:
        """Have it do something."""
        self._in.write("".join(f"{line}\n" for line in lines).encode())
        self._in.flush()

    def line(self, patience: float = PATIENCE) -> str:
        """The next line that it says; "" at its end. AssertionError if there is none in time."""
        end = time.monotonic() + patience
        while b"\n" not in self._buffer:
            if not self._selector.select(max(0.0, end - time.monotonic())):
                raise AssertionError(f"it said nothing in {patience} s")
            data = os.read(self._out.fileno(), 65536)
            if not data:
                return ""
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def lines(self, count: int) -> list[str]:
        """So many lines."""
        return [self.line() for _ in range(count)]

    def rest(self) -> list[str]:
        """All that it said until its end; a last line that is cut off is none."""
        lines = []
        while line := self.line():
            lines.append(line)
        return lines

    def status(self) -> dict[str, Any]:
        """What an operator sees; other lines are passed over."""
        self.tell("status")
        while not (line := self.line()).startswith("{"):
            assert line, "it has ended"
        status: dict[str, Any] = json.loads(line)
        return status

    def until(self, holds: str, equal: object, patience: float = PATIENCE) -> dict[str, Any]:
        """Wait until a value of its status is `equal`, or starts with it where that is text."""
        end = time.monotonic() + patience
        while True:
            status = self.status()
            value = status[holds]
            if value == equal or (equal and isinstance(equal, str) and str(value).find(equal) >= 0):
                return status
            if time.monotonic() > end:
                raise AssertionError(f"{holds} is not {equal!r} in {patience} s: {status}")
            time.sleep(0.02)

    @property
    def pid(self) -> int:
        """Of the process that writes, below its wrappers, which have one child each."""
        parents: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):
                    parent = int((entry / "stat").read_text("ascii", "replace").rpartition(")")[2].split()[1])
                    parents[parent] = int(entry.name)
        pid = self.process.pid
        while pid in parents:
            pid = parents[pid]
        return pid

    def stop(self) -> list[str]:
        """End it in good order; what it still said."""
        if self.process.poll() is None:
            self.tell("stop")
        lines = self.rest()
        self.process.wait(PATIENCE)
        self.close()
        return lines

    def kill(self) -> list[str]:
        """kill -9, and what it had said."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)
        lines = self.rest()
        self.close()
        return lines

    def close(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(PATIENCE)
        self._selector.close()
        for pipe in (self._in, self._out):
            try:
                pipe.close()
            except BrokenPipeError:
                continue


class WritingCase(SynchronousTestCase):
    """`start` a writer on the spool in `directory`."""

    def setUp(self) -> None:
        directory = TemporaryDirectory(prefix="dfa-")
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name) / "audit"

    def start(self, *options: str, **more: Any) -> Writing:
        writing = Writing(self.directory, *options, **more)
        self.addCleanup(writing.close)
        return writing

    def events(self, directory: Path | None = None) -> list[Event]:
        return events_in(directory or self.directory)

    def numbers(self, directory: Path | None = None) -> list[int]:
        """The numbers of the events that were written, in the order of the spool."""
        return [each["result"]["number"] for each in self.events(directory) if each["kind"] == "engine"]

    def notes(self, action: str = "", directory: Path | None = None) -> list[str]:
        """What the spool says of itself: the actions of its events, or the words of those of one action."""
        own = [each for each in self.events(directory) if each["kind"] != "engine"]
        if not action:
            return [each["req"]["action"] for each in own]
        return [
            each["result"].get("detail") or each["result"]["reason"]
            for each in own
            if each["req"]["action"] == action
        ]

    def assert_whole(self, directory: Path | None = None) -> None:
        """A reader finds nothing amiss, and ids and numbers rise."""
        self.assertEqual(findings(directory or self.directory), [])
        events = self.events(directory)
        self.assertEqual(
            [each["seq"] for each in events], list(range(events[0]["seq"], events[-1]["seq"] + 1))
        )
        ids = [each["id"] for each in events]
        self.assertEqual(ids, sorted(set(ids)))


def acknowledged(lines: list[str]) -> list[int]:
    """The numbers that were said to be on disk."""
    return [int(line.split()[1]) for line in lines if line.startswith("ack ")]
