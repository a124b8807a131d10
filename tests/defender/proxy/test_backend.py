"""The Engine away, slow, talking nonsense, or not known yet."""

from __future__ import annotations

from tests.defender.proxy.house import (
    EMPTY,
    LIST,
    PING,
    House,
    HouseCase,
    message_of,
    status_of,
)


class EngineTroubleTests(HouseCase):
    """The Engine away, slow, or talking nonsense."""

    def test_engine_away_is_502(self) -> None:
        self.house.pool.close()
        self.house.refuse = FileNotFoundError(2, "No such file or directory")
        client = self.house.client()
        client.deliver(LIST)
        answer = client.take()
        self.assertEqual(status_of(answer), 502)
        self.assertIn("No such file or directory", message_of(answer))
        self.assertFalse(client.closed)
        self.house.refuse = None
        client.deliver(LIST)
        self.house.engine.deliver(EMPTY)
        self.assertEqual(status_of(client.take()), 200)

    def test_no_room_is_503_and_no_answer_504(self) -> None:
        self.house.pool.close()
        self.house.refuse = TimeoutError()
        client = self.house.client()
        client.deliver(LIST)
        self.assertEqual(status_of(client.take()), 504)
        self.house.refuse = None
        client.deliver(LIST)
        self.house.advance(62)
        self.assertEqual(status_of(client.take()), 504)
        self.assertTrue(self.house.engine.aborted)
        self.house.pool._limit = 0
        client.deliver(LIST)
        self.assertEqual(status_of(client.take()), 503)

    def test_stale_connection_is_retried_for_reads_only(self) -> None:
        client = self.house.client()
        client.deliver(LIST)
        first = self.house.engine
        first.end()
        self.assertEqual(len(self.house.engines), 2)
        self.house.engine.deliver(EMPTY)
        self.assertEqual(status_of(client.take()), 200)
        client.deliver(b"DELETE /v1.41/containers/a HTTP/1.1\r\nHost: x\r\n\r\n")
        self.house.engine.lose(clean=False, detail="reset")
        self.assertEqual(status_of(client.take()), 502)

    def test_a_second_failure_is_not_retried(self) -> None:
        client = self.house.client()
        client.deliver(LIST)
        self.house.engine.end()
        self.house.engine.end()
        self.assertEqual(status_of(client.take()), 502)
        self.assertEqual(len(self.house.engines), 2)

    def test_unreadable_answers_are_502(self) -> None:
        for raw in (
            b"HTTP/1.1 101 UPGRADED\r\nUpgrade: tcp\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"nonsense\r\n\r\n",
        ):
            client = self.house.client()
            client.deliver(LIST)
            self.house.engine.deliver(raw)
            self.assertEqual(status_of(client.take()), 502, raw)
            self.assertTrue(self.house.engine.aborted)

    def test_half_an_answer_never_looks_whole(self) -> None:
        client = self.house.client()
        client.deliver(LIST)
        self.house.engine.deliver(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
        self.house.engine.end()
        self.assertTrue(client.aborted)
        self.assertIn("ended early", self.house.events.last()["result"]["error"])

    def test_surplus_bytes_and_close_keep_a_connection_out_of_the_pool(self) -> None:
        for answer in (
            EMPTY + b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        ):
            client = self.house.client()
            client.deliver(LIST)
            self.house.engine.deliver(answer)
            self.assertEqual(status_of(client.take()), 200)
            self.assertEqual(self.house.pool.idle, 0)

    def test_unasked_bytes_on_an_idle_connection_discard_it(self) -> None:
        self.house.engine.deliver(EMPTY)
        self.assertTrue(self.house.engine.aborted)
        self.assertEqual(self.house.pool.idle, 0)

    def test_dead_idle_connection_is_not_used(self) -> None:
        self.house.engine.gone = True
        client = self.house.client()
        client.deliver(b"DELETE /v1.41/containers/a HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertEqual(len(self.house.engines), 2)


class UnknownEngineTests(HouseCase):
    """Before the Engine has been heard, an unversioned request waits for its version."""

    def setUp(self) -> None:
        self.house = House("/state", known=False)
        self.addCleanup(self.house.stop)

    def test_version_is_asked_first(self) -> None:
        client = self.house.client()
        client.deliver(b"GET /containers/json HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertEqual(self.house.engine.take(), b"GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n")
        self.house.engine.deliver(PING)
        self.assertIn(b"GET /v1.41/containers/json ", self.house.engine.take())

    def test_unreachable_engine_is_502(self) -> None:
        self.house.refuse = ConnectionRefusedError(111, "Connection refused")
        client = self.house.client()
        client.deliver(b"GET /containers/json HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertEqual(status_of(client.take()), 502)
