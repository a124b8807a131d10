"""Enrollment at the controller, on a real store: requests that race, crashes, renewals, clones."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.trial.unittest import TestCase

from controller.pki import kept, registry
from controller.pki.admission import der, keys_of
from controller.pki.authority import FLEET_CA
from controller.pki.credentials import certificate_hosts
from controller.pki.enrollment import Enrollment
from controller.pki.registry import Issuance, Notice, Office
from controller.pki.renewals import CROSSING, Turned, Welcome
from controller.pki.tokens import REPEAT, store_token
from controller.store import defenders
from controller.store.database import Database
from defender.channel.store import MemberStore, NewKeys
from defender.contract.join import (
    Answer,
    Joined,
    JoinRequest,
    Refused,
    RenewRequest,
    Waiting,
    check_joined,
    decode_answer,
    encode_request,
)
from defender.contract.join_token import JoinToken, new_token, pin_of
from defender.contract.peer_check import PeerIdentity, check_defender
from defender.contract.renewal import GRACE, LIFE, proof_text
from tests.fakes.authority import TestAuthority

HERE = "10.1.2.3"
BINDING = bytes(range(32))


@dataclass
class Host:
    """A host that asks: its name and keys."""

    name: str
    keys: NewKeys

    def request(self, token: JoinToken, **more: Any) -> bytes:
        request = JoinRequest(
            token=token.id,
            secret=token.secret,
            name=self.name,
            csr=self.keys.csr,
            server_csr=self.keys.server_csr,
            hosts=(self.name, HERE, "elsewhere.test"),
        )
        return encode_request(replace(request, **more))


class EnrollmentCase(TestCase):
    """A controller's store and authority."""

    def setUp(self) -> None:
        self.pki = TestAuthority()
        self.now = int(self.pki.now.timestamp())
        self.seconds = 0.0
        self.notices: list[Notice] = []
        self.office = Office(self.pki.authority, self.record, b"trust", ("controller.test",))
        self.made = 0
        self.directory = Path(self.mktemp())
        self.start()
        self.addCleanup(lambda: self.database.stop())

    def start(self) -> None:
        self.database = Database(self.directory, reactor)  # type: ignore[arg-type]
        self.database.start()
        self.enrollment = Enrollment(
            self.database, lambda: self.office, clock=lambda: self.now, seconds=self.tick
        )

    def tick(self) -> float:
        self.seconds += 1
        return self.seconds

    def record(self, connection: sqlite3.Connection, notice: Notice) -> None:
        assert connection.in_transaction
        self.notices.append(notice)

    def host(self, name: str = "web1") -> Host:
        self.made += 1
        return Host(name, MemberStore(Path(self.mktemp()) / "fleet").new_keys())

    async def token(self, **terms: Any) -> JoinToken:
        self.made += 1
        token = new_token(sha256(b"%d" % self.made).digest()[:30], self.pki.root)
        await self.database.write(kept.add_token, store_token(token, now=self.now, **terms))
        return token

    async def ask(self, payload: bytes, source: str = HERE) -> Answer:
        return decode_answer(await self.enrollment.joins(payload, source, BINDING))

    async def joined(self, host: Host, token: JoinToken | None = None) -> Joined:
        answer = await self.ask(host.request(token or await self.token()))
        assert isinstance(answer, Joined), answer
        check_joined(
            answer,
            key=host.keys.key.public_key(),
            server_key=host.keys.server_key.public_key(),
            pins=frozenset({pin_of(self.pki.root)}),
            now=float(self.now),
        )
        return answer

    async def refused(self, payload: bytes, source: str = HERE) -> str:
        answer = await self.ask(payload, source)
        assert isinstance(answer, Refused), answer
        return answer.code

    async def uses(self, token: JoinToken) -> int:
        found = await self.database.read(kept.find_token, token.id)
        assert found is not None
        return found.uses

    def peer(self, answer: Joined | Issuance) -> PeerIdentity:
        return check_defender(x509.load_der_x509_certificate(answer.chain[0]), self.pki.trust_domain)

    async def shown(self, answer: Joined | Issuance) -> Welcome | Turned:
        return await self.database.write(registry.shown, self.office, self.peer(answer), self.now)

    async def renew(self, answer: Joined | Issuance, keys: NewKeys) -> Issuance | Turned:
        asked = keys_of(keys.csr, keys.server_csr)
        return await self.database.write(registry.renew, self.office, self.peer(answer), asked, self.now)


