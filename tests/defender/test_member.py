"""A host and its fleet, over real TLS: it joins, takes what is signed, and starts again without anybody."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import TestCase

from controller.channel.protocol import Visit
from controller.channel.service import Reception
from controller.channel.tls import channel_context
from controller.pki.signing import SigningKeys
from defender.audit.journal import Journal
from defender.bundles.store import BundleStore
from defender.channel.store import MemberStore
from defender.contract.bundle import PART, Bundle, open_envelope, sign_bundle
from defender.contract.contents import locks_content, mode_content, policy_content, trust_content
from defender.contract.envelope import split_envelopes
from defender.contract.errors import ContractError
from defender.contract.join import read_csr
from defender.contract.join_token import JoinToken
from defender.contract.locks import LockSet, make_lock
from defender.contract.message_bytes import push_frames, snapshot_frame
from defender.contract.messages import Ack, Cmd, Commit, Hello, Message, Nack, Renew, Result
from defender.contract.session import Expired
from defender.contract.snapshot import Snapshot, sign_snapshot
from defender.member import LOOK, FleetMember
from tests.controller.channel.test_service import SETTINGS
from tests.fakes import join_controller
from tests.fakes.authority import TestAuthority
from tests.fakes.fleet import controller_of, opened
from tests.fakes.join_controller import JoinController
from tests.spool import events_in

reactor: Any = installed
POLICY = "schema: 1\nrules:\n  - name: ops\n    effect: allow\n"


class Controller:
    """Lets hosts in and pushes what it is told to; implements `controller.channel.protocol.Desk`."""

    def __init__(self, keys: SigningKeys) -> None:
        self.rules = JoinController(pki=TestAuthority(now=datetime.now(UTC)))
        self.trust_domain = self.rules.pki.trust_domain
        self.keys = keys
        self.visits: list[Visit] = []
        self.said: list[Any] = []
        self.positions: dict[str, Any] = {}
        self.numbers: dict[str, int] = {}

    def joins(self, request: bytes, source: str, binding: bytes) -> Deferred[bytes]:
        return succeed(self.rules.answer(request, binding))

    def greeted(self, visit: Visit, hello: Hello) -> None:
        self.visits.append(visit)
        assert visit.session is not None
        visit.say(
            visit.session.welcome(
                reactor.seconds(), generation=len(self.visits), version="1", time=0, cursor=None
            )
        )
        snapshot = Snapshot(
            fleet=self.keys.root.fleet,
            trust_domain=self.trust_domain,
            time_ms=int(datetime.now(UTC).timestamp() * 1000),
            positions=self.positions,
        )
        visit.say(visit.session.show(snapshot_frame(sign_snapshot(snapshot, [self.keys.snapshot]))))

    def heard(self, visit: Visit, message: Message | Expired) -> None:
        self.said.append(message)
        if isinstance(message, Renew):
            pki = self.rules.pki
            assert visit.identity is not None
            assert visit.session is not None
            issued = pki.authority.issue_defender_client(
                read_csr(message.request), visit.identity.identifier, visit.identity.name, now=pki.now
            )
            chain = tuple(each.public_bytes(Encoding.DER) for each in (issued.leaf, issued.issuer))
            visit.say(visit.session.renewed(chain))

    def left(self, visit: Visit, code: str, detail: str) -> None: ...

    def of(self, kind: type) -> list[Any]:
        return [each for each in self.said if isinstance(each, kind)]

    def envelope(self, stream: str, content: Mapping[str, Any]) -> bytes:
        number = self.numbers[stream] = self.numbers.get(stream, 0) + 1
        bundle = Bundle(
            fleet=self.keys.root.fleet,
            trust_domain=self.trust_domain,
            stream=stream,
            key_epoch=1,
            version=number,
            issued_at=int(datetime.now(UTC).timestamp()),
            content=content,
        )
        return sign_bundle(bundle, [self.keys.bundle])

    def push(self, stream: str, content: Mapping[str, Any], *, damage: bool = False) -> None:
        data = self.envelope(stream, content)
        if stream == "trust":
            data = self.keys.chain + data
        if damage:
            data = data[:-1] + bytes([data[-1] ^ 1])
        session = self.visits[-1].session
        assert session is not None
        nonce = self.numbers[stream]
        self.visits[-1].say(session.push(stream, nonce, push_frames(stream, nonce, data)))

    def push_trust(self, *fleet: x509.Certificate) -> None:
        pki = self.rules.pki

        def pem(certificate: x509.Certificate) -> str:
            return certificate.public_bytes(Encoding.PEM).decode()

        self.push(
            "trust",
            trust_content(
                [sha256(each).digest() for each in split_envelopes(self.keys.chain, 64)],
                root=[pem(pki.root)],
                fleet=[pem(each) for each in fleet],
                user=[pem(pki.users)],
            ),
        )

    def push_all(self, mode: str = "tcp") -> None:
        self.push_trust(self.rules.pki.fleet)
        self.push("locks", locks_content([make_lock("user", "eve")]))
        self.push("policy", policy_content("prod", POLICY))
        self.push("mode", mode_content(mode))


class Host:
    """The defender, which notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.refusal = ""
        self.frozen = ""

    def put_policy(self, name: str, text: str) -> None:
        if self.refusal:
            raise ContractError(self.refusal)
        self.told.append(("policy", (name, text)))

    def withdraw_policy(self, reason: str) -> None:
        self.told.append(("withdrawn", reason))

    def put_locks(self, locks: LockSet | None) -> None:
        self.told.append(("locks", None if locks is None else len(locks.locks)))

    def freeze(self, reason: str) -> None:
        self.frozen = reason

    def put_mode(self, listener: str, drain: int | None) -> object:
        self.told.append(("mode", listener))
        return succeed(None)

    def put_trust(self, users: tuple[str, ...]) -> object:
        self.told.append(("trust", len(users)))
        return succeed(None)

    def state(self) -> Mapping[str, Any]:
        return {"listener": "tcp"}

    def answer(self, command: Cmd) -> object:
        return {"verb": command.verb}


