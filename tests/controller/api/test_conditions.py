"""Header fields and queries are read in one way or refused."""

from __future__ import annotations

from typing import ClassVar

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from controller.api.conditions import (
    bearer,
    check_body_type,
    expectation,
    is_unchanged,
    read_query,
    repeat_key,
)
from controller.api.ports import Expected
from controller.api.problems import ProblemError
from controller.api.schema import Field, Flag, Integer, ListOf, Text


class ConditionTests(SynchronousTestCase):
    """Tokens, etags, keys, types."""

    def test_a_token_is_taken_from_one_bearer_header(self) -> None:
        self.assertEqual(bearer(["Bearer abc.def-1=="]), "abc.def-1==")
        self.assertEqual(bearer(["bearer  abc"]), "abc")
        for values in (
            [],
            ["Basic YTpi"],
            ["Bearer "],
            ["Bearer a b"],
            ["Bearer a", "Bearer b"],
            ["Bearer \xe9"],
        ):
            error = self.assertRaises(ProblemError, bearer, values)
            self.assertEqual(error.status, 401)
            self.assertIn("WWW-Authenticate", error.headers)
            self.assertNotIn("YTpi", error.detail)

    def test_expectations(self) -> None:
        self.assertEqual(expectation(['"a", "b"'], [], True), Expected(etags=("a", "b")))
        self.assertEqual(expectation(['"a"', 'W/"b"'], [], True), Expected(etags=("a",)))
        self.assertEqual(expectation(["*"], [], True), Expected(anything=True))
        self.assertEqual(expectation([], ["*"], True), Expected(absent=True))
        self.assertEqual(self.assertRaises(ProblemError, expectation, [], [], True).status, 428)
        for match, none_match in (
            (["a"], []),
            (['"a'], []),
            (["*"], ["*"]),
            ([], ['"a"']),
            (['"a"' * 2000], []),
        ):
            self.assertEqual(
                self.assertRaises(ProblemError, expectation, match, none_match, True).status, 400
            )

    def test_what_an_expectation_admits(self) -> None:
        self.assertTrue(Expected(etags=("a",)).admits("a"))
        self.assertFalse(Expected(etags=("a",)).admits("b"))
        self.assertFalse(Expected(etags=("",)).admits(""))
        self.assertFalse(Expected(anything=True).admits(""))
        self.assertTrue(Expected(absent=True).admits(""))
        self.assertFalse(Expected(absent=True).admits("a"))

    def test_unchanged(self) -> None:
        self.assertTrue(is_unchanged(['W/"a", "b"'], "a"))
        self.assertTrue(is_unchanged(["*"], "a"))
        self.assertFalse(is_unchanged(["junk"], "a"))
        self.assertFalse(is_unchanged(['"ab"'], "a"))

    def test_keys(self) -> None:
        self.assertEqual(repeat_key([]), "")
        self.assertEqual(repeat_key([" k-1 "]), "k-1")
        for values in (["a", "b"], ["a b"], [""], ["x" * 129]):
            self.assertEqual(self.assertRaises(ProblemError, repeat_key, values).status, 400)

    def test_bodies_are_json_as_they_are(self) -> None:
        check_body_type("application/json", None)
        check_body_type('Application/JSON; charset="UTF-8"', "identity")
        for kind, encoding in (
            (None, None),
            ("text/json", None),
            ("application/json; charset=latin-1", None),
            ("application/json", "gzip"),
        ):
            self.assertEqual(self.assertRaises(ProblemError, check_body_type, kind, encoding).status, 415)


class QueryTests(SynchronousTestCase):
    """`read_query`."""

    declared: ClassVar[dict[str, Field]] = {
        "limit": Integer(1, 9),
        "on": Flag(),
        "label": ListOf(Text(5), 2),
        "name": Text(9),
    }

    def test_a_query_is_read(self) -> None:
        self.assertEqual(
            read_query(b"limit=3&on=true&label=a&label=b%20c&name=%C3%A9", self.declared),
            {"limit": 3, "on": True, "label": ["a", "b c"], "name": "é"},
        )
        self.assertEqual(read_query(b"", self.declared), {})

    def test_what_is_wrong_is_named(self) -> None:
        for raw, pointer in (
            (b"limit=x", "/limit"),
            (b"limit=3&limit=4", "/limit"),
            (b"access_token=SECRET", "/access_token"),
            (b"label=toolong", "/label/0"),
            (b"label=a&label=b&label=c", "/label"),
            (b"name=%ff", ""),
            (b"name", ""),
            (b"&".join([b"label=a"] * 100), ""),
        ):
            error = self.assertRaises(ProblemError, read_query, raw, self.declared)
            self.assertEqual(
                (error.status, error.where, error.faults[0].pointer), (400, "query", pointer), raw
            )
            self.assertNotIn("SECRET", str(error.document()))

    @given(st.binary(max_size=60))
    @settings(max_examples=300, deadline=None)
    def test_no_bytes_raise_anything_else(self, raw: bytes) -> None:
        try:
            read_query(raw, self.declared)
        except ProblemError:
            pass
