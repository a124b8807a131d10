"""The commands beside a journal that records: what it said is on disk, they show, once."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgpack
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from controller.cli.spool_check import check
from controller.cli.spool_files import Follower, SpoolFiles
from defender.audit.journal import Journal
from defender.contract.packing import pack_body
from defender.contract.spool_reading import Entry, Walk


class LivingSpool(TestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name) / "audit"
        self.recorded = 0

    def journal(self) -> Journal:
        journal = Journal(self.path, "web1", reactor=reactor, segment_bytes=64 * 1024, max_bytes=256 * 1024)
        journal.start()
        return journal

    def record(self, journal: Journal, count: int) -> Deferred[str]:
        """Record events; fires with "" when the last of them is on disk."""
        told: Deferred[str] = Deferred()
        for number in range(count):
            self.recorded += 1
            request = {
                "action": "docker_ping",
                "path": "/" * (self.recorded % 900),
                "target": str(self.recorded),
            }
            body = pack_body({"kind": "engine", "phase": "result", "actor": {"user": "b"}, "req": request})
            if number < count - 1:
                journal.append(*body)
            else:
                journal.append_durable(*body, b"", told.callback)
        return told

    async def test_what_is_on_disk_is_seen_at_once_across_rotations_and_restarts(self) -> None:
        files, state = SpoolFiles(self.path), Walk()
        follower = Follower(files, state)
        follower.begin([])
        numbers: list[int] = []
        targets: list[str] = []
        rotated = 0
        for _ in range(3):
            journal = self.journal()
            self.addCleanup(journal.stop)
            for count in (1, 40, 3, 150, 7, 90):
                self.assertEqual(await self.record(journal, count), "")
                for item in follower.poll():
                    assert isinstance(item, Entry), item
                    numbers.append(item.record.seq)
                    event: Any = msgpack.unpackb(item.record.payload)
                    targets += [event["req"]["target"]] if event["kind"] == "engine" else []
                self.assertEqual(targets, [str(number) for number in range(1, self.recorded + 1)])
            await journal.stop()
            rotated += journal.rotated
        self.assertEqual(numbers, list(range(1, len(numbers) + 1)))
        self.assertGreater(rotated, 3)
        report = check(files)
        self.assertEqual((report.findings, report.recorded.gaps, report.recorded.unclosed), ([], 0, 0))
        self.assertTrue(report.segments[-1].closes)
