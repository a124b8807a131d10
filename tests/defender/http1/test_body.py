"""Bodies: payload and surplus for any cut of the input, strict chunks, bounded state."""

from __future__ import annotations

import sys
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.http1.body import (
    FORBIDDEN_TRAILERS,
    MAX_CHUNK_EXTENSION,
    MAX_CHUNK_LINE,
    ChunkedDecoder,
    LengthDecoder,
    UntilCloseDecoder,
    encode_chunk,
    last_chunk,
)
from defender.http1.errors import HTTPError

SURPLUS = b"GET /_ping HTTP/1.1\r\n"


def decode(pieces: list[bytes], decoder: ChunkedDecoder | None = None) -> tuple[bytes, bytes, bool]:
    """All payload, all surplus and whether the body was finished."""
    decoder = ChunkedDecoder() if decoder is None else decoder
    payload = surplus = b""
    for piece in pieces:
        more, rest = decoder.decode(piece)
        payload += more
        surplus += rest
    return payload, surplus, decoder.finished


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """`data` cut at `places` (taken modulo its length)."""
    bounds = sorted(place % (len(data) + 1) for place in places)
    return [data[start:stop] for start, stop in zip([0, *bounds], [*bounds, len(data)], strict=True)]


class LengthTests(SynchronousTestCase):
    def test_payload_then_surplus(self) -> None:
        decoder = LengthDecoder(5)
        self.assertEqual(decoder.decode(b"hel"), (b"hel", b""))
        self.assertEqual((decoder.finished, decoder.remaining), (False, 2))
        self.assertEqual(decoder.decode(b"loGET"), (b"lo", b"GET"))
        self.assertTrue(decoder.finished)
        self.assertEqual(decoder.decode(b" /"), (b"", b" /"))

    def test_an_empty_body_is_finished_at_once(self) -> None:
        decoder = LengthDecoder(0)
        self.assertTrue(decoder.finished)
        self.assertEqual(decoder.decode(b"x"), (b"", b"x"))

    def test_all_payload_is_not_copied(self) -> None:
        decoder = LengthDecoder(2000)
        for data in (b"a" * 1000, b"b" * 1000):
            self.assertIs(decoder.decode(data)[0], data)
        self.assertTrue(decoder.finished)

    @given(st.binary(max_size=100), st.integers(0, 120), st.lists(st.integers(0, 200), max_size=6))
    def test_any_cut(self, data: bytes, length: int, places: list[int]) -> None:
        decoder = LengthDecoder(length)
        results = [decoder.decode(piece) for piece in cut(data, places)]
        self.assertEqual(b"".join(payload for payload, _ in results), data[:length])
        self.assertEqual(b"".join(surplus for _, surplus in results), data[length:])
        self.assertEqual(decoder.finished, len(data) >= length)


class UntilCloseTests(SynchronousTestCase):
    def test_everything_is_payload(self) -> None:
        decoder = UntilCloseDecoder()
        data = b"HTTP/1.1 200 OK\r\n\r\n"
        self.assertIs(decoder.decode(data)[0], data)
        self.assertFalse(decoder.finished)


