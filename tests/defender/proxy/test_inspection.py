"""From a head to an inquiry, and from an inquiry to the forwarded head."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.contract.actions import OPERATIONS, Body
from defender.http1.errors import HTTPError
from defender.http1.head import Framing, parse_request_head
from defender.proxy.inspection import (
    BodyPlan,
    Inquiry,
    Readings,
    forwarded_head,
    forwarded_version,
    inspect,
    media_type,
)


def inquiry(text: str) -> Inquiry:
    return inspect(parse_request_head(text.replace("\n", "\r\n").encode("latin-1")), discard_limit=1000)


def forwarded(text: str) -> bytes:
    read = inquiry(text)
    return forwarded_head(read, forwarded_version(read, (1, 41)))


class MediaTypeTests(SynchronousTestCase):
    def test_type_without_parameters(self) -> None:
        for value in (b"application/json", b"APPLICATION/Json; charset=utf-8", b'application/json ;a="b;c" '):
            self.assertEqual(media_type(value), "application/json", value)
        self.assertEqual(media_type(None), "")

    def test_malformed_types_are_refused(self) -> None:
        for value in (b"", b"json", b"application/json; charset", b"a/b; c=d e", b'a/b; c="d', b"a/b/c"):
            self.assertRaises(HTTPError, media_type, value)

    @settings(max_examples=300)
    @given(st.binary(max_size=60))
    def test_any_value_is_a_type_or_an_error(self, value: bytes) -> None:
        try:
            read = media_type(value)
        except HTTPError as error:
            self.assertEqual(error.status, 400)
        else:
            self.assertEqual(read, read.lower())
            self.assertEqual(read.count("/"), 1)


class ForwardingTests(SynchronousTestCase):
    def test_one_reading_of_headers(self) -> None:
        """Of a repeated header the Engine reads the first; only that one is sent."""
        head = forwarded(
            "POST /v1.41/images/x/push HTTP/1.1\nHost: x\nX-Registry-Auth: one\nX-Registry-Auth: two\n"
            "X-Meta-A: b\nTransfer_Encoding: chunked\nX-Forwarded-For: y\nContent-Length: 0\n\n"
        )
        self.assertEqual(
            head,
            b"POST /v1.41/images/x/push HTTP/1.1\r\nHost: docker\r\nx-registry-auth: one\r\nx-meta-a: b\r\n"
            b"Content-Length: 0\r\n\r\n",
        )

    def test_session_headers_may_repeat(self) -> None:
        head = forwarded(
            "POST /session HTTP/1.1\nHost: x\nUpgrade: h2c\nX-Docker-Expose-Session-Grpc-Method: a\n"
            "X-Docker-Expose-Session-Grpc-Method: b\n\n"
        )
        self.assertEqual(head.count(b"x-docker-expose-session-grpc-method"), 2)
        self.assertIn(b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n", head)

    def test_debug_is_forwarded_without_a_version(self) -> None:
        self.assertTrue(
            forwarded("GET /debug/vars HTTP/1.1\nHost: x\n\n").startswith(b"GET /debug/vars HTTP/1.1")
        )

    def test_every_operation_gets_one_framing(self) -> None:
        for operation in OPERATIONS:
            path = operation.template
            for variable in ("{name:.*}", "{id:.*}", "{id:.+}", "{name}", "{id}", "{checkpoint}"):
                path = path.replace(variable, "abc")
            content_type = "application/json" if operation.body is Body.JSON else "application/x-tar"
            read = inquiry(
                f"{operation.method} {path} HTTP/1.1\nHost: x\nContent-Type: {content_type}\n"
                "Content-Length: 5\nUpgrade: tcp\n\n"
            )
            self.assertIs(read.operation, operation)
            head = forwarded_head(read, (1, 41))
            carries = operation.body in (Body.JSON, Body.TAR)
            self.assertIs(read.body, BodyPlan.FORWARD if carries else BodyPlan.DISCARD, path)
            self.assertEqual(head.count(b"Content-Length: 5") == 1, carries, path)
            self.assertNotIn(b"Transfer-Encoding", head)
            self.assertEqual(
                b"Upgrade" in head, operation.hijack and operation.body in (Body.JSON, Body.NONE)
            )

    def test_only_bodiless_reads_are_repeatable(self) -> None:
        self.assertTrue(inquiry("GET /info HTTP/1.1\nHost: x\n\n").repeatable)
        self.assertTrue(inquiry("HEAD /_ping HTTP/1.1\nHost: x\n\n").repeatable)
        self.assertFalse(inquiry("POST /containers/a/stop HTTP/1.1\nHost: x\n\n").repeatable)
        self.assertFalse(
            inquiry("GET /containers/a/attach/ws HTTP/1.1\nHost: x\nUpgrade: websocket\n\n").repeatable
        )

    def test_chunked_stays_chunked(self) -> None:
        read = inquiry("POST /build HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\n")
        self.assertIs(read.head.framing, Framing.CHUNKED)
        head = forwarded_head(read, (1, 41))
        self.assertTrue(
            head.endswith(b"Content-Type: application/x-tar\r\nTransfer-Encoding: chunked\r\n\r\n")
        )


class ReadingsTests(SynchronousTestCase):
    def test_heads_with_secrets_are_not_kept(self) -> None:
        readings = Readings(max_headers=100, max_head=65536, discard_limit=65536)
        for line, header, kept in (
            ("GET /v1.41/containers/json?all=1", "User-Agent: x", True),
            ("POST /v1.41/images/create?fromImage=x", "X-Registry-Auth: hunter2", False),
            ("POST /v1.41/build?buildargs=%7B%22TOKEN%22%3A%22hunter2%22%7D", "User-Agent: x", False),
            ("POST /v1.41/build?remote=https%3A%2F%2Fbruce%3Ahunter2%40h%2Fx", "User-Agent: x", False),
        ):
            raw = f"{line} HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode()
            self.assertIs(readings.read(raw) is readings.read(raw), kept, line)
