"""What reaches the hosts, when it is on disk, and what a controller that starts again still knows."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from unittest import mock

from cryptography.hazmat.primitives.serialization import Encoding
from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from controller import publisher as publisher_module
from controller.distribution import AT_ONCE, RolloutError
from controller.fleet import Mode, Target
from controller.pki.signing import BUNDLE, SigningKeys
from controller.publisher import SHOW_EVERY, Publisher
from controller.publisher_orders import Orders
from controller.publisher_steps import Authorities
from controller.publishing import PublishError
from controller.push_window import PATIENCE, PushWindow
from controller.releases import Ahead, Halted, Phase, Plan
from controller.rollout_view import counts
from controller.selection import Defender, Selection
from controller.store import bundles, defenders, policies
from controller.store.database import Database
from controller.store.errors import UnwritableStoreError
from defender.contract.bundle import Position as Place
from defender.contract.contents import LocksContent, ModeContent, PolicyContent, TrustContent
from defender.contract.locks import make_lock
from defender.contract.trust import LOCKS, MODE, POLICY, STREAMS, TRUST
from tests.controller.publisher_fleet import FakeDesk, Host, ident
from tests.fakes.authority import TestAuthority

EVERYBODY = Target(Selection())
PROD = Target(Selection(labels={"env": "prod"}))
OLD = "schema: 1\nrules:\n  - name: old\n    effect: allow\n"
NEW = "schema: 1\nrules:\n  - name: new\n    effect: allow\n"


class PublisherCase(TestCase):
    """A controller with its store, keys and hosts; the clock of rollouts is the test's."""

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="publisher"))
        self.addCleanup(shutil.rmtree, self.directory, True)
        pki = TestAuthority(now=datetime.now(UTC))
        pem = [(each.public_bytes(Encoding.PEM).decode(),) for each in (pki.root, pki.fleet, pki.users)]
        self.authorities = Authorities(*pem)
        self.wall = datetime.now(UTC).timestamp()
        self.keys = SigningKeys.create(
            self.directory / "signing",
            fleet=str(uuid.uuid4()),
            trust_domain="defender.fleet",
            now=int(self.wall) - 60,
        )
        self.desk = FakeDesk(self.keys.chain)
        self.database: Database | None = None

    async def begin(self, *, window: PushWindow | None = None) -> Orders:
        """Start a controller, a first time or again."""
        self.clock = Clock()
        self.told: list[Any] = []
        self.database = Database(self.directory / "store", cast("IReactorFromThreads", installed))
        self.database.start()
        self.addCleanup(self.database.stop)
        self.keys = SigningKeys.load(self.directory / "signing")
        self.publisher = Publisher(
            self.clock,
            self.database,
            self.keys,
            self.authorities,
            self.desk,
            wall=lambda: self.wall,
            tell=lambda stream, command: self.told.append((stream, command)),
            window=window,
        )
        self.desk.publisher = self.publisher
        await self.publisher.start()
        self.addCleanup(self.halt, self.publisher)
        return Orders(self.publisher)

    @staticmethod
    def halt(publisher: Publisher) -> None:
        """Let nothing more be looked at."""
        if publisher._sweeper.running:
            publisher._sweeper.stop()

    async def crash(self) -> None:
        """End the controller without a goodbye: only what is on disk stays."""
        assert self.database is not None
        self.halt(self.publisher)
        self.desk.online.clear()
        self.desk.queue.clear()
        await self.database.stop()

    async def enroll(self, name: str, **labels: str) -> Host:
        assert self.database is not None
        await self.database.write(defenders.add, ident(name), name, enrolled=1.0, token="t", labels=labels)
        self.publisher.enrolled(Defender(ident(name), name, labels))
        host = self.desk.host(name)
        self.desk.connect(host)
        return host

    async def calm(self) -> None:
        """Let hosts answer until nobody has anything to say."""
        quiet = 0
        while quiet < 2:
            await self.publisher.kept()
            lock = self.publisher.lock
            await lock.acquire()
            lock.release()
            await self.publisher.kept()
            quiet = 0 if self.desk.answer() else quiet + 1

    async def publish(
        self, orders: Orders, name: str, text: str, target: Target = EVERYBODY, **more: Any
    ) -> int:
        await orders.save_draft(name, text, target, "ada")
        return (await orders.publish(name, "ada", **more)).number

    def texts(self, *hosts: Host) -> list[str]:
        """The name of the first rule that each has in force."""
        found = []
        for host in hosts:
            content = host.content.get(POLICY)
            named = isinstance(content, PolicyContent) and "name: " in content.text
            found.append(
                cast("PolicyContent", content).text.split("name: ")[1].split("\n")[0] if named else ""
            )
        return found


