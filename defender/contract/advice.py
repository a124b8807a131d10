"""What a checked policy means in words, and what in it is legal but probably not meant.

Advice never changes a decision, and a policy with advice is valid.
"""

from __future__ import annotations

from dataclasses import dataclass

from defender.contract.actions import UNKNOWN
from defender.contract.pattern import ANY, is_exemption, is_glob
from defender.contract.policy import DEFAULT_RULE
from defender.contract.rule import (
    ACTIONS,
    ALLOW,
    CONTINUE,
    DENY,
    EXPLICIT_ACTIONS,
    CompiledRule,
    Policy,
    Rule,
    actions_matching,
    actions_reached,
)


@dataclass(frozen=True, slots=True)
class Advice:
    """One remark about one rule."""

    line: int
    rule: str
    message: str


# The ways from an action to root on the host, strongest first.
_REACHES_HOST = {
    "container_create": "a container may mount / or be privileged",
    "plugin_create": "a plugin runs as root on the host",
    "plugin_pull": "a plugin runs as root on the host",
    "plugin_upgrade": "a plugin runs as root on the host",
    "plugin_set": "a plugin's mounts and devices can be changed",
    "service_create": "a service may mount /",
    "service_update": "a service may mount /",
    "container_exec_create": "an exec may be privileged",
    "image_build": "a build runs commands, as root where entitled",
    "grpc": "BuildKit's own interface runs any build",
    "swarm_init": "a swarm's managers control its hosts",
    "swarm_join": "a swarm's managers control its hosts",
    "volume_create": "a volume may be a bind mount of any directory",
    "checkpoint_create": "a checkpoint writes to any directory of the host",
    "debug": "the Engine's memory can be read",
}


def describe_rule(rule: Rule) -> str:
    """What a rule does, in one line: who, where, what."""
    who = [f"users {_listing(rule.users)}"] if rule.users != (ANY,) else []
    if rule.groups != (ANY,):
        who.append(f"groups {_listing(rule.groups)}")
    if rule.hosts != (ANY,):
        who.append(f"on {_listing(rule.hosts)}")
    if rule.networks:
        who.append(f"from {_listing(tuple(map(str, rule.networks)))}")
    if rule.via:
        who.append(f"over {_listing(rule.via)}")
    subject = ", ".join(who) or "everybody"
    what = "everything" if rule.actions == (ANY,) else _listing(rule.actions)
    other = "nothing else" if rule.effect == ALLOW else "and everything else"
    rest = "go on with the rest" if rule.otherwise == CONTINUE else other
    if rule.actions == (ANY,):
        return f"{subject}: {rule.effect} everything"
    return f"{subject}: {rule.effect} {what}; {rest}"


def _listing(values: tuple[str, ...]) -> str:
    shown = ", ".join(values[:4])
    return f"{shown} and {len(values) - 4} more" if len(values) > 4 else shown


def advise(policy: Policy) -> tuple[Advice, ...]:
    """Remarks in the order of the rules."""
    found: list[Advice] = []
    # What is still undecided for every subject, and for the subjects of each set of conditions seen.
    everybody = _Open()
    same: dict[tuple[object, ...], _Open] = {}
    for rule in policy.rules:
        compiled = CompiledRule(rule)
        mine = same.setdefault((rule.users, rule.groups, rule.hosts, rule.networks, rule.via), _Open())
        messages = [*_own_remarks(rule)]
        undecided = compiled.decides & everybody.actions & mine.actions
        if not undecided:
            closer = everybody.closer if not compiled.decides & everybody.actions else mine.closer
            messages.append(f"never decides anything: rule {closer!r} before it decides all that it could")
        elif rule.effect == ALLOW:
            messages.extend(_host_remark(compiled.listed & undecided))
        found.extend(Advice(rule.line, rule.name, message) for message in messages)
        mine.close(compiled.decides, rule.name)
        if compiled.reaches_everybody:
            everybody.close(compiled.decides, rule.name)
    return tuple(found)


class _Open:
    """Actions that no rule has decided yet, and the last rule that took some away."""

    __slots__ = ("actions", "closer")

    def __init__(self) -> None:
        self.actions = ACTIONS | {UNKNOWN.action}
        self.closer = ""

    def close(self, actions: frozenset[str], rule: str) -> None:
        if self.actions & actions:
            self.actions -= actions
            self.closer = rule


def _own_remarks(rule: Rule) -> list[str]:
    """What can be said about a rule alone."""
    remarks: list[str] = []
    if rule.name == DEFAULT_RULE:
        remarks.append('its name is what denials show when no rule matched: "default"')
    if rule.networks and rule.via == ("unix",):
        remarks.append("never matches: a unix peer has no address, so that no network matches it")
    for key, patterns in (("users", rule.users), ("groups", rule.groups), ("hosts", rule.hosts)):
        if "-*" in patterns:
            remarks.append(f"never matches: {key} exempts everything")
    if rule.effect == DENY and rule.otherwise == DENY:
        remarks.append("denies everything, listed or not, since otherwise is deny")
    for pattern in rule.actions:
        remarks.extend(_glob_remark(rule, pattern))
    return remarks


def _glob_remark(rule: Rule, pattern: str) -> list[str]:
    """A glob that seems to cover explicit actions and does not."""
    plain = pattern.removeprefix("-")
    if plain == ANY or not is_glob(plain) or (is_exemption(pattern) and rule.effect == ALLOW):
        return []
    missed = sorted(actions_matching(plain) & EXPLICIT_ACTIONS)
    listed = CompiledRule(rule).listed
    # A rule that denies what it does not list misses nothing; nor does one that names the action as well.
    if not is_exemption(pattern):
        missed = [action for action in missed if action not in listed]
    if not missed or (rule.effect == DENY and rule.otherwise == DENY):
        return []
    names = _listing(tuple(missed))
    if is_exemption(pattern):
        return [f'"{pattern}" does not exempt {names}: explicit actions must be named']
    if not actions_reached(plain):
        return [f'"{pattern}" never matches: {names} must be named, or covered by "*"']
    if rule.effect == DENY:
        return [f'"{pattern}" does not deny {names}: explicit actions must be named, or covered by "*"']
    return []


def _host_remark(allowed: frozenset[str]) -> list[str]:
    """Which of the allowed actions lead to root on the host."""
    ways = [action for action in _REACHES_HOST if action in allowed]
    if not ways:
        return []
    told = "; ".join(f"{action} ({_REACHES_HOST[action]})" for action in ways[:3])
    more = f"; and {len(ways) - 3} more" if len(ways) > 3 else ""
    return [f"its subjects can become root on the host: {told}{more}"]
