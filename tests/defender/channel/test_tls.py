"""Outbound TLS on real sockets: whom we speak with, and that nobody else gets a byte."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from cryptography import x509
from OpenSSL import SSL
from OpenSSL._util import lib
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from controller.pki.authority import USER_CA
from defender.channel.tls import (
    ConnectionCreator,
    Credentials,
    PeerRefusedError,
    channel_binding,
    checked_endpoint,
    client_context,
    loss_words,
    peer_identity,
)
from defender.contract.join_token import pin_of
from defender.contract.peer_check import ExpectedPeer, fleet_peer, host_peer
from tests.fakes.authority import Credentials as TestCredentials
from tests.fakes.authority import OddLeaf, TestAuthority
from tests.fakes.fleet import DEFENDER, TLSServer, controller_of, defender_of, odd_server

ALPN = b"dfleet/1"
PKI = TestAuthority()
CONTROLLER = fleet_peer(PKI.trust_domain, "controller")


class Client(Protocol):
    """Speaks at once, as every client of ours does."""

    transport: Any
    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        self.received = b""
        self.heard: Deferred[bytes] = Deferred()
        self.ended: Deferred[tuple[Failure]] = Deferred()

    def connectionMade(self) -> None:
        self.transport.write(b"HELLO")

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if not self.heard.called:
            self.heard.callback(self.received)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        # As a value: a Failure would be an error of the Deferred.
        self.ended.callback((reason,))


def echo(conversation: Any, data: bytes) -> None:
    conversation.transport.write(b"echo " + data)


def own(credentials: TestCredentials) -> Credentials:
    return Credentials(credentials.chain, credentials.key)


def without_names(leaf: OddLeaf) -> None:
    leaf.alternatives = None


class TLSCase(TestCase):
    """A server and a client of it."""

    def setUp(self) -> None:
        Client.made = 0

    def serve(self, credentials: TestCredentials, **more: Any) -> TLSServer:
        server = TLSServer(reactor, credentials, **{"alpn": ALPN, "answer": echo, **more})
        self.addCleanup(server.stop)
        return server

    async def connect(
        self,
        server: TLSServer,
        expected: ExpectedPeer = CONTROLLER,
        *,
        context: SSL.Context | None = None,
        host: str = "127.0.0.1",
        limit: float = 10.0,
    ) -> Client:
        if context is None:
            context = client_context(anchors=[PKI.fleet], credentials=own(defender_of(PKI)), alpn=ALPN)
        endpoint = checked_endpoint(reactor, host, server.port, context, expected, alpn=ALPN, timeout=limit)
        client = await endpoint.connect(Factory.forProtocol(Client))
        assert isinstance(client, Client)

        async def close() -> None:
            if not client.ended.called:
                client.transport.abortConnection()
                await client.ended

        self.addCleanup(lambda: Deferred.fromCoroutine(close()))
        return client

    async def refused(self, server: TLSServer, *arguments: Any, **more: Any) -> PeerRefusedError:
        """Connect in vain: our protocol was never made, and the server got nothing."""
        with self.assertRaises(PeerRefusedError) as caught:
            await self.connect(server, *arguments, **more)
        self.assertEqual(Client.made, 0)
        await gatherResults([each.ended for each in server.conversations])
        self.assertEqual([each.received for each in server.conversations], [b""])
        error: PeerRefusedError = caught.exception
        return error


class PassingTests(TLSCase):
    """The peer that was meant."""

    async def test_a_controller(self) -> None:
        server = self.serve(controller_of(PKI), clients=[PKI.fleet])
        client = await self.connect(server)
        self.assertEqual(await client.heard, b"echo HELLO")
        identity = peer_identity(client.transport)
        self.assertEqual(identity.name, "controller")
        self.assertEqual(identity.identity.rpartition("/")[0], "spiffe://defender.fleet/controller")
        self.assertEqual(client.transport.negotiatedProtocol, ALPN)
        self.assertEqual(client.transport.getHandle().get_protocol_version_name(), "TLSv1.3")

    async def test_we_show_our_certificate(self) -> None:
        server = self.serve(controller_of(PKI), clients=[PKI.fleet])
        client = await self.connect(server)
        await client.heard
        shown = server.conversations[0].client
        assert shown is not None
        names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertEqual(
            names.get_values_for_type(x509.UniformResourceIdentifier),
            [f"spiffe://defender.fleet/defender/{DEFENDER}"],
        )

    async def test_a_server_by_its_name_or_address(self) -> None:
        server = self.serve(controller_of(PKI))
        for host in ("127.0.0.1", "localhost"):
            client = await self.connect(server, host_peer(host), host=host)
            self.assertEqual(await client.heard, b"echo HELLO")

    async def test_by_the_root_that_a_token_pins(self) -> None:
        server = self.serve(controller_of(PKI))
        context = client_context(pins=frozenset({pin_of(PKI.root)}), alpn=ALPN)
        client = await self.connect(server, fleet_peer(None, "controller"), context=context)
        self.assertEqual(await client.heard, b"echo HELLO")

    async def test_both_ends_know_the_connection_by_the_same_binding(self) -> None:
        server = self.serve(controller_of(PKI))
        bindings = set()
        for _ in range(2):
            client = await self.connect(server)
            await client.heard
            binding = channel_binding(client.transport, b"EXPORTER-test", 32)
            theirs = channel_binding(server.conversations[-1].transport, b"EXPORTER-test", 32)
            self.assertEqual((binding, len(binding)), (theirs, 32))
            bindings.add(binding)
        self.assertEqual(len(bindings), 2, "each connection has its own")

    async def test_no_session_is_taken_up_again(self) -> None:
        """The server offers tickets. With one context for both connections, the second is verified anew."""
        server = self.serve(controller_of(PKI))
        context = client_context(anchors=[PKI.fleet], alpn=ALPN)
        for _ in range(3):
            client = await self.connect(server, context=context)
            await client.heard
            self.assertEqual(lib.SSL_session_reused(client.transport.getHandle()._ssl), 0)

    async def test_nothing_secret_is_shown(self) -> None:
        credentials = own(defender_of(PKI))
        self.assertNotIn("key", repr(credentials).replace("PublicKey", ""))


class RefusedTests(TLSCase):
    """Everybody else."""

    async def test_a_certificate_without_alternative_names(self) -> None:
        """Chain, times, key and usage are right, its common name is the host: and it names nobody."""
        server = self.serve(odd_server(PKI, without_names))
        for expected in (CONTROLLER, host_peer("localhost"), host_peer("127.0.0.1")):
            server.conversations.clear()
            error = await self.refused(server, expected)
            self.assertEqual((error.check, error.subject), ("san", "localhost"))

    async def test_that_certificate_is_refused_by_our_check_alone(self) -> None:
        """TLS itself has nothing against it: without the check, the peer reads what we say."""
        server = self.serve(odd_server(PKI, without_names))
        context = client_context(anchors=[PKI.fleet], alpn=ALPN)
        unchecked = wrapClientTLS(
            ConnectionCreator(context), TCP4ClientEndpoint(reactor, "127.0.0.1", server.port)
        )
        client: Any = await unchecked.connect(Factory.forProtocol(Client))
        self.assertEqual(await client.heard, b"echo HELLO")
        client.transport.abortConnection()
        await client.ended
        self.assertRaises(ValueError, peer_identity, client.transport)

    async def test_an_impostor_does_not_even_see_our_certificate(self) -> None:
        server = self.serve(odd_server(PKI, without_names), clients=[PKI.fleet])
        await self.refused(server)
        self.assertIsNone(server.conversations[0].client)

    async def test_who_has_another_role(self) -> None:
        error = await self.refused(self.serve(_with_root(PKI.server())))
        self.assertEqual((error.check, error.subject), ("spiffe-role", "test"))

    async def test_another_trust_domain(self) -> None:
        server = self.serve(
            odd_server(PKI, _uri("spiffe://elsewhere.example/controller/c1")),
        )
        self.assertEqual((await self.refused(server)).check, "trust-domain")

    async def test_another_host(self) -> None:
        error = await self.refused(self.serve(controller_of(PKI, ["other.example"])), host_peer("localhost"))
        self.assertEqual(error.check, "host-name")
        self.assertIn("it names", error.detail)

    async def test_a_clients_certificate(self) -> None:
        """A defender's certificate towards the controller serves nobody: OpenSSL checks its use as well."""
        error = await self.refused(self.serve(_with_root(defender_of(PKI))))
        self.assertEqual(error.check, "unsuitable certificate purpose")

    async def test_a_certificate_without_use(self) -> None:
        def change(leaf: OddLeaf) -> None:
            leaf.usages = None

        self.assertEqual((await self.refused(self.serve(odd_server(PKI, change)))).check, "eku")

    async def test_another_fleet(self) -> None:
        """The same names under another root: neither its intermediate nor its root is trusted."""
        other = TestAuthority()
        server = self.serve(controller_of(other))
        error = await self.refused(server)
        self.assertEqual(error.check, "self-signed certificate in certificate chain")
        server.conversations.clear()
        context = client_context(pins=frozenset({pin_of(PKI.root)}), alpn=ALPN)
        error = await self.refused(server, fleet_peer(None, "controller"), context=context)
        self.assertEqual(error.check, "self-signed certificate in certificate chain")

    async def test_a_pinned_root_that_signed_nothing_of_the_chain(self) -> None:
        """An impostor sends our root along with a chain of its own."""
        other = controller_of(TestAuthority())
        server = self.serve(TestCredentials((*other.chain[:2], PKI.root), other.key))
        context = client_context(pins=frozenset({pin_of(PKI.root)}), alpn=ALPN)
        error = await self.refused(server, fleet_peer(None, "controller"), context=context)
        self.assertIn("unable to get", error.check)

    async def test_a_forged_intermediate_with_the_right_names(self) -> None:
        """Issuer and subject names fit the pinned root; the signature does not."""
        forged = TestAuthority()
        leaf = odd_server(forged, lambda leaf: None)
        server = self.serve(TestCredentials((leaf.chain[0], _renamed(forged, PKI), PKI.root), leaf.key))
        context = client_context(pins=frozenset({pin_of(PKI.root)}), alpn=ALPN)
        error = await self.refused(server, fleet_peer(None, "controller"), context=context)
        self.assertIn(
            error.check, ("certificate signature failure", "unable to get local issuer certificate")
        )

    async def test_a_chain_without_the_pinned_root(self) -> None:
        credentials = controller_of(PKI)
        server = self.serve(TestCredentials(credentials.chain[:2], credentials.key))
        context = client_context(pins=frozenset({pin_of(PKI.root)}), alpn=ALPN)
        error = await self.refused(server, fleet_peer(None, "controller"), context=context)
        self.assertIn("unable to get", error.check)

    async def test_the_user_intermediate(self) -> None:
        """It is under the same root, and not in this trust set."""

        def change(leaf: OddLeaf) -> None:
            leaf.issuer, leaf.signer = PKI.users, PKI.custody.signer(USER_CA)

        error = await self.refused(self.serve(odd_server(PKI, change)))
        self.assertEqual(error.check, "self-signed certificate in certificate chain")

    async def test_one_that_has_expired(self) -> None:
        def change(leaf: OddLeaf) -> None:
            leaf.begin, leaf.end = PKI.now - timedelta(hours=2), PKI.now - timedelta(hours=1)

        server = self.serve(odd_server(PKI, change))
        self.assertEqual((await self.refused(server)).check, "certificate has expired")
        server.conversations.clear()
        context = client_context(pins=frozenset({pin_of(PKI.root)}), alpn=ALPN)
        error = await self.refused(server, fleet_peer(None, "controller"), context=context)
        self.assertEqual(error.check, "certificate has expired")

    async def test_another_protocol(self) -> None:
        error = await self.refused(self.serve(controller_of(PKI), alpn=b""))
        self.assertEqual(error.check, "protocol")
        self.assertIn("is this the right port?", str(error))

    async def test_an_older_tls(self) -> None:
        error = await self.refused(self.serve(controller_of(PKI), maximum=SSL.TLS1_2_VERSION))
        self.assertEqual(error.check, "refused by the peer")

    async def test_an_error_of_ours_lets_nobody_pass(self) -> None:
        server = self.serve(controller_of(PKI))
        broken: Any = object()
        with self.assertRaises(PeerRefusedError) as caught:
            await self.connect(server, broken)
        self.assertEqual(Client.made, 0)
        self.assertEqual(caught.exception.check, "certificate")


