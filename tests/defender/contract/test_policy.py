"""Decisions: the language's semantics, case by case and against a naive model."""

from __future__ import annotations

import fnmatch
import re
from ipaddress import ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.contract import policy as policy_module
from defender.contract.actions import OPERATIONS, UNKNOWN, Operation, names_of
from defender.contract.explain import explain
from defender.contract.facts import Subject
from defender.contract.policy import Decision, Policy, PolicyTable, Rule, load_policy
from defender.contract.rule import EXPLICIT_ACTIONS

BY_ACTION: dict[str, Operation] = {"unknown": UNKNOWN} | {op.action: op for op in OPERATIONS}


def policy_of(*rules: str) -> Policy:
    """A policy of rules in flow style, named r0, r1, ... where they have no name."""
    lines = (f"  - {{name: r{place}, {rule}}}\n" for place, rule in enumerate(rules))
    return load_policy(
        "schema: 1\nrules:\n" + "".join(lines) if rules else "{schema: 1, rules: []}", "p.yaml"
    )


class PolicyCase(SynchronousTestCase):
    """Assertions about one policy."""

    def assert_decision(
        self, rules: list[str], subject: Subject, action: str, effect: str, rule: str, *, host: str = "web1"
    ) -> Decision:
        decision = PolicyTable(policy_of(*rules), host).decide(subject, BY_ACTION[action])
        self.assertEqual((decision.effect, decision.rule), (effect, rule), decision)
        self.assertEqual(decision.allowed, effect == "allow")
        return decision


class DecisionTests(PolicyCase):
    """Order, effects and what happens to actions that are not listed."""

    def test_default_denies(self) -> None:
        decision = self.assert_decision([], Subject("a"), "docker_ping", "deny", "default")
        self.assertEqual(decision, Decision("deny", "default", "no rule matched"))

    def test_no_policy_denies(self) -> None:
        table = PolicyTable(None, "web1")
        for operation in (*OPERATIONS, UNKNOWN):
            self.assertEqual(
                table.decide(Subject("a"), operation), Decision("deny", "default", "no active policy")
            )

    def test_first_match_decides(self) -> None:
        rules = ["users: [a], effect: deny", "effect: allow"]
        self.assert_decision(rules, Subject("a"), "container_list", "deny", "r0")
        self.assert_decision(rules, Subject("b"), "container_list", "allow", "r1")
        self.assert_decision(rules[::-1], Subject("a"), "container_list", "allow", "r0")

    def test_allow_denies_what_it_does_not_list(self) -> None:
        rules = ["effect: allow, actions: [container_list]", "effect: allow"]
        self.assert_decision(rules, Subject("a"), "container_list", "allow", "r0")
        decision = self.assert_decision(rules, Subject("a"), "image_list", "deny", "r0")
        self.assertEqual(decision.reason, "action not listed")

    def test_allow_may_continue(self) -> None:
        rules = [
            "effect: allow, actions: [container_list], otherwise: continue",
            "effect: allow, actions: [image_list]",
        ]
        self.assert_decision(rules, Subject("a"), "container_list", "allow", "r0")
        self.assert_decision(rules, Subject("a"), "image_list", "allow", "r1")
        self.assert_decision(rules, Subject("a"), "volume_list", "deny", "r1")

    def test_deny_continues_with_what_it_does_not_list(self) -> None:
        rules = ["effect: deny, actions: [container_list]", "effect: allow"]
        decision = self.assert_decision(rules, Subject("a"), "container_list", "deny", "r0")
        self.assertEqual(decision.reason, "action listed")
        self.assert_decision(rules, Subject("a"), "image_list", "allow", "r1")

    def test_deny_may_deny_the_rest(self) -> None:
        rules = ["effect: deny, actions: [container_list], otherwise: deny", "effect: allow"]
        self.assert_decision(rules, Subject("a"), "image_list", "deny", "r0")

    def test_nothing_left_after_continue_is_the_default(self) -> None:
        rules = ["effect: deny, actions: [container_list]"]
        self.assert_decision(rules, Subject("a"), "image_list", "deny", "default")

    def test_what_the_rule_says_about_audit_is_in_the_decision(self) -> None:
        rules = ['effect: allow, audit: denied, durability: best_effort, message: "ask #x"']
        decision = self.assert_decision(rules, Subject("a"), "image_list", "allow", "r0")
        self.assertEqual(
            decision, Decision("allow", "r0", "action listed", "ask #x", "denied", "best_effort")
        )


