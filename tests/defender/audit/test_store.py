"""The spool's directory: possession, what is found at the start and what becomes of it, writing."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from defender.audit.commands import Commit, Fetch, Inspect, Open, Opened, Part, Prepare, Survey
from defender.audit.recovery import Finding
from defender.audit.spool import Spool
from defender.audit.store import LOOK_AGAIN, Answer, Done, Fetched, Looked, Opening, Store, There, Trouble
from defender.contract.packing import CLOSING, assemble, pack_body
from defender.contract.spool import (
    HEADER_SIZE,
    RECORD_OVERHEAD,
    SegmentHeader,
    decode_header,
    encode_header,
    scan,
    segment_name,
)
from tests.spool import events_in, findings

SEGMENT = 65536
MICROS = 1_800_000_000_000_000


def payload(number: int, size: int = 40) -> bytes:
    """A payload that reads as an event."""
    event = {
        "kind": "engine",
        "phase": "result",
        "actor": {},
        "req": {"action": "docker_ping", "pad": "x" * size},
    }
    return assemble(*pack_body(event), number.to_bytes(16, "big"), MICROS + number, number)


class StoreCase(SynchronousTestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name) / "state" / "audit"

    def store(self, agent: str = "web1", **options: Any) -> Store:
        store = Store(self.directory, agent, segment_bytes=SEGMENT, **options)
        self.addCleanup(store.close)
        return store

    def opened(self, store: Store | None = None) -> Opening:
        answer = (store or self.store()).perform(Open())
        assert isinstance(answer, Opening), answer
        return answer

    def run_once(self, *payloads: bytes, close: bool = True, agent: str = "web1", big: int = 4) -> Opening:
        """A defender's life: it opens, commits and stops; returns what it found."""
        store = self.store(agent)
        opening = self.opened(store)
        spool = Spool(agent, "", segment_bytes=SEGMENT, max_bytes=big * SEGMENT, refuse=False)
        spool.start()
        commands = spool.opened(opening.opened, 0.0)
        given = [*payloads, *([assemble(*CLOSING, bytes(16), MICROS, 1)] if close else [])]
        while commands or given:
            if not commands:
                taken, commands = spool.add(given[:50], MICROS)
                del given[:taken]
                continue
            command = commands.pop(0)
            answer = store.perform(command)
            assert isinstance(answer, Done), answer
            commands += spool.prepared() if isinstance(command, Prepare) else spool.committed(0.0)
        store.close()
        return opening

    def segments(self) -> list[Path]:
        return sorted(self.directory.glob("*.seg"))

    def kinds(self, opening: Opening) -> list[str]:
        return [finding.kind for finding in opening.findings]

    def ids(self) -> list[int]:
        return [
            int(each["id"].replace("-", ""), 16)
            for each in events_in(self.directory)
            if each["kind"] == "engine"
        ]

    def reason(self, answer: Answer) -> str:
        assert isinstance(answer, Trouble), answer
        return answer.reason


class Possession(StoreCase):
    def test_everything_is_private(self) -> None:
        os.umask(os.umask(0) | 0)
        self.run_once(payload(1))
        self.assertEqual(stat.S_IMODE(self.directory.stat().st_mode), 0o700)
        for path in self.directory.iterdir():
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600, path.name)
        self.directory.chmod(0o755)
        self.segments()[0].chmod(0o644)
        self.run_once(payload(2))
        self.assertEqual(stat.S_IMODE(self.directory.stat().st_mode), 0o700)
        self.assertEqual(stat.S_IMODE(self.segments()[0].stat().st_mode), 0o600)
        self.directory.chmod(0o600)
        self.run_once(payload(3))
        self.assertEqual(stat.S_IMODE(self.directory.stat().st_mode), 0o700, "or only root could enter")

    def test_a_second_one_is_told_whose_it_is(self) -> None:
        first, second = self.store(), self.store()
        self.opened(first)
        reason = self.reason(second.perform(Open()))
        self.assertEqual(
            reason,
            f"the audit spool is in use by process {os.getpid()}; "
            "two defenders cannot share one (audit.directory)",
        )
        self.assertIn("in use", self.reason(second.perform(Survey())))
        self.assertIn("removed or replaced", self.reason(second.perform(Commit(()))))
        first.close()
        self.opened(second)

    def test_a_link_in_its_place_is_not_followed(self) -> None:
        self.directory.parent.mkdir(parents=True)
        elsewhere = self.directory.parent / "elsewhere"
        elsewhere.mkdir()
        self.directory.symlink_to(elsewhere)
        self.assertIn("symbolic link", self.reason(self.store().perform(Open())))
        self.directory.unlink()
        self.directory.mkdir()
        (self.directory / "lock").symlink_to(elsewhere / "x")
        self.assertIn("lock is not a regular file", self.reason(self.store().perform(Open())))
        self.assertEqual(list(elsewhere.iterdir()), [])

    def test_what_belongs_to_others_is_refused(self) -> None:
        self.run_once(payload(1))
        self.patch(os, "geteuid", lambda: 4711)
        self.assertIn("belongs to the user", self.reason(self.store().perform(Open())))

    def test_a_segment_of_another_user_is_set_aside(self) -> None:
        self.run_once(payload(1))
        theirs = self.segments()[0]
        os.chown(theirs, 4711, -1)
        opening = self.opened()
        self.assertEqual(self.kinds(opening), ["aside"])
        self.assertIn("belongs to the user 4711", opening.findings[0].detail)
        self.assertEqual(opening.opened.segments, ())


