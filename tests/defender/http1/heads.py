"""Heads for the tests: written line by line, and drawn at random."""

from __future__ import annotations

from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.http1.errors import HTTPError
from defender.http1.head import parse_request_head, parse_response_head

TOKEN = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
FRAMING_NAMES = {
    b"host",
    b"content-length",
    b"transfer-encoding",
    b"expect",
    b"connection",
    b"upgrade",
    b"content-type",
}

names = st.text(TOKEN, min_size=1, max_size=20).map(lambda text: text.encode().lower())
values = (
    st.binary(max_size=40)
    .map(lambda data: bytes(byte for byte in data if byte == 9 or (byte >= 32 and byte != 127)))
    .map(lambda data: data.strip(b" \t"))
)
headers = st.lists(st.tuples(names.filter(lambda name: name not in FRAMING_NAMES), values), max_size=12)


def request(*lines: str, line: str = "POST /containers/create HTTP/1.1", host: str | None = "x") -> bytes:
    """A request head of these header lines, with a Host unless told otherwise."""
    given_lines = [line, *([] if host is None else [f"Host: {host}"]), *lines]
    return "".join(each + "\r\n" for each in [*given_lines, ""]).encode("latin-1")


def response(*lines: str, line: str = "HTTP/1.1 200 OK") -> bytes:
    """A response head of these header lines."""
    return "".join(each + "\r\n" for each in [line, *lines, ""]).encode("latin-1")


class Refusals(SynchronousTestCase):
    def refuse(self, data: bytes, status: int = 400, words: str = "") -> None:
        error = self.assertRaises(HTTPError, parse_request_head, data)
        self.assertEqual(error.status, status, error.message)
        self.assertIn(words, error.message)

    def refuse_response(self, data: bytes, words: str = "", method: str = "GET") -> None:
        error = self.assertRaises(HTTPError, parse_response_head, data, request_method=method)
        self.assertEqual(error.status, 502, error.message)
        self.assertIn(words, error.message)