class JoinTests(EnrollmentCase):
    """With a token."""

    async def test_a_defender(self) -> None:
        token = await self.token(labels={"env": "prod"})
        answer = await self.joined(self.host(), token)
        self.assertEqual((answer.name, answer.trust), ("web1", b"trust"))
        self.assertEqual(answer.left_out, ("elsewhere.test",))
        server = x509.load_der_x509_certificate(answer.server_chain[0])
        self.assertEqual(certificate_hosts(server), ("web1", HERE))
        row = await self.database.read(defenders.find, answer.defender)
        assert row is not None
        self.assertEqual((row.name, dict(row.labels), row.token), ("web1", {"env": "prod"}, token.id))
        self.assertIsInstance(await self.shown(answer), Welcome)
        notice = Notice("joined", answer.defender, "web1", token.id, HERE)
        self.assertEqual(self.notices, [notice])

    async def test_the_controllers_own_names_are_not_to_be_had(self) -> None:
        token = await self.token(hosts=("*.test",))
        payload = self.host().request(token, hosts=("controller.test", "web1.test"))
        answer = await self.ask(payload)
        assert isinstance(answer, Joined)
        self.assertEqual(answer.left_out, ("controller.test",))

    async def test_racing_hosts(self) -> None:
        """Twenty at once, three uses: three get in, all others are told so."""
        token = await self.token(max_uses=3)
        hosts = [self.host(f"web{number}") for number in range(20)]
        payloads = [host.request(token) for host in hosts]
        answers = await gatherResults([self.enrollment.joins(each, HERE, BINDING) for each in payloads])
        read = [decode_answer(each) for each in answers]
        self.assertEqual(sum(isinstance(each, Joined) for each in read), 3)
        self.assertEqual({each.code for each in read if isinstance(each, Refused)}, {"token-used"})
        self.assertEqual(await self.uses(token), 3)
        self.assertEqual(len(await self.database.read(defenders.every)), 3)

    async def test_racing_hosts_of_one_name(self) -> None:
        token = await self.token(max_uses=10)
        payloads = [self.host("web1").request(token) for _ in range(5)]
        answers = await gatherResults([self.enrollment.joins(each, HERE, BINDING) for each in payloads])
        read = [decode_answer(each) for each in answers]
        self.assertEqual(sum(isinstance(each, Joined) for each in read), 1)
        self.assertEqual({each.code for each in read if isinstance(each, Refused)}, {"name-taken"})
        self.assertEqual(await self.uses(token), 1)

    async def test_one_host_that_asks_at_once_and_again(self) -> None:
        """The very same certificate each time, for ten minutes, also after the store was opened anew."""
        token = await self.token()
        payload = self.host().request(token)
        answers = await gatherResults([self.enrollment.joins(payload, HERE, BINDING) for _ in range(5)])
        self.assertEqual(len({decode_answer(each).chain for each in answers}), 1)  # type: ignore[union-attr]
        await self.database.stop()
        self.start()
        self.now += REPEAT - 1
        again = await self.ask(payload)
        first = decode_answer(answers[0])
        assert isinstance(again, Joined)
        assert isinstance(first, Joined)
        self.assertEqual((again.chain, again.server_chain), (first.chain, first.server_chain))
        self.assertEqual(await self.uses(token), 1)
        self.now += 1
        self.assertEqual(await self.refused(payload), "token-used")

    async def test_a_certificate_that_cannot_be_issued_costs_no_use(self) -> None:
        token, host = await self.token(), self.host()
        signers = self.pki.custody._signers
        signer = signers.pop(FLEET_CA)
        self.assertEqual(await self.refused(host.request(token)), "authority")
        self.assertEqual(await self.uses(token), 0)
        signers[FLEET_CA] = signer
        await self.joined(host, token)

    async def test_a_bad_signing_request_costs_no_use(self) -> None:
        token = await self.token()
        self.assertEqual(await self.refused(self.host().request(token, csr=b"x")), "csr")
        host = self.host()
        twice = host.request(token, server_csr=host.keys.csr)
        self.assertEqual(await self.refused(twice), "key")
        self.assertEqual(await self.uses(token), 0)

    async def test_whatever_comes_is_answered(self) -> None:
        for payload in (b"", b"\xc1", b"x" * 100_000):
            self.assertEqual(await self.refused(payload), "request")
        self.assertEqual(
            await self.refused(self.host().request(await self.token()), "not an address"), "unavailable"
        )
        self.assertEqual(len(self.flushLoggedErrors()), 1)

    async def test_too_many(self) -> None:
        payload = self.host().request(await self.token())
        self.enrollment = Enrollment(
            self.database, lambda: self.office, clock=lambda: self.now, seconds=lambda: 5.0
        )
        codes = [await self.ask(payload.replace(b"web1", b"web2")) for _ in range(6)]
        self.assertEqual(getattr(codes[-1], "code", ""), "rate")

    async def test_refusals_are_told_without_the_secret(self) -> None:
        token = await self.token()
        wrong = self.host().request(token, secret=bytes(20))
        self.assertEqual(await self.refused(wrong), "token")
        (notice,) = self.notices
        self.assertEqual((notice.kind, notice.source), ("refused", HERE))
        self.assertNotIn(repr(bytes(20)), repr(notice))

    async def test_a_store_that_is_gone(self) -> None:
        payload = self.host().request(await self.token())
        await self.database.stop()
        self.assertEqual(await self.refused(payload), "unavailable")
        self.flushLoggedErrors()
        self.start()


