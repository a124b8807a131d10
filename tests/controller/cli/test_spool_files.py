"""The spool's files as a reader meets them: some vanish, some grow, some are no segments at all."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.trial.unittest import SynchronousTestCase

from controller.cli.spool_files import Follower, SpoolFiles, spool_of
from defender.contract.audit import SYSTEM, Event
from defender.contract.spool import HEADER_SIZE, MAX_SEGMENT_SIZE, SpoolError, segment_name
from defender.contract.spool_order import Segment
from defender.contract.spool_reading import Entry, Finding, Trouble, Walk, walk
from tests.fakes.spool import SpoolWriter


def event(number: int) -> Event:
    return {"kind": "engine", "phase": "result", "actor": dict(SYSTEM), "req": {"path": f"/{number}" * 20}}


class SpoolCase(SynchronousTestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.state = Path(directory.name)
        self.path = self.state / "audit"
        self.writer = SpoolWriter(size=8 * 1024)
        self.writer.start()
        self.files = SpoolFiles(self.path)

    def put(self, count: int = 1) -> None:
        for _ in range(count):
            self.writer.put(event(self.writer.seq + 1))
        self.writer.save(self.path)


class Whereabouts(SpoolCase):
    def place(self, text: str = "", folder: str = "") -> tuple[Path, str]:
        if text:
            (self.state / folder / "defender.toml").write_text(text)
        found = spool_of(self.state)
        return found.directory, found.agent

    def test_the_settings_say_where_the_spool_is(self) -> None:
        self.assertEqual(self.place(), (self.state / "audit", ""))
        (self.state / "defender" / "audit").mkdir(parents=True)
        self.assertEqual(self.place(), (self.state / "defender" / "audit", ""))
        own = '[defender]\nstate = "own"\nname = "web1"\n'
        self.assertEqual(self.place(own, "defender"), (self.state / "defender" / "own" / "audit", "web1"))
        self.assertEqual(self.place(own), (self.state / "own" / "audit", "web1"))
        self.assertEqual(self.place(own + '[audit]\ndirectory = "/x"\n'), (Path("/x"), "web1"))
        self.assertEqual(self.place('[audit]\ndirectory = "y"\n'), (self.state / "y", ""))
        (self.state / "defender" / "defender.toml").unlink()
        self.assertEqual(self.place("audit = 7\ndefender = []\n"), (self.state / "audit", ""))
        self.assertEqual(self.place("["), (self.state / "defender" / "audit", ""))


class Listings(SpoolCase):
    def names(self) -> list[str]:
        return [segment.name for _, segment in self.files.look().segments]

    def test_segments_are_told_from_other_files(self) -> None:
        self.put(50)
        for name in ("lock", "spare", "events.jsonl", "x.seg"):
            (self.path / name).write_bytes(b"x" * 600)
        (self.path / "quarantine").mkdir()
        self.assertEqual(self.names(), list(self.writer.files))
        self.assertEqual(self.files.look().unknown, ["events.jsonl", "x.seg"])

    def test_a_header_is_read_again_when_its_file_was_replaced(self) -> None:
        self.put(1)
        old = self.files.look().segments[0][1].key
        self.writer.now += 5
        (self.path / self.writer.segment(self.writer.name)).unlink()
        self.writer.save(self.path)
        self.assertNotEqual(self.files.look().segments[0][1].key, old)

    def test_what_is_no_file_is_named_and_does_not_block(self) -> None:
        self.put(1)
        os.mkfifo(self.path / segment_name(7, 1))
        (self.path / segment_name(8, 1)).mkdir()
        (self.path / segment_name(9, 1)).symlink_to("nowhere")
        large = self.path / segment_name(10, 1)
        large.touch()
        os.truncate(large, MAX_SEGMENT_SIZE + 1)
        segments = {segment.name: segment for _, segment in self.files.look().segments}
        self.assertEqual(len(segments), 4)
        for number, words in ((7, "regular"), (8, "regular"), (10, "too large")):
            error = self.assertRaises(SpoolError, self.files.load, segments[segment_name(number, 1)])
            self.assertIn(words, str(error))

    def test_a_segment_that_was_put_aside_meanwhile_is_found(self) -> None:
        self.put(1)
        ((_, segment),) = self.files.look().segments
        self.writer.quarantine(segment.name, 2)
        self.writer.save(self.path)
        self.assertEqual(self.files.load(segment), next(iter(self.writer.files.values())))

    def test_a_segment_that_was_removed_meanwhile_is_gone(self) -> None:
        self.put(1)
        ((_, segment),) = self.files.look().segments
        (self.path / segment.name).unlink()
        self.assertIsNone(self.files.load(segment))

    def test_the_settings_tell_whose_spool_it_is(self) -> None:
        self.put(1)
        other = SpoolWriter("web2", now=self.writer.now + 1)
        other.start(7)
        self.writer.files.update(other.files)
        self.writer.save(self.path)
        for agent, expected in (("web1", "web1"), ("web2", "web2"), ("", "web2"), ("renamed", "web2")):
            epochs = SpoolFiles(self.path, agent).look().epochs
            self.assertEqual([epoch.agent for epoch in epochs if not epoch.foreign], [expected], agent)


class Following(SpoolCase):
    """What is appended is seen once and in order, whatever becomes of the files."""

    def setUp(self) -> None:
        super().setUp()
        self.seen: list[int] = []
        self.found: list[Finding] = []
        self.follower = self.begin()

    def begin(self) -> Follower:
        state = Walk()
        segments = self.files.look().segments if self.path.is_dir() else []
        for item in walk(segments, self.files.load, state, living=True):
            self.take(item)
        follower = Follower(self.files, state, patience=3)
        follower.begin(segments)
        return follower

    def take(self, item: Entry | Finding) -> None:
        if isinstance(item, Entry):
            self.seen.append(item.record.seq)
        else:
            self.found.append(item)

    def poll(self, times: int = 1) -> list[int]:
        for _ in range(times):
            for item in self.follower.poll():
                self.take(item)
        return self.seen

    def expect(self, last: int, *troubles: Trouble) -> None:
        self.poll()
        gone = {
            seq for each in self.found if each.missing for seq in range(each.first_seq, each.last_seq + 1)
        }
        self.assertEqual(self.seen, [seq for seq in range(1, last + 1) if seq not in gone])
        self.assertEqual([each.trouble for each in self.found], list(troubles))

    def test_a_spool_that_begins_later(self) -> None:
        self.expect(0)
        self.put(3)
        self.expect(3)

    def test_events_come_as_they_are_written_across_segments(self) -> None:
        for count in range(1, 60):
            self.put(count % 7)
            self.poll()
        self.assertGreater(len(self.writer.files), 3)
        self.expect(self.writer.seq)

    def test_it_goes_on_where_an_earlier_walk_ended(self) -> None:
        self.put(30)
        self.follower = self.begin()
        self.expect(30)
        self.put(30)
        self.expect(60)

    def test_many_segments_between_two_looks(self) -> None:
        self.put(1)
        self.poll()
        self.put(200)
        self.expect(201)

    def test_the_oldest_segments_may_go(self) -> None:
        for _ in range(20):
            self.put(10)
            self.poll()
            for name in list(self.writer.files)[:-1]:
                del self.writer.files[name]
        self.put()
        self.assertEqual(len(self.writer.files), 1)
        self.expect(201)

    def test_segments_that_go_before_they_are_read_are_a_gap(self) -> None:
        self.put(1)
        self.poll()
        self.put(150)
        for name in list(self.writer.files)[1:-2]:
            del self.writer.files[name]
        self.put()
        self.expect(152, Trouble.GAP)
        self.assertGreater(self.found[0].missing, 50)

    def test_even_the_one_that_is_followed(self) -> None:
        self.put(1)
        self.poll()
        self.put(150)
        for name in list(self.writer.files)[:-1]:
            del self.writer.files[name]
        self.put()
        # The file is open: what was written to it is read though it has no name any more.
        self.poll()
        self.assertEqual([each.trouble for each in self.found], [Trouble.GAP])
        self.assertEqual(self.seen[-1], 152)

    def test_a_segment_that_is_put_aside_goes_on_in_the_next(self) -> None:
        for unsynced in (0, 1, 4):
            self.put(5)
            self.poll()
            self.writer.poison(unsynced)
            self.writer.save(self.path)
            self.poll()
        self.put(5)
        self.expect(20)

    def test_a_segment_that_is_replaced_by_one_of_its_name(self) -> None:
        """Nothing in it was known to be on disk, so the next one begins with the same number."""
        self.put(2)
        self.poll()
        name = self.writer.poison(2)
        del self.writer.files[name]
        (self.path / self.writer.name).unlink()
        self.put(3)
        self.expect(5)

    def test_a_defender_that_starts_again(self) -> None:
        self.put(5)
        self.writer.close()
        self.put(0)
        self.poll()
        self.writer.start()
        self.put(3)
        self.poll()
        self.assertEqual((self.seen, self.found), ([1, 2, 3, 4, 5, 6, 1, 2, 3], []))
        self.writer.start()
        self.put(1)
        self.poll()
        self.assertEqual(self.seen[-1], 1)
        self.assertEqual([each.trouble for each in self.found], [Trouble.UNCLOSED])

    def test_a_record_that_is_half_written_is_waited_for(self) -> None:
        self.put(2)
        self.poll()
        end = self.writer.end
        self.put(3)
        whole = self.writer.files[self.writer.name]
        path = self.path / self.writer.name
        for cut in range(end, len(whole.rstrip(b"\0")), 17):
            path.write_bytes(whole[:cut].ljust(len(whole), b"\0"))
            self.poll()
        path.write_bytes(whole)
        self.expect(5)

    def test_a_part_that_is_not_there_yet_is_waited_for(self) -> None:
        """Later bytes of one write may be seen before earlier ones."""
        self.put(2)
        self.poll()
        end = self.writer.end
        self.put(5)
        whole = self.writer.files[self.writer.name]
        path = self.path / self.writer.name
        path.write_bytes(whole[: end + 20] + bytes(60) + whole[end + 80 :])
        self.poll(2)
        self.assertEqual((self.seen, self.found), ([1, 2], []))
        path.write_bytes(whole)
        self.expect(7)

    def test_a_record_that_stays_damaged_is_passed_over(self) -> None:
        self.put(2)
        self.poll()
        self.writer.append([self.writer.payload(event(3))])
        self.writer.write(self.writer.end - 20, b"\xff\xff")
        self.put(2)
        self.poll(5)
        self.expect(5, Trouble.DAMAGE)
        self.assertEqual((self.found[0].first_seq, self.found[0].last_seq), (3, 3))

    def test_what_is_damaged_at_the_end_of_a_segment_is_told_with_the_next(self) -> None:
        self.put(2)
        self.writer.append([self.writer.payload(event(3))])
        self.writer.write(self.writer.end - 20, b"\xff\xff")
        self.writer.segment()
        self.put(2)
        self.expect(5, Trouble.DAMAGE)

    def test_a_torn_tail_is_cut_off_and_written_over(self) -> None:
        self.put(2)
        self.writer.write(self.writer.end, b"\0\0\1\0half a record")
        self.put(0)
        self.poll(9)
        self.writer.write(self.writer.end, bytes(40))
        self.put(0)
        self.poll()
        self.put(2)
        self.expect(4)

    def test_a_segment_that_has_no_header_yet(self) -> None:
        self.put(2)
        self.poll()
        name = self.writer.segment()
        (self.path / name).write_bytes(bytes(8192))
        self.poll(3)
        self.put(2)
        self.expect(4)

    def test_the_directory_may_go_and_come_back(self) -> None:
        self.put(2)
        self.poll()
        away = self.state / "away"
        self.path.rename(away)
        self.poll(2)
        away.rename(self.path)
        self.put(2)
        self.expect(4)


class OneFile(SpoolCase):
    def test_a_single_segment_is_read_and_followed(self) -> None:
        self.put(5)
        copy = self.state / "copy"
        copy.write_bytes(self.writer.files[self.writer.name])
        files = SpoolFiles(copy)
        segments = files.look().segments
        state = Walk()
        self.assertEqual(len(list(walk(segments, files.load, state, living=True))), 5)
        follower = Follower(files, state)
        follower.begin(segments)
        self.writer.put(event(6))
        copy.write_bytes(self.writer.files[self.writer.name])
        self.assertEqual(len(list(follower.poll())), 1)
        segment = segments[0][1]
        self.assertIsInstance(segment, Segment)
        self.assertEqual(files.file_of(segment), copy)

    def test_what_is_none_is_refused(self) -> None:
        copy = self.state / "copy"
        self.assertRaises(FileNotFoundError, SpoolFiles(copy).look)
        copy.write_bytes(bytes(HEADER_SIZE))
        self.assertRaises(OSError, SpoolFiles(copy).look)
