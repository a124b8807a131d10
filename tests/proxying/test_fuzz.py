"""Mutated requests and odd answers through a whole proxy in memory: what must hold whatever comes.

The harness plays both peers by the rules of `defender.streams.interface`: nothing is delivered to a stream
that is paused, closed or aborted, and each of those is lost in the end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.contract.facts import Subject
from tests.defender.proxy.house import BRUCE, House
from tests.fakes.streams import MemoryStream
from tests.proxying.neighbors import GENERATORS
from tests.proxying.reading import Answer, BrokenError, Request, Source, read_answer, read_request
from tests.vectors import SMUGGLED, VECTORS

READER = Subject(user="reader", groups=("readers",), address="10.1.2.4", port=5)
READABLE = re.compile(r"/v1\.[0-9]+/(_ping|version|containers/json)(\?.*)?")

CORPUS: Sequence[bytes] = [
    *(request for vector in VECTORS if len(request := vector.request) < 4096),
    *(raw for generate in GENERATORS for _, raw in generate() if len(raw) < 4096),
]
_JSON = b"Host: x\r\nContent-Type: application/json\r\n"
_UPGRADE = b"Connection: Upgrade\r\nUpgrade: tcp\r\n"
GOOD: Sequence[bytes] = [
    b"GET /v1.41/containers/json?all=1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /_ping HTTP/1.1\r\nHost: x\r\nUser-Agent: a\r\n\r\n",
    b"HEAD /_ping HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"POST /v1.41/containers/create HTTP/1.1\r\n" + _JSON + b"Content-Length: 2\r\n\r\n{}",
    b"POST /commit HTTP/1.1\r\n" + _JSON + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"POST /v1.41/images/load HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /v1.41/images/prune HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /v1.41/exec/a/start HTTP/1.1\r\n" + _JSON + _UPGRADE + b"Content-Length: 2\r\n\r\n{}",
    b"POST /v1.41/exec/a/start HTTP/1.1\r\n" + _JSON + b"Content-Length: 2\r\n\r\n{}stdin",
    b"POST /v1.41/containers/a/attach HTTP/1.1\r\nHost: x\r\n" + _UPGRADE + b"Content-Length: 0\r\n\r\nstdin",
]
"""Requests that are let through as they are."""

TOKENS: Sequence[bytes] = [
    *(
        b"\r\n",
        b"\r",
        b"\n",
        b" ",
        b":",
        b"\0",
        b"\r\n\r\n",
        b"/",
        b"//",
        b"..",
        b"%2f",
        b"%",
        b"?",
        b";",
        b"&",
        b"\x80",
    ),
    *(
        b"Content-Length: 5\r\n",
        b"Content-Length: 0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Host: x\r\n",
        b"0\r\n\r\n",
    ),
    *(
        b"Upgrade: tcp\r\n",
        b"Connection: close\r\n",
        b"Expect: 100-continue\r\n",
        b"5\r\nhello\r\n",
        b"HTTP/1.0",
        b"HEAD",
    ),
    *(
        b"GET /v1.41/info HTTP/1.1\r\nHost: y\r\n\r\n",
        SMUGGLED,
        b"POST ",
        b"DELETE ",
        b"/v1.41",
        b"{}",
        b"a" * 300,
    ),
]
_SWITCH = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nstream"
_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\nstream"
ENGINE_ANSWERS: Sequence[bytes] = [
    b"HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
    b'HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{"message":"a"}',
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-T: 1\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi",
    _SWITCH,
    _STREAM,
    b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi" + b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad",
    b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf",
    b"HTTP/1.1 banana\r\n\r\n",
    b"",
]


class Link:
    """One stream, driven as the kernel would drive it."""

    def __init__(self, stream: MemoryStream) -> None:
        self.stream = stream
        self.lost = False
        self._waiting = bytearray()
        self._ending = False

    @property
    def dead(self) -> bool:
        return self.lost or self.stream.aborted or self.stream.closed

    def deliver(self, data: bytes) -> None:
        self._waiting += data
        self.settle()

    def end(self) -> None:
        self._ending = True
        self.settle()

    def settle(self) -> None:
        """Deliver what may be delivered now."""
        stream = self.stream
        while self._waiting and not (stream.paused or self.dead):
            piece = bytes(self._waiting[:65536])
            del self._waiting[:65536]
            stream.deliver(piece)
        if self._ending and not (self._waiting or stream.paused or self.dead):
            self._ending = False
            stream.end()

    def lose(self) -> None:
        if not self.lost:
            self.lost = True
            self.stream.lose(clean=self.stream.closed)


class EngineSide:
    """Reads what one Engine connection gets, strictly, and answers each request."""

    def __init__(self, game: Game, stream: MemoryStream) -> None:
        self._game = game
        self.link = Link(stream)
        self.requests: list[Request] = []
        self._source = Source()
        self._reading = read_request(self._source, self.requests)
        self.tunnel = False

    def settle(self) -> bool:
        """Take what was written and answer; True when something happened."""
        data = self.link.stream.take()
        if not data:
            return False
        if self.tunnel:
            return True
        self._source.buffer += data
        try:
            next(self._reading)
        except StopIteration:
            request = self.requests[-1]
            assert not self._source.buffer, f"bytes behind a request: {bytes(self._source.buffer)!r}"
            self._reading = read_request(self._source, self.requests)
            self._answer(request)
        return True

    def _answer(self, request: Request) -> None:
        answer = self._game.next_answer()
        if request.target.endswith(("/start", "/attach")) and answer.endswith(b"hi"):
            answer = _SWITCH if request.get("upgrade") else _STREAM  # what an Engine most often says here
        if request.method == "HEAD":
            answer = answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if answer else b""
        upgraded = answer.startswith(b"HTTP/1.1 101") and request.get("upgrade") is not None
        unasked = answer.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd")
        self.tunnel = upgraded or (unasked and request.target.endswith(("/start", "/attach")))
        self.link.deliver(answer)
        if not self.tunnel and (not answer or answer.endswith((b"end", b"half"))):
            self.link.end()


class Game:
    """One client connection, played to its end."""

    def __init__(self, subject: Subject, answers: Sequence[int]) -> None:
        self.house = House("/state")
        self.client = Link(self.house.client(subject))
        self._answers = list(answers)
        self.engines: dict[int, EngineSide] = {}
        self.said = bytearray()
        self.busy = 0

    def next_answer(self) -> bytes:
        return ENGINE_ANSWERS[self._answers.pop(0) if self._answers else 0]

    def settle(self) -> None:
        """Let everything happen that can."""
        busy = True
        while busy:
            busy = False
            for stream in list(self.house.engines):
                side = self.engines.setdefault(id(stream), EngineSide(self, stream))
                busy |= side.settle()
                side.link.settle()
                if side.link.dead:
                    side.link.lose()
            self.client.settle()
            if written := self.client.stream.take():
                self.said += written
                busy = True

    def play(self, pieces: Sequence[bytes], *, end: bool) -> None:
        for piece in pieces:
            self.client.deliver(piece)
            self.settle()
        if end:
            self.client.end()
            self.settle()
        for side in self.engines.values():
            if side.tunnel:
                side.link.end()
        self.settle()
        self.client.lose()
        self.settle()
        for side in self.engines.values():
            if side.link.dead or side.tunnel:
                side.link.lose()
        self.settle()
        self.busy = self.house.pool.connections - self.house.pool.idle

    @property
    def requests(self) -> list[Request]:
        return [request for side in self.engines.values() for request in side.requests]


@st.composite
def byte_streams(draw: st.DrawFn) -> list[bytes]:
    """Some requests in a row, damaged in a few places, cut into pieces."""
    one = st.sampled_from(GOOD) | st.sampled_from(GOOD) | st.sampled_from(CORPUS)
    data = b"".join(draw(st.lists(one, min_size=1, max_size=5)))
    for _ in range(draw(st.sampled_from((0, 0, 1, 2, 4)))):
        place = draw(st.integers(0, len(data)))
        kind = draw(st.integers(0, 3))
        if kind == 0:
            data = data[:place] + draw(st.sampled_from(TOKENS)) + data[place:]
        elif kind == 1:
            data = data[:place] + data[place + draw(st.integers(1, 20)) :]
        elif kind == 2:
            data = data[:place] + draw(st.binary(min_size=1, max_size=3)) + data[place + 1 :]
        else:
            data = data[:place] + data[draw(st.integers(0, len(data))) :]
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=6)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if b > a]


class FuzzTests(SynchronousTestCase):
    """Many games; what must hold after each."""

    def play(self, subject: Subject, pieces: list[bytes], answers: list[int], *, end: bool) -> Game:
        game = Game(subject, answers)
        try:
            game.play(pieces, end=end)
        finally:
            game.house.stop()
        self.assertEqual([str(failure) for failure in self.flushLoggedErrors()], [])
        self.check_leaks(game)
        self.check_answers(game)
        return game

    def check_leaks(self, game: Game) -> None:
        """The connection is forgotten; Engine connections were idle or gone before the proxy was stopped."""
        self.assertEqual(game.busy, 0)
        self.assertEqual(game.house.closed, [True])
        self.assertEqual(game.house.proxy.connections, 0)
        self.assertEqual(game.house.pool.connections, 0)
        for side in game.engines.values():
            self.assertTrue(side.link.stream.aborted or side.link.stream.closed)

    def check_answers(self, game: Game) -> None:
        """Each answer has its event, in order; only the last may lack one part or the other."""
        results = [event for event in game.house.events.kept if event["phase"] == "result"]
        ends = [event for event in game.house.events.kept if event["phase"] == "stream_end"]
        self.assertEqual(len({event["corr"] for event in results}), len(results))
        source = Source()
        source.buffer += game.said
        source.ended = True
        answered = 0
        hijacked = False
        for event in results:
            if not source.buffer:
                break
            answers: list[Answer] = []
            try:
                for _ in read_answer(source, answers, event["req"]["method"]):
                    pass
            except BrokenError:
                # Cut: it must be the last, and be noted as such.
                self.assertIn("error", event["result"])
                source.buffer.clear()
            if answers and answers[-1].status != 100:
                answered += 1
                self.assertEqual(event["result"]["status"], answers[-1].status)
            if answers and answers[-1].hijacked and event["req"]["action"] != "unknown":
                hijacked = "error" not in event["result"]
                source.buffer.clear()
        self.assertEqual(bytes(source.buffer), b"", "an answer without an event")
        self.assertLessEqual(len(results) - answered, 1, results)
        self.assertLessEqual(len(ends), 1)
        if ends:
            self.assertTrue(hijacked)
            self.assertEqual(ends[0]["corr"], results[-1]["corr"])

    @settings(max_examples=300)
    @given(byte_streams(), st.lists(st.integers(0, len(ENGINE_ANSWERS) - 1), max_size=6), st.booleans())
    def test_one_who_may_do_everything(self, pieces: list[bytes], answers: list[int], end: bool) -> None:
        game = self.play(BRUCE, pieces, answers, end=end)
        for request in game.requests:
            self.assertEqual(request.get("host"), "docker")

    @settings(max_examples=300)
    @given(byte_streams(), st.lists(st.integers(0, len(ENGINE_ANSWERS) - 1), max_size=6), st.booleans())
    def test_one_who_may_only_look(self, pieces: list[bytes], answers: list[int], end: bool) -> None:
        game = self.play(READER, pieces, answers, end=end)
        for request in game.requests:
            self.assertIsNotNone(READABLE.fullmatch(request.target), request.line)
            self.assertIn(request.method, ("GET", "HEAD"))
            self.assertEqual(request.body.count, 0)

    @settings(max_examples=100)
    @given(st.binary(max_size=300), st.booleans())
    def test_noise(self, data: bytes, end: bool) -> None:
        self.play(BRUCE, [data] if data else [], [], end=end)
