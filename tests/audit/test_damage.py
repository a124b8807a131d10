"""Spools that were damaged while no defender ran: it starts, keeps what is good, and says what is not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from defender.contract.spool import (
    HEADER_SIZE,
    RECORD_OVERHEAD,
    Record,
    SegmentHeader,
    decode_header,
    encode_header,
    scan,
    segment_name,
)
from tests.audit.base import WritingCase

SEGMENT = 65536


class DamageTests(WritingCase):
    def write(self, *numbers: int) -> None:
        """One run of a defender, in good order."""
        writing = self.start(f"segment={SEGMENT}")
        for number in numbers:
            writing.tell(f"durable {number}")
            self.assertEqual(writing.line(), f"ack {number}")
        self.assertEqual(writing.status()["problem"], "")
        self.assertEqual(writing.stop(), ["stopped"])

    def crash(self, *numbers: int) -> None:
        """The same, killed."""
        writing = self.start(f"segment={SEGMENT}")
        for number in numbers:
            writing.tell(f"durable {number}")
            self.assertEqual(writing.line(), f"ack {number}")
        writing.kill()

    def segment(self) -> Path:
        """The oldest one."""
        return min(self.directory.glob("*.seg"))

    def records(self, path: Path) -> list[Record]:
        data = path.read_bytes()
        return scan(data, decode_header(data)).records

    def flip(self, path: Path, *offsets: int) -> None:
        data = bytearray(path.read_bytes())
        for offset in offsets:
            data[offset] ^= 1 << offset % 8
        path.write_bytes(data)

    def test_a_bit_in_each_part_of_a_segment(self) -> None:
        """One after the other: each start finds the last damage, and writes a segment for the next."""
        parts = {"length": 2, "crc": 5, "number": 15, "chain": 20, "payload": RECORD_OVERHEAD + 40}
        expected: list[int] = []
        number = 1
        for part, offset in parts.items():
            self.write(number, number + 1, number + 2)
            newest = max(self.directory.glob("*.seg"))
            records = self.records(newest)
            broken = next(each for each in records if b"number" in each.payload[-20:] and each != records[0])
            self.flip(newest, broken.offset + offset)
            lost = broken.payload[-1]
            expected += [each for each in (number, number + 1, number + 2) if each != lost]
            self.write(number + 3)
            expected.append(number + 3)
            self.assertEqual(self.numbers(), expected, part)
            self.assertTrue(newest.with_name(f"{newest.name}.bad").exists(), part)
            gap = [each for each in self.events() if each["kind"] == "gap"][-1]
            self.assertEqual((gap["result"]["dropped"], gap["result"]["first_seq"]), (1, broken.seq), part)
            number += 4
        self.assertEqual(self.notes("audit_unclosed"), [])
        seqs = [each["seq"] for each in self.events()]
        self.assertEqual(len(set(seqs)), len(seqs))

    def test_a_header(self) -> None:
        self.write(1, 2)
        self.flip(self.segment(), 40)
        self.write(3)
        self.assertEqual(self.numbers(), [1, 2, 3])
        self.assertIn("has a damaged header", self.notes("audit_damaged")[0])

    def test_a_whole_segment(self) -> None:
        self.write(1, 2)
        segment = self.segment()
        segment.write_bytes(os.urandom(SEGMENT))
        self.write(3)
        self.assertEqual(self.numbers(), [3])
        self.assertEqual(self.events()[0]["seq"], 1)
        self.assertEqual(set(self.notes()), {"audit_damaged", "audit_unclosed", "audit_gap", "audit_close"})
        self.assertTrue(segment.with_name(f"{segment.name}.bad").exists())

    def test_a_tail_that_was_cut_off(self) -> None:
        """As by a power failure: in the head of a record, in its chain and in its payload."""
        number = 1
        for cut in (5, 30, RECORD_OVERHEAD + 10):
            self.crash(number, number + 1)
            newest = max(self.directory.glob("*.seg"))
            last = self.records(newest)[-1]
            data = newest.read_bytes()[: last.offset + cut]
            newest.write_bytes(data + bytes(SEGMENT - len(data)))
            number += 1  # the second one's sync never returned
        self.write(number)
        self.assertEqual(self.numbers(), [1, 2, 3, 4])
        self.assertEqual(len(self.notes("audit_torn")), 3)
        self.assertEqual(self.notes("audit_damaged"), [])
        self.assert_whole()

    def test_an_old_segment_is_found_while_it_runs(self) -> None:
        self.write(*range(0, 1000, 5))
        oldest = self.segment()
        self.assertGreater(len(list(self.directory.glob("*.seg"))), 3)
        broken = self.records(oldest)[3]
        self.flip(oldest, broken.offset + 60)
        writing = self.start(f"segment={SEGMENT}")
        writing.until("repaired", 2)
        writing.stop()
        self.assertEqual(self.notes()[-3:], ["audit_damaged", "audit_gap", "audit_close"])
        self.assertTrue(oldest.with_name(f"{oldest.name}.bad").exists())
        self.assertEqual(len(self.numbers()), 199)

    def test_what_does_not_belong_there(self) -> None:
        self.write(1)
        own = self.segment()
        epoch = decode_header(own.read_bytes()).epoch
        foreign = encode_header(SegmentHeader("db7", 77, 1, bytes(32), 2**50)).ljust(SEGMENT, b"\0")
        (self.directory / segment_name(77, 1)).write_bytes(foreign)
        (self.directory / f"{epoch:016x}-{2**63:020d}.seg").write_bytes(own.read_bytes())
        (self.directory / segment_name(epoch, 10**15)).write_bytes(own.read_bytes())
        (self.directory / "core").write_bytes(bytes(HEADER_SIZE))
        (self.directory / segment_name(78, 1)).symlink_to("/etc/shadow")
        writing = self.start(f"segment={SEGMENT}")
        writing.tell("durable 2")
        self.assertEqual(writing.line(), "ack 2")
        self.assertEqual(writing.status()["repaired"], 5)
        writing.stop()
        self.assertEqual(self.numbers(), [1, 2])
        said = sorted(self.notes("audit_aside"))
        for words in ("'db7'", "not a regular file", "not a segment of a spool", "named as another segment"):
            self.assertTrue(any(words in text for text in said), (words, said))
        self.assertEqual(len(list((self.directory / "quarantine").iterdir())), 5)
        self.assert_whole()

    def test_a_spool_that_is_removed_while_it_is_written(self) -> None:
        writing = self.start(f"segment={SEGMENT}")
        for number in (1, 2):
            writing.tell(f"durable {number}")
            self.assertEqual(writing.line(), f"ack {number}")
        shutil.rmtree(self.directory)
        writing.tell("durable 3")
        self.assertEqual(writing.line(), "ack 3")
        self.assertEqual(writing.stop(), ["stopped"])
        self.assertEqual(self.numbers(), [3])
        self.assertEqual(self.directory.stat().st_mode & 0o777, 0o700)
        (gap,) = [each["result"] for each in self.events() if each["kind"] == "gap"]
        self.assertEqual((gap["first_seq"], gap["dropped"]), (1, 2))
        self.assert_whole()
