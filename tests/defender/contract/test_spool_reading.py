"""A spool of many segments: every record once and in order, and nothing that is amiss goes unsaid."""

from __future__ import annotations

from functools import partial

from twisted.trial.unittest import SynchronousTestCase

from defender.contract.audit import SYSTEM, Event
from defender.contract.spool import (
    HEADER_SIZE,
    Place,
    Record,
    SpoolError,
    begin,
    parse_segment_name,
    scan,
    segment_name,
)
from defender.contract.spool_order import Epoch, Segment, arrange, flatten, segment_of
from defender.contract.spool_reading import Entry, Finding, Item, Trouble, Walk, read_spool, walk
from tests.fakes.spool import SpoolWriter


def event(number: int) -> Event:
    return {"kind": "engine", "phase": "result", "actor": dict(SYSTEM), "req": {"path": f"/{number}" * 30}}


def arranged(writer: SpoolWriter, agent: str = "") -> list[Epoch]:
    segments = [segment_of(name, data[:HEADER_SIZE]) for name, data in writer.files.items()]
    return arrange([segment for segment in segments if segment is not None], agent)


class ReadingCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.writer = SpoolWriter(size=8 * 1024)
        self.writer.start()

    def fill(self, count: int = 100) -> None:
        for _ in range(count):
            self.writer.put(event(self.writer.seq + 1))

    def read(self, agent: str = "") -> tuple[list[tuple[int, int]], list[Finding]]:
        """Epoch and number of each record, and the findings."""
        items = list(read_spool(self.writer.files.items(), agent))
        return (
            [(item.epoch.number, item.record.seq) for item in items if isinstance(item, Entry)],
            [item for item in items if isinstance(item, Finding)],
        )

    def expect(self, count: int, *findings: tuple[Trouble, int, int]) -> list[Finding]:
        """So many records of one epoch without those that findings say are missing, and these findings."""
        records, found = self.read()
        gone = {seq for _, first, last in findings if last for seq in range(first, last + 1)}
        self.assertEqual([seq for _, seq in records], [seq for seq in range(1, count + 1) if seq not in gone])
        self.assertEqual([(each.trouble, each.first_seq, each.last_seq) for each in found], list(findings))
        return found


class Whole(ReadingCase):
    def test_segments_are_read_in_order(self) -> None:
        self.fill()
        self.assertGreater(len(self.writer.files), 3)
        self.writer.files = dict(reversed(self.writer.files.items()))
        self.expect(100)

    def test_epochs_are_read_in_the_order_of_their_links_whatever_the_clock_says(self) -> None:
        numbers = []
        for step in (0, -3_600_000_000, 7_200_000_000, -7_200_000_000):
            self.fill(30)
            self.writer.close()
            numbers.append(self.writer.epoch)
            self.writer.now += step
            self.writer.start()
        self.fill(5)
        numbers.append(self.writer.epoch)
        records, found = self.read()
        self.assertEqual(found, [])
        self.assertEqual(list(dict.fromkeys(number for number, _ in records)), numbers)
        self.assertEqual(len(records), 4 * 31 + 5)

    def test_the_oldest_segments_may_be_gone(self) -> None:
        self.fill()
        self.writer.close()
        self.writer.start()
        self.fill()
        names = list(self.writer.files)
        for name in names[:-1]:
            del self.writer.files[name]
            records, found = self.read()
            self.assertEqual(found, [])
            self.assertEqual(records[-1], (self.writer.epoch, 100))
            self.assertEqual(parse_segment_name(next(iter(self.writer.files))), records[0])

    def test_an_empty_spool_has_nothing(self) -> None:
        self.writer.files.clear()
        self.expect(0)

    def test_a_segment_that_was_only_made_is_no_loss(self) -> None:
        self.fill(10)
        self.expect(10)
        self.writer.segment()
        self.expect(10)
        self.writer.files[self.writer.name] = bytes(8192)
        found = self.expect(10, (Trouble.EMPTY, 0, 0))
        self.assertTrue(found[0].harmless)
        self.writer.files[self.writer.name] = b""
        self.expect(10, (Trouble.EMPTY, 0, 0))

    def test_segments_may_be_removed_while_it_is_read(self) -> None:
        for _ in range(2):
            self.fill()
            self.writer.close()
            self.writer.start()
        self.fill(5)
        segments = flatten(arranged(self.writer))
        for gone in range(1, len(segments)):
            lost = {segment.name for _, segment in segments[1 : gone + 1]}
            items = list(walk(segments, partial(self.load, lost)))
            self.assertEqual([item for item in items if isinstance(item, Finding)], [], gone)
            names = list(dict.fromkeys(item.segment.name for item in items if isinstance(item, Entry)))
            self.assertEqual(names, [segment.name for _, segment in segments if segment.name not in lost])

    def load(self, lost: set[str], segment: Segment) -> bytes | None:
        return None if segment.name in lost else self.writer.files[segment.name]

    def test_other_files_are_left_alone(self) -> None:
        self.fill(10)
        self.writer.files["lock"] = self.writer.files["next.tmp"] = b"x" * 600
        self.expect(10)


