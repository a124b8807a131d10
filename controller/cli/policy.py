"""`defenderctl policy`: check a policy file and explain its decisions, with the defender's own code.

What speaks with a controller is in `controller.cli.fleet_policy` and `fleet_policy_view`, and imported when
it is used.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import click

from controller.cli.groups import LazyGroup
from controller.cli.output import (
    complain,
    json_option,
    print_json,
    print_line,
    print_table,
)
from defender.contract.actions import KNOWN_NAMES, OPERATIONS, UNKNOWN, names_of
from defender.contract.advice import advise, describe_rule
from defender.contract.document import MAX_BYTES
from defender.contract.errors import PolicyError
from defender.contract.explain import Explanation, explain
from defender.contract.facts import Subject
from defender.contract.policy import UNKNOWN_ADDRESS, Policy, load_policy_bytes

INVALID = 1
"""The exit code for a policy that cannot be used, and for what is denied."""

policy_file = click.argument(
    "file", metavar="FILE", type=click.Path(exists=True, dir_okay=False, allow_dash=True, readable=True)
)


_PLACE: Final = "controller.cli.fleet_policy"
_VIEW: Final = "controller.cli.fleet_policy_view"
FLEET: Final = {
    "abort": (f"{_PLACE}:abort", "Give up a rollout; who has the version keeps it."),
    "diff": (f"{_VIEW}:diff", "Compare a file, a draft or versions with what is published."),
    "halt": (f"{_PLACE}:halt", "Halt a rollout."),
    "history": (f"{_VIEW}:history", "List the published versions."),
    "publish": (f"{_PLACE}:publish", "Publish a policy to the fleet, in waves."),
    "resume": (f"{_PLACE}:resume", "Go on with a rollout that is halted."),
    "rollback": (f"{_PLACE}:rollback", "Publish an old version's content again."),
    "show": (f"{_VIEW}:show", "Print the text of a published policy."),
    "status": (f"{_VIEW}:status", "Show how far the newest version is, and who refused it."),
}
"""Commands that speak with a controller."""


@click.group(cls=LazyGroup, places=FLEET)
def policy() -> None:
    """Check policies, explain what they decide, and publish them to the fleet.

    \b
    Examples:
      defenderctl policy publish builders.yaml --label site=vienna
      defenderctl policy check policy.yaml
      defenderctl policy explain policy.yaml --user bruce --group "Dev team" --host prod1 \\
          --action container_list
    """


@policy.command(short_help="Check a policy file.")
@policy_file
@json_option
@click.pass_context
def check(ctx: click.Context, file: str, as_json: bool) -> None:
    """Check a policy file: every problem with its line, or what each rule does and what may surprise.

    FILE is YAML, or - for standard input.  Exit code 0 if the policy can be used, with or without warnings;
    1 if not; 2 if there is no such file.

    \b
    Example:
      defenderctl policy check policy.yaml
    """
    found = _load(ctx, file, as_json)
    if as_json:
        print_json(_summary(found))
    else:
        _print_summary(found)


@policy.command("explain", short_help="Explain what a policy decides, and why.")
@policy_file
@click.option("--user", required=True, metavar="NAME", help="User, as in the certificate's common name.")
@click.option("--group", "groups", multiple=True, metavar="NAME", help="Group of the user; may be repeated.")
@click.option(
    "--host",
    metavar="NAME",
    default=lambda: socket.gethostname().partition(".")[0],
    show_default="this machine's short name",
    help="Name of the defender.",
)
@click.option("--action", required=True, metavar="NAME", help="What is asked: any name of the action.")
@click.option(
    "--via",
    type=click.Choice(["tls", "unix"]),
    default="tls",
    show_default=True,
    help="How the user was authenticated.",
)
@click.option("--source", metavar="IP", help="Address of the client; only for --via tls.")
@json_option
@click.pass_context
def explain_command(
    ctx: click.Context,
    file: str,
    user: str,
    groups: tuple[str, ...],
    host: str,
    action: str,
    via: str,
    source: str | None,
    as_json: bool,
) -> None:
    """Explain what a policy decides about one request: which rule decided, and why each one before it did
    not.

    Exit code 0 if the request is allowed, 1 if it is denied or the policy is invalid, 2 for wrong usage.

    \b
    Example:
      defenderctl policy explain policy.yaml --user bruce --group "Dev team" --host prod1 \\
          --action image_create --source 10.1.2.3
    """
    candidates = _candidates(action)
    subject = Subject(user=user, groups=groups, via=via, address=_address(source, via))
    loaded = _load(ctx, file, as_json)
    answers = [(name, explain(loaded, subject, host, name)) for name in candidates]
    # A name of two actions is answered by the one that is denied, if one is.
    judged, explanation = min(answers, key=lambda answer: answer[1].decision.allowed)
    if as_json:
        print_json(_as_document(loaded, subject, host, judged, explanation))
    else:
        if len(candidates) > 1:
            print_line(f"{action} is a name of {' and '.join(candidates)}; shown is {judged}.")
        _print_explanation(subject, host, judged, explanation)
    ctx.exit(0 if explanation.decision.allowed else INVALID)


def _load(ctx: click.Context, file: str, as_json: bool) -> Policy:
    return load_data(ctx, read_file(file), _source(file), as_json)


def load_data(ctx: click.Context, data: bytes, source: str, as_json: bool) -> Policy:
    """The policy that `data` is; one that cannot be used ends the command with all its problems."""
    try:
        return load_policy_bytes(data, source)
    except PolicyError as error:
        if as_json:
            print_json(_problems(error))
        else:
            _complain_about(error)
        ctx.exit(INVALID)


def read_file(file: str) -> bytes:
    """The file, or the first part of one that is too large anyway."""
    try:
        if file == "-":
            return sys.stdin.buffer.read(MAX_BYTES + 1)
        with Path(file).open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise click.UsageError(f"cannot read {file}: {os.strerror(error.errno or 0)}") from None


def _source(file: str) -> str:
    return "<stdin>" if file == "-" else file


def _candidates(name: str) -> tuple[str, ...]:
    """The canonical actions that a name stands for, in the catalogue's order."""
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
    raise click.BadParameter(f"unknown action {name!r}{hint}", param_hint="--action")


