"""Every fault of a policy: its line, its key, its suggestion."""

from __future__ import annotations

import hashlib
from ipaddress import ip_network

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.contract.document import MAX_BYTES, MAX_PROBLEMS
from defender.contract.errors import PolicyError, Problem
from defender.contract.policy import Policy, Rule, load_policy, load_policy_bytes

DESIGN = """\
schema: 1
rules:
  - name: devs_rule
    groups: ["Dev team"]
    hosts: ["prod*"]
    effect: allow
    actions: [container_list, container_logs, container_inspect]
    otherwise: deny
    audit: all
    message: "Production is read-only; ask #platform."
  - name: ci
    users: ["ci-*"]
    networks: [10.0.0.0/8, 192.168.1.7, "2001:db8::/32"]
    via: [tls, unix]
    effect: deny
    actions: ["container_*", "-container_list", "images_archive"]
    audit: denied
    durability: best_effort
"""


def problems_of(text: str) -> tuple[Problem, ...]:
    """The problems of a policy, none if it is valid."""
    try:
        load_policy(text, "p.yaml")
    except PolicyError as error:
        return error.problems
    return ()


def one_rule(*lines: str) -> str:
    """A policy of one rule that is complete but for the lines."""
    given = "".join(f"    {line}\n" for line in lines)
    return f"schema: 1\nrules:\n  - name: r\n    effect: allow\n{given}"


class ValidTests(SynchronousTestCase):
    """What a valid policy means."""

    def test_every_key(self) -> None:
        policy = load_policy(DESIGN, "p.yaml")
        self.assertEqual(
            policy.rules,
            (
                Rule(
                    name="devs_rule",
                    effect="allow",
                    groups=("Dev team",),
                    hosts=("prod*",),
                    actions=("container_list", "container_logs", "container_inspect"),
                    message="Production is read-only; ask #platform.",
                    line=3,
                ),
                Rule(
                    name="ci",
                    effect="deny",
                    users=("ci-*",),
                    networks=tuple(map(ip_network, ("10.0.0.0/8", "192.168.1.7/32", "2001:db8::/32"))),
                    via=("tls", "unix"),
                    actions=("container_*", "-container_list", "images_archive"),
                    otherwise="continue",
                    audit="denied",
                    durability="best_effort",
                    line=11,
                ),
            ),
        )

    def test_digest_names_the_bytes(self) -> None:
        text = DESIGN + "# ä\n"
        policy = load_policy_bytes(text.encode(), "p.yaml")
        self.assertEqual(policy.digest, f"sha256:{hashlib.sha256(text.encode()).hexdigest()}")
        self.assertEqual((policy.source, policy.text), ("p.yaml", text))

    def test_defaults(self) -> None:
        for effect, otherwise in (("allow", "deny"), ("deny", "continue")):
            rule = load_policy(f"{{schema: 1, rules: [{{name: r, effect: {effect}}}]}}", "p").rules[0]
            self.assertEqual(rule, Rule(name="r", effect=effect, otherwise=otherwise, line=1))
            self.assertEqual((rule.users, rule.groups, rule.hosts, rule.actions), (("*",),) * 4)
            self.assertEqual((rule.networks, rule.via, rule.audit, rule.durability), ((), (), "all", None))

    def test_otherwise_can_be_told(self) -> None:
        self.assertEqual(load_policy(one_rule("otherwise: continue"), "p").rules[0].otherwise, "continue")

    def test_no_rules_is_a_policy_that_denies_everything(self) -> None:
        self.assertEqual(load_policy("schema: 1\nrules: []\n", "p").rules, ())

    def test_names_in_other_case(self) -> None:
        self.assertEqual(problems_of(one_rule("actions: [Container_List, '-PLUGIN_*', '*']")), ())

    def test_globs_of_explicit_actions_are_valid(self) -> None:
        """They match nothing, which is advice and no error."""
        self.assertEqual(problems_of(one_rule('actions: ["sess*", "plugin_pul?"]')), ())

    def test_unknown_may_be_named_where_it_is_denied(self) -> None:
        text = "schema: 1\nrules:\n  - {name: r, effect: deny, actions: [unknown]}\n"
        self.assertEqual(problems_of(text), ())


