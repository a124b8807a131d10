"""JSON is read in one way, and what cannot be read is told in one way."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from controller.api.problems import ProblemError, invalid, read_json
from controller.api.schema import Fault


class ReadingTests(SynchronousTestCase):
    """`read_json`."""

    def refusal(self, data: bytes) -> str:
        error = self.assertRaises(ProblemError, read_json, data)
        self.assertEqual((error.status, error.code), (400, "not-json"))
        return str(error.detail)

    def test_json_is_read(self) -> None:
        self.assertEqual(read_json(b'{"a": [1, "\xc3\xa9", null]}'), {"a": [1, "é", None]})

    def test_what_is_not_json_is_placed(self) -> None:
        self.assertIn("line 2 column 3", self.refusal(b'{"a":1,\n  b}'))
        self.assertIn("at byte 2", self.refusal(b'"a\xff"'))
        self.assertIn("empty", self.refusal(b"  "))
        for data in (
            b"[NaN]",
            b"[Infinity]",
            b"[-Infinity]",
            b"[" + b"9" * 5000 + b"]",
            b"{} {}",
            b"\xef\xbb\xbf{}",
        ):
            self.refusal(data)

    def test_a_key_that_stands_twice_is_refused(self) -> None:
        self.assertIn("'mode'", self.refusal(b'{"a": {"mode": "none", "mode": "tcp"}}'))

    def test_depth_is_bounded_before_it_is_read(self) -> None:
        self.assertIn("32 levels", self.refusal(b"[" * 100_000))
        self.assertIn("32 levels", self.refusal(b'{"a":' * 33 + b"1" + b"}" * 33))
        self.assertEqual(read_json(json.dumps({"text": "[{" * 100}).encode()), {"text": "[{" * 100})
        self.assertIn("32 levels", self.refusal(b'["\\"]", ' + b"[" * 33))
        self.assertEqual(read_json(b'["' + b'\\"[' * 50 + b'"]'), ['"[' * 50])
        self.assertEqual(read_json(json.dumps([[]] * 100).encode()), [[]] * 100)

    @given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
    @settings(max_examples=300, deadline=None)
    def test_no_bytes_raise_anything_else(self, data: bytes) -> None:
        try:
            read_json(data)
        except ProblemError as error:
            json.dumps(error.document()).encode("ascii")


class DocumentTests(SynchronousTestCase):
    """The document of a problem."""

    def test_it_has_the_members_of_rfc_9457(self) -> None:
        made = invalid([Fault(f"/{n}", "is required") for n in range(5)]).document("urn:uuid:1")
        self.assertEqual(
            (made["status"], made["title"], made["instance"]), (422, "Unprocessable Entity", "urn:uuid:1")
        )
        self.assertEqual(made["detail"], "body: /0 is required; /1 is required; /2 is required; and 2 more")
        self.assertEqual(made["errors"][4], {"in": "body", "pointer": "/4", "message": "is required"})
