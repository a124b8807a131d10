"""Segments and records: what was written is read, what was not is told; bounded whatever the bytes."""

from __future__ import annotations

import random
import struct
from hashlib import sha256
from zlib import crc32

from twisted.trial.unittest import SynchronousTestCase

from defender.contract import spool
from defender.contract.packing import assemble, pack_body
from defender.contract.spool import (
    HEADER_SIZE,
    MAX_PAYLOAD,
    MAX_SEQ,
    RECORD_OVERHEAD,
    Scan,
    SegmentHeader,
    SpoolError,
    begin,
    decode_header,
    encode_header,
    first_chain,
    is_quarantined,
    parse_segment_name,
    quarantine_name,
    room,
    scan,
    seal,
    segment_name,
)

EPOCH = 0x9F3C0A6D51E8B274
HEADER = SegmentHeader("web1", EPOCH, 1, first_chain("web1", EPOCH), 1_800_000_000_000_000, "boot")


def payload(number: int, text: str = "") -> bytes:
    event = {"kind": "engine", "phase": "result", "actor": {}, "req": {"path": text or f"/{number}"}}
    return assemble(*pack_body(event), number.to_bytes(16, "big"), 1_800_000_000_000_000 + number, number)


PAYLOADS = [payload(number, "x" * (number * 37 % 400)) for number in range(1, 41)]


def segment(payloads: list[bytes], header: SegmentHeader = HEADER, size: int = 32 * 1024) -> bytearray:
    records, _ = seal(header.previous, header.first_seq, payloads)
    return bytearray((encode_header(header) + records).ljust(size, b"\0"))


def read(data: bytes | bytearray, header: SegmentHeader = HEADER) -> Scan:
    return scan(bytes(data), header)


def sequence(result: Scan) -> list[int]:
    return [record.seq for record in result.records]


class Names(SynchronousTestCase):
    def test_names_sort_within_an_epoch_and_can_be_read(self) -> None:
        name = segment_name(EPOCH, 4711)
        self.assertEqual(name, "9f3c0a6d51e8b274-00000000000000004711.seg")
        self.assertEqual(parse_segment_name(name), (EPOCH, 4711))
        self.assertLess(segment_name(EPOCH, 9), segment_name(EPOCH, 10))
        self.assertFalse(is_quarantined(name))

    def test_quarantined_segments_keep_their_place(self) -> None:
        for number in (0, 2, 17):
            name = quarantine_name(segment_name(EPOCH, 4711), number)
            self.assertEqual(parse_segment_name(name), (EPOCH, 4711), name)
            self.assertTrue(is_quarantined(name), name)

    def test_other_names_are_no_segments(self) -> None:
        good = segment_name(EPOCH, 1)
        for name in (
            "",
            "lock",
            good.upper(),
            good + ".tmp",
            good + ".bad.0",
            good.replace("1.seg", "x.seg"),
            good + "\n",
            segment_name(0, 1),
            segment_name(EPOCH, 0),
            segment_name(EPOCH, MAX_SEQ + 1),
            "١" + good[1:],
        ):
            self.assertIsNone(parse_segment_name(name), name)


