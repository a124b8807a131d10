"""Answers an Engine should not give, and Engines that give none: the client sees an error or a cut, never
bytes that it could take for something else, and the connection is not used again.
"""

from __future__ import annotations

import json
from typing import ClassVar

from tests.fakes.engine import Exchange, FakeEngine, Gate, echo, faults
from tests.proxying.base import OnFake
from tests.proxying.client import Peer
from tests.proxying.programs import CAT, FakePrograms
from tests.proxying.reading import Answer

INFO = b"GET /v1.41/info HTTP/1.1\r\nHost: x\r\n\r\n"
PING = b"GET /v1.41/_ping HTTP/1.1\r\nHost: x\r\n\r\n"
AUTH = (
    b"POST /v1.41/auth HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
)
OK = b"HTTP/1.1 200 OK\r\n"
SWITCH = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
RAW = b"Content-Type: application/vnd.docker.raw-stream\r\n"

UNREADABLE = (
    b"",
    b"HTTP/1.1 banana\r\n\r\n",
    b"HTTP/1.1 20 OK\r\n\r\n",
    b"HTTP/1.1 099 No\r\n\r\n",
    b"HTTP/1.1 2000 OK\r\n\r\n",
    b"HTTP/2.0 200 OK\r\n\r\n",
    b"HTTP/1.2 200 OK\r\n\r\n",
    b"ICY 200 OK\r\n\r\n",
    b" HTTP/1.1 200 OK\r\n\r\n",
    b"\r\nHTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n",
    b"HTTP/1.1 200 O\0K\r\n\r\n",
    OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
    OK + b"Content-Length: 2, 2\r\n\r\nhi",
    OK + b"Content-Length: +2\r\n\r\nhi",
    OK + b"Content-Length: -1\r\n\r\nhi",
    OK + b"Content-Length: 0x2\r\n\r\nhi",
    OK + b"Content-Length: 9223372036854775808\r\n\r\nhi",
    OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    OK + b"Transfer-Encoding: gzip\r\n\r\nhi",
    OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    OK + b"no colon\r\n\r\n",
    OK + b"Na me: x\r\n\r\n",
    OK + b"Name : x\r\n\r\n",
    OK + b"X: a\r\n folded\r\n\r\n",
    OK + b"X: a\0b\r\n\r\n",
    OK + b"X: a\rSet-Cookie: b\r\n\r\n",
    OK + b"".join(b"X-%d: 1\r\n" % number for number in range(200)) + b"\r\n",
    OK + b"X: " + b"a" * 70000 + b"\r\n\r\n",
    OK + b"X: " + b"a" * 70000,
    SWITCH + b"\r\n",
    SWITCH + RAW + b"\r\nGET / HTTP/1.1\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\nPRI * HTTP/2.0\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"\x15\x03\x03\x00\x02\x02\x32",
)
"""Each is answered with 502 by us."""

CUT = (
    OK + b"Content-Length: 100\r\n\r\nabc",
    OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
    OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0x3\r\nabc\r\n0\r\n\r\n",
    OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\nabcd\r\n0\r\n\r\n",
    OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nffffffffffffffff\r\n",
    OK + b"Transfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n",
    OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nContent-Length: 5\r\n\r\n",
    OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: a\0b\r\n\r\n",
)
"""Each begins well: the client gets what came and then sees that it is not whole (or a 502 for all of it)."""