class Core(PublisherCase):
    async def test_a_new_host_gets_all_that_there_is(self) -> None:
        await self.begin()
        host = await self.enroll("web1")
        await self.calm()
        self.assertEqual(set(host.held), {TRUST, LOCKS, POLICY})
        self.assertIsInstance(host.content[TRUST], TrustContent)
        locks, policy = host.content[LOCKS], host.content[POLICY]
        assert isinstance(locks, LocksContent)
        assert isinstance(policy, PolicyContent)
        self.assertEqual((locks.locks.locks, policy.name), (frozenset(), "no policy"))
        # When it came, and when it had taken the trust.
        self.assertEqual(host.shown, 2)

    async def test_a_policy_goes_out_in_waves(self) -> None:
        orders = await self.begin()
        hosts = [await self.enroll(f"web{n}") for n in range(12)]
        await self.calm()
        await self.publish(orders, "prod", NEW)
        await self.publisher.kept()
        self.assertEqual([stream for _, stream, _, _ in self.desk.queue], [POLICY])
        self.desk.answer()
        await self.publisher.kept()
        self.assertEqual(len(self.desk.queue), 1)
        self.desk.answer()
        await self.publisher.kept()
        self.assertEqual(len(self.desk.queue), 10)
        await self.calm()
        self.assertEqual(self.texts(*hosts), ["new"] * 12)
        rollout = orders.rollout(POLICY, "prod")
        self.assertEqual(rollout.progress.phase, Phase.SETTLED)
        self.assertEqual(
            counts(rollout.progress), {"acked": 12, "refused": 0, "waiting": 0, "offline": 0, "total": 12}
        )
        # The frames were made once.
        self.assertEqual(len({id(each) for each in self.desk.frames[-10:]}), 1)

    async def test_a_refusal_halts_and_is_never_asked_again(self) -> None:
        orders = await self.begin()
        hosts = [await self.enroll(f"web{n}") for n in range(3)]
        await self.publish(orders, "prod", OLD, plan=AT_ONCE)
        await self.calm()
        for host in hosts:
            host.refuses[POLICY] = ("content-refused", "too new")
        await self.publish(orders, "prod", NEW)
        await self.calm()
        rollout = orders.rollout(POLICY, "prod")
        self.assertEqual(rollout.progress.phase, Phase.HALTED)
        self.assertIn("content-refused: too new", rollout.detail)
        self.assertEqual(self.texts(*hosts), ["old"] * 3)
        self.assertEqual([each for each in self.told if isinstance(each[1], Halted)], [self.told[-1]])
        (refused,) = [step.defender for step in orders.steps(POLICY, "prod") if step.state == "refused"]
        for host in hosts:
            host.refuses.clear()
        # Over a restart, a return and a decision to go on.
        await self.crash()
        orders = await self.begin()
        self.assertEqual(orders.rollout(POLICY, "prod").progress.phase, Phase.HALTED)
        for host in hosts:
            self.desk.connect(host)
        await self.calm()
        self.assertEqual(self.texts(*hosts), ["old"] * 3)
        await orders.steer("prod", "resume")
        await self.calm()
        expected = ["old" if host.id == refused else "new" for host in hosts]
        self.assertEqual(self.texts(*hosts), expected)
        self.assertEqual(counts(orders.rollout(POLICY, "prod").progress)["refused"], 1)

    async def test_a_restart_offers_only_what_is_lacking(self) -> None:
        orders = await self.begin()
        one, two = await self.enroll("web1"), await self.enroll("web2")
        await self.publish(orders, "prod", NEW, plan=AT_ONCE)
        await orders.set_mode(Selection(), Mode("unix"), "ada")
        await self.calm()
        self.desk.disconnect(two)
        await orders.add_lock(make_lock("user", "eve"), "left", "ada")
        await self.calm()
        await self.crash()
        orders = await self.begin()
        pushed = len(one.pushed)
        self.desk.connect(one)
        await self.calm()
        self.assertEqual(len(one.pushed), pushed)
        self.desk.connect(two)
        await self.publisher.kept()
        self.assertEqual([(host.name, stream) for host, stream, _, _ in self.desk.queue], [("web2", LOCKS)])
        await self.calm()
        self.assertEqual(orders.mode_of(two.id), Mode("unix"))
        self.assertEqual(two.content[MODE], ModeContent("unix", None))
        self.assertEqual(two.held, one.held)

    async def test_nothing_is_offered_that_is_not_on_disk(self) -> None:
        orders = await self.begin()
        host = await self.enroll("web1")
        await self.calm()
        real = publisher_module._keep
        states: list[Any] = []

        def fails(connection: sqlite3.Connection, *arguments: Any) -> None:
            raise UnwritableStoreError("the disk is full")

        with mock.patch.object(publisher_module, "_keep", fails):
            await self.publish(orders, "prod", NEW)
            await self.publisher.kept()
            self.assertIn("the disk is full", self.publisher.problem)
            self.assertEqual(self.desk.queue, [])

        def spied(connection: sqlite3.Connection, *arguments: Any) -> None:
            real(connection, *arguments)
            states.append(len(self.desk.queue))

        with mock.patch.object(publisher_module, "_keep", spied):
            self.clock.advance(2)
            await self.publisher.kept()
        self.assertEqual((states, len(self.desk.queue), self.publisher.problem), ([0], 1, ""))
        await self.calm()
        self.assertEqual(self.texts(host), ["new"])

    async def test_what_was_published_outlives_a_crash_before_it_was_offered(self) -> None:
        orders = await self.begin()
        host = await self.enroll("web1")
        await self.calm()
        await self.publish(orders, "prod", NEW)
        await self.crash()
        await self.begin()
        self.desk.connect(host)
        await self.calm()
        self.assertEqual(self.texts(host), ["new"])


