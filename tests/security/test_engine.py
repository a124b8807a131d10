"""An Engine that hangs, breaks off or says what it must not: the defender stays whole."""

from __future__ import annotations

from defender.streams.interface import HIGH_WATER
from tests.defender.proxy.house import CREATE, EMPTY, LIST, PING, House, HouseCase, message_of, status_of


class SilentEngineTests(HouseCase):
    """The Engine accepts connections and answers nothing, from the start on."""

    def setUp(self) -> None:
        self.house = House("/state", known=False)
        self.addCleanup(self.house.stop)

    def test_request_that_waits_for_the_version_ends(self) -> None:
        client = self.house.client()
        client.deliver(b"GET /containers/json HTTP/1.1\r\nHost: x\r\n\r\n")
        self.house.advance(62)
        self.assertEqual(status_of(client.take()), 504)
        self.assertEqual(self.house.events.last()["result"]["status"], 504)

    def test_nothing_is_kept_of_those_who_waited(self) -> None:
        for _ in range(50):
            client = self.house.client()
            client.deliver(b"GET /containers/json HTTP/1.1\r\nHost: x\r\n\r\n")
            client.lose()
        self.house.advance(62)
        self.assertEqual(self.house.pool._learning, [])
        self.assertEqual(self.house.pool.connections, 0)

    def test_question_is_asked_anew(self) -> None:
        client = self.house.client()
        client.deliver(b"GET /containers/json HTTP/1.1\r\nHost: x\r\n\r\n")
        self.house.advance(62)
        self.assertTrue(self.house.engine.aborted)
        client.take()
        client.deliver(b"GET /containers/json HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertEqual(len(self.house.engines), 2)
        self.house.engine.deliver(PING)
        self.house.engine.deliver(EMPTY)
        self.assertEqual(status_of(client.take()), 200)

    def test_upload_has_its_own_time_afterwards(self) -> None:
        client = self.house.client()
        client.deliver(b"POST /build HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
        self.house.engine.deliver(PING)
        self.house.advance(100)
        self.assertEqual(client.take(), b"")
        self.house.advance(25)
        self.assertEqual(status_of(client.take()), 408)


class ReuseTests(HouseCase):
    """Nothing of one exchange may be left on a connection that another one uses."""

    def test_answer_before_the_engine_took_the_request(self) -> None:
        """What still waits to be sent would stand before the next request, and back-pressure would be off."""
        client = self.house.client()
        client.deliver(CREATE + b"Content-Length: 2\r\n\r\n{}")
        engine = self.house.engine
        engine.pending = HIGH_WATER
        engine.deliver(b"HTTP/1.1 409 Conflict\r\nContent-Length: 0\r\n\r\n")
        self.assertEqual(status_of(client.take()), 409)
        self.assertEqual(self.house.pool.idle, 0)
        self.assertTrue(engine.aborted)

    def test_answers_that_nobody_asked_for(self) -> None:
        for answer in (EMPTY + EMPTY, EMPTY + b"\r\n", EMPTY + b"x"):
            client = self.house.client()
            client.deliver(LIST)
            engine = self.house.engine
            engine.deliver(answer)
            self.assertEqual(status_of(client.take()), 200)
            self.assertTrue(engine.aborted)
            self.assertEqual(self.house.pool.idle, 0)

    def test_answer_that_comes_while_nobody_asks(self) -> None:
        client = self.house.client()
        client.deliver(LIST)
        engine = self.house.engine
        engine.deliver(EMPTY)
        engine.deliver(EMPTY)
        client.take()
        client.deliver(LIST)
        self.assertEqual(client.take(), b"")
        self.assertIsNot(self.house.engine, engine)


class HostileAnswerTests(HouseCase):
    """The Engine is trusted with its host, not with the defender's process."""

    def test_answers_that_cannot_be_read(self) -> None:
        for answer in (
            b"\0" * 70000,
            b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70000 + b"\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
            b"HTTP/1.1 101 Switching\r\nUpgrade: tcp\r\n\r\n",
            b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
            b"HTTP/2 200\r\n\r\n",
            b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
            b"HTTP/1.1 100 Continue\r\n\r\n" * 1000 + b"\xff",
        ):
            client = self.house.client()
            client.deliver(LIST)
            self.house.engine.deliver(answer)
            shown = client.take()
            self.assertEqual(status_of(shown), 502, answer[:60])
            self.assertTrue(message_of(shown).isascii())
            self.assertTrue(self.house.engine.aborted)
            self.assertEqual(self.house.events.last()["result"]["status"], 502)

    def test_broken_body_cuts_the_client(self) -> None:
        """Half an answer must not look like a whole one."""
        for rest in (b"zz\r\n", b"5\r\nhel", b"ffffffffffffffff\r\n", b"1\r\naX"):
            client = self.house.client()
            client.deliver(LIST)
            engine = self.house.engine
            engine.deliver(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            engine.deliver(rest)
            if not client.aborted:
                engine.lose(clean=False, detail="reset")
            self.assertTrue(client.aborted, rest)
            self.assertTrue(self.house.events.last()["result"]["error"])
