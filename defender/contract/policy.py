"""From a policy, a subject and an operation to the decision."""

from __future__ import annotations

from dataclasses import dataclass

from defender.contract.actions import UNKNOWN, Operation
from defender.contract.facts import Subject
from defender.contract.policy_schema import load_policy, load_policy_bytes
from defender.contract.rule import (
    ALLOW,
    CONTINUE,
    DENY,
    UNDETERMINED,
    CompiledRule,
    Policy,
    Rule,
    SubjectFacts,
)

__all__ = [
    "DEFAULT_RULE",
    "UNKNOWN_ADDRESS",
    "Decision",
    "Policy",
    "PolicyTable",
    "Rule",
    "load_policy",
    "load_policy_bytes",
]

DEFAULT_RULE = "default"
"""The rule named in a decision that no rule of the policy made."""

NO_POLICY = "no active policy"
NO_RULE = "no rule matched"
LISTED = "action listed"
NOT_LISTED = "action not listed"
UNKNOWN_OPERATION = "unknown operation"
UNKNOWN_ADDRESS = "source address cannot be determined"

REMEMBERED_SUBJECTS = 4096
"""How many subjects a table keeps decisions for, at most."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided about one request, and by which rule.

    `effect` is "allow" or "deny"; `rule` the deciding rule's name, "default" if none matched; `message` the
    rule's own text for people; `audit` ("all" or "denied") and `durability` (`None`: the defender's setting)
    are the rule's.
    """

    effect: str
    rule: str
    reason: str
    message: str | None = None
    audit: str = "all"
    durability: str | None = None

    @property
    def allowed(self) -> bool:
        """Whether the request may be forwarded."""
        return self.effect == ALLOW


def decision_of(rule: Rule, effect: str, reason: str) -> Decision:
    """A decision made by a rule."""
    return Decision(effect, rule.name, reason, rule.message, rule.audit, rule.durability)


def judge(compiled: CompiledRule, obstacle: str, action: str) -> Decision | None:
    """What one rule decides about an action of a subject, given what `obstacle` said of the two; `None` to go
    on."""
    rule = compiled.rule
    if obstacle == UNDETERMINED:
        return decision_of(rule, DENY, UNKNOWN_ADDRESS)
    if obstacle:
        return None
    verdict = compiled.verdict(action)
    if verdict == CONTINUE:
        return None
    if action == UNKNOWN.action:
        return decision_of(rule, DENY, UNKNOWN_OPERATION)
    return decision_of(rule, verdict, LISTED if action in compiled.listed else NOT_LISTED)


def default_decision(action: str) -> Decision:
    """The decision when no rule made one."""
    return Decision(DENY, DEFAULT_RULE, UNKNOWN_OPERATION if action == UNKNOWN.action else NO_RULE)


class Answers(dict[str, Decision]):
    """Action -> decision for the subjects that the same rules reach; filled as actions are asked for."""

    __slots__ = ("_chain",)

    def __init__(self, chain: tuple[tuple[CompiledRule, str], ...]) -> None:
        super().__init__()
        self._chain = chain

    def __missing__(self, action: str) -> Decision:
        for compiled, obstacle in self._chain:
            decision = judge(compiled, obstacle, action)
            if decision is not None:
                break
        else:
            decision = default_decision(action)
        self[action] = decision
        return decision


_Key = tuple[str, tuple[str, ...], str, str | None]


class PolicyTable:
    """A policy as one host applies it: after a subject's first request each decision is a look-up.

    Built anew for every activation; never changed.  `host` is the defender's name.  Without a policy all is
    denied.
    """

    def __init__(self, policy: Policy | None, host: str) -> None:
        self.policy = policy
        self.host = host
        folded = host.casefold()
        compiled = (CompiledRule(rule) for rule in (policy.rules if policy else ()))
        self._rules = tuple(rule for rule in compiled if rule.on_host(folded))
        # Where no rule asks for an address, one entry serves a subject from everywhere.
        self._asks_address = any(rule.rule.networks for rule in self._rules)
        self._chains: dict[tuple[int, ...], Answers] = {}
        # Two generations: when the young one is full it becomes the old one, and what is asked for again
        # moves back.
        self._young: dict[_Key, Answers] = {}
        self._old: dict[_Key, Answers] = {}

    def decide(self, subject: Subject, operation: Operation) -> Decision:
        """Whether a subject may run an operation.  Never raises; what cannot be determined is denied."""
        return self.answers(subject)[operation.action]

    def answers(self, subject: Subject) -> Answers:
        """The decisions about a subject: a mapping by action, of all actions, that never changes."""
        key = (subject.user, subject.groups, subject.via, subject.address if self._asks_address else None)
        answers = self._young.get(key)
        if answers is None:
            answers = self._remember(key, subject)
        return answers

    def _remember(self, key: _Key, subject: Subject) -> Answers:
        answers = self._old.get(key)
        if answers is None:
            answers = self._answers(subject)
        if len(self._young) >= REMEMBERED_SUBJECTS // 2:
            self._old = self._young
            self._young = {}
            self._chains = {}
        self._young[key] = answers
        return answers

    def _answers(self, subject: Subject) -> Answers:
        if self.policy is None:
            return _no_policy()
        facts = SubjectFacts(subject)
        chain: list[tuple[CompiledRule, str]] = []
        places: list[int] = []
        for place, compiled in enumerate(self._rules):
            obstacle = compiled.obstacle(facts)
            if obstacle and obstacle != UNDETERMINED:
                continue
            chain.append((compiled, obstacle))
            places.append(place if not obstacle else -1 - place)
            if obstacle or compiled.rule.otherwise != CONTINUE:
                # This one decides about every action, so that no later rule is asked.
                break
        identity = tuple(places)
        answers = self._chains.get(identity)
        if answers is None:
            answers = self._chains[identity] = Answers(tuple(chain))
        return answers


class _Refusals(Answers):
    """Everything is denied: there is no policy."""

    __slots__ = ()

    def __missing__(self, action: str) -> Decision:
        decision = self[action] = Decision(DENY, DEFAULT_RULE, NO_POLICY)
        return decision


def _no_policy() -> Answers:
    return _Refusals(())
