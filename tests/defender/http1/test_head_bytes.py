"""Heads in pieces, written and read again, and made of arbitrary bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.http1.errors import HTTPError
from defender.http1.head import (
    find_head_end,
    parse_request_head,
    parse_response_head,
    write_request_head,
    write_response_head,
)
from tests.defender.http1.heads import TOKEN, headers, request, values


class FindHeadEndTests(SynchronousTestCase):
    def test_the_end_is_after_the_empty_line(self) -> None:
        data = bytearray(request() + b"body")
        self.assertEqual(find_head_end(data, 0), len(request()))

    def test_every_prefix_is_incomplete(self) -> None:
        data = request("A: b")
        for size in range(len(data)):
            for start in (0, size // 2, size):
                self.assertEqual(find_head_end(bytearray(data[:size]), start), -1)
            self.assertEqual(find_head_end(bytearray(data), size), len(data))

    def test_hopeless_input_is_known_at_once(self) -> None:
        for data in (
            b"\n",
            b"\r",
            b" G",
            b"\x16\x03\x01",
            b"GET / HTTP/1.1\n",
            b"GET / HTTP/1.1\r\nA: b\nC",
            b"\x80",
        ):
            end = find_head_end(bytearray(data), 0)
            self.assertGreater(end, 0, data)
            self.assertRaises(HTTPError, parse_request_head, data[:end])
            self.assertRaises(HTTPError, parse_response_head, data[:end], request_method="GET")

    def test_the_empty_buffer(self) -> None:
        self.assertEqual(find_head_end(bytearray(), 0), -1)

    @given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=4))
    def test_pieces_find_what_the_whole_has(self, data: bytes, cuts: list[int]) -> None:
        data = data.replace(b"a", b"\r\n")
        start, found = 0, -1
        for cut in [*sorted(cuts), len(data)]:
            piece = data[:cut]
            found = find_head_end(bytearray(piece), start)
            if found >= 0:
                break
            start = len(piece)
        whole = find_head_end(data, 0)
        if found != whole:  # found hopeless earlier than the whole, whose head is refused
            self.assertTrue(found >= 0)
            self.assertRaises(HTTPError, parse_request_head, data[:found])
            self.assertRaises(HTTPError, parse_request_head, data[:whole])


class WritingTests(SynchronousTestCase):
    def test_written_heads(self) -> None:
        fields = [(b"host", b"docker"), (b"a", b"")]
        self.assertEqual(
            write_request_head("GET", "/_ping", fields), b"GET /_ping HTTP/1.1\r\nhost: docker\r\na: \r\n\r\n"
        )
        self.assertEqual(write_response_head(204, b"", []), b"HTTP/1.1 204 \r\n\r\n")

    def test_nothing_breaks_out_of_its_line(self) -> None:
        for bad in (b"a\r\nb: c", b"a\nb", b"a\rb", b"a\0b", b"\r\n", b"\r\n\r\n"):
            self.assertRaises(ValueError, write_request_head, "GET", "/", [(b"a", bad)])
            self.assertRaises(ValueError, write_request_head, "GET", "/", [(bad, b"a")])
            self.assertRaises(ValueError, write_request_head, "GET", bad.decode(), [])
            self.assertRaises(ValueError, write_request_head, bad.decode(), "/", [])
            self.assertRaises(ValueError, write_response_head, 200, bad, [])
            self.assertRaises(ValueError, write_response_head, 200, b"OK", [(b"a", bad)])

    @given(
        st.text(TOKEN, min_size=1, max_size=16),
        st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1),
        headers,
    )
    def test_requests_are_read_as_written(
        self, method: str, target: str, fields: list[tuple[bytes, bytes]]
    ) -> None:
        fields = [(b"host", b"x"), *fields]
        head = parse_request_head(write_request_head(method, target, fields))
        self.assertEqual((head.method, head.target, head.headers), (method, target, fields))

    @given(st.integers(200, 599), values, headers)
    def test_responses_are_read_as_written(
        self, status: int, reason: bytes, fields: list[tuple[bytes, bytes]]
    ) -> None:
        data = write_response_head(status, reason, fields)
        head = parse_response_head(data, request_method="GET")
        self.assertEqual((head.status, head.reason, head.headers), (status, reason, fields))


_PIECES = st.sampled_from(
    [b"GET ", b"POST ", b"/", b"*", b" HTTP/1.1", b" HTTP/1.0", b"\r\n", b"\n", b"\r", b" ", b"\t", b":",
    b": ",
     b"Host: x\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: ", b"\0",
     b"\xff", b"5",
     b"Connection: close\r\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 204\r\n", b"\x0b", b",", b"Upgrade:\r\n"]
)  # fmt: skip
arbitrary = st.one_of(
    st.binary(max_size=200),
    st.lists(st.one_of(_PIECES, st.binary(max_size=4)), max_size=20).map(b"".join),
    st.lists(_PIECES, max_size=8).map(
        lambda pieces: b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(pieces) + b"\r\n\r\n"
    ),
)


class FuzzTests(SynchronousTestCase):
    @given(arbitrary)
    def test_requests_are_read_or_refused(self, data: bytes) -> None:
        try:
            head = parse_request_head(data)
        except HTTPError as error:
            self.assertIn(error.status, (400, 417, 431, 501, 505))
            return
        again = (
            parse_request_head(write_request_head(head.method, head.target, head.headers))
            if head.version == (1, 1)
            else head
        )
        self.assertEqual(
            (again.headers, again.framing, again.length), (head.headers, head.framing, head.length)
        )
        self.assertTrue(data.endswith(b"\r\n\r\n"))
        self.assertEqual(data.count(b"\n"), len(head.headers) + 2)

    @given(arbitrary, st.sampled_from(["GET", "HEAD", "POST"]))
    def test_responses_are_read_or_refused(self, data: bytes, method: str) -> None:
        try:
            parse_response_head(data, request_method=method)
        except HTTPError as error:
            self.assertEqual(error.status, 502)
