"""What `policy check` says about a policy that is valid."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from defender.contract.advice import advise, describe_rule
from defender.contract.policy import load_policy


def messages(*rules: str) -> list[tuple[str, str]]:
    """Rule and message of each remark on rules in flow style, named r0, r1, ..."""
    lines = (f"  - {{name: r{place}, {rule}}}\n" for place, rule in enumerate(rules))
    policy = load_policy("schema: 1\nrules:\n" + "".join(lines), "p")
    return [(advice.rule, advice.message) for advice in advise(policy)]


HARMLESS = "effect: allow, actions: [container_list]"


class AdviceTests(SynchronousTestCase):
    """One remark each."""

    def assert_advice(self, rules: list[str], rule: str, *parts: str) -> None:
        found = messages(*rules)
        self.assertEqual([name for name, _ in found], [rule], found)
        for part in parts:
            self.assertIn(part, found[0][1])

    def test_nothing_to_say(self) -> None:
        self.assertEqual(messages(f"users: [a], {HARMLESS}", f"users: [b], {HARMLESS}", "effect: deny"), [])

    def test_unreachable_after_a_catch_all(self) -> None:
        self.assert_advice([HARMLESS, "users: [a], effect: deny"], "r1", "never decides anything", "'r0'")
        self.assert_advice(["effect: deny", f"users: [a], {HARMLESS}"], "r1", "never decides", "'r0'")
        self.assert_advice(
            [f'users: ["*", x], via: [unix, tls], {HARMLESS}', HARMLESS], "r1", "never decides"
        )

    def test_unreachable_after_the_same_conditions(self) -> None:
        self.assert_advice(
            [f"users: [a], {HARMLESS}", f"users: [a], {HARMLESS}"], "r1", "never decides", "'r0'"
        )

    def test_unreachable_because_all_it_lists_is_decided(self) -> None:
        first = "effect: deny, actions: [container_list, image_list]"
        self.assert_advice(
            [first, f"users: [a], {HARMLESS}, otherwise: continue"], "r1", "never decides", "'r0'"
        )
        self.assertEqual(messages(first, f"users: [a], {HARMLESS}"), [])

    def test_reachable_when_the_earlier_rule_has_conditions(self) -> None:
        for condition in (
            "users: [a]",
            'groups: ["*", "-g"]',
            "hosts: [h]",
            "via: [tls]",
            "networks: [0.0.0.0/0]",
        ):
            self.assertEqual(messages(f"{condition}, {HARMLESS}", HARMLESS), [], condition)

    def test_reaching_the_host(self) -> None:
        self.assert_advice(
            ["effect: allow, actions: [container_create]"],
            "r0",
            "root on the host",
            "container_create (a container",
        )
        self.assert_advice(["users: [a], effect: allow"], "r0", "root on the host", "and 12 more")
        for action in ("container_exec_create", "image_build", "plugin_pull", "service_create", "grpc"):
            self.assert_advice([f"effect: allow, actions: [{action}]"], "r0", f"{action} (")

    def test_not_reaching_the_host(self) -> None:
        creators = "'*_create', '-*_exec_*', '-service_*', '-volume_*'"
        self.assertEqual(
            messages("effect: deny, actions: [container_create]", f"effect: allow, actions: [{creators}]"), []
        )

    def test_patterns_that_never_match(self) -> None:
        self.assert_advice(
            [f"networks: [10.0.0.0/8], via: [unix], {HARMLESS}"], "r0", "a unix peer has no address"
        )
        self.assert_advice([f'groups: [a, "-*"], {HARMLESS}'], "r0", "groups exempts everything")

    def test_globs_and_explicit_actions(self) -> None:
        self.assert_advice(
            ['effect: deny, actions: ["swarm_*"]'],
            "r0",
            '"swarm_*" does not deny swarm_init',
            'named, or covered by "*"',
        )
        self.assert_advice(['effect: allow, actions: ["sess*"]'], "r0", '"sess*" never matches: session')
        self.assert_advice(
            ['effect: deny, actions: ["*", "-swarm_*"]'], "r0", '"-swarm_*" does not exempt swarm_init'
        )
        self.assertEqual(messages('effect: allow, actions: ["plugin_*"]'), [])
        self.assertEqual(messages('effect: deny, actions: ["sess*", session]'), [])
        self.assertEqual(messages('effect: deny, actions: ["debu*", "*"]'), [])

    def test_deny_that_denies_the_rest(self) -> None:
        self.assert_advice(
            ["effect: deny, actions: [image_list], otherwise: deny"], "r0", "denies everything"
        )

    def test_a_rule_named_default(self) -> None:
        policy = load_policy("{schema: 1, rules: [{name: default, effect: deny}]}", "p")
        self.assertIn('"default"', advise(policy)[0].message)

    def test_a_thousand_rules(self) -> None:
        rules = [f"users: [u{n}], {HARMLESS}" for n in range(1000)]
        self.assertEqual(messages(*rules), [])


class DescriptionTests(SynchronousTestCase):
    """A rule in one line."""

    def assert_described(self, rule: str, text: str) -> None:
        policy = load_policy(f"schema: 1\nrules:\n  - {{name: r, {rule}}}\n", "p")
        self.assertEqual(describe_rule(policy.rules[0]), text)

    def test_descriptions(self) -> None:
        self.assert_described("effect: allow", "everybody: allow everything")
        self.assert_described("effect: deny, users: [a, b]", "users a, b: deny everything")
        self.assert_described(
            "effect: allow, groups: [g], hosts: [h], networks: [10.0.0.0/8], via: [tls], "
            "actions: [image_list]",
            "groups g, on h, from 10.0.0.0/8, over tls: allow image_list; nothing else",
        )
        self.assert_described(
            "effect: deny, actions: [image_list]", "everybody: deny image_list; go on with the rest"
        )
        self.assert_described(
            "effect: deny, actions: [image_list], otherwise: deny",
            "everybody: deny image_list; and everything else",
        )
        self.assert_described(
            "effect: allow, users: [a, b, c, d, e, f], actions: [image_list], otherwise: continue",
            "users a, b, c, d and 2 more: allow image_list; go on with the rest",
        )
