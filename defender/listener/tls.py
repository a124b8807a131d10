"""The TLS context of the listener: who may come in, decided inside the handshake.

A client must show a certificate that ends, unbroken, in one of the anchors of `TLSFiles.client_ca` and
nowhere else: the anchors are the user intermediates themselves (partial chain), so that a certificate of the
fleet's intermediate under the same root is refused, and the machine's own trust store is never looked at.
Then it must pass ``verify``, the checks of the user's identity. Whatever fails, the client gets an alert and
the stream's `HandshakeError` says which check failed and for whom.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from OpenSSL import SSL, crypto

# Two things that pyOpenSSL has no method for: the list of groups, and, inside the verify callback, the leaf,
# its hash, and an error code of our own, which decides the alert. Twisted's _sslverify uses the same binding.
from OpenSSL._util import ffi, lib

from defender.contract.errors import IdentityError
from defender.contract.identity import load_pem_certificates, subject_of_certificate
from defender.streams.tls import PeerCheck

CIPHERS_13 = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
CIPHERS_12 = b"ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL:!PSK:!SRP"
"""TLS 1.2: forward secrecy and authenticated encryption only."""

GROUPS = b"X25519:P-256"
MAX_DEPTH = 4
"""Certificates between a leaf and its anchor: OpenSSL stops looking beyond."""

ALPN = b"http/1.1"

KNOWN_CERTIFICATES = 1000
"""Certificates of which a context remembers whom they name. Reading one costs a fifth of a handshake."""

_MINIMUM = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}
_PRIVATE_KEYS = (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey)


class TLSFilesError(Exception):
    """A file that TLS needs is missing, unreadable, or does not fit the others; the text names it."""


class NoCommonProtocolError(Exception):
    """A client insists on application protocols that the listener does not speak (ALPN, RFC 7301 3.2)."""


@dataclass(frozen=True, slots=True)
class TLSFiles:
    """Paths of PEM files.

    ``certificate_chain``: the listener's certificate, then its intermediates. ``private_key``: without
    password. ``client_ca``: the user intermediates that anchor client certificates; never the common root.
    """

    certificate_chain: str
    private_key: str
    client_ca: str


def anchors_in(path: str) -> frozenset[bytes]:
    """Return the certificates of a ``client_ca`` file, in DER. Raises TLSFilesError."""
    return frozenset(each.public_bytes(serialization.Encoding.DER) for each in _certificates(path))


def server_context(
    files: TLSFiles,
    *,
    trust_domain: str,
    minimum: str = "1.3",
    verify: Callable[[x509.Certificate], object] | None = None,
) -> SSL.Context:
    """Make the context of a listener that requires client certificates.

    ``verify`` is given the client's certificate once its chain holds and raises IdentityError to refuse it;
    by default it asks for a user of ``trust_domain`` (`subject_of_certificate`). What it returned is taken
    for the next connection with the same certificate too: it must depend on nothing else. The chain, with
    the times and signatures in it, is checked on every connection. ``minimum`` is ``"1.3"`` or ``"1.2"``.
    Raises TLSFilesError.
    """
    if verify is None:
        verify = partial(subject_of_certificate, trust_domain=trust_domain)
    chain, key = _own_identity(files)
    anchors = _certificates(files.client_ca)
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(_MINIMUM[minimum])
    context.set_options(
        SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_TICKET | SSL.OP_CIPHER_SERVER_PREFERENCE
    )
    # Without a cache and without tickets no session is ever taken up again: every connection verifies.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    # An idle connection keeps no buffers: 40 kB each in place of 55, and no more after thousands of them.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_cipher_list(CIPHERS_12)
    context.set_tls13_ciphersuites(CIPHERS_13)
    if lib.SSL_CTX_set1_curves_list(context._context, GROUPS) != 1:
        raise RuntimeError(f"OpenSSL does not know the groups {GROUPS.decode()}")
    context.use_certificate(chain[0])
    for certificate in chain[1:]:
        context.add_extra_chain_cert(certificate)
    context.use_privatekey(key)
    _trust(context, anchors)
    context.set_alpn_select_callback(_select_protocol)
    _require_certificate(context, verify)
    return context


def _trust(context: SSL.Context, anchors: list[x509.Certificate]) -> None:
    store = context.get_cert_store()
    assert store is not None
    for anchor in anchors:
        # Clients are not told the anchors' names: Go's would send no certificate where its issuer is not
        # among them, and neither side could say what is wrong with the one they have.
        store.add_cert(crypto.X509.from_cryptography(anchor))
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    # A server context checks the purpose "sslclient" of the client's chain by itself (X509_verify_cert).
    context.set_verify_depth(MAX_DEPTH)


def _select_protocol(connection: SSL.Connection, offered: list[bytes]) -> bytes:
    if ALPN in offered:
        return ALPN
    names = ", ".join(repr(name)[2:-1] for name in offered[:8])
    raise NoCommonProtocolError(f"the client offers only {names} (ALPN); this is {ALPN.decode()}")


def _require_certificate(context: SSL.Context, verify: Callable[[x509.Certificate], object]) -> None:
    """Set the verify callback: OpenSSL calls it for each certificate, from the anchor down to depth 0."""
    known: dict[bytes, object] = {}

    def judge_leaf(store_context: Any) -> object:
        key = _fingerprint(store_context)
        found = known.get(key)
        if found is None:
            found = verify(_leaf_of(store_context))
            if len(known) >= KNOWN_CERTIFICATES:
                del known[next(iter(known))]
            known[key] = found
        return found

    def judge(ok: int, store_context: Any) -> int:
        depth = lib.X509_STORE_CTX_get_error_depth(store_context)
        if ok and depth > 0:
            return 1
        check = _check_of(store_context)
        if ok:
            check.verified = judge_leaf(store_context)
            return 1
        code = lib.X509_STORE_CTX_get_error(store_context)
        check.check = ffi.string(lib.X509_verify_cert_error_string(code)).decode()
        check.subject = common_name(_leaf_of(store_context))
        check.detail = f"OpenSSL error {code} at depth {depth}"
        return 0

    def callback(ok: int, store_context: Any) -> int:
        try:
            return judge(ok, store_context)
        except IdentityError as error:
            check = _check_of(store_context)
            check.check = error.check
            check.detail = error.detail
            check.subject = error.subject or common_name(_leaf_of(store_context))
        except Exception as error:  # noqa: BLE001 - fail closed: nothing may escape into C
            check = _check_of(store_context)
            check.check = "certificate"
            check.detail = f"cannot be judged: {error}"
        lib.X509_STORE_CTX_set_error(store_context, lib.X509_V_ERR_CERT_REJECTED)
        return 0

    pointer = ffi.callback("int (*)(int, X509_STORE_CTX *)", callback, error=0)
    lib.SSL_CTX_set_verify(context._context, SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, pointer)
    # OpenSSL holds a bare pointer: let it live as long as the context.
    context.set_app_data(pointer)


def _check_of(store_context: Any) -> PeerCheck:
    """Return what the stream hung on its connection."""
    index = lib.SSL_get_ex_data_X509_STORE_CTX_idx()
    pointer = lib.X509_STORE_CTX_get_ex_data(store_context, index)
    check = SSL.Connection._reverse_mapping[pointer].get_app_data()
    return check if isinstance(check, PeerCheck) else PeerCheck()


def _fingerprint(store_context: Any) -> bytes:
    """Return the SHA-256 of the leaf as it came."""
    digest = ffi.new("unsigned char[]", lib.EVP_MAX_MD_SIZE)
    length = ffi.new("unsigned int *")
    leaf = lib.X509_STORE_CTX_get0_cert(store_context)
    if lib.X509_digest(leaf, lib.EVP_get_digestbyname(b"sha256"), digest, length) != 1:
        raise RuntimeError("OpenSSL cannot hash a certificate")
    return bytes(ffi.buffer(digest, length[0]))


def _leaf_of(store_context: Any) -> x509.Certificate:
    pointer = lib.X509_STORE_CTX_get0_cert(store_context)
    lib.X509_up_ref(pointer)
    return crypto.X509._from_raw_x509_ptr(pointer).to_cryptography()


def common_name(certificate: x509.Certificate) -> str:
    """Return the first common name of a certificate that nobody vouches for, shortened, "" without one."""
    try:
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(names[0].value)[:200] if names else ""
    except ValueError:
        return ""


def _own_identity(files: TLSFiles) -> tuple[list[x509.Certificate], Any]:
    chain = _certificates(files.certificate_chain)
    text = _read(files.private_key)
    try:
        key = serialization.load_pem_private_key(text, password=None)
    except TypeError:
        raise TLSFilesError(
            f"{files.private_key}: the private key has a password; the defender cannot ask for it"
        ) from None
    except Exception as error:  # noqa: BLE001 - ValueError, UnsupportedAlgorithm, and what OpenSSL adds
        raise TLSFilesError(f"{files.private_key}: no private key in PEM form: {error}") from None
    if not isinstance(key, _PRIVATE_KEYS):
        raise TLSFilesError(
            f"{files.private_key}: a key of this kind cannot serve TLS: use ECDSA, Ed25519 or RSA"
        )
    if _public(key.public_key()) != _public(chain[0].public_key()):
        raise TLSFilesError(
            f"{files.private_key}: not the key of the first certificate in {files.certificate_chain}"
        )
    return chain, key


def _public(key: Any) -> bytes:
    data: bytes = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return data


def _certificates(path: str) -> list[x509.Certificate]:
    try:
        certificates = load_pem_certificates(_read(path))
    except ValueError as error:
        raise TLSFilesError(f"{path}: no certificates in PEM form: {error}") from None
    return certificates


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise TLSFilesError(f"{path}: {os.strerror(error.errno or 0)}") from None
