"""The streams with their disk: from what the controller pushes to what is in force, and over a start."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from defender.bundles.commands import Ack, Activate, Graded, Nack
from defender.bundles.service import INTERVAL, BundleService
from defender.bundles.store import BundleStore
from defender.bundles.streams import Streams
from defender.contract.audit import Event
from defender.contract.errors import ContractError
from defender.contract.trust import ring_of
from tests.defender.contract.signing import (
    AGENT,
    DEFENDER,
    DOMAIN,
    FIRST,
    NOW,
    new_root,
    position,
    signed,
    signed_root,
    signer,
    snapshot_of,
    trust_push,
)


class ServiceCase(SynchronousTestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name) / "bundles"
        self.store = BundleStore(self.path)
        self.store.adopt(FIRST)
        self.clock = Clock()
        self.clock.advance(NOW)
        self.failure: Exception | None = None
        self.start()

    def start(self) -> None:
        """A process."""
        self.in_force: dict[str, int] = {}
        self.answers: list[Ack | Nack] = []
        self.events: list[Event] = []
        self.told: list[object] = []
        self.service = BundleService(
            self.clock,
            Streams(trust_domain=DOMAIN, defender=DEFENDER, agent_version=AGENT),
            self.store,
            activate=self._activate,
            withdraw=lambda stream, reason: self.in_force.pop(stream),
            answer=self.answers.append,
            record=self.events.append,
            told=self.told.append,
            wall=self.clock.seconds,
        )
        self.service.startService()
        self.addCleanup(self.service.stopService)

    def _activate(self, command: Activate) -> None:
        if self.failure is not None:
            raise self.failure
        self.in_force[command.bundle.stream] = command.bundle.version

    def recorded(self) -> list[tuple[str, str, bool]]:
        found = []
        for event in self.events:
            req, result = event["req"], event["result"]
            assert isinstance(req, dict)
            assert isinstance(result, dict)
            found.append((req["action"], req["target"], result["ok"]))
        return found


class Working(ServiceCase):
    def test_from_a_push_to_the_next_start(self) -> None:
        self.service.offered("policy", 5, signed(version=3))
        self.assertEqual((self.answers, self.in_force), ([], {}))
        self.service.snapshot(snapshot_of({"policy": position(signed(version=3), 3)}))
        self.assertEqual(self.in_force, {"policy": 3})
        self.assertEqual(self.answers, [Ack("policy", 5, position(signed(version=3), 3))])
        self.assertEqual(self.recorded(), [("bundle_activate", "policy", True)])
        self.start()
        self.assertEqual(self.in_force, {"policy": 3})
        self.assertEqual(self.recorded(), [("bundle_restore", "policy", True)])

    def test_a_refusal_is_answered_and_recorded(self) -> None:
        self.service.snapshot(snapshot_of({}))
        self.service.offered("policy", 1, signed(version=3))
        self.service.offered("policy", 2, signed(version=2))
        nack = self.answers[-1]
        assert isinstance(nack, Nack)
        self.assertEqual((nack.nonce, nack.code, nack.kept.version), (2, "older-version", 3))
        self.assertEqual(self.recorded()[-1], ("bundle_refuse", "policy", False))
        result = self.events[-1]["result"]
        assert isinstance(result, dict)
        self.assertEqual((result["version"], result["problems"][0].split(":")[0]), (3, "older-version"))
        self.service.snapshot(snapshot_of({}))
        self.assertEqual(self.recorded()[-1], ("snapshot_refuse", "snapshot", False))

    def test_a_new_root_withdraws(self) -> None:
        self.service.snapshot(snapshot_of({}))
        self.service.offered("policy", 1, signed())
        root = new_root(version=2, key_epoch=2, bundle=ring_of([signer("next")]))
        push = trust_push(1, (FIRST, signed_root(root)), by=("next",), key_epoch=2)
        self.service.offered("trust", 2, push)
        self.assertEqual(self.in_force, {"trust": 1})
        self.assertEqual(
            self.recorded()[1:],
            [
                ("root_activate", "root", True),
                ("bundle_withdraw", "policy", False),
                ("bundle_activate", "trust", True),
            ],
        )
        self.start()
        self.assertEqual(self.in_force, {"trust": 1})

    def test_what_cannot_be_put_in_force(self) -> None:
        self.service.snapshot(snapshot_of({}))
        for failure in (OSError(98, "Address already in use"), ContractError("no such group")):
            self.failure = failure
            self.service.offered("mode", 1, signed("mode", 1))
            nack = self.answers.pop()
            assert isinstance(nack, Nack)
            self.assertEqual(nack.code, "not-activated")
            self.assertIn(nack.detail, ("Address already in use", "no such group"))
        self.failure = ZeroDivisionError("a fault of ours")
        self.service.offered("mode", 1, signed("mode", 1))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.failure = None
        self.service.offered("mode", 2, signed("mode", 1))
        self.assertIsInstance(self.answers[-1], Ack)

    def test_a_disk_that_fails(self) -> None:
        self.service.snapshot(snapshot_of({}))
        (self.path / "policy").write_text("in the way")
        self.service.offered("policy", 1, signed())
        nack = self.answers[-1]
        assert isinstance(nack, Nack)
        self.assertEqual((nack.code, self.in_force), ("storage", {}))

    def test_age_is_looked_at(self) -> None:
        self.service.snapshot(snapshot_of({}))
        self.service.offered("policy", 1, signed(stale_after=62))
        self.assertEqual(self.told, [])
        self.clock.advance(INTERVAL)
        self.assertEqual(self.told, [Graded("policy", "stale", NOW + 2)])
        self.assertEqual(self.recorded()[-1], ("bundle_grade", "policy", False))

    def test_a_file_that_cannot_be_read_is_said(self) -> None:
        self.service.snapshot(snapshot_of({}))
        self.service.offered("policy", 1, signed())
        for file in (self.path / "policy").iterdir():
            file.unlink()
            file.mkdir()
        self.start()
        self.assertEqual(self.in_force, {})
        self.assertEqual(self.recorded(), [("bundle_refuse", "policy", False)])


class Blocking(ServiceCase):
    def test_a_disk_that_fails_at_once(self) -> None:
        def run(what: object) -> Deferred[None]:
            raise OSError(28, "No space left on device")

        self.service.snapshot(snapshot_of({}))
        self.patch(self.service, "_block", run)
        self.service.offered("policy", 1, signed())
        nack = self.answers[-1]
        assert isinstance(nack, Nack)
        self.assertEqual((nack.code, nack.detail), ("storage", "No space left on device"))

    def test_a_disk_in_a_thread(self) -> None:
        """What is written is answered later; meanwhile nothing is in force that is not on disk."""
        self.service.snapshot(snapshot_of({}))
        waiting: list[Deferred[None]] = []

        def run(what: object) -> Deferred[None]:
            assert callable(what)
            what()
            waiting.append(Deferred())
            return waiting[-1]

        self.patch(self.service, "_block", run)
        self.service.offered("policy", 1, signed())
        self.service.offered("locks", 2, signed("locks"))
        self.assertEqual((len(waiting), self.in_force), (1, {}))
        waiting.pop().callback(None)
        self.assertEqual((len(waiting), self.in_force), (1, {"policy": 1}))
        waiting.pop().callback(None)
        self.assertEqual(self.in_force, {"policy": 1, "locks": 1})
        self.assertEqual([answer.nonce for answer in self.answers], [1, 2])