class GoingOn(StoreCase):
    def test_a_new_spool(self) -> None:
        numbers = iter([bytes(8), b"\0\0\0\0\0\0\x9f\x3c"])
        opening = self.opened(self.store(entropy=lambda _: next(numbers)))
        self.assertEqual((opening.opened.epoch, opening.opened.next_seq), (0x9F3C, 1))
        self.assertEqual((opening.findings, opening.last, opening.inspect), ((), b"", False))

    def test_the_same_epoch_goes_on_in_the_same_segment(self) -> None:
        first = self.run_once(payload(1), payload(2))
        second = self.run_once(payload(3))
        self.assertEqual(second.findings, ())
        self.assertEqual(second.opened.epoch, self.opened().opened.epoch)
        self.assertEqual(second.opened.next_seq, 4)
        self.assertNotEqual(first.opened.epoch, 0)
        self.assertEqual(len(self.segments()), 1)
        self.assertEqual((self.ids(), findings(self.directory)), ([1, 2, 3], []))

    def test_over_several_segments(self) -> None:
        for run in range(3):
            self.run_once(*[payload(100 * run + number, 2000) for number in range(60)], big=20)
        self.assertGreater(len(self.segments()), 4)
        self.assertEqual(self.ids(), [100 * run + number for run in range(3) for number in range(60)])
        self.assertEqual(findings(self.directory), [])

    def test_a_run_that_was_killed_is_told(self) -> None:
        self.run_once(payload(1), close=False)
        opening = self.run_once(payload(2))
        self.assertEqual(self.kinds(opening), ["unclosed"])
        self.assertEqual(opening.last, payload(1))

    def test_room_that_is_ready_is_kept_and_clean(self) -> None:
        self.run_once(payload(1))
        spare = self.directory / "spare"
        inode = spare.stat().st_ino
        # After a power failure any part of what was written may be there without the others.
        for left in (os.urandom(SEGMENT), bytes(SEGMENT - 9) + b"something", bytes(SEGMENT)):
            spare.write_bytes(left)
            store = self.store()
            self.assertTrue(self.opened(store).opened.spare)
            self.assertEqual((spare.stat().st_ino, spare.read_bytes()), (inode, bytes(SEGMENT)))
            store.close()

    def test_room_of_another_size_is_made_anew(self) -> None:
        self.run_once(payload(1))
        (self.directory / "spare").write_bytes(bytes(100))
        self.assertFalse(self.opened().opened.spare)
        self.assertFalse((self.directory / "spare").exists())

    def test_a_defender_with_another_name_goes_on_with_a_new_epoch(self) -> None:
        first = self.run_once(payload(1))
        second = self.run_once(payload(2), agent="web2")
        third = self.run_once(payload(3), agent="web2")
        self.assertEqual((second.findings, third.findings), ((), ()))
        self.assertNotEqual(first.opened.epoch, second.opened.epoch)
        self.assertEqual(second.opened.predecessor[:2], (first.opened.epoch, 2))
        self.assertEqual(third.opened.next_seq, 3)
        self.assertEqual((self.ids(), findings(self.directory)), ([1, 2, 3], []))
        self.assertEqual([each["agent"] for each in events_in(self.directory)][:3], ["web1", "web1", "web2"])


