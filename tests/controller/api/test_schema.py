"""A declaration refuses what does not fit, names the place, and says the same in JSON Schema."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from controller.api.catalog import all_routes
from controller.api.examples import EXAMPLES
from controller.api.schema import (
    MAX_FAULTS,
    Choice,
    Faults,
    Field,
    Flag,
    Integer,
    ListOf,
    MapOf,
    Moment,
    Nullable,
    Record,
    Text,
)

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def told(field: Field, value: object) -> list[tuple[str, str]]:
    """The faults of a value."""
    faults = Faults()
    field.check(value, "", faults)
    return [(fault.pointer, fault.message) for fault in faults.found]


HOST = Record(
    "Host",
    {"name": Text(8, pattern="[a-z]+", meaning="lower-case letters"), "port": Integer(1, 65535)},
    {"tags": ListOf(Text(4), 2), "on": Flag(), "labels": MapOf(Text(3), Text(5)), "note": Nullable(Text(3))},
)


class FieldTests(SynchronousTestCase):
    """Each kind, on what it takes and what it does not."""

    def test_what_fits_comes_back(self) -> None:
        value = {"name": "web", "port": 80, "tags": ["a"], "on": True, "labels": {"a": "b"}, "note": None}
        faults = Faults()
        self.assertEqual(HOST.check(value, "", faults), value)
        self.assertEqual(faults.found, [])

    def test_every_fault_is_told_with_its_place(self) -> None:
        value = {"name": "WEB", "port": 0, "tags": ["a", "toolong"], "on": 1, "labels": {"a": 3}, "naem": 1}
        self.assertEqual(
            told(HOST, value),
            [
                ("/name", "must be lower-case letters"),
                ("/port", "must be from 1 to 65535"),
                ("/tags/1", "is longer than 4 characters"),
                ("/on", "must be true or false, not a number"),
                ("/labels/a", "must be a string, not a number"),
                ("/naem", "is not known; did you mean name?"),
            ],
        )

    def test_what_is_missing_is_named(self) -> None:
        self.assertEqual(told(HOST, {}), [("/name", "is required"), ("/port", "is required")])

    def test_a_truth_value_is_no_number_and_a_float_no_integer(self) -> None:
        for value in (True, 3.0, "3", None):
            self.assertEqual(len(told(Integer(0, 9), value)), 1, value)

    def test_text_that_cannot_be_written_or_seen_is_refused(self) -> None:
        for value in ("\ud800", "a\nb", "\x1b[2J", "\u202e", ""):
            self.assertEqual(len(told(Text(9), value)), 1, repr(value))
        self.assertEqual(told(Text(9, lines=True), "a\n\tb"), [])
        self.assertEqual(len(told(Text(9, lines=True), "\ud800")), 1)

    def test_moments_have_an_offset(self) -> None:
        for value in ("2026-11-21T22:13:03Z", "2026-11-21T22:13:03.402+02:00"):
            self.assertEqual(told(Moment(), value), [], value)
        for other in ("2026-11-21", "2026-11-21T22:13:03", "now", "2026-13-01T00:00:00Z", 7, "9" * 60):
            self.assertEqual(len(told(Moment(), other)), 1, other)

    def test_pointers_are_escaped_and_bounded(self) -> None:
        faults = told(Record("Empty"), {"a/b~c": 1, "x" * 500: 2, "\ud800": 3})
        self.assertEqual(faults[0][0], "/a~1b~0c")
        self.assertEqual(len(faults[1][0]), 81)
        self.assertEqual(faults[2][0], "/?")

    def test_nobody_is_told_more_than_they_read(self) -> None:
        self.assertEqual(len(told(ListOf(Flag()), [1] * 900)), MAX_FAULTS)
        self.assertEqual(len(told(Record("Empty"), {f"k{n}": 1 for n in range(900)})), MAX_FAULTS)
        self.assertEqual(
            len(told(MapOf(Text(2), Flag(), 1000), {f"key{n}": 1 for n in range(900)})), MAX_FAULTS
        )

    def test_secrets_are_in_no_message(self) -> None:
        field = Text(4, pattern="[a-z]+", secret=True)
        for value in ("hunter2", "UPPR", 7777):
            self.assertNotIn(str(value), str(told(field, value)))

    def test_text_of_a_query_is_read(self) -> None:
        faults = Faults()
        self.assertEqual(Integer(0, 99).read("42", "", faults), 42)
        self.assertIs(Flag().read("true", "", faults), True)
        self.assertEqual(faults.found, [])
        for wrong in ("", "4 2", "٤٢", "1e3", "9" * 30, "100"):
            faults = Faults()
            Integer(0, 99).read(wrong, "", faults)
            self.assertEqual(len(faults.found), 1, wrong)
        faults = Faults()
        Flag().read("yes", "", faults)
        self.assertEqual(len(faults.found), 1)

    @given(JSON)
    @settings(max_examples=200, deadline=None)
    def test_no_value_breaks_a_check(self, value: Any) -> None:
        for field in (
            HOST,
            Text(5),
            Integer(0, 9),
            Flag(),
            ListOf(HOST),
            MapOf(Text(3), HOST),
            Choice(("a",)),
        ):
            faults = Faults()
            field.check(value, "", faults)
            json.dumps([fault.message for fault in faults.found]).encode("ascii")


class ShapeTests(SynchronousTestCase):
    """What the API declares is as it says."""

    def test_every_answer_has_an_example_that_fits(self) -> None:
        for route in all_routes("0"):
            if route.answer is not None and route.answer.name:
                self.assertIn(route.answer.name, EXAMPLES, route.operation)
                self.assertEqual(told(route.answer, EXAMPLES[route.answer.name]), [], route.operation)

    def test_every_body_has_an_example_that_fits(self) -> None:
        for route in all_routes("0"):
            if route.body is not None:
                self.assertEqual(told(route.body, route.example), [], route.operation)
