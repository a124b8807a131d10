"""Outbound TLS: connections whose other end we have checked ourselves before the first byte.

`CheckedEndpoint` is a Twisted client endpoint. It connects, shakes hands, and then judges the peer's
certificate (`defender.contract.peer_check`) and the application protocol. Only after that is the caller's
protocol made and connected. Twisted's own check is not used: up to 26.10 it lets a certificate without
subject alternative names pass for every host. When the peer is refused nothing was sent to it but the
ClientHello, not even our own certificate.

What a context trusts is said in one of two ways (`client_context`):

* ``anchors``: certificates of authorities, each good by itself (partial chain): the fleet's intermediates.
* ``pins``: public keys of roots, by digest. For a host that joins and has no certificate yet: the peer must
  send its chain up to a root with such a key.

The machine's own trust store is never looked at. There is no session to resume: every connection is verified.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final
from weakref import WeakKeyDictionary

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL, crypto

# The words for a verification error, and the list of groups: pyOpenSSL has no method for them.
from OpenSSL._util import ffi, lib
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import (
    IDelayedCall,
    IHandshakeListener,
    IOpenSSLClientConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from defender.contract.errors import IdentityError, one_line
from defender.contract.join_token import pin_of
from defender.contract.peer_check import ExpectedPeer, PeerIdentity, check_peer

CIPHERS_13: Final = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
GROUPS: Final = b"X25519:P-256"
MAX_DEPTH: Final = 4
TIMEOUT: Final = 10.0
"""Seconds for connecting, and again for shaking hands."""

_ERROR_SELF_SIGNED_IN_CHAIN: Final = 19
"""X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN: the chain holds, up to a root that is not among the anchors."""


class PeerRefusedError(Exception):
    """A TLS connection was not made, or its peer is not the one that was meant.

    ``check``: of `IdentityError`, or OpenSSL's words for a bad chain ("certificate has expired"), or
    ``protocol``, ``refused by the peer``, ``disconnected``, ``timeout``. ``subject``: the peer's common name,
    not to be believed. ``peer``: whom we wanted.
    """

    def __init__(self, detail: str, *, check: str, peer: str, subject: str = "") -> None:
        super().__init__(detail, check, peer, subject)
        self.detail = detail
        self.check = check
        self.peer = peer
        self.subject = subject

    def __str__(self) -> str:
        whom = f" (it calls itself {self.subject!r})" if self.subject else ""
        return f"TLS with {self.peer} failed: {self.check}{whom}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What we show: a chain, our own certificate first, and its key."""

    chain: tuple[x509.Certificate, ...]
    key: ec.EllipticCurvePrivateKey = field(repr=False)


@dataclass(slots=True)
class _Outcome:
    """What became of one handshake."""

    check: str = ""
    detail: str = ""
    subject: str = ""
    identity: PeerIdentity | None = None


# By connection. Its app data is Twisted's: it puts the protocol there, after our creator has made it.
_outcomes: WeakKeyDictionary[SSL.Connection, _Outcome] = WeakKeyDictionary()


def client_context(
    *,
    anchors: Sequence[x509.Certificate] = (),
    pins: frozenset[bytes] = frozenset(),
    credentials: Credentials | None = None,
    alpn: bytes = b"",
) -> SSL.Context:
    """Make a context for connections outward: TLS 1.3, a peer that is verified, no tickets, no resumption.

    One of ``anchors`` and ``pins`` (`join_token.pin_of`) must be given, and one only. Raises ValueError.
    """
    if bool(anchors) == bool(pins):
        raise ValueError("a context needs either anchors or pins")
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_TICKET)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_tls13_ciphersuites(CIPHERS_13)
    if lib.SSL_CTX_set1_curves_list(context._context, GROUPS) != 1:
        raise RuntimeError(f"OpenSSL does not know the groups {GROUPS.decode()}")
    if alpn:
        context.set_alpn_protos([alpn])
    if credentials is not None:
        context.use_certificate(credentials.chain[0])
        for certificate in credentials.chain[1:]:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(credentials.key)
    store = context.get_cert_store()
    assert store is not None
    for anchor in anchors:
        store.add_cert(crypto.X509.from_cryptography(anchor))
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    context.set_verify_depth(MAX_DEPTH)

    def judge(connection: SSL.Connection, certificate: crypto.X509, code: int, depth: int, ok: int) -> bool:
        # What this raises, pyOpenSSL takes for a refusal.
        if ok:
            return True
        if code == _ERROR_SELF_SIGNED_IN_CHAIN and pins and pin_of(certificate.to_cryptography()) in pins:
            # The root itself. OpenSSL goes on to check the signatures and times of the chain below it.
            return True
        outcome = _outcome_of(connection)
        outcome.check = ffi.string(lib.X509_verify_cert_error_string(code)).decode()
        outcome.detail = f"OpenSSL error {code} at depth {depth}"
        return False

    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, judge)
    return context


