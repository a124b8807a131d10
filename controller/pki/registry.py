"""Enrollment in the store: who joins, which certificate counts, who renews. Each function is one transaction.

The rules are those of `tokens` and `renewals`, asked about what the store holds and written in the same
transaction: run them with `Database.write`, and of two requests that race the second one sees the first. What
raises undoes everything, so that no use of a token is lost on a certificate that could not be issued.

A function says with `Notice` what the audit trail should know of it. Times are unix seconds.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address

from cryptography import x509

from controller.pki.admission import RequestKeys, admit, der, refusal, waiting
from controller.pki.authority import Authority
from controller.pki.kept import (
    certificates_of,
    chains_of,
    chains_pem,
    find_token,
    hosts_of,
    keep_certificates,
    keep_use,
    use_of,
)
from controller.pki.renewals import (
    CertificateName,
    Certificates,
    Cloned,
    OfferAgain,
    Turned,
    Welcome,
    asked,
    expired,
    name_of,
    offered,
    rejoined,
    seen,
)
from controller.pki.tokens import (
    ASK_AGAIN,
    Refuse,
    Repeat,
    TokenUse,
    Wait,
    decide_waiting,
    judge,
)
from controller.store import defenders, join_tokens
from defender.contract.join import Answer, Joined, JoinRequest, Refused, RenewRequest
from defender.contract.peer_check import PeerIdentity, check_defender

_UNKNOWN = Turned("unknown-defender", "this controller knows no such defender; join again, with a new token")


@dataclass(frozen=True, slots=True)
class Notice:
    """What happened; `kind` is ``joined rejoined waiting refused renewed restored`` or ``cloned``."""

    kind: str
    defender: str = ""
    name: str = ""
    token: str = ""
    source: str = ""
    detail: str = ""


Record = Callable[[sqlite3.Connection, Notice], object]
"""Writes to the audit trail, in the transaction of what it tells of."""


@dataclass(frozen=True, slots=True)
class Office:
    """What the functions here need besides the store.

    ``trust``: the first root document of the bundles' trust. ``reserved``: names and addresses that no
    defender's certificate may carry: the controllers' own.
    """

    authority: Authority
    record: Record
    trust: bytes = b""
    reserved: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Issuance:
    """Certificates in DER for a defender that renews: the fields of RENEWED."""

    chain: tuple[bytes, ...]
    server_chain: tuple[bytes, ...]


def decide(
    connection: sqlite3.Connection, office: Office, token: str, key: bytes, *, agree: bool, now: int
) -> TokenUse | None:
    """Write an administrator's decision about a waiting host; None if it does not wait any more."""
    row = join_tokens.find_use(connection, token, key)
    decided = None if row is None else decide_waiting(use_of(row), agree=agree, now=now)
    if row is not None and decided is not None:
        keep_use(connection, decided, row.address)
    return decided


# Requests over the join protocol.


