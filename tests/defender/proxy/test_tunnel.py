"""A hijacked stream: when it begins, how it ends, what cuts it."""

from __future__ import annotations

import dataclasses

from defender.contract.locks import LockSet, make_lock
from tests.defender.proxy.house import (
    BRUCE,
    EMPTY,
    EXEC,
    LIST,
    SWITCH,
    HouseCase,
    message_of,
    status_of,
)


class TunnelTests(HouseCase):
    """A hijacked stream begins when the Engine says so and ends with both sides."""

    def open(self) -> None:
        self.client = self.house.client()
        self.client.deliver(EXEC)
        self.engine = self.house.engine
        self.engine.take()
        self.engine.deliver(SWITCH)
        self.client.take()

    def test_early_client_bytes_are_held_until_the_answer(self) -> None:
        client = self.house.client()
        client.deliver(EXEC + b"early")
        self.assertNotIn(b"early", self.house.engine.take())
        self.house.engine.deliver(SWITCH + b"out")
        self.assertEqual(client.take(), SWITCH + b"out")
        self.assertEqual(self.house.engine.take(), b"early")

    def test_half_close_goes_both_ways_and_counts(self) -> None:
        self.open()
        self.client.deliver(b"stdin")
        self.client.end()
        self.assertTrue(self.engine.half_closed)
        self.assertFalse(self.client.closed or self.engine.closed)
        self.engine.deliver(b"late output")
        self.assertEqual(self.client.take(), b"late output")
        self.engine.end()
        self.assertTrue(self.client.closed and self.engine.closed)
        self.client.lose()
        self.engine.lose()
        _attempt, start, end = self.house.events.kept
        self.assertEqual((start["phase"], start["result"]["status"]), ("result", 101))
        self.assertEqual((end["phase"], end["result"]["rx"], end["result"]["tx"]), ("stream_end", 5, 11))
        self.assertEqual(start["corr"], end["corr"])
        self.assertEqual(len(self.house.closed), 1)

    def test_client_that_ended_before_the_answer(self) -> None:
        client = self.house.client()
        client.deliver(EXEC + b"x")
        client.end()
        self.house.engine.deliver(SWITCH)
        self.assertTrue(self.house.engine.half_closed)

    def test_end_of_the_engine_drains_the_client_for_a_bounded_time(self) -> None:
        self.open()
        self.engine.end()
        self.assertTrue(self.client.half_closed)
        self.assertFalse(self.client.aborted)
        self.house.advance(7)
        self.assertTrue(self.client.aborted)

    def test_slow_reader_gets_the_rest_after_the_end_of_the_engine(self) -> None:
        """A reset would destroy what the client has not taken yet: it may be looking at a pager."""
        self.open()
        self.client.pending = 100_000
        self.engine.end()
        self.house.advance(60)
        self.assertFalse(self.client.aborted)
        self.client.pending = 0
        self.house.advance(7)
        self.assertTrue(self.client.aborted)

    def test_back_pressure(self) -> None:
        self.open()
        self.client.fill()
        self.assertTrue(self.engine.paused)
        self.client.drain()
        self.assertFalse(self.engine.paused)

    def test_killed_client_is_passed_on(self) -> None:
        self.open()
        self.client.lose(clean=False, detail="truncated")
        self.assertTrue(self.engine.aborted)
        self.engine.lose()
        self.assertEqual(self.house.events.last()["result"]["error"], "client: truncated")

    def test_half_closed_client_that_vanishes_is_found(self) -> None:
        self.open()
        self.client.end()
        self.client.gone = True
        self.house.advance(2)
        self.assertTrue(self.engine.aborted)

    def test_client_that_vanishes_under_output_is_found(self) -> None:
        self.open()
        self.client.fill()
        self.client.gone = True
        self.house.advance(2)
        self.assertTrue(self.engine.aborted)

    def test_200_without_framing_is_a_tunnel_on_attach(self) -> None:
        client = self.house.client()
        client.deliver(
            b"POST /v1.41/containers/a/attach?stream=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        )
        self.house.engine.take()
        self.house.engine.deliver(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\nout"
        )
        self.assertTrue(client.take().endswith(b"raw-stream\r\n\r\nout"))
        client.deliver(b"in")
        self.assertEqual(self.house.engine.take(), b"in")

    def test_refused_hijack_stays_http(self) -> None:
        """Bytes behind a hijack request that the Engine refuses are the next request, judged like any
        other.
        """
        client = self.house.client()
        client.deliver(EXEC + b"GET /v1.41/nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
        self.house.engine.take()
        self.house.engine.deliver(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}")
        answers = client.take()
        self.assertIn(b"HTTP/1.1 404 Not Found", answers)
        self.assertIn(b"HTTP/1.1 403 Forbidden", answers)
        self.assertEqual(self.house.engine.take(), b"")

    def test_upgrade_values_are_canonical(self) -> None:
        for value, sent in (
            (b"h2c", b"Upgrade: tcp"),
            (b"", b"Upgrade: tcp"),
            (b"websocket", b"Upgrade: tcp"),
        ):
            client = self.house.client()
            client.deliver(EXEC.replace(b"Upgrade: tcp", b"Upgrade: " + value))
            self.assertIn(b"\r\nConnection: Upgrade\r\n" + sent + b"\r\n", self.house.engine.take())
            self.house.engine.deliver(EMPTY)
        client = self.house.client()
        client.deliver(
            b"POST /v1.41/session HTTP/1.1\r\nHost: x\r\nUpgrade: H2C\r\nContent-Length: 0\r\n\r\n"
        )
        self.assertNotIn(b"Upgrade", self.house.engine.take())

    def test_policy_that_denies_cuts_open_streams(self) -> None:
        self.open()
        self.house.activation.offer("schema: 1\nrules:\n  - name: none\n    effect: deny\n", "policy.yaml")
        self.assertEqual(self.house.proxy.judge_again(), 1)
        self.assertTrue(self.client.aborted and self.engine.aborted)
        self.client.lose(clean=False)
        self.engine.lose(clean=False)
        self.assertEqual(
            self.house.events.last()["result"]["error"], "no longer allowed: denied by rule 'none'"
        )

    def test_lock_of_the_defender_cuts_open_streams(self) -> None:
        self.open()
        locks = frozenset((make_lock("defender", "web1"),))
        self.house.proxy.locks = LockSet(locks, ("web2",))
        self.assertEqual(self.house.proxy.judge_again(), 0)
        self.house.proxy.locks = LockSet(locks, ("web1",))
        self.assertEqual(self.house.proxy.judge_again(), 1)
        self.assertTrue(self.client.aborted and self.engine.aborted)

    def test_nothing_is_changed_while_the_controller_is_away_for_too_long(self) -> None:
        self.open()
        self.house.proxy.frozen = "the controller has not been heard of since Monday"
        self.assertEqual(self.house.proxy.judge_again(), 1)
        self.assertTrue(self.client.aborted and self.engine.aborted)
        client = self.house.client()
        client.deliver(EXEC)
        answer = client.take()
        self.assertEqual(status_of(answer), 403)
        self.assertIn("by rule 'controller' This host has been without", message_of(answer))
        decision = self.house.events.last()["decision"]
        self.assertEqual(decision["reason"], self.house.proxy.frozen)
        client = self.house.client()
        client.deliver(LIST)
        self.house.engine.deliver(EMPTY)
        self.assertEqual(status_of(client.take()), 200)
        self.house.proxy.frozen = ""
        self.open()
        self.assertEqual(self.house.proxy.judge_again(), 0)

    def test_policy_that_allows_leaves_open_streams(self) -> None:
        self.open()
        self.assertEqual(self.house.proxy.judge_again(), 0)
        self.assertFalse(self.client.aborted)


class ExpiryTests(HouseCase):
    def test_stream_ends_with_the_certificate(self) -> None:
        client = self.house.client(dataclasses.replace(BRUCE, not_after=self.house.now + 5))
        client.deliver(EXEC)
        self.house.engine.deliver(SWITCH)
        self.house.advance(3)
        self.assertFalse(client.aborted)
        self.house.advance(3)
        self.assertTrue(client.aborted)


class CountTests(HouseCase):
    def test_open_streams_count_against_the_engines_connections(self) -> None:
        client = self.house.client()
        client.deliver(EXEC)
        self.house.engine.deliver(SWITCH)
        self.assertEqual((self.house.pool.connections, self.house.pool.idle), (1, 0))
        client.lose(clean=False)
        self.house.engine.lose()
        self.assertEqual(self.house.pool.connections, 0)