class Missing(ReadingCase):
    def test_a_segment_that_is_gone_is_a_gap(self) -> None:
        self.fill()
        first, second = list(self.writer.files)[1:3]
        del self.writer.files[first]
        _, start = parse_segment_name(first) or (0, 0)
        _, end = parse_segment_name(second) or (0, 0)
        (gap,) = self.expect(100, (Trouble.GAP, start, end - 1))
        self.assertEqual((gap.file, gap.missing, gap.harmless), (second, end - start, False))

    def test_an_epoch_that_was_not_closed_is_told(self) -> None:
        self.fill(5)
        killed = self.writer.epoch
        self.writer.start()
        self.fill(5)
        _, (found,) = self.read()
        self.assertEqual((found.trouble, found.epoch), (Trouble.UNCLOSED, killed))

    def test_a_closing_record_that_is_not_the_last_closes_nothing(self) -> None:
        self.fill(5)
        self.writer.close()
        self.fill(1)
        self.writer.start()
        self.assertEqual([each.trouble for each in self.read()[1]], [Trouble.UNCLOSED])

    def test_the_end_of_an_epoch_that_is_gone_is_counted(self) -> None:
        self.fill()
        gone = self.writer.name
        before = parse_segment_name(gone)
        self.writer.close()
        closed = self.writer.seq
        self.writer.start()
        self.fill(5)
        del self.writer.files[gone]
        _, (unclosed, gap) = self.read()
        self.assertEqual(unclosed.trouble, Trouble.UNCLOSED)
        self.assertEqual((gap.trouble, (gap.epoch, gap.first_seq)), (Trouble.GAP, before))
        self.assertEqual(gap.last_seq, closed)

    def test_the_beginning_of_an_epoch_that_is_gone_is_counted(self) -> None:
        self.fill(5)
        self.writer.close()
        self.writer.start()
        gone = self.writer.name
        self.fill()
        del self.writer.files[gone]
        _, (gap,) = self.read()
        self.assertEqual((gap.trouble, gap.epoch, gap.first_seq), (Trouble.GAP, self.writer.epoch, 1))

    def test_an_epoch_that_is_gone_is_told(self) -> None:
        for _ in range(3):
            self.fill(5)
            self.writer.close()
            self.writer.start()
        names = list(self.writer.files)
        gone = parse_segment_name(names[1])
        del self.writer.files[names[1]]
        _, (gap,) = self.read()
        self.assertEqual((gap.trouble, gap.missing), (Trouble.GAP, 0))
        self.assertIn(f"{(gone or (0,))[0]:016x}", gap.reason)

    def test_two_epochs_that_follow_the_same_one_are_told(self) -> None:
        """A spool that was put back from a copy, and both written."""
        self.fill(5)
        self.writer.close()
        copy = SpoolWriter(size=8 * 1024, now=self.writer.now + 10_000_000)
        copy.__dict__.update(epoch=self.writer.epoch, seq=self.writer.seq, chain=self.writer.chain)
        for each, number in ((self.writer, 0x77), (copy, 0x78)):
            each.start(number)
            each.put(event(1))
            each.close()
        self.writer.files.update(copy.files)
        records, found = self.read()
        self.assertEqual(len(records), 6 + 2 + 2)
        self.assertEqual([each.trouble for each in found], [Trouble.GAP])

    def test_a_segment_that_cannot_be_read_is_told_and_one_that_was_just_removed_is_not(self) -> None:
        self.fill()
        segments = flatten(arranged(self.writer))
        bad = segments[2][1].name

        def load(segment: Segment) -> bytes | None:
            if segment.name == bad:
                raise SpoolError("cannot be read: Input/output error")
            return None if segment is segments[0][1] else self.writer.files[segment.name]

        items = list(walk(segments, load))
        found = [item for item in items if isinstance(item, Finding)]
        self.assertEqual([each.trouble for each in found], [Trouble.DAMAGE, Trouble.GAP])
        self.assertEqual((found[0].file, found[1].first_seq), (bad, segments[2][1].header.first_seq))
        read = sum(isinstance(item, Entry) for item in items)
        self.assertEqual(read + found[1].missing, 100 - segments[1][1].header.first_seq + 1)