def join(
    connection: sqlite3.Connection,
    office: Office,
    request: JoinRequest,
    keys: RequestKeys,
    *,
    source: IPv4Address | IPv6Address,
    new_id: str,
    now: int,
) -> Answer:
    """Answer a host that has a token. Raises AuthorityError: then nothing was written."""
    token = find_token(connection, request.token)
    row = join_tokens.find_use(connection, request.token, keys.digest)
    holder = defenders.find_named(connection, request.name)
    verdict = judge(
        token,
        None if row is None else use_of(row),
        request,
        key=keys.digest,
        source=source,
        holder=None if holder is None else holder.id,
        new_id=new_id,
        now=now,
    )

    def note(kind: str, defender: str = "", detail: str = "") -> None:
        known = token.id if token is not None else ""
        office.record(connection, Notice(kind, defender, request.name, known, str(source), detail))

    if isinstance(verdict, Refuse) or token is None:
        refuse = verdict if isinstance(verdict, Refuse) else Refuse("token", "unknown")
        note("refused", detail=f"{refuse.code}: {refuse.detail}")
        return refusal(refuse)
    if isinstance(verdict, Repeat):
        return _again(connection, office, verdict.use)
    if verdict.consumes and join_tokens.consume(connection, token.id, token.digest, now) is None:
        note("refused", detail="token-used")
        return Refused("token-used", "this join token was used; ask for another one")
    use = verdict.use
    if holder is not None and holder.id != use.defender:
        # While it waited for an administrator another host took its name.
        note("refused", detail="name-taken")
        return Refused("name-taken", f"there is a defender named {use.name!r} by now")
    keep_use(connection, use, str(source))
    if isinstance(verdict, Wait):
        if verdict.consumes:
            note("waiting", use.defender)
        return waiting(verdict, ASK_AGAIN)
    answer = admit(
        office.authority,
        keys,
        identifier=use.defender,
        name=use.name,
        requested=request.hosts,
        source=source,
        patterns=token.hosts,
        taken=office.reserved,
        trust=office.trust,
        now=datetime.fromtimestamp(now, UTC),
    )
    new = name_of(_peer(answer, office))
    if holder is not None:
        known = certificates_of(connection, use.defender)
        keep_certificates(
            connection,
            use.defender,
            rejoined(known, new, now) if known is not None else Certificates(new),
            {new.fingerprint: chains_pem(answer)},
            now,
        )
        note("rejoined", use.defender)
    else:
        defenders.add(
            connection, use.defender, use.name, enrolled=now, token=token.id, labels=dict(token.labels)
        )
        keep_certificates(
            connection, use.defender, Certificates(new), {new.fingerprint: chains_pem(answer)}, now
        )
        note("joined", use.defender)
    return answer


def renew_expired(
    connection: sqlite3.Connection,
    office: Office,
    request: RenewRequest,
    peer: PeerIdentity,
    keys: RequestKeys,
    *,
    source: IPv4Address | IPv6Address,
    now: int,
) -> Answer:
    """Answer a defender that has proven to have the key of an expired certificate of this fleet.

    ``peer``: who that certificate is of, chain and proof checked. Raises AuthorityError.
    """
    known = certificates_of(connection, peer.identifier)
    outcome = _UNKNOWN if known is None else expired(known, name_of(peer), now)
    turned = _settle(connection, office, peer, outcome, now)
    if turned is not None:
        return Refused(turned.code, turned.detail)
    current = certificates_of(connection, peer.identifier)
    row = defenders.find(connection, peer.identifier)
    if current is None or row is None:
        return Refused(_UNKNOWN.code, _UNKNOWN.detail)
    asking = asked(current, name_of(peer), keys.digest)
    if isinstance(asking, Turned):
        return Refused(asking.code, asking.detail)
    if isinstance(asking, OfferAgain):
        return _joined(connection, office, peer.identifier, row.name, asking.certificate)
    return _offer(connection, office, current, row.name, peer.identifier, keys, request.hosts, source, now)


# On the channel.


def shown(connection: sqlite3.Connection, office: Office, peer: PeerIdentity, now: int) -> Welcome | Turned:
    """Say whether a defender that opens a channel with this certificate is welcome, and write what it means.

    A clone is turned away like any other (code ``locked``); its alarm is a `Notice`.
    """
    known = certificates_of(connection, peer.identifier)
    outcome = _UNKNOWN if known is None else seen(known, name_of(peer), now)
    turned = _settle(connection, office, peer, outcome, now)
    if turned is not None:
        return turned
    assert isinstance(outcome, Welcome)
    return outcome


def renew(
    connection: sqlite3.Connection, office: Office, peer: PeerIdentity, keys: RequestKeys, now: int
) -> Issuance | Turned:
    """Answer RENEW on a channel that was opened with ``peer``'s certificate. Raises AuthorityError.

    The certificate towards users keeps its names.
    """
    known = certificates_of(connection, peer.identifier)
    row = defenders.find(connection, peer.identifier)
    if known is None or row is None:
        return _UNKNOWN
    outcome = asked(known, name_of(peer), keys.digest)
    if isinstance(outcome, Turned):
        return outcome
    if isinstance(outcome, OfferAgain):
        chain, server_chain = chains_of(connection, peer.identifier, outcome.certificate)
        return Issuance(chain, server_chain)
    answer = _offer(connection, office, known, row.name, peer.identifier, keys, (), None, now)
    return Issuance(answer.chain, answer.server_chain)


