"""Disks that are full, read-only, broken or hung: what those who wait are told, and an operator sees."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.audit.base import Writing, WritingCase
from tests.spool import findings

SEGMENT = 65536


class TemporaryDisk:
    """Wraps a writer: a private mount namespace with a small tmpfs at `directory`."""

    def __init__(self, directory: Path, size: str, options: str = "") -> None:
        directory.mkdir(parents=True)
        self._directory = directory
        mount = f"mount -t tmpfs -o size={size},mode=0700{options} tmpfs {directory}"
        self.wrapper = ("unshare", "--mount", "--", "sh", "-c", f'{mount} && exec "$@"', "sh")

    def inside(self, writing: Writing) -> Path:
        """The directory as that process sees it."""
        return Path(f"/proc/{writing.pid}/root{self._directory}")

    def remount(self, writing: Writing, options: str) -> None:
        command = ["nsenter", "-t", str(writing.pid), "-m", "--", "mount", "-o", f"remount,{options}"]
        subprocess.run([*command, str(self._directory)], check=True)


class FullDiskTests(WritingCase):
    def setUp(self) -> None:
        super().setUp()
        self.disk = TemporaryDisk(self.directory.parent / "disk", "1m")
        self.directory = self.directory.parent / "disk" / "audit"

    def fill(self, writing: Writing) -> Path:
        """Have somebody else take all the room that is left."""
        ballast = self.disk.inside(writing) / "ballast"
        with ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                return ballast

    def test_a_disk_that_others_fill(self) -> None:
        writing = self.start(f"segment={SEGMENT}", wrapper=self.disk.wrapper)
        writing.tell("durable 5")
        self.assertEqual(writing.line(), "ack 5")
        ballast = self.fill(writing)
        inside = self.disk.inside(writing) / "audit"
        # What was allocated before is ours: this segment and the one ahead.
        number = 10
        while (line := self.say(writing, f"durable {number}")) == f"ack {number}":
            number += 5
        self.assertGreater(number, 100)
        reason = "no room for 65536 bytes: No space left on device"
        self.assertEqual(line, f"no {number} the audit spool: {reason}")
        status = writing.status()
        self.assertIn(reason, status["problem"])
        self.assertGreater(status["failed"], 1)
        # Far below its own limit, nothing of ours goes to make room.
        self.assertEqual((status["rotated"], status["first_seq"], status["segments"]), (0, 1, 2))
        # What nobody waits for is kept in memory up to a bound, then counted.
        writing.tell(*[f"append {each}" for each in range(20_001, 21_501)])
        dropped = writing.status()["dropped"]
        self.assertGreater(dropped, 400)
        ballast.unlink()
        status = writing.until("problem", "")
        self.assertEqual(self.say(writing, "durable 7"), "ack 7")
        self.assertEqual(writing.until("waiting", 0)["dropped"], dropped)
        numbers = self.numbers(inside)
        self.assertEqual(numbers[0], 5)
        self.assertIn(number, numbers)  # refused, and on record all the same
        self.assertEqual(len([each for each in numbers if each > 20_000]), 1500 - dropped)
        (gap,) = [each for each in self.events(inside) if each["kind"] == "gap"]
        self.assertEqual(gap["result"]["dropped"], dropped)
        self.assertIn("No space left", gap["result"]["reason"])
        self.assertRegex(
            self.notes("audit_failed", inside)[0], r"^nothing could be written for [0-9.]+ s: .*No space"
        )
        self.assert_whole(inside)
        writing.stop()

    def say(self, writing: Writing, what: str) -> str:
        writing.tell(what)
        return writing.line()

    def test_a_spool_that_refuses_when_it_is_full(self) -> None:
        writing = self.start(
            f"segment={SEGMENT}", f"max={4 * SEGMENT}", "refuse=1", wrapper=self.disk.wrapper
        )
        number = 5
        while (line := self.say(writing, f"durable {number}")).startswith("ack"):
            number += 5
        self.assertEqual(line, f"no {number} the audit spool is full (audit.max_bytes)")
        inside = self.disk.inside(writing) / "audit"
        self.assertEqual(writing.status()["rotated"], 0)
        self.assertEqual(self.numbers(inside)[0], 5)
        self.assert_whole(inside)

    def test_a_spool_that_rotates_when_it_is_full(self) -> None:
        writing = self.start(f"segment={SEGMENT}", f"max={4 * SEGMENT}", wrapper=self.disk.wrapper)
        for number in range(5, 2005, 5):
            self.assertEqual(self.say(writing, f"durable {number}"), f"ack {number}")
        status = writing.status()
        self.assertGreater(status["rotated"], 2)
        self.assertLessEqual(status["bytes"], 4 * SEGMENT)
        inside = self.disk.inside(writing) / "audit"
        used = sum(path.stat().st_size for path in inside.iterdir())
        self.assertLessEqual(used, 4 * SEGMENT + 4096)
        first = self.events(inside)[0]["seq"]
        self.assertEqual(status["first_seq"], first)
        self.assertRegex(self.notes("audit_rotate", inside)[-1], rf"sequence numbers \d+ to {first - 1}$")
        self.assert_whole(inside)


class ReadOnlyTests(WritingCase):
    def test_a_file_system_that_is_read_only_at_the_start(self) -> None:
        disk = TemporaryDisk(self.directory.parent / "disk", "1m", ",ro")
        self.directory = self.directory.parent / "disk" / "audit"
        writing = self.start(f"segment={SEGMENT}", wrapper=disk.wrapper)
        writing.until("problem", "Read-only file system")
        writing.tell("append 1", "durable 2")
        self.assertEqual(writing.line(), "no 2 the audit spool: Read-only file system")
        disk.remount(writing, "rw")
        writing.until("problem", "")
        writing.tell("durable 3")
        self.assertEqual(writing.line(), "ack 3")
        inside = disk.inside(writing) / "audit"
        self.assertEqual(self.numbers(inside), [1, 2, 3])
        self.assertIn("Read-only file system", self.notes("audit_failed", inside)[0])
        self.assert_whole(inside)

    def test_a_file_system_that_becomes_read_only(self) -> None:
        """As after an error of the file system: what is open stays open, and every write fails."""
        strace = Strace(self.directory.parent, "pwrite64", "error=EROFS:when=3..5")
        writing = self.start(f"segment={SEGMENT}", wrapper=strace.wrapper)
        writing.tell("durable 1")
        self.assertEqual(writing.line(), "ack 1")
        writing.tell("durable 2")
        line = writing.line()
        self.assertRegex(line, r"^no 2 .*-0{19}2.seg cannot be written: Read-only file system$")
        writing.until("problem", "")
        writing.tell("durable 3")
        self.assertEqual(writing.line(), "ack 3")
        writing.stop()
        self.assertEqual(self.numbers(), [1, 2, 3])
        self.assert_whole()


class Strace:
    """Wraps a writer: a system call of it fails, as strace(1) says it with ``inject``."""

    def __init__(self, folder: Path, call: str, fault: str) -> None:
        self._log = folder / "strace.log"
        traced = "trace=pwrite64,fdatasync,openat,rename,renameat,close"
        self.wrapper = (
            *("strace", "-f", "-qq", "-y", "-o", str(self._log), "-e", traced),
            *("-e", f"inject={call}:{fault}", "--"),
        )

    def calls(self, name: str) -> list[str]:
        """The lines of one system call."""
        return [line for line in self._log.read_text().splitlines() if f" {name}(" in line]

    def after_fault(self, path: str) -> list[str]:
        """Writes and syncs of the file at `path` after the first of its calls that was made to fail."""
        lines = self._log.read_text().splitlines()
        at = next(place for place, line in enumerate(lines) if "INJECTED" in line)
        return [
            line
            for line in lines[at + 1 :]
            if re.search(rf"(pwrite64|fdatasync)\(\d+<{re.escape(path)}>", line)
        ]


class BrokenDiskTests(WritingCase):
    def test_a_sync_that_fails_once(self) -> None:
        """The kernel tells of an error once. A second sync of the file would say that all is well."""
        strace = Strace(self.directory.parent, "fdatasync", "error=EIO:when=3")
        writing = self.start(f"segment={SEGMENT}", wrapper=strace.wrapper)
        for number in (1, 2, 3, 4):
            writing.tell(f"durable {number}")
            # Whoever waits for the event whose sync failed is spared: it went to another file.
            self.assertEqual(writing.line(), f"ack {number}")
        status = writing.status()
        self.assertEqual((status["failed"], status["problem"]), (1, ""))
        writing.stop()
        first, second = sorted(self.directory.glob("*.seg"))
        self.assertTrue(second.name.endswith("-00000000000000000003.seg"))
        self.assertEqual(strace.after_fault(str(first)), [], "the poisoned file was written again")
        self.assertEqual(self.numbers(), [1, 2, 3, 4])
        self.assertEqual(self.notes(), ["audit_failed", "audit_close"])
        self.assertIn("Input/output error", self.notes("audit_failed")[0])
        self.assert_whole()

    def test_a_sync_that_fails_again_and_again_pushes_nothing_out(self) -> None:
        """Each failure begins a segment, and none of them takes the room of a whole one for good."""
        strace = Strace(self.directory.parent, "fdatasync", "error=EIO:when=2+2")
        writing = self.start(f"segment={SEGMENT}", f"max={4 * SEGMENT}", wrapper=strace.wrapper)
        for number in range(1, 31):
            writing.tell(f"durable {number}")
            self.assertEqual(writing.line(), f"ack {number}")
        status = writing.status()
        self.assertGreater(status["failed"], 9)
        self.assertEqual((status["rotated"], status["first_seq"]), (0, 1))
        writing.stop()
        self.assertEqual(self.numbers(), list(range(1, 31)))
        self.assert_whole()

    def test_a_sync_that_fails_for_a_while(self) -> None:
        strace = Strace(self.directory.parent, "fdatasync", "error=EIO:when=2..4")
        writing = self.start(f"segment={SEGMENT}", wrapper=strace.wrapper)
        writing.tell("durable 1")
        self.assertEqual(writing.line(), "ack 1")
        writing.tell("durable 2")
        self.assertRegex(writing.line(), "^no 2 .*Input/output error$")
        writing.tell("durable 3")
        self.assertRegex(writing.line(), "^no 3 .*Input/output error$")
        writing.until("problem", "")
        writing.tell("durable 4")
        self.assertEqual(writing.line(), "ack 4")
        status = writing.status()
        self.assertEqual((status["failed"], status["dropped"]), (3, 0))
        writing.stop()
        self.assertEqual(self.numbers(), [1, 2, 3, 4])
        self.assertIn("nothing could be written for", self.notes("audit_failed")[-1])
        self.assert_whole()

    def test_the_first_sync_of_a_segment_fails(self) -> None:
        """Then nothing has its name yet, and what was begun is thrown away."""
        strace = Strace(self.directory.parent, "fdatasync", "error=EIO:when=1")
        writing = self.start(f"segment={SEGMENT}", wrapper=strace.wrapper)
        writing.tell("durable 1")
        self.assertEqual(writing.line(), "ack 1")
        writing.stop()
        (segment,) = self.directory.glob("*.seg")
        self.assertTrue(segment.name.endswith("-00000000000000000001.seg"))
        self.assertEqual(self.numbers(), [1])
        self.assert_whole()

    def test_a_write_that_is_cut_off(self) -> None:
        """A full file system that allocates late: the write fails in the middle of the segment."""
        strace = Strace(self.directory.parent, "pwrite64", "error=ENOSPC:when=4")
        writing = self.start(f"segment={SEGMENT}", wrapper=strace.wrapper)
        for number in (1, 2, 3):
            writing.tell(f"durable {number}")
            self.assertEqual(writing.line(), f"ack {number}")
        writing.stop()
        self.assertEqual(self.numbers(), [1, 2, 3])
        self.assert_whole()


class HungDiskTests(WritingCase):
    def hung(self, *options: str) -> Writing:
        strace = Strace(self.directory.parent, "fdatasync", "delay_enter=3000000:when=2")
        writing = self.start(f"segment={SEGMENT}", "patience=1", *options, wrapper=strace.wrapper)
        writing.tell("durable 1")
        self.assertEqual(writing.line(), "ack 1")
        writing.tell("durable 2", "append 3", "durable 4")
        return writing

    def test_who_waits_is_told_and_the_process_goes_on(self) -> None:
        writing = self.hung()
        reason = "the audit disk does not answer"
        said = writing.lines(2)
        self.assertEqual(said, [f"no 2 {reason}", f"no 4 {reason}"])
        self.assertEqual(writing.status()["problem"], reason)
        writing.tell("durable 5")
        self.assertEqual(writing.line(), f"no 5 {reason}")
        # It was slow, not dead.
        writing.until("problem", "")
        writing.tell("durable 6")
        self.assertEqual(writing.line(), "ack 6")
        writing.stop()
        self.assertEqual(self.numbers(), [1, 2, 3, 4, 5, 6])
        self.assert_whole()

    def test_it_can_be_stopped(self) -> None:
        writing = self.hung()
        writing.tell("stop")
        said = writing.rest()
        self.assertEqual(said[-1], "stopped")
        self.assertEqual(len([line for line in said if line.startswith("no ")]), 2)


class SharedSpoolTests(WritingCase):
    def test_the_second_of_two_defenders_is_refused(self) -> None:
        first = self.start(f"segment={SEGMENT}")
        first.tell("durable 1")
        self.assertEqual(first.line(), "ack 1")
        second = self.start(f"segment={SEGMENT}")
        problem = second.until("problem", "in use")["problem"]
        self.assertEqual(
            problem,
            f"the audit spool is in use by process {first.pid}; "
            "two defenders cannot share one (audit.directory)",
        )
        second.tell("durable 2")
        self.assertEqual(second.line(), f"no 2 {problem}")
        first.tell("durable 3")
        self.assertEqual(first.line(), "ack 3")
        self.assertEqual(self.numbers(), [1, 3])
        # Who waits gets the spool when the other one is gone, killed or not.
        first.kill()
        second.until("problem", "")
        second.tell("durable 4")
        self.assertEqual(second.line(), "ack 4")
        second.stop()
        self.assertEqual(self.numbers(), [1, 3, 2, 4])
        self.assertIn("audit_unclosed", self.notes())
        self.assertEqual(findings(self.directory), [])
