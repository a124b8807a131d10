"""`defenderctl audit verify`: what a spool holds, and every fault with its place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from click.testing import CliRunner, Result
from twisted.trial.unittest import SynchronousTestCase

from controller.cli.main import defenderctl
from defender.contract.audit import SYSTEM, Event, gap_event
from defender.contract.spool import segment_name
from defender.contract.spool_reading import Entry, read_spool
from tests.fakes.spool import SpoolWriter

ROOT = Path(__file__).resolve().parents[3]


def event(number: int) -> Event:
    return {"kind": "engine", "phase": "result", "actor": dict(SYSTEM), "req": {"path": f"/{number}" * 20}}


class Verify(SynchronousTestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.state = Path(directory.name)
        self.writer = SpoolWriter(size=8 * 1024)
        self.writer.start()

    def fill(self, count: int) -> None:
        for _ in range(count):
            self.writer.put(event(self.writer.seq + 1))

    def verify(self, *arguments: str, code: int = 0) -> Result:
        self.writer.save(self.state / "audit")
        result = CliRunner().invoke(defenderctl, ["audit", "verify", "--state", str(self.state), *arguments])
        self.assertEqual(result.exit_code, code, result.output + repr(result.exception))
        return result

    def document(self, code: int = 0) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.verify("--json", code=code).stdout)
        self.assertEqual(document["ok"], code == 0)
        return document

    def test_a_whole_spool(self) -> None:
        self.fill(60)
        self.writer.close()
        self.writer.start()
        self.fill(3)
        document = self.document()
        self.assertEqual((document["records"], document["missing"], document["findings"]), (64, 0, []))
        first, second = document["epochs"]
        self.assertEqual((first["agent"], first["records"], first["closed"]), ("web1", 61, True))
        self.assertEqual((second["predecessor"], second["closed"]), (first["epoch"], False))
        self.assertGreater(len(first["segments"]), 1)
        one, two = first["segments"][:2]
        self.assertEqual((one["first_seq"], two["first_seq"]), (1, one["last_seq"] + 1))
        self.assertEqual(one["from"], "2027-01-15T08:00:00.000Z")
        self.assertEqual([each["ok"] for each in first["segments"]], [True] * len(first["segments"]))
        output = self.verify().stdout
        self.assertIn("Epoch 9f3c00000000aaaa of web1: 61 events, closed", output)
        self.assertIn("64 events: the chain holds, nothing is missing", output)
        self.assertLessEqual(max(map(len, output.splitlines())), 100)

    def test_damage_is_placed(self) -> None:
        self.fill(60)
        entries = [item for item in read_spool(self.writer.files.items()) if isinstance(item, Entry)]
        bad = entries[40]
        self.writer.write(bad.record.offset + 55, b"\xff\xff", bad.segment.name)
        document = self.document(code=1)
        (finding,) = document["findings"]
        self.assertEqual(
            [finding[key] for key in ("kind", "file", "offset", "first_seq", "last_seq")],
            ["damage", bad.segment.name, bad.record.offset, 41, 41],
        )
        self.assertEqual((document["records"], document["missing"]), (59, 1))
        states = {each["file"]: each["ok"] for each in document["epochs"][0]["segments"]}
        self.assertEqual([name for name, good in states.items() if not good], [bad.segment.name])
        result = self.verify(code=1)
        self.assertIn(f"{bad.segment.name}, byte {bad.record.offset}: a record's checksum", result.stdout)
        self.assertIn("event 41 is missing", result.stdout)
        self.assertIn("1 faults; at least 1 events are missing", result.stderr)

    def test_missing_ranges_and_breaks_of_the_chain_are_faults(self) -> None:
        self.fill(100)
        gone = list(self.writer.files)[1]
        del self.writer.files[gone]
        document = self.document(code=1)
        self.assertEqual([each["kind"] for each in document["findings"]], ["gap"])
        self.assertEqual(document["missing"], 100 - document["records"])
        other = SpoolWriter(size=8 * 1024, now=self.writer.now)
        other.start(self.writer.epoch)
        for number in range(1, 101):
            other.put(event(number))
        self.writer.files[gone] = other.files[gone]
        self.assertEqual([each["kind"] for each in self.document(code=1)["findings"]], ["chain", "chain"])

    def test_a_run_that_was_cut_off_is_a_fault(self) -> None:
        self.fill(3)
        self.writer.start()
        self.fill(3)
        self.assertEqual([each["kind"] for each in self.document(code=1)["findings"]], ["unclosed"])
        self.assertIn("3 events, not closed", self.verify(code=1).stdout)

    def test_segments_of_others_are_a_fault(self) -> None:
        self.fill(3)
        other = SpoolWriter("web2", now=1)
        other.start(7)
        self.writer.files.update(other.files)
        self.assertEqual([each["kind"] for each in self.document(code=1)["findings"]], ["foreign"])

    def test_what_loses_nothing_is_no_fault(self) -> None:
        self.fill(10)
        self.writer.poison(3)
        self.fill(3)
        self.writer.write(self.writer.end, b"\0\0\1\0half")
        self.writer.files[segment_name(self.writer.epoch, 14)] = bytes(8192)
        (self.state / "audit").mkdir()
        (self.state / "audit" / "notes.txt").touch()
        document = self.document()
        self.assertEqual([each["kind"] for each in document["findings"]], ["empty", "torn"])
        self.assertEqual((document["records"], document["repeated"]), (13, 3))
        self.assertEqual(document["unknown_files"], ["notes.txt"])
        self.assertEqual(
            [each["quarantined"] for each in document["epochs"][0]["segments"]], [True, False, False]
        )
        output = self.verify().stdout
        self.assertIn("quarantined", output)
        self.assertIn("notes.txt: is no segment", output)

    def test_what_the_defender_recorded_of_losses_is_told(self) -> None:
        self.fill(3)
        unclosed = {**event(1), "kind": "defender", "req": {"action": "audit_unclosed"}}
        self.writer.put(unclosed)
        document = self.document()
        self.assertEqual(document["recorded"], {"gaps": 0, "dropped": 0, "unclosed": 1})
        self.assertIn("1 runs of the defender did not stop in good order", self.verify().stdout)
        lost = gap_event(25, 1, 3.0, "No space left on device")
        del lost["corr"]
        self.writer.put(
            lost,
            {**event(1), "kind": "gap", "result": {"dropped": 0}},
            {**event(1), "req": {"path": "\udca4kind\udca3gap"}},
        )
        document = self.document(code=1)
        self.assertEqual(document["recorded"], {"gaps": 2, "dropped": 25, "unclosed": 1})
        result = self.verify(code=1)
        self.assertIn("recorded 2 gaps, with 25 events or more lost", result.stdout)
        self.assertNotIn("nothing is missing", result.stdout)

    def test_no_spool(self) -> None:
        result = CliRunner().invoke(defenderctl, ["audit", "verify", "--state", str(self.state)])
        self.assertEqual(result.exit_code, 1)
        self.assertIn("there is no spool", result.output)
        result = CliRunner().invoke(defenderctl, ["audit", "verify", "--such"])
        self.assertEqual(result.exit_code, 2)

    def test_progress_is_for_terminals(self) -> None:
        self.fill(200)
        self.assertEqual(self.verify().stderr, "")
        main, terminal = os.openpty()
        self.addCleanup(os.close, main)
        command = [sys.executable, "-m", "controller.cli.main", "audit", "verify", "--state", str(self.state)]
        try:
            subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=terminal, check=True)
        finally:
            os.close(terminal)
        shown = os.read(main, 65536)
        self.assertIn(b"segment 2 of", shown)
        self.assertTrue(shown.endswith(b"\r\x1b[K"), shown)