class SubjectTests(PolicyCase):
    """Which subjects a rule reaches."""

    def reaches(self, conditions: str, subject: Subject, host: str = "web1") -> bool:
        table = PolicyTable(policy_of(f"effect: allow, {conditions}"), host)
        return table.decide(subject, BY_ACTION["container_list"]).allowed

    def test_users(self) -> None:
        self.assertTrue(self.reaches("users: [bruce]", Subject("BRUCE")))
        self.assertTrue(self.reaches('users: ["*@EXAMPLE.com"]', Subject("bruce@example.com")))
        self.assertTrue(self.reaches('users: ["STRASSE"]', Subject("straße")))
        self.assertFalse(self.reaches("users: [bruce]", Subject("bruce2")))
        self.assertFalse(self.reaches("users: [bruce]", Subject("bruce\n")))
        self.assertFalse(self.reaches('users: ["*", "-ci-*"]', Subject("CI-1")))
        self.assertTrue(self.reaches('users: ["ci-*"]', Subject("ci-a\nb")))

    def test_groups(self) -> None:
        self.assertTrue(self.reaches('groups: ["Dev team"]', Subject("a", ("x", "dev TEAM"))))
        self.assertFalse(self.reaches('groups: ["Dev team"]', Subject("a")))
        self.assertTrue(self.reaches('groups: ["*"]', Subject("a")))
        self.assertTrue(self.reaches('groups: ["*", "-x"]', Subject("a")))
        self.assertFalse(self.reaches('groups: ["*", "-x"]', Subject("a", ("y", "X"))))

    def test_users_and_groups_must_both_match(self) -> None:
        conditions = "users: [a], groups: [g]"
        self.assertTrue(self.reaches(conditions, Subject("a", ("g",))))
        self.assertFalse(self.reaches(conditions, Subject("a", ("h",))))
        self.assertFalse(self.reaches(conditions, Subject("b", ("g",))))

    def test_hosts(self) -> None:
        self.assertTrue(self.reaches('hosts: ["Prod*"]', Subject("a"), "PROD1"))
        self.assertFalse(self.reaches('hosts: ["prod*"]', Subject("a"), "dev1"))
        self.assertFalse(self.reaches('hosts: ["*", "-prod-canary*"]', Subject("a"), "prod-Canary1"))

    def test_via(self) -> None:
        self.assertTrue(self.reaches("via: [unix]", Subject("a", via="unix")))
        self.assertFalse(self.reaches("via: [unix]", Subject("a", via="tls")))
        self.assertTrue(self.reaches("via: [tls, unix]", Subject("a", via="tls")))

    def test_networks(self) -> None:
        networks = 'networks: [10.0.0.0/8, "2001:db8::/32"]'
        for address, reached in (
            ("10.1.2.3", True),
            ("11.1.2.3", False),
            ("2001:db8::1", True),
            ("2001:db9::1", False),
            ("::ffff:10.1.2.3", True),
            ("::a01:203", False),
        ):
            self.assertEqual(self.reaches(networks, Subject("a", address=address)), reached, address)

    def test_a_unix_peer_matches_no_network(self) -> None:
        for network in ("0.0.0.0/0", '"::/0"'):
            self.assertFalse(self.reaches(f"networks: [{network}]", Subject("a", via="unix")))
            self.assertFalse(
                self.reaches(f"networks: [{network}]", Subject("a", via="unix", address="10.0.0.1"))
            )

    def test_an_address_that_cannot_be_told_denies_in_both_effects(self) -> None:
        for effect in ("allow", "deny"):
            for address in (None, "", "nonsense"):
                rules = [f"effect: {effect}, actions: [image_list], networks: [10.0.0.0/8]", "effect: allow"]
                decision = self.assert_decision(
                    rules, Subject("a", address=address), "volume_list", "deny", "r0"
                )
                self.assertEqual(decision.reason, "source address cannot be determined")

    def test_an_unknown_address_matters_only_where_the_rest_matches(self) -> None:
        rules = ["users: [b], effect: deny, networks: [10.0.0.0/8]", "effect: allow"]
        self.assert_decision(rules, Subject("a"), "volume_list", "allow", "r1")


