"""Processes that are killed and disks that fail: what was acknowledged is there, once."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
from pathlib import Path

from twisted.internet.defer import inlineCallbacks

from tests.audit.base import Writing
from tests.audit.test_disk_faults import Strace, TemporaryDisk
from tests.controller.store.trails import Steps, StoreCase, numbers

KILLS = int(os.environ.get("STORE_KILLS", "6"))


class DisasterCase(StoreCase):
    def begin(self, directory: Path | None = None, wrapper: tuple[str, ...] = ()) -> Writing:
        writing = Writing(
            directory or self.directory, wrapper=wrapper, program="tests.controller.store.taker"
        )
        self.addCleanup(writing.close)
        self.assertEqual(writing.line(), "started")
        return writing

    def say(self, writing: Writing, what: str) -> str:
        writing.tell(what)
        return writing.line()

    @inlineCallbacks
    def assert_stored(self, promised: dict[str, int], directory: Path | None = None) -> Steps[None]:
        """Each defender's records are there from the first one on, in order, at least the promised ones."""
        self.directory = directory or self.directory
        store = self.open_store()
        found = yield self.events(store)
        for defender, last in promised.items():
            there = numbers(found, defender)
            self.assertEqual(there, list(range(1, len(there) + 1)), defender)
            self.assertGreaterEqual(len(there), last, defender)
        self.assertEqual([each for each in found if each.event["kind"] == "gap"], [])
        yield self.assert_whole(store)
        yield store.stop()


class Killed(DisasterCase):
    @inlineCallbacks
    def test_no_acknowledged_event_is_lost_or_doubled(self) -> Steps[None]:
        seed = int(os.environ.get("STORE_SEED", "0")) or random.randrange(2**32)
        dice = random.Random(seed)
        promised: dict[str, int] = {}
        for _ in range(KILLS):
            writing = self.begin()
            writing.tell("flood 5")
            lines = writing.lines(dice.randrange(1, 30))
            time.sleep(dice.random() * 0.05)
            for line in [*lines, *writing.kill()]:
                word, defender, seq = line.split()
                self.assertEqual(word, "ack", f"{line}, seed {seed}")
                promised[defender] = max(promised.get(defender, 0), int(seq))
            yield self.assert_stored(promised)
        self.assertEqual(len(promised), 5)


class FullDisk(DisasterCase):
    @inlineCallbacks
    def test_a_full_disk_is_told_and_nothing_is_pretended(self) -> Steps[None]:
        place = self.directory / "disk"
        disk = TemporaryDisk(place, "16m")
        writing = self.begin(place / "store", disk.wrapper)
        inside = disk.inside(writing)
        ballast = inside / "ballast"
        ballast.write_bytes(bytes(12 * 1024 * 1024))
        self.assertEqual(self.say(writing, "take 5"), "ack d0 5")
        last = 5
        while (line := self.say(writing, "large 20")).startswith("ack"):
            last = int(line.split()[2])
        self.assertRegex(line, r"^no the event store: database or disk is full \(SQLITE_FULL\)$")
        status = writing.status()
        self.assertIn("disk is full", status["problem"])
        self.assertEqual(status["position"], last)
        # Whoever comes while it lasts is refused at once, the fleet's state too when it has no room.
        self.assertEqual(self.say(writing, "take 1"), line)
        with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        number = 1
        while (refused := self.say(writing, f"write {number}")).startswith("ack"):
            number += 1
        self.assertIn("the controller's store: ", refused)
        self.assertIn("the controller's store: ", writing.status()["fact_problem"])
        # With room again it goes on by itself. What was refused comes again, and is stored once.
        ballast.unlink()
        writing.until("fact_problem", "")
        self.assertEqual(self.say(writing, "write 7"), "ack fact 7")
        writing.until("problem", "")
        self.assertEqual(self.say(writing, "again 0"), f"ack d0 {last + 20}")
        copy = self.directory / "copy"
        shutil.copytree(inside / "store", copy)
        yield self.assert_stored({"d0": last + 20}, copy)


class BrokenDisk(DisasterCase):
    @inlineCallbacks
    def test_a_sync_that_fails(self) -> Steps[None]:
        """Nothing is acknowledged whose sync failed, and what comes after it is on disk with it."""
        strace = Strace(self.directory.parent, "fdatasync", "error=EIO:when=30..33")
        self.addCleanup(lambda: (self.directory.parent / "strace.log").unlink(missing_ok=True))
        writing = self.begin(self.directory, strace.wrapper)
        promised, said = 0, ""
        while not said.startswith("no"):
            said = self.say(writing, "take 3")
            if said.startswith("ack"):
                promised = int(said.split()[2])
        self.assertIn("disk I/O error (SQLITE_IOERR_FSYNC)", said)
        self.assertIn("SQLITE_IOERR_FSYNC", writing.status()["problem"])
        writing.until("problem", "")
        writing.stop()
        self.assertGreater(promised, 0)
        yield self.assert_stored({"d0": promised})
        # The defender sends again what was not acknowledged.
        writing = self.begin()
        said = self.say(writing, "take 3")
        self.assertEqual(said.split()[0], "ack")
        writing.stop()
        yield self.assert_stored({"d0": int(said.split()[2])})