class Headers(SynchronousTestCase):
    def test_what_is_written_is_read(self) -> None:
        for header in (
            HEADER,
            SegmentHeader("ünï", 1, MAX_SEQ, bytes(range(32)), 2**63, "b" * 64, 2**64 - 1, 7, b"\xff" * 32),
            SegmentHeader("a" * 256, 1, 1, bytes(32)),
        ):
            data = encode_header(header)
            self.assertEqual(len(data), HEADER_SIZE)
            self.assertEqual(decode_header(data), header)
            self.assertEqual(decode_header(memoryview(data + b"more")), header)

    def test_each_flipped_bit_is_found(self) -> None:
        data = encode_header(HEADER)
        for bit in range(HEADER_SIZE * 8):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            self.assertRaises(SpoolError, decode_header, bytes(damaged))

    def test_what_is_no_header_is_refused(self) -> None:
        good = encode_header(HEADER)

        def altered(offset: int, data: bytes) -> bytes:
            body = good[:offset] + data + good[offset + len(data) : -4]
            return body + struct.pack(">I", crc32(body))

        for data, words in (
            (b"", "no header"),
            (bytes(HEADER_SIZE), "no header"),
            (good[:-1], "no header"),
            (b'{"v":1}' * 100, "not a segment"),
            (altered(8, b"\0\2"), "version 2"),
            (altered(10, b"\xff\xff"), "no defender"),
            (altered(16, bytes(8)), "no defender"),
            (altered(24, bytes(8)), "no defender"),
            (altered(24, b"\xff" * 8), "no defender"),
            (altered(120, b"\xff"), "no defender"),
        ):
            error = self.assertRaises(SpoolError, decode_header, data)
            self.assertIn(words, str(error))

    def test_what_fits_no_header_is_not_written(self) -> None:
        for header in (
            SegmentHeader("a" * 257, 1, 1, bytes(32)),
            SegmentHeader("a", 0, 1, bytes(32)),
            SegmentHeader("a", 1, 0, bytes(32)),
            SegmentHeader("a", 1, MAX_SEQ + 1, bytes(32)),
            SegmentHeader("a", 2**64, 1, bytes(32)),
            SegmentHeader("a", 1, 1, b""),
            SegmentHeader("a", 1, 1, bytes(32), -1),
        ):
            self.assertRaises(SpoolError, encode_header, header)


class Records(SynchronousTestCase):
    def test_a_record_is_what_the_specification_says(self) -> None:
        data, last = seal(HEADER.previous, 7, [b"one", b"two"])
        seq = (7).to_bytes(8, "big")
        chain = sha256(HEADER.previous + seq + b"one").digest()
        body = seq + chain + b"one"
        self.assertEqual(data[:51], struct.pack(">II", 3, crc32(body)) + body)
        self.assertEqual(last, sha256(chain + (8).to_bytes(8, "big") + b"two").digest())
        self.assertEqual(len(data), 2 * (RECORD_OVERHEAD + 3))

    def test_a_batch_gives_the_same_as_one_by_one(self) -> None:
        chain, parts = HEADER.previous, []
        for number, each in enumerate(PAYLOADS, 1):
            data, chain = seal(chain, number, [each])
            parts.append(data)
        self.assertEqual((b"".join(parts), chain), seal(HEADER.previous, 1, PAYLOADS))
        self.assertEqual(seal(chain, 41, []), (b"", chain))

    def test_what_is_sealed_is_scanned(self) -> None:
        result = read(segment(PAYLOADS))
        self.assertEqual([record.payload for record in result.records], PAYLOADS)
        self.assertEqual(sequence(result), list(range(1, 41)))
        self.assertEqual((result.damage, result.torn), ([], ""))
        self.assertEqual(result.place.seq, 40)
        self.assertEqual(result.place.chain, seal(HEADER.previous, 1, PAYLOADS)[1])
        self.assertEqual(result.records[0].offset, HEADER_SIZE)

    def test_an_empty_segment_has_nothing(self) -> None:
        for size in (HEADER_SIZE, HEADER_SIZE + 1, HEADER_SIZE + 47, HEADER_SIZE + 48, 4096):
            result = read(segment([], size=size))
            self.assertEqual(result, Scan([], [], begin(HEADER)), size)

    def test_a_segment_may_be_full_to_its_last_byte(self) -> None:
        data = segment(PAYLOADS, size=0)
        self.assertEqual(read(data).torn, "")
        self.assertEqual(len(read(data).records), 40)

    def test_the_largest_payload_passes_and_a_larger_one_does_not(self) -> None:
        largest = PAYLOADS[0].ljust(MAX_PAYLOAD, b"\xc0")
        self.assertEqual(sequence(read(segment([largest], size=MAX_PAYLOAD + 4096))), [1])
        result = read(segment([largest + b"\xc0"], size=MAX_PAYLOAD + 4096))
        self.assertEqual(result.records, [])
        self.assertIn("1048577 bytes", result.torn)
        self.assertEqual(room(spool.SEGMENT_SIZE), MAX_PAYLOAD)
        self.assertEqual(room(4096), 4096 - HEADER_SIZE - RECORD_OVERHEAD)

    def test_reading_goes_on_where_it_ended(self) -> None:
        data = bytes(segment(PAYLOADS))
        whole = read(data)
        for cut in (HEADER_SIZE, HEADER_SIZE + 10, whole.records[7].offset, whole.records[7].offset + 60):
            first = scan(data[:cut], HEADER)
            second = scan(data[first.place.offset :], HEADER, first.place)
            self.assertEqual(first.records + second.records, whole.records)
            self.assertEqual((second.place, second.torn, second.damage), (whole.place, "", []))