class AnswerTests(FakePrograms):
    """On the fake Engine."""

    def check_event(self, status: int, *, error: bool) -> None:
        (event,) = self.defender.take_events(1)
        self.assertEqual(event["result"]["status"], status)
        self.assertEqual("error" in event["result"], error, event["result"])

    def check_502(self, answer: Answer, what: bytes) -> None:
        self.assertEqual((answer.status, answer.get("content-type")), (502, "application/json"), what)
        self.assertIn("The Engine", json.loads(answer.text)["message"], what)

    def check_in_step(self, peer: Peer) -> None:
        """The client's connection goes on, and the Engine's is another one or clean."""
        answer = peer.ask(PING)
        self.assertEqual((answer.status, answer.text), (200, b"OK"))
        self.defender.take_events(1)

    def test_unreadable_answers(self) -> None:
        for raw in UNREADABLE:
            peer = self.client()
            self.check_in_step(peer)  # so that there is a connection to use again
            self.engine.behave("GET", "/info", faults.raw(raw), times=1 if raw else 2)
            answer = peer.ask(INFO)
            self.check_502(answer, raw)
            self.check_event(502, error=True)
            self.check_in_step(peer)
            peer.close()

    def test_unreadable_answers_on_a_connection_that_stays_open(self) -> None:
        for raw in UNREADABLE[1:]:
            if raw.endswith(b"aaa") or raw == b"HTTP/1.1 100 Continue\r\n\r\n" or not raw.count(b"\n\r\n"):
                continue  # one would wait for more of it
            peer = self.client()
            self.engine.behave("GET", "/info", faults.raw(raw, keep=True))
            self.check_502(peer.ask(INFO), raw)
            self.check_event(502, error=True)
            self.check_in_step(peer)
            peer.close()

    def test_answers_that_break_off(self) -> None:
        for raw in CUT:
            for parts in ([raw], [raw[:50], raw[50:]]):
                peer = self.client()
                gate = Gate()
                self.engine.behave("GET", "/info", faults.in_parts(parts, gate))
                gate.open()
                peer.send(INFO)
                head = peer.head()
                rest = peer.until_closed() if head.status == 200 else b""
                if head.status == 200:
                    self.assertIn(peer.cut, ("reset", "truncated"), raw)
                    self.assertFalse(rest.endswith(b"0\r\n\r\n"), raw)
                    self.assertLess(len(rest), 100)
                self.check_event(head.status, error=True)
                peer.close()

    def test_a_length_that_is_exceeded(self) -> None:
        """The client gets the answer; the rest could be taken for the next one, so the connection goes."""
        for surplus in (b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad", b"\r\n"):
            peer = self.client()
            self.engine.behave(
                "GET", "/info", faults.raw(OK + b"Content-Length: 2\r\n\r\nhi" + surplus, keep=True)
            )
            answer = peer.ask(INFO)
            self.assertEqual((answer.status, answer.text), (200, b"hi"))
            self.check_event(200, error=False)
            self.check_in_step(peer)
            first, second = self.tap.take_transcripts()
            self.assertNotEqual(first.number, second.number)
            peer.close()

    def test_bytes_on_an_idle_connection(self) -> None:
        """What comes later than an answer is not taken for the next one either."""
        peer = self.client()
        gate = Gate()
        late = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad"
        self.engine.behave("GET", "/info", faults.in_parts([OK + b"Content-Length: 2\r\n\r\nhi", late], gate))
        gate.release()
        self.assertEqual(peer.ask(INFO).text, b"hi")
        (transcript,) = self.tap.take_transcripts()
        gate.release()
        self.tap.wait(lambda: not transcript.open, "the connection is dropped")
        self.check_in_step(peer)

    def test_an_answer_before_a_request_is_over(self) -> None:
        """The rest of the request is not sent, so nothing else may follow it on that connection."""
        load = b"POST /v1.41/images/load HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + b"a" * 100
        answer = OK + b"Content-Length: 2\r\n\r\nhi"
        self.engine.behave("POST", "/images/load", faults.early(answer, keep=True))
        peer = self.client()
        early = peer.ask(load)
        self.assertEqual((early.text, early.closes), (b"hi", True))
        self.assertEqual((peer.rest(), peer.cut), (b"", ""))
        self.check_event(200, error=False)
        (transcript,) = self.tap.take_transcripts()
        self.check_in_step(self.client())
        (other,) = self.tap.take_transcripts()
        self.assertNotEqual(transcript.number, other.number)

    def test_answers_without_framing(self) -> None:
        for raw, body in (
            (OK + b"\r\nuntil the end", b"until the end"),
            (b"HTTP/1.0 200 OK\r\n\r\nold", b"old"),
            (b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\nold", b"old"),
            (b"HTTP/1.1 500 Oh\r\nConnection: close\r\n\r\n", b""),
        ):
            peer = self.client()
            self.engine.behave("GET", "/info", faults.raw(raw))
            answer = peer.ask(INFO)
            self.assertEqual((answer.status, answer.text), (int(raw[9:12]), body), raw)
            self.assertEqual(answer.framing == "close", b"Content-Length" not in raw)
            if answer.closes:
                self.assertEqual((peer.rest(), peer.cut), (b"", ""))
            else:
                self.check_in_step(peer)
            peer.close()

    def test_a_raw_stream_type_makes_no_tunnel_elsewhere(self) -> None:
        peer = self.client()
        gate = Gate()
        self.engine.behave("GET", "/info", faults.in_parts([OK + RAW + b"\r\n", b"rest"], gate))
        gate.release()
        peer.send(INFO).head()
        peer.send(b"these bytes are no request\n")
        gate.release()
        self.assertEqual(peer.rest(), b"rest")
        (transcript,) = self.tap.take_transcripts()
        self.assertEqual(transcript.upward.count, 0)
        (event,) = self.defender.take_events(1)  # a stream would have had two, and no bytes in the first
        self.assertEqual((event["phase"], event["result"]["bytes"]), ("result", 4))

    def test_answers_without_body(self) -> None:
        for raw, length in (
            (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n", "100"),
            (b"HTTP/1.1 304 Not Modified\r\n\r\n", None),
            (b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", None),
            (b"HTTP/1.1 204 No Content\r\n\r\n", None),
            (OK + b"Content-Length: 0\r\n\r\n", "0"),
        ):
            peer = self.client()
            self.engine.behave("GET", "/info", faults.raw(raw, keep=True))
            answer = peer.ask(INFO)
            self.assertEqual((answer.status, answer.get("content-length")), (int(raw[9:12]), length), raw)
            self.check_in_step(peer)
            self.assertEqual(len(self.tap.take_transcripts()), 1, "the connection is used again")
            peer.close()

    def test_informational_answers_are_for_us(self) -> None:
        peer = self.client()
        early = [b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"] * 3
        self.engine.behave("GET", "/info", faults.informational(early, faults.stock_answer(200, b"hi")))
        self.assertEqual(peer.ask(INFO).text, b"hi")
        self.check_in_step(peer)

    def test_trailers_pass(self) -> None:
        peer = self.client()
        trailing = faults.with_trailers([b"abc", b"d" * 70000], [("X-Sum", "1"), ("X-Two", "b")])
        self.engine.behave("GET", "/info", trailing)
        answer = peer.ask(INFO)
        self.assertEqual((answer.body.count, answer.trailers), (70003, [("x-sum", "1"), ("x-two", "b")]))
        self.check_in_step(peer)
        self.assertEqual(len(self.tap.take_transcripts()), 1)

    def test_hop_by_hop_headers_end_here(self) -> None:
        peer = self.client()
        extra = b"Connection: X-Hop\r\nKeep-Alive: timeout=1\r\nProxy-Authenticate: x\r\nLocation: http://evil/\r\n"
        extra += b"Upgrade: h2c\r\nTrailer: X-T\r\nTE: trailers\r\nX-Kept: yes\r\nContent-Length: 0\r\n\r\n"
        self.engine.behave("GET", "/info", faults.raw(OK + extra, keep=True))
        answer = peer.ask(INFO)
        self.assertEqual(
            sorted(name for name, _ in answer.headers if name != "x-hop"), ["content-length", "x-kept"]
        )
        self.check_in_step(peer)

    # -- streams that are none

    def test_a_switch_where_no_upgrade_was_asked_for(self) -> None:
        self.engine.behave("POST", "/exec/.*", faults.raw(SWITCH + b"\r\nbytes", keep=True))
        peer = self.client()
        answer = peer.ask(self.exec_request(CAT, upgrade="") + b"stdin")
        self.check_502(answer, b"")
        (transcript,) = self.tap.take_transcripts()
        self.assertEqual(transcript.upward.count, 0)

    def test_input_is_held_until_the_engine_has_answered(self) -> None:
        """It drops what comes with the request, and what comes before its answer may be a request yet."""
        gate = Gate()

        def switch_later(exchange: Exchange) -> None:
            exchange.read_body()
            exchange.wait(gate)
            echo(exchange.hijack(SWITCH + b"\r\n"))

        plain = faults.in_parts([OK + b"Content-Length: 2\r\n\r\nhi"], gate, keep=True)
        for script, early, late in ((switch_later, b"input", b"input"), (plain, PING, b"hi")):
            self.engine.behave("POST", "/exec/.*", script)
            peer = self.client().send(self.exec_request(CAT))
            self.tap.wait_for_requests(1)
            peer.send(early)
            self.check_in_step(self.client())  # by now the defender has the input
            gate.release()
            self.assertEqual(peer.head("POST").status, 101 if script is switch_later else 200)
            self.assertEqual(peer.take(len(late)), late)
            if script is plain:
                self.assertEqual(peer.answer().text, b"OK")
            self.tap.take()
            peer.close()

    def test_an_ordinary_answer_to_what_could_be_a_stream(self) -> None:
        """The connection goes on, and what was held is the next request."""
        for raw in (
            OK + b"Content-Length: 2\r\n\r\nhi",
            OK + RAW + b"Content-Length: 2\r\n\r\nhi",
            OK + RAW + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
            b"HTTP/1.1 409 Conflict\r\n" + RAW + b"Content-Length: 2\r\n\r\nhi",
        ):
            for upgrade in ("Connection: Upgrade\r\nUpgrade: tcp\r\n", ""):
                self.engine.behave("POST", "/exec/.*", faults.raw(raw, keep=True))
                peer = self.client()
                peer.send(self.exec_request(CAT, upgrade=upgrade) + PING)
                self.assertEqual([peer.answer("POST").text, peer.answer().text], [b"hi", b"OK"])
                self.assertEqual([request.method for request in self.tap.take()], ["POST", "GET"])
                peer.close()

    # -- no answer at all

    def test_a_read_is_repeated_once_on_a_kept_connection(self) -> None:
        peer = self.client()
        self.check_in_step(peer)
        self.engine.behave("GET", "/info", faults.close_at_head())
        self.assertEqual(peer.ask(INFO).status, 200)
        self.check_event(200, error=False)
        self.assertEqual([request.line for request in self.tap.take()][1:], ["GET /v1.41/info"] * 2)

    def test_a_read_is_not_repeated_twice(self) -> None:
        peer = self.client()
        self.check_in_step(peer)
        self.engine.behave("GET", "/info", faults.close_at_head(), times=3)
        self.check_502(peer.ask(INFO), b"")
        self.assertEqual([request.line for request in self.tap.take()][1:], ["GET /v1.41/info"] * 2)
        self.check_502(peer.ask(INFO), b"")
        self.assertEqual([request.line for request in self.tap.take()], ["GET /v1.41/info"])

    def test_a_read_is_not_repeated_on_a_fresh_connection(self) -> None:
        self.engine.drop_all()
        self.tap.wait(lambda: self.tap.open_connections == 0, "no connection is kept")
        self.engine.behave("GET", "/info", faults.close_at_head())
        self.check_502(self.client().ask(INFO), b"")
        self.assertEqual([request.line for request in self.tap.take()], ["GET /v1.41/info"])

    def test_a_change_is_never_repeated(self) -> None:
        stop = b"POST /v1.41/containers/web/stop HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        delete = b"DELETE /v1.41/containers/web HTTP/1.1\r\nHost: x\r\n\r\n"
        for request in (AUTH, AUTH.replace(b"/auth", b"/containers/create"), stop, delete):
            peer = self.client()
            self.check_in_step(peer)
            self.engine.behave("*", "/(auth|containers/.*)", faults.close_at_head())
            self.check_502(peer.ask(request), b"")
            self.check_event(502, error=True)
            self.assertEqual(len(self.tap.take()), 2)

    def test_a_read_is_not_repeated_when_its_answer_began(self) -> None:
        peer = self.client()
        self.check_in_step(peer)
        self.engine.behave("GET", "/info", faults.raw(b"HTTP/1.1 200"))
        self.check_502(peer.ask(INFO), b"")
        self.assertEqual(len(self.tap.take()), 2)

    def test_kept_connections_that_the_engine_closed_are_not_used(self) -> None:
        peer = self.client()
        for _ in range(5):
            self.assertEqual(peer.ask(AUTH).status, 200)
            self.engine.drop_all()
            self.tap.wait(lambda: self.tap.open_connections == 0, "the Engine closed")
        self.assertEqual([event["result"]["status"] for event in self.defender.take_events(5)], [200] * 5)


class FewConnectionsTests(OnFake):
    """At most two connections to the Engine, and one that does not answer."""

    settings: ClassVar[dict[str, str]] = {
        "engine": "pool = 1\nmax_connections = 2\nresponse_timeout = 1\naction_timeout = 1"
    }
    engine: ClassVar[FakeEngine]

    def test_more_are_refused_and_later_served(self) -> None:
        listeners = [self.client().send(b"GET /v1.41/events HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(2)]
        for peer in listeners:
            self.assertEqual(peer.head().status, 200)
        third = self.client()
        answer = third.ask(INFO)
        self.assertEqual((answer.status, answer.get("content-type")), (503, "application/json"))
        for peer in listeners:
            peer.end().close()
        self.tap.wait(lambda: self.tap.open_connections == 0, "the connections are free")
        self.assertEqual(third.ask(INFO).status, 200)

    def test_a_silent_engine(self) -> None:
        """It accepts and does not read: 504, and the next call is served."""
        for request in (INFO, AUTH):
            self.engine.behave("*", ".*", faults.never(read_body=False))
            peer = self.client()
            answer = peer.ask(request)
            self.assertEqual((answer.status, answer.get("content-type")), (504, "application/json"))
            self.assertEqual(peer.ask(INFO).status, 200)
