"""The journal: every event in the file once and in order, whatever the disk does; nothing raised."""

from __future__ import annotations

import json
import os
import resource
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings, strategies
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from defender.audit.journal import MAX_WAITING, Journal, Stamp
from defender.contract.audit import Event, defender_event


def event(number: int = 0, padding: str = "") -> Event:
    return {
        "kind": "engine",
        "phase": "result",
        "corr": "",
        "actor": {"user": "u", "groups": [], "via": "tls"},
        "req": {"action": "docker_ping", "target": padding},
        "result": {"status": number, "bytes": 0, "ms": 0.0},
    }


class JournalCase(SynchronousTestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.path = self.directory / "audit" / "events.jsonl"
        self.clock = Clock()

    def journal(self, **options: Any) -> Journal:
        stamp = Stamp("web1", clock=lambda: 1_800_000_000.0 + self.clock.seconds())
        journal = Journal(self.path, reactor=self.clock, stamp=stamp, **options)
        self.addCleanup(journal.stop)
        return journal

    def lines(self, path: Path | None = None) -> list[dict[str, Any]]:
        text = (path or self.path).read_bytes()
        self.assertTrue(text.endswith(b"\n"), text[-80:])
        return [json.loads(line) for line in text.splitlines()]

    def numbers(self, path: Path | None = None) -> list[int]:
        return [line["result"]["status"] for line in self.lines(path)]


class Writing(JournalCase):
    def test_the_events_of_one_turn_are_one_write(self) -> None:
        writes: list[bytes] = []
        write = os.write

        def spy(fd: int, data: bytes) -> int:
            writes.append(data)
            return write(fd, data)

        self.patch(os, "write", spy)
        journal = self.journal()
        for number in range(3):
            journal.record(event(number))
        self.assertEqual(writes, [])
        self.clock.advance(0)
        self.assertEqual(len(writes), 1)
        self.assertEqual(self.numbers(), [0, 1, 2])
        self.assertEqual((journal.written, journal.failed, journal.dropped), (3, 0, 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_events_are_sealed_in_order(self) -> None:
        journal = self.journal()
        journal.record(event())
        self.clock.advance(1.5)
        journal.record({**event(), "corr": "joined"})
        journal.flush()
        first, second = self.lines()
        self.assertEqual(list(first)[:6], ["v", "id", "agent", "epoch", "seq", "ts_wall"])
        self.assertEqual((first["v"], first["agent"], first["seq"], second["seq"]), (1, "web1", 1, 2))
        self.assertEqual(first["ts_wall"], "2027-01-15T08:00:00.000Z")
        self.assertEqual(second["ts_wall"], "2027-01-15T08:00:01.500Z")
        self.assertEqual(first["epoch"], second["epoch"])
        self.assertEqual(first["corr"], first["id"])
        self.assertEqual(second["corr"], "joined")

    def test_the_file_and_its_directory_are_private(self) -> None:
        journal = self.journal()
        journal.start()
        self.assertEqual(journal.problem, "")
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(self.path.parent.stat().st_mode), 0o700)

    def test_a_large_turn_is_written_before_its_end(self) -> None:
        journal = self.journal()
        for number in range(400):
            journal.record(event(number, "x" * 1000))
        self.assertGreater(journal.written, 100)
        self.clock.advance(0)
        self.assertEqual(self.numbers(), list(range(400)))

    def test_stop_writes_what_waits_and_later_events_still_arrive(self) -> None:
        journal = self.journal()
        journal.record(event(1))
        journal.stop()
        self.assertEqual(self.numbers(), [1])
        journal.record(event(2))
        self.assertEqual(self.numbers(), [1, 2])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_an_existing_file_is_continued(self) -> None:
        for number in range(2):
            journal = self.journal()
            journal.record(event(number))
            journal.stop()
        self.assertEqual(self.numbers(), [0, 1])
        first, second = self.lines()
        self.assertNotEqual(first["epoch"], second["epoch"])

    def test_a_torn_line_of_an_earlier_crash_is_ended(self) -> None:
        self.path.parent.mkdir()
        self.path.write_bytes(b'{"v":1,"id":"01')
        journal = self.journal()
        journal.record(event(7))
        journal.stop()
        torn, whole = self.path.read_bytes().splitlines()
        self.assertEqual(torn, b'{"v":1,"id":"01')
        self.assertEqual(json.loads(whole)["result"]["status"], 7)

    def test_an_event_that_is_not_json_is_reduced_and_never_raised(self) -> None:
        journal = self.journal()
        deep: Any = []
        for _ in range(100_000):
            deep = [deep]
        for bad in (object(), {1: b""}, {("a",): 1}, deep):
            journal.record({**event(), "result": bad})
        journal.record(event(5))
        journal.stop()
        lines = self.lines()
        self.assertEqual([line["kind"] for line in lines], ["engine"] * 5)
        self.assertEqual(["result" in line for line in lines], [False] * 4 + [True])


class Failing(JournalCase):
    def test_events_wait_until_the_path_can_be_written(self) -> None:
        self.path.parent.write_text("not a directory")
        journal = self.journal()
        journal.start()
        self.assertEqual(journal.problem, "File exists")
        for number in range(3):
            journal.record(event(number))
            self.clock.advance(0)
        self.path.parent.unlink()
        self.clock.pump([1.0, 1.0, 1.0])
        self.assertEqual(self.numbers(), [0, 1, 2])
        self.assertEqual((journal.problem, journal.dropped, journal.written), ("", 0, 3))
        self.assertGreaterEqual(journal.failed, 1)

    def test_the_oldest_are_dropped_and_counted_in_a_gap_event(self) -> None:
        self.path.parent.write_text("not a directory")
        journal = self.journal()
        for number in range(MAX_WAITING + 25):
            journal.record(event(number))
            self.clock.advance(0.001)
        self.assertEqual(journal.dropped, 25)
        self.path.parent.unlink()
        self.clock.advance(60)
        gap, *rest = self.lines()
        self.assertEqual((gap["kind"], gap["result"]["dropped"], gap["result"]["first_seq"]), ("gap", 25, 1))
        self.assertEqual(gap["result"]["reason"], "File exists")
        self.assertEqual([gap["seq"], *(line["seq"] for line in rest)], list(range(25, MAX_WAITING + 26)))
        self.assertEqual([line["result"]["status"] for line in rest], list(range(25, MAX_WAITING + 25)))

    def test_the_bytes_that_wait_are_bounded(self) -> None:
        self.path.parent.write_text("not a directory")
        journal = self.journal()
        journal.start()
        for number in range(20):
            journal.record(event(number, "x" * 500_000))
        self.assertEqual(journal.dropped, 20 - 8)

    def test_a_disk_that_fills_up_in_the_middle_of_a_line(self) -> None:
        # A limit on the file's size is a full disk that needs no mount: a short write, then an error.
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        journal = self.journal()
        journal.record(event(0))
        journal.flush()
        size = self.path.stat().st_size
        self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size * 2 + size // 2, limits[1]))
        for number in range(1, 5):
            journal.record(event(number))
        self.clock.advance(0)
        self.assertEqual(journal.problem, "File too large")
        self.assertEqual(self.numbers(), [0, 1])
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        self.clock.advance(1)
        self.assertEqual(self.numbers(), [0, 1, 2, 3, 4])
        self.assertEqual((journal.written, journal.dropped, journal.problem), (5, 0, ""))

    def test_a_torn_line_that_cannot_be_cut_is_ended(self) -> None:
        calls: Iterator[int | OSError] = iter([3, OSError(28, "No space left on device")])
        write = os.write

        def short(fd: int, data: bytes) -> int:
            answer = next(calls, None)
            if isinstance(answer, OSError):
                raise answer
            return write(fd, data[:answer])

        def refuse(fd: int, size: int) -> None:
            raise OSError(5, "Input/output error")

        self.patch(os, "write", short)
        self.patch(os, "ftruncate", refuse)
        journal = self.journal()
        journal.record(event(1))
        self.clock.advance(0)
        self.assertEqual(journal.problem, "No space left on device")
        self.clock.advance(1)
        torn, whole = self.path.read_bytes().splitlines()
        self.assertEqual(torn, b'{"v')
        self.assertEqual(json.loads(whole)["result"]["status"], 1)

    def test_what_is_not_a_file_of_ours_is_refused(self) -> None:
        self.path.parent.mkdir()
        elsewhere = self.directory / "elsewhere"
        elsewhere.write_text("")
        self.path.symlink_to(elsewhere)
        journal = self.journal()
        journal.start()
        self.assertEqual(journal.problem, "is a symbolic link")
        self.path.unlink()
        os.mkfifo(self.path)
        journal.start()
        self.assertEqual(journal.problem, "is not a regular file")
        self.assertEqual(elsewhere.read_text(), "")

    def test_tries_grow_rarer(self) -> None:
        self.path.parent.write_text("not a directory")
        journal = self.journal()
        journal.start()
        delays = []
        for _ in range(8):
            [call] = self.clock.getDelayedCalls()
            delays.append(call.getTime() - self.clock.seconds())
            self.clock.advance(delays[-1])
        self.assertEqual(delays, [1, 2, 4, 8, 16, 30, 30, 30])
        journal.record(event())
        self.path.parent.unlink()
        self.clock.advance(30)
        self.assertEqual(self.numbers(), [0])

    def test_what_is_lost_at_the_stop_is_counted(self) -> None:
        self.path.parent.write_text("not a directory")
        journal = self.journal()
        journal.record(event())
        journal.stop()
        self.assertEqual((journal.dropped, journal.written), (1, 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])


class Files(JournalCase):
    def test_a_full_file_is_moved_on(self) -> None:
        journal = self.journal(max_bytes=4096, keep=2)
        for number in range(60):
            journal.record(event(number))
            journal.flush()
        names = sorted(path.name for path in self.path.parent.iterdir())
        self.assertEqual(names, ["events.jsonl", "events.jsonl.1", "events.jsonl.2"])
        numbers: list[int] = []
        for name in reversed(names):
            path = self.path.parent / name
            self.assertLessEqual(path.stat().st_size, 4096)
            numbers.extend(self.numbers(path))
        self.assertEqual(numbers, list(range(numbers[0], 60)))
        self.assertGreater(numbers[0], 0)

    def test_a_rotation_that_fails_loses_nothing(self) -> None:
        def refuse(source: Path, target: Path) -> None:
            raise PermissionError(13, "Permission denied")

        self.patch(os, "replace", refuse)
        journal = self.journal(max_bytes=4096)
        for number in range(60):
            journal.record(event(number))
            journal.flush()
        self.assertEqual(self.numbers(), list(range(60)))
        self.assertEqual((journal.failed, journal.problem), (0, ""))

    def test_a_file_moved_or_removed_by_others_is_made_anew(self) -> None:
        journal = self.journal()
        journal.record(event(0))
        self.clock.advance(0)
        moved = self.path.with_name("moved")
        self.path.rename(moved)
        journal.record(event(1))
        self.clock.advance(0)
        self.clock.advance(2)
        journal.record(event(2))
        self.clock.advance(0)
        self.assertEqual(self.numbers(moved), [0, 1])
        self.assertEqual(self.numbers(), [2])
        self.path.unlink()
        self.clock.advance(2)
        journal.record(event(3))
        self.clock.advance(0)
        self.assertEqual(self.numbers(), [3])


class Stamps(SynchronousTestCase):
    @settings(max_examples=100, deadline=None)
    @given(strategies.lists(strategies.floats(0, 4e9), min_size=1, max_size=20))
    def test_ids_are_uuid7_and_rise_whatever_the_clock_does(self, times: list[float]) -> None:
        clock = iter(times)
        stamp = Stamp("web1", clock=lambda: next(clock))
        ids = [stamp.new_id() for _ in times]
        for text in ids:
            self.assertEqual(str(uuid.UUID(text)), text)
            self.assertEqual((uuid.UUID(text).version, uuid.UUID(text).variant), (7, uuid.RFC_4122))
        self.assertEqual(ids, sorted(set(ids)))
        self.assertEqual(uuid.UUID(ids[0]).int >> 80, int(times[0] * 1000))

    def test_two_starts_have_two_epochs(self) -> None:
        epochs = {Stamp("web1").epoch for _ in range(10)}
        self.assertEqual(len(epochs), 10)
        for epoch in epochs:
            self.assertRegex(epoch, r"\A[0-9a-f]{16}\Z")

    def test_the_event_itself_is_not_changed(self) -> None:
        original = defender_event("defender_start", version="0.1.0")
        before = dict(original)
        Stamp("web1").seal(original)
        self.assertEqual(original, before)