class ApprovalTests(EnrollmentCase):
    """An administrator has to agree."""

    async def test_agreed(self) -> None:
        token, host = await self.token(approval=True), self.host()
        for _ in range(3):
            self.assertIsInstance(await self.ask(host.request(token)), Waiting)
        self.assertEqual([notice.kind for notice in self.notices], ["waiting"])
        key = keys_of(host.keys.csr, b"").digest
        decided = await self.database.write(
            registry.decide, self.office, token.id, key, agree=True, now=self.now
        )
        assert decided is not None
        answer = await self.joined(host, token)
        self.assertEqual(answer.defender, decided.defender)
        self.assertEqual(await self.uses(token), 1)

    async def test_not_agreed(self) -> None:
        token, host = await self.token(approval=True), self.host()
        await self.ask(host.request(token))
        key = keys_of(host.keys.csr, b"").digest
        await self.database.write(registry.decide, self.office, token.id, key, agree=False, now=self.now)
        self.assertEqual(await self.refused(host.request(token)), "denied")
        again = await self.database.write(
            registry.decide, self.office, token.id, key, agree=True, now=self.now
        )
        self.assertIsNone(again)

    async def test_its_name_is_taken_meanwhile(self) -> None:
        token, host = await self.token(approval=True), self.host()
        await self.ask(host.request(token))
        key = keys_of(host.keys.csr, b"").digest
        await self.database.write(registry.decide, self.office, token.id, key, agree=True, now=self.now)
        await self.joined(self.host())
        self.assertEqual(await self.refused(host.request(token)), "name-taken")


class ChannelTests(EnrollmentCase):
    """Renewal in two phases, and clones."""

    async def test_two_phases(self) -> None:
        old = await self.joined(self.host())
        keys = self.host().keys
        self.now += LIFE // 2
        new = await self.renew(old, keys)
        assert isinstance(new, Issuance)
        self.assertEqual(await self.renew(old, keys), new, "a lost answer is given again")
        hosts = certificate_hosts(x509.load_der_x509_certificate(new.server_chain[0]))
        self.assertEqual(hosts, ("web1", HERE), "its names stay")
        outcome = await self.shown(old)
        assert isinstance(outcome, Welcome)
        self.assertEqual(outcome.how, "used")
        outcome = await self.shown(new)
        assert isinstance(outcome, Welcome)
        self.assertEqual(outcome.how, "promoted")

    async def test_commit(self) -> None:
        old = await self.joined(self.host())
        new = await self.renew(old, self.host().keys)
        assert isinstance(new, Issuance)
        peer = self.peer(old)
        for serial, done in (("1", False), (self.peer(new).serial, True), (self.peer(new).serial, False)):
            taken = await self.database.write(registry.commit, self.office, peer, serial, self.now)
            self.assertEqual(taken, done)
        outcome = await self.shown(new)
        assert isinstance(outcome, Welcome)
        self.assertEqual(outcome.how, "used")

    async def test_a_clone(self) -> None:
        """Alarm once, and that one defender is shut out, until a new token for its name lets it in."""
        old, other = await self.joined(self.host()), await self.joined(self.host("web2"))
        new = await self.renew(old, self.host().keys)
        assert isinstance(new, Issuance)
        await self.shown(new)
        self.now += CROSSING
        for shown in (old, old, new):
            turned = await self.shown(shown)
            assert isinstance(turned, Turned)
            self.assertEqual(turned.code, "locked")
        self.assertEqual([notice.kind for notice in self.notices].count("cloned"), 1)
        self.assertIsInstance(await self.renew(new, self.host().keys), Turned)
        self.assertIsInstance(await self.shown(other), Welcome)
        again = await self.joined(self.host(), await self.token(names=("web1",)))
        self.assertEqual(again.defender, old.defender)
        self.assertIsInstance(await self.shown(again), Welcome)
        self.assertEqual(self.notices[-1].kind, "rejoined")

    async def test_a_restored_controller(self) -> None:
        """Its store is from before a renewal: the younger certificate is taken over, its names are kept."""
        old = await self.joined(self.host())
        backup = self.directory.with_name("backup")
        await self.database.backup(backup)
        self.now += 100
        new = await self.renew(old, self.host().keys)
        assert isinstance(new, Issuance)
        await self.shown(new)
        await self.database.stop()
        self.directory = self.directory.with_name("restored")
        self.directory.mkdir(mode=0o700)
        backup.rename(self.directory / "control.db")
        self.start()
        outcome = await self.shown(new)
        assert isinstance(outcome, Welcome)
        self.assertEqual((outcome.how, self.notices[-1].kind), ("restored", "restored"))
        newer = await self.renew(new, self.host().keys)
        assert isinstance(newer, Issuance)
        hosts = certificate_hosts(x509.load_der_x509_certificate(newer.server_chain[0]))
        self.assertEqual(hosts, ("web1", HERE))

    async def test_who_is_not_known(self) -> None:
        answer = await self.joined(self.host())
        await self.database.stop()
        self.directory = self.directory.with_name("empty")
        self.start()
        turned = await self.shown(answer)
        assert isinstance(turned, Turned)
        self.assertEqual(turned.code, "unknown-defender")
        self.assertIsInstance(await self.renew(answer, self.host().keys), Turned)


