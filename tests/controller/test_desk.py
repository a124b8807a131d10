"""The desk with real defenders at its channel: who is welcome, which session counts, what is passed on."""

from __future__ import annotations

import shutil
import sqlite3
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from controller.channel.service import Reception
from controller.channel.tls import channel_context
from controller.desk import AskError, Desk
from controller.pki.enrollment import Enrollment
from controller.pki.kept import add_token
from controller.pki.registry import Notice, Office
from controller.pki.signing import SigningKeys
from controller.pki.tokens import store_token
from controller.selection import Defender
from controller.store import defenders
from controller.store.database import Database
from controller.store.events import EventStore
from controller.store.query import Query
from defender.audit.journal import Journal
from defender.bundles.store import BundleStore
from defender.channel.service import ControllerLink
from defender.channel.store import MemberStore
from defender.contract.audit import defender_event
from defender.contract.bundle import Bundle, sign_bundle
from defender.contract.contents import locks_content
from defender.contract.framing import frame
from defender.contract.join_token import JoinToken, new_token
from defender.contract.message_bytes import encode_message, push_frames, snapshot_frame
from defender.contract.message_fields import Position
from defender.contract.messages import Pong
from defender.contract.snapshot import Snapshot, sign_snapshot
from defender.member import FleetMember
from tests.controller.channel.test_service import SETTINGS
from tests.defender.test_member import Host
from tests.fakes.authority import TestAuthority
from tests.fakes.fleet import controller_of, opened

reactor: Any = installed


