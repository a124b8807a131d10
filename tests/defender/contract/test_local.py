"""Requests and answers of the control socket."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.contract.local import (
    MAX_LINE,
    MODES,
    VERBS,
    Answer,
    LocalError,
    Request,
    make_request,
    parse_duration,
    read_answer,
    read_request,
    write_answer,
    write_request,
)
from defender.listener import spec

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


class Durations(SynchronousTestCase):
    def test_units(self) -> None:
        self.assertEqual(
            [parse_duration(text) for text in ("0", "90", "90s", "10m", "2h", "7d")],
            [0, 90, 90, 600, 7200, 604800],
        )

    def test_others_are_refused(self) -> None:
        for text in ("", "m", "-1", "1.5h", "10 m", "8d", "1w", "1e3", "٣"):
            self.assertRaises(LocalError, parse_duration, text)


class Requests(SynchronousTestCase):
    def test_round_trip(self) -> None:
        for request in (
            Request("status"),
            Request("listener_set", {"mode": "unix+tcp", "drain": 600.0}),
            Request("listener_set", {"mode": "none", "drain": None}),
            Request("lock_add", {"kind": "serial", "value": "7f", "issuer": "CN=x"}),
            Request("lock_remove", {"kind": "user", "value": "é\n\x1b"}),
        ):
            line = write_request(request)
            self.assertEqual(line.count(b"\n"), 1)
            self.assertTrue(line.isascii())
            self.assertEqual(read_request(line[:-1]), request)

    def test_what_is_wrong_is_said(self) -> None:
        for document, words in [
            ("[]", "not a JSON object"),
            ("{", "not JSON"),
            ('{"verb": 1}', "has no verb"),
            ('{"verb": "shutdown"}', "'shutdown' is not one of status, listener_set"),
            ('{"verb": "status", "x": 1}', "no argument 'x'"),
            ('{"verb": "listener_set"}', "'mode' is missing"),
            ('{"verb": "listener_set", "mode": "tls"}', "not one of none, unix, tcp"),
            ('{"verb": "listener_set", "mode": ["tcp"]}', "not one of"),
            ('{"verb": "listener_set", "mode": "tcp", "drain": true}', "not a number"),
            ('{"verb": "listener_set", "mode": "tcp", "drain": -1}', "not between"),
            ('{"verb": "listener_set", "mode": "tcp", "drain": NaN}', "not a number"),
            ('{"verb": "lock_add", "kind": "host", "value": "x"}', "not one of user"),
            ('{"verb": "lock_add", "kind": "user", "value": ""}', "1 to 1024"),
            ('{"verb": "lock_add", "kind": "user", "value": "x", "issuer": 1}', "issuer"),
        ]:
            self.assertIn(words, str(self.assertRaises(LocalError, read_request, document.encode())))

    def test_a_long_line(self) -> None:
        self.assertIn("longer", str(self.assertRaises(LocalError, read_request, b" " * (MAX_LINE + 1))))

    def test_deep_nesting_is_an_error_and_no_crash(self) -> None:
        self.assertRaises(LocalError, read_request, b"[" * 60000)

    def test_not_utf8(self) -> None:
        self.assertRaises(LocalError, read_request, b'{"verb": "\xff"}')

    def test_the_modes_are_the_listeners(self) -> None:
        self.assertEqual(MODES, spec.MODES)

    @settings(max_examples=200)
    @given(st.sampled_from(VERBS), st.dictionaries(st.sampled_from(["mode", "drain", "kind", "value"]), JSON))
    def test_any_arguments_are_refused_or_survive(self, verb: str, arguments: dict[str, object]) -> None:
        try:
            request = make_request(verb, arguments)
        except LocalError:
            return
        self.assertEqual(read_request(write_request(request)[:-1]), request)

    @settings(max_examples=200)
    @given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
    def test_any_bytes_are_refused_or_read(self, line: bytes) -> None:
        for read in (read_request, read_answer):
            try:
                read(line)
            except LocalError:
                continue


class Answers(SynchronousTestCase):
    def test_round_trip(self) -> None:
        for answer in (Answer(True, {"a": [1, None]}), Answer(False, {}, "in use"), Answer(True)):
            self.assertEqual(read_answer(write_answer(answer)[:-1]), answer)

    def test_other_shapes_are_refused(self) -> None:
        for text in ("{}", '{"ok": 1}', '{"ok": true, "result": []}', '{"ok": false, "error": 1}', "1"):
            self.assertRaises(LocalError, read_answer, text.encode())
