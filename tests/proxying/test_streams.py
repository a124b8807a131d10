"""Hijacked streams over real sockets, with clients that end as Go's do, as Node's do, and as unix ones do."""

from __future__ import annotations

import base64
import hashlib
import os
from typing import Any, ClassVar

from tests.proxying.client import Peer
from tests.proxying.programs import CAT, DIGEST, LATE, FakePrograms, Programs, RealPrograms, digest, unframe
from tests.proxying.running import wait_until
from tests.proxying.wiretap import Transcript

MEGA = 1 << 20


class Bodies:
    """Run on both Engines below."""

    class Streams(Programs):
        """Streams, and what is left of them."""

        settings: ClassVar[dict[str, str]] = {"engine": "pool = 0"}
        sockets: ClassVar[int]

        @classmethod
        def setUpClass(cls) -> None:
            super().setUpClass()
            cls.tap.wait(lambda: cls.tap.open_connections == 0, "no Engine connection")
            cls.sockets = cls.defender.sockets()

        def check_nothing_left(self, *peers: Peer) -> None:
            """No Engine connection and no descriptor stays when the clients are gone."""
            for peer in peers:
                peer.close()
            self.tap.wait(lambda: self.tap.open_connections == 0, "no Engine connection")
            wait_until(lambda: self.defender.sockets() == self.sockets, "no socket of the defender")

        def transcript(self) -> Transcript:
            """The one connection to the Engine that carried something."""
            (transcript,) = self.tap.take_transcripts()
            return transcript

        def check_events(self, status: int, received: int, sent: int) -> None:
            """One event when the stream began, one at its end, with the bytes of each direction."""
            start, end = self.defender.take_events(2)
            self.assertEqual((start["phase"], start["result"]["status"]), ("result", status))
            self.assertNotIn("error", start["result"])
            result: dict[str, Any] = dict(end["result"])
            result.pop("ms")
            self.assertEqual((end["phase"], result), ("stream_end", {"rx": received, "tx": sent}))
            self.assertEqual(start["corr"], end["corr"])

        def started(self, peer: Peer, request: bytes, status: int = 101) -> Peer:
            """Send a request and read the head that begins the stream."""
            answer = peer.send(request).head("POST")
            self.assertEqual(answer.status, status)
            self.assertTrue(answer.hijacked)
            if status == 101:
                self.assertEqual((answer.get("connection"), answer.get("upgrade")), ("Upgrade", "tcp"))
            return peer

        def check_late(self, peer: Peer, *, node: bool = False, status: int = 101) -> None:
            """End the input, get what the program says then, and an orderly end."""
            peer.send(b"hello").end()
            if node:
                peer.fin()
            output = peer.rest()
            self.assertEqual((unframe(output), peer.cut), (b"late\n", ""))
            self.check_nothing_left(peer)
            self.check_events(status, 5, len(output))
            transcript = self.transcript()
            self.assertEqual((bytes(transcript.upward.data), transcript.ending), (b"hello", "half-closed"))

        # -- half-close

        def test_exec_of_a_go_client_gets_late_output(self) -> None:
            self.check_late(self.started(self.client(), self.exec_request(LATE)))

        def test_exec_of_a_node_client_gets_late_output(self) -> None:
            self.check_late(self.started(self.client(), self.exec_request(LATE)), node=True)

        def test_exec_of_a_unix_client_gets_late_output(self) -> None:
            self.check_late(self.started(self.kept(self.defender.local()), self.exec_request(LATE)))

        def attached(self, peer: Peer) -> Peer:
            name = self.new_container(LATE)
            self.started(peer, self.attach_request(name))
            self.run_container(name)
            return peer

        def test_attach_of_a_go_client_gets_late_output(self) -> None:
            self.check_late(self.attached(self.client()))

        def test_attach_of_a_node_client_gets_late_output(self) -> None:
            self.check_late(self.attached(self.client()), node=True)

        def test_attach_of_a_unix_client_gets_late_output(self) -> None:
            self.check_late(self.attached(self.kept(self.defender.local())))

        def test_input_that_ended_before_the_answer(self) -> None:
            """An empty stdin: close_notify comes in the same packet as the request."""
            peer = self.client()
            peer.send(self.exec_request(LATE)).end()
            self.assertEqual(peer.head("POST").status, 101)
            self.assertEqual(unframe(peer.rest()), b"late\n")
            self.check_nothing_left(peer)

        # -- beginning

        def test_no_upgrade_is_answered_200(self) -> None:
            for version in ("HTTP/1.1", "HTTP/1.0"):
                request = self.exec_request(LATE, upgrade="", version=version)
                peer = self.started(self.client(), request, 200)
                self.check_late(peer, status=200)

        def test_attach_without_upgrade(self) -> None:
            name = self.new_container(CAT)
            peer = self.started(self.client(), self.attach_request(name, upgrade=""), 200)
            self.run_container(name)
            output = peer.send(b"hello\n").end().rest()
            self.assertEqual(unframe(output), b"hello\n")
            self.check_nothing_left(peer)

        def test_input_in_the_packet_of_the_request_is_not_lost(self) -> None:
            for upgrade in ("Connection: Upgrade\r\nUpgrade: tcp\r\n", ""):
                for connect in (self.defender.tls, self.defender.local):
                    peer = self.kept(connect())
                    peer.send(self.exec_request(CAT, upgrade=upgrade) + b"early\n")
                    self.assertTrue(peer.head("POST").hijacked)
                    self.assertEqual(unframe(peer.send(b"late\n").end().rest()), b"early\nlate\n")
                    self.check_nothing_left(peer)

        def test_much_input_behind_the_request_is_not_lost(self) -> None:
            data = os.urandom(3 * MEGA)
            peer = self.client().send(self.exec_request(DIGEST) + data)
            self.assertTrue(peer.head("POST").hijacked)
            self.assertEqual(unframe(peer.end().rest()), digest(data))
            self.check_nothing_left(peer)

        def test_a_chunked_body_before_the_stream(self) -> None:
            head, _, body = self.exec_request(CAT).partition(b"Content-Length: 2\r\n\r\n")
            peer = self.client()
            peer.send(head + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\nearly\n")
            self.assertEqual((peer.head("POST").status, body), (101, b"{}"))
            self.assertEqual(unframe(peer.end().rest()), b"early\n")
            self.check_nothing_left(peer)

        def test_websocket(self) -> None:
            name = self.new_container(CAT)
            key = base64.b64encode(os.urandom(16)).decode()
            head = f"GET /v1.41/containers/{name}/attach/ws?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: x\r\n"
            head += "Connection: Upgrade\r\nUpgrade: websocket\r\nOrigin: http://localhost\r\n"
            head += f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
            self.run_container(name)
            peer = self.client()
            answer = peer.send(head.encode()).head()
            accept = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
            self.assertEqual(answer.status, 101)
            self.assertEqual(answer.get("sec-websocket-accept"), base64.b64encode(accept).decode())
            self.assertEqual((answer.get("upgrade") or "").lower(), "websocket")
            peer.send(b"\x81\x86\0\0\0\0hello\n")
            kind, size = peer.take(2)
            self.assertIn(kind, (0x81, 0x82))
            if size & 0x80:  # the fake sends back what it got
                self.assertEqual(peer.take(4), b"\0" * 4)
            self.assertEqual(peer.take(size & 0x7F), b"hello\n")
            peer.end()
            self.check_nothing_left(peer)

        # -- volume

        def test_32_mebibytes_there_and_back(self) -> None:
            data = os.urandom(MEGA) * 32
            for connect in (self.defender.tls, self.defender.local):
                peer = self.started(self.kept(connect()), self.exec_request(CAT))
                output = peer.send(data).end().rest()
                self.assertEqual(
                    hashlib.sha256(unframe(output)).digest(), hashlib.sha256(data).digest(), peer.cut
                )
                self.check_nothing_left(peer)
                self.check_events(101, len(data), len(output))

        def test_twenty_at_once(self) -> None:
            peers = [self.started(self.client(), self.exec_request(CAT)) for _ in range(20)]
            for turn in range(5):
                for number, peer in enumerate(peers):
                    peer.send(b"%d says %d\n" % (number, turn) * 1000)
            for peer in peers:
                peer.end()
            for number, peer in enumerate(peers):
                expected = b"".join(b"%d says %d\n" % (number, turn) * 1000 for turn in range(5))
                self.assertEqual(unframe(peer.rest()), expected)
            self.check_nothing_left(*peers)
            phases = [event["phase"] for event in self.defender.take_events(40)]
            self.assertEqual((phases.count("result"), phases.count("stream_end")), (20, 20))

        # -- truncation

        def test_a_truncated_stream_is_not_an_end(self) -> None:
            """FIN without close_notify: an attacker can send it. The Engine must not take it for an end."""
            peer = self.started(self.client(), self.exec_request(CAT))
            peer.send(b"hello\n")
            peer.take(8 + 6)
            peer.fin()
            peer.rest()
            self.check_nothing_left(peer)
            _, end = self.defender.take_events(2)
            self.assertIn("truncated", end["result"]["error"])
            self.assertEqual(self.transcript().ending, "closed")


class FakeStreams(FakePrograms, Bodies.Streams):
    """On the fake Engine."""


class RealStreams(RealPrograms, Bodies.Streams):
    """On the real Engine."""