class ChunkTests(SynchronousTestCase):
    def refuse(self, data: bytes, words: str = "") -> None:
        """Refused whole and byte by byte, and ever after."""
        for pieces in ([data], [data[i : i + 1] for i in range(len(data))]):
            decoder = ChunkedDecoder()
            error = self.assertRaises(HTTPError, decode, pieces, decoder)
            self.assertEqual(error.status, 400)
            self.assertIn(words, error.message)
            self.assertFalse(decoder.finished)
            self.assertRaises(HTTPError, decoder.decode, b"0\r\n\r\n")
            self.assertFalse(decoder.finished)

    def test_chunks_and_surplus(self) -> None:
        data = b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n" + SURPLUS
        self.assertEqual(decode([data]), (b"hello world", SURPLUS, True))

    def test_after_the_end_everything_is_surplus(self) -> None:
        decoder = ChunkedDecoder()
        decoder.decode(b"0\r\n\r\n")
        self.assertEqual(decoder.decode(b"5\r\nhello\r\n"), (b"", b"5\r\nhello\r\n"))

    def test_sizes(self) -> None:
        for size in (b"5", b"05", b"0000000000000005"):
            self.assertEqual(decode([size + b"\r\nhello\r\n0\r\n\r\n"]), (b"hello", b"", True))
        self.assertEqual(decode([b"a\r\n0123456789\r\nA\r\n0123456789\r\n000\r\n\r\n"])[0], b"0123456789" * 2)

    def test_bad_sizes(self) -> None:
        for size in (
            b"", b"0x5", b"+5", b"-5", b"5 ", b" 5", b"\t5", b"5\t", b"5_0", b"g", b"00000000000000005",
            b"5\0",
            b"8000000000000000", b"ffffffffffffffff", b"5\r", b"5 ;a", b"5\xa0", b"5,5", b"5.", b"\xd9\xa3",
            b"5\x0b",
        ):  # fmt: skip
            self.refuse(size + b"\r\nhello\r\n0\r\n\r\n")

    def test_the_largest_size_is_begun(self) -> None:
        self.assertEqual(decode([b"7fffffffffffffff\r\nhello"]), (b"hello", b"", False))

    def test_only_crlf_ends_a_line(self) -> None:
        for data in (
            b"5\nhello\r\n0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"5\r\nhello\r0\r\n\r\n",
            b"5\rhello\r\n0\r\n\r\n",
            b"5\r\nhello\r\n0\n\n",
            b"0\n\r\n",
            b"\r\n5\r\nhello\r\n",
            b"5\r\r\nhello\r\n",
        ):
            self.refuse(data)

    def test_a_chunk_of_another_length_than_its_size(self) -> None:
        self.refuse(b"3\r\nhello\r\n0\r\n\r\n", "longer than its size")
        self.refuse(b"7\r\nhello\r\n0\r\n\r\n" + SURPLUS)

    def test_extensions_are_dropped(self) -> None:
        for extension in (b";", b";a", b";a=b", b';a="b c"', b";a;b=c", b'; a = "\t;0"', b";\xff"):
            data = b"5" + extension + b"\r\nhello\r\n0" + extension + b"\r\n\r\n" + SURPLUS
            self.assertEqual(decode([data]), (b"hello", SURPLUS, True))

    def test_a_line_end_in_quotes_is_a_line_end(self) -> None:
        self.refuse(b'5;a="\n"\r\nhello\r\n0\r\n\r\n')
        self.refuse(b'5;a="\r"\r\nhello\r\n0\r\n\r\n')
        self.assertEqual(decode([b'5;a="\r\nhello\r\n0\r\n\r\n'])[0], b"hello")

    def test_bad_extensions(self) -> None:
        for extension in (b";\0", b";a\x0b", b";a\x7f", b"a=b", b";" + b"a" * MAX_CHUNK_EXTENSION):
            self.refuse(b"5" + extension + b"\r\nhello\r\n0\r\n\r\n")
        longest = b";" + b"a" * (MAX_CHUNK_EXTENSION - 1)
        self.assertEqual(decode([b"5" + longest + b"\r\nhello\r\n0\r\n\r\n"])[0], b"hello")

    def test_an_endless_size_line_is_refused(self) -> None:
        self.refuse(b"5" * MAX_CHUNK_LINE, "size line")
        self.refuse(b"5;" + b"a" * MAX_CHUNK_LINE)
        self.assertEqual(decode([b"5;" + b"a" * (MAX_CHUNK_LINE - 3)])[2], False)

    def test_a_body_that_is_mostly_framing_is_refused(self) -> None:
        small = b"1;" + b"a" * 200 + b"\r\nx\r\n"
        self.refuse(small * 200, "more framing than data")
        plain = b"1\r\nx\r\n" * 20000 + b"0\r\n\r\n"
        self.assertEqual(decode([plain]), (b"x" * 20000, b"", True))

    def test_the_status_is_the_owners(self) -> None:
        decoder = ChunkedDecoder(status=502)
        for _ in range(2):
            self.assertEqual(self.assertRaises(HTTPError, decoder.decode, b"x\r\n").status, 502)

    def test_payload_is_not_repeated_in_messages(self) -> None:
        for data in (
            b"1\r\nCANARY\r\n0\r\n\r\n",
            b"CANARY\r\n",
            b"0\r\nCANARY\r\n\r\n",
            b"0\r\nCANARY\0: a\r\n\r\n",
        ):
            error = self.assertRaises(HTTPError, ChunkedDecoder().decode, data)
            self.assertNotIn("CANARY", error.message)

    def test_all_payload_is_not_copied(self) -> None:
        decoder = ChunkedDecoder()
        decoder.decode(b"7d0\r\n")
        for data in (b"a" * 1000, b"b" * 1000):
            self.assertIs(decoder.decode(data)[0], data)
        self.assertEqual(decoder.decode(b"\r\n0\r\n\r\n"), (b"", b""))
        self.assertTrue(decoder.finished)