class Broken(ReadingCase):
    def test_damage_says_where_and_which_numbers(self) -> None:
        self.fill()
        name = list(self.writer.files)[1]
        (_, segment) = flatten(arranged(self.writer))[1]
        record = scan(self.writer.files[name], segment.header).records[4]
        self.writer.write(record.offset + 60, b"\xff\xff", name)
        (found,) = self.expect(100, (Trouble.DAMAGE, record.seq, record.seq))
        self.assertEqual((found.file, found.offset), (name, record.offset))
        self.assertIn("checksum", found.reason)

    def test_a_torn_tail_of_the_newest_segment_is_no_loss(self) -> None:
        self.fill(10)
        self.writer.write(self.writer.end, b"\0\0\1\0torn")
        (found,) = self.expect(10, (Trouble.TORN, 0, 0))
        self.assertTrue(found.harmless)
        self.assertEqual(found.offset, self.writer.end)

    def test_a_torn_tail_before_a_gap_is_its_cause(self) -> None:
        self.fill()
        name = list(self.writer.files)[1]
        (_, segment) = flatten(arranged(self.writer))[1]
        last = scan(self.writer.files[name], segment.header).records[-1]
        self.writer.write(last.offset + 50, b"\xff\xff", name)
        (found,) = self.expect(100, (Trouble.DAMAGE, last.seq, last.seq))
        self.assertEqual((found.file, found.offset), (name, last.offset))

    def test_a_header_that_is_damaged_leaves_the_records(self) -> None:
        self.fill()
        for place, name in enumerate(list(self.writer.files)):
            whole = self.writer.files[name]
            self.writer.write(100, b"\xff\xff", name)
            (found,) = self.expect(100, (Trouble.DAMAGE, 0, 0))
            self.assertEqual((found.file, found.offset), (name, 0), place)
            self.writer.write(0, bytes(HEADER_SIZE), name)
            self.expect(100, (Trouble.DAMAGE, 0, 0))
            self.writer.files[name] = whole

    def test_an_epoch_whose_only_header_is_damaged_keeps_its_place(self) -> None:
        numbers = []
        for _ in range(3):
            self.fill(3)
            self.writer.close()
            numbers.append(self.writer.epoch)
            self.writer.start()
        for name in list(self.writer.files)[:3]:
            whole = self.writer.files[name]
            self.writer.write(0, b"\xff", name)
            records, found = self.read()
            self.assertEqual(list(dict.fromkeys(number for number, _ in records)), numbers)
            self.assertEqual([each.trouble for each in found], [Trouble.DAMAGE])
            self.writer.files[name] = whole

    def test_a_segment_of_another_chain_is_told(self) -> None:
        """Each segment holds; that the second was written anew shows at its border."""
        self.fill()
        other = SpoolWriter(size=8 * 1024, now=self.writer.now)
        other.start(self.writer.epoch)
        for number in range(1, 101):
            other.put(event(number))
        name = list(self.writer.files)[1]
        self.assertEqual(list(other.files)[1], name)
        self.writer.files[name] = other.files[name]
        _, found = self.read()
        names = list(self.writer.files)
        self.assertEqual(
            [(each.trouble, each.file) for each in found],
            [(Trouble.CHAIN, names[1]), (Trouble.CHAIN, names[2])],
        )

    def test_a_first_segment_that_was_written_anew_is_told(self) -> None:
        self.fill(3)
        data = bytearray(self.writer.files[self.writer.name])
        other = SpoolWriter("web2", size=8 * 1024)
        other.start(self.writer.epoch)
        other.agent = "web1"
        other.segment()
        other.put(event(1))
        self.assertNotEqual(bytes(data), other.files[self.writer.name])
        self.writer.files = other.files
        self.assertEqual([each.trouble for each in self.read()[1]], [Trouble.CHAIN])

    def test_an_epoch_that_ends_otherwise_than_its_successor_says_is_told(self) -> None:
        self.fill(5)
        self.writer.close()
        self.writer.chain = bytes(32)
        self.writer.start()
        self.fill(1)
        self.assertEqual([each.trouble for each in self.read()[1]], [Trouble.CHAIN])

    def test_segments_of_another_defender_are_told_and_not_read(self) -> None:
        self.fill(5)
        other = SpoolWriter("web2", now=self.writer.now + 1)
        other.start(7)
        other.put(event(1))
        self.writer.files.update(other.files)
        records, found = self.read("web1")
        self.assertEqual([number for number, _ in records], [self.writer.epoch] * 5)
        self.assertEqual([(each.trouble, each.epoch) for each in found], [(Trouble.FOREIGN, 7)])
        self.assertIn("web2", found[0].reason)
        # Without a name the newest counts.
        self.assertEqual(self.read()[1][0].epoch, self.writer.epoch)

    def test_a_defender_may_be_given_another_name(self) -> None:
        self.fill(5)
        self.writer.close()
        self.writer.agent = "db1"
        self.writer.start()
        self.fill(5)
        records, found = self.read("db1")
        self.assertEqual((len(records), found), (11, []))

    def test_a_segment_with_another_name_is_told_and_read(self) -> None:
        self.fill(5)
        data = self.writer.files.pop(self.writer.name)
        self.writer.files[segment_name(5, 5)] = data
        self.expect(5, (Trouble.FOREIGN, 0, 0))

    def test_epochs_that_follow_each_other_in_a_circle_are_read(self) -> None:
        self.writer.files.clear()
        for number, before in ((5, 6), (6, 5)):
            writer = SpoolWriter()
            writer.epoch, writer.chain = before, bytes(32)
            writer.start(number)
            writer.put(event(1))
            self.writer.files.update(writer.files)
        self.assertEqual(len(self.read()[0]), 2)


