"""A whole defender in this process, in a state directory of its own."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path
from shutil import rmtree
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from defender.service import Defender, make_service
from defender.settings import load_settings
from tests.spool import read_events

POLICY = "schema: 1\nrules:\n  - {name: all, users: [bruce], effect: allow}\n"


class DefenderCase(TestCase):
    """`start` it after the files are as the test wants them."""

    timeout = 20

    def setUp(self) -> None:
        self.state = Path(tempfile.mkdtemp(prefix="dfleet-"))
        self.addCleanup(rmtree, self.state)
        (self.state / "policy.yaml").write_text(POLICY)
        (self.state / "defender.toml").write_text(
            f'[defender]\nname = "web1"\nstate = "{self.state}"\n'
            f'[engine]\naddress = "unix://{self.state}/engine.sock"\n[listen]\nmode = "unix"\n'
        )
        before = signal.getsignal(signal.SIGHUP)
        self.addCleanup(signal.signal, signal.SIGHUP, before)

    def start(self) -> Defender:
        self.defender = make_service(load_settings(self.state / "defender.toml"), reactor)
        self.defender.startService()
        self.addCleanup(self.defender.stopService)
        return self.defender

    def events(self) -> list[dict[str, Any]]:
        self.defender.journal.settle()
        return read_events(self.state)
