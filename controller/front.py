"""HTTPS for people: the REST API, and the console later, on one port with the controller's certificate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

# The list of groups: pyOpenSSL has no method for it.
from OpenSSL._util import lib
from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

CIPHERS_13: Final = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
CIPHERS_12: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL:!PSK:!SRP"
"""TLS 1.2, for tools that have no newer one: forward secrecy and authenticated encryption only."""
GROUPS: Final = b"X25519:P-256"
ALPN: Final = b"http/1.1"
BACKLOG: Final = 512

Opened = Callable[[str, Any, int], Any]
"""Opens a port: `controller.supervision.sockets.PassedSockets.listen`."""


def https_context(chain: Sequence[x509.Certificate], key: ec.EllipticCurvePrivateKey) -> SSL.Context:
    """Make the context of the port; ``chain`` may end with the root, which is not sent."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(
        SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_TICKET | SSL.OP_CIPHER_SERVER_PREFERENCE
    )
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_cipher_list(CIPHERS_12)
    context.set_tls13_ciphersuites(CIPHERS_13)
    if lib.SSL_CTX_set1_curves_list(context._context, GROUPS) != 1:
        raise RuntimeError(f"OpenSSL does not know the groups {GROUPS.decode()}")
    context.use_certificate(chain[0])
    for certificate in chain[1:]:
        if certificate.subject != certificate.issuer:
            context.add_extra_chain_cert(certificate)
    context.use_privatekey(key)
    context.set_alpn_select_callback(
        lambda _connection, offered: ALPN if ALPN in offered else SSL.NO_OVERLAPPING_PROTOCOLS
    )
    return context


@implementer(IOpenSSLServerConnectionCreator)
class _Creator:
    def __init__(self, context: SSL.Context) -> None:
        self.context = context

    def serverConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:  # noqa: N802, N803 - Twisted's
        return SSL.Connection(self.context, None)


class Front(Service):
    """Serves ``site``, a factory of HTTP connections, at ``listen`` (``IP:PORT``, IPv6 in brackets).

    `context` may be replaced, for connections that come after; `port` is the one that was opened, 0 while
    none is. ``opened`` opens a port: it takes the address, a factory, and how many connections may wait.
    """

    def __init__(self, reactor: Any, listen: str, context: SSL.Context, site: Any, opened: Opened) -> None:
        self.setName("https")
        self.port = 0
        self._reactor = reactor
        self._listen = listen
        self._opened = opened
        self._site = site
        self._creator = _Creator(context)
        self._listening: Any = None

    @property
    def context(self) -> SSL.Context:
        """What connections are made with."""
        return self._creator.context

    @context.setter
    def context(self, context: SSL.Context) -> None:
        self._creator.context = context

    def startService(self) -> None:
        """Listen; raises PassedSocketError."""
        super().startService()
        factory = TLSMemoryBIOFactory(self._creator, False, self._site, clock=self._reactor)
        factory.noisy = False
        self._listening = self._opened(self._listen, factory, BACKLOG)
        self.port = self._listening.getHost().port

    def stopService(self) -> Deferred[None]:
        """Take no more connections."""
        super().stopService()
        self.port = 0
        listening, self._listening = self._listening, None
        return succeed(None) if listening is None else maybeDeferred(listening.stopListening)