def commit(connection: sqlite3.Connection, office: Office, peer: PeerIdentity, serial: str, now: int) -> bool:
    """Take COMMIT: the offered certificate of this serial number is in use from now on; False for another."""
    known = certificates_of(connection, peer.identifier)
    if known is None or known.offered is None or known.lock:
        return False
    chain, _ = chains_of(connection, peer.identifier, known.offered)
    if format(x509.load_der_x509_certificate(chain[0]).serial_number, "x") != serial:
        return False
    outcome = seen(known, known.offered, now)
    if not isinstance(outcome, Welcome):
        return False
    keep_certificates(connection, peer.identifier, outcome.certificates, {}, now)
    return True


def _offer(
    connection: sqlite3.Connection,
    office: Office,
    known: Certificates,
    name: str,
    identifier: str,
    keys: RequestKeys,
    hosts: Collection[str],
    source: IPv4Address | IPv6Address | None,
    now: int,
) -> Joined:
    # What it had before it may have again; the rules are for what is new.
    before = hosts_of(connection, identifier)
    answer = admit(
        office.authority,
        keys,
        identifier=identifier,
        name=name,
        requested=hosts or before,
        source=source,
        patterns=before,
        taken=office.reserved,
        trust=office.trust,
        now=datetime.fromtimestamp(now, UTC),
    )
    new = name_of(_peer(answer, office))
    keep_certificates(
        connection, identifier, offered(known, new, now), {new.fingerprint: chains_pem(answer)}, now
    )
    office.record(connection, Notice("renewed", identifier, name))
    return answer


def _settle(
    connection: sqlite3.Connection,
    office: Office,
    peer: PeerIdentity,
    outcome: Welcome | Cloned | Turned,
    now: int,
) -> Turned | None:
    """Write what a shown certificate means; return why it does not count, if it does not."""
    if isinstance(outcome, Turned):
        return outcome
    if isinstance(outcome, Cloned):
        keep_certificates(connection, peer.identifier, outcome.certificates, {}, now)
        if outcome.new:
            notice = Notice("cloned", peer.identifier, peer.name, detail=outcome.detail)
            office.record(connection, notice)
        return Turned("locked", outcome.detail)
    if outcome.changed:
        # Of one that this store does not know the chain is lost; it is never given again.
        keep_certificates(connection, peer.identifier, outcome.certificates, {}, now)
        if outcome.how == "restored":
            office.record(connection, Notice("restored", peer.identifier, peer.name))
    return None


def _peer(answer: Joined, office: Office) -> PeerIdentity:
    leaf = x509.load_der_x509_certificate(answer.chain[0])
    return check_defender(leaf, office.authority.trust_domain)


def _again(connection: sqlite3.Connection, office: Office, use: TokenUse) -> Answer:
    """The very certificate of a use, as long as it counts."""
    known = certificates_of(connection, use.defender)
    if known is None or known.lock or known.used.key != use.key:
        return Refused("token-used", "this join token was used, and its certificate was replaced since")
    return _joined(connection, office, use.defender, use.name, known.used)


def _joined(
    connection: sqlite3.Connection, office: Office, identifier: str, name: str, which: CertificateName
) -> Joined:
    chain, server_chain = chains_of(connection, identifier, which)
    return Joined(
        defender=identifier,
        name=name,
        trust_domain=office.authority.trust_domain,
        chain=chain,
        roots=(der(office.authority.root),),
        fleet=tuple(der(each) for each in office.authority.all_fleet),
        server_chain=server_chain,
        trust=office.trust,
    )
