"""Rules as values, and which subjects and actions each one reaches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from defender.contract.actions import OPERATIONS, UNKNOWN, names_of
from defender.contract.facts import Subject
from defender.contract.pattern import ANY, Patterns, compile_glob, is_exemption, is_glob

ALLOW = "allow"
DENY = "deny"
CONTINUE = "continue"

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a policy, as written and with defaults filled in.

    `users`, `groups`, `hosts` and `actions` are patterns (`defender.contract.pattern`); empty `networks` or
    `via` mean any.  `effect` is "allow" or "deny", `otherwise` "deny" or "continue": what becomes of an
    action that the rule does not list.  `audit` is "all" or "denied", `durability` "strict", "best_effort" or
    `None` (the defender's setting). `line` is where the rule starts in its file.
    """

    name: str
    effect: str
    users: tuple[str, ...] = (ANY,)
    groups: tuple[str, ...] = (ANY,)
    hosts: tuple[str, ...] = (ANY,)
    networks: tuple[Network, ...] = ()
    via: tuple[str, ...] = ()
    actions: tuple[str, ...] = (ANY,)
    otherwise: str = DENY
    audit: str = "all"
    durability: str | None = None
    message: str | None = None
    line: int = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """A checked policy.  `digest` is `sha256:` and the hex digest of the file's bytes, `source` its name."""

    rules: tuple[Rule, ...]
    digest: str
    source: str
    text: str


ACTIONS = frozenset(operation.action for operation in OPERATIONS)
"""Every canonical action; `unknown` is not among them."""

EXPLICIT_ACTIONS = frozenset(operation.action for operation in OPERATIONS if operation.explicit)
"""The actions that a policy reaches by a literal name or exactly `*` only."""


@lru_cache(maxsize=8192)
def actions_matching(pattern: str) -> frozenset[str]:
    """The canonical actions, `unknown` included, one of whose names a pattern matches, explicit or not."""
    matches = compile_glob(pattern)
    return frozenset(
        action for action in (*ACTIONS, UNKNOWN.action) if any(matches(name) for name in names_of(action))
    )


def actions_reached(pattern: str) -> frozenset[str]:
    """The canonical actions that a pattern stands for: a glob other than `*` leaves out the explicit ones."""
    found = actions_matching(pattern)
    if is_glob(pattern) and pattern != ANY:
        return found - EXPLICIT_ACTIONS - {UNKNOWN.action}
    return found


def listed_actions(effect: str, patterns: Iterable[str]) -> frozenset[str]:
    """The canonical actions that a rule's `actions` list.

    An exempting glob takes explicit actions out of a rule that allows, never out of a rule that denies: a
    glob may narrow what is permitted but not widen it.  `unknown` is listed by `*`, and by its name; `decide`
    denies it all the same.
    """
    wanted: set[str] = set()
    exempt: set[str] = set()
    for pattern in patterns:
        if not is_exemption(pattern):
            wanted |= actions_reached(pattern)
        elif effect == ALLOW:
            exempt |= actions_matching(pattern[1:])
        else:
            exempt |= actions_reached(pattern[1:])
    return frozenset(wanted - exempt)


UNDETERMINED = "undetermined"
"""The verdict on a subject whose address a rule asks for and cannot be told: denied, whatever the rule's
effect."""


class SubjectFacts:
    """What rules ask of a subject, folded and parsed once."""

    __slots__ = ("address", "groups", "user", "via")

    def __init__(self, subject: Subject) -> None:
        self.user = subject.user.casefold()
        self.groups = tuple(group.casefold() for group in subject.groups)
        self.via = subject.via
        self.address = _parse_address(subject.address)


def _parse_address(text: str | None) -> Address | None:
    try:
        address = ip_address(text or "")
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


class CompiledRule:
    """A rule made ready: `listed` are its actions, `obstacle` says which condition a subject fails."""

    __slots__ = ("_groups", "_hosts", "_users", "listed", "rule")

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.listed = _listed(rule.effect, rule.actions)
        self._users = Patterns(rule.users)
        self._groups = Patterns(rule.groups)
        self._hosts = Patterns(rule.hosts)

    def on_host(self, host: str) -> bool:
        """Whether the rule speaks about a host; the name must be folded."""
        return self._hosts.matches(host)

    def obstacle(self, subject: SubjectFacts) -> str:
        """The first of `users`, `groups`, `via`, `networks` that keeps the rule from a subject.

        "" if the rule reaches the subject, `UNDETERMINED` if only its unknown address stands in between.
        """
        if not self._users.matches(subject.user):
            return "users"
        if not self._groups.matches_any(subject.groups):
            return "groups"
        rule = self.rule
        if rule.via and subject.via not in rule.via:
            return "via"
        if not rule.networks:
            return ""
        if subject.via == "unix":
            return "networks"
        address = subject.address
        if address is None:
            return UNDETERMINED
        if any(address.version == network.version and address in network for network in rule.networks):
            return ""
        return "networks"

    def verdict(self, action: str) -> str:
        """What the rule says about an action of a subject that it reaches: `allow`, `deny` or `continue`."""
        if action in self.listed:
            return DENY if action == UNKNOWN.action else self.rule.effect
        return self.rule.otherwise

    @property
    def decides(self) -> frozenset[str]:
        """The actions that go no further than this rule."""
        return self.listed if self.rule.otherwise == CONTINUE else ACTIONS | {UNKNOWN.action}

    @property
    def reaches_everybody(self) -> bool:
        """Whether no subject on any host fails a condition."""
        rule = self.rule
        patterns = self._users.everything and self._groups.everything and self._hosts.everything
        return patterns and not rule.networks and set(rule.via) in (set(), {"tls", "unix"})


@lru_cache(maxsize=4096)
def _listed(effect: str, patterns: tuple[str, ...]) -> frozenset[str]:
    return listed_actions(effect, patterns)
