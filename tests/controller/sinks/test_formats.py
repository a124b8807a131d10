"""The formats: JSON lines, RFC 5424, CSV, webhook and HEC bodies, on proper and on odd events."""

from __future__ import annotations

import base64
import csv
import hashlib
import hmac
import io
import json
import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from controller.sinks.csv_rows import COLUMNS, cell, header, row
from controller.sinks.hec import HecFormat
from controller.sinks.jsonl import event_line, plain
from controller.sinks.syslog import MIN_OCTETS, SyslogFormat, severity
from controller.sinks.webhook import Signer, array, batch_id
from defender.contract.audit import gap_event, to_line
from tests.controller.sinks.receivers import event

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(exclude_categories=())),
    st.binary(),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)
KEYS = st.sampled_from(["agent", "ts_wall", "id", "kind", "seq", "actor", "req", "decision", "result", "x"])
ODD_EVENTS = st.dictionaries(
    KEYS,
    VALUES
    | st.dictionaries(st.sampled_from(["user", "action", "effect", "status", "ok", "query"]), VALUES)
    | st.text(st.characters(exclude_categories=()), min_size=200, max_size=4000),
)

FRAME = re.compile(
    rb"(\d+) (<\d{1,3}>1 (-|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z) [\x21-\x7e]{1,255} [\x21-\x7e]{1,48}"
    rb' - [\x21-\x7e]{1,32} \[defender@32473(?: [a-z]+="(?:[^"\\\]\x00-\x1f]|\\["\\\]])*")*\] (\{.*\}))',
    re.DOTALL,
)
HEC = HecFormat("0a1b2c3d-0000-1111-2222-333344445555", index="audit")
SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()