class Quarantined(ReadingCase):
    """What fsync failed on is written again to the next segment; the one put aside may hold it too."""

    def test_what_both_hold_is_read_once(self) -> None:
        self.fill(30)
        for unsynced in (0, 1, 3):
            self.fill(5)
            self.writer.poison(unsynced)
        self.fill(30)
        self.expect(75)

    def test_what_the_disk_lost_is_in_the_next_segment(self) -> None:
        self.fill(10)
        bad = self.writer.poison(4)
        record = self.records(bad)[7]
        self.writer.write(record.offset + 48, bytes(40), bad)
        (found,) = self.expect(10, (Trouble.MENDED, 0, 0))
        self.assertEqual((found.file, found.harmless), (bad, True))

    def test_each_record_may_be_damaged_in_one_of_them(self) -> None:
        self.writer.size = 512 * 1024
        self.writer.segment()
        self.fill(1000)
        bad = self.writer.poison(1000)
        for name, first in ((bad, 1), (self.writer.name, 2)):
            data = bytearray(self.writer.files[name])
            for record in self.records(name)[first:-1:2]:
                data[record.offset + 48] ^= 1
            self.writer.files[name] = bytes(data)
        records, found = self.read()
        self.assertEqual([seq for _, seq in records], list(range(1, 1001)))
        self.assertEqual(len(found), 499 + 499)
        self.assertEqual({each.missing for each in found}, {0})

    def test_what_only_the_segment_put_aside_holds_counts(self) -> None:
        """The defender was killed before all was written again."""
        self.fill(10)
        self.writer.poison(4, again=2)
        self.expect(10)

    def test_two_records_of_one_number_are_told(self) -> None:
        self.fill(10)
        bad = self.writer.poison(4, again=0)
        self.writer.put(event(99), event(98))
        records, found = self.read()
        self.assertEqual(found[0][:3], (Trouble.CONFLICT, self.writer.epoch, self.writer.name))
        self.assertEqual([seq for _, seq in records], list(range(1, 11)))
        self.assertEqual(len(self.records(bad)), 10)

    def test_one_segment_twice_is_read_once(self) -> None:
        self.fill(10)
        self.writer.files[segment_name(5, 5)] = self.writer.files[self.writer.name]
        self.expect(10, (Trouble.FOREIGN, 0, 0))

    def records(self, name: str) -> list[Record]:
        data = self.writer.files[name]
        segment = segment_of(name, data[:HEADER_SIZE])
        assert segment is not None
        return scan(data, segment.header).records


class Growing(ReadingCase):
    """`Walk` fed in parts, as by a reader of a spool that is written meanwhile."""

    def test_records_come_as_they_are_written_and_once(self) -> None:
        state, seen, place = Walk(), list[int](), dict[tuple[int, int, int], Place]()

        def look() -> None:
            for epoch, segment in flatten(arranged(self.writer)):
                items: list[Item] = []
                if segment.key not in place:
                    items += state.enter(epoch, segment, oldest=not place)
                start = place.get(segment.key, begin(segment.header))
                found = scan(self.writer.files[segment.name][start.offset :], segment.header, start)
                items += state.read(found)
                state.remember(found)
                place[segment.key] = found.place
                for item in items:
                    assert isinstance(item, Entry), item
                    seen.append(item.record.seq)

        for count in range(40):
            self.fill(3)
            look()
            if count % 8 == 7:
                self.writer.poison(2)
                look()
        self.assertEqual(seen, list(range(1, 121)))
        self.assertEqual(state.repeated, 10)