class Damaged(SynchronousTestCase):
    """Good records are kept, whatever is around them; what is missing has an offset and numbers."""

    def test_each_cut_leaves_the_whole_records_before_it(self) -> None:
        data = segment(PAYLOADS[:3], size=0)
        ends = [HEADER_SIZE, *(record.offset for record in read(data).records[1:]), len(data)]
        for cut in range(HEADER_SIZE, len(data) + 1):
            torn = read(data[:cut].ljust(8192, b"\0"))
            whole = sum(end <= cut for end in ends) - 1
            self.assertEqual(sequence(torn), list(range(1, whole + 1)), cut)
            self.assertEqual(torn.place.offset, ends[whole])
            self.assertEqual(torn.damage, [])
            # A record's first bytes are zeros, as if it was not begun.
            if cut - ends[whole] > 4:
                self.assertNotEqual(torn.torn, "", cut)
            elif cut == ends[whole]:
                self.assertEqual(torn.torn, "", cut)

    def test_each_flipped_bit_costs_one_record(self) -> None:
        data = segment(PAYLOADS[:5])
        offsets = [record.offset for record in read(data).records]
        third, fourth = offsets[2], offsets[3]
        for bit in range(third * 8, fourth * 8):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            result = read(damaged)
            self.assertEqual(sequence(result), [1, 2, 4, 5], bit)
            (damage,) = result.damage
            self.assertEqual(damage[:4], (third, fourth, 3, 4), bit)
            self.assertEqual(result.torn, "")

    def test_a_flipped_bit_in_the_last_record_is_a_torn_tail(self) -> None:
        data = segment(PAYLOADS[:5])
        last = read(data).records[-1]
        data[last.offset + RECORD_OVERHEAD + 30] ^= 4
        result = read(data)
        self.assertEqual(sequence(result), [1, 2, 3, 4])
        self.assertEqual((result.damage, result.place.offset), ([], last.offset))
        self.assertIn("checksum", result.torn)

    def test_a_page_of_zeros_costs_what_it_held(self) -> None:
        data = segment(PAYLOADS * 10, size=0)
        data[4096:8192] = bytes(4096)
        result = read(data)
        (damage,) = result.damage
        missing = set(range(1, 401)) - set(sequence(result))
        self.assertEqual(missing, set(range(damage.first_seq, damage.next_seq)))
        self.assertLessEqual(damage.start, 4096)
        self.assertGreaterEqual(damage.end, 8192)
        self.assertEqual(max(sequence(result)), 400)

    def test_an_altered_record_with_a_new_checksum_does_not_fit_the_chain(self) -> None:
        data = segment(PAYLOADS[:5])
        third = read(data).records[2]
        body = data[third.offset + 8 : third.offset + RECORD_OVERHEAD + len(third.payload)]
        body[-1] ^= 1
        data[third.offset + 4 : third.offset + 8 + len(body)] = struct.pack(">I", crc32(body)) + body
        result = read(data)
        self.assertEqual(sequence(result), [1, 2, 4, 5])
        self.assertIn("hash chain", result.damage[0].reason)

    def test_records_of_another_chain_are_found(self) -> None:
        other, _ = seal(first_chain("web2", EPOCH), 3, PAYLOADS[2:4])
        own, _ = seal(HEADER.previous, 1, PAYLOADS[:2])
        result = read(encode_header(HEADER) + own + other)
        self.assertIn("hash chain", result.damage[0].reason)

    def test_impossible_sequence_numbers_are_damage(self) -> None:
        first, chain = seal(HEADER.previous, 1, PAYLOADS[:2])
        for number in (0, 1, 2, MAX_SEQ + 1, 2**64 - 1):
            bad, _ = seal(chain, number, [PAYLOADS[2]])
            good, _ = seal(chain, 3, PAYLOADS[3:5])
            result = read(encode_header(HEADER) + first + bad + good)
            self.assertEqual(sequence(result), [1, 2, 3, 4])
            self.assertIn(f"impossible sequence number {number}", result.damage[0].reason)

    def test_a_jump_within_the_chain_keeps_the_records(self) -> None:
        first, chain = seal(HEADER.previous, 1, PAYLOADS[:2])
        later, _ = seal(chain, 9, PAYLOADS[2:4])
        result = read(encode_header(HEADER) + first + later)
        self.assertEqual(sequence(result), [1, 2, 9, 10])
        self.assertEqual((result.damage, result.torn), ([], ""))

    def test_a_jump_behind_damage_is_not_believed_beyond_its_room(self) -> None:
        first, chain = seal(HEADER.previous, 1, PAYLOADS[:2])
        far, _ = seal(chain, 1_000_000, [PAYLOADS[2]])
        near, _ = seal(chain, 4, [PAYLOADS[3]])
        result = read(encode_header(HEADER) + first + b"\xff" * 100 + far + near)
        self.assertEqual(sequence(result), [1, 2, 4])

    def test_a_header_that_is_not_known_leaves_the_records(self) -> None:
        unknown = SegmentHeader("", EPOCH, 1, b"")
        self.assertEqual(sequence(read(segment(PAYLOADS), unknown)), list(range(1, 41)))

    def test_text_of_clients_is_never_taken_for_a_record(self) -> None:
        forged, _ = seal(bytes(32), 2, [payload(99, "forged")])
        text = (
            forged.decode("utf-8", "surrogateescape")
            .encode("utf-8", "surrogatepass")
            .decode("utf-8", "surrogatepass")
        )
        # What reaches an event is text: it is UTF-8 in the payload, and the mark is not.
        bait = payload(1, text)
        self.assertNotIn(forged, bait)
        self.assertEqual(bait.count(spool.PAYLOAD_MARK), 1)
        data = segment([bait, *PAYLOADS[1:4]])
        data[HEADER_SIZE + 20] ^= 1
        self.assertEqual(sequence(read(data)), [2, 3, 4])

    def test_garbage_neither_raises_nor_yields(self) -> None:
        source = random.Random(4711)
        for _ in range(50):
            data = encode_header(HEADER) + source.randbytes(source.randrange(5000))
            result = read(data)
            self.assertEqual(result.records, [])

    def test_random_damage_never_yields_what_was_not_written(self) -> None:
        source = random.Random(1)
        data = segment(PAYLOADS * 3, size=0)
        written = {record.seq: record for record in read(data).records}
        for _ in range(200):
            damaged = bytearray(data)
            for _ in range(source.randrange(1, 6)):
                start = source.randrange(HEADER_SIZE, len(data))
                damaged[start : start + source.randrange(600)] = source.randbytes(source.randrange(600))
            result = read(damaged)
            numbers = sequence(result)
            self.assertEqual(numbers, sorted(set(numbers)))
            for record in result.records:
                self.assertEqual(record.payload, written[record.seq].payload)
            missing = sum(damage.next_seq - damage.first_seq for damage in result.damage if damage.next_seq)
            if numbers:
                self.assertEqual(numbers[-1], len(numbers) + missing)

    def test_the_search_behind_damage_is_bounded_and_says_so(self) -> None:
        self.patch(spool, "MAX_SEARCH", 10_000)
        data = segment(PAYLOADS[:2], size=0)
        # Heads that claim a long payload each; checking all of them would take square time.
        bait = (struct.pack(">IIQ", 9000, 0, 4) + bytes(32) + b"\x80" + spool.PAYLOAD_MARK) * 400
        rest, _ = seal(bytes(32), 300, [PAYLOADS[3]])
        result = read(bytes(data) + b"\1" * 60 + bait + rest)
        self.assertEqual(sequence(result), [1, 2])
        (damage,) = result.damage
        self.assertEqual((damage.start, damage.first_seq, damage.next_seq), (len(data), 3, 0))
        self.assertIn("too much", damage.reason)
        self.assertEqual(result.torn, "")
