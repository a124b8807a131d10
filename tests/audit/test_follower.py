"""The tests' own reader of a running defender's spool skips nothing that it catches half-written."""

from __future__ import annotations

import tempfile
from pathlib import Path
from shutil import rmtree

from twisted.trial.unittest import SynchronousTestCase

from defender.contract.audit import defender_event
from tests.fakes.spool import SpoolWriter
from tests.spool import Follower


class FollowerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.state = Path(tempfile.mkdtemp(prefix="dfleet-"))
        self.addCleanup(rmtree, self.state)
        (self.state / "audit").mkdir()
        self.spool = SpoolWriter()
        self.spool.start()

    def show(self, name: str, data: bytes) -> list[int]:
        """Put a segment into the directory; the numbers of the events that are taken then."""
        (self.state / "audit" / name).write_bytes(data)
        return [event["seq"] for event in self.follower.take()]

    def test_a_later_page_that_is_seen_before_an_earlier_one(self) -> None:
        self.follower = Follower(self.state)
        event = {key: value for key, value in defender_event("x", version="1").items() if key != "corr"}
        ends = []
        for _ in range(6):
            self.spool.put(event)
            ends.append(self.spool.end)
        whole = self.spool.files[self.spool.name]
        torn = whole[: ends[1]] + bytes(ends[4] - ends[1]) + whole[ends[4] :]
        self.assertEqual(self.show(self.spool.name, torn), [1, 2])
        self.assertEqual(self.show(self.spool.name, whole), [3, 4, 5, 6])