class Streams(PublisherCase):
    async def test_a_lock_reaches_everybody_at_once_and_is_taken_back(self) -> None:
        orders = await self.begin()
        hosts = [await self.enroll(f"web{n}") for n in range(3)]
        await self.calm()
        row, new = await orders.add_lock(make_lock("user", "eve"), "left", "ada")
        self.assertTrue(new)
        await self.publisher.kept()
        self.assertEqual(len(self.desk.queue), 3)
        await self.calm()
        self.assertEqual((await orders.add_lock(make_lock("user", "eve"), "", "bob")), (row, False))
        for host in hosts:
            content = host.content[LOCKS]
            assert isinstance(content, LocksContent)
            self.assertEqual(content.locks.locks, {make_lock("user", "eve")})
        await orders.remove_lock(row.id, "ada")
        await self.calm()
        self.assertEqual([bool(host.content[LOCKS].locks) for host in hosts], [False] * 3)  # type: ignore[union-attr]
        self.assertEqual(await orders.locks(), [])

    async def test_a_full_disk_is_asked_again_for_locks(self) -> None:
        orders = await self.begin()
        host = await self.enroll("web1")
        await self.calm()
        host.refuses[LOCKS] = ("storage", "no space left")
        await orders.add_lock(make_lock("user", "eve"), "left", "ada")
        await self.calm()
        self.assertEqual(orders.rollout(LOCKS, "").progress.refused, 1)
        host.refuses.clear()
        self.desk.disconnect(host)
        self.desk.connect(host)
        await self.calm()
        self.assertEqual(orders.rollout(LOCKS, "").progress.acked, 1)

    async def test_modes_are_ordered_by_label(self) -> None:
        orders = await self.begin()
        one, two = await self.enroll("web1", env="prod"), await self.enroll("web2")
        await self.calm()
        order = await orders.set_mode(Selection(labels={"env": "prod"}), Mode("tcp", 5), "ada")
        await self.calm()
        self.assertEqual(one.content[MODE], ModeContent("tcp", 5))
        self.assertNotIn(MODE, two.content)
        self.assertEqual(counts(orders.rollout(MODE, order).progress)["total"], 1)
        second = await orders.set_mode(Selection(), Mode("none"), "ada")
        await self.calm()
        self.assertEqual((one.content[MODE], two.content[MODE]), (ModeContent("none"),) * 2)
        self.assertRaises(RolloutError, orders.rollout, MODE, order)
        await self.crash()
        orders = await self.begin()
        self.assertEqual(counts(orders.rollout(MODE, second).progress)["acked"], 0 + 2)
        self.assertRaises(RolloutError, orders.rollout, MODE, order)

    async def test_a_port_that_is_taken_does_not_cut_a_host_off(self) -> None:
        orders = await self.begin()
        host = await self.enroll("web1")
        await self.calm()
        await orders.set_mode(Selection(), Mode("tcp"), "ada")
        await self.calm()
        host.refuses[MODE] = ("not-activated", "port 2376 is taken")
        order = await orders.set_mode(Selection(), Mode("unix+tcp"), "ada")
        await self.calm()
        (step,) = orders.steps(MODE, order)
        self.assertEqual((step.state, step.detail), ("refused", "not-activated: port 2376 is taken"))
        assert host.mark is not None
        # It takes the snapshots that follow: what it has on disk is not above what they name.
        shown, self.wall = host.shown, self.wall + SHOW_EVERY
        self.clock.advance(SHOW_EVERY + 1)
        self.assertEqual(host.shown, shown + 1)
        self.assertEqual(host.mark.mark(POLICY).confirmed_ms, int(self.wall * 1000))

    async def test_a_label_changes_the_policy_and_old_content_gets_a_new_number(self) -> None:
        orders = await self.begin()
        host = await self.enroll("web1", env="test")
        first = await self.publish(orders, "prod", OLD, PROD, plan=AT_ONCE)
        await self.publish(orders, "all", NEW, plan=AT_ONCE)
        await self.calm()
        self.assertEqual(self.texts(host), ["new"])
        self.publisher.enrolled(Defender(host.id, "web1", {"env": "prod"}))
        await self.calm()
        self.assertEqual(self.texts(host), ["old"])
        self.assertGreater(host.held[POLICY].version, first + 1)
        self.assertEqual(orders.rollout(POLICY, "prod").version, first)
        await orders.withdraw("prod")
        await self.calm()
        self.assertEqual(self.texts(host), ["new"])
        await self.crash()
        orders = await self.begin()
        self.desk.connect(host)
        await self.calm()
        self.assertEqual(self.texts(host), ["new"])

    async def test_a_rollback_is_a_publication(self) -> None:
        orders = await self.begin()
        host = await self.enroll("web1")
        first = await self.publish(orders, "prod", OLD)
        await self.calm()
        await self.publish(orders, "prod", NEW)
        await self.calm()
        version = await orders.roll_back("prod", first, "ada")
        await self.calm()
        self.assertEqual(self.texts(host), ["old"])
        self.assertEqual((version.rolled_back_to, host.held[POLICY].version), (first, version.number))

    async def test_what_cannot_be_published_takes_no_number(self) -> None:
        orders = await self.begin()
        await orders.save_draft("prod", "rules: no", EVERYBODY, "ada")
        before = await self.publisher.database.read(bundles.newest, POLICY)
        error: Any = await self.assertFailure(
            Deferred.fromCoroutine(orders.publish("prod", "ada")), PublishError
        )
        self.assertEqual(error.code, "invalid")
        other: Any = await self.assertFailure(
            Deferred.fromCoroutine(
                orders.save_draft("prod", NEW, EVERYBODY, "bob", admits=lambda etag: False)
            ),
            PublishError,
        )
        self.assertEqual(other.code, "changed")
        self.assertEqual(await self.publisher.database.read(bundles.newest, POLICY), before)
        number = await self.publish(orders, "prod", NEW)
        assert before is not None
        self.assertEqual(number, before.position.version + 1)

    async def test_the_event_is_written_with_the_change_or_neither_is(self) -> None:
        orders = await self.begin()

        def record(connection: sqlite3.Connection, before: Any, after: Any) -> None:
            raise ValueError(f"{before} {sorted(after)}")

        await orders.save_draft("prod", NEW, EVERYBODY, "ada")
        error = await self.assertFailure(
            Deferred.fromCoroutine(orders.publish("prod", "ada", record=record)), ValueError
        )
        self.assertIn("['digest', 'target', 'version']", str(error))
        self.assertEqual(await self.publisher.database.read(policies.versions, "prod"), [])
        self.assertNotIn("prod", self.publisher.policies.stream.lines())