class TornTail(StoreCase):
    def test_a_tail_that_is_cut_off_anywhere(self) -> None:
        self.run_once(payload(1), payload(2), close=False)
        (segment,) = self.segments()
        data = segment.read_bytes()
        _, last = scan(data, decode_header(data)).records
        end = last.offset + RECORD_OVERHEAD + len(last.payload)
        # Every byte of the last record, and once the end of the first; the file may be shorter as well.
        for cut in [*range(last.offset + 1, end), last.offset - 1]:
            for tail in (bytes(SEGMENT - cut), b"")[: 1 + (cut % 7 == 0)]:
                torn = data[:cut] + tail
                if torn == data:
                    continue  # the record ends with zeros by itself
                with self.subTest(cut=cut, size=len(torn)):
                    segment.write_bytes(torn)
                    opening = self.run_once(payload(9), close=False)
                    kept = [1] if cut > last.offset else []
                    self.assertEqual(self.ids(), [*kept, 9])
                    # What is cut within the zeros that a record begins with shows no trace.
                    traces = cut < last.offset or data[last.offset : cut].strip(b"\0")
                    self.assertEqual(self.kinds(opening), ["torn"] * bool(traces) + ["unclosed"])
                    self.assertEqual(findings(self.directory), [])
                    self.assertEqual(opening.opened.next_seq, len(kept) + 1)
                    for path in set(self.segments()) - {segment}:
                        path.unlink()

    def test_what_is_cut_away_is_kept_elsewhere(self) -> None:
        self.run_once(payload(1), payload(2), close=False)
        (segment,) = self.segments()
        data = segment.read_bytes()
        last = scan(data, decode_header(data)).records[-1]
        segment.write_bytes(data[: last.offset + 60] + bytes(SEGMENT - last.offset - 60))
        self.run_once()
        (kept,) = (self.directory / "quarantine").iterdir()
        self.assertEqual(kept.read_bytes(), data[last.offset : last.offset + 60].rstrip(b"\0"))

    def test_bytes_of_nobody_behind_the_end(self) -> None:
        self.run_once(payload(1), close=False)
        (segment,) = self.segments()
        data = bytearray(segment.read_bytes())
        data[40_000:40_100] = os.urandom(100)
        segment.write_bytes(data)
        self.assertEqual(self.kinds(self.run_once(payload(2), close=False)), ["torn", "unclosed"])
        self.assertEqual((self.ids(), findings(self.directory)), ([1, 2], []))

    def test_a_full_disk_does_not_keep_it_from_going_on(self) -> None:
        self.run_once(payload(1), payload(2), close=False)
        (segment,) = self.segments()
        data = segment.read_bytes()
        last = scan(data, decode_header(data)).records[-1]
        segment.write_bytes(data[: last.offset + 60])

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        self.patch(os, "posix_fallocate", full)
        opening = self.opened()
        assert opening.opened.tail is not None
        self.assertEqual(opening.opened.tail.capacity, opening.opened.tail.offset)