def _outcome_of(connection: SSL.Connection | None) -> _Outcome:
    found = _outcomes.get(connection) if connection is not None else None
    return found if found is not None else _Outcome()


@implementer(IOpenSSLClientConnectionCreator)
class ConnectionCreator:
    """Makes the pyOpenSSL connections of a context. By itself it checks the chain, not who the peer is."""

    def __init__(self, context: SSL.Context, server_name: str = "") -> None:
        """``server_name``: what SNI says, "" for nothing."""
        self._context = context
        self._server_name = server_name

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:  # noqa: N802, N803
        """Return a connection for this protocol."""
        connection = SSL.Connection(self._context, None)
        _outcomes[connection] = _Outcome()
        if self._server_name:
            connection.set_tlsext_host_name(self._server_name.encode("ascii"))
        return connection


@implementer(IStreamClientEndpoint)
class CheckedEndpoint:
    """Connects through another endpoint and upgrades to TLS; see the module.

    `connect` fires with the caller's protocol once the peer was checked, or fails with PeerRefusedError, or
    with what the other endpoint's `connect` fails with.
    """

    def __init__(
        self,
        reactor: Any,
        endpoint: Any,
        context: SSL.Context,
        expected: ExpectedPeer,
        *,
        alpn: bytes = b"",
        server_name: str = "",
        timeout: float = TIMEOUT,
    ) -> None:
        """``alpn``: the protocol that the peer must have agreed to, of those that the context offers."""
        self._reactor = reactor
        self._endpoint = endpoint
        self._creator = ConnectionCreator(context, server_name)
        self._expected = expected
        self._alpn = alpn
        self._timeout = timeout

    def connect(self, protocolFactory: Any) -> Deferred[IProtocol]:  # noqa: N803 - the interface's name
        """Connect; see the class. Cancelling the Deferred closes the connection."""
        attempt = _Attempt(self._reactor, protocolFactory, self._expected, self._alpn, self._timeout)
        wrapped = TLSMemoryBIOFactory(self._creator, True, attempt, clock=self._reactor)
        return attempt.over(self._endpoint.connect(wrapped))


def checked_endpoint(
    reactor: Any,
    host: str,
    port: int,
    context: SSL.Context,
    expected: ExpectedPeer,
    *,
    alpn: bytes = b"",
    timeout: float = TIMEOUT,
) -> CheckedEndpoint:
    """Return an endpoint for a host name or IP address and a port."""
    try:
        ip_address(host)
    except ValueError:
        server_name = host
    else:
        server_name = ""
    inner = HostnameEndpoint(reactor, host.encode("ascii"), port, timeout)
    return CheckedEndpoint(
        reactor, inner, context, expected, alpn=alpn, server_name=server_name, timeout=timeout
    )


def peer_identity(transport: Any) -> PeerIdentity:
    """Return who is at the other end of a connection that a `CheckedEndpoint` made."""
    identity = _outcome_of(transport.getHandle()).identity
    if identity is None:
        raise ValueError("the peer of this transport was not checked")
    return identity


def channel_binding(transport: Any, label: bytes, size: int) -> bytes:
    """Return the TLS exporter of this connection (RFC 8446 section 7.5), the same at both ends."""
    binding: bytes = transport.getHandle().export_keying_material(label, size)
    return binding