class ActionTests(PolicyCase):
    """Names, aliases, explicit actions and unknown operations."""

    def lists(self, actions: str, action: str, effect: str = "allow") -> bool:
        rules = [f"effect: {effect}, actions: [{actions}], otherwise: continue"]
        return PolicyTable(policy_of(*rules), "h").decide(Subject("a"), BY_ACTION[action]).rule == "r0"

    def test_globs_and_case(self) -> None:
        self.assertTrue(self.lists('"Container_*"', "container_list"))
        self.assertTrue(self.lists('"*_LIST"', "container_list"))
        self.assertTrue(self.lists('"container_l?st"', "container_list"))
        self.assertFalse(self.lists('"container_*"', "image_list"))

    def test_aliases(self) -> None:
        self.assertTrue(self.lists("image_pull", "image_create"))
        self.assertTrue(self.lists('"*_pull"', "image_create"))
        self.assertTrue(self.lists("images_archive", "image_save"))
        self.assertTrue(self.lists("images_archive", "images_archive"))
        self.assertFalse(self.lists("image_save", "images_archive"))

    def test_exemptions(self) -> None:
        self.assertFalse(self.lists('"*", "-container_exec_*"', "container_exec_start"))
        self.assertTrue(self.lists('"*", "-container_exec_*"', "container_start"))
        self.assertFalse(self.lists('"image_create", "-image_pull"', "image_create"))

    def test_explicit_actions_by_name_or_star_only(self) -> None:
        for action in EXPLICIT_ACTIONS:
            for effect in ("allow", "deny"):
                self.assertTrue(self.lists(f'"{action.upper()}"', action, effect), action)
                self.assertTrue(self.lists('"*"', action, effect), action)
                for glob in (f"{action[:-1]}*", f"{action}*", "**", "*?", f"?{action[1:]}"):
                    self.assertFalse(self.lists(f'"{glob}"', action, effect), (glob, action))

    def test_explicit_action_by_its_alias(self) -> None:
        self.assertTrue(self.lists("plugin_remove", "plugin_delete"))
        self.assertFalse(self.lists('"plugin_remov*"', "plugin_delete"))

    def test_a_glob_exempts_explicit_actions_from_what_is_allowed(self) -> None:
        """Fail closed: who writes `-plugin_*` means the changes above all."""
        self.assertFalse(self.lists('"*", "-plugin_*"', "plugin_create", "allow"))
        self.assertFalse(self.lists('"*", "-plugin_create"', "plugin_create", "allow"))

    def test_a_glob_does_not_exempt_explicit_actions_from_what_is_denied(self) -> None:
        self.assertTrue(self.lists('"*", "-plugin_*"', "plugin_create", "deny"))
        self.assertFalse(self.lists('"*", "-plugin_*"', "plugin_list", "deny"))
        self.assertFalse(self.lists('"*", "-plugin_create"', "plugin_create", "deny"))

    def test_unknown_is_never_allowed(self) -> None:
        for rules, rule in (
            (["effect: allow"], "r0"),
            (["effect: allow, otherwise: continue"], "r0"),
            (['effect: allow, actions: ["container_*"]'], "r0"),
            (['effect: allow, actions: ["container_*"], otherwise: continue', "effect: allow"], "r1"),
            (['effect: allow, actions: ["container_*"], otherwise: continue'], "default"),
            (['effect: deny, actions: ["container_*"]', "effect: allow"], "r1"),
            (["effect: deny"], "r0"),
            (["effect: deny, actions: [unknown]"], "r0"),
            (["users: [b], effect: deny"], "default"),
            ([], "default"),
        ):
            decision = self.assert_decision(rules, Subject("a"), "unknown", "deny", rule)
            self.assertEqual(decision.reason, "unknown operation")


