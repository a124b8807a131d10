"""Clients and Engines that go away, in every way and at every point: nothing is left, one event each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from tests.fakes.engine import Gate, faults
from tests.proxying.client import Peer
from tests.proxying.programs import CAT, FakePrograms, Programs, RealPrograms
from tests.proxying.reading import Answer, BrokenError
from tests.proxying.running import wait_until

LOAD = b"POST /v1.41/images/load HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
INFO = b"GET /v1.41/info HTTP/1.1\r\nHost: x\r\n\r\n"
PART = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"a" * 100


def reset(peer: Peer) -> None:
    """RST."""
    peer.reset()


def close(peer: Peer) -> None:
    """A killed process: the kernel closes, without close_notify."""
    peer.close()


def end_and_close(peer: Peer) -> None:
    """A process that closes in good order, as Go's and most others do when interrupted."""
    peer.end()
    peer.close()


Point = Callable[[Any, Peer], None]
Ways = tuple[tuple[str, Callable[[Peer], None]], ...]

ROUGH: Ways = (("tls", reset), ("tls", close))
ORDERLY: Ways = (("tls", end_and_close), ("unix", close), ("unix", end_and_close))
"""A unix socket knows no other end."""

WAYS = ROUGH + ORDERLY


class Points(Programs):
    """The points at which somebody may go, and what must hold afterwards."""

    settings: ClassVar[dict[str, str]] = {
        "engine": "pool = 0\nresponse_timeout = 2",
        "limits": "linger = 1\nhead_timeout = 5",
    }
    sockets: ClassVar[int]

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.tap.wait(lambda: cls.tap.open_connections == 0, "no Engine connection")
        cls.sockets = cls.defender.sockets()

    def existing(self) -> str:
        """A container that runs and does not end."""
        raise NotImplementedError

    def check_nothing_left(self) -> None:
        """No Engine connection and no descriptor stays."""
        self.tap.wait(lambda: self.tap.open_connections == 0, "no Engine connection")
        wait_until(lambda: self.defender.sockets() == self.sockets, "no socket of the defender")

    def check_one_event(self, what: str, *phases: str, error: bool | None = True) -> None:
        """There is exactly one event of each phase, and the last says what went wrong, if something did."""
        events = self.defender.take_events(len(phases))
        self.assertEqual([event["phase"] for event in events], list(phases), what)
        if error is not None:
            self.assertEqual("error" in events[-1]["result"], error, f"{what}: {events[-1]['result']}")
        self.check_serving()

    def check_serving(self) -> None:
        """The defender serves on, and nothing more is noted than that."""
        peer = self.client()
        self.assertEqual(peer.ask(INFO.replace(b"Host: x", b"Host: x\r\nConnection: close")).status, 200)
        peer.close()
        (event,) = self.defender.take_events(1)
        self.assertEqual(event["result"]["status"], 200)

    def go(self, point: Point, peer: Peer) -> None:
        """Bring a new client to this point."""
        point(self, peer)

    def wait_for_engine(self) -> None:
        """The Engine has the request's head."""
        self.tap.wait_for_requests(1)

    def in_head(self, peer: Peer) -> None:
        """Half a head was sent."""
        peer.send(INFO[:20])

    def in_body(self, peer: Peer) -> None:
        """A part of an upload has reached the Engine."""
        peer.send(LOAD + b"a" * 100)
        self.wait_for_engine()

    def in_dropped_body(self, peer: Peer) -> None:
        """A part of a body that the Engine will not get was sent, and the request is not forwarded yet."""
        peer.send(b"POST /v1.41/containers/a/start HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")

    def in_events(self, peer: Peer) -> None:
        """The client listens to events, and there are none."""
        peer.send(b"GET /v1.41/events HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertEqual(peer.head().status, 200)

    def in_wait(self, peer: Peer) -> None:
        """The client waits for a container that does not end."""
        path = f"/v1.41/containers/{self.existing()}/wait"
        peer.send(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        self.assertEqual(peer.head("POST").status, 200)

    def in_logs(self, peer: Peer) -> None:
        """The client follows the log of a container that says nothing."""
        path = f"/v1.41/containers/{self.existing()}/logs?stdout=1&follow=1"
        peer.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        self.assertEqual(peer.head().status, 200)

    def in_tunnel(self, peer: Peer) -> None:
        """A stream is open and idle."""
        peer.send(self.exec_request(CAT))
        self.assertEqual(peer.head("POST").status, 101)

    def check_kills(self, point: Point, *phases: str, error: bool | None = True, ways: Ways = WAYS) -> None:
        """Go to the point, then away, in each of the ways."""
        for via, kill in ways:
            connect = self.defender.tls if via == "tls" else self.defender.local
            what = f"{point.__name__}, {kill.__name__}, {via}"
            peer = self.kept(connect())
            self.go(point, peer)
            kill(peer)
            try:
                self.check_nothing_left()
            except AssertionError as failure:
                raise AssertionError(f"{what}: {failure}") from None
            self.check_one_event(what, *phases, error=error) if phases else self.check_serving()
            self.tap.take()


class FakePoints(FakePrograms, Points):
    """On the fake Engine, which can be held at any byte."""

    known = 0

    def setUp(self) -> None:
        super().setUp()
        self.engine.exit_gate = Gate()
        self.engine.log_lines = []

    def existing(self) -> str:
        return "web"

    def check_nothing_left(self) -> None:
        super().check_nothing_left()
        wait_until(lambda: self.engine.open_connections == 0, "the Engine's handlers ended")

    def go(self, point: Point, peer: Peer) -> None:
        self.known = len(self.engine.requests)
        super().go(point, peer)

    def wait_for_engine(self) -> None:
        wait_until(lambda: len(self.engine.requests) > self.known, "the request is at the Engine")

    def before_answer(self, peer: Peer) -> None:
        """The Engine has the whole request and does not answer."""
        self.engine.behave("GET", "/info", faults.never())
        peer.send(INFO)
        self.wait_for_engine()

    def in_answer(self, peer: Peer) -> None:
        """A part of the answer has reached the client."""
        gate = Gate()
        self.engine.behave("GET", "/info", faults.in_parts([PART, b"rest"], gate))
        gate.release()
        peer.send(INFO).take(len(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n") + 100)


class Bodies:
    """Run on both Engines below."""

    class Clients(Points):
        """The client goes."""

        def test_in_a_head(self) -> None:
            """Nothing was asked, so nothing is noted."""
            self.check_kills(Points.in_head)

        def test_in_a_body(self) -> None:
            self.check_kills(Points.in_body, "result")

        def test_in_a_body_that_is_dropped(self) -> None:
            self.check_kills(Points.in_dropped_body, "result")

        def test_in_quiet_events(self) -> None:
            self.check_kills(Points.in_events, "result")

        def test_in_a_wait(self) -> None:
            self.check_kills(Points.in_wait, "result")

        def test_in_a_quiet_log(self) -> None:
            self.check_kills(Points.in_logs, "result")

        def test_in_a_tunnel(self) -> None:
            self.check_kills(Points.in_tunnel, "result", "stream_end", ways=ROUGH)

        def test_in_a_tunnel_in_good_order(self) -> None:
            """That is an end of input: the program hears it, and ends (or the sweep was faster)."""
            self.check_kills(Points.in_tunnel, "result", "stream_end", ways=ORDERLY, error=None)


class FakeClients(FakePoints, Bodies.Clients):
    """On the fake Engine."""

    def test_before_the_answer(self) -> None:
        self.check_kills(FakePoints.before_answer, "result")

    def test_in_an_answer(self) -> None:
        self.check_kills(FakePoints.in_answer, "result")


class RealClients(RealPrograms, Bodies.Clients):
    """On the real Engine."""

    def existing(self) -> str:
        return self.container


class EngineTests(FakePoints):
    """The Engine goes, with all its connections."""

    def check(self, point: Point) -> Peer:
        peer = self.client()
        self.go(point, peer)
        self.engine.restart()
        return peer

    def check_error(self, answer: Answer) -> None:
        self.assertEqual((answer.status, answer.get("content-type")), (502, "application/json"))
        self.assertIn(b"Engine", answer.text)

    def test_in_a_head(self) -> None:
        peer = self.check(Points.in_head)
        self.assertEqual(peer.send(INFO[20:]).answer().status, 200)
        peer.close()
        self.check_nothing_left()
        self.check_one_event("in a head", "result", error=False)

    def test_in_a_body(self) -> None:
        peer = self.check(Points.in_body)
        self.check_error(peer.answer("POST"))
        self.assertEqual((peer.rest(), peer.cut), (b"", ""))
        peer.close()
        self.check_nothing_left()
        self.check_one_event("in a body", "result")

    def test_before_the_answer(self) -> None:
        """On a fresh connection: the Engine has seen the request, so it is not repeated."""
        peer = self.check(FakePoints.before_answer)
        self.check_error(peer.answer())
        self.assertEqual(peer.ask(INFO).status, 200)
        peer.close()
        self.check_nothing_left()
        self.assertEqual([event["result"]["status"] for event in self.defender.take_events(2)], [502, 200])

    def test_in_an_answer(self) -> None:
        """Half an answer must not look whole."""
        peer = self.check(FakePoints.in_answer)
        self.assertEqual(peer.rest(), b"")
        self.assertIn(peer.cut, ("reset", "truncated"))
        self.check_nothing_left()
        self.check_one_event("in an answer", "result")

    def test_in_an_answer_of_chunks(self) -> None:
        peer = self.check(Points.in_events)
        with self.assertRaises(BrokenError):
            peer.answer()
        self.assertIn(peer.cut, ("reset", "truncated"))
        self.check_nothing_left()
        self.check_one_event("in an answer of chunks", "result")

    def test_in_a_tunnel(self) -> None:
        """To the other side an Engine that died looks like a program that ended."""
        peer = self.check(Points.in_tunnel)
        self.assertEqual((peer.rest(), peer.cut), (b"", ""))
        peer.end().close()
        self.check_nothing_left()
        self.check_one_event("in a tunnel", "result", "stream_end", error=False)

    def test_in_a_tunnel_of_a_client_that_goes_on_sending(self) -> None:
        peer = self.check(Points.in_tunnel)
        peer.rest()
        peer.send(b"a" * 3_000_000)
        self.check_nothing_left()
        self.defender.take_events(2)
        self.check_serving()

    def test_away_and_back(self) -> None:
        """Nobody listens: 502 in the Engine's shape, and the defender recovers by itself."""
        self.tap.refuse()
        self.addCleanup(self.tap.listen)
        peer = self.client()
        answer = peer.ask(INFO)
        self.check_error(answer)
        self.assertIn(b"Is it running?", answer.text)
        self.tap.listen()
        self.assertEqual(peer.ask(INFO).status, 200)
        peer.close()
        self.check_nothing_left()