class TrailerTests(SynchronousTestCase):
    def refuse(self, section: bytes, words: str = "") -> None:
        for pieces in ([b"0\r\n" + section], [b"0\r\n", *(section[i : i + 1] for i in range(len(section)))]):
            error = self.assertRaises(HTTPError, decode, pieces)
            self.assertIn(words, error.message)

    def test_trailers_are_read_as_headers(self) -> None:
        decoder = ChunkedDecoder()
        data = b"0\r\nX-Sum: \t1 \r\nOther:\r\n\r\n" + SURPLUS
        self.assertEqual(decode([data], decoder), (b"", SURPLUS, True))
        self.assertEqual(decoder.trailers, [(b"x-sum", b"1"), (b"other", b"")])

    def test_malformed_trailers(self) -> None:
        for line in (
            b"xx",
            b"A : b",
            b" A: b",
            b"A: b\0",
            b"A: b\nC: d",
            b"A: b\r\n c",
            b"GET / HTTP/1.1",
            b"\n",
            b": b",
        ):
            self.refuse(line + b"\r\n\r\n", "header line")

    def test_a_request_in_the_place_of_the_empty_line(self) -> None:
        self.refuse(b"GET /_ping HTTP/1.1\r\nHost: smuggled\r\n\r\n", "no colon")
        self.refuse(b"Host: smuggled\r\n\r\n", "not allowed")

    def test_forbidden_trailers(self) -> None:
        for name in (
            b"Content-Length", b"TRANSFER-ENCODING", b"Host", b"Trailer", b"Connection", b"Upgrade",
            b"Expect",
            b"Authorization", b"Content-Type", b"Content-Encoding", b"X-Registry-Auth", b"X-Registry-Config",
            b"Cookie",
        ):  # fmt: skip
            self.assertIn(name.lower(), FORBIDDEN_TRAILERS)
            self.refuse(b"A: b\r\n" + name + b": 5\r\n\r\n", "not allowed")

    def test_the_section_is_bounded(self) -> None:
        longest = b"A: " + b"b" * (8192 - 7) + b"\r\n\r\n"
        self.assertTrue(decode([b"0\r\n" + longest])[2])
        self.refuse(b"A: " + b"b" * (8192 - 6) + b"\r\n\r\n", "longer than 8192")
        self.refuse(b"A: b\r\n" * 2000, "longer than 8192")
        self.refuse(b"x" * 8192, "longer than 8192")

    def test_written_trailers_are_read(self) -> None:
        decoder = ChunkedDecoder()
        trailers = [(b"x-sum", b"1"), (b"other", b"")]
        self.assertTrue(decode([encode_chunk(b"hello") + last_chunk(trailers)], decoder)[2])
        self.assertEqual(decoder.trailers, trailers)
        self.assertEqual(last_chunk([]), b"0\r\n\r\n")
        for bad in (b"a\r\nb", b"a\n", b"\r", b"\0"):
            self.assertRaises(ValueError, last_chunk, [(b"a", bad)])
            self.assertRaises(ValueError, last_chunk, [(bad, b"a")])


class EncodeTests(SynchronousTestCase):
    def test_an_empty_payload_does_not_end_the_body(self) -> None:
        self.assertEqual(encode_chunk(b""), b"")
        self.assertEqual(encode_chunk(b"x" * 26), b"1a\r\n" + b"x" * 26 + b"\r\n")


_EXTENSIONS = st.sampled_from([b"", b";a=b", b';q="x;y"'])
_CHUNKS = st.lists(st.tuples(st.binary(min_size=1, max_size=40), _EXTENSIONS), max_size=8)
_FRAGMENTS = st.sampled_from(
    [
        b"5\r\n",
        b"hello",
        b"\r\n",
        b"0\r\n",
        b"\r",
        b"\n",
        b"1;a\r\n",
        b"x",
        b"A: b\r\n",
        b"\0",
        b"f",
        b"ffff\r\n",
        b";",
    ]
)