class TableTests(PolicyCase):
    """What a table remembers changes no decision."""

    def test_same_subject_again_is_a_lookup(self) -> None:
        table = PolicyTable(policy_of("effect: allow"), "h")
        first = table.decide(Subject("a", ("g",)), BY_ACTION["container_list"])
        self.assertIs(table.decide(Subject("a", ("g",)), BY_ACTION["container_list"]), first)

    def test_subjects_that_differ_in_one_fact(self) -> None:
        table = PolicyTable(
            policy_of(
                "effect: deny, users: [a], groups: [g], via: [tls], networks: [10.0.0.0/8]", "effect: allow"
            ),
            "h",
        )
        operation = BY_ACTION["container_list"]
        caught = Subject("a", ("g",), "tls", "10.0.0.1")
        for _ in range(2):
            self.assertFalse(table.decide(caught, operation).allowed)
            for other in (
                Subject("b", ("g",), "tls", "10.0.0.1"),
                Subject("a", ("h",), "tls", "10.0.0.1"),
                Subject("a", ("g",), "unix", None),
                Subject("a", ("g",), "tls", "11.0.0.1"),
            ):
                self.assertTrue(table.decide(other, operation).allowed, other)

    def test_addresses_do_not_fill_a_table_that_does_not_ask_for_them(self) -> None:
        table = PolicyTable(policy_of("effect: allow"), "h")
        for last in range(200):
            table.decide(Subject("a", address=f"10.0.0.{last}"), BY_ACTION["container_list"])
        self.assertEqual(len(table._young), 1)

    def test_bounded(self) -> None:
        self.patch(policy_module, "REMEMBERED_SUBJECTS", 8)
        table = PolicyTable(policy_of('users: ["u1*"], effect: allow'), "h")
        for _ in range(2):
            for number in range(100):
                allowed = table.decide(Subject(f"u{number}"), BY_ACTION["container_list"]).allowed
                self.assertEqual(allowed, str(number).startswith("1"))
                self.assertLessEqual(len(table._young) + len(table._old), 8)

    def test_what_is_asked_for_again_stays(self) -> None:
        self.patch(policy_module, "REMEMBERED_SUBJECTS", 8)
        table = PolicyTable(policy_of("effect: allow"), "h")
        for number in range(100):
            table.decide(Subject("often"), BY_ACTION["container_list"])
            table.decide(Subject(f"u{number}"), BY_ACTION["container_list"])
        users = {key[0] for key in (*table._young, *table._old)}
        self.assertIn("often", users)


USERS = ["alice", "Bob", "ci-1"]
GROUPS = ["dev", "Ops", "x"]
HOSTS = ["prod1", "dev1"]
ADDRESSES = [None, "10.1.1.1", "192.168.0.1", "2001:db8::1", "::ffff:10.1.1.1"]
ACTIONS = [
    "container_list",
    "container_delete",
    "image_save",
    "images_archive",
    "swarm_init",
    "plugin_list",
    "unknown",
]


def pattern_lists(words: list[str]) -> st.SearchStrategy[tuple[str, ...]]:
    one = st.sampled_from([*words, "*", "*e*", "?*", words[0][:2] + "*", words[-1].upper()])
    exemption = st.sampled_from([f"-{word}" for word in words] + ["-*1", f"-{words[0][:1]}*"])
    return st.tuples(st.lists(one, min_size=1, max_size=2), st.lists(exemption, max_size=1)).map(
        lambda parts: (*parts[0], *parts[1])
    )


