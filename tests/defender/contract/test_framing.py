"""Frames: any cut of the bytes gives the same payloads; what is refused is not collected."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.contract.framing import FRAME_LIMIT, GREETING_LIMIT, FrameError, Framer, frame
from defender.contract.spool import MAX_PAYLOAD, RECORD_OVERHEAD

PAYLOADS = st.lists(st.binary(min_size=1, max_size=300), max_size=12)


def cuts(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


class Frames(SynchronousTestCase):
    @given(PAYLOADS, st.lists(st.integers(0, 5000), max_size=30))
    def test_any_cut_gives_the_same_payloads(self, payloads: list[bytes], places: list[int]) -> None:
        framer = Framer()
        found = []
        for part in cuts(b"".join(map(frame, payloads)), places):
            found += framer.feed(part)
        self.assertEqual(found, payloads)
        self.assertEqual(framer.pending, 0)

    @given(PAYLOADS)
    def test_byte_by_byte(self, payloads: list[bytes]) -> None:
        framer = Framer()
        data = b"".join(map(frame, payloads))
        found = [payload for place in range(len(data)) for payload in framer.feed(data[place : place + 1])]
        self.assertEqual(found, payloads)

    @given(st.lists(st.binary(max_size=40), max_size=10))
    def test_random_bytes_raise_our_error_or_none(self, parts: list[bytes]) -> None:
        framer = Framer(64)
        try:
            for part in parts:
                self.assertTrue(all(0 < len(payload) <= 64 for payload in framer.feed(part)))
        except FrameError:
            self.assertRaises(FrameError, framer.next)

    def test_lengths_at_the_limit(self) -> None:
        for limit in (1, GREETING_LIMIT, FRAME_LIMIT):
            self.assertEqual(Framer(limit).feed(frame(b"x" * limit)), [b"x" * limit])
            for length in (limit + 1, 2**32 - 1, 0):
                self.assertRaises(FrameError, Framer(limit).feed, length.to_bytes(4, "big"))

    def test_a_refused_length_comes_after_what_was_before_it(self) -> None:
        framer = Framer(8)
        framer.add(frame(b"good") + b"\0\0\0\x09")
        self.assertEqual(framer.next(), b"good")
        self.assertRaises(FrameError, framer.next)
        self.assertRaises(FrameError, framer.next)

    def test_the_limit_can_be_raised_between_frames_that_come_together(self) -> None:
        framer = Framer(8)
        framer.add(frame(b"small") + frame(b"much larger"))
        self.assertEqual(framer.next(), b"small")
        framer.limit = 100
        self.assertEqual(framer.next(), b"much larger")
        self.assertIsNone(framer.next())

    def test_an_incomplete_frame_is_held_and_no_more(self) -> None:
        framer = Framer(1000)
        data = frame(b"x" * 1000)
        for place in range(0, len(data) - 1, 7):
            self.assertEqual(framer.feed(data[place : min(place + 7, len(data) - 1)]), [])
        self.assertEqual(framer.pending, len(data) - 1)
        self.assertEqual(framer.feed(data[-1:] + b"\0\0"), [b"x" * 1000])
        self.assertEqual(framer.pending, 2)

    def test_no_frame_is_made_that_nobody_takes(self) -> None:
        for payload in (b"", b"x" * (FRAME_LIMIT + 1)):
            self.assertRaises(ValueError, frame, payload)

    def test_the_largest_record_of_a_spool_fits(self) -> None:
        self.assertGreater(FRAME_LIMIT, MAX_PAYLOAD + RECORD_OVERHEAD + 1024 * 3)