class AnyCutTests(SynchronousTestCase):
    """Where the input is cut makes no difference."""

    @given(_CHUNKS, st.binary(max_size=20), st.lists(st.integers(0, 1000), max_size=10))
    def test_valid_bodies(self, chunks: list[tuple[bytes, bytes]], surplus: bytes, places: list[int]) -> None:
        data = b"".join(b"%X%b\r\n%b\r\n" % (len(body), extra, body) for body, extra in chunks)
        data += b"0\r\nA: b\r\n\r\n" + surplus
        expected = b"".join(body for body, _ in chunks)
        self.assertEqual(decode(cut(data, places)), (expected, surplus, True))

    @given(
        st.one_of(st.binary(max_size=60), st.lists(_FRAGMENTS, max_size=14).map(b"".join)),
        st.lists(st.integers(0, 200), max_size=6),
    )
    def test_arbitrary_bytes(self, data: bytes, places: list[int]) -> None:
        def result(pieces: list[bytes]) -> tuple[bytes, bytes, bool] | int:
            try:
                return decode(pieces)
            except HTTPError as error:
                return error.status

        self.assertEqual(result(cut(data, places)), result([data]))

    @given(st.lists(_FRAGMENTS, max_size=30))
    def test_state_is_bounded(self, fragments: list[bytes]) -> None:
        decoder = ChunkedDecoder(max_trailers=100)
        try:
            for fragment in fragments:
                decoder.decode(fragment * 20)
        except HTTPError:
            pass
        self.assertLess(sys.getsizeof(decoder._tail), MAX_CHUNK_LINE + 200)


def checked(pieces: list[bytes]) -> tuple[bytes, int, bytes, bool]:
    """What `ChunkedDecoder.check` makes of a body in pieces: chunks, payload bytes, surplus, finished."""
    decoder = ChunkedDecoder()
    chunks, count, surplus = b"", 0, b""
    for piece in pieces:
        passed, size, rest = decoder.check(piece)
        chunks += passed
        count += size
        surplus += rest
    return chunks, count, surplus, decoder.finished


class CheckTests(SynchronousTestCase):
    """Chunks that are passed on as they came."""

    @given(_CHUNKS, st.binary(max_size=20), st.lists(st.integers(0, 1000), max_size=10))
    def test_what_is_passed_on_is_the_same_body_without_extensions(
        self, chunks: list[tuple[bytes, bytes]], surplus: bytes, places: list[int]
    ) -> None:
        data = b"".join(b"%X%b\r\n%b\r\n" % (len(body), extra, body) for body, extra in chunks)
        data += b"0\r\nA: b\r\n\r\n" + surplus
        passed, count, rest, finished = checked(cut(data, places))
        expected = b"".join(body for body, _ in chunks)
        self.assertEqual((count, rest, finished), (len(expected), surplus, True))
        self.assertEqual(passed, b"".join(encode_chunk(body) for body, _ in chunks))
        self.assertEqual(decode([passed + last_chunk([])]), (expected, b"", True))

    @given(
        st.one_of(st.binary(max_size=60), st.lists(_FRAGMENTS, max_size=14).map(b"".join)),
        st.lists(st.integers(0, 200), max_size=6),
    )
    def test_refuses_what_decoding_refuses(self, data: bytes, places: list[int]) -> None:
        def verdict(result: Callable[[list[bytes]], tuple[object, ...]]) -> object:
            try:
                return result(cut(data, places))[-2:]
            except HTTPError as error:
                return error.status, error.message

        self.assertEqual(verdict(checked), verdict(decode))

    def test_large_chunks_are_not_copied(self) -> None:
        decoder = ChunkedDecoder()
        data = encode_chunk(b"x" * 30_000) * 3
        for piece in (data, data[:50_000], data[50_000:]):
            self.assertIs(decoder.check(piece)[0], piece)
        self.assertEqual(decoder.check(last_chunk([(b"a", b"b")])), (b"", 0, b""))
        self.assertEqual((decoder.finished, decoder.trailers), (True, [(b"a", b"b")]))

    def test_each_size_is_written_in_one_way(self) -> None:
        passed = checked([b"5\r\nhello\r\n0005\r\nworld\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n"])[0]
        self.assertEqual(passed, b"5\r\nhello\r\n5\r\nworld\r\na\r\n0123456789\r\n")

    def test_size_line_that_was_cut_is_held_back(self) -> None:
        decoder = ChunkedDecoder()
        self.assertEqual(decoder.check(b"5\r\nhello\r\n5"), (b"5\r\nhello\r\n", 5, b""))
        self.assertEqual(decoder.check(b"\r\nworld\r\n0\r\n\r\n"), (b"5\r\nworld\r\n", 5, b""))
