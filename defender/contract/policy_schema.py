"""The schema of a policy: from the tree of a YAML document to rules, or to every problem with its line.

Nothing is guessed and nothing is skipped: an unknown key, a `where:` that is not supported, an action that
does not exist are problems, because a policy that means less than it says would be a hole.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable
from ipaddress import IPv6Network, ip_network
from typing import Any

from defender.contract.actions import KNOWN_NAMES, UNKNOWN
from defender.contract.checker import Checker, TooManyError, shorten, shown
from defender.contract.document import (
    MAX_BYTES,
    Mapping,
    Node,
    Scalar,
    Sequence,
    describe,
    place_of,
    read_document,
)
from defender.contract.errors import PolicyError, Problem
from defender.contract.pattern import ANY, is_exemption, is_glob
from defender.contract.rule import ALLOW, CONTINUE, DENY, Network, Policy, Rule, actions_matching

SCHEMA_VERSION = "1"
MAX_RULES = 10_000
MAX_PATTERNS = 1_000
MAX_NAME = 200
MAX_PATTERN = 1_024
MAX_MESSAGE_BYTES = 4 * 1024

TOP_KEYS = ("schema", "rules")
RULE_KEYS = (
    "name",
    "users",
    "groups",
    "hosts",
    "networks",
    "via",
    "effect",
    "actions",
    "otherwise",
    "audit",
    "durability",
    "message",
)
UNSUPPORTED_KEYS = ("where",)
EFFECTS = (ALLOW, DENY)
OTHERWISE = (DENY, CONTINUE)
VIA = ("tls", "unix")
AUDIT = ("all", "denied")
DURABILITY = ("strict", "best_effort")
REQUIRED = {"name": "add a unique name; denials show it", "effect": "add effect: allow or effect: deny"}
DENY_ALL = "{schema: 1, rules: []}"


PatternCheck = Callable[[Node, str, str], bool]


class _PolicyChecker(Checker):
    """Reads the tree of a policy."""

    # Lists

    def patterns(self, node: Node, key: str, check: PatternCheck | None = None) -> tuple[str, ...] | None:
        """A list of patterns with at least one that is not an exemption; `check` looks at each."""
        items = self.items(node, key, MAX_PATTERNS)
        if items is None:
            return None
        found: list[str] = []
        good = True
        for place, item in enumerate(items):
            below = f"{key}[{place}]"
            value = self.pattern(item, below)
            if value is None or (check is not None and not check(item, below, value)):
                good = False
            else:
                found.append(value)
        if good and all(is_exemption(value) for value in found):
            more = ", ..." if len(found) > 3 else ""
            fixed = ", ".join(f'"{value}"' for value in (ANY, *found[:3])) + more
            self.report(node, key, "exemptions alone match nothing", f"write [{fixed}]")
            good = False
        return tuple(found) if good else None

    def pattern(self, item: Node, key: str) -> str | None:
        value = self.plain_text(item, key, "the pattern")
        if value is None:
            return None
        if not value.removeprefix("-").strip():
            self.report(item, key, "the pattern is empty", 'write "*" for everything')
            return None
        if value != value.strip():
            self.report(item, key, "the pattern has blanks at an end", f'write "{shorten(value.strip())}"')
            return None
        composed = unicodedata.normalize("NFC", value)
        if value != composed:
            # It would look like the names it is meant for, and match none of them.
            self.report(
                item, key, "the pattern is not in composed form (Unicode NFC)", f"write {shown(composed)}"
            )
            return None
        if len(value) > MAX_PATTERN:
            self.report(item, key, f"the pattern is longer than {MAX_PATTERN} characters")
            return None
        return value

    def actions(self, node: Node, key: str, effect: str | None) -> tuple[str, ...] | None:
        """Patterns of actions; each must be able to match a known name."""

        def check(item: Node, below: str, value: str) -> bool:
            return self.action(item, below, value, effect)

        return self.patterns(node, key, check)

    def action(self, item: Node, key: str, value: str, effect: str | None) -> bool:
        """Whether a pattern of actions can match something, and nothing that may not be allowed."""
        name = value.removeprefix("-").casefold()
        if name == UNKNOWN.action:
            if effect == DENY and not is_exemption(value):
                return True
            self.report(item, key, "unknown operations can never be allowed", "remove it")
            return False
        if not is_glob(name):
            if name in KNOWN_NAMES:
                return True
            message = f"unknown action {shown(name)}"
        else:
            if actions_matching(name) - {UNKNOWN.action}:
                return True
            message = f"the pattern {shown(name)} matches no action"
        self.report(item, key, message, self.similar_action(name) or "the reference lists every action")
        return False

    def similar_action(self, name: str) -> str:
        """A suggestion for an action or a glob of actions that does not exist."""
        family, wildcard, rest = name.partition("_*")
        if wildcard and not rest:
            close = self.similar(family, sorted({known.partition("_")[0] for known in KNOWN_NAMES}))
            return close.replace("?", "_*?")
        return self.similar(name.replace("*", "").replace("?", ""), sorted(KNOWN_NAMES))

    def networks(self, node: Node, key: str) -> tuple[Network, ...] | None:
        items = self.items(node, key, MAX_PATTERNS)
        if items is None:
            return None
        found = [self.network(item, f"{key}[{place}]") for place, item in enumerate(items)]
        networks = tuple(network for network in found if network is not None)
        return networks if len(networks) == len(found) else None

    def network(self, item: Node, key: str) -> Network | None:
        value = self.plain_text(item, key, "the network")
        if value is None:
            return None
        try:
            loose = ip_network(value, strict=False)
        except ValueError:
            if is_exemption(value) or is_glob(value):
                suggestion = "networks take no exemptions and no wildcards; write 10.0.0.0/8 or 10.1.2.3"
            else:
                suggestion = "write an address or a prefix: 10.0.0.0/8, 192.168.1.7, 2001:db8::/32"
            self.report(item, key, f"not a network: {shown(value)}", suggestion)
            return None
        try:
            network = ip_network(value)
        except ValueError:
            message = f"{shorten(value)} has bits set after its prefix"
            self.report(item, key, message, f"did you mean {loose}?")
            return None
        mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
        if mapped is not None and network.prefixlen >= 96:
            message = "IPv4-mapped addresses are unmapped before they are compared"
            self.report(item, key, message, f"write {mapped}/{network.prefixlen - 96}")
            return None
        return network

    def ways(self, node: Node, key: str) -> tuple[str, ...] | None:
        items = self.items(node, key, MAX_PATTERNS)
        if items is None:
            return None
        found = [self.choice(item, f"{key}[{place}]", VIA) for place, item in enumerate(items)]
        ways = tuple(way for way in found if way is not None)
        return ways if len(ways) == len(found) else None

    # Rules

    def name(self, node: Node, key: str) -> str | None:
        value = self.plain_text(node, key, "the name")
        if value is None:
            return None
        if not value.strip() or value != value.strip():
            self.report(node, key, "the name is empty or has blanks at an end")
            return None
        if len(value) > MAX_NAME:
            self.report(node, key, f"the name is longer than {MAX_NAME} characters")
            return None
        return value

    def message(self, node: Node, key: str) -> str | None:
        value = self.plain_text(node, key, "the message")
        if value is not None and len(value.encode()) > MAX_MESSAGE_BYTES:
            self.report(node, key, f"the message is longer than {MAX_MESSAGE_BYTES} bytes")
            return None
        return value

    def rule(self, node: Node, path: str) -> Rule | None:
        """One rule, or `None` if it has a problem."""
        if not isinstance(node, Mapping):
            if not (isinstance(node, Scalar) and node.kind == "invalid"):
                self.report(
                    node, path, f"a rule must be a mapping with name and effect, not {describe(node)}"
                )
            return None
        before = len(self.problems)
        given = self.keys(node, path, RULE_KEYS, UNSUPPORTED_KEYS)
        written = {key.value for key, _ in node.entries}
        for required, suggestion in REQUIRED.items():
            if required not in written:
                self.report(node, path, f"the rule has no {required}", suggestion)
        fields: dict[str, Any] = {}
        readers: dict[str, Callable[[Node, str], object]] = {
            "name": self.name,
            "users": self.patterns,
            "groups": self.patterns,
            "hosts": self.patterns,
            "networks": self.networks,
            "via": self.ways,
            "effect": lambda value, key: self.choice(value, key, EFFECTS),
            "actions": lambda value, key: self.actions(value, key, fields.get("effect")),
            "otherwise": lambda value, key: self.choice(value, key, OTHERWISE),
            "audit": lambda value, key: self.choice(value, key, AUDIT),
            "durability": lambda value, key: self.choice(value, key, DURABILITY),
            "message": self.message,
        }
        # In the order of RULE_KEYS: what `actions` may hold depends on `effect`.
        for name in RULE_KEYS:
            if name in given:
                fields[name] = readers[name](given[name], f"{path}.{name}")
        if len(self.problems) > before or None in fields.values():
            return None
        fields.setdefault("otherwise", DENY if fields["effect"] == ALLOW else CONTINUE)
        return Rule(line=node.line, **fields)

    def rules(self, node: Node) -> tuple[Rule, ...]:
        """The rules that have no problem."""
        if not isinstance(node, Sequence):
            self.report(
                node, "rules", f"rules must be a list, not {describe(node)}", "rules: [] denies everything"
            )
            return ()
        if len(node.items) > MAX_RULES:
            self.report(node, "rules", f"{len(node.items)} rules; at most {MAX_RULES} are accepted")
            return ()
        rules: list[Rule] = []
        lines: dict[str, int] = {}
        for place, item in enumerate(node.items):
            path = f"rules[{place}]"
            rule = self.rule(item, path)
            if rule is not None:
                rules.append(rule)
            self.unique(item, path, lines)
        return tuple(rules)

    def unique(self, node: Node, path: str, lines: dict[str, int]) -> None:
        """Report a name that an earlier rule has, whatever else is wrong with either."""
        for key, value in node.entries if isinstance(node, Mapping) else ():
            if key.value != "name" or not isinstance(value, Scalar) or value.kind != "str":
                continue
            if value.value in lines:
                message = f"the name {shown(value.value)} is taken"
                suggestion = f"the rule on line {lines[value.value]} has it; names are unique"
                self.report(value, f"{path}.name", message, suggestion)
            else:
                lines[value.value] = value.line

    def policy(self, root: Node) -> tuple[Rule, ...]:
        """The whole document."""
        if not isinstance(root, Mapping):
            self.report(root, "", f"a policy must be a mapping with schema and rules, not {describe(root)}")
            return ()
        given = self.keys(root, "", TOP_KEYS)
        written = {key.value for key, _ in root.entries}
        if "schema" in given:
            self.schema(given["schema"])
        elif "schema" not in written:
            self.report(root, "schema", "the schema's version is missing", f"add schema: {SCHEMA_VERSION}")
        if "rules" in given:
            return self.rules(given["rules"])
        self.report(root, "rules", "the list of rules is missing", "rules: [] denies everything")
        return ()

    def schema(self, node: Node) -> None:
        """The version, which must be the one that this program reads."""
        if isinstance(node, Scalar) and node.kind == "invalid":
            return
        if not isinstance(node, Scalar) or node.kind != "int" or node.value != SCHEMA_VERSION:
            found = shown(node.value) if isinstance(node, Scalar) else describe(node)
            message = f"unknown schema {found}; this program reads {SCHEMA_VERSION}"
            self.report(node, "schema", message, f"write schema: {SCHEMA_VERSION}, without quotes")


def load_policy(text: str, source: str) -> Policy:
    """Check a policy.  `source` is the name to show in errors.

    Raises:
        PolicyError: the policy cannot be used; it holds every problem found, sorted by line.
    """
    document = read_document(text)
    checker = _PolicyChecker()
    rules: tuple[Rule, ...] = ()
    if document.root is not None:
        try:
            rules = checker.policy(document.root)
        except TooManyError:
            pass
    elif not document.problems:
        empty = Problem(0, 0, "", "the policy is empty", f"a policy that denies everything: {DENY_ALL}")
        raise PolicyError(source, (empty,))
    problems = (*document.problems, *checker.problems)
    if problems:
        raise PolicyError(source, problems)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Policy(rules=rules, digest=f"sha256:{digest}", source=source, text=text)


def load_policy_bytes(data: bytes, source: str) -> Policy:
    """Check a policy as it lies in a file: UTF-8, at most `MAX_BYTES`.

    Raises:
        PolicyError: as `load_policy`, and for bytes that are not UTF-8.
    """
    try:
        text = data[: MAX_BYTES + 1].decode()
    except UnicodeDecodeError as error:
        if len(data) > MAX_BYTES and error.start >= MAX_BYTES - 3:
            # A character that the cut above split; the file is too large anyway.
            return load_policy("#" * (MAX_BYTES + 1), source)
        before = data[: error.start].decode()
        line, column = place_of(before, len(before))
        problem = Problem(
            line, column, "", f"byte 0x{data[error.start]:02x} is not UTF-8", "save the file as UTF-8"
        )
        raise PolicyError(source, (problem,)) from None
    return load_policy(text, source)
