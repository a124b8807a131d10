"""The fake Engine behaves like Engine 20.10.24 where tests rely on it, and records what it was sent."""

from __future__ import annotations

import hashlib
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twisted.internet import defer
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.fakes.engine import CONTAINER_ID, FakeEngine, Gate, faults, swallow

VECTORS = Path(__file__).resolve().parents[1] / "data" / "vectors"
OTHER_STATE = {
    "HIJ-014": "the fake reads no form bodies",
}
"""Vectors whose recorded status hangs on state or operations that the fake does not have."""


def vectors(*groups: str) -> Iterator[dict[str, Any]]:
    """Yield vectors whose bytes are complete and whose status the live Engine gave."""
    for group in groups:
        for line in (VECTORS / f"{group}.jsonl").read_text().splitlines():
            vector = json.loads(line)
            recorded = vector.get("engine_20_10_24") or {}
            if not recorded.get("status") or re.search(r"\[\d+ bytes\]", vector["request"]):
                continue
            if vector["id"] not in OTHER_STATE:
                yield vector


class Peer:
    """A client of the fake: a blocking socket that gives up after ten seconds."""

    def __init__(self, engine: FakeEngine) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(engine.path)

    def send(self, data: bytes) -> Peer:
        self.sock.sendall(data)
        return self

    def finish(self) -> Peer:
        self.sock.shutdown(socket.SHUT_WR)
        return self

    def until(self, mark: bytes) -> bytes:
        data = b""
        while mark not in data:
            got = self.sock.recv(65536)
            if not got:
                raise AssertionError(f"ended before {mark!r}: {data!r}")
            data += got
        return data

    def rest(self) -> bytes:
        data = b""
        try:
            while got := self.sock.recv(65536):
                data += got
        except ConnectionResetError:
            pass
        return data


class EngineCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.engine = FakeEngine(self.mktemp()).start()
        self.addCleanup(self.engine.stop)

    def peer(self) -> Peer:
        peer = Peer(self.engine)
        self.addCleanup(peer.sock.close)
        return peer

    def ask(self, request: str, body: bytes = b"") -> bytes:
        """Send one request of a closing connection; return everything that comes back."""
        head, _, more = request.partition("\n")
        lines = f"{head} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}"
        return self.peer().send(f"{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body).rest()


class Vectors(EngineCase):
    def check(self, *groups: str, minimum: int) -> None:
        wrong, count = [], 0
        for vector in vectors(*groups):
            count += 1
            peer = Peer(self.engine).send(vector["request"].encode("latin-1"))
            line = peer.until(b"\n").split(b"\r\n")[0].decode("latin-1")
            peer.sock.close()
            if line != vector["engine_20_10_24"]["status"].split("\r\n")[0]:
                wrong.append((vector["id"], line, vector["engine_20_10_24"]["status"]))
        self.assertEqual(wrong, [])
        self.assertGreaterEqual(count, minimum)

    def test_versions_and_paths_get_the_recorded_status(self) -> None:
        self.check("ver", "path", minimum=60)

    def test_request_lines_and_framing_get_the_recorded_status(self) -> None:
        self.check("line", "http", minimum=80)

    def test_hijack_requests_get_the_recorded_status(self) -> None:
        self.check("hij", minimum=30)


class Answers(EngineCase):
    def test_ping_carries_the_engine_headers(self) -> None:
        answer = self.ask("GET /_ping")
        self.assertTrue(answer.startswith(b"HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\n"))
        for header in (b"Builder-Version: 1", b"Docker-Experimental: false", b"Ostype: linux"):
            self.assertIn(header + b"\r\n", answer)
        self.assertIn(b"Server: Docker/20.10.24+dfsg1 (linux)\r\n", answer)
        self.assertTrue(answer.endswith(b"\r\n\r\nOK"))
        self.assertTrue(self.ask("HEAD /_ping").endswith(b"\r\n\r\n"))

    def test_create_inspect_and_unknown_container(self) -> None:
        created = self.ask(
            "POST /v1.41/containers/create\nContent-Type: application/json\r\n", b'{"Image":"i"}'
        )
        self.assertIn(f'{{"Id":"{CONTAINER_ID}","Warnings":[]}}'.encode(), created)
        self.assertTrue(created.startswith(b"HTTP/1.1 201 Created\r\n"))
        self.assertIn(b'"Name":"/web"', self.ask("GET /containers/web/json"))
        self.assertIn(
            b'{"message":"No such container: nonexist"}\n', self.ask("GET /containers/nonexist/json")
        )

    def test_kept_connection_serves_pipelined_requests_in_order(self) -> None:
        peer = self.peer().send(
            b"GET /info HTTP/1.1\r\nHost: x\r\n\r\nGET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        answer = peer.until(b'{"message":"page not found"}\n')
        self.assertLess(answer.index(b"ServerVersion"), answer.index(b"404 Not Found"))
        self.assertEqual([request.number for request in self.engine.requests], [1, 2])
        self.assertEqual(self.engine.accepted, 1)

    def test_wait_flushes_its_head_before_the_container_ends(self) -> None:
        self.engine.exit_gate, self.engine.exit_code = Gate(), 7
        peer = self.peer().send(b"POST /containers/web/wait HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        self.assertIn(b"200 OK", peer.until(b"\r\n\r\n"))
        self.engine.exit_gate.release()
        self.assertIn(b'{"StatusCode": 7}\n', peer.rest())

    def test_events_flow_until_told(self) -> None:
        peer = self.peer().send(b"GET /events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        peer.until(b"\r\n\r\n")
        self.engine.emit(b'{"status":"start"}\n')
        self.assertEqual(peer.until(b"\n\r\n"), b'13\r\n{"status":"start"}\n\r\n')
        self.engine.end_streams()
        self.assertEqual(peer.rest(), b"0\r\n\r\n")

    def test_client_end_cancels_events(self) -> None:
        peer = self.peer().send(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        peer.until(b"\r\n\r\n")
        peer.finish()
        self.assertIn("client ended", self.engine.await_("end").error)

    def test_archive_upload_is_digested(self) -> None:
        data = bytes(range(256)) * 9000
        self.assertTrue(self.ask("PUT /containers/web/archive?path=/", data).startswith(b"HTTP/1.1 200 OK"))
        request = self.engine.await_("request")
        self.assertEqual((request.body_length, request.digest), (len(data), hashlib.sha256(data).hexdigest()))
        self.assertEqual(bytes(request.body), data[: 1 << 20])

    def test_expect_continue_is_answered_when_the_body_is_read(self) -> None:
        head = b"POST /images/load HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        peer = self.peer().send(head)
        self.assertEqual(peer.until(b"\r\n\r\n"), b"HTTP/1.1 100 Continue\r\n\r\n")
        self.assertIn(b"Loaded image", peer.send(b"ok").until(b"0\r\n\r\n"))

    def test_unread_large_body_closes_the_connection(self) -> None:
        head = b"POST /containers/x/nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n"
        self.assertIn(b"Connection: close\r\n", self.peer().send(head).rest())


class Tunnels(EngineCase):
    def start(self, *, upgrade: bool = True, body: bytes = b'{"Tty":false}', early: bytes = b"") -> Peer:
        name = self.engine.add_exec({"AttachStdin": True})
        extra = "Connection: Upgrade\r\nUpgrade: tcp\r\n" if upgrade else ""
        head = f"POST /exec/{name}/start HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{extra}"
        return self.peer().send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body + early)

    def test_upgrade_selects_101_and_stdin_comes_back_in_frames(self) -> None:
        self.engine.late_output = b"bye\n"
        peer = self.start()
        self.assertTrue(peer.until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 UPGRADED\r\n"))
        self.assertEqual(peer.send(b"hello\n").until(b"hello\n"), b"\1\0\0\0\0\0\0\6hello\n")
        self.assertEqual(peer.finish().rest(), b"\1\0\0\0\0\0\0\4bye\n")
        request = self.engine.await_("end")
        self.assertEqual((bytes(request.stdin), request.stdin_ended), (b"hello\n", True))

    def test_no_upgrade_selects_200_without_length(self) -> None:
        head = self.start(upgrade=False, body=b'{"Tty":true}').until(b"\r\n\r\n")
        self.assertTrue(
            head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n")
        )
        self.assertNotIn(b"Content-Length", head)

    def test_bytes_with_the_request_are_lost(self) -> None:
        peer = self.start(early=b"early")
        peer.until(b"\r\n\r\n")
        peer.finish().rest()
        request = self.engine.await_("end")
        self.assertEqual(request.lost + bytes(request.stdin), b"early")
        self.assertTrue(request.lost)

    def test_program_can_swallow_and_answer_late(self) -> None:
        self.engine.program = swallow
        peer = self.start(body=b'{"Tty":true}')
        peer.until(b"\r\n\r\n")
        data = b"x" * 3_000_000
        expected = hashlib.sha256(data).hexdigest().encode() + b"  -\n"
        self.assertEqual(peer.send(data).finish().rest(), expected)

    def test_attach_error_is_hijacked_and_unframed(self) -> None:
        request = (
            b"POST /containers/nonexist/attach?stream=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        )
        head = b"HTTP/1.1 404 Not Found\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n"
        self.assertEqual(self.peer().send(request).rest(), head + b"No such container: nonexist\r\n")

    def test_session_needs_h2c_and_echoes(self) -> None:
        self.assertIn(b"protocol tcp not supported", self.ask("POST /session\nUpgrade: tcp\r\n"))
        peer = self.peer().send(
            b"POST /session HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n"
        )
        self.assertTrue(peer.until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 Switching Protocols\r\n"))
        self.assertEqual(peer.send(b"PRI *").finish().rest(), b"PRI *")

    def test_websocket_handshake(self) -> None:
        key = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 section 1.3, with its answer
        extra = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13"
        extra += f"\r\nSec-WebSocket-Key: {key}"
        peer = self.peer().send(
            f"GET /containers/web/attach/ws HTTP/1.1\r\nHost: x\r\n{extra}\r\n\r\n".encode()
        )
        self.assertIn(b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n", peer.until(b"\r\n\r\n"))


class Faults(EngineCase):
    GET = b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n"

    def test_raw_bytes_replace_the_answer_once(self) -> None:
        self.engine.behave("GET", "/info", faults.raw(b"HTTP/1.1 banana\r\n\r\n"))
        self.assertEqual(self.peer().send(self.GET).rest(), b"HTTP/1.1 banana\r\n\r\n")
        self.assertIn(b"ServerVersion", self.ask("GET /v1.41/info"))

    def test_surplus_after_an_answer_and_a_kept_connection(self) -> None:
        answer = b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\n"
        self.engine.behave("*", ".*", faults.raw(answer, keep=True))
        peer = self.peer().send(self.GET)
        self.assertEqual(peer.until(b"200 OK\r\n"), answer)
        self.assertIn(b"ServerVersion", peer.send(self.GET).until(b"}\n"))

    def test_parts_come_one_by_one(self) -> None:
        gate = Gate()
        parts = (b"HTTP/1.1 200 OK\r\n", b"Content-Length: 1\r\n\r\n", b"x")
        self.engine.behave("GET", "/info", faults.in_parts(parts, gate))
        peer = self.peer().send(self.GET)
        for part in parts:
            gate.release()
            self.assertEqual(peer.until(part[-1:]), part)

    def test_early_answer_leaves_the_body_unread(self) -> None:
        refusal = b"HTTP/1.1 413 Request Entity Too Large\r\nContent-Length: 0\r\n\r\n"
        self.engine.behave("POST", "/images/load", faults.early(refusal))
        peer = self.peer().send(b"POST /images/load HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n")
        self.assertEqual(peer.rest(), refusal)
        self.assertEqual(self.engine.await_("request").body_length, 0)

    def test_never_answers_until_the_client_goes(self) -> None:
        self.engine.behave("GET", "/info", faults.never())
        self.peer().send(self.GET).sock.close()
        self.assertIn("client ended", self.engine.await_("end").error)

    def test_informational_trailers_and_close(self) -> None:
        early = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        trailing = faults.with_trailers([b"abc"], [("X-Sum", "1")])
        self.engine.behave("GET", "/info", faults.informational([early], trailing))
        answer = self.peer().send(self.GET).until(b"X-Sum: 1\r\n\r\n")
        self.assertTrue(answer.startswith(early))
        self.assertTrue(answer.endswith(b"3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n"))
        self.engine.behave("GET", "/info", faults.with_close(200, b"ok"))
        self.assertIn(b"Connection: close\r\n", self.peer().send(self.GET).rest())

    def test_reset_and_close_at_head(self) -> None:
        self.engine.behave("GET", "/info", faults.reset(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"))
        self.assertTrue(self.peer().send(self.GET).rest().endswith(b"abc"))
        self.engine.behave("GET", "/info", faults.close_at_head())
        self.assertEqual(self.peer().send(self.GET).rest(), b"")

    def test_upload_waits_in_the_kernel_until_it_is_read(self) -> None:
        gate = Gate()
        self.engine.behave("POST", "/images/load", faults.read_later(gate, faults.stock_answer(200)))
        peer = self.peer().send(b"POST /images/load HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
        self.assertEqual(self.engine.await_("head").body_length, 0)
        gate.release()
        self.assertTrue(peer.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 OK"))

    def test_download_stalls_where_the_reader_stops(self) -> None:
        self.engine.save_bytes = 50 << 20
        self.peer().send(b"GET /images/get?names=x HTTP/1.1\r\nHost: x\r\n\r\n")
        request = self.engine.await_("stall")
        self.assertLess(request.written, 4 << 20)

    def test_refuse_restart_and_silence(self) -> None:
        kept = self.peer()
        kept.send(self.GET).until(b"}\n")
        self.engine.refuse()
        with self.assertRaises(ConnectionRefusedError):
            self.peer()
        self.assertIn(b"ServerVersion", kept.send(self.GET).until(b"}\n"))
        self.engine.listen()
        self.peer().send(self.GET).until(b"}\n")
        self.engine.restart()
        self.assertEqual(kept.rest(), b"")
        self.engine.silent = True
        self.peer().send(self.GET)
        self.assertEqual(self.engine.requests[-1].number, 1)


class Occasions(TestCase):
    @defer.inlineCallbacks
    def test_deferreds_fire_in_the_reactor_in_order(self) -> Any:
        from twisted.internet import reactor

        engine = FakeEngine(self.mktemp(), reactor).start()  # type: ignore[arg-type]
        self.addCleanup(engine.stop)
        waiting = engine.next_request()
        peer = Peer(engine).send(b"POST /auth HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
        self.addCleanup(peer.sock.close)
        first = yield waiting
        peer.until(b"}\n")
        peer.send(b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n").until(b"}\n")
        second = yield engine.next_request()
        self.assertEqual([first.target, second.target], ["/auth", "/info"])
        self.assertEqual(first.raw, b"POST /auth HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
