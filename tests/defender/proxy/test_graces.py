"""What becomes of an open stream when its certificate expires or a policy stops allowing it, by setting."""

from __future__ import annotations

import dataclasses
from typing import Any

from defender.contract.locks import LockSet, make_lock
from tests.defender.proxy.house import (
    BRUCE,
    EMPTY,
    EXEC,
    LIST,
    POLICY,
    SWITCH,
    House,
    HouseCase,
    status_of,
)
from tests.fakes.streams import MemoryStream

NOBODY = "schema: 1\nrules:\n  - name: none\n    effect: deny\n"
ERROR = "no longer allowed, and the time that it was given is over"


class GraceCase(HouseCase):
    """Each test has a house with settings of its own, and bruce's certificate holds for an hour."""

    def with_settings(self, **streams: object) -> None:
        lines = [f"{key} = {value!r}" for key, value in streams.items()]
        self.house = House("/state", settings="[streams]\n" + "\n".join(lines))
        self.addCleanup(self.house.stop)
        self.subject = dataclasses.replace(BRUCE, not_after=self.house.now + 3600)

    def open(self) -> tuple[MemoryStream, MemoryStream]:
        client = self.house.client(self.subject)
        client.deliver(EXEC)
        engine = self.house.engine
        engine.deliver(SWITCH)
        client.take()
        return client, engine

    def end(self, client: MemoryStream, engine: MemoryStream) -> Any:
        """The stream's last event."""
        client.lose(clean=False)
        engine.lose(clean=False)
        return self.house.events.last()

    def deny(self) -> int:
        self.house.activation.offer(NOBODY, "policy.yaml")
        return self.house.proxy.judge_again()

    def expire(self) -> None:
        """An hour passes, at once for all but the certificates."""
        self.house.now += 3600
        self.house.advance(1)

    def told(self) -> list[dict[str, Any]]:
        return [each for each in self.house.events.kept if each["req"]["action"] == "stream_outlasts"]


class DeniedTests(GraceCase):
    def test_drained(self) -> None:
        self.with_settings(on_denied="drain", drain=20)
        client, engine = self.open()
        self.assertEqual(self.deny(), 0)
        self.house.advance(19)
        client.deliver(b"still here")
        self.assertEqual(engine.take()[-10:], b"still here")
        self.house.advance(2)
        self.assertTrue(client.aborted and engine.aborted)
        self.assertEqual(self.end(client, engine)["result"]["error"], ERROR)
        [event] = self.told()
        self.assertEqual(
            (event["kind"], event["actor"]["user"], event["result"]["detail"], event["req"]["fields"]),
            ("control", "bruce", "no longer allowed", {"action": "container_exec_start", "seconds": 20.0}),
        )
        self.assertEqual(event["corr"], self.house.events.last()["corr"])

    def test_kept(self) -> None:
        self.with_settings(on_denied="keep", drain=20)
        client, _ = self.open()
        self.assertEqual((self.deny(), self.deny()), (0, 0))
        self.house.advance(600)
        self.assertFalse(client.aborted)
        self.assertEqual([event["req"]["fields"]["seconds"] for event in self.told()], [0])

    def test_one_that_is_allowed_again_is_as_good_as_any(self) -> None:
        self.with_settings(on_denied="drain", drain=20)
        client, _ = self.open()
        self.deny()
        self.house.activation.offer(POLICY, "policy.yaml")
        self.assertEqual(self.house.proxy.judge_again(), 0)
        self.house.advance(60)
        self.assertFalse(client.aborted)

    def test_what_comes_next_on_the_connection_has_no_grace(self) -> None:
        self.with_settings(on_denied="keep")
        client = self.house.client(self.subject)
        client.deliver(b"GET /v1.41/containers/a/logs?follow=1&stdout=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        self.deny()
        self.house.engine.deliver(EMPTY)
        client.take()
        client.deliver(LIST)
        self.assertEqual(status_of(client.take()), 403)

    def test_a_lock_cuts_what_was_given_time(self) -> None:
        self.with_settings(on_denied="keep", on_expired="keep")
        client, _ = self.open()
        self.deny()
        self.house.proxy.locks = LockSet(frozenset((make_lock("user", "bruce"),)))
        self.assertEqual(self.house.proxy.judge_again(), 1)
        self.assertTrue(client.aborted)

    def test_a_request_that_is_not_whole_is_cut(self) -> None:
        """Its client could hold the last byte back for as long as the grace lasts."""
        self.with_settings(on_denied="keep")
        client = self.house.client(self.subject)
        client.deliver(
            b"POST /v1.41/build HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-tar\r\n"
            b"Content-Length: 100\r\n\r\nbegun"
        )
        self.assertEqual(self.deny(), 1)
        self.assertTrue(client.aborted)


class ExpiredTests(GraceCase):
    def test_cut_unless_it_is_said(self) -> None:
        self.with_settings()
        client, engine = self.open()
        self.expire()
        self.assertTrue(client.aborted)
        self.assertEqual(self.end(client, engine)["result"]["error"], "the certificate expired")
        self.assertEqual(self.told(), [])

    def test_drained(self) -> None:
        self.with_settings(on_expired="drain", drain=20)
        client, _ = self.open()
        self.expire()
        self.house.advance(18)
        self.assertFalse(client.aborted)
        self.house.advance(5)
        self.assertTrue(client.aborted)
        self.assertEqual([event["result"]["detail"] for event in self.told()], ["the certificate expired"])

    def test_kept_and_no_new_request_is_let_in(self) -> None:
        self.with_settings(on_expired="keep")
        client, _ = self.open()
        self.expire()
        self.house.advance(600)
        self.assertFalse(client.aborted)
        other = self.house.client(self.subject)
        other.deliver(LIST)
        self.assertIn(b"403 Forbidden", other.take())

    def test_a_policy_cuts_what_its_certificate_would_not(self) -> None:
        self.with_settings(on_expired="keep")
        client, _ = self.open()
        self.expire()
        self.assertEqual(self.deny(), 1)
        self.assertTrue(client.aborted)