class Keys(PublisherCase):
    async def test_another_key_signs_all_that_is_in_force(self) -> None:
        orders = await self.begin()
        hosts = [await self.enroll(f"web{n}") for n in range(2)]
        await self.publish(orders, "prod", NEW)
        await orders.set_mode(Selection(), Mode("tcp"), "ada")
        await self.calm()
        before = {stream: at.version for stream, at in hosts[0].held.items()}
        await orders.replace_key(BUNDLE)
        await self.calm()
        for host in hosts:
            self.assertEqual(host.root.version, 2)
            self.assertEqual(set(host.held), set(STREAMS))
            self.assertTrue(all(host.held[stream].version > before[stream] for stream in STREAMS))
        self.assertEqual(self.texts(*hosts), ["new"] * 2)
        await self.crash()
        orders = await self.begin()
        pushed = [len(host.pushed) for host in hosts]
        for host in hosts:
            self.desk.connect(host)
        await self.calm()
        self.assertEqual([len(host.pushed) for host in hosts], pushed)

    async def test_what_was_given_up_is_not_signed_again(self) -> None:
        orders = await self.begin()
        hosts = [await self.enroll(f"web{n}") for n in range(3)]
        await self.calm()
        await self.publish(orders, "prod", NEW)
        await orders.steer("prod", "abort")
        await self.calm()
        await orders.replace_key(BUNDLE)
        await self.calm()
        self.assertEqual(self.texts(*hosts), [""] * 3)
        await self.crash()
        orders = await self.begin()
        self.assertEqual(orders.rollout(POLICY, "prod").progress.phase, Phase.ABORTED)

    async def test_a_raised_epoch_ends_what_was_signed(self) -> None:
        orders = await self.begin()
        host = await self.enroll("web1")
        await self.publish(orders, "prod", NEW)
        await self.calm()
        await orders.raise_epoch()
        await self.calm()
        self.assertEqual({at.key_epoch for at in host.held.values()}, {2})
        self.assertEqual(self.texts(host), ["new"])

    async def test_no_key_goes_while_a_policy_is_on_its_way(self) -> None:
        orders = await self.begin()
        host = await self.enroll("web1")
        await self.calm()
        await self.publish(orders, "prod", NEW)
        await self.assertFailure(Deferred.fromCoroutine(orders.replace_key(BUNDLE)), RolloutError)
        self.assertEqual(self.keys.root.version, 1)
        await self.calm()
        self.assertEqual(self.texts(host), ["new"])


