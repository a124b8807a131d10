"""HTTP's own machinery through the defender: bodies both ways, keep-alive, pipelining, expectations."""

from __future__ import annotations

import io
import os
import tarfile
from typing import ClassVar

from tests.proxying.client import Peer
from tests.proxying.play import REFUSALS
from tests.proxying.programs import CAT, FakePrograms, Programs, RealPrograms

HEAD = " HTTP/1.1\r\nHost: x\r\n"
PING = f"GET /v1.41/_ping{HEAD}\r\n".encode()
LIST = f"GET /v1.41/containers/json{HEAD}\r\n".encode()
INFO = f"GET /v1.41/info{HEAD}\r\n".encode()
CREATE = f"POST /v1.41/containers/create{HEAD}Content-Type: application/json\r\n".encode()
NO_IMAGE = b'{"Image":"none-such"}'


def tar(content: bytes) -> bytes:
    """A tar archive with one file."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        entry = tarfile.TarInfo("file")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def untar(data: bytes) -> bytes:
    """The file in an archive of `tar`."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        file = archive.extractfile("file")
        assert file is not None
        return file.read()


def chunked(data: bytes, size: int = 5000) -> bytes:
    """A chunked body, with an extension and a trailer."""
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    return b"".join(b"%X;a=b\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\nX-Sum: 1\r\n\r\n"


class Bodies:
    """Run on both Engines below."""

    class Framing(Programs):
        """What does not hang on the Engine."""

        def existing(self) -> str:
            """A container that there is."""
            raise NotImplementedError

        def put_file(self, content: bytes) -> None:
            """What the next GET of the archive is to bring, if that cannot be put there through the API."""

        def check_goes_on(self, peer: Peer) -> None:
            """The connection is in step: another request gets its own answer."""
            self.assertEqual((peer.ask(PING).text, bytes(peer.source.buffer)), (b"OK", b""))

        # -- answers without a body

        def test_head(self) -> None:
            peer = self.client()
            answer = peer.ask(f"HEAD /_ping{HEAD}\r\n".encode())
            self.assertEqual((answer.status, answer.get("api-version")), (200, "1.41"))
            self.check_goes_on(peer)
            path = f"/v1.41/containers/{self.existing()}/archive?path=/"
            answer = peer.ask(f"HEAD {path}{HEAD}\r\n".encode())
            self.assertEqual(answer.status, 200)
            self.assertTrue(answer.get("x-docker-container-path-stat"))
            self.check_goes_on(peer)
            self.assertEqual(
                peer.ask(f"HEAD {path.replace('/containers/', '/containers/no')}{HEAD}\r\n".encode()).get(
                    "server"
                ),
                answer.get("server"),
            )
            self.check_goes_on(peer)

        def test_head_that_is_denied(self) -> None:
            peer = self.client("reader")
            answer = peer.ask(f"HEAD /v1.41/containers/nonexist/archive?path=/{HEAD}\r\n".encode())
            self.assertEqual(answer.status, 403)
            self.check_goes_on(peer)

        def test_no_content(self) -> None:
            peer = self.client()
            path = f"/v1.41/containers/{self.existing()}/rename?name=renamed"
            answer = peer.ask(f"POST {path}{HEAD}Content-Length: 0\r\n\r\n".encode())
            self.assertEqual((answer.status, answer.get("content-length")), (204, None))
            self.check_goes_on(peer)

        # -- one connection, many requests

        def test_a_hundred_requests_with_denials_between(self) -> None:
            peer = self.client("reader")
            denied_body = b"POST /v1.41/images/load HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n123456789"
            expected = []
            for _ in range(25):
                for request, status in ((LIST, 200), (INFO, 403), (denied_body, 403), (PING, 200)):
                    answer = peer.ask(request)
                    self.assertEqual(answer.status, status)
                    self.assertFalse(answer.closes)
                    expected.append(status)
            statuses = [event["result"]["status"] for event in self.defender.take_events(100)]
            self.assertEqual(statuses, expected)
            lines = [request.line for request in self.tap.take()]
            self.assertEqual(lines, ["GET /v1.41/containers/json", "GET /v1.41/_ping"] * 25)

        def test_twenty_pipelined_requests(self) -> None:
            body = (
                b"POST /v1.41/containers/nonexist/start HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
            )
            requests = [PING, LIST, body, PING] * 5
            for user, statuses in (("admin", [200, 200, 404, 200] * 5), ("reader", [200, 200, 403, 200] * 5)):
                peer = self.client(user)
                peer.send(b"".join(requests))
                for request, status in zip(requests, statuses, strict=True):
                    answer = peer.answer()
                    self.assertEqual(answer.status, status, request)
                    self.assertEqual(answer.text == b"OK", request == PING)
                self.check_goes_on(peer)
                taken = len(self.tap.take())
                self.assertEqual(taken, statuses.count(200) + statuses.count(404) + 1)

        def test_pipelined_requests_before_a_half_close(self) -> None:
            """As in ``printf ... | nc -N``: everything that was asked is answered, then the end comes."""
            for connect in (self.defender.tls, self.defender.local, self.direct):
                peer = self.kept(connect())
                peer.send(PING + LIST + INFO + PING).end()
                self.assertEqual([peer.answer().status for _ in range(4)], [200] * 4)
                self.assertEqual((peer.rest(), peer.cut), (b"", ""))

        def test_requests_in_single_bytes(self) -> None:
            peer = self.client()
            for byte in PING + CREATE + b"Content-Length: 2\r\n\r\n{}" + PING:
                peer.send(bytes((byte,)))
            self.assertEqual(peer.answer().status, 200)
            self.assertGreaterEqual(peer.answer().status, 201)
            self.assertEqual(peer.answer().status, 200)
            self.check_goes_on(peer)

        # -- bodies

        def test_a_chunked_request(self) -> None:
            peer = self.client()
            for size in (1, 7, 5000):
                answer = peer.ask(CREATE + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(NO_IMAGE, size))
                self.assertIn(answer.status, (201, 404))
                request = self.tap.take()[-1]
                self.assertEqual((bytes(request.body.data), request.framing), (NO_IMAGE, "chunked"))
                self.check_goes_on(peer)
                self.tap.take()

        def test_an_archive_in_and_out_in_chunks(self) -> None:
            content = os.urandom(500_000)
            self.put_file(content)
            peer = self.client()
            path = f"/v1.41/containers/{self.existing()}/archive?path=/tmp"
            put = f"PUT {path}{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode()
            data = tar(content)
            self.assertEqual(peer.ask(put + chunked(data)).status, 200)
            (request,) = self.tap.take()
            self.assertEqual((request.body.count, request.complete), (len(data), True))
            answer = peer.ask(f"GET {path}/file{HEAD}\r\n".encode())
            self.assertEqual((answer.status, answer.framing, untar(answer.text)), (200, "chunked", content))
            self.check_goes_on(peer)
            old = self.client()
            answer = old.ask(f"GET {path}/file HTTP/1.0\r\n\r\n".encode())
            self.assertEqual((answer.framing, untar(answer.text)), ("close", content))

        def test_expectation(self) -> None:
            """The client waits for 100 before it sends its body."""
            peer = self.client()
            head = CREATE + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(NO_IMAGE)
            self.assertEqual(peer.send(head).head("POST").status, 100)
            answer = peer.send(NO_IMAGE).answer("POST")
            self.assertIn(answer.status, (201, 404))
            (request,) = self.tap.take()
            self.assertEqual((bytes(request.body.data), request.get("expect")), (NO_IMAGE, None))
            self.check_goes_on(peer)

        def test_expectation_of_what_is_denied(self) -> None:
            peer = self.client("reader")
            answer = peer.ask(CREATE + b"Expect: 100-continue\r\nContent-Length: 20\r\n\r\n")
            self.assertEqual((answer.status, answer.closes), (403, True))
            self.assertEqual((peer.rest(), peer.cut), (b"", ""))
            self.assertEqual(self.tap.take(), [])

        def test_expectation_without_a_body(self) -> None:
            peer = self.client()
            self.assertEqual(peer.ask(LIST[:-2] + b"Expect: 100-continue\r\n\r\n").status, 200)
            self.check_goes_on(peer)

        def test_an_answer_before_the_upload_is_over(self) -> None:
            """The Engine says no at once; a client that goes on sending reads that all the same."""
            peer = self.client()
            size = 50 << 20
            head = (
                f"PUT /v1.41/containers/nonexist/archive?path=/{HEAD}Content-Length: {size}\r\n\r\n".encode()
            )
            peer.send(head + bytes(size))
            answer = peer.answer("PUT")
            self.assertEqual((answer.status, answer.closes), (404, True))
            self.assertIn(b"No such container: nonexist", answer.text)
            peer.rest()
            peer.close()
            (event,) = self.defender.take_events(1)
            self.assertEqual(event["result"]["status"], 404)

        def test_denied_uploads(self) -> None:
            """A short body is dropped and the connection goes on; one that is long or unannounced ends it."""
            load = f"POST /v1.41/images/load{HEAD}".encode()
            peer = self.client("reader")
            self.assertEqual(peer.ask(load + b"Content-Length: 60000\r\n\r\n" + bytes(60000)).status, 403)
            self.check_goes_on(peer)
            for framing in (
                b"Content-Length: 900000\r\n\r\n",
                b"Transfer-Encoding: chunked\r\n\r\nDBBA0\r\n",
            ):
                peer = self.client("reader")
                answer = peer.ask(load + framing + bytes(900000))
                self.assertEqual((answer.status, answer.closes), (403, True))
                self.assertEqual((peer.rest(), peer.cut), (b"", ""))
            self.assertEqual([request.line for request in self.tap.take()], ["GET /v1.41/_ping"])

        def test_a_body_where_none_belongs(self) -> None:
            peer = self.client()
            for framing, raw in (
                (b"Content-Length: 5", b"hello"),
                (b"Transfer-Encoding: chunked", chunked(b"hello")),
            ):
                request = (
                    b"POST /v1.41/containers/nonexist/start HTTP/1.1\r\nHost: x\r\n"
                    + framing
                    + b"\r\n\r\n"
                    + raw
                )
                self.assertEqual(peer.ask(request).status, 404)
                (seen,) = self.tap.take()
                self.assertEqual((seen.length, seen.body.count), (0, 0))
                self.check_goes_on(peer)
                self.tap.take()
            answer = peer.ask(
                b"POST /v1.41/containers/nonexist/start HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n"
            )
            self.assertIn(answer.status, REFUSALS)
            self.assertEqual(self.tap.take(), [])

    class Patience(Programs):
        """Time, with tiny limits: what waits for nothing is ended, what waits by its nature is not."""

        settings: ClassVar[dict[str, str]] = {
            "limits": "head_timeout = 0.5\nidle_timeout = 0.5\nbody_timeout = 0.5\nlinger = 0.5",
            "engine": "response_timeout = 1\naction_timeout = 1",
        }

        def make_event(self) -> None:
            """Have the Engine tell of an event."""
            raise NotImplementedError

        def test_open_streams_outlive_idle_connections(self) -> None:
            events = self.client()
            self.assertEqual(events.send(f"GET /v1.41/events{HEAD}\r\n".encode()).head().status, 200)
            stream = self.client()
            self.assertEqual(stream.send(self.exec_request(CAT)).head("POST").status, 101)
            for _ in range(2):
                idle = self.client()
                self.assertEqual(idle.ask(PING).status, 200)
                self.assertEqual((idle.rest(), idle.cut), (b"", ""))
            self.make_event()
            self.assertTrue(events.take(20))
            stream.send(b"hello\n")
            self.assertEqual(stream.take(14)[8:], b"hello\n")
            stream.end()
            stream.rest()
            events.close()
            self.defender.take_events(5)

        def test_a_connection_that_says_nothing(self) -> None:
            peer = self.client()
            self.assertEqual((peer.rest(), peer.cut), (b"", ""))
            self.assertEqual(self.defender.take_events(), [])

        def test_a_head_that_drips(self) -> None:
            """One byte now and then does not buy time."""
            peer = self.client()
            sent = 0
            while not peer.over and sent < len(INFO) * 1000:
                peer.send(INFO[:20] if not sent else b"a")
                sent += 1
                peer.poll(0.05)
            answer = peer.answer()
            self.assertEqual((answer.status, answer.closes), (408, True))
            self.assertLess(sent, 200)

        def test_a_body_that_stops(self) -> None:
            peer = self.client()
            answer = peer.ask(
                f"POST /v1.41/images/load{HEAD}Content-Length: 100\r\n\r\n".encode() + b"a" * 50
            )
            self.assertEqual((answer.status, answer.closes), (408, True))
            self.tap.wait(
                lambda: all(not t.open for t in self.tap.transcripts if not t.requests[-1].complete), "cut"
            )

        def test_a_dropped_body_that_stops(self) -> None:
            for user, request in (
                ("admin", f"POST /v1.41/containers/nonexist/start{HEAD}Content-Length: 100\r\n\r\n"),
                ("reader", f"POST /v1.41/images/load{HEAD}Content-Length: 100\r\n\r\n"),
            ):
                peer = self.client(user)
                answer = peer.ask(request.encode() + b"a" * 50)
                self.assertEqual(answer.status, 408 if user == "admin" else 403)
                self.assertEqual((peer.rest(), peer.cut), (b"", ""))

        def test_a_slow_body_is_taken(self) -> None:
            """Slow, but never silent for long."""
            peer = self.client()
            peer.send(CREATE + b"Content-Length: %d\r\n\r\n" % len(NO_IMAGE))
            for byte in NO_IMAGE:
                peer.send(bytes((byte,)))
                peer.poll(0.05)
            self.assertIn(peer.answer("POST").status, (201, 404))


class FakeFraming(FakePrograms, Bodies.Framing):
    """On the fake Engine."""

    def existing(self) -> str:
        return "web"

    def put_file(self, content: bytes) -> None:
        self.engine.archive = tar(content)


class RealFraming(RealPrograms, Bodies.Framing):
    """On the real Engine."""

    def existing(self) -> str:
        return self.container


class FakePatience(FakePrograms, Bodies.Patience):
    """On the fake Engine."""

    def make_event(self) -> None:
        self.engine.emit(b'{"Type":"container","Action":"create"}\n')


class RealPatience(RealPrograms, Bodies.Patience):
    """On the real Engine."""

    def make_event(self) -> None:
        self.new_container(CAT)
