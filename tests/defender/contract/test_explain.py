"""Why a rule decided, and why each one before it did not."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from defender.contract.explain import Explanation, RuleTrace, explain
from defender.contract.facts import Subject
from defender.contract.policy import load_policy

POLICY = load_policy(
    """\
schema: 1
rules:
  - {name: by-user, users: [alice, b1, b2, b3, b4, b5], effect: allow}
  - {name: by-group, groups: [ops], effect: allow}
  - {name: by-host, hosts: ["prod*"], effect: allow}
  - {name: by-via, via: [unix], effect: allow}
  - {name: by-network, networks: [10.0.0.0/8], effect: allow}
  - {name: no-delete, effect: deny, actions: [container_delete]}
  - {name: readers, effect: allow, actions: ["*_list"], message: "read only"}
  - {name: never, effect: allow}
""",
    "p.yaml",
)
BRUCE = Subject("bruce", ("dev", "qa"), "tls", "192.168.1.1")


class ExplainTests(SynchronousTestCase):
    """One policy, several requests."""

    def explain(self, action: str, subject: Subject = BRUCE, host: str = "web1") -> Explanation:
        return explain(POLICY, subject, host, action)

    def test_every_rule_until_the_decision(self) -> None:
        explanation = self.explain("container_list")
        self.assertEqual(
            explanation.traces,
            (
                RuleTrace("by-user", 3, False, "users: [alice, b1, b2, b3, and 2 more] does not match bruce"),
                RuleTrace("by-group", 4, False, "groups: [ops] does not match dev, qa"),
                RuleTrace("by-host", 5, False, "hosts: [prod*] does not match web1"),
                RuleTrace("by-via", 6, False, "via: [unix] does not include tls"),
                RuleTrace("by-network", 7, False, "networks: [10.0.0.0/8] does not include 192.168.1.1"),
                RuleTrace("no-delete", 8, True, "action not listed: continue"),
                RuleTrace("readers", 9, True, "action listed: allow"),
            ),
        )
        self.assertEqual((explanation.decision.effect, explanation.decision.rule), ("allow", "readers"))

    def test_denied_because_not_listed(self) -> None:
        explanation = self.explain("image_create")
        self.assertEqual(explanation.traces[-1], RuleTrace("readers", 9, True, "action not listed: deny"))
        self.assertEqual(explanation.decision.message, "read only")

    def test_denied_because_listed(self) -> None:
        self.assertEqual(self.explain("container_delete").traces[-1].why, "action listed: deny")

    def test_unknown_operation(self) -> None:
        explanation = self.explain("unknown")
        self.assertEqual(explanation.traces[-1].why, "unknown operation: deny")
        self.assertEqual(explanation.decision.rule, "readers")

    def test_no_groups(self) -> None:
        why = self.explain("container_list", Subject("bruce", address="11.0.0.1")).traces[1].why
        self.assertEqual(why, "groups: [ops] does not match no groups")

    def test_unix_peer_and_networks(self) -> None:
        policy = load_policy("{schema: 1, rules: [{name: n, effect: allow, networks: [0.0.0.0/0]}]}", "p")
        explanation = explain(policy, Subject("a", via="unix"), "h", "container_list")
        self.assertEqual(
            explanation.traces[0].why,
            "networks: [0.0.0.0/0] does not include a unix peer, which has no address",
        )
        self.assertEqual(
            (explanation.decision.rule, explanation.decision.reason), ("default", "no rule matched")
        )

    def test_address_that_cannot_be_told(self) -> None:
        explanation = self.explain("container_list", Subject("bruce"))
        self.assertEqual(
            explanation.traces[-1],
            RuleTrace("by-network", 7, True, "source address cannot be determined: deny"),
        )
        self.assertEqual(len(explanation.traces), 5)