class Damage(StoreCase):
    """One bit in each part of a segment of ten records."""

    def setUp(self) -> None:
        super().setUp()
        self.run_once(*[payload(number) for number in range(1, 11)])
        (self.segment,) = self.segments()
        self.data = self.segment.read_bytes()
        self.records = scan(self.data, decode_header(self.data)).records

    def flip(self, offset: int, bit: int = 0) -> None:
        data = bytearray(self.data)
        data[offset] ^= 1 << bit
        self.segment.write_bytes(data)

    def test_any_part_of_a_record_in_the_middle(self) -> None:
        record = self.records[4]
        parts = {"length": 0, "crc": 4, "seq": 8, "chain": 16, "payload": RECORD_OVERHEAD + 30}
        for part, start in parts.items():
            for offset, bit in ((start, 0), (start + 3, 7)):
                with self.subTest(part=part, offset=offset):
                    self.flip(record.offset + offset, bit)
                    opening = self.run_once(payload(99))
                    self.assertEqual(self.kinds(opening), ["damaged", "missing"])
                    missing = opening.findings[1]
                    self.assertEqual((missing.first_seq, missing.last_seq), (5, 5))
                    # Good records still count, and numbers go on after the last.
                    self.assertEqual(self.ids(), [1, 2, 3, 4, 6, 7, 8, 9, 10, 99])
                    self.assertEqual(opening.opened.next_seq, 12)
                    bad = self.directory / f"{self.segment.name}.bad"
                    self.assertTrue(bad.exists())
                    # Once told, it is not told again.
                    self.assertEqual(self.kinds(self.run_once()), [])
                    bad.unlink()
                    for path in self.segments():
                        path.unlink()

    def test_any_part_of_the_header(self) -> None:
        for offset in (0, 9, 20, 30, 50, 120, HEADER_SIZE - 2):
            with self.subTest(offset=offset):
                self.flip(offset)
                opening = self.run_once(payload(99))
                self.assertEqual(self.kinds(opening)[0], "damaged")
                self.assertEqual(self.ids(), [*range(1, 11), 99])
                (bad,) = self.directory.glob("*.bad")
                bad.unlink()
                for path in self.segments():
                    path.unlink()

    def test_several_at_once(self) -> None:
        data = bytearray(self.data)
        for index in (1, 2, 6):
            data[self.records[index].offset + 70] ^= 1
        self.segment.write_bytes(data)
        opening = self.run_once(payload(99))
        ranges = [(each.first_seq, each.last_seq) for each in opening.findings if each.kind == "missing"]
        self.assertEqual(ranges, [(2, 3), (7, 7)])
        self.assertEqual(self.ids(), [1, 4, 5, 6, 8, 9, 10, 99])

    def test_nothing_is_left(self) -> None:
        self.segment.write_bytes(os.urandom(SEGMENT))
        before = decode_header(self.data).epoch
        opening = self.run_once(payload(99))
        self.assertEqual(self.kinds(opening), ["damaged", "unclosed", "missing"])
        self.assertNotEqual(opening.opened.epoch, before)
        self.assertEqual(opening.opened.predecessor[0], before)
        self.assertEqual(opening.opened.next_seq, 1)
        self.assertEqual(self.ids(), [99])

    def test_empty_and_short_files(self) -> None:
        for size in (0, 1, HEADER_SIZE - 1, HEADER_SIZE):
            with self.subTest(size=size):
                self.segment.write_bytes(self.data[:size])
                opening = self.run_once(payload(99))
                self.assertEqual(self.ids(), [99])
                self.assertIn("unclosed", self.kinds(opening))
                for path in [*self.directory.glob("*.bad"), *self.segments()]:
                    path.unlink()

    def test_the_second_damage_has_a_name_of_its_own(self) -> None:
        self.flip(self.records[4].offset + 70)
        (self.directory / f"{self.segment.name}.bad").write_bytes(b"older")
        self.run_once(payload(99))
        self.assertTrue((self.directory / f"{self.segment.name}.bad.1").exists())

    def test_a_disk_that_cannot_read_a_block(self) -> None:
        read = os.pread

        def failing(fd: int, size: int, offset: int) -> bytes:
            if offset >= HEADER_SIZE and size > HEADER_SIZE:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return read(fd, size, offset)

        self.patch(os, "pread", failing)
        opening = self.opened()
        self.assertNotEqual(opening.opened.next_seq, 0)
        self.assertTrue(opening.findings)


class Strangers(StoreCase):
    def test_a_segment_of_another_defender(self) -> None:
        self.run_once(payload(1))
        header = SegmentHeader("web9", 0xABC, 1, bytes(32), MICROS * 2)
        name = segment_name(0xABC, 1)
        (self.directory / name).write_bytes(encode_header(header).ljust(SEGMENT, b"\0"))
        opening = self.run_once(payload(2))
        (finding,) = opening.findings
        self.assertEqual(finding, Finding("aside", f"quarantine/{name}", "is of the defender 'web9'"))
        self.assertTrue((self.directory / "quarantine" / name).exists())
        self.assertEqual((self.ids(), findings(self.directory)), ([1, 2], []))

    def test_a_segment_with_another_ones_name(self) -> None:
        self.run_once(payload(1))
        (segment,) = self.segments()
        epoch = decode_header(segment.read_bytes()).epoch
        (self.directory / segment_name(epoch, 4711)).write_bytes(segment.read_bytes())
        opening = self.run_once(payload(2))
        self.assertEqual(self.kinds(opening), ["aside"])
        self.assertEqual(opening.opened.next_seq, 3)

    def test_impossible_numbers(self) -> None:
        self.run_once(payload(1))
        (segment,) = self.segments()
        epoch = decode_header(segment.read_bytes()).epoch
        names = [f"{epoch:016x}-{2**63:020d}.seg", f"{epoch:016x}-{0:020d}.seg", f"{0:016x}-{1:020d}.seg"]
        for name in names:
            (self.directory / name).write_bytes(segment.read_bytes())
        opening = self.run_once(payload(2))
        self.assertEqual(self.kinds(opening), ["aside"] * 3)
        self.assertEqual({path.name for path in (self.directory / "quarantine").iterdir()}, set(names))
        self.assertEqual((self.ids(), findings(self.directory)), ([1, 2], []))

    def test_all_sorts_of_files(self) -> None:
        self.run_once(payload(1))
        (self.directory / "notes.txt").write_text("mine")
        (self.directory / "lost+found").mkdir()
        (self.directory / "folder").mkdir()
        os.mkfifo(self.directory / segment_name(5, 5))
        (self.directory / segment_name(6, 6)).symlink_to("/etc/passwd")
        opening = self.run_once(payload(2))
        self.assertEqual(self.kinds(opening), ["aside"] * 4)
        self.assertEqual((self.directory / "quarantine" / "notes.txt").read_text(), "mine")
        self.assertTrue((self.directory / "folder").is_dir())
        self.assertEqual(self.ids(), [1, 2])
        self.assertEqual(self.kinds(self.run_once()), ["aside"], "the folder stays where it is")