class Heard:
    """A publisher that notes what it hears."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []

    def enrolled(self, defender: Defender) -> None:
        self.said.append(("enrolled", defender.id, defender.name))

    def connected(self, defender: str, positions: Mapping[str, Position]) -> None:
        self.said.append(("connected", defender, dict(positions)))

    def acked(self, defender: str, stream: str, nonce: int, position: Position) -> None:
        self.said.append(("acked", defender, stream, nonce, position.version))

    def refused(self, defender: str, stream: str, nonce: int, code: str, detail: str, kept: Position) -> None:
        self.said.append(("refused", defender, stream, nonce, code))

    def disconnected(self, defender: str) -> None:
        self.said.append(("disconnected", defender))

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [each for each in self.said if each[0] == kind]


class DeskCase(TestCase):
    timeout = 60

    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.state = Path(folder.name)
        self.pki = TestAuthority(now=datetime.now(UTC))
        self.notices: list[Notice] = []
        self.fleet = str(uuid.uuid4())
        self.keys = SigningKeys.create(
            self.state / "signing",
            fleet=self.fleet,
            trust_domain=self.pki.trust_domain,
            now=int(self.pki.now.timestamp()) - 60,
        )
        office = Office(self.pki.authority, self.record, self.keys.chain)
        self.database = Database(self.state / "store", reactor)
        self.database.start()
        self.addCleanup(self.database.stop)
        self.events = EventStore(self.state / "store", reactor, 1)
        self.events.start()
        self.addCleanup(self.events.stop)
        self.publisher = Heard()
        self.desk = Desk(
            reactor,
            self.database,
            self.events,
            Enrollment(self.database, lambda: office),
            lambda: office,
            trust_domain=self.pki.trust_domain,
            version="1.0",
        )
        self.desk.publisher = self.publisher
        self.desk.startService()
        self.addCleanup(self.desk.stopService)
        own = controller_of(self.pki)
        self.reception = Reception(
            reactor, SETTINGS, channel_context(own.chain, own.key, [self.pki.fleet]), self.desk, opened
        )
        self.reception.startService()
        self.addCleanup(self.reception.stopService)
        self.members: list[tuple[FleetMember, Journal]] = []
        self.addCleanup(self.stop_members)

    def record(self, connection: sqlite3.Connection, notice: Notice) -> None:
        self.notices.append(notice)

    async def token(self) -> JoinToken:
        token = new_token(sha256(b"%d" % len(self.members)).digest()[:30], self.pki.root)
        await self.database.write(add_token, store_token(token, now=int(self.pki.now.timestamp())))
        return token

    def member(self, name: str, token: JoinToken | None, folder: str = "") -> FleetMember:
        state = self.state / (folder or name)
        journal = Journal(state / "audit", name, reactor=reactor)
        journal.start()
        member = FleetMember(
            reactor,
            Host(),
            journal,
            controller=("127.0.0.1", self.reception.port),
            store=MemberStore(state / "fleet"),
            bundles=BundleStore(state / "bundles"),
            name=name,
            names=(),
            version="1.0",
            token=token,
        )
        self.members.append((member, journal))
        member.startService()
        return member

    async def stop_members(self) -> None:
        for member, journal in self.members:
            if member.running:
                await member.stopService()
                await journal.stop()

    async def until(self, condition: Callable[[], object]) -> None:
        for _ in range(4000):
            if condition():
                return
            passed: Deferred[None] = Deferred()
            reactor.callLater(0.005, passed.callback, None)
            await passed
        self.fail(f"it never came true: {self.publisher.said} {self.notices}")

    async def joined(self, name: str) -> FleetMember:
        member = self.member(name, await self.token())
        await member.joined
        await self.until(lambda: member.link is not None and member.link.connected)
        return member

    def hurry(self, link: ControllerLink) -> None:
        """Have it try again now."""
        assert link._call is not None
        link._call.reset(0)

    def identifier(self, member: FleetMember) -> str:
        assert member.member is not None
        return member.member.defender


class DeskTests(DeskCase):
    async def test_a_host_joins_is_welcomed_and_its_events_are_stored(self) -> None:
        member = await self.joined("web1")
        defender = self.identifier(member)
        self.assertEqual([notice.kind for notice in self.notices], ["joined"])
        self.assertEqual(set(self.desk.visits), {defender})
        said = self.publisher.of("connected")[0]
        self.assertEqual((said[1], set(said[2])), (defender, {"trust", "policy", "locks", "mode"}))
        self.members[0][1].record(defender_event("defender_start", version="1.0"))
        await self.until(lambda: self.events.cursor(defender) is not None)
        row = await self.database.read(defenders.find, defender)
        assert row is not None
        self.assertEqual(
            (row.name, row.generation, row.address, row.program), ("web1", 1, "127.0.0.1", "1.0")
        )
        await self.until(lambda: self.publisher.said)

    async def test_a_spool_from_an_older_copy_ends_in_a_gap_and_not_in_silence(self) -> None:
        member = await self.joined("web1")
        defender = self.identifier(member)

        async def start_again() -> Journal:
            await self.stop_members()
            self.member("web1", None)
            journal = self.members[-1][1]
            await self.until(lambda: self.desk.visits.get(defender) is not None)
            return journal

        def stored(journal: Journal) -> Any:
            cursor = self.events.cursor(defender)
            return cursor is not None and (cursor.epoch, cursor.seq) == journal.newest[:2]

        async def say(journal: Journal, *versions: str) -> None:
            for version in versions:
                journal.record(defender_event("defender_start", version=version))
            self.assertTrue(journal.settle())
            await self.until(lambda: journal.newest[1] and stored(journal))

        await say(self.members[0][1], "1.0")
        await self.stop_members()
        spool, copy = self.state / "web1" / "audit", self.state / "copy"
        shutil.copytree(spool, copy)
        await say(await start_again(), "1.1", "1.2", "1.3", "1.4")
        await self.stop_members()
        before = self.events.cursor(defender)
        assert before is not None
        shutil.rmtree(spool)
        copy.rename(spool)
        journal = await start_again()
        await self.until(lambda: journal.newest[0] not in (0, before.epoch))
        await say(journal, "2.0")
        page = await self.events.search(Query())
        seen: list[dict[str, Any]] = [each.event for each in page.events]
        programs = [each["result"]["program"] for each in seen if each["req"]["action"] == "defender_start"]
        self.assertEqual(sorted(programs), ["1.0", "1.1", "1.2", "1.3", "1.4", "2.0"])
        told = [str(each) for each in seen if each["kind"] == "gap"]
        self.assertTrue(any("is not in this spool" in each for each in told), told)

    async def test_what_is_pushed_is_answered(self) -> None:
        member = await self.joined("web1")
        defender = self.identifier(member)
        now = datetime.now(UTC).timestamp()
        snapshot = Snapshot(self.fleet, self.pki.trust_domain, int(now * 1000), {})
        self.assertTrue(
            self.desk.show(defender, snapshot_frame(sign_snapshot(snapshot, [self.keys.snapshot])))
        )
        bundle = Bundle(
            fleet=self.fleet,
            trust_domain=self.pki.trust_domain,
            stream="locks",
            key_epoch=1,
            version=1,
            issued_at=int(now),
            content=locks_content([]),
        )
        data = sign_bundle(bundle, [self.keys.bundle])
        self.assertTrue(self.desk.push(defender, "locks", 1, push_frames("locks", 1, data)))
        await self.until(lambda: self.publisher.of("acked"))
        self.assertEqual(self.publisher.of("acked"), [("acked", defender, "locks", 1, 1)])
        self.assertTrue(self.desk.push(defender, "locks", 2, push_frames("locks", 2, data[:-1] + b"\0")))
        await self.until(lambda: self.publisher.of("refused"))
        self.assertFalse(self.desk.push("nobody", "locks", 3, []))
        self.assertFalse(self.desk.push(defender, "weather", 3, []))

    async def test_the_newest_session_counts(self) -> None:
        member = await self.joined("web1")
        defender = self.identifier(member)
        first = self.desk.visits[defender]
        assert member.link is not None
        # The link is dead for the defender, and the controller has not noticed.
        protocol = member.link._protocol
        assert protocol is not None
        member.link._protocol = None
        protocol._over = True
        member.link._dial()
        await self.until(lambda: self.desk.visits.get(defender) not in (None, first))
        second = self.desk.visits[defender]
        assert second.session is not None
        self.assertEqual(second.session.generation, 2)
        await self.until(lambda: first not in self.reception.visits)
        self.assertEqual(self.publisher.of("disconnected"), [])
        self.assertIs(self.desk.visits[defender], second)

    async def test_who_has_nothing_to_say_is_heard_of_while_it_answers_ping(self) -> None:
        member = await self.joined("web1")
        defender = self.identifier(member)
        session = self.desk.visits[defender].session
        assert session is not None
        # Long after the last message a PONG comes, and no message with it.
        before = self.desk._clock()
        self.desk._clock = lambda: before + 600
        session.bytes_received(frame(encode_message(Pong(0), session.revision)), reactor.seconds())
        heard = self.desk.last_heard(defender)
        assert heard is not None
        self.assertGreater(heard, before + 300)
        self.assertTrue(self.desk.cut(defender, "enough"))
        await self.until(lambda: defender not in self.desk.visits)
        self.assertIsNotNone(self.desk.last_heard(defender))
        self.assertIsNone(self.desk.last_heard("nobody"))

    async def test_a_defender_is_asked_and_whatever_becomes_of_it_is_told(self) -> None:
        member = await self.joined("web1")
        defender = self.identifier(member)
        self.assertEqual(await self.desk.ask(defender, "status", {}), {"verb": "status"})
        for arguments, why in (
            ({"stream": "locks", "offset": 0}, "no locks are in force here"),
            ({"stream": "policy", "offset": 0}, "only bundles of locks"),
            ({"stream": "locks", "offset": -1}, "only bundles of locks"),
            ({}, "only bundles of locks"),
        ):
            self.assertIn(why, await self.refusal(self.desk.ask(defender, "bundle", arguments)))
        self.assertIn("not connected", await self.refusal(self.desk.ask("nobody", "status", {})))
        asked = [self.desk.ask(defender, "status", {}) for _ in range(65)]
        self.assertIn("commands wait", await self.refusal(asked.pop()))
        self.desk.cut(defender, "removed")
        for each in asked:
            self.assertIn("it is gone", await self.refusal(each))

    async def refusal(self, asked: Deferred[Any]) -> str:
        """Why a defender did not do it."""
        try:
            await asked
        except AskError as error:
            return str(error)
        self.fail("it was done")

    async def test_who_was_removed_or_locked_is_not_welcome(self) -> None:
        member = await self.joined("web1")
        defender = self.identifier(member)
        await self.database.write(defenders.set_lock, defender, "stolen")
        self.assertTrue(self.desk.cut(defender, "it was locked"))
        assert member.link is not None
        link = member.link
        await self.until(lambda: not link.connected)
        self.assertEqual(self.publisher.of("disconnected"), [("disconnected", defender)])
        self.assertIn("it was locked", link.problem)
        self.hurry(link)
        await self.until(lambda: "locked: this defender is locked" in link.problem)
        await self.database.write(defenders.remove, defender)
        self.hurry(link)
        await self.until(lambda: "unknown-defender" in link.problem)
        self.assertEqual(self.desk.visits, {})

    async def test_a_certificate_is_renewed_over_the_channel(self) -> None:
        member = await self.joined("web1")
        assert member.member is not None
        old = member.member.serial
        member._wall = lambda: datetime.now(UTC).timestamp() + 4 * 86400
        assert member._call is not None
        member._call.reset(0)
        await self.until(lambda: member.member is not None and member.member.serial != old)
        defender = self.identifier(member)

        def renewed() -> bool:
            visit = self.desk.visits.get(defender)
            identity = visit.identity if visit is not None else None
            return identity is not None and identity.serial == member.member.serial  # type: ignore[union-attr]

        await self.until(renewed)
        self.assertEqual([notice.kind for notice in self.notices], ["joined", "renewed"])

    async def test_a_copy_of_a_host_is_noticed(self) -> None:
        """Its old certificate is used after the new one was."""
        member = await self.joined("web1")
        shutil.copytree(self.state / "web1" / "fleet", self.state / "copy" / "fleet")
        assert member.member is not None
        old = member.member.serial
        member._wall = lambda: datetime.now(UTC).timestamp() + 4 * 86400
        assert member._call is not None
        member._call.reset(0)
        await self.until(lambda: member.member is not None and member.member.serial != old)
        await self.until(lambda: len(self.publisher.of("connected")) == 2)
        later = self.desk._clock() + 3600
        self.desk._clock = lambda: later
        self.member("web1", None, "copy")
        await self.until(lambda: any(notice.kind == "cloned" for notice in self.notices))
        # Which of the two is the right one nobody can tell: the session that was open ends as well.
        await self.until(lambda: not self.desk.visits)
        assert member.link is not None
        link = member.link
        await self.until(lambda: "locked: " in link.problem)
