"""The port takes no more than it must, answers what it cannot read, and writes nothing of it down."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.logger import ILogObserver, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource

from controller.api.site import DEADLINE, IDLE, UNSIGNED_LIMIT, ApiSite
from tests.controller.api.doubles import EVERYTHING, PASSWORD
from tests.controller.api.harness import CLIENT, Harness, read_reply, request_bytes

PATH = "/api/v1/policy-checks"


class BoundsTests(SynchronousTestCase):
    """Bodies, time and connections."""

    def setUp(self) -> None:
        self.harness = Harness()

    def test_an_announced_body_beyond_the_limit_is_refused_before_it_comes(self) -> None:
        connection = self.harness.connect()
        head = request_bytes("POST", PATH, headers={"Content-Length": str(4 * 1024 * 1024 + 1)})
        connection.send(head)
        reply = read_reply(connection.received)
        self.assertEqual((reply.status, reply.json["code"]), (413, "too-large"))
        self.assertEqual(reply.headers["connection"], "close")
        self.assertTrue(connection.transport.disconnecting)
        connection.send(b"x" * 100_000)
        connection.close()
        self.assertIn(b"dfleet_api_refused_bodies_total 1\n", self.harness.request("GET", "/metrics").body)

    def test_an_unannounced_body_is_refused_at_the_limit(self) -> None:
        connection = self.harness.connect()
        fields = {"Transfer-Encoding": "chunked", "Content-Type": "application/json"}
        connection.send(request_bytes("POST", PATH, headers=fields))
        piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        for _ in range(64):
            connection.send(piece)
        self.assertEqual(connection.received, b"")
        connection.send(piece)
        self.assertEqual(read_reply(connection.received).status, 413)
        connection.send(piece + b"0\r\n\r\n")
        self.assertEqual(connection.received.count(b"HTTP/1.1"), 1)

    def test_without_a_sign_in_only_small_bodies_are_taken(self) -> None:
        wanted = {"user": "admin", "password": PASSWORD}
        self.assertEqual(self.harness.request("POST", "/api/v1/sessions", wanted, token=None).status, 201)
        connection = self.harness.connect()
        raw = b"x" * (UNSIGNED_LIMIT + 1)
        connection.send(request_bytes("POST", "/api/v1/sessions", token=None, raw=raw))
        self.assertEqual(read_reply(connection.received).status, 413)

    def test_a_request_that_does_not_end_is_ended(self) -> None:
        connection = self.harness.connect()
        connection.send(request_bytes("POST", PATH, headers={"Content-Length": "100"}))
        for _ in range(int(DEADLINE / 10) - 1):
            self.harness.clock.advance(10)
            connection.send(b" ")
        self.assertEqual(connection.received, b"")
        self.harness.clock.advance(10)
        self.assertEqual(read_reply(connection.received).json["code"], "too-slow")
        self.assertTrue(connection.transport.disconnecting)

    def test_a_request_that_is_answered_leaves_no_timer(self) -> None:
        connection = self.harness.connect()
        for _ in range(3):
            connection.send(request_bytes("GET", "/livez"))
        connection.close()
        self.assertEqual(self.harness.clock.getDelayedCalls(), [])

    def test_a_client_that_goes_in_the_middle_leaves_nothing(self) -> None:
        connection = self.harness.connect()
        connection.send(request_bytes("POST", PATH, headers={"Content-Length": "100"}) + b"{")
        connection.close()
        self.assertEqual(self.harness.clock.getDelayedCalls(), [])

    def test_an_idle_connection_is_closed(self) -> None:
        connection = self.harness.connect()
        connection.send(request_bytes("GET", "/livez"))
        self.harness.clock.advance(IDLE - 1)
        self.assertFalse(connection.transport.disconnecting)
        self.harness.clock.advance(1)
        self.assertTrue(connection.transport.disconnecting)
        connection.close()

    def test_connections_are_counted(self) -> None:
        api = self.harness.api
        site = ApiSite(api.resource(), self.harness.clock, api.dispatcher.metrics, connections=2)
        self.harness.site = site
        first = self.harness.connect()
        self.harness.connect()
        self.assertIs(site.buildProtocol(CLIENT), None)
        first.close()
        self.harness.connect().send(request_bytes("GET", "/livez"))

    def test_pipelined_requests_are_answered_in_order(self) -> None:
        connection = self.harness.connect()
        connection.send(request_bytes("GET", "/livez") + request_bytes("GET", "/api/v1/locks"))
        first, second = connection.received.split(b"HTTP/1.1 200 OK")[1:]
        self.assertIn(b'"alive":true', first)
        self.assertIn(b'"items"', second)

    def test_http_2_is_not_offered(self) -> None:
        self.assertEqual(self.harness.site.acceptableProtocols(), [b"http/1.1"])


class ReadingTests(SynchronousTestCase):
    """What Klein or twisted.web would answer with a stack trace or in HTML."""

    def setUp(self) -> None:
        self.harness = Harness()

    def test_paths_and_hosts_that_cannot_be_read(self) -> None:
        for path, host in (
            ("/api/v1/%ff", "a"),
            ("/%c3%28", "a"),
            ("/livez", "\xff"),
            ("/livez", "a" * 70),
            ("/livez", "a..b"),
        ):
            reply = self.harness.request("GET", path, headers={"Host": host})
            self.assertEqual((reply.status, reply.json["code"]), (400, "unreadable"), (path, host))
        connection = self.harness.connect()
        connection.send(b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
        self.assertEqual(read_reply(connection.received).status, 400)

    def test_hosts_that_can_be_read(self) -> None:
        for host in ("controller", "[::1]:8083", "192.0.2.1", "b\xc3\xbccher.example:1"):
            self.assertEqual(self.harness.request("GET", "/livez", headers={"Host": host}).status, 200, host)
        connection = self.harness.connect()
        connection.send(b"GET /livez HTTP/1.0\r\n\r\n")
        self.assertEqual(read_reply(connection.received).status, 200)

    def test_unknown_paths(self) -> None:
        for path in (
            "/",
            "/api",
            "/api/v1/",
            "/api//v1/locks",
            "/api/v1/locks/",
            "/api/v1/locks/a%2fb",
            "/x",
        ):
            reply = self.harness.request("GET", path)
            self.assertEqual((reply.status, reply.json["code"]), (404, "no-such-path"), path)

    @given(
        st.sampled_from(["GET", "HEAD", "OPTIONS", "POST", "PUT", "get", "X-Y"]),
        st.lists(
            st.sampled_from(
                ["api", "v1", "livez", "audit", "stream", "%ff", "%00", "..", "", "%2f", "*", "é"]
            ),
            max_size=5,
        ),
    )
    @settings(max_examples=300, deadline=None)
    def test_no_path_gives_anything_but_an_answer(self, method: str, parts: list[str]) -> None:
        # Anything logged as an error fails the test.
        reply = self.harness.request(method, "/" + "/".join(parts), token=None)
        self.assertLess(reply.status, 500)

    @given(st.lists(st.binary(min_size=1, max_size=40), max_size=6))
    @settings(max_examples=200, deadline=None)
    def test_no_bytes_break_the_site(self, pieces: list[bytes]) -> None:
        connection = self.harness.connect()
        connection.send(b"GET /livez HTTP/1.1\r\n")
        for piece in pieces:
            if not connection.transport.disconnecting:
                connection.send(piece)
        connection.close()

    def test_other_paths_are_for_somebody_else(self) -> None:
        class Page(Resource):
            isLeaf = True  # noqa: N815

            def render_GET(self, request: Any) -> bytes:  # noqa: N802
                return b"page " + b"/".join(request.postpath)

        root = Resource()
        root.putChild(b"console", Page())
        api = self.harness.api
        self.harness.site = ApiSite(api.resource(root), self.harness.clock, api.dispatcher.metrics)
        page = self.harness.request("GET", "/console/a/b", token=None)
        self.assertEqual((page.status, page.body), (200, b"page a/b"))
        self.assertEqual(self.harness.request("GET", "/livez", token=None).status, 200)
        self.assertEqual(self.harness.request("GET", "/api/v1/none").json["code"], "no-such-path")


class LogTests(SynchronousTestCase):
    """Nothing that came stands in a log."""

    def test_no_secret_reaches_a_log(self) -> None:
        events: list[Any] = []
        keep = cast("ILogObserver", events.append)
        globalLogPublisher.addObserver(keep)
        self.addCleanup(globalLogPublisher.removeObserver, keep)
        harness = Harness()
        harness.site.doStart()
        self.addCleanup(harness.site.doStop)
        harness.request("POST", "/api/v1/sessions", {"user": "admin", "password": PASSWORD}, token=None)
        harness.request("POST", "/api/v1/sessions", {"user": "admin", "password": "hunter22"}, token=None)
        harness.request("GET", "/api/v1/locks")
        harness.request("GET", f"/api/v1/locks?access_token={EVERYTHING}", token=None)
        harness.world.fleet.trouble = RuntimeError("of the store")
        harness.request("GET", "/api/v1/defenders")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        written = repr(events)
        for secret in (PASSWORD, "hunter22", EVERYTHING, "dfs1.EXAMPLE"):
            self.assertNotIn(secret, written)
