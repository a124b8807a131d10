"""What receivers' answers mean: only an answer about the events themselves lets one pass."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from controller.sinks.answers import HttpAnswer, Refused, Taken, TooLarge, Unavailable, judge, retry_after
from controller.sinks.hec import HecFormat, judge_hec
from controller.sinks.targets import HecTarget, SyslogTarget, TlsFiles, WebhookTarget


def answer(status: int, body: object = b"", **fields: str) -> HttpAnswer:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return HttpAnswer(status, {name.replace("_", "-"): value for name, value in fields.items()}, text)


class JudgeTests(SynchronousTestCase):
    """HTTP statuses."""

    def test_success(self) -> None:
        for status in (200, 201, 202, 204):
            self.assertEqual(judge(answer(status)), Taken())

    def test_the_content_is_refused(self) -> None:
        for status in (400, 422):
            self.assertIsInstance(judge(answer(status)), Refused)
        self.assertIsInstance(judge(answer(413)), TooLarge)

    def test_everything_else_is_tried_again(self) -> None:
        for status in (
            *range(300, 309),
            401,
            403,
            404,
            405,
            408,
            410,
            411,
            415,
            429,
            431,
            500,
            502,
            503,
            504,
        ):
            self.assertIsInstance(judge(answer(status)), Unavailable, status)

    def test_a_redirection_is_not_followed(self) -> None:
        judged = judge(answer(307, location="https://elsewhere.example/"))
        assert isinstance(judged, Unavailable)
        self.assertIn("redirections are not followed", judged.reason)

    def test_the_pause_that_is_asked_for(self) -> None:
        self.assertEqual(
            judge(answer(503, b"busy", retry_after="17")), Unavailable("the receiver answered 503: busy", 17)
        )
        for text, seconds in (
            ("0", 0),
            ("99999", 300),
            ("1e3", 0),
            ("-1", 0),
            ("Wed, 21 Oct 2026", 0),
            ("٣", 0),
        ):
            self.assertEqual(retry_after(text), seconds, text)

    def test_a_receivers_words_are_one_short_line(self) -> None:
        judged = judge(answer(400, b"no\n\x1b[2J" + b"x" * 9000))
        assert isinstance(judged, Refused)
        self.assertTrue(judged.reason.isprintable())
        self.assertLess(len(judged.reason), 300)

    @given(st.integers(100, 999), st.binary(max_size=200))
    def test_any_answer_can_be_judged(self, status: int, body: bytes) -> None:
        for judged in (judge(answer(status, body)), judge_hec(answer(status, body))):
            self.assertEqual(isinstance(judged, Taken), judged == Taken())


class HecJudgeTests(SynchronousTestCase):
    """The collector's own codes."""

    def test_success(self) -> None:
        self.assertEqual(judge_hec(answer(200, {"text": "Success", "code": 0})), Taken())
        self.assertEqual(judge_hec(answer(200, b"")), Taken())

    def test_a_bad_event_is_named(self) -> None:
        body = {"text": "Invalid data format", "code": 6, "invalid-event-number": 3}
        self.assertEqual(
            judge_hec(answer(400, body)), Refused("the receiver answered 400: Invalid data format", 3)
        )

    def test_codes_about_events(self) -> None:
        for code in (5, 6, 12, 13, 15):
            self.assertIsInstance(judge_hec(answer(400, {"text": "", "code": code})), Refused)

    def test_codes_about_the_settings_let_no_event_pass(self) -> None:
        for status, code in (
            (400, 7),
            (400, 10),
            (400, 11),
            (400, 14),
            (401, 2),
            (401, 3),
            (403, 1),
            (403, 4),
        ):
            judged = judge_hec(answer(status, {"text": "Incorrect index", "code": code}))
            assert isinstance(judged, Unavailable)
            self.assertIn("check", judged.reason)

    def test_busy(self) -> None:
        self.assertIsInstance(judge_hec(answer(503, {"text": "Server is busy", "code": 9})), Unavailable)

    def test_something_else_that_answers_is_no_collector(self) -> None:
        for wrong in (answer(204), answer(202, b"<html>"), answer(200, {"text": "what", "code": 8})):
            self.assertIsInstance(judge_hec(wrong), Unavailable)

    def test_odd_words(self) -> None:
        for body in (
            b"[]",
            b"{",
            b"null",
            b'{"code":true,"text":7,"invalid-event-number":-1}',
            b"[" * 50_000,
        ):
            self.assertEqual(judge_hec(answer(200, body)), Taken())


class TargetTests(SynchronousTestCase):
    """What an administrator may write."""

    secret = "whsec_a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="

    def test_secrets_are_not_shown(self) -> None:
        shown = repr(WebhookTarget("a", "https://siem.example.com/", self.secret))
        shown += repr(HecTarget("b", "https://siem.example.com:8088", HecFormat("tokentokentoken")))
        shown += repr(TlsFiles(key=b"PRIVATE"))
        for secret in (self.secret, "tokentokentoken", "PRIVATE"):
            self.assertNotIn(secret, shown)

    def test_the_collectors_path_is_added(self) -> None:
        for url, address in (
            ("https://s.example.com:8088", "https://s.example.com:8088/services/collector/event"),
            ("https://s.example.com/", "https://s.example.com/services/collector/event"),
            ("https://s.example.com/own/path", "https://s.example.com/own/path"),
        ):
            self.assertEqual(HecTarget("s", url, HecFormat("t" * 16)).address, address)

    def test_addresses_that_are_refused(self) -> None:
        for url in (
            "http://siem.example.com/",
            "https://user:hunter2@siem.example.com/",
            "https:///x",
            "https://siem.example.com:99999/",
            "https://siem.example.com:0/",
            "https://siem example.com/",
            "https://siem.example.com/\r\nx: y",
            "https://sïem.example.com/",
            "https://[::1/",
            "ftp://siem.example.com/",
            "https://siem.example.com/#hunter2",
            "siem.example.com",
        ):
            with self.assertRaises(ValueError, msg=url) as raised:
                WebhookTarget("a", url, self.secret)
            self.assertIn("url", str(raised.exception))
            self.assertNotIn("hunter2", str(raised.exception))

    def test_names_hosts_and_ports(self) -> None:
        for wrong, setting in (
            ({"name": "No Spaces"}, "name"),
            ({"name": "../x"}, "name"),
            ({"host": "a/b"}, "host"),
            ({"port": 0}, "port"),
        ):
            with self.assertRaises(ValueError) as raised:
                SyslogTarget(**{"name": "siem", "host": "siem.example.com", **wrong})  # type: ignore[arg-type]
            self.assertIn(setting, str(raised.exception))