class Writing(StoreCase):
    def setUp(self) -> None:
        super().setUp()
        self.now = 0.0
        self.disk = self.store(seconds=lambda: self.now)
        self.opening: Opened = self.opened(self.disk).opened
        header = SegmentHeader("web1", self.opening.epoch, 1, self.opening.chain, MICROS)
        self.name = segment_name(self.opening.epoch, 1)
        self.first = Part(self.name, 0, encode_header(header), fresh=True)

    def failing(self, function: str, *, code: int = errno.EIO, when: int = 0) -> None:
        calls = iter(range(1000))
        original = getattr(os, function)

        def fail(*arguments: Any) -> Any:
            if next(calls) == when:
                raise OSError(code, os.strerror(code))
            return original(*arguments)

        self.patch(os, function, fail)

    def test_a_segment_has_its_name_when_it_is_on_disk(self) -> None:
        self.failing("fdatasync")
        answer = self.disk.perform(Commit((self.first,)))
        self.assertIn("Input/output error", self.reason(answer))
        self.assertEqual({path.name for path in self.directory.iterdir()}, {"lock"})
        self.assertEqual(self.disk.perform(Commit((self.first,))), Done())
        self.assertEqual((self.directory / self.name).stat().st_size, SEGMENT)

    def test_a_sync_that_fails_poisons(self) -> None:
        self.disk.perform(Commit((self.first,)))
        self.failing("fdatasync")
        answer = self.disk.perform(Commit((Part(self.name, 512, b"abc", fresh=False),)))
        self.assertEqual(
            answer,
            Trouble(f"the audit spool's {self.name} cannot be written: Input/output error", 0, 0, self.name),
        )

    def test_parts_of_one_segment_are_one_sync(self) -> None:
        synced = []
        sync = os.fdatasync

        def count(fd: int) -> None:
            synced.append(fd)
            sync(fd)

        self.patch(os, "fdatasync", count)
        parts = (
            self.first,
            Part(self.name, 512, b"abc", fresh=False),
            Part(self.name, 515, b"def", fresh=False),
        )
        self.assertEqual(self.disk.perform(Commit(parts)), Done())
        self.assertEqual(len(synced), 1)
        self.assertEqual((self.directory / self.name).read_bytes()[512:518], b"abcdef")

    def test_how_far_it_came(self) -> None:
        second = Part(segment_name(self.opening.epoch, 9), 0, self.first.data, fresh=True)
        self.disk.perform(Prepare())
        self.failing("posix_fallocate", code=errno.ENOSPC)
        answer = self.disk.perform(Commit((self.first, second), ("gone",)))
        assert isinstance(answer, Trouble)
        self.assertEqual((answer.done, answer.removed, answer.poisoned), (1, 1, ""))
        self.assertIn("no room for 65536 bytes: No space left on device", answer.reason)

    def test_no_room_ahead(self) -> None:
        self.failing("posix_fallocate", code=errno.ENOSPC)
        self.assertIn("no room", self.reason(self.disk.perform(Prepare())))
        self.assertFalse((self.directory / "spare").exists())
        self.assertEqual(self.disk.perform(Prepare()), Done())
        self.assertEqual((self.directory / "spare").stat().st_size, SEGMENT)

    def test_a_segment_that_somebody_took_away(self) -> None:
        self.disk.perform(Commit((self.first,)))
        (self.directory / self.name).rename(self.directory / "elsewhere")
        part = Part(self.name, 512, b"abc", fresh=False)
        # It has a name, and the names are looked at ten times a second.
        self.assertEqual(self.disk.perform(Commit((part,))), Done())
        self.now += LOOK_AGAIN
        answer = self.disk.perform(Commit((replace(part, offset=515),)))
        self.assertIn("was removed or replaced", self.reason(answer))

    def test_a_segment_that_somebody_removed(self) -> None:
        self.disk.perform(Commit((self.first,)))
        (self.directory / self.name).unlink()
        answer = self.disk.perform(Commit((Part(self.name, 512, b"abc", fresh=False),)))
        self.assertIn("was removed or replaced", self.reason(answer))

    def test_a_directory_that_somebody_took_away(self) -> None:
        self.disk.perform(Commit((self.first,)))
        self.directory.rename(self.directory.with_name("elsewhere"))
        part = Part(self.name, 512, b"abc", fresh=False)
        self.now += LOOK_AGAIN
        self.assertIn("was removed or replaced", self.reason(self.disk.perform(Commit((part,)))))
        self.assertEqual(self.disk.perform(Survey()), There((), False))
        self.assertEqual(self.disk.perform(Commit((self.first,))), Done())

    def test_a_survey_says_what_is_there(self) -> None:
        self.disk.perform(Commit((self.first,)))
        self.disk.perform(Prepare())
        answer = self.disk.perform(Survey())
        assert isinstance(answer, There)
        self.assertEqual(([each.name for each in answer.segments], answer.spare), ([self.name], True))

    def test_bytes_are_read_as_far_as_there_are_any(self) -> None:
        self.disk.perform(Commit((self.first, Part(self.name, 512, b"abc", fresh=False))))
        self.assertEqual(self.disk.perform(Fetch(self.name, 512, 3)), Fetched(b"abc"))
        self.assertEqual(self.disk.perform(Fetch(self.name, SEGMENT - 2, 9)), Fetched(b"\0\0"))
        (self.directory / "link").symlink_to(self.name)
        for name in ("gone", "link"):
            self.assertEqual(self.disk.perform(Fetch(name, 0, 9)), Fetched(None))
        self.assertEqual(self.disk.perform(Commit((Part(self.name, 515, b"d", fresh=False),))), Done())

    def test_nothing_to_look_at(self) -> None:
        self.assertEqual(self.disk.perform(Inspect()), Looked(False))


