"""From a join request to a defender's certificates: what `tokens` and `renewals` need first, and lead to.

keys = read_keys(request)                        # before a token is looked at: a bad CSR costs no use
verdict = judge(..., key=keys.digest)            # in the store's transaction
answer = admit(authority, ...)                   # for an `Issue`; keep the answer's certificates with it
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from controller.pki.authority import DEFENDER_LIFE, Authority, AuthorityError, Issued
from controller.pki.hosts import allowed_hosts
from controller.pki.tokens import Refuse, Wait
from defender.contract.join import Joined, JoinError, Refused, Request, Waiting, read_csr

WAIT_TEXT = "an administrator has to agree to this host"


@dataclass(frozen=True, slots=True)
class RequestKeys:
    """The public keys of a request. ``digest``: SHA-256 of the first one's SubjectPublicKeyInfo."""

    key: ec.EllipticCurvePublicKey = field(repr=False)
    digest: bytes
    server_key: ec.EllipticCurvePublicKey | None = field(default=None, repr=False)


def read_keys(request: Request) -> RequestKeys:
    """Return the keys that a request asks certificates for; raises JoinError (codes ``csr``, ``key``)."""
    return keys_of(request.csr, request.server_csr)


def keys_of(csr: bytes, server_csr: bytes) -> RequestKeys:
    """Return the keys of two signing requests in DER, the second b"" for none; raises as `read_keys`."""
    key = read_csr(csr)
    server_key = read_csr(server_csr) if server_csr else None
    if server_key == key:
        raise JoinError("key", "the two certificates need two keys")
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return RequestKeys(key, sha256(spki).digest(), server_key)


def admit(
    authority: Authority,
    keys: RequestKeys,
    *,
    identifier: str,
    name: str,
    requested: Collection[str],
    source: IPv4Address | IPv6Address | None,
    patterns: Collection[str] = (),
    taken: Collection[str] = (),
    trust: bytes = b"",
    now: datetime,
) -> Joined:
    """Issue the certificates of a defender and return the answer that carries them.

    ``requested``, ``source``, ``patterns``, ``taken``: as for `hosts.allowed_hosts`. A defender that asks for
    a server certificate and may have no name at all gets one for the loop. Raises AuthorityError.
    """
    client = authority.issue_defender_client(keys.key, identifier, name, now=now)
    server: tuple[bytes, ...] = ()
    left_out: tuple[str, ...] = ()
    if keys.server_key is not None:
        hosts, left_out = allowed_hosts(name, requested, source=source, patterns=patterns, taken=taken)
        issued = authority.issue_server(
            keys.server_key, name, hosts or ("localhost",), now=now, life=DEFENDER_LIFE, identifier=identifier
        )
        server = _chain(issued)
    return Joined(
        defender=identifier,
        name=name,
        trust_domain=authority.trust_domain,
        chain=_chain(client),
        roots=(der(authority.root),),
        fleet=tuple(der(each) for each in authority.all_fleet),
        server_chain=server,
        trust=trust,
        left_out=left_out,
    )


def refusal(error: JoinError | AuthorityError | Refuse) -> Refused:
    """Return the answer to a request that leads to nothing."""
    if isinstance(error, Refuse):
        return Refused(error.code, error.detail, error.retry_after)
    if isinstance(error, JoinError):
        return Refused(error.code, error.detail)
    return Refused("authority", str(error))


def waiting(verdict: Wait, retry_after: int) -> Waiting:
    """Return the answer to a request that waits for an administrator."""
    return Waiting(retry_after, f"{WAIT_TEXT}, as {verdict.use.name!r}")


def _chain(issued: Issued) -> tuple[bytes, ...]:
    return der(issued.leaf), der(issued.issuer)


def der(certificate: x509.Certificate) -> bytes:
    """Return the certificate in DER."""
    return certificate.public_bytes(Encoding.DER)
