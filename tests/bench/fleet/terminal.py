"""`defenderctl audit tail -f` of a fleet, in a process of its own, and when each line reached it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from controller.cli.login import Login, write_login
from tests.bench.children import ROOT, TargetError, environment, stop_process
from tests.bench.fleet.plant import Plant

PATIENCE = 60.0


class Terminal:
    """A tail that shows the events of one user. Close it at the end.

    `arrived` has the monotonic time of each of its lines.
    """

    def __init__(self, plant: Plant, user: str) -> None:
        home = plant.state.parent / "defenderctl"
        authority = (plant.state / "pki" / "root.pem").read_text()
        address = f"https://127.0.0.1:{plant.https}"
        write_login(home / "login.json", Login(address, authority, "admin", plant.token))
        self.arrived: list[float] = []
        self._come = threading.Condition()
        program = [sys.executable, "-m", "controller.cli.main"]
        self._process = subprocess.Popen(
            [*program, "audit", "tail", "--fleet", "-f", "-n", "0", "--json", "--user", user],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**environment(), "DEFENDERCTL_CONFIG": str(home)},
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def close(self) -> None:
        """End it."""
        stop_process(self._process)
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def began(self) -> bool:
        """Whether it shows anything yet; looks for a moment."""
        with self._come:
            return self._come.wait_for(lambda: bool(self.arrived), 0.25)

    def settled(self) -> int:
        """How many lines came, once no more do for a second."""
        with self._come:
            while self._come.wait(1.0):
                pass
            return len(self.arrived)

    def line(self, number: int, patience: float = PATIENCE) -> float:
        """When the line of this number came, from 1 on; waits for it. Raises TargetError."""
        with self._come:
            if not self._come.wait_for(lambda: len(self.arrived) >= number, patience):
                raise TargetError(f"the tail showed {len(self.arrived)} of {number} events")
            return self.arrived[number - 1]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            now = time.monotonic()
            line: Mapping[str, Any] = json.loads(text)
            if "gap" not in line:
                with self._come:
                    self.arrived.append(now)
                    self._come.notify_all()