def strict(text: bytes) -> Any:
    """Read JSON as strict readers do: no NaN, no half of a surrogate pair."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    value = json.loads(text, parse_constant=refuse)
    json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


class JsonLineTests(SynchronousTestCase):
    """The native format."""

    def test_an_event_is_the_line_that_every_program_prints(self) -> None:
        self.assertEqual(event_line(event(7)), to_line(event(7)))

    def test_a_kind_from_the_future_passes_through(self) -> None:
        told = event(1, kind="quantum", v=9, novel={"deep": [1, {"er": True}]})
        self.assertEqual(json.loads(event_line(told)), told)

    def test_text_that_json_can_hold_is_kept(self) -> None:
        for text in ("NaN", "Infinity", "🐳", "\\ud800 as text", "é\x7f\x00"):
            self.assertEqual(strict(event_line({"x": text})), {"x": text})

    def test_what_json_cannot_hold_is_told_in_what_it_can(self) -> None:
        told = {"x": "a\ud800b", "y": float("nan"), "z": float("-inf"), "b": b"\x01\xff", "n": 1 << 80}
        self.assertEqual(
            strict(event_line(told)),
            {"x": "a\ufffdb", "y": "nan", "z": "-inf", "b": "01ff", "n": hex(1 << 80)},
        )

    def test_depth_is_bounded(self) -> None:
        deep: Any = "end"
        for _ in range(100_000):
            deep = [deep]
        self.assertIn("...", str(strict(event_line({"x": deep}))))

    @settings(deadline=None, max_examples=40)
    @given(ODD_EVENTS)
    def test_every_event_has_a_line(self, told: dict[str, Any]) -> None:
        line = event_line(told)
        self.assertTrue(line.isascii() and line.endswith(b"\n") and line.count(b"\n") == 1)
        strict(line)

    @settings(deadline=None, max_examples=40)
    @given(VALUES)
    def test_plain_values_are_of_json(self, value: Any) -> None:
        strict(json.dumps(plain(value), allow_nan=False).encode())


class SyslogTests(SynchronousTestCase):
    """RFC 5424 in the octet counting of RFC 5425."""

    def frame(self, told: dict[str, Any], form: SyslogFormat | None = None) -> re.Match[bytes]:
        text = (form or SyslogFormat()).encode(told)
        match = FRAME.fullmatch(text)
        assert match is not None, text
        self.assertEqual(int(match[1]), len(match[2]))
        return match

    def test_an_event_in_full(self) -> None:
        line = to_line(event(4711))[:-1]
        head = (
            b"<108>1 2026-11-21T22:13:03.402Z web1 defender-fleet - image_create [defender@32473"
            b' id="01931267-0000-7000-8000-000000001267" agent="web1" epoch="9f3c0a6d51e8b274" seq="4711"'
            b' kind="engine" phase="result" user="bruce@example.com" src="10.1.2.3:51234"'
            b' action="image_create" effect="deny" rule="devs_rule" status="403"] '
        )
        told = SyslogFormat().encode(event(4711))
        self.assertEqual(told, b"%d " % len(head + line) + head + line)

    def test_severities(self) -> None:
        allowed = {"effect": "allow"}
        self.assertEqual(severity(event(1)), 4)
        self.assertEqual(severity(event(1, decision=allowed, result={"status": 200})), 6)
        self.assertEqual(severity(event(1, decision=allowed, result={"status": 502})), 4)
        self.assertEqual(severity(event(1, kind="policy", decision={}, result={"ok": False})), 3)
        self.assertEqual(severity(event(1, kind="policy", decision={}, result={"ok": True})), 5)
        self.assertEqual(severity({**event(1), **gap_event(3, 7, 1.0, "disk full")}), 3)

    def test_names_cannot_forge_a_message(self) -> None:
        name = 'x"] \\\n<13>1 - - - - -'
        match = self.frame(event(1, agent="web 1\n<0>", actor={"user": name}, req={"action": "a\r\nb"}))
        self.assertIn(rb'user="x\"\] \\?<13>1 - - - - -"', match[2])
        self.assertIn(b" web_1_<0> defender-fleet - a__b [", match[2])
        self.assertNotIn(b"\n", match[0])

    def test_names_of_the_world_are_kept(self) -> None:
        self.assertIn('user="Zoë 🐳"'.encode(), self.frame(event(1, actor={"user": "Zoë 🐳"}))[2])

    def test_a_time_that_is_none(self) -> None:
        for stamp in ("yesterday", 17, None, "2026-13-41T22:13:03.402Z", "x" * 5000):
            self.assertEqual(self.frame(event(1, ts_wall=stamp))[3], b"-")

    def test_a_long_event_is_shortened_and_says_so(self) -> None:
        form = SyslogFormat(max_octets=MIN_OCTETS)
        told = event(1)
        told["req"] = {**told["req"], "body": {"env": ["x" * 9000]}, "query": {"t": ["y"]}}
        match = self.frame(told, form)
        self.assertLessEqual(len(match[2]), MIN_OCTETS)
        shown = json.loads(match[5])
        self.assertEqual(shown["shortened"], ["req.body"])
        self.assertEqual(shown["req"]["query"], {"t": ["y"]})
        self.assertEqual(told["req"]["body"], {"env": ["x" * 9000]})

    def test_an_event_of_nothing_but_length_keeps_its_identity(self) -> None:
        match = self.frame(event(1, novel="x" * 9000))
        shown = json.loads(match[5])
        self.assertEqual((shown["shortened"], shown["id"], shown["seq"]), (["*"], event(1)["id"], 1))

    @settings(deadline=None, max_examples=40)
    @given(ODD_EVENTS, st.integers(MIN_OCTETS, 9000))
    def test_every_event_is_a_message_within_its_bound(self, told: dict[str, Any], octets: int) -> None:
        match = self.frame(told, SyslogFormat(max_octets=octets))
        self.assertLessEqual(len(match[2]), octets)
        strict(match[5])

    def test_settings_that_no_message_can_have(self) -> None:
        for wrong in ({"facility": 24}, {"app_name": "a b"}, {"app_name": ""}, {"max_octets": 480}):
            with self.assertRaises(ValueError) as raised:
                SyslogFormat(**wrong)
            self.assertIn(next(iter(wrong)), str(raised.exception))


class CsvTests(SynchronousTestCase):
    """CSV for spreadsheets."""

    def read(self, told: dict[str, Any]) -> dict[str, str]:
        text = (header() + row(told)).decode()
        return next(csv.DictReader(io.StringIO(text, newline="")))

    def test_an_event(self) -> None:
        shown = self.read(event(3))
        self.assertEqual(
            [shown[key] for key in ("time", "agent", "seq", "user", "groups", "action", "effect", "ms")],
            [
                "2026-11-21T22:13:03.402Z", "web1", "3", "bruce@example.com", '["Dev team"]', "image_create",
                "deny", "0.4",
            ],
        )  # fmt: skip

    def test_no_cell_is_a_formula(self) -> None:
        for name in (
            "=1+1",
            "+1",
            "-1",
            "@SUM(A1)",
            "\t=1",
            "\r=1",
            "  =1",
            "|calc",
            "＝1",
            '=HYPERLINK("x")',
        ):
            shown = self.read(event(1, actor={"user": name}))["user"]
            self.assertEqual(shown, "'" + name)

    def test_numbers_stay_numbers(self) -> None:
        self.assertEqual((cell(-5), cell(0.4), cell(True), cell(None)), ("-5", "0.4", "true", ""))

    def test_quotes_and_ends_of_lines_stay_in_their_cell(self) -> None:
        for name in ('a"b', "a,b", "a\r\nb,c", "a;b", " a "):
            self.assertEqual(self.read(event(1, actor={"user": name}))["user"], name)

    @settings(deadline=None, max_examples=40)
    @given(ODD_EVENTS)
    def test_every_event_is_one_row(self, told: dict[str, Any]) -> None:
        rows = list(csv.reader(io.StringIO((header() + row(told)).decode(), newline="")))
        self.assertEqual([len(each) for each in rows], [len(COLUMNS)] * 2)
        for shown in rows[1]:
            if not re.fullmatch(r"-?[0-9.e+-]+|-inf", shown):
                self.assertFalse(shown.strip(" ").startswith(("=", "+", "-", "@", "\t", "\r")), shown)


class WebhookTests(SynchronousTestCase):
    """The signed array of a webhook."""

    def test_the_signature_is_that_of_standard_webhooks(self) -> None:
        """The vector of the specification's reference implementations."""
        signer = Signer.from_text("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
        signature = signer.signature("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}')
        self.assertEqual(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=")

    def test_a_batch(self) -> None:
        post = Signer.from_text(SECRET).post([event_line(event(1)), event_line(event(2))], 1763763183.9)
        fields = dict(post.fields)
        self.assertEqual(json.loads(post.body), [event(1), event(2)])
        self.assertEqual(fields["content-type"], "application/json")
        self.assertEqual(fields["webhook-timestamp"], "1763763183")
        text = f"{fields['webhook-id']}.1763763183.".encode() + post.body
        expected = base64.b64encode(hmac.new(b"k" * 32, text, hashlib.sha256).digest()).decode()
        self.assertEqual(fields["webhook-signature"], f"v1,{expected}")

    def test_the_same_batch_has_the_same_name(self) -> None:
        one, other = array([b"1\n"]), array([b"1\n", b"2\n"])
        self.assertEqual(batch_id(one), batch_id(array([b"1"])))
        self.assertNotEqual(batch_id(one), batch_id(other))

    def test_secrets_that_are_none_are_not_repeated(self) -> None:
        for wrong in ("hunter2", "whsec_hunter2", "whsec_aHVudGVyMg==", "whsec_" + "A" * 200):
            with self.assertRaises(ValueError) as raised:
                Signer.from_text(wrong)
            self.assertNotIn("unter", str(raised.exception))

    def test_no_repr_shows_a_secret(self) -> None:
        signer = Signer.from_text(SECRET)
        shown = repr(signer) + repr(signer.post([b"1"], 0)) + repr(HEC) + repr(HEC.post([b"1"], 0))
        for secret in (SECRET, "kkkk", HEC.token, "v1,"):
            self.assertNotIn(secret, shown)


class HecTests(SynchronousTestCase):
    """Splunk's event envelope."""

    def test_an_event(self) -> None:
        self.assertEqual(
            json.loads(HEC.encode(event(5))),
            {
                "host": "web1",
                "source": "defender-fleet",
                "sourcetype": "defender:audit",
                "time": 1795299183.402,
                "index": "audit",
                "event": event(5),
            },
        )

    def test_a_request(self) -> None:
        post = HEC.post([HEC.encode(event(1)), HEC.encode(event(2))], 0)
        self.assertEqual(dict(post.fields)["authorization"], f"Splunk {HEC.token}")
        self.assertEqual([json.loads(line)["event"]["seq"] for line in post.body.splitlines()], [1, 2])

    @settings(deadline=None, max_examples=40)
    @given(ODD_EVENTS)
    def test_every_event_has_an_envelope(self, told: dict[str, Any]) -> None:
        self.assertIn("event", strict(HEC.encode(told)))

    def test_settings_that_no_collector_takes(self) -> None:
        for wrong in ({"token": "secret words"}, {"index": "a b"}, {"sourcetype": ""}):
            with self.assertRaises(ValueError) as raised:
                HecFormat(**{"token": "x" * 20, **wrong})
            self.assertIn(next(iter(wrong)), str(raised.exception))
            self.assertNotIn("secret words", str(raised.exception))
