"""What events say of the bodies of calls, and that the bodies arrive as they were sent."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred

from defender.contract.particulars import MAX_REQUEST_BODY
from tests.defender.proxy.house import CREATE, LIST, SWITCH, House, HouseCase, status_of

EXEC_CREATE = b"POST /v1.41/containers/abc/exec HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def with_length(head: bytes, body: bytes) -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def answer(status: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        status,
        len(body),
        body,
    )


class ParticularsTests(HouseCase):
    def test_image_and_command_of_a_new_container_and_its_id(self) -> None:
        client = self.house.client()
        body = json.dumps(
            {
                "Image": "nginx:1.27",
                "Cmd": ["serve", "--password=hunter2"],
                "Env": ["TOKEN=hunter2"],
                "HostConfig": {"Privileged": True, "Binds": ["/srv:/data"]},
            }
        ).encode()
        client.deliver(with_length(CREATE, body))
        self.assertTrue(self.house.engine.take().endswith(b"\r\n\r\n" + body))
        self.house.engine.deliver(answer(b"201 Created", b'{"Id":"' + b"ab" * 32 + b'","Warnings":[]}'))
        self.assertEqual(status_of(client.take()), 201)
        attempt, result = self.house.events.kept
        for event in (attempt, result):
            self.assertEqual(event["req"]["body"]["image"], "nginx:1.27")
            self.assertTrue(event["req"]["body"]["privileged"])
            self.assertIn("/srv:/data", event["req"]["body"]["mounts"])
            self.assertNotIn("hunter2", json.dumps(event))
            self.assertTrue(any(name.startswith("body.") for name in event["redacted"]))
        self.assertEqual(result["result"]["answer"]["id"], "ab" * 32)

    def test_body_that_is_there_is_not_waited_for_while_the_engine_is(self) -> None:
        self.house.pool.resize(limit=512, idle_limit=0)
        opened: Deferred[Any] = Deferred()
        self.house.pool._connect = lambda: opened
        client = self.house.client()
        head = b"POST /v1.41/auth HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        client.deliver(head + b"Content-Length: 2\r\n\r\n{")
        client.deliver(b"}")
        self.house.advance(self.house.proxy.limits.body_timeout + 2)
        self.assertEqual(client.take(), b"")
        opened.errback(TimeoutError())
        self.assertEqual(status_of(client.take()), 504)

    def test_command_line_of_an_exec_in_chunks_that_drip(self) -> None:
        client = self.house.client()
        client.deliver(EXEC_CREATE + b"Transfer-Encoding: chunked\r\n\r\n")
        for byte in b'14\r\n{"Cmd":["id","-un"]}\r\n0\r\n\r\n':
            self.assertEqual(self.house.engine.take(), b"")
            client.deliver(bytes([byte]))
        sent = self.house.engine.take()
        self.assertTrue(sent.endswith(b'\r\n\r\n14\r\n{"Cmd":["id","-un"]}\r\n0\r\n\r\n'))
        self.assertEqual(self.house.events.kept[0]["req"]["body"]["command"], "id -un")

    def test_empty_body_in_chunks(self) -> None:
        client = self.house.client()
        client.deliver(CREATE + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        self.assertTrue(self.house.engine.take().endswith(b"\r\n\r\n0\r\n\r\n"))

    def test_request_behind_the_body_is_served_after_it(self) -> None:
        client = self.house.client()
        client.deliver(with_length(CREATE, b"{}") + LIST)
        self.house.engine.deliver(answer(b"201 Created", b'{"Id":"1"}'))
        self.assertIn(b"GET /v1.41/containers/json", self.house.engine.take())

    def test_command_behind_padding_is_refused(self) -> None:
        client = self.house.client()
        size = MAX_REQUEST_BODY + 50_000
        client.deliver(CREATE + b"Content-Length: %d\r\n\r\n" % size)
        for _ in range(MAX_REQUEST_BODY // 16384 + 1):
            client.deliver(b" " * 16384)
        answer = client.take()
        self.assertEqual(status_of(answer), 413)
        self.assertIn(b"can be recorded", answer)
        self.assertEqual(self.house.engine.take(), b"")
        self.assertEqual([event["phase"] for event in self.house.events.kept], ["result"])

    def test_where_the_record_is_best_effort_it_streams_on_and_says_so(self) -> None:
        self.house.proxy.strict = False
        self.stream_on(CREATE)

    def test_large_secret_streams_on(self) -> None:
        self.stream_on(CREATE.replace(b"/containers/", b"/secrets/"))

    def stream_on(self, head: bytes) -> None:
        client = self.house.client()
        size = MAX_REQUEST_BODY + 50_000
        client.deliver(head + b"Content-Length: %d\r\n\r\n" % size)
        sent = 0
        while sent < size:
            part = min(20_000, size - sent)
            client.deliver(b"x" * part)
            sent += part
        forwarded = self.house.engine.take()
        self.assertEqual(forwarded.count(b"x", forwarded.index(b"\r\n\r\n")), size)
        self.assertEqual(self.house.events.kept[0]["req"]["body"], {"body": "too large"})

    def test_client_that_ends_within_the_body(self) -> None:
        client = self.house.client()
        client.deliver(CREATE + b"Content-Length: 10\r\n\r\n{")
        client.end()
        self.assertEqual(status_of(client.take()), 400)
        self.assertEqual(self.house.engine.take(), b"")
        self.assertEqual([event["phase"] for event in self.house.events.kept], ["result"])

    def test_broken_chunks_are_refused_before_the_engine_hears(self) -> None:
        client = self.house.client()
        client.deliver(CREATE + b"Transfer-Encoding: chunked\r\n\r\nnot hex\r\n")
        self.assertEqual(status_of(client.take()), 400)
        self.assertEqual(self.house.engine.take(), b"")

    def test_why_the_engine_refused(self) -> None:
        client = self.house.client()
        client.deliver(with_length(CREATE, b'{"Image":"nope"}'))
        self.house.engine.deliver(answer(b"404 Not Found", b'{"message":"No such image: nope"}'))
        self.assertIn(b"No such image", client.take())
        self.assertEqual(self.house.events.last()["result"]["answer"]["message"], "No such image: nope")


IDENTITY = "ab" * 32
EXEC_ID = "cd" * 32


class ObjectsTests(HouseCase):
    """Later calls are recorded with what earlier ones told."""

    def setUp(self) -> None:
        super().setUp()
        self.client = self.house.client()

    def call(self, request: bytes, reply: bytes) -> dict[str, Any]:
        self.client.deliver(request)
        self.house.engine.deliver(reply)
        self.client.take()
        return self.house.events.last()

    def create(self) -> dict[str, Any]:
        request = with_length(CREATE.replace(b"/create", b"/create?name=web"), b'{"Image":"nginx"}')
        return self.call(request, answer(b"201 Created", b'{"Id":"%s"}' % IDENTITY.encode()))

    def bare(
        self, method: str, path: str, reply: bytes = b"HTTP/1.1 204 No Content\r\n\r\n"
    ) -> dict[str, Any]:
        return self.call(f"{method} /v1.41{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), reply)

    def test_container_is_named_from_its_creation_on(self) -> None:
        known = {"id": IDENTITY, "name": "web", "image": "nginx"}
        self.assertEqual(self.create()["req"]["container"], known)
        for reference in ("web", IDENTITY, IDENTITY[:12]):
            event = self.bare("POST", f"/containers/{reference}/start")
            self.assertEqual(event["req"]["container"], known)
        attempt = self.house.events.kept[-2]
        self.assertEqual((attempt["phase"], attempt["req"]["container"]), ("attempt", known))

    def test_container_that_was_inspected(self) -> None:
        body = b'{"Id":"%s","Name":"/db","Config":{"Image":"postgres:17"}}' % IDENTITY.encode()
        self.bare("GET", "/containers/db/json", answer(b"200 OK", body))
        event = self.bare("POST", f"/containers/{IDENTITY}/stop")
        self.assertEqual(event["req"]["container"]["name"], "db")
        self.assertEqual(event["req"]["container"]["image"], "postgres:17")

    def test_renamed_and_removed(self) -> None:
        self.create()
        self.bare("POST", "/containers/web/rename?name=old")
        self.assertEqual(self.bare("POST", "/containers/old/start")["req"]["container"]["id"], IDENTITY)
        event = self.bare("DELETE", "/containers/old")
        self.assertEqual(event["req"]["container"]["name"], "old")
        self.assertNotIn("container", self.bare("POST", "/containers/old/start")["req"])

    def test_engine_knows_it_no_more(self) -> None:
        self.create()
        self.bare(
            "POST", "/containers/web/start", answer(b"404 Not Found", b'{"message":"No such container"}')
        )
        self.assertNotIn("container", self.bare("POST", "/containers/web/start")["req"])

    def test_what_is_over_is_forgotten(self) -> None:
        """Else the memory of a host that runs short-lived containers would hold nothing else."""
        objects = self.house.proxy.trail.objects
        self.create()
        exited = answer(b"200 OK", b'{"StatusCode":0}')
        self.bare("POST", "/containers/web/wait?condition=not-running", exited)
        self.assertEqual(len(objects), 1)
        event = self.bare("POST", "/containers/web/wait?condition=removed", exited)
        self.assertEqual((event["req"]["container"]["name"], len(objects)), ("web", 0))
        self.create()
        request = with_length(EXEC_CREATE.replace(b"/abc/", b"/web/"), b'{"Cmd":["id"]}')
        self.call(request, answer(b"201 Created", b'{"Id":"%s"}' % EXEC_ID.encode()))
        path = f"/exec/{EXEC_ID}/json"
        for running, code, left in ((b"false", b"null", 2), (b"true", b"null", 2), (b"false", b"7", 1)):
            body = b'{"ID":"%s","Running":%s,"ExitCode":%s}' % (EXEC_ID.encode(), running, code)
            event = self.bare("GET", path, answer(b"200 OK", body))
            self.assertEqual(event["req"]["container"]["name"], "web")
            self.assertEqual(len(objects), left, body)

    def test_command_and_container_of_an_exec(self) -> None:
        self.create()
        request = with_length(
            EXEC_CREATE.replace(b"/abc/", b"/web/"), b'{"Cmd":["psql","--password=hunter2","-c","x"]}'
        )
        self.call(request, answer(b"201 Created", b'{"Id":"%s"}' % EXEC_ID.encode()))
        start = (
            f"POST /v1.41/exec/{EXEC_ID}/start HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            "Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 2\r\n\r\n{}"
        )
        before = len(self.house.events.kept)
        self.call(start.encode(), SWITCH)
        self.house.proxy.trail.objects.forget_container("web")  # by another connection, meanwhile
        self.client.lose()
        self.house.engine.lose()
        events = self.house.events.kept[before:]
        self.assertEqual([event["phase"] for event in events], ["attempt", "result", "stream_end"])
        for event in events:
            self.assertEqual(event["req"]["container"]["name"], "web")
            self.assertTrue(event["req"]["body"]["command"].startswith("psql"))
            self.assertIn("body.command", event["redacted"])
        self.assertNotIn("hunter2", json.dumps(self.house.events.kept))


class TurnedDownTests(HouseCase):
    def test_call_beyond_the_share_of_the_engine_leaves_no_attempt(self) -> None:
        house = self.house = House("/state", settings="[limits]\nengine_connections_per_user = 1\n")
        self.addCleanup(house.stop)
        waiting = house.client()
        waiting.deliver(b"GET /v1.41/events HTTP/1.1\r\nHost: x\r\n\r\n")
        client = house.client()
        client.deliver(b"POST /v1.41/containers/web/start HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertEqual(status_of(client.take()), 429)
        (event,) = house.events.kept
        self.assertEqual((event["phase"], event["result"]["status"]), ("result", 429))
        self.assertEqual(event["decision"]["rule"], "limits.engine_connections_per_user")
