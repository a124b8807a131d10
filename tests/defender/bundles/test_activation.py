"""Which policy is in force."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from defender.bundles.activation import Activated, Kept, PolicyActivation
from defender.contract.actions import recognize
from defender.contract.facts import Subject

GOOD = "schema: 1\nrules:\n  - {name: all, effect: allow}\n"
LIST, _ = recognize("GET", "/containers/json")
BRUCE = Subject(user="bruce", address="10.0.0.1")


class ActivationTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.activation = PolicyActivation("web1")

    def effect(self) -> str:
        return self.activation.table.decide(BRUCE, LIST).effect

    def test_nothing_is_allowed_before_the_first(self) -> None:
        decision = self.activation.table.decide(BRUCE, LIST)
        self.assertEqual(
            (decision.effect, decision.rule, decision.reason), ("deny", "default", "no active policy")
        )

    def test_good_policy_replaces_the_whole(self) -> None:
        outcome = self.activation.offer(GOOD, "p.yaml")
        assert isinstance(outcome, Activated)
        self.assertEqual((outcome.version, outcome.unchanged, self.effect()), (1, False, "allow"))

    def test_same_text_is_no_new_version(self) -> None:
        self.activation.offer(GOOD, "p.yaml")
        table = self.activation.table
        outcome = self.activation.offer(GOOD, "p.yaml")
        assert isinstance(outcome, Activated)
        self.assertTrue(outcome.unchanged)
        self.assertEqual(self.activation.version, 1)
        self.assertIs(self.activation.table, table)

    def test_broken_policy_keeps_the_last_good_one(self) -> None:
        self.activation.offer(GOOD, "p.yaml")
        outcome = self.activation.offer("schema: 1\nrules:\n  - {name: all, effect: perhaps}\n", "p.yaml")
        assert isinstance(outcome, Kept)
        self.assertIn("p.yaml:3:", str(outcome.error))
        self.assertEqual(self.effect(), "allow")
        self.assertIs(self.activation.error, outcome.error)
        self.activation.offer(GOOD, "p.yaml")
        self.assertIsNone(self.activation.error)

    def test_unreadable_file_keeps_the_last_good_one(self) -> None:
        self.activation.offer(GOOD, "p.yaml")
        self.activation.unreadable("p.yaml", "cannot be read: Permission denied")
        self.assertEqual(str(self.activation.error), "p.yaml: cannot be read: Permission denied")
        self.assertEqual(self.effect(), "allow")
