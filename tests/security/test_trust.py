"""Authorities that are no longer trusted: who came in by them goes."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

from twisted.internet.defer import inlineCallbacks
from twisted.internet.threads import deferToThread

from tests.fakes.authority import TestAuthority
from tests.security.running import DefenderCase

DENIED = b"GET /v1.41/nowhere HTTP/1.1\r\nHost: x\r\n\r\n"


class TrustTests(DefenderCase):
    """`defenderctl pki init --replace`, or a line taken out of client-ca.pem, and a reload."""

    def setUp(self) -> None:
        super().setUp()
        self.authority = TestAuthority()
        self.files = self.authority.write_server(self.state / "tls")
        text = (self.state / "defender.toml").read_text()
        text = text.replace('mode = "unix"', 'mode = "tcp"\ntcp = ["127.0.0.1:0"]')
        (self.state / "defender.toml").write_text(text)

    def connect(self) -> ssl.SSLSocket:
        listeners: Any = self.defender.listener.status()["listeners"]
        port = int(listeners[0]["bound"][0].rpartition(":")[2])
        paths = self.authority.write_user(self.state / "user", self.authority.user("bruce"))
        context = ssl.create_default_context(cafile=str(paths.ca))
        context.load_cert_chain(paths.certificate_chain, paths.private_key)
        raw = socket.create_connection(("127.0.0.1", port), 10)
        self.addCleanup(raw.close)
        return context.wrap_socket(raw, server_hostname="localhost")

    @staticmethod
    def ask(client: ssl.SSLSocket) -> bytes:
        try:
            client.sendall(DENIED)
            return client.recv(12)
        except (ssl.SSLError, OSError):
            return b""

    @inlineCallbacks
    def test_sessions_end_with_their_authority(self) -> Any:
        yield self.start().listener.started
        client = yield deferToThread(self.connect)
        self.assertEqual((yield deferToThread(self.ask, client)), b"HTTP/1.1 403")
        anchors = Path(self.files.client_ca)
        other = TestAuthority().write_server(self.state / "other")
        before = anchors.read_bytes()
        # Another one beside it changes nothing for those who are in.
        anchors.write_bytes(before + Path(other.client_ca).read_bytes())
        yield self.defender.reload()
        client.recv(4096)
        self.assertEqual((yield deferToThread(self.ask, client)), b"HTTP/1.1 403")
        anchors.write_bytes(Path(other.client_ca).read_bytes())
        told = yield self.defender.reload()
        self.assertIn("an authority of clients is no longer trusted: TLS connections cut: 1", told.said)
        client.recv(4096)
        self.assertEqual((yield deferToThread(self.ask, client)), b"")
