"""A client that half-closed during an ordinary request: it is answered, and not waited for without end."""

from __future__ import annotations

from defender.contract.facts import Subject
from tests.defender.proxy.house import EMPTY, EXEC, LIST, PING, SWITCH, House, HouseCase, status_of
from tests.fakes.streams import MemoryStream

EVENTS = b"GET /v1.41/events HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class HalfClosedTests(HouseCase):
    """Over TCP, where a half-close and an orderly end look the same."""

    def ended_client(self, request: bytes) -> MemoryStream:
        client = self.house.client()
        client.deliver(request)
        client.end()
        return client

    def test_it_is_answered(self) -> None:
        client = self.ended_client(LIST)
        self.house.advance(50)
        self.house.engine.deliver(EMPTY)
        self.assertEqual(status_of(client.take()), 200)
        self.assertTrue(client.closed)
        self.assertFalse(client.aborted)

    def test_silent_events_end(self) -> None:
        client = self.ended_client(EVENTS)
        self.house.engine.deliver(CHUNKED)
        self.house.advance(3)
        self.assertFalse(client.aborted)
        self.house.advance(4)
        self.assertTrue(client.aborted and self.house.engine.aborted)
        client.lose()
        (event,) = self.house.events.kept
        self.assertEqual(event["result"]["error"], "the client ended the connection")

    def test_events_that_have_not_begun_end(self) -> None:
        client = self.ended_client(EVENTS)
        self.house.advance(7)
        self.assertTrue(client.aborted and self.house.engine.aborted)

    def test_an_answer_that_flows_goes_on(self) -> None:
        client = self.ended_client(EVENTS)
        self.house.engine.deliver(CHUNKED)
        for _ in range(10):
            self.house.advance(3)
            self.house.engine.deliver(b"2\r\n{}\r\n")
        self.house.engine.deliver(b"0\r\n\r\n")
        self.assertEqual(client.take().count(b"{}"), 10)
        self.assertTrue(client.closed)
        self.assertFalse(client.aborted)

    def test_a_slow_reader_is_not_cut(self) -> None:
        client = self.ended_client(EVENTS)
        self.house.engine.deliver(CHUNKED + b"2\r\n{}\r\n")
        client.pending = 1
        self.house.advance(60)
        self.assertFalse(client.aborted)
        client.pending = 0
        self.house.advance(7)
        self.assertTrue(client.aborted)

    def test_a_stream_that_has_not_begun_is_waited_for(self) -> None:
        client = self.ended_client(EXEC)
        self.house.advance(60)
        self.assertFalse(client.aborted)
        self.house.engine.deliver(SWITCH)
        self.assertTrue(self.house.engine.half_closed)
        self.house.advance(60)
        self.assertFalse(client.aborted)

    def test_a_unix_client_is_looked_at_instead(self) -> None:
        client = MemoryStream(None)
        self.house.proxy.accept(client, Subject(user="bruce", via="unix"), lambda: None)
        client.deliver(EVENTS)
        client.end()
        self.house.engine.deliver(CHUNKED)
        self.house.advance(60)
        self.assertFalse(client.aborted)
        client.gone = True
        self.house.advance(2)
        self.assertTrue(client.aborted)

    def test_pipelined_requests_are_all_answered(self) -> None:
        client = self.house.client()
        client.deliver(LIST * 3)
        client.end()
        for _ in range(3):
            self.assertFalse(client.closed)
            self.house.engine.deliver(EMPTY)
        answers = client.take()
        self.assertEqual((answers.count(b"HTTP/1.1 200 "), answers.count(b"Connection: close")), (3, 1))
        self.assertTrue(client.closed)

    def test_what_is_denied_between_is_answered_as_well(self) -> None:
        client = self.house.client(Subject(user="reader", groups=("readers",)))
        client.deliver(LIST + EVENTS + LIST + EVENTS)
        client.end()
        self.house.engine.deliver(EMPTY)
        self.house.engine.deliver(EMPTY)
        answers = client.take()
        self.assertEqual((answers.count(b"HTTP/1.1 200 "), answers.count(b"HTTP/1.1 403 ")), (2, 2))
        self.assertTrue(client.closed)

    def test_half_a_request_behind_them_is_not_waited_for(self) -> None:
        for rest in (LIST[:30], b"POST /v1.41/build HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n123"):
            for subject in (Subject(user="bruce"), Subject(user="reader", groups=("readers",))):
                client = self.house.client(subject)
                client.deliver(LIST + rest)
                client.end()
                self.house.engine.deliver(EMPTY)
                self.assertTrue(client.closed, (rest, subject))
                client.lose()

    def test_a_body_that_waits_for_the_engine_is_whole(self) -> None:
        """The client has sent everything and ended before there is a connection to send it on."""
        house = House("/state", known=False)
        self.addCleanup(house.stop)
        for body, status in ((b"{}", 200), (b"{", 400)):
            client = house.client()
            client.deliver(
                b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: 2\r\n\r\n" + body
            )
            client.end()
            if status == 200:
                house.engines[0].deliver(PING)
                self.assertTrue(house.engines[0].take().endswith(b"\r\n\r\n{}"))
                house.engines[0].deliver(EMPTY)
            self.assertEqual(status_of(client.take()), status)
            self.assertTrue(client.closed)