class Backups(PublisherCase):
    async def test_what_a_host_says_moves_no_number_and_a_person_does(self) -> None:
        orders = await self.begin()
        host = await self.enroll("web1")
        await self.publish(orders, "prod", OLD)
        await self.calm()
        # From a backup that is older than what it was given since.
        assert self.database is not None
        copy = self.directory / "backup.db"
        await self.database.backup(copy)
        for text in (NEW, OLD, NEW):
            await self.publish(orders, "prod", text)
            await self.calm()
        far = host.held[POLICY].version
        await self.crash()
        for path in (self.directory / "store").iterdir():
            path.unlink()
        shutil.copy(copy, self.directory / "store" / "control.db")
        orders = await self.begin()
        host.mark = None
        self.desk.connect(host)
        await self.calm()
        self.assertEqual([type(command) for _, command in self.told], [Ahead])
        self.assertEqual(self.texts(host), ["new"])
        await orders.go_beyond(POLICY, far)
        await self.calm()
        self.assertEqual(self.texts(host), ["old"])
        self.assertEqual(host.held[POLICY].version, far + 1)
        await self.assertFailure(Deferred.fromCoroutine(orders.go_beyond(POLICY, 2**60)), RolloutError)

    async def test_what_a_host_makes_up_harms_nobody(self) -> None:
        orders = await self.begin()
        host, liar = await self.enroll("web1"), await self.enroll("web2")
        await self.calm()
        for at in (
            Place(2**64 - 1, 2**64 - 1, bytes(32)),
            Place(1, 2**64 - 1, bytes(32)),
            Place(1, 1, b""),
            Place(0, 7, b""),
            Place(1, 1, bytes(32)),
        ):
            for stream in STREAMS:
                liar.held[stream] = at
            liar.mark = None
            self.desk.disconnect(liar)
            self.desk.connect(liar)
            self.publisher.acked(liar.id, POLICY, 1, at)
            self.publisher.acked(liar.id, "nothing", 1, at)
            self.publisher.refused(liar.id, LOCKS, 2**64 - 1, "storage", "", at)
            self.desk.queue.clear()
            await self.publisher.kept()
            self.assertEqual(self.publisher.problem, "")
        self.publisher.connected(str(uuid.uuid4()), host.positions())
        await self.publish(orders, "prod", NEW, plan=AT_ONCE)
        self.desk.disconnect(liar)
        await self.calm()
        self.assertEqual(self.texts(host), ["new"])
        self.assertLess(host.held[POLICY].version, 10)

    async def test_a_stop_keeps_what_is_not_kept_yet(self) -> None:
        orders = await self.begin()
        host = await self.enroll("web1")
        await self.calm()
        await self.publish(orders, "prod", NEW)
        await self.publisher.kept()
        self.desk.answer()
        await self.publisher.stop()
        await self.crash()
        orders = await self.begin()
        self.assertEqual(orders.rollout(POLICY, "prod").progress.acked, 1)
        self.assertEqual(self.texts(host), ["new"])