class RefusingPeerTests(TLSCase):
    """The peer refuses us."""

    async def test_our_certificate(self) -> None:
        """TLS 1.3 says so after the handshake, to the protocol that was connected."""
        server = self.serve(controller_of(PKI), clients=[PKI.users])
        client = await self.connect(server)
        (reason,) = await client.ended
        check, detail = loss_words(reason)
        self.assertEqual(check, "refused by the peer")
        self.assertIn("alert", detail)
        self.assertEqual(server.conversations[0].received, b"")

    async def test_a_protocol_of_ours_that_fails(self) -> None:
        class Failing(Client):
            def connectionMade(self) -> None:
                raise ValueError("no")

        server = self.serve(controller_of(PKI))
        context = client_context(anchors=[PKI.fleet], alpn=ALPN)
        endpoint = checked_endpoint(reactor, "127.0.0.1", server.port, context, CONTROLLER, alpn=ALPN)
        with self.assertRaises(ValueError):
            await endpoint.connect(Factory.forProtocol(Failing))
        await server.conversations[0].ended


class EndTests(TLSCase):
    """Connections that come to nothing."""

    def listen(self, protocol: type[Protocol]) -> int:
        clear: Any = reactor
        listening = clear.listenTCP(0, Factory.forProtocol(protocol), interface="127.0.0.1")
        self.addCleanup(listening.stopListening)
        port: int = listening.getHost().port
        return port

    async def test_nobody_listens(self) -> None:
        server = self.serve(controller_of(PKI))
        await server.stop()
        with self.assertRaises(ConnectError):
            await self.connect(server)

    async def test_who_says_nothing(self) -> None:
        """A peer that accepts and is silent: the limit holds, and the connection is closed."""
        ended: Deferred[None] = Deferred()

        class Silent(Protocol):
            def connectionLost(self, reason: Failure = connectionDone) -> None:
                ended.callback(None)

        port = self.listen(Silent)
        context = client_context(anchors=[PKI.fleet])
        endpoint = checked_endpoint(reactor, "127.0.0.1", port, context, CONTROLLER, timeout=0.05)
        with self.assertRaises(PeerRefusedError) as caught:
            await endpoint.connect(Factory.forProtocol(Client))
        self.assertEqual(caught.exception.check, "timeout")
        await ended

    async def test_who_closes(self) -> None:
        class Closing(Protocol):
            def dataReceived(self, data: bytes) -> None:
                assert self.transport is not None
                self.transport.loseConnection()

        port = self.listen(Closing)
        endpoint = checked_endpoint(
            reactor, "127.0.0.1", port, client_context(anchors=[PKI.fleet]), CONTROLLER
        )
        with self.assertRaises(PeerRefusedError) as caught:
            await endpoint.connect(Factory.forProtocol(Client))
        self.assertEqual(caught.exception.check, "disconnected")

    async def test_cancelled(self) -> None:
        """While the handshake runs: the connection is closed, and nobody hears of it."""
        accepted: Deferred[None] = Deferred()
        ended: Deferred[None] = Deferred()

        class Silent(Protocol):
            def connectionMade(self) -> None:
                accepted.callback(None)

            def connectionLost(self, reason: Failure = connectionDone) -> None:
                ended.callback(None)

        port = self.listen(Silent)
        endpoint = checked_endpoint(
            reactor, "127.0.0.1", port, client_context(anchors=[PKI.fleet]), CONTROLLER
        )
        connecting = endpoint.connect(Factory.forProtocol(Client))
        await accepted
        connecting.cancel()
        with self.assertRaises(CancelledError):
            await connecting
        await ended
        self.assertEqual(Client.made, 0)


class ContextTests(SynchronousTestCase):
    """What a context must be told."""

    def test_anchors_or_pins(self) -> None:
        self.assertRaises(ValueError, client_context)
        self.assertRaises(ValueError, client_context, anchors=[PKI.fleet], pins=frozenset({b"x" * 32}))


def _uri(uri: str) -> Any:
    def change(leaf: OddLeaf) -> None:
        leaf.alternatives = [x509.UniformResourceIdentifier(uri), x509.DNSName("localhost")]

    return change


def _with_root(credentials: TestCredentials) -> TestCredentials:
    return TestCredentials((*credentials.chain, PKI.root), credentials.key)


def _renamed(forged: TestAuthority, real: TestAuthority) -> x509.Certificate:
    """The forged fleet intermediate, with an issuer's name that is the real root's."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(forged.fleet.subject)
        .issuer_name(real.root.subject)
        .public_key(forged.fleet.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(forged.fleet.not_valid_before_utc)
        .not_valid_after(forged.fleet.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    )
    return forged.custody.signer("root").sign(builder)
