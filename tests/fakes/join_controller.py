"""A controller that lets hosts in: the rules of `controller.pki` over a store in memory, with no network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any
from uuid import UUID

from cryptography import x509
from twisted.internet.defer import Deferred, fail, succeed

from controller.pki.admission import admit, read_keys, refusal, waiting
from controller.pki.renewals import (
    CertificateName,
    Certificates,
    Cloned,
    Turned,
    expired,
    name_of,
    offered,
    rejoined,
)
from controller.pki.tokens import (
    Issue,
    Refuse,
    Repeat,
    StoredToken,
    TokenUse,
    Wait,
    consume,
    folded,
    judge,
    store_token,
)
from defender.contract.join import (
    Answer,
    Joined,
    JoinError,
    JoinRequest,
    Refused,
    RenewRequest,
    decode_request,
    encode_answer,
)
from defender.contract.join_token import JoinToken, new_token
from defender.contract.peer_check import PeerIdentity, check_defender
from defender.contract.renewal import check_proof
from tests.fakes.authority import TestAuthority

LOOPBACK = ip_address("127.0.0.1")
TRUST = b"the first root document"


@dataclass
class JoinController:
    """Answers requests. ``now``: unix seconds. The payloads that came are kept in `requests`."""

    pki: TestAuthority = field(default_factory=TestAuthority)
    now: int = 0
    tokens: dict[str, StoredToken] = field(default_factory=dict)
    uses: dict[tuple[str, bytes], TokenUse] = field(default_factory=dict)
    answers: dict[bytes, Joined] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    certificates: dict[str, Certificates] = field(default_factory=dict)
    requests: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.now = self.now or int(self.pki.now.timestamp())

    def token(self, **terms: Any) -> JoinToken:
        """Make a token and keep what a controller keeps of it."""
        mark = sha256(b"%d" % len(self.tokens)).digest()
        token = new_token(mark[:30], self.pki.root)
        self.tokens[token.id] = store_token(token, now=self.now, **terms)
        return token

    def answer(self, payload: bytes, binding: bytes) -> bytes:
        """Return the answer's payload to a request's payload."""
        self.requests.append(payload)
        return encode_answer(self._answer(payload, binding, LOOPBACK))

    def ask(self, pins: frozenset[bytes], build: Callable[[bytes], bytes]) -> Deferred[bytes]:
        """The network, left out: an `enrollment.Ask`."""
        try:
            return succeed(self.answer(build(bytes(32)), bytes(32)))
        except Exception:
            return fail()

    def _answer(self, payload: bytes, binding: bytes, source: IPv4Address | IPv6Address) -> Answer:
        try:
            request = decode_request(payload)
            if isinstance(request, JoinRequest):
                return self._join(request, source)
            return self._renew(request, binding, source)
        except JoinError as error:
            return refusal(error)

    def _join(self, request: JoinRequest, source: IPv4Address | IPv6Address) -> Answer:
        keys = read_keys(request)
        token = self.tokens.get(request.token)
        previous = self.uses.get((request.token, keys.digest))
        number = UUID(int=len(self.uses) + 1, version=4)
        verdict = judge(
            token,
            previous,
            request,
            key=keys.digest,
            source=source,
            holder=self.names.get(folded(request.name)),
            new_id=str(number),
            now=self.now,
        )
        if isinstance(verdict, Refuse):
            return refusal(verdict)
        if isinstance(verdict, Repeat):
            return self.answers[keys.digest]
        assert token is not None
        if verdict.consumes:
            after = consume(token, self.now)
            assert after is not None
            self.tokens[token.id] = after
        self.uses[token.id, keys.digest] = verdict.use
        if isinstance(verdict, Wait):
            return waiting(verdict, 10)
        assert isinstance(verdict, Issue)
        answer = admit(
            self.pki.authority,
            keys,
            identifier=verdict.use.defender,
            name=verdict.use.name,
            requested=request.hosts,
            source=source,
            patterns=token.hosts,
            trust=TRUST,
            now=self.moment,
        )
        self.names[folded(verdict.use.name)] = verdict.use.defender
        new, known = self.name_of(answer), self.certificates.get(verdict.use.defender)
        self.certificates[verdict.use.defender] = (
            rejoined(known, new, self.now) if known is not None else Certificates(new)
        )
        self.answers[keys.digest] = answer
        return answer

    def _renew(self, request: RenewRequest, binding: bytes, source: IPv4Address | IPv6Address) -> Answer:
        peer = self.peer(check_proof(request, binding))
        keys = read_keys(request)
        outcome = expired(self.certificates[peer.identifier], name_of(peer), self.now)
        if isinstance(outcome, Turned):
            return Refused(outcome.code, outcome.detail)
        self.certificates[peer.identifier] = outcome.certificates
        if isinstance(outcome, Cloned):
            return Refused("locked", outcome.detail)
        answer = admit(
            self.pki.authority,
            keys,
            identifier=peer.identifier,
            name=peer.name,
            requested=request.hosts,
            source=source,
            now=self.moment,
        )
        known = offered(outcome.certificates, self.name_of(answer), self.now)
        self.certificates[peer.identifier] = known
        return answer

    @property
    def moment(self) -> datetime:
        return datetime.fromtimestamp(self.now, UTC)

    def peer(self, certificate: x509.Certificate) -> PeerIdentity:
        certificate.verify_directly_issued_by(self.pki.fleet)
        return check_defender(certificate, self.pki.trust_domain)

    def name_of(self, answer: Joined) -> CertificateName:
        return name_of(self.peer(x509.load_der_x509_certificate(answer.chain[0])))