class LookingBack(StoreCase):
    """Damage in segments that no start reads."""

    def setUp(self) -> None:
        super().setUp()
        for run in range(2):
            self.run_once(*[payload(100 * run + number, 2000) for number in range(60)], big=20)

    def look(self) -> list[Finding]:
        store = self.store()
        opening = self.opened(store)
        self.assertTrue(opening.inspect)
        self.assertEqual(opening.findings, ())
        while True:
            answer = store.perform(Inspect())
            assert isinstance(answer, Looked)
            if not answer.more:
                store.close()
                return list(answer.findings)

    def test_all_is_well(self) -> None:
        self.assertEqual(self.look(), [])

    def test_damage_altered_and_missing(self) -> None:
        segments = self.segments()
        data = bytearray(segments[0].read_bytes())
        records = scan(bytes(data), decode_header(bytes(data))).records
        data[records[3].offset + 100] ^= 4
        segments[0].write_bytes(data)
        segments[2].unlink()
        found = self.look()
        self.assertEqual([each.kind for each in found], ["damaged", "missing", "missing"])
        self.assertEqual((found[1].first_seq, found[1].last_seq), (4, 4))
        self.assertTrue((self.directory / f"{segments[0].name}.bad").exists())
        gone = int(segments[2].name[17:37])
        self.assertEqual((found[2].first_seq, found[2].last_seq), (gone, int(segments[3].name[17:37]) - 1))

    def test_a_segment_that_was_written_anew(self) -> None:
        other = self.directory.with_name("other")
        mine, self.directory = self.directory, other
        self.run_once(payload(1))
        self.directory = mine
        segments = self.segments()
        data = bytearray(segments[1].read_bytes())
        header = decode_header(bytes(data))
        forged = SegmentHeader("web1", header.epoch, header.first_seq, b"f" * 32, header.created)
        segments[1].write_bytes(encode_header(forged) + data[HEADER_SIZE:])
        self.assertIn("altered", [each.kind for each in self.look()])
