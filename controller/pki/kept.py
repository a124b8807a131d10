"""What the store keeps of join tokens and certificates, as the rules know it, and back.

The chain of a certificate is stored as it was sent: the certificate towards the controller with its
intermediate, then the one towards users with its own, in PEM. Each function runs inside a transaction of the
store.
"""

from __future__ import annotations

import sqlite3
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from controller.pki.authority import certificate_pem
from controller.pki.credentials import certificate_hosts
from controller.pki.renewals import CertificateName, Certificates, Superseded
from controller.pki.tokens import StoredToken, TokenUse, UseState, terms_of, with_terms
from controller.store import certificates, defenders, join_tokens
from controller.store.certificates import CertificateRow
from controller.store.join_tokens import JoinTokenRow, JoinUseRow
from defender.contract.join import Joined

Chains = tuple[tuple[bytes, ...], tuple[bytes, ...]]
"""The chain towards the controller and the one towards users, in DER; () for one that is not there."""


def add_token(connection: sqlite3.Connection, token: StoredToken) -> None:
    """Keep a new token."""
    join_tokens.add(
        connection,
        JoinTokenRow(
            id=token.id,
            digest=token.digest,
            created=token.created,
            expires=token.expires,
            max_uses=token.max_uses,
            author=token.created_by,
            terms=terms_of(token),
        ),
    )


def find_token(connection: sqlite3.Connection, identifier: str) -> StoredToken | None:
    """Return the token of this id."""
    row = join_tokens.find(connection, identifier)
    return None if row is None else token_of(row)


def token_of(row: JoinTokenRow) -> StoredToken:
    """Return a token as the rules know it."""
    token = StoredToken(
        id=row.id,
        digest=row.digest,
        created=int(row.created),
        expires=int(row.expires),
        max_uses=row.max_uses,
        uses=row.uses,
        revoked=row.revoked is not None,
        created_by=row.author,
    )
    return with_terms(token, row.terms)


def certificates_of(connection: sqlite3.Connection, identifier: str) -> Certificates | None:
    """Return the certificates of a defender, None if there is no such defender."""
    row = defenders.find(connection, identifier)
    if row is None:
        return None
    used: CertificateName | None = None
    offer: CertificateName | None = None
    superseded: list[Superseded] = []
    for each in certificates.of(connection, identifier):
        name = CertificateName(each.fingerprint, each.key, each.not_before, each.not_after)
        if each.state == "used":
            used = name
        elif each.state == "offered":
            offer = name
        else:
            superseded.append(Superseded(name, each.since))
    if used is None:
        return None
    superseded.sort(key=lambda each: each.since)
    return Certificates(used, offer, tuple(superseded), row.lock)


def keep_certificates(
    connection: sqlite3.Connection,
    identifier: str,
    known: Certificates,
    chains: dict[bytes, bytes],
    now: int,
) -> None:
    """Keep them. ``chains``: PEM by fingerprint, of those that are new; others keep what they have."""
    since = {(row.fingerprint, row.state): row.since for row in certificates.of(connection, identifier)}

    def row(name: CertificateName, state: str, when: int | None = None) -> CertificateRow:
        return CertificateRow(
            name.fingerprint,
            name.key,
            name.not_before,
            name.not_after,
            state,
            when if when is not None else since.get((name.fingerprint, state), now),
            chains.get(name.fingerprint, b""),
        )

    rows = [row(known.used, "used")]
    if known.offered is not None:
        rows.append(row(known.offered, "offered"))
    rows.extend(row(each.certificate, "superseded", each.since) for each in known.superseded)
    certificates.keep(connection, identifier, rows)
    defenders.set_lock(connection, identifier, known.lock)


def chains_of(connection: sqlite3.Connection, identifier: str, which: CertificateName) -> Chains:
    """Return what was sent with this certificate."""
    for row in certificates.of(connection, identifier):
        if row.fingerprint == which.fingerprint:
            return _chains(row.chain)
    return (), ()


def hosts_of(connection: sqlite3.Connection, identifier: str) -> tuple[str, ...]:
    """Return the names of a defender's youngest certificate towards users that the store has.

    The youngest certificate may be one that a controller issued whose store is lost.
    """
    for row in reversed(certificates.of(connection, identifier)):
        _, server = _chains(row.chain)
        if server:
            return certificate_hosts(x509.load_der_x509_certificate(server[0]))
    return ()


def use_of(row: JoinUseRow) -> TokenUse:
    """Return a use as the rules know it. The store has no others than their states."""
    state = cast("UseState", row.state)
    return TokenUse(row.token, row.key, row.defender, row.name, state, int(row.begun), int(row.issued))


def keep_use(connection: sqlite3.Connection, use: TokenUse, address: str) -> None:
    """Keep a use; ``address``: where its request came from."""
    join_tokens.keep_use(
        connection,
        JoinUseRow(use.token, use.key, use.defender, use.name, use.state, address, use.begun, use.issued),
    )


def chains_pem(answer: Joined) -> bytes:
    """Both chains one after the other, as they are stored."""
    chain = (*answer.chain, *answer.server_chain)
    return b"".join(certificate_pem(x509.load_der_x509_certificate(each)) for each in chain)


def _chains(pem: bytes) -> Chains:
    """Both chains of a stored text: each is a leaf and its intermediate. None for a text that was lost."""
    found = tuple(map(_der, x509.load_pem_x509_certificates(pem))) if pem else ()
    return found[:2], found[2:]


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)