class ProblemTests(SynchronousTestCase):
    """One fault each."""

    def assert_problem(self, text: str, line: int, key: str, message: str, suggestion: str = "") -> None:
        problems = problems_of(text)
        self.assertEqual(len(problems), 1, problems)
        found = problems[0]
        self.assertEqual((found.line, found.key), (line, key), found)
        self.assertIn(message, found.message)
        self.assertIn(suggestion, found.suggestion)
        if suggestion == "":
            return
        self.assertNotEqual(found.suggestion, "")

    def assert_rule_problem(self, given: str, key: str, message: str, suggestion: str = "") -> None:
        """The fault of one line of a rule; the line is the fifth."""
        self.assert_problem(one_rule(given), 5, f"rules[0].{key}", message, suggestion)

    def test_empty(self) -> None:
        self.assert_problem("", 0, "", "the policy is empty", "rules: []")

    def test_not_a_mapping(self) -> None:
        self.assert_problem("- a\n", 1, "", "must be a mapping", "")
        self.assert_problem("hello\n", 1, "", "must be a mapping", "")

    def test_schema(self) -> None:
        self.assert_problem("rules: []\n", 1, "schema", "missing", "add schema: 1")
        for value in ("2", '"1"', "0x1", "true", "[1]", "01", "1.0", "~"):
            self.assert_problem(
                f"schema: {value}\nrules: []\n", 1, "schema", "unknown schema", "write schema: 1"
            )

    def test_rules(self) -> None:
        self.assert_problem("schema: 1\n", 1, "rules", "the list of rules is missing", "rules: []")
        self.assert_problem(
            "schema: 1\nrules: {}\n", 2, "rules", "must be a list, not a mapping", "rules: []"
        )
        self.assert_problem("schema: 1\nrules:\n", 2, "rules", "must be a list, not nothing", "rules: []")
        self.assert_problem("schema: 1\nrules: [x]\n", 2, "rules[0]", "a rule must be a mapping")

    def test_unknown_keys(self) -> None:
        self.assert_problem(
            "schema: 1\nrule: []\nrules: []\n", 2, "rule", "unknown key 'rule'", "did you mean rules?"
        )
        self.assert_rule_problem("mesage: x", "mesage", "unknown key 'mesage'", "did you mean message?")
        self.assert_rule_problem("zzz: x", "zzz", "unknown key 'zzz'", "one of name, users")
        self.assert_rule_problem("Users: [x]", "Users", "unknown key 'Users'", "did you mean users?")

    def test_where_is_never_ignored(self) -> None:
        self.assert_rule_problem(
            "where: {container_create: {privileged: false}}", "where", "not supported yet"
        )
        self.assert_rule_problem("where: {}", "where", "never ignored", "remove it")

    def test_name_and_effect_are_required(self) -> None:
        text = "schema: 1\nrules:\n  - {effect: deny}\n"
        self.assert_problem(text, 3, "rules[0]", "the rule has no name", "unique name")
        self.assert_problem(
            "schema: 1\nrules:\n  - {name: a}\n", 3, "rules[0]", "the rule has no effect", "effect: "
        )

    def test_names(self) -> None:
        def named(name: str) -> str:
            return f"schema: 1\nrules:\n  - name: {name}\n    effect: deny\n"

        self.assert_problem(named('""'), 3, "rules[0].name", "empty")
        self.assert_problem(named('" a"'), 3, "rules[0].name", "blanks")
        self.assert_problem(named("x" * 201), 3, "rules[0].name", "longer than 200")
        self.assert_problem(
            named("12"), 3, "rules[0].name", "read as a number", 'in quotes if it is text: "12"'
        )
        self.assert_problem(named(""), 3, "rules[0].name", "missing")
        self.assert_problem(named("[a]"), 3, "rules[0].name", "must be text, not a list")
        for escape in (r"\n", r"\e", r"\u202e", r"\u200b", r"\x7f"):
            self.assert_problem(
                named(f'"a{escape}b"'), 3, "rules[0].name", "invisible character", "remove it"
            )

    def test_names_are_unique(self) -> None:
        text = "schema: 1\nrules:\n" + "".join(f"  - {{name: {name}, effect: deny}}\n" for name in "aAa")
        self.assert_problem(text, 5, "rules[2].name", "'a' is taken", "line 3")
        flow = "{schema: 1, rules: [{name: a, effect: deny}, {name: a, effect: deny}]}"
        self.assert_problem(flow, 1, "rules[1].name", "'a' is taken", "line 1")

    def test_effect(self) -> None:
        text = "schema: 1\nrules:\n  - name: a\n    effect: alow\n"
        self.assert_problem(text, 4, "rules[0].effect", "unknown value 'alow'", "did you mean allow?")
        self.assert_problem(
            text.replace("alow", "Allow"), 4, "rules[0].effect", "unknown value", "mean allow?"
        )
        self.assert_problem(
            text.replace("alow", "no"), 4, "rules[0].effect", "read as true or false", "quotes"
        )

    def test_choices(self) -> None:
        self.assert_rule_problem(
            "otherwise: next", "otherwise", "unknown value 'next'", "one of deny, continue"
        )
        self.assert_rule_problem("audit: none", "audit", "unknown value 'none'", "one of all, denied")
        self.assert_rule_problem("durability: best-effort", "durability", "unknown value", "best_effort?")
        self.assert_rule_problem("via: [tcp]", "via[0]", "unknown value 'tcp'", "one of tls, unix")

    def test_lists(self) -> None:
        for key in ("users", "groups", "hosts", "networks", "via", "actions"):
            self.assert_rule_problem(f"{key}: []", key, "an empty list", "remove the key")
            self.assert_rule_problem(f"{key}: tls", key, "a list is wanted here", 'write ["tls"]')
            self.assert_rule_problem(f"{key}: {{a: b}}", key, "a list is wanted here, not a mapping")
            self.assert_rule_problem(f"{key}: ", key, "a list is wanted here", "write [...]")
            self.assert_rule_problem(f"{key}: [yes]", f"{key}[0]", "read as true or false", '"yes"')
            self.assert_rule_problem(f"{key}: [[a]]", f"{key}[0]", "not a list")
            many = ", ".join(["tls"] * 1001)
            self.assert_rule_problem(f"{key}: [{many}]", key, "1001 entries; at most 1000")

    def test_patterns(self) -> None:
        self.assert_rule_problem(
            'users: ["-bruce", "-alice"]', "users", "exemptions alone", '["*", "-bruce", "-alice"]'
        )
        self.assert_rule_problem(
            'actions: ["-container_*"]', "actions", "exemptions alone", '["*", "-container_*"]'
        )
        for empty in ('""', '"-"', '" "', '"- "'):
            self.assert_rule_problem(f"hosts: [a, {empty}]", "hosts[1]", "the pattern is empty", '"*"')
        self.assert_rule_problem('users: ["bruce "]', "users[0]", "blanks", '"bruce"')
        self.assert_rule_problem(f"users: [{'x' * 1025}]", "users[0]", "longer than 1024")
        self.assert_rule_problem(r'users: ["a\0"]', "users[0]", "invisible character U+0000", "remove it")

    def test_actions(self) -> None:
        for written, message, suggestion in (
            ("container_lst", "unknown action 'container_lst'", "did you mean container_list?"),
            ("-contaner_list", "unknown action", "did you mean container_list?"),
            ("contaner_*", "matches no action", "did you mean container_*?"),
            ("-x?y", "matches no action", "reference"),
            ("GET /containers", "unknown action", ""),
            ("unknown", "can never be allowed", "remove it"),
            ("-unknown", "can never be allowed", "remove it"),
            ("unknow?", "matches no action", ""),
        ):
            self.assert_rule_problem(f'actions: ["*", "{written}"]', "actions[1]", message, suggestion)

    def test_networks(self) -> None:
        for written, message, suggestion in (
            ("10.1.2.3/8", "bits set after its prefix", "did you mean 10.0.0.0/8?"),
            ("example.com", "not a network: 'example.com'", "10.0.0.0/8"),
            ("10.0.0.0/33", "not a network", "10.0.0.0/8"),
            ("-10.0.0.0/8", "not a network", "no exemptions"),
            ("10.*", "not a network", "no wildcards"),
            ("::ffff:10.0.0.0/104", "IPv4-mapped", "write 10.0.0.0/8"),
            ("12", "read as a number", "quotes"),
        ):
            quoted = written if written == "12" else f'"{written}"'
            self.assert_rule_problem(f"networks: [{quoted}]", "networks[0]", message, suggestion)

    def test_message(self) -> None:
        self.assert_rule_problem(f"message: {'é' * 2049}", "message", "longer than 4096 bytes")
        self.assertEqual(problems_of(one_rule(f"message: {'x' * 4096}")), ())
        self.assert_rule_problem(r'message: "\e[31m"', "message", "invisible character U+001B", "remove it")
        text = one_rule("message: >", "  two", "  lines")
        self.assert_problem(text, 5, "rules[0].message", "invisible character U+000A", "write >-")
        self.assertEqual(problems_of(one_rule("message: >-", "  two", "  lines")), ())

    def test_too_many_rules(self) -> None:
        rules = ",".join(["{}"] * 10_001)
        self.assert_problem(f"schema: 1\nrules: [{rules}]\n", 2, "rules", "10001 rules; at most 10000")

    def test_not_utf8(self) -> None:
        with self.assertRaises(PolicyError) as caught:
            load_policy_bytes(b"schema: 1\n# \xc3\xa4 caf\xe9\n", "p")
        self.assertEqual([(p.line, p.column) for p in caught.exception.problems], [(2, 8)])
        self.assertIn("0xe9 is not UTF-8", str(caught.exception))

    def test_too_large_and_cut_inside_a_character(self) -> None:
        for data in (b"#" * (MAX_BYTES + 1), b"#" * MAX_BYTES + "é".encode(), b"#" * (MAX_BYTES + 50)):
            with self.assertRaises(PolicyError) as caught:
                load_policy_bytes(data, "p")
            self.assertIn("larger than", str(caught.exception))