def _address(source: str | None, via: str) -> str | None:
    if source is None:
        return None
    if via == "unix":
        raise click.BadParameter("a unix peer has no address", param_hint="--source")
    try:
        return str(ip_address(source))
    except ValueError:
        raise click.BadParameter(f"{source!r} is not an IP address", param_hint="--source") from None


def _complain_about(error: PolicyError) -> None:
    complain(str(error))
    complain(f"{error.source} cannot be used: {_counted(len(error.problems), 'problem')}")


def _problems(error: PolicyError) -> dict[str, Any]:
    problems = [dataclasses.asdict(problem) for problem in error.problems]
    return {"ok": False, "source": error.source, "problems": problems, "warnings": []}


def _summary(found: Policy) -> dict[str, Any]:
    rules = [
        {"name": rule.name, "line": rule.line, "effect": rule.effect, "summary": describe_rule(rule)}
        for rule in found.rules
    ]
    warnings = [dataclasses.asdict(advice) for advice in advise(found)]
    return {
        "ok": True,
        "source": found.source,
        "digest": found.digest,
        "rules": rules,
        "problems": [],
        "warnings": warnings,
    }


def _print_summary(found: Policy) -> None:
    if found.rules:
        rows = [
            (place, rule.name, rule.line, describe_rule(rule)) for place, rule in enumerate(found.rules, 1)
        ]
        print_table(("#", "rule", "line", "what it does"), rows)
    warnings = advise(found)
    for advice in warnings:
        place = f"{found.source}:{advice.line}"
        print_line(f"warning: {place}: rule {advice.rule!r}: {advice.message}", style="yellow")
    counts = [_counted(len(found.rules), "rule"), *([_counted(len(warnings), "warning")] if warnings else [])]
    print_line(f"{found.source} is valid: {', '.join(counts)}. What no rule matches is denied.")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _print_explanation(subject: Subject, host: str, action: str, explanation: Explanation) -> None:
    rows = [
        (place, trace.rule, trace.line, "yes" if trace.matched else "no", trace.why)
        for place, trace in enumerate(explanation.traces, 1)
    ]
    if rows:
        print_table(("#", "rule", "line", "matched", "why"), rows)
    decision = explanation.decision
    word, style = ("allowed", "green") if decision.allowed else ("denied", "red")
    outcome = f"{action} for user {subject.user!r} on {host} by rule {decision.rule!r} ({decision.reason})"
    print_line(f"{word}: {outcome}", style=style)
    if decision.reason == UNKNOWN_ADDRESS:
        print_line("hint: the rule asks where the client is; give --source IP")
    if decision.message is not None and not decision.allowed:
        print_line(f"message: {decision.message}")


def _as_document(
    found: Policy, subject: Subject, host: str, action: str, told: Explanation
) -> dict[str, Any]:
    return {
        "action": action,
        "subject": {
            "user": subject.user,
            "groups": list(subject.groups),
            "via": subject.via,
            "source": subject.address,
        },
        "host": host,
        "policy": {"source": found.source, "digest": found.digest},
        "decision": {"allowed": told.decision.allowed, **dataclasses.asdict(told.decision)},
        "trace": [dataclasses.asdict(trace) for trace in told.traces],
    }
