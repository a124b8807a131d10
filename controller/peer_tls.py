"""Outbound TLS of the controller: chain by OpenSSL, identity by our own check, and not a byte before both.

Twisted's client TLS (`optionsForClientTLS`, `wrapClientTLS`, and so treq's) accepts a certificate without any
subject alternative name for every host (versions 26.4 to 26.10). Nothing of it is used here: OpenSSL verifies
the chain, and once the handshake is done `check_peer` (defender/contract/peer_check.py) says whether this is
the peer that was meant. Only then is the application's protocol built; until then nothing it could send
exists, and nothing that came was read.

`PeerEndpoint` is an `IStreamClientEndpoint`: it serves plain protocols, and as `PeerAgentEndpoints` an Agent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto

# The words for an error code of the verification: pyOpenSSL has no function for them.
from OpenSSL._util import ffi, lib
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.interfaces import (
    IAddress,
    IHandshakeListener,
    IOpenSSLClientConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.web.client import URI
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from defender.contract.errors import IdentityError, one_line
from defender.contract.identity import load_pem_certificates
from defender.contract.peer_check import ExpectedPeer, HostPeer, check_peer, host_peer

CIPHERS_12: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL:!PSK:!SRP"
"""TLS 1.2, for receivers that are not ours: forward secrecy and authenticated encryption only."""
CONNECT_TIMEOUT: Final = 20.0
"""Seconds for the name, the connection and the handshake together."""
MAX_DEPTH: Final = 8
_MINIMUM: Final = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}


class PeerError(Exception):
    """A connection that did not come to be: not reached, no TLS, or somebody else. The text is for people."""


@dataclass(frozen=True, slots=True)
class ClientIdentity:
    """The certificate with which we answer a peer that asks for one: PEM texts, the chain leaf first."""

    chain: bytes
    key: bytes = field(repr=False)


@dataclass(slots=True)
class Allowance:
    """How many octets a peer may still send; whoever expects an answer sets `left` before it asks."""

    left: int

    def take(self, count: int) -> bool:
        """Count what came; False if it is more than was allowed."""
        self.left -= count
        return self.left >= 0


def peer_context(
    anchors: bytes | None,
    *,
    identity: ClientIdentity | None = None,
    minimum: str = "1.2",
    alpn: Sequence[bytes] = (),
) -> SSL.Context:
    """Make the context of outbound connections.

    `anchors` are the authorities that may have signed the peer, in PEM; None takes the machine's own. Any of
    them ends a chain, an intermediate too. `minimum` is "1.2" or "1.3". Raises PeerError for what is no
    certificate or key, or where one does not fit the other.
    """
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(_MINIMUM[minimum])
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_TICKET)
    # Without a cache no session is taken up again: every connection verifies.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_cipher_list(CIPHERS_12)
    context.set_verify_depth(MAX_DEPTH)
    if alpn:
        context.set_alpn_protos(list(alpn))
    if anchors is None:
        context.set_default_verify_paths()
    else:
        store = context.get_cert_store()
        assert store is not None
        for certificate in _certificates(anchors, "the file of authorities"):
            store.add_cert(crypto.X509.from_cryptography(certificate))
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    if identity is not None:
        _show(context, identity)
    context.set_verify(SSL.VERIFY_PEER)
    return context


def _certificates(pem: bytes, what: str) -> list[x509.Certificate]:
    try:
        found = load_pem_certificates(pem)
    except ValueError as error:
        raise PeerError(f"{what} holds no certificates in PEM") from error
    if not found:
        raise PeerError(f"{what} holds no certificates in PEM")
    return found


def _show(context: SSL.Context, identity: ClientIdentity) -> None:
    leaf, *rest = _certificates(identity.chain, "the file of the client certificate")
    try:
        key = load_pem_private_key(identity.key, None)
        context.use_certificate(leaf)
        for certificate in rest:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(key)  # type: ignore[arg-type]
        context.check_privatekey()
    except (SSL.Error, ValueError, TypeError) as error:
        # Not the error's own words: some of them quote the key.
        raise PeerError(
            "the client key is no key in PEM without a password, or not its certificate's"
        ) from error


@implementer(IOpenSSLClientConnectionCreator)
class _Creator:
    """Makes the connection object of each handshake; `notes` says afterwards why a chain did not hold."""

    def __init__(self, context: SSL.Context, peer: ExpectedPeer) -> None:
        self.notes: list[str] = []
        self._context = context
        self._peer = peer

    def clientConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:  # noqa: N802
        """A connection that asks for the peer by its name, where it has one."""
        connection = SSL.Connection(self._context, None)
        connection.set_verify(SSL.VERIFY_PEER, self._note)
        if isinstance(self._peer, HostPeer) and isinstance(self._peer.host, str):
            connection.set_tlsext_host_name(self._peer.host.encode("ascii"))
        connection.set_connect_state()
        return connection

    def _note(self, connection: object, certificate: object, code: int, depth: int, holds: int) -> bool:
        """Keep why a chain does not hold, and change nothing: OpenSSL has decided."""
        if not holds and len(self.notes) < MAX_DEPTH:
            words = ffi.string(lib.X509_verify_cert_error_string(code))
            self.notes.append(words.decode("ascii", "replace"))
        return bool(holds)


@implementer(IHandshakeListener)
class _Gate(Protocol):
    """Stands between TLS and the application's protocol, which it builds once the peer is known."""

    def __init__(
        self,
        build: Callable[[], IProtocol | None],
        check: Callable[[x509.Certificate | None], None],
        told: Callable[[IProtocol | Failure], None],
        allowance: Allowance | None,
    ) -> None:
        self._build = build
        self._check = check
        self._told = told
        self._allowance = allowance
        self._inner: IProtocol | None = None
        self._over = False

    def handshakeCompleted(self) -> None:  # noqa: N802
        """Check the peer; build the protocol, or end the connection."""
        transport: Any = self.transport
        try:
            found = transport.getPeerCertificate()
            self._check(None if found is None else found.to_cryptography())
            inner = self._build()
            if inner is None:
                raise PeerError("the connection is no longer wanted")
        except Exception:  # noqa: BLE001 - fail closed: whatever it was, this peer is not known
            self._fail(Failure())
            return
        self._inner = inner
        inner.makeConnection(transport)
        self._told(inner)

    def close(self) -> None:
        """End the connection; nobody is told any more."""
        self._over = True
        transport: Any = self.transport
        if transport is not None:
            transport.abortConnection()

    def _fail(self, failure: Failure) -> None:
        if not self._over:
            self.close()
            self._told(failure)

    def dataReceived(self, data: bytes) -> None:
        """Pass on what the peer sends, as much as it may."""
        if self._inner is None or self._over:
            return
        if self._allowance is not None and not self._allowance.take(len(data)):
            self.close()
            return
        self._inner.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Pass it on; before the peer is known it is why there is no connection."""
        if self._inner is not None:
            self._inner.connectionLost(reason)
        elif not self._over:
            self._over = True
            self._told(reason)


@implementer(IStreamClientEndpoint)
class PeerEndpoint:
    """Connects to a peer over TLS and hands over a connection only to that peer.

    Args:
        reactor: a reactor with TCP, time and names.
        endpoint: what is connected to, without TLS.
        context: of `peer_context`.
        peer: who it must be.
        timeout: seconds until the handshake is done.
        allowance: if given, what the peer may send; more ends the connection.
    """

    def __init__(
        self,
        reactor: Any,
        endpoint: IStreamClientEndpoint,
        context: SSL.Context,
        peer: ExpectedPeer,
        *,
        timeout: float = CONNECT_TIMEOUT,
        allowance: Allowance | None = None,
    ) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self._context = context
        self._peer = peer
        self._timeout = timeout
        self._allowance = allowance

    def __repr__(self) -> str:
        """The peer, for Twisted's log lines."""
        return f"<PeerEndpoint {self._peer}>"

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Return a Deferred of the connected protocol of `factory`; it fails with PeerError alone."""
        attempt = _Attempt(self._reactor, self._context, self._peer, self._allowance)
        return attempt.run(self._endpoint, factory, self._timeout)


class _Attempt:
    """One connection until it is handed over, or is none."""

    def __init__(
        self, reactor: Any, context: SSL.Context, peer: ExpectedPeer, allowance: Allowance | None
    ) -> None:
        self._reactor = reactor
        self._peer = peer
        self._allowance = allowance
        self._creator = _Creator(context, peer)
        self._gate: _Gate | None = None
        self._abandoned = False
        self._connecting: Deferred[Any] | None = None
        self._result: Deferred[IProtocol] = Deferred(lambda _: self._give_up())

    def run(
        self, endpoint: IStreamClientEndpoint, factory: IProtocolFactory, timeout: float
    ) -> Deferred[IProtocol]:
        attempt = self

        class Gates(Factory):
            noisy = False

            def buildProtocol(self, address: IAddress | None) -> _Gate:
                attempt._gate = _Gate(
                    lambda: factory.buildProtocol(address),  # type: ignore[arg-type]
                    attempt._check,
                    attempt._settle,
                    attempt._allowance,
                )
                return attempt._gate

        clock: IReactorTime = self._reactor
        wrapped = TLSMemoryBIOFactory(self._creator, True, Gates(), clock)
        self._connecting = endpoint.connect(wrapped)
        self._connecting.addErrback(self._settle)
        self._result.addTimeout(timeout, clock)
        self._result.addErrback(self._explain, timeout)
        return self._result

    def _check(self, certificate: x509.Certificate | None) -> None:
        if certificate is None:
            raise PeerError("the peer showed no certificate")
        check_peer(certificate, self._peer)

    def _settle(self, outcome: IProtocol | Failure) -> None:
        if self._result.called or self._abandoned:
            return
        if isinstance(outcome, Failure):
            self._result.errback(outcome)
        else:
            self._result.callback(outcome)

    def _give_up(self) -> None:
        """The time is over, or nobody waits any more."""
        self._abandoned = True
        if self._gate is not None:
            self._gate.close()
        elif self._connecting is not None:
            self._connecting.cancel()

    def _explain(self, failure: Failure, timeout: float) -> Failure:
        error = failure.value
        if isinstance(error, PeerError):
            return failure
        return Failure(PeerError(f"{self._peer}: {self._words(error, timeout)}"))

    def _words(self, error: BaseException | None, timeout: float) -> str:
        if isinstance(error, IdentityError):
            return f"this is not the peer that was meant ({error.check}): {error.detail}"
        if isinstance(error, DeferredTimeout):
            return f"no connection and handshake within {timeout:g} s"
        if isinstance(error, CancelledError):
            return "the connection is no longer wanted"
        if isinstance(error, DNSLookupError):
            return "its name has no address"
        if isinstance(error, ConnectError):
            return one_line(f"cannot connect: {error}")[:300]
        if self._creator.notes:
            return f"its certificate does not hold: {self._creator.notes[0]}"
        if isinstance(error, SSL.Error):
            reasons = error.args[0] if error.args and isinstance(error.args[0], (list, tuple)) else []
            words = ", ".join(str(entry[-1]) for entry in reasons if entry)
            return one_line(f"the TLS handshake failed: {words or 'no reason given'}")[:300]
        return one_line(f"the connection ended in the TLS handshake: {error}")[:300]


def host_endpoint(
    reactor: Any,
    host: str,
    port: int,
    context: SSL.Context,
    *,
    timeout: float = CONNECT_TIMEOUT,
    allowance: Allowance | None = None,
) -> PeerEndpoint:
    """The endpoint of a server known by its host name or IP address; raises IdentityError for neither."""
    peer = host_peer(host)
    tcp = HostnameEndpoint(reactor, str(peer.host), port, timeout=timeout)
    return PeerEndpoint(reactor, tcp, context, peer, timeout=timeout, allowance=allowance)


@implementer(IAgentEndpointFactory)
class PeerAgentEndpoints:
    """Gives an Agent checked connections: to https addresses, and to no others."""

    def __init__(
        self,
        reactor: Any,
        context: SSL.Context,
        *,
        timeout: float = CONNECT_TIMEOUT,
        allowance: Allowance | None = None,
    ) -> None:
        self._reactor = reactor
        self._context = context
        self._timeout = timeout
        self._allowance = allowance

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:  # noqa: N802
        """The endpoint of an https address; raises PeerError for any other and IdentityError for its host."""
        if uri.scheme != b"https":
            raise PeerError("only https addresses are connected to")
        return host_endpoint(
            self._reactor,
            uri.host.decode("ascii", "replace"),
            uri.port,
            self._context,
            timeout=self._timeout,
            allowance=self._allowance,
        )