class CollectingTests(SynchronousTestCase):
    """All problems at once, in the order of lines."""

    def test_sorted_by_line_with_document_problems_among_them(self) -> None:
        text = (
            "schema: 3\n"
            "rules:\n"
            "  - name: a\n"
            "    effect: maybe\n"
            "    users: &x [bruce]\n"
            "    groups: *x\n"
            "    hosts: []\n"
            "    actions: [container_lst, yes]\n"
            "    name: b\n"
            "  - {}\n"
        )
        found = [(problem.line, problem.key) for problem in problems_of(text)]
        self.assertEqual(
            found,
            [
                (1, "schema"),
                (4, "rules[0].effect"),
                (5, "rules[0].users"),
                (6, "rules[0].groups"),
                (7, "rules[0].hosts"),
                (8, "rules[0].actions[0]"),
                (8, "rules[0].actions[1]"),
                (9, "rules[0]"),
                (10, "rules[1]"),
                (10, "rules[1]"),
            ],
        )

    def test_text_of_the_error(self) -> None:
        with self.assertRaises(PolicyError) as caught:
            load_policy(one_rule("otherwise: next", "hosts: []"), "dir/p.yaml")
        self.assertEqual(
            str(caught.exception),
            "dir/p.yaml:5:16: rules[0].otherwise: unknown value 'next' (one of deny, continue)\n"
            "dir/p.yaml:6:12: rules[0].hosts: an empty list would match nothing"
            " (remove the key, or list something)",
        )
        with self.assertRaises(PolicyError) as caught:
            load_policy("", "p.yaml")
        self.assertTrue(str(caught.exception).startswith("p.yaml: the policy is empty ("))

    def test_a_file_of_nothing_but_faults_ends(self) -> None:
        self.assertEqual(len(problems_of("schema: 1\nrules:\n" + "  - {x: y}\n" * 5000)), MAX_PROBLEMS)

    def test_long_values_are_cut(self) -> None:
        found = problems_of(one_rule(f"actions: [{'x' * 1000}]"))[0]
        self.assertLess(len(found.message), 100)


