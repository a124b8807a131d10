"""TLS where defenders connect: TLS 1.3, two application protocols on one port.

`dfleet/1` is the channel and needs a certificate of the fleet's intermediate; `dfleet-join/1` is for hosts
that have none, or one that has expired. TLS cannot ask for a certificate by protocol, so it asks everybody,
lets pass who shows none, and the channel looks at what was shown once the handshake is over
(`shown_certificate`).
A certificate that is shown and does not hold (another issuer, not yet or no longer valid) ends the handshake.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL, crypto

# The list of groups: pyOpenSSL has no method for it.
from OpenSSL._util import lib

from defender.contract.join import ALPN as JOIN_ALPN
from defender.contract.messages import ALPN

CIPHERS_13: Final = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
GROUPS: Final = b"X25519:P-256"
MAX_DEPTH: Final = 4


class NoCommonProtocolError(Exception):
    """A client offers neither of our application protocols (RFC 7301 section 3.2)."""


def channel_context(
    chain: Sequence[x509.Certificate],
    key: ec.EllipticCurvePrivateKey,
    anchors: Sequence[x509.Certificate],
) -> SSL.Context:
    """Make the context of the channel's port.

    ``chain``: the controller's own certificate, then its issuers up to the root, which hosts that join know
    by its key. ``anchors``: the fleet's intermediates, each good by itself; nothing else is ever trusted.
    """
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_TICKET)
    # Without a cache and without tickets no session is ever taken up again: every connection verifies.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    # An idle connection keeps no buffers.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_tls13_ciphersuites(CIPHERS_13)
    if lib.SSL_CTX_set1_curves_list(context._context, GROUPS) != 1:
        raise RuntimeError(f"OpenSSL does not know the groups {GROUPS.decode()}")
    context.use_certificate(chain[0])
    for certificate in chain[1:]:
        context.add_extra_chain_cert(certificate)
    context.use_privatekey(key)
    store = context.get_cert_store()
    assert store is not None
    for anchor in anchors:
        store.add_cert(crypto.X509.from_cryptography(anchor))
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    # Without a callback: what OpenSSL says is what counts, and each would be two calls for each certificate.
    context.set_verify(SSL.VERIFY_PEER)
    context.set_verify_depth(MAX_DEPTH)
    context.set_alpn_select_callback(_choose)
    return context


def _choose(connection: SSL.Connection, offered: list[bytes]) -> bytes:
    for protocol in (ALPN, JOIN_ALPN):
        if protocol in offered:
            return protocol
    raise NoCommonProtocolError(f"{ALPN.decode()} or {JOIN_ALPN.decode()} is spoken here")


def chosen_protocol(transport: Any) -> bytes:
    """The application protocol of a connection after its handshake, b"" if the peer asked for none."""
    chosen: bytes = transport.getHandle().get_alpn_proto_negotiated()
    return chosen


def shown_certificate(transport: Any) -> x509.Certificate | None:
    """The certificate that the peer showed and whose chain holds; None if it showed none."""
    found: x509.Certificate | None = transport.getHandle().get_peer_certificate(as_cryptography=True)
    return found


def channel_binding(transport: Any, label: bytes, size: int) -> bytes:
    """The TLS exporter of a connection (RFC 8446 section 7.5), the same at both ends."""
    binding: bytes = transport.getHandle().export_keying_material(label, size)
    return binding
