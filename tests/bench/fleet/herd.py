"""The parent's side of the processes that simulate defenders."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.children import ROOT, TargetError, environment, stop_process


class Herd:
    """Defenders that `populate` has put into a store, spread over some processes."""

    def __init__(self, directory: Path, count: int, processes: int) -> None:
        self.count = count
        self._swarms: list[tuple[subprocess.Popen[bytes], int]] = []
        share = -(-count // processes)
        for first in range(0, count, share):
            mine = min(share, count - first)
            words = ["-m", "tests.bench.fleet.swarm", str(directory), str(first), str(mine)]
            process = subprocess.Popen(
                [sys.executable, *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=ROOT,
                env=environment(),
            )
            self._swarms.append((process, mine))

    def __enter__(self) -> Herd:
        return self

    def __exit__(self, *exception: object) -> None:
        for process, _ in self._swarms:
            stop_process(process)
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                stream.close()

    def ask(self, what: str, /, patience: float = 400.0, **fields: Any) -> list[dict[str, Any]]:
        """Have all of them do something, and wait until all have; raises TargetError."""
        return self._ask(what, patience, lambda mine: fields)

    def first(self, what: str, /, **fields: Any) -> dict[str, Any]:
        """Have the first process do something."""
        process = self._swarms[0][0]
        _tell(process, {"do": what, **fields})
        return _answer(process, what, 60.0)

    def connect(self, port: int) -> float:
        """Connect everybody; gives the seconds that it took."""
        answers = self._ask("connect", 400.0, lambda mine: {"port": port, "count": mine})
        there = sum(answer["open"] for answer in answers)
        if there != self.count:
            raise TargetError(f"{there} of {self.count} connected: {answers[0]['why']}")
        return max(float(answer["seconds"]) for answer in answers)

    def acknowledged(self, stream: str, timeout: float = 120.0) -> list[float]:
        """Wait until everybody has acknowledged a push of a stream; gives when each one did."""
        answers = self._ask(
            "await",
            timeout + 20,
            lambda mine: {"what": "acks", "stream": stream, "count": mine, "timeout": timeout},
        )
        times = sorted(time for answer in answers for time in answer["times"])
        if len(times) < self.count:
            raise TargetError(f"{len(times)} of {self.count} took {stream}: {answers[0]['why']}")
        return times

    def heard_of(self, stream: str) -> int:
        """How many pushes of a stream were acknowledged since the last ``forget``."""
        answers = self._ask("await", 20.0, lambda mine: {"what": "acks", "stream": stream, "count": 0})
        return sum(int(answer["count"]) for answer in answers)

    def quiet(self, seconds: float = 1.0, timeout: float = 60.0) -> None:
        """Wait until nobody hears anything; a PING is something."""
        answers = self.ask("quiet", timeout + 20, seconds=seconds, timeout=timeout)
        there = sum(answer["open"] for answer in answers)
        if there != self.count:
            raise TargetError(f"{self.count - there} of {self.count} are no longer connected")

    def _ask(
        self, what: str, patience: float, fields: Callable[[int], dict[str, Any]]
    ) -> list[dict[str, Any]]:
        for process, mine in self._swarms:
            _tell(process, {"do": what, **fields(mine)})
        return [_answer(process, what, patience) for process, _ in self._swarms]


def _tell(process: subprocess.Popen[bytes], command: dict[str, Any]) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(command).encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        raise TargetError("a process of simulated defenders has ended") from None


def _answer(process: subprocess.Popen[bytes], what: str, patience: float) -> dict[str, Any]:
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], patience)[0]:
        raise TargetError(f"simulated defenders: no end of {what} within {patience:.0f} s")
    line = process.stdout.readline()
    if not line:
        raise TargetError(f"a process of simulated defenders ended during {what}")
    answer: dict[str, Any] = json.loads(line)
    return answer