WORDS = (
    "schema rules name effect allow deny users networks via actions where 1 * yes ~ -x container_* unknown"
)
words = st.sampled_from([*WORDS.split(), "10.0.0.0/8", "::1", "\n", "\x1b", "message", "otherwise", ""])
values = st.recursive(
    words | st.integers() | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=5),
    max_leaves=12,
)


def as_flow(value: object) -> str:
    """A value in YAML's flow style, with quoted text."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{as_flow(key)}: {as_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_flow, value)) + "]"
    if isinstance(value, str):
        return '"' + value.replace("\n", r"\n").replace("\x1b", r"\e") + '"'
    return (
        {None: "~", True: "yes", False: "no"}.get(value, str(value))
        if isinstance(value, bool | None)
        else str(value)
    )


class FuzzTests(SynchronousTestCase):
    """Whatever comes, it is a policy or a `PolicyError`."""

    def assert_policy_or_error(self, data: bytes) -> None:
        try:
            policy = load_policy_bytes(data, "p")
        except PolicyError as error:
            self.assertTrue(error.problems)
            self.assertEqual(list(error.problems), sorted(error.problems))
            self.assertEqual(len(str(error).splitlines()), len(error.problems))
        else:
            self.assertIsInstance(policy, Policy)

    @settings(max_examples=200, deadline=None)
    @given(st.binary(max_size=100))
    def test_bytes(self, data: bytes) -> None:
        self.assert_policy_or_error(data)

    @settings(max_examples=100, deadline=None)
    @given(values, st.lists(st.dictionaries(words, values, max_size=6), max_size=3))
    def test_trees(self, top: object, rules: list[dict[str, object]]) -> None:
        self.assert_policy_or_error(as_flow(top).encode())
        self.assert_policy_or_error(as_flow({"schema": 1, "rules": rules}).encode())

    @settings(max_examples=200, deadline=None)
    @given(st.data())
    def test_damaged_policies(self, data: st.DataObject) -> None:
        start = data.draw(st.integers(0, len(DESIGN)))
        end = data.draw(st.integers(start, min(len(DESIGN), start + 20)))
        middle = data.draw(st.text("[]{}:,-&*!|>'\" \n\ta1\x00é", max_size=5))
        self.assert_policy_or_error((DESIGN[:start] + middle + DESIGN[end:]).encode())