class AbsenceTests(EnrollmentCase):
    """An expired certificate, and its key."""

    def request(self, host: Host, old: Joined, keys: NewKeys, binding: bytes = BINDING) -> bytes:
        csr, server_csr = keys.csr, keys.server_csr
        text = proof_text(binding, old.chain[0], csr, server_csr)
        proof = host.keys.key.sign(text, ec.ECDSA(hashes.SHA256()))
        return encode_request(RenewRequest(old.chain[0], proof, csr, server_csr, ("web1",)))

    async def test_within_thirty_days(self) -> None:
        host = self.host()
        old, keys = await self.joined(host), self.host().keys
        self.now += LIFE + GRACE - 60
        answer = await self.ask(self.request(host, old, keys))
        assert isinstance(answer, Joined)
        self.assertEqual(answer.defender, old.defender)
        again = await self.ask(self.request(host, old, keys))
        assert isinstance(again, Joined)
        self.assertEqual(again.chain, answer.chain, "a lost answer is given again")
        outcome = await self.shown(answer)
        assert isinstance(outcome, Welcome)
        self.assertEqual(outcome.how, "promoted")

    async def test_later(self) -> None:
        host = self.host()
        old = await self.joined(host)
        self.now += LIFE + GRACE + 60
        self.assertEqual(await self.refused(self.request(host, old, self.host().keys)), "too-late")

    async def test_another_connection_or_key(self) -> None:
        host = self.host()
        old, keys = await self.joined(host), self.host().keys
        self.now += LIFE + 60
        self.assertEqual(await self.refused(self.request(host, old, keys, bytes(32))), "proof")
        self.assertEqual(await self.refused(self.request(self.host(), old, keys)), "proof")

    async def test_another_fleets_certificate(self) -> None:
        """The same names, another authority."""
        host, other = self.host(), TestAuthority(now=self.pki.now)
        mine = await self.joined(host)
        forged = other.authority.issue_defender_client(
            host.keys.key.public_key(), mine.defender, "web1", now=other.now
        )

        old = replace(mine, chain=(der(forged.leaf), der(forged.issuer)))
        self.assertEqual(await self.refused(self.request(host, old, self.host().keys)), "certificate")

    async def test_a_server_certificate(self) -> None:
        host = self.host()
        mine = await self.joined(host)
        old = replace(mine, chain=mine.server_chain)
        holder = Host("web1", NewKeys(host.keys.server_key, host.keys.key))
        self.assertEqual(await self.refused(self.request(holder, old, self.host().keys)), "certificate")

    async def test_a_superseded_one(self) -> None:
        host = self.host()
        old = await self.joined(host)
        new = await self.renew(old, self.host().keys)
        assert isinstance(new, Issuance)
        await self.shown(new)
        self.now += LIFE + 60
        self.assertEqual(await self.refused(self.request(host, old, self.host().keys)), "locked")
        self.assertEqual(self.notices[-1].kind, "cloned")