NAMES = [
    "container_list",
    "container_remove",
    "image_archive",
    "swarm_init",
    "container_*",
    "sw*",
    "*",
    "*_list",
]
NETWORKS = [ip_network("10.0.0.0/8"), ip_network("2001:db8::/32"), ip_network("0.0.0.0/0")]
rules_strategy = st.builds(
    Rule,
    name=st.sampled_from(["one", "two", "three", "four"]),
    effect=st.sampled_from(["allow", "deny"]),
    users=pattern_lists(USERS),
    groups=pattern_lists(GROUPS),
    hosts=pattern_lists(HOSTS),
    networks=st.lists(st.sampled_from(NETWORKS), max_size=2).map(tuple),
    via=st.sampled_from([(), ("tls",), ("unix",), ("tls", "unix")]),
    actions=st.tuples(
        st.lists(st.sampled_from(NAMES), min_size=1, max_size=3),
        st.lists(st.sampled_from([f"-{name}" for name in NAMES]), max_size=1),
    ).map(lambda parts: (*parts[0], *parts[1])),
    otherwise=st.sampled_from(["deny", "continue"]),
)
subjects = st.builds(
    Subject,
    user=st.sampled_from(USERS),
    groups=st.lists(st.sampled_from(GROUPS), max_size=2).map(tuple),
    via=st.sampled_from(["tls", "unix"]),
    address=st.sampled_from(ADDRESSES),
)


def plain_match(pattern: str, text: str) -> bool:
    return re.fullmatch(fnmatch.translate(pattern.casefold()), text.casefold()) is not None


def plain_list(patterns: tuple[str, ...], texts: list[str], *, empty: bool = False) -> bool:
    if any(p[0] == "-" and plain_match(p[1:], text) for p in patterns for text in texts):
        return False
    if empty and "*" in patterns:
        return True
    return any(p[0] != "-" and plain_match(p, text) for p in patterns for text in texts)


def plain_lists(rule: Rule, action: str) -> bool:
    operation = BY_ACTION[action]

    def reaches(pattern: str, globs: bool) -> bool:
        if operation.explicit and not globs and pattern != "*" and "*" in pattern:
            return False
        return any(plain_match(pattern, name) for name in names_of(action))

    if any(p[0] == "-" and reaches(p[1:], rule.effect == "allow") for p in rule.actions):
        return False
    return any(p[0] != "-" and reaches(p, False) for p in rule.actions)


def plain_decision(policy: Policy, subject: Subject, host: str, action: str) -> tuple[str, str]:
    """The design's words, one after the other: effect and rule."""
    for rule in policy.rules:
        if not plain_list(rule.users, [subject.user]):
            continue
        if not plain_list(rule.groups, list(subject.groups), empty=True):
            continue
        if not plain_list(rule.hosts, [host]):
            continue
        if rule.via and subject.via not in rule.via:
            continue
        if rule.networks:
            if subject.via == "unix":
                continue
            if subject.address is None:
                return "deny", rule.name
            address = ip_address(subject.address.removeprefix("::ffff:"))
            if not any(address in network for network in rule.networks):
                continue
        if plain_lists(rule, action):
            return ("deny" if action == "unknown" else rule.effect), rule.name
        if rule.otherwise == "deny":
            return "deny", rule.name
    return "deny", "default"


class ModelTests(SynchronousTestCase):
    """Tables and explanations against the plain reading."""

    @settings(max_examples=300, deadline=None)
    @given(
        st.lists(rules_strategy, max_size=4),
        st.lists(subjects, min_size=1, max_size=3),
        st.sampled_from(HOSTS),
        st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=3),
    )
    def test_same_decision(
        self, rules: list[Rule], asking: list[Subject], host: str, actions: list[str]
    ) -> None:
        policy = Policy(tuple(rules), "sha256:", "p", "")
        table = PolicyTable(policy, host)
        for subject in asking:
            for action in actions:
                decision = table.decide(subject, BY_ACTION[action])
                self.assertEqual(
                    (decision.effect, decision.rule), plain_decision(policy, subject, host, action)
                )
                self.assertEqual(explain(policy, subject, host, action).decision, decision)
                self.assertIs(table.decide(subject, BY_ACTION[action]), decision)
