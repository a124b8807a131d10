"""When a defender's certificate is renewed, and how a defender proves who it was after it has expired.

Renewal in time goes over the channel, in two phases: the controller issues the new certificate, and the old
one stays valid until the new one has been *used*. A lost answer therefore strands nobody.

A defender that was off for longer comes back within `GRACE` after the end of its certificate: over the
join protocol, without a client certificate, it shows the old one and signs, with the old key, what ties the
request to this one TLS connection (`proof_text`). Nobody who records or relays the proof can use it: the
connection's exporter is another one on every connection, and the keys asked for are part of the text.

Pure. Times are unix seconds.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from defender.contract.errors import one_line
from defender.contract.join import BINDING_SIZE, JoinError, RenewRequest

LIFE: Final = 7 * 86_400
"""Seconds that a defender's certificate lives."""
GRACE: Final = 30 * 86_400
"""Seconds after its end in which the old key is still taken as proof."""
SPREAD: Final = 0.1
"""Renewal is due at half of a certificate's life, give or take this share of the half."""

_PROOF: Final = b"dfleet renewal 1\0"


def renewal_time(not_before: float, not_after: float, fraction: float) -> float:
    """Return when a certificate is due for renewal.

    ``fraction``: random, 0 to 1, chosen once for each certificate, so that defenders that joined together do
    not renew together.
    """
    half = (not_after - not_before) / 2
    return not_before + half * (1 + SPREAD * (2 * min(max(fraction, 0.0), 1.0) - 1))


def proof_text(binding: bytes, certificate: bytes, csr: bytes, server_csr: bytes) -> bytes:
    """Return what the old key signs (ECDSA, SHA-256). All certificates and requests are in DER.

    ``binding``: of this TLS connection, see `join.BINDING_LABEL`.
    """
    if len(binding) != BINDING_SIZE:
        raise ValueError(f"the binding has {BINDING_SIZE} bytes")
    return _PROOF + binding + b"".join(sha256(each).digest() for each in (certificate, csr, server_csr))


def check_proof(request: RenewRequest, binding: bytes) -> x509.Certificate:
    """Return the old certificate that a request proves to have the key of; raises JoinError.

    Codes: ``certificate`` (unreadable, or no P-256 key), ``proof``. Who issued it, whose it is and when it
    ended is for the caller to judge.
    """
    try:
        certificate = x509.load_der_x509_certificate(request.certificate)
        key = certificate.public_key()
    except Exception as error:  # noqa: BLE001 - ValueError, UnsupportedAlgorithm and types of OpenSSL's
        raise JoinError(
            "certificate", f"the certificate cannot be read: {one_line(str(error))[:200]}"
        ) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise JoinError("certificate", "the certificate's key is not a P-256 key")
    text = proof_text(binding, request.certificate, request.csr, request.server_csr)
    try:
        key.verify(request.proof, text, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise JoinError("proof", "the request is not signed with the key of the old certificate") from None
    return certificate