@implementer(IProtocolFactory)
class _Attempt(Factory):
    """One connection being made: the factory of the one protocol that waits for the handshake's end."""

    noisy = False

    def __init__(
        self, reactor: Any, factory: Any, expected: ExpectedPeer, alpn: bytes, timeout: float
    ) -> None:
        self._reactor = reactor
        self._factory = factory
        self._expected = expected
        self._alpn = alpn
        self._timeout = timeout
        self._connecting: Deferred[Any] | None = None
        self._gate: _Gate | None = None
        self._deadline: IDelayedCall | None = None
        self._done: Deferred[IProtocol] | None = Deferred(lambda _: self._cancel())

    def over(self, connecting: Deferred[Any]) -> Deferred[IProtocol]:
        """Go on when the connection in the clear is there."""
        done = self._done
        assert done is not None
        self._connecting = connecting
        connecting.addErrback(self._not_connected)
        return done

    def doStart(self) -> None:  # noqa: N802 - Twisted's name
        """Tell the caller's factory that it is in use."""
        self._factory.doStart()

    def doStop(self) -> None:  # noqa: N802 - Twisted's name
        """Tell the caller's factory that it is not in use any more."""
        self._factory.doStop()

    def buildProtocol(self, addr: Any) -> Protocol | None:
        """Make the protocol that waits; the caller's is made when the peer was checked."""
        if self._done is None:
            return None
        self._gate = _Gate(self, addr)
        self._deadline = self._reactor.callLater(self._timeout, self._timed_out)
        return self._gate

    def shaken(self, gate: _Gate) -> None:
        """Judge the peer; then make the caller's protocol and connect it. Whatever goes wrong refuses."""
        tls: Any = gate.transport
        outcome = _outcome_of(tls.getHandle())
        try:
            if self._done is None:
                raise PeerRefusedError("it was given up", check="cancelled", peer=str(self._expected))
            self._check(tls, outcome)
            protocol = self._factory.buildProtocol(gate.address)
            if protocol is None:
                raise PeerRefusedError("there is no protocol for it", check="local", peer=str(self._expected))
        except Exception:  # noqa: BLE001 - fail closed: an error of ours must not let a peer pass
            outcome.identity = None
            failure = Failure()
            tls.abortConnection()
            self._fail(failure)
            return
        tls.wrappedProtocol = protocol
        try:
            protocol.makeConnection(tls)
        except Exception:  # noqa: BLE001 - it is the caller's, and goes to the caller
            failure = Failure()
            tls.abortConnection()
            self._fail(failure)
            return
        done = self._settle()
        if done is not None:
            done.callback(protocol)

    def lost(self, gate: _Gate, reason: Failure) -> None:
        """The connection ended before the peer was checked."""
        outcome = _outcome_of(gate.transport.getHandle()) if gate.transport is not None else _Outcome()
        check, detail = outcome.check, outcome.detail
        if not check:
            check, detail = loss_words(reason)
        self._fail(
            Failure(PeerRefusedError(detail, check=check, peer=str(self._expected), subject=outcome.subject))
        )

    def _check(self, tls: Any, outcome: _Outcome) -> None:
        certificate = tls.getHandle().get_peer_certificate(as_cryptography=True)
        if certificate is None:
            raise PeerRefusedError("the peer showed none", check="certificate", peer=str(self._expected))
        try:
            identity = check_peer(certificate, self._expected)
        except IdentityError as error:
            raise PeerRefusedError(
                error.detail, check=error.check, peer=str(self._expected), subject=error.subject
            ) from error
        if self._alpn and tls.negotiatedProtocol != self._alpn:
            raise PeerRefusedError(
                f"the peer does not speak {self._alpn.decode()}: is this the right port?",
                check="protocol",
                peer=str(self._expected),
                subject=identity.name,
            )
        outcome.identity = identity

    def _not_connected(self, failure: Failure) -> None:
        self._fail(failure)

    def _timed_out(self) -> None:
        self._deadline = None
        gate = self._gate
        self._fail(
            Failure(
                PeerRefusedError(
                    f"no handshake in {self._timeout:g} s", check="timeout", peer=str(self._expected)
                )
            )
        )
        if gate is not None and gate.transport is not None:
            gate.transport.abortConnection()

    def _cancel(self) -> None:
        self._settle()
        if self._gate is not None and self._gate.transport is not None:
            self._gate.transport.abortConnection()
        elif self._connecting is not None:
            self._connecting.cancel()

    def _fail(self, failure: Failure) -> None:
        done = self._settle()
        if done is not None:
            done.errback(failure)

    def _settle(self) -> Deferred[IProtocol] | None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        done, self._done = self._done, None
        return done


@implementer(IHandshakeListener)
class _Gate(Protocol):
    """Stands in the place of the caller's protocol until the peer was checked."""

    transport: Any

    def __init__(self, attempt: _Attempt, address: Any) -> None:
        self._attempt = attempt
        self.address = address

    def handshakeCompleted(self) -> None:  # noqa: N802 - the interface's name
        """Called by Twisted, once, before any byte is delivered."""
        self._attempt.shaken(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection ended before the handshake did, or because of it."""
        self._attempt.lost(self, reason)


def loss_words(reason: Failure) -> tuple[str, str]:
    """Return (check, detail) of `PeerRefusedError` for the reason of a connection's end.

    A peer that refuses our certificate says so after our handshake is done (TLS 1.3): the protocol that was
    connected hears of it in its ``connectionLost``.
    """
    error = reason.value
    if isinstance(error, SSL.SysCallError):
        return "disconnected", one_line(str(error))
    if isinstance(error, SSL.Error):
        words = (
            "; ".join(entry[2] for entry in error.args[0]) if error.args and error.args[0] else "TLS error"
        )
        return ("refused by the peer" if "alert" in words else "protocol"), words
    return "disconnected", one_line(str(error)) or "the peer closed the connection"
