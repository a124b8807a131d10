"""A TLS server on loopback, and certificates of the fleet: what a defender that dials out meets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL, crypto
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from controller.pki.authority import FLEET_CA
from controller.pki.custody import new_private_key
from controller.supervision.sockets import PassedSockets
from tests.fakes.authority import Credentials, OddLeaf, TestAuthority

LOOPBACK = ("localhost", "127.0.0.1", "::1")
DEFENDER = "3f0e2a52-6c51-4a43-9f6a-5f4f5b8f3b11"


def opened(address: str, factory: Any, backlog: int) -> Any:
    """Opens a port of the controller's, as it does by itself."""
    from twisted.internet import reactor

    return PassedSockets().listen(reactor, address, factory, backlog)


def controller_of(pki: TestAuthority, names: Sequence[str] = LOOPBACK) -> Credentials:
    """A controller's certificate, with the root behind the chain, as hosts that join need it."""
    key = new_private_key()
    issued = pki.authority.issue_controller(key.public_key(), "controller", names, now=pki.now)
    return Credentials((issued.leaf, issued.issuer, pki.root), key)


def defender_of(pki: TestAuthority, identifier: str = DEFENDER, name: str = "web1") -> Credentials:
    """A defender's certificate towards its controller."""
    key = new_private_key()
    issued = pki.authority.issue_defender_client(key.public_key(), identifier, name, now=pki.now)
    return Credentials((issued.leaf, issued.issuer), key)


def odd_server(pki: TestAuthority, change: Callable[[OddLeaf], None]) -> Credentials:
    """A controller's certificate with one thing changed, signed by the fleet intermediate all the same."""
    key = new_private_key()
    leaf = OddLeaf(pki, key)
    leaf.issuer, leaf.signer = pki.fleet, pki.custody.signer(FLEET_CA)
    leaf.names = ["localhost"]
    leaf.groups = None
    leaf.usages = [ExtendedKeyUsageOID.SERVER_AUTH]
    leaf.alternatives = [
        x509.UniformResourceIdentifier(f"spiffe://{pki.trust_domain}/controller/c1"),
        x509.DNSName("localhost"),
    ]
    change(leaf)
    chain = leaf.sign()
    return Credentials((*chain, pki.root) if leaf.issuer is not None else chain, key)


@implementer(IOpenSSLServerConnectionCreator)
class _Creator:
    def __init__(self, context: SSL.Context) -> None:
        self._context = context

    def serverConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:  # noqa: N802, N803
        return SSL.Connection(self._context, None)


class Conversation(Protocol):
    """The server's end of one connection: collects what came, and answers if it is told how."""

    transport: Any

    def __init__(self, server: TLSServer) -> None:
        self.server = server
        self.received = b""
        self.lost: Failure | None = None
        self.ended: Deferred[None] = Deferred()
        server.conversations.append(self)

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if self.server.answer is not None:
            self.server.answer(self, data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason
        self.ended.callback(None)

    @property
    def client(self) -> x509.Certificate | None:
        """The certificate that the client showed."""
        found: x509.Certificate | None = self.transport.getHandle().get_peer_certificate(as_cryptography=True)
        return found


class TLSServer:
    """Listens on loopback. ``clients``: anchors of client certificates, which are required then."""

    def __init__(
        self,
        reactor: Any,
        credentials: Credentials,
        *,
        alpn: bytes = b"",
        clients: Sequence[x509.Certificate] = (),
        answer: Callable[[Conversation, bytes], None] | None = None,
        maximum: int = SSL.TLS1_3_VERSION,
    ) -> None:
        self.answer = answer
        self.conversations: list[Conversation] = []
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_max_proto_version(maximum)
        context.use_certificate(credentials.chain[0])
        for certificate in credentials.chain[1:]:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(credentials.key)
        if alpn:
            context.set_alpn_select_callback(
                lambda _, offered: alpn if alpn in offered else SSL.NO_OVERLAPPING_PROTOCOLS
            )
        if clients:
            store = context.get_cert_store()
            assert store is not None
            for anchor in clients:
                store.add_cert(crypto.X509.from_cryptography(anchor))
            store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
            context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
            context.set_session_id(b"test")
        factory = Factory.forProtocol(lambda: Conversation(self))
        wrapped = TLSMemoryBIOFactory(_Creator(context), False, factory, clock=reactor)
        self._listening = reactor.listenTCP(0, wrapped, interface="127.0.0.1")
        self.port: int = self._listening.getHost().port

    def stop(self) -> Any:
        """Stop listening, and cut every connection."""
        for conversation in self.conversations:
            if conversation.lost is None and conversation.transport is not None:
                conversation.transport.abortConnection()
        return self._listening.stopListening()
