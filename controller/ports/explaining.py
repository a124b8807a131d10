"""What a policy says of a request that is made up, and of a text that is to be one."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from ipaddress import IPv6Address, ip_address
from typing import Any

from controller.api.ports import InvalidError, Json
from controller.api.schema import Fault
from controller.publishing import check
from defender.contract.actions import KNOWN_NAMES, OPERATIONS, UNKNOWN, names_of
from defender.contract.errors import Problem
from defender.contract.explain import explain
from defender.contract.facts import Subject

MAX_REMARKS = 1000


def checked(text: str) -> Json:
    """`Checked`: problems and warnings of a text."""
    found = check(text, "policy")
    return {
        "ok": found.ok,
        "digest": found.policy.digest if found.policy is not None else "",
        "rules": len(found.policy.rules) if found.policy is not None else 0,
        "problems": [_remark(each) for each in found.problems[:MAX_REMARKS]],
        "warnings": [
            _remark(Problem(each.line, 0, each.rule, each.message)) for each in found.advice[:MAX_REMARKS]
        ],
    }


def explained(text: str, wanted: Json) -> Json:
    """`Explained`, from `Question`: what the policy `text` decides. InvalidError if it is none."""
    loaded = check(text, "policy").policy
    if loaded is None:
        raise InvalidError([Fault("/version", "this policy has problems; check it first")])
    subject = _subject(wanted)
    answers = [
        (name, explain(loaded, subject, wanted["host"], name)) for name in _candidates(wanted["action"])
    ]
    # A name of two actions is answered by the one that is denied, if one is.
    action, found = min(answers, key=lambda answer: answer[1].decision.allowed)
    return {
        "action": action,
        "allowed": found.decision.allowed,
        "rule": found.decision.rule[:256],
        "reason": found.decision.reason[:2000],
        "message": None if found.decision.message is None else found.decision.message[:2000],
        "trace": [
            {"rule": each.rule[:256], "line": each.line, "matched": each.matched, "why": each.why[:2000]}
            for each in found.traces[:10_000]
        ],
    }


def _subject(wanted: Json) -> Subject:
    via, source = wanted.get("via", "tls"), wanted.get("source")
    address = None
    if source is not None:
        if via == "unix":
            raise InvalidError([Fault("/source", "a unix peer has no address")])
        try:
            parsed = ip_address(source)
        except ValueError:
            raise InvalidError([Fault("/source", "must be an IP address")]) from None
        mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
        address = str(mapped or parsed)
    return Subject(wanted["user"], tuple(wanted.get("groups", ())), via, address)


def _candidates(name: str) -> tuple[str, ...]:
    """The canonical actions that a name stands for."""
    folded = name.casefold()
    if folded == UNKNOWN.action:
        return (folded,)
    actions = dict.fromkeys(operation.action for operation in OPERATIONS)
    if folded in actions:
        return (folded,)
    found = tuple(action for action in actions if folded in names_of(action))
    if found:
        return found
    close = get_close_matches(folded, sorted(KNOWN_NAMES), n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise InvalidError([Fault("/action", f"is no action that is known{hint}")])


def _remark(problem: Problem) -> Mapping[str, Any]:
    return {
        "line": problem.line,
        "column": problem.column,
        "key": problem.key[:2000],
        "message": problem.message[:2000],
        "suggestion": problem.suggestion[:2000],
    }