class Window(PublisherCase):
    async def test_so_many_are_on_their_way_and_locks_go_first(self) -> None:
        orders = await self.begin(window=PushWindow(pushes=2))
        for n in range(5):
            await self.enroll(f"web{n}")
        await self.calm()
        await self.publish(orders, "prod", NEW, plan=AT_ONCE)
        await self.publisher.kept()
        self.assertEqual([stream for _, stream, _, _ in self.desk.queue], [POLICY] * 2)
        await orders.add_lock(make_lock("user", "eve"), "left", "ada")
        await self.publisher.kept()
        self.assertEqual(len(self.desk.queue), 2)
        self.desk.answer()
        await self.publisher.kept()
        self.assertEqual([stream for _, stream, _, _ in self.desk.queue], [LOCKS] * 2)
        # Who does not answer holds up nobody for long.
        self.desk.queue.clear()
        self.clock.advance(PATIENCE + 1)
        await self.publisher.kept()
        self.assertEqual([stream for _, stream, _, _ in self.desk.queue], [LOCKS] * 2)

    async def test_what_waits_for_its_turn_is_halted_too(self) -> None:
        orders = await self.begin(window=PushWindow(pushes=2))
        hosts = [await self.enroll(f"web{n}") for n in range(6)]
        await self.calm()
        await self.publish(orders, "prod", NEW, plan=Plan(halts=True))
        await self.publisher.kept()
        refusing = self.desk.queue[0][0]
        refusing.refuses[POLICY] = ("content-refused", "no")
        await self.calm()
        took = self.texts(*hosts).count("new")
        self.assertEqual(orders.rollout(POLICY, "prod").progress.phase, Phase.HALTED)
        self.assertLess(took, 3)
        await self.calm()
        self.assertEqual(self.texts(*hosts).count("new"), took)
        await orders.steer("prod", "resume")
        await self.calm()
        self.assertEqual(self.texts(*hosts).count("new"), 5)

    async def test_snapshots_come_again(self) -> None:
        await self.begin()
        host = await self.enroll("web1")
        await self.calm()
        shown = host.shown
        self.wall += SHOW_EVERY
        self.clock.advance(SHOW_EVERY + 1)
        self.assertEqual(host.shown, shown + 1)
        assert host.mark is not None
        self.assertEqual(
            {stream: bool(host.mark.mark(stream).confirmed_ms) for stream in (TRUST, LOCKS, POLICY)},
            {TRUST: True, LOCKS: True, POLICY: True},
        )
