"""Outbound TLS: only the peer that was meant gets a connection, and nobody else a byte."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from cryptography import x509
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from controller.peer_tls import (
    Allowance,
    ClientIdentity,
    PeerAgentEndpoints,
    PeerEndpoint,
    PeerError,
    host_endpoint,
    peer_context,
)
from defender.contract.peer_check import fleet_peer
from tests.controller.sinks.receivers import Certificates, SyslogServer, reactor
from tests.fakes.authority import Credentials, TestAuthority


class Eager(Protocol):
    """Sends its secret the moment that it is connected."""

    def connectionMade(self) -> None:
        self.lost: Deferred[None] = Deferred()
        self.heard = b""
        self.transport.write(b"6 secret")  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        self.heard += data

    def connectionLost(self, reason: Any = None) -> None:
        self.lost.callback(None)


class PeerTests(TestCase):
    """A real server, and what each of its certificates gets."""

    timeout = 60.0

    def setUp(self) -> None:
        self.certificates = Certificates()
        self.built: list[Eager] = []
        outer = self

        class Protocols(Factory):
            noisy = False

            def buildProtocol(self, address: object) -> Eager:
                protocol = Eager()
                outer.built.append(protocol)
                return protocol

        self.factory = Protocols()

    def serve(self, credentials: Credentials, client_ca: bytes = b"") -> SyslogServer:
        server = SyslogServer(credentials, client_ca)
        self.addCleanup(server.stop)
        return server

    async def end(self, protocol: Any) -> None:
        protocol.transport.loseConnection()
        await protocol.lost

    async def refused(self, server: SyslogServer, host: str = "localhost", anchors: bytes = b"") -> str:
        """Connect, expect to be refused, and that nothing was sent; return the reason."""
        context = peer_context(anchors or self.certificates.anchors)
        endpoint = host_endpoint(reactor, host, server.port, context)
        with self.assertRaises(PeerError) as raised:
            await endpoint.connect(self.factory)
        await server.stop()
        self.assertEqual((self.built, server.octets, server.frames), ([], 0, []))
        return str(raised.exception)

    async def test_the_peer_that_was_meant_is_served(self) -> None:
        server = self.serve(self.certificates.proper())
        for host in ("localhost", "127.0.0.1"):
            endpoint = host_endpoint(reactor, host, server.port, peer_context(self.certificates.anchors))
            protocol = await endpoint.connect(self.factory)
            await server.until(len(self.built))
            await self.end(protocol)
        self.assertEqual(server.frames, [b"secret"] * 2)

    async def test_a_certificate_without_names_is_refused(self) -> None:
        """Twisted 26.4 to 26.10 accept it for every host."""
        reason = await self.refused(self.serve(self.certificates.odd(None)))
        self.assertIn("(san)", reason)
        self.assertIn("subject alternative name", reason)

    async def test_an_empty_list_of_names_is_none(self) -> None:
        self.assertIn("(san)", await self.refused(self.serve(self.certificates.odd([]))))

    async def test_another_hosts_certificate_is_refused(self) -> None:
        names = [x509.DNSName("siem.example.com"), x509.IPAddress(ip_address("10.0.0.1"))]
        reason = await self.refused(self.serve(self.certificates.odd(names)))
        self.assertIn("it is not for 'localhost'; it names siem.example.com, 10.0.0.1", reason)

    async def test_a_name_is_no_address(self) -> None:
        names = [x509.DNSName("127.0.0.1")]
        self.assertIn(
            "(host-name)", await self.refused(self.serve(self.certificates.odd(names)), "127.0.0.1")
        )

    async def test_a_client_certificate_is_no_server(self) -> None:
        reason = await self.refused(self.serve(self.certificates.pki.user()))
        self.assertIn("its certificate does not hold: unsuitable certificate purpose", reason)

    async def test_a_foreign_authority_is_refused(self) -> None:
        server = self.serve(TestAuthority().server())
        self.assertIn("its certificate does not hold", await self.refused(server))

    async def test_an_expired_certificate_is_refused(self) -> None:
        leaf = self.certificates
        credentials = leaf.pki.odd("expired")
        self.assertIn("its certificate does not hold", await self.refused(self.serve(credentials)))

    async def test_the_machines_authorities_do_not_know_ours(self) -> None:
        server = self.serve(self.certificates.proper())
        endpoint = host_endpoint(reactor, "localhost", server.port, peer_context(None))
        with self.assertRaises(PeerError):
            await endpoint.connect(self.factory)
        await server.stop()
        self.assertEqual(self.built, [])

    async def test_a_program_of_the_fleet_is_known_by_its_role(self) -> None:
        server = self.serve(self.certificates.proper())
        tcp = HostnameEndpoint(reactor, "127.0.0.1", server.port)
        context = peer_context(self.certificates.anchors, minimum="1.3")
        domain = self.certificates.pki.trust_domain
        protocol = await PeerEndpoint(reactor, tcp, context, fleet_peer(domain, "defender")).connect(
            self.factory
        )
        await self.end(protocol)
        with self.assertRaises(PeerError) as raised:
            await PeerEndpoint(reactor, tcp, context, fleet_peer(domain, "controller")).connect(self.factory)
        self.assertIn("(spiffe-role)", str(raised.exception))
        self.assertEqual(len(self.built), 1)

    async def test_a_peer_may_ask_for_our_certificate(self) -> None:
        user = self.certificates.pki.user()
        server = self.serve(self.certificates.proper(), self.certificates.anchors)
        identity = ClientIdentity(user.chain_pem, user.key_pem)
        context = peer_context(self.certificates.anchors, identity=identity)
        protocol = await host_endpoint(reactor, "localhost", server.port, context).connect(self.factory)
        await server.until(1)
        await self.end(protocol)
        self.assertNotIn("PRIVATE", repr(identity))

    async def test_a_peer_that_says_nothing_is_given_up(self) -> None:
        server = self.serve(self.certificates.proper())
        silent = reactor.listenTCP(0, _Silent(), interface="127.0.0.1")
        self.addCleanup(silent.stopListening)
        context = peer_context(self.certificates.anchors)
        endpoint = host_endpoint(reactor, "127.0.0.1", silent.getHost().port, context, timeout=0.2)
        with self.assertRaises(PeerError) as raised:
            await endpoint.connect(self.factory)
        self.assertEqual(str(raised.exception), "127.0.0.1: no connection and handshake within 0.2 s")
        await _Silent.ended
        await server.stop()

    async def test_an_address_that_never_answers_is_given_up(self) -> None:
        clock = MemoryReactorClock()
        never = HostnameEndpoint(clock, "127.0.0.1", 6514)
        peer = fleet_peer("defender.fleet", "controller")
        connecting = PeerEndpoint(clock, never, peer_context(None), peer, timeout=5).connect(self.factory)
        clock.advance(5)
        with self.assertRaises(PeerError) as raised:
            await connecting
        self.assertIn("no connection and handshake within 5 s", str(raised.exception))

    async def test_nobody_there(self) -> None:
        server = self.serve(self.certificates.proper())
        await server.stop()
        endpoint = host_endpoint(reactor, "127.0.0.1", server.port, peer_context(self.certificates.anchors))
        with self.assertRaises(PeerError) as raised:
            await endpoint.connect(self.factory)
        self.assertIn("127.0.0.1: cannot connect", str(raised.exception))

    async def test_a_server_without_tls(self) -> None:
        plain = reactor.listenTCP(0, _Silent(b"HTTP/1.1 400 Bad Request\r\n\r\n"), interface="127.0.0.1")
        self.addCleanup(plain.stopListening)
        context = peer_context(self.certificates.anchors)
        endpoint = host_endpoint(reactor, "127.0.0.1", plain.getHost().port, context)
        with self.assertRaises(PeerError) as raised:
            await endpoint.connect(self.factory)
        self.assertIn("the TLS handshake failed", str(raised.exception))
        await _Silent.ended

    async def test_a_peer_may_not_send_without_end(self) -> None:
        server = self.serve(self.certificates.proper())
        server.on_frame = lambda frames: frames.transport.write(b"x" * 1000)  # type: ignore[union-attr]
        context = peer_context(self.certificates.anchors)
        endpoint = host_endpoint(reactor, "localhost", server.port, context, allowance=Allowance(999))
        protocol: Any = await endpoint.connect(self.factory)
        await protocol.lost
        self.assertLess(len(protocol.heard), 1000)


class _Silent(Factory):
    noisy = False
    ended: Deferred[None]

    def __init__(self, words: bytes = b"") -> None:
        self._words = words
        type(self).ended = Deferred()

    def buildProtocol(self, address: object) -> Protocol:
        words, ended = self._words, type(self).ended

        class Mute(Protocol):
            def dataReceived(self, data: bytes) -> None:
                if words:
                    self.transport.write(words)  # type: ignore[union-attr]

            def connectionLost(self, reason: Any = None) -> None:
                ended.callback(None)

        return Mute()


class ContextTests(SynchronousTestCase):
    """What a context is made of."""

    def test_files_that_hold_no_certificates(self) -> None:
        for text in (b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
            with self.assertRaises(PeerError) as raised:
                peer_context(text)
            self.assertEqual(str(raised.exception), "the file of authorities holds no certificates in PEM")

    def test_a_key_of_somebody_else(self) -> None:
        pki = TestAuthority()
        one, other = pki.user(), pki.user("eve@example.com")
        for key in (other.key_pem, b"nonsense"):
            with self.assertRaises(PeerError) as raised:
                peer_context(None, identity=ClientIdentity(one.chain_pem, key))
            self.assertIn("the client key is no key", str(raised.exception))

    def test_only_https_is_connected_to(self) -> None:
        from twisted.web.client import URI

        endpoints = PeerAgentEndpoints(MemoryReactorClock(), peer_context(None))
        with self.assertRaises(PeerError):
            endpoints.endpointForURI(URI.fromBytes(b"http://localhost/"))
