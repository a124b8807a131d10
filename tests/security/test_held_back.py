"""Requests that were judged, and then held back until something else holds."""

from __future__ import annotations

import dataclasses

from twisted.internet.defer import Deferred

from defender.contract.locks import LockSet, make_lock
from tests.defender.proxy.house import BRUCE, CREATE, EMPTY, LIST, POLICY, HouseCase

LOCK = LockSet(frozenset((make_lock("user", "Bruce"),)))
UPLOAD = b"PUT /v1.41/containers/a/archive?path=/ HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-tar\r\n"
"""A body that goes to the Engine as it comes; that of `CREATE` waits until it is whole, for the record."""


class HeldBackTests(HouseCase):
    """A head is judged when it comes. Who holds its body back must not be served after he was shut out."""

    def test_body_held_back_over_a_lock(self) -> None:
        for head in (CREATE, UPLOAD):
            for framing, rest in (
                (b"Content-Length: 2\r\n\r\n{", b"}"),
                (b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", b"1\r\n}\r\n0\r\n\r\n"),
            ):
                client = self.house.client()
                client.deliver(head + framing)
                engine = self.house.engine
                begun = engine.take()
                self.assertEqual(begun.startswith(head[:20]), head is UPLOAD)
                self.house.proxy.locks = LOCK
                self.assertEqual(self.house.proxy.judge_again(), 1)
                self.assertTrue(client.aborted)
                self.assertEqual(engine.aborted, head is UPLOAD)
                client.deliver(rest)
                self.assertEqual(self.house.engine.take(), b"")
                self.assertIn("no longer allowed", self.house.events.last()["result"]["error"])
                self.house.proxy.locks = LockSet()

    def test_body_held_back_over_a_policy(self) -> None:
        client = self.house.client()
        client.deliver(UPLOAD + b"Content-Length: 2\r\n\r\n{")
        self.house.activation.offer(POLICY.replace("[bruce]", "[nobody]"), "policy.yaml")
        self.assertEqual(self.house.proxy.judge_again(), 1)
        self.assertTrue(self.house.engine.aborted)

    def test_body_that_is_dropped_first(self) -> None:
        client = self.house.client()
        client.deliver(b"POST /v1.41/containers/a/start HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{")
        self.house.proxy.locks = LOCK
        self.assertEqual(self.house.proxy.judge_again(), 1)
        client.deliver(b"}")
        self.assertEqual(self.house.engine.take(), b"")

    def test_request_that_waits_for_the_engine_connection(self) -> None:
        self.house.pool.close()
        waiting: Deferred[object] = Deferred()
        self.house.pool._connect = lambda: waiting
        client = self.house.client()
        client.deliver(LIST)
        self.house.proxy.locks = LOCK
        self.assertEqual(self.house.proxy.judge_again(), 1)
        self.assertTrue(client.aborted)

    def test_request_that_is_with_the_engine_is_answered(self) -> None:
        """It cannot be called back, and its answer is no news to the one who asked."""
        client = self.house.client()
        client.deliver(LIST)
        self.house.proxy.locks = LOCK
        self.assertEqual(self.house.proxy.judge_again(), 0)
        self.house.engine.deliver(EMPTY)
        self.assertTrue(client.take().startswith(b"HTTP/1.1 200 "))

    def test_certificate_that_ends_while_a_body_is_held_back(self) -> None:
        client = self.house.client(dataclasses.replace(BRUCE, not_after=self.house.now + 5))
        client.deliver(UPLOAD + b"Content-Length: 2\r\n\r\n{")
        self.house.advance(7)
        self.assertTrue(client.aborted)
        self.assertTrue(self.house.engine.aborted)
