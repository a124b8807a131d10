"""HTTPS on a real socket: which TLS is spoken, and that nobody resumes a session."""

from __future__ import annotations

import socket
import ssl
import warnings
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding
from twisted.internet import reactor as installed
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from controller.front import Front, https_context
from tests.fakes.authority import TestAuthority
from tests.fakes.fleet import controller_of, opened

reactor: Any = installed
PKI = TestAuthority()


class Hello(Resource):
    isLeaf = True  # noqa: N815 - Twisted's name

    def render_GET(self, request: Any) -> bytes:  # noqa: N802 - Twisted's name
        return b"hello"


class FrontTests(TestCase):
    def setUp(self) -> None:
        own = controller_of(PKI)
        self.front = Front(reactor, "127.0.0.1:0", https_context(own.chain, own.key), Site(Hello()), opened)
        self.front.startService()
        self.addCleanup(self.front.stopService)

    def client(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=PKI.root.public_bytes(Encoding.PEM).decode())

    def exchange(self, context: ssl.SSLContext) -> tuple[str | None, bytes]:
        with (
            socket.create_connection(("127.0.0.1", self.front.port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as stream,
        ):
            stream.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            data = b""
            while chunk := stream.recv(4096):
                data += chunk
            return stream.version(), data

    async def test_the_newest_tls_and_the_one_before(self) -> None:
        for highest, version in ((ssl.TLSVersion.TLSv1_3, "TLSv1.3"), (ssl.TLSVersion.TLSv1_2, "TLSv1.2")):
            context = self.client()
            context.maximum_version = highest
            spoken, data = await deferToThread(self.exchange, context)
            self.assertEqual(spoken, version)
            self.assertTrue(data.endswith(b"hello"))

    async def test_nothing_older(self) -> None:
        context = self.client()
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        await self.assertFailure(deferToThread(self.exchange, context), ssl.SSLError)

    async def test_another_certificate_counts_for_those_who_come_after(self) -> None:
        other = TestAuthority()
        own = controller_of(other)
        self.front.context = https_context(own.chain, own.key)
        await self.assertFailure(deferToThread(self.exchange, self.client()), ssl.SSLCertVerificationError)
