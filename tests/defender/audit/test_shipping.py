"""Everything that is certainly on disk is shipped once, in order, whatever the spool looks like."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.audit.commands import SegmentFile
from defender.audit.shipping import BATCH, BATCH_BYTES, Batch, Shipping
from defender.contract.packing import assemble, pack_body
from defender.contract.spool import (
    RECORD_OVERHEAD,
    Place,
    SegmentHeader,
    encode_header,
    first_chain,
    scan,
    seal,
    segment_name,
)

AGENT = "web1"


def payload(number: int, size: int = 0) -> bytes:
    event = {
        "kind": "engine",
        "phase": "result",
        "actor": {"user": "bruce"},
        "req": {"action": "docker_ping", "pad": "x" * size},
    }
    return assemble(*pack_body(event), number.to_bytes(16, "big"), number, number)


class Files:
    """Segments in memory: what a defender would have written, and how far that is durable."""

    def __init__(self) -> None:
        self.files: dict[str, bytearray] = {}
        self.segments: list[SegmentFile] = []
        self.epoch = 0
        self.durable = 0
        self.seq = 0
        self.chain = b""
        self.made: list[tuple[int, int]] = []
        self._end = 0

    def begin_epoch(self, epoch: int) -> None:
        self.epoch, self.seq, self.durable = epoch, 0, 0
        self.chain = first_chain(AGENT, epoch)
        self.begin_segment()

    def begin_segment(self, size: int = 64 * 1024) -> None:
        name = segment_name(self.epoch, self.seq + 1)
        header = SegmentHeader(AGENT, self.epoch, self.seq + 1, self.chain, created=len(self.segments) + 1)
        self.files[name] = bytearray(encode_header(header).ljust(size, b"\0"))
        self.segments = [each for each in self.segments if each.name != name]
        self.segments.append(SegmentFile(name, self.epoch, self.seq + 1, size))
        self._end = 512

    def write(self, count: int, size: int = 0) -> None:
        payloads = [payload(self.seq + 1 + index, size) for index in range(count)]
        data, self.chain = seal(self.chain, self.seq + 1, payloads)
        file = self.files[self.segments[-1].name]
        file[self._end : self._end + len(data)] = data
        self._end += len(data)
        self.made += [(self.epoch, self.seq + 1 + index) for index in range(count)]
        self.seq += count

    def sync(self) -> None:
        self.durable = self.seq

    def read(self, name: str, offset: int, size: int) -> bytes | None:
        file = self.files.get(name)
        return None if file is None else bytes(file[offset : offset + size])

    def ship(self, shipping: Shipping) -> list[Batch]:
        """Feed what is wanted until nothing is."""
        shipping.spool(self.segments, self.epoch, self.durable)
        batches: list[Batch] = []
        for _ in range(10_000):
            wanted = shipping.next()
            if wanted is None:
                return batches
            batches += shipping.feed(self.read(*wanted))
        raise AssertionError("it reads for ever")


def numbers(batches: list[Batch]) -> list[tuple[int, int]]:
    return [(each.epoch, seq) for each in batches for seq in range(each.first_seq, each.last_seq + 1)]


class ShippingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.files = Files()
        self.files.begin_epoch(7)
        self.shipping = Shipping()

    def check(self, batch: Batch) -> None:
        """The bytes are whole records, and fit the chain that the batch names."""
        header = SegmentHeader(AGENT, batch.epoch, batch.first_seq, bytes(32))
        found = scan(batch.data, header, Place(0, batch.first_seq - 1, batch.previous))
        self.assertEqual(
            [each.seq for each in found.records], list(range(batch.first_seq, batch.last_seq + 1))
        )
        self.assertEqual((found.damage, found.torn, len(found.records)), ([], "", batch.count))
        self.assertEqual(found.records[-1].chain, batch.chain)

    def test_nothing_is_wanted_before_the_controller_has_said_what_it_has(self) -> None:
        self.files.write(3)
        self.files.sync()
        self.assertEqual(self.files.ship(self.shipping), [])
        self.shipping.resume(0, 0)
        batches = self.files.ship(self.shipping)
        self.assertEqual(numbers(batches), [(7, 1), (7, 2), (7, 3)])
        self.check(batches[0])
        self.shipping.pause()
        self.files.write(1)
        self.files.sync()
        self.assertEqual(self.files.ship(self.shipping), [])

    def test_what_is_not_durable_stays(self) -> None:
        self.shipping.resume(0, 0)
        self.files.write(3)
        self.assertEqual(self.files.ship(self.shipping), [])
        self.files.sync()
        self.files.write(2)
        self.assertEqual(numbers(self.files.ship(self.shipping)), [(7, 1), (7, 2), (7, 3)])
        self.files.sync()
        self.assertEqual(numbers(self.files.ship(self.shipping)), [(7, 4), (7, 5)])

    def test_a_commit_over_two_segments_is_not_torn_apart(self) -> None:
        """Both are there before either is durable."""
        self.shipping.resume(0, 0)
        self.files.write(2)
        self.files.sync()
        self.files.ship(self.shipping)
        self.files.write(2)
        self.files.begin_segment()
        self.files.write(2)
        self.assertEqual(self.files.ship(self.shipping), [])
        self.files.sync()
        self.assertEqual(numbers(self.files.ship(self.shipping)), [(7, 3), (7, 4), (7, 5), (7, 6)])

    def test_it_goes_on_where_the_controller_is(self) -> None:
        self.files.write(500)
        self.files.sync()
        self.shipping.resume(7, 123)
        batches = self.files.ship(self.shipping)
        self.assertEqual(numbers(batches), self.files.made[123:])
        self.assertTrue(all(each.count <= BATCH for each in batches))
        for batch in batches:
            self.check(batch)

    def test_segments_that_made_room_are_passed_over(self) -> None:
        for _ in range(3):
            self.files.write(4)
            self.files.begin_segment()
        self.files.write(1)
        self.files.sync()
        gone = self.files.segments.pop(0)
        del self.files.files[gone.name]
        self.shipping.resume(7, 2)
        batches = self.files.ship(self.shipping)
        self.assertEqual(numbers(batches), [(7, seq) for seq in range(5, 14)])
        self.assertIn("made room", batches[0].lost)
        self.assertEqual([each.lost for each in batches[1:]], [""] * (len(batches) - 1))

    def test_a_segment_that_goes_while_it_is_read(self) -> None:
        self.files.write(4)
        self.files.begin_segment()
        self.files.write(2)
        self.files.sync()
        self.shipping.resume(0, 0)
        self.shipping.spool(self.files.segments, 7, self.files.durable)
        self.assertIsNotNone(self.shipping.next())
        self.assertEqual(self.shipping.feed(None), [])
        gone = self.files.segments.pop(0)
        del self.files.files[gone.name]
        self.assertEqual(numbers(self.files.ship(self.shipping)), [(7, 5), (7, 6)])

    def test_a_segment_that_is_put_aside_while_it_is_read(self) -> None:
        self.files.write(4)
        self.files.begin_segment()
        self.files.sync()
        self.shipping.resume(0, 0)
        self.shipping.spool(self.files.segments, 7, self.files.durable)
        wanted = self.shipping.next()
        assert wanted is not None
        first = self.files.segments[0]
        self.files.files[first.name + ".bad"] = self.files.files.pop(first.name)
        self.files.segments[0] = SegmentFile(first.name + ".bad", 7, 1, first.size)
        self.shipping.spool(self.files.segments, 7, self.files.durable)
        self.assertEqual(self.shipping.feed(self.files.read(*wanted)), [])
        self.assertEqual(numbers(self.files.ship(self.shipping)), [(7, seq) for seq in range(1, 5)])

    def test_what_was_asked_for_before_a_pause_is_not_taken(self) -> None:
        self.files.write(3)
        self.files.sync()
        self.shipping.resume(0, 0)
        self.shipping.spool(self.files.segments, 7, self.files.durable)
        header = self.shipping.next()
        self.assertIsNone(self.shipping.next())
        self.shipping.pause()
        self.shipping.resume(7, 1)
        self.assertIsNone(self.shipping.next())
        assert header is not None
        self.assertEqual(self.shipping.feed(self.files.read(*header)), [])
        self.assertEqual(numbers(self.files.ship(self.shipping)), [(7, 2), (7, 3)])

    def test_damage_divides_batches_and_ends_nothing(self) -> None:
        self.files.write(9)
        self.files.sync()
        file = self.files.files[self.files.segments[0].name]
        one = len(payload(1)) + RECORD_OVERHEAD
        file[512 + 4 * one + 60] ^= 0xFF
        self.shipping.resume(0, 0)
        batches = self.files.ship(self.shipping)
        self.assertEqual([(each.first_seq, each.last_seq) for each in batches], [(1, 4), (6, 9)])
        self.assertEqual(batches[1].previous, b"")
        self.assertEqual([each.lost for each in batches], ["", "a record's checksum does not hold"])
        for batch in batches:
            self.check(batch)

    def test_damage_at_the_end_of_what_is_written(self) -> None:
        """What comes after it is shipped, and nobody waits for what cannot be read."""
        self.files.write(3)
        self.files.sync()
        file = self.files.files[self.files.segments[0].name]
        one = len(payload(1)) + RECORD_OVERHEAD
        file[512 + 2 * one + 60] ^= 0xFF
        self.shipping.resume(0, 0)
        self.assertEqual(numbers(self.files.ship(self.shipping)), [(7, 1), (7, 2)])
        self.files.write(2)
        self.files.sync()
        self.assertEqual(numbers(self.files.ship(self.shipping)), [(7, 4), (7, 5)])

    def test_a_header_that_cannot_be_read(self) -> None:
        self.files.write(3)
        self.files.begin_segment()
        self.files.write(1)
        self.files.sync()
        self.files.files[self.files.segments[0].name][20] ^= 0xFF
        self.shipping.resume(0, 0)
        batches = self.files.ship(self.shipping)
        self.assertEqual(numbers(batches), [(7, seq) for seq in range(1, 5)])
        self.assertEqual((batches[0].previous, batches[0].header), (b"", None))
        header = batches[-1].header
        assert header is not None
        self.assertEqual((header.agent, header.epoch), (AGENT, 7))

    def test_batches_are_bounded_in_bytes(self) -> None:
        self.files.begin_segment(4 * 1024 * 1024)
        self.files.write(30, 100_000)
        self.files.sync()
        self.shipping.resume(0, 0)
        self.shipping.spool(self.files.segments, 7, self.files.durable)
        self.shipping._size = 4 * 1024 * 1024
        batches = self.files.ship(self.shipping)
        self.assertEqual(numbers(batches), self.files.made)
        self.assertLessEqual(max(len(each.data) for each in batches), BATCH_BYTES)
        self.assertTrue(all(each.lost == "" for each in batches))

    def test_records_larger_than_a_slice(self) -> None:
        self.files.begin_segment(1024 * 1024)
        self.files.write(1, 300_000)
        self.files.write(2, 100)
        self.files.sync()
        self.shipping.resume(0, 0)
        self.assertEqual(numbers(self.files.ship(self.shipping)), self.files.made)

    def test_epoch_after_epoch(self) -> None:
        self.files.write(3)
        self.files.begin_epoch(4)
        self.files.write(2)
        self.files.begin_epoch(9)
        self.files.write(2)
        self.files.sync()
        for epoch, seq, sent in ((0, 0, 7), (7, 3, 4), (4, 1, 3), (9, 2, 0), (5, 1, 7)):
            self.shipping.resume(epoch, seq)
            self.assertEqual(
                numbers(self.files.ship(self.shipping)), self.files.made[7 - sent :], (epoch, seq)
            )

    @settings(deadline=None, max_examples=150)
    @given(
        st.lists(
            st.one_of(
                st.tuples(st.just("write"), st.integers(1, 60)),
                st.tuples(st.just("segment"), st.just(0)),
                st.tuples(st.just("epoch"), st.just(0)),
                st.tuples(st.just("sync"), st.just(0)),
                st.tuples(st.just("ship"), st.just(0)),
                st.tuples(st.just("reconnect"), st.integers(0, 400)),
            ),
            max_size=40,
        )
    )
    def test_every_record_once_and_in_order(self, steps: list[tuple[str, int]]) -> None:
        files, shipping = Files(), Shipping()
        files.begin_epoch(1)
        shipping.resume(0, 0)
        stored: list[tuple[int, int]] = []
        for step, number in [*steps, ("sync", 0), ("ship", 0)]:
            if step == "write":
                files.write(number, 40)
            elif step == "segment" and files.made[-1:] and files.seq:
                files.begin_segment()
            elif step == "epoch":
                files.begin_epoch(files.epoch + 1)
            elif step == "sync":
                files.sync()
            elif step == "ship":
                for batch in files.ship(shipping):
                    self.check(batch)
                    stored += numbers([batch])
                self.assertEqual(stored, files.made[: len(stored)])
            elif step == "reconnect":
                # The controller had not stored the last ones when the link broke.
                del stored[max(0, len(stored) - number) :]
                shipping.pause()
                shipping.resume(*(stored[-1] if stored else (0, 0)))
        self.assertEqual(stored, files.made)
