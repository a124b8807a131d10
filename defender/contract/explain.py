"""Why a policy decides as it does: the same rules, asked one by one and on record."""

from __future__ import annotations

from dataclasses import dataclass

from defender.contract.facts import Subject
from defender.contract.policy import Decision, default_decision, judge
from defender.contract.rule import UNDETERMINED, CompiledRule, Policy, Rule, SubjectFacts


@dataclass(frozen=True, slots=True)
class RuleTrace:
    """What became of one rule: whether it reached the subject on this host, and why it decided or did not."""

    rule: str
    line: int
    matched: bool
    why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The decision, and every rule that was asked until then, in order."""

    decision: Decision
    traces: tuple[RuleTrace, ...]


def explain(policy: Policy, subject: Subject, host: str, action: str) -> Explanation:
    """Decide as `PolicyTable` does, and say why.  `action` is a canonical name or `unknown`; `host` a
    defender's name.

    The rules are judged by the same functions as in a `PolicyTable`, so that the two cannot disagree.
    """
    facts = SubjectFacts(subject)
    folded = host.casefold()
    traces: list[RuleTrace] = []
    for rule in policy.rules:
        compiled = CompiledRule(rule)
        obstacle = compiled.obstacle(facts) if compiled.on_host(folded) else "hosts"
        decision = judge(compiled, obstacle, action)
        matched = obstacle in ("", UNDETERMINED)
        if decision is None:
            traces.append(RuleTrace(rule.name, rule.line, matched, _why_not(rule, obstacle, subject, host)))
            continue
        traces.append(RuleTrace(rule.name, rule.line, matched, f"{decision.reason}: {decision.effect}"))
        return Explanation(decision, tuple(traces))
    return Explanation(default_decision(action), tuple(traces))


def _why_not(rule: Rule, obstacle: str, subject: Subject, host: str) -> str:
    """Why a rule did not decide, in words."""
    if not obstacle:
        return "action not listed: continue"
    if obstacle == "users":
        return f"users: {_shown(rule.users)} does not match {subject.user}"
    if obstacle == "groups":
        held = ", ".join(subject.groups) or "no groups"
        return f"groups: {_shown(rule.groups)} does not match {held}"
    if obstacle == "hosts":
        return f"hosts: {_shown(rule.hosts)} does not match {host}"
    if obstacle == "via":
        return f"via: {_shown(rule.via)} does not include {subject.via}"
    source = "a unix peer, which has no address" if subject.via == "unix" else f"{subject.address}"
    return f"networks: {_shown(tuple(map(str, rule.networks)))} does not include {source}"


def _shown(values: tuple[str, ...]) -> str:
    """The first few values of a list."""
    more = f", and {len(values) - 4} more" if len(values) > 4 else ""
    return f"[{', '.join(values[:4])}{more}]"