ALL = [("trust", 1), ("locks", 1), ("policy", ("prod", POLICY)), ("mode", "tcp")]


class MemberTests(TestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.state = Path(folder.name)
        keys = SigningKeys.create(
            self.state / "signing",
            fleet=str(uuid.uuid4()),
            trust_domain="defender.fleet",
            now=int(datetime.now(UTC).timestamp()) - 60,
        )
        self.patch(join_controller, "TRUST", keys.chain)
        self.controller = Controller(keys)
        own = controller_of(self.controller.rules.pki)
        context = channel_context(own.chain, own.key, [self.controller.rules.pki.fleet])
        self.reception = Reception(reactor, SETTINGS, context, self.controller, opened)
        self.reception.startService()
        self.port = self.reception.port
        self.addCleanup(lambda: self.reception.stopService() if self.reception.running else None)
        self.wall = 0.0

    def member(self, token: JoinToken | None = None, silence: float = 0.0) -> tuple[FleetMember, Host]:
        host = Host()
        journal = Journal(self.state / "audit", "web1", reactor=reactor)
        journal.start()
        member = FleetMember(
            reactor,
            host,
            journal,
            controller=("127.0.0.1", self.port),
            store=MemberStore(self.state / "fleet"),
            bundles=BundleStore(self.state / "bundles"),
            name="web1",
            names=("web1.example.com",),
            version="1.0",
            token=token,
            silence=silence,
            wall=lambda: datetime.now(UTC).timestamp() + self.wall,
        )
        member.startService()
        self.stops = [member.stopService, journal.stop]
        self.addCleanup(self.stop)
        return member, host

    async def stop(self) -> None:
        stops, self.stops = self.stops, []
        for each in stops:
            await each()

    async def until(self, condition: Callable[[], object]) -> None:
        for _ in range(4000):
            if condition():
                return
            passed: Deferred[None] = Deferred()
            reactor.callLater(0.005, passed.callback, None)
            await passed
        self.fail(f"it never came true: {self.controller.said}")

    async def joined(self) -> tuple[FleetMember, Host]:
        member, host = self.member(self.controller.rules.token())
        await member.joined
        await self.until(lambda: member.link is not None and member.link.connected)
        return member, host

    async def test_a_host_joins_and_takes_what_is_signed(self) -> None:
        member, host = await self.joined()
        assert member.member is not None
        self.assertEqual((member.member.name, member.problem), ("web1", ""))
        self.controller.push_all()
        await self.until(lambda: len(self.controller.of(Ack)) == 4)
        self.assertEqual(host.told, ALL)

    async def test_a_second_start_needs_neither_token_nor_controller(self) -> None:
        await self.joined()
        self.controller.push_all()
        await self.until(lambda: len(self.controller.of(Ack)) == 4)
        await self.stop()
        await self.reception.stopService()
        member, host = self.member()
        # Before anything else happens.
        self.assertEqual(host.told, ALL)
        assert member.link is not None
        self.assertFalse(member.link.connected)

    async def test_nothing_may_be_changed_once_the_controller_was_away_for_too_long(self) -> None:
        member, host = await self.joined()
        self.controller.push_all()
        await self.until(lambda: len(self.controller.of(Ack)) == 4)
        await self.stop()
        await self.reception.stopService()
        for silence, late, frozen in ((7200.0, 3600.0, False), (7200.0, 7300.0, True), (0.0, 7300.0, False)):
            self.wall = late
            member, host = self.member(silence=silence)
            await member.joined
            self.assertEqual(bool(host.frozen), frozen, (silence, late))
            await self.stop()
        actions = [event["req"]["action"] for event in events_in(self.state / "audit")]
        self.assertEqual(actions.count("changes_freeze"), 1)

    async def test_another_authority_is_known_before_the_controller_uses_it(self) -> None:
        member, _ = await self.joined()
        pki = self.controller.rules.pki
        new = pki.with_another_fleet()
        self.controller.push_trust(TestAuthority(now=pki.now).fleet)
        await self.until(lambda: self.controller.of(Nack))
        self.assertIn("does not come from the root", self.controller.of(Nack)[0].detail)
        self.controller.push_trust(pki.fleet, new.fleet)
        await self.until(lambda: self.controller.of(Ack))
        own = controller_of(new)
        self.reception.context = channel_context(own.chain, own.key, [pki.fleet, new.fleet])
        assert member.link is not None
        member.link.redial()
        await self.until(lambda: len(self.controller.visits) == 2)
        await self.stop()
        member, _ = self.member()
        await self.until(lambda: len(self.controller.visits) == 3)
        await self.until(lambda: member.link is not None and member.link.connected)
        self.controller.push_trust(new.fleet)
        await self.until(lambda: len(self.controller.of(Ack)) == 2)
        own = controller_of(pki)
        self.reception.context = channel_context(own.chain, own.key, [pki.fleet, new.fleet])
        link = member.link
        assert link is not None
        link.redial()
        await self.until(lambda: "self-signed" in link.problem)
        # As if this host had joined anew since: what it has on disk takes nothing away.
        await self.stop()
        store = MemberStore(self.state / "fleet")
        known = store.load()
        assert known is not None
        answer = replace(known.answer, fleet=(pki.fleet.public_bytes(Encoding.DER),))
        store.save(replace(known, answer=answer))
        self.member()
        await self.until(lambda: len(self.controller.visits) == 4)

    async def test_a_bundle_that_is_not_right_changes_nothing(self) -> None:
        _, host = await self.joined()
        self.controller.push_all()
        await self.until(lambda: len(self.controller.of(Ack)) == 4)
        before = list(host.told)
        self.controller.push("policy", policy_content("prod", "schema: 1\nrules: []\n"), damage=True)
        await self.until(lambda: self.controller.of(Nack))
        host.refusal = "the disk is full"
        self.controller.push("policy", policy_content("prod", "schema: 1\nrules: []\n"))
        await self.until(lambda: len(self.controller.of(Nack)) == 2)
        self.assertEqual(host.told, before)
        nacks = self.controller.of(Nack)
        self.assertEqual((nacks[1].code, nacks[1].detail), ("not-activated", "the disk is full"))
        self.assertEqual([each.kept.version for each in nacks], [1, 1])
        await self.stop()
        kinds = [each["kind"] for each in events_in(self.state / "audit")]
        self.assertGreaterEqual(kinds.count("policy") + kinds.count("bundle"), 3)

    async def test_the_locks_in_force_are_given_back_as_they_were_signed(self) -> None:
        await self.joined()
        self.controller.push_trust(self.controller.rules.pki.fleet)
        many = [make_lock("user", f"user number {each} of this test") for each in range(1000)]
        self.controller.push("locks", locks_content(many))
        await self.until(lambda: len(self.controller.of(Ack)) == 2)
        visit = self.controller.visits[-1]
        assert visit.session is not None
        data, size = b"", 1
        while len(data) < size:
            _, said = visit.session.command(
                reactor.seconds(), "bundle", {"stream": "locks", "offset": len(data)}, 30.0
            )
            self.controller.said.clear()
            visit.say(said)
            await self.until(lambda: self.controller.of(Result))
            (result,) = self.controller.of(Result)
            self.assertTrue(result.ok, result.detail)
            size = result.value["size"]
            data += base64.b64decode(result.value["data"])
        self.assertGreater(size, PART)
        bundle = open_envelope(
            data, self.controller.keys.root, stream="locks", defender="", agent_version="1.0", now=None
        )
        self.assertEqual(len(bundle.content["locks"]), 1000)

    async def test_what_is_no_member_says_what_to_do(self) -> None:
        member, host = self.member()
        self.assertIn("--join-token", member.problem)
        self.assertEqual((host.told, member.link), ([], None))

    async def test_a_controller_that_is_away_is_asked_again(self) -> None:
        token = self.controller.rules.token()
        await self.reception.stopService()
        member, _ = self.member(token)
        await self.until(lambda: "could not be asked" in member.problem)
        self.assertIsNotNone(member._call)

    async def test_the_certificate_is_renewed_in_time(self) -> None:
        member, _ = await self.joined()
        assert member.member is not None
        old = member.member.serial
        self.wall = member.member.renewal - datetime.now(UTC).timestamp() + 1
        assert member._call is not None
        member._call.reset(0)
        await self.until(lambda: self.controller.of(Commit))
        self.assertNotEqual(member.member.serial, old)
        self.assertEqual([each.serial for each in self.controller.of(Commit)], [member.member.serial])
        await self.until(lambda: len(self.controller.visits) == 2)
        shown = self.controller.visits[1].identity
        assert shown is not None
        self.assertEqual(shown.serial, member.member.serial)
        self.assertGreater(LOOK, 0)
