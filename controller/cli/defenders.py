"""`defenderctl defenders`: what the fleet's hosts are, have, and where they listen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import click

from controller.cli.client import Client
from controller.cli.fleet import (
    Seconds,
    ago,
    ask,
    confirmed,
    counted,
    label_option,
    listed,
    part,
    print_items,
    shown_labels,
    shown_time,
    with_controller,
)
from controller.cli.output import json_option, print_json, print_line, print_table
from controller.cli.progress import conclude, watch, watch_options
from defender.contract.local import MODES
from defender.contract.pattern import is_glob

ROOT: Final = "/api/v1/defenders"
CHANGES: Final = "/api/v1/listener-changes"


@click.group()
def defenders() -> None:
    """Show the fleet's defenders, label them, and say where they listen.

    \b
    Examples:
      defenderctl defenders list --label site=vienna
      defenderctl defenders set-listener web1 unix+tcp --drain 10m
    """


def _listens(defender: Mapping[str, Any]) -> str:
    listener = defender["listener"]
    desired, actual = listener["desired"], listener["actual"]
    if desired == actual or desired is None:
        return actual or "-"
    return f"{actual or '?'} -> {desired}"


def _behind(defender: Mapping[str, Any]) -> str:
    """How it stands to what it should have, in a few words."""
    amiss = [
        f"{name} {stream['state']}"
        for name, stream in sorted(defender["streams"].items())
        if stream["state"] not in ("acked", "none")
    ]
    return ", ".join(amiss) or "as it should be"


@defenders.command(
    name="list",
    epilog="\b\nExamples:\n  defenderctl defenders list\n  defenderctl defenders list --state offline\n"
    "  defenderctl defenders list --name 'web*' --label site=vienna",
)
@click.option("--name", metavar="GLOB", help="With such a name.")
@label_option("With this label.")
@click.option("--state", type=click.Choice(("online", "stale", "offline")), help="In this state.")
@json_option
def list_(name: str | None, labels: dict[str, str], state: str | None, as_json: bool) -> None:
    """List defenders; every condition that is given must hold."""
    pairs = [f"{key}={value}" for key, value in labels.items()]
    found = listed(ROOT, {"name": name, "label": pairs, "state": state})
    if as_json:
        print_json(found)
        return
    columns = {
        "name": lambda each: each["name"],
        "state": lambda each: each["state"],
        "seen": lambda each: ago(each["last_seen_at"]),
        "listens": _listens,
        "policy": lambda each: _active(each["streams"].get("policy")),
        "condition": _behind,
        "labels": lambda each: shown_labels(each["labels"]),
    }
    print_items(found, columns, "There is no such defender.", fold=-1)


def _active(stream: Mapping[str, Any] | None) -> str:
    if stream is None:
        return "-"
    active, desired = stream["active"], stream["desired"]
    if active == desired or desired is None:
        return "-" if active is None else str(active)
    return f"{'-' if active is None else active} -> {desired}"


@defenders.command(epilog="\b\nExample:\n  defenderctl defenders show web1")
@click.argument("host")
@json_option
def show(host: str, as_json: bool) -> None:
    """Show a defender: what it should have, what it has, and why not if not. HOST is its name or id."""
    found = ask("GET", f"{ROOT}/{part(host)}")
    if as_json:
        print_json(found)
        return
    listener, spool = found["listener"], found["spool"]
    rows = [
        ("name", found["name"]),
        ("id", found["id"]),
        ("state", f"{found['state']}, seen {ago(found['last_seen_at'])} ago"),
        ("address", found["address"] or "-"),
        ("program", found["program"] or "-"),
        ("labels", shown_labels(found["labels"])),
        ("enrolled", shown_time(found["enrolled_at"])),
        ("certificate until", shown_time(found["certificate_expires_at"])),
        ("listens", _listens(found) + (f": {listener['detail']}" if listener["detail"] else "")),
    ]
    if spool:
        told = counted(spool["waiting_events"], "event")
        rows.append(("not delivered", f"{told}, {spool['waiting_bytes']} bytes"))
    print_table(("what", "value"), rows, fold=1)
    click.echo()
    states = [
        (name, _active(stream), stream["key_epoch"], stream["state"], stream["detail"])
        for name, stream in sorted(found["streams"].items())
    ]
    print_table(("stream", "version", "keys", "state", "why"), states)


@defenders.command(
    name="set-listener",
    epilog="\b\nExamples:\n  defenderctl defenders set-listener web1 unix\n"
    "  defenderctl defenders set-listener web1 web2 unix+tcp --drain 10m\n"
    "  defenderctl defenders set-listener --label site=vienna tcp",
)
@click.argument("words", nargs=-1, required=True, metavar="[HOST]... MODE")
@label_option("All with this label.")
@click.option(
    "--drain",
    type=Seconds(zero=True),
    help="How long open streams may go on: 90s, 10m, 2h; without it, or with 0, until they end.",
)
@watch_options
@json_option
def set_listener(
    words: tuple[str, ...],
    labels: dict[str, str],
    drain: int | None,
    wait: bool,
    timeout: int,
    as_json: bool,
) -> None:
    """Say where defenders listen: tcp, unix, unix+tcp or none.

    HOST is a name, an id or a pattern such as 'web*'. It is desired state: who is offline follows later.
    Exit code 1: somebody refused, with the reason, or it took too long.
    """
    *hosts, mode = words
    if mode not in MODES:
        raise click.UsageError(f"{mode!r} is no mode; the last word is one of {', '.join(MODES)}")
    select = _selection(hosts, labels)
    body: dict[str, Any] = {"mode": mode, "drain": drain or None}

    async def act(client: Client) -> Mapping[str, Any]:
        if set(select) == {"ids"} and len(hosts) == 1:
            made = await client.ask("PUT", f"{ROOT}/{part(hosts[0])}/listener", body=body)
        else:
            made = await client.ask("POST", CHANGES, body={"select": select, **body})

        async def look() -> Mapping[str, Any]:
            found: Mapping[str, Any] = (
                await client.ask("GET", f"{CHANGES}/{part(made.document['id'])}")
            ).document
            return found

        change: Mapping[str, Any] = made.document
        if not wait:
            return change
        return await watch(client, title, change, look, limit=timeout, quiet=as_json)

    title = f"listener {mode}"
    conclude(title, with_controller(act), as_json=as_json, waited=wait)


def _selection(hosts: list[str], labels: Mapping[str, str]) -> dict[str, Any]:
    patterns = [host for host in hosts if is_glob(host)]
    if not hosts and not labels:
        raise click.UsageError("say which: HOST, or --label K=V; '*' are all")
    if patterns and len(patterns) < len(hosts):
        raise click.UsageError("write either names or patterns: both together would have to hold")
    select: dict[str, Any] = {"labels": dict(labels)} if labels else {}
    if patterns:
        select["names"] = patterns
    elif hosts:
        select["ids"] = hosts
    return select


@defenders.command(
    epilog="\b\nExamples:\n  defenderctl defenders label web1 site=vienna rack=7\n"
    "  defenderctl defenders label web1 rack-      # remove it"
)
@click.argument("host")
@click.argument("changes", nargs=-1, required=True, metavar="K=V|K-...")
@json_option
def label(host: str, changes: tuple[str, ...], as_json: bool) -> None:
    """Set labels of a defender, or remove them with `K-`. Policies that select by label follow."""
    wanted: dict[str, str | None] = {}
    for change in changes:
        key, mark, value = change.partition("=")
        if mark:
            wanted[key] = value
        elif change.endswith("-") and len(change) > 1:
            wanted[change[:-1]] = None
        else:
            raise click.UsageError(f"{change!r} is neither K=V nor K-")
    found = ask("PATCH", f"{ROOT}/{part(host)}", body={"labels": wanted})
    if as_json:
        print_json(found)
    else:
        print_line(f"{found['name']}: {shown_labels(found['labels'])}")


@defenders.command(epilog="\b\nExample:\n  defenderctl defenders remove web1")
@click.argument("host")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def remove(host: str, yes: bool, as_json: bool) -> None:
    """Remove a defender from the fleet; it must enroll again to come back. Its events stay."""
    confirmed(f"Remove {host} from the fleet?", yes, needed=True)
    ask("DELETE", f"{ROOT}/{part(host)}")
    if as_json:
        print_json({"removed": host})
    else:
        print_line(f"Removed {host}.")


@defenders.command(epilog="\b\nExample:\n  defenderctl defenders waiting")
@json_option
def waiting(as_json: bool) -> None:
    """List the defenders that wait for approval; compare the key with what the host prints."""
    found = listed("/api/v1/enrollments")
    if as_json:
        print_json(found)
        return
    columns = {
        "id": lambda each: each["id"],
        "name": lambda each: each["name"],
        "address": lambda each: each["address"],
        "asked": lambda each: ago(each["asked_at"]),
        "key": lambda each: each["key"],
    }
    print_items(found, columns, "Nobody waits.", fold=-1)


@defenders.command(
    epilog="\b\nExample:\n  defenderctl defenders approve 7d1f3c52-6a0e-4c83-9b58-2f0c9a4be1d7"
)
@click.argument("enrollment", metavar="ID")
@json_option
def approve(enrollment: str, as_json: bool) -> None:
    """Let a defender in that waits for approval."""
    _decide(enrollment, "approve", as_json)


@defenders.command(epilog="\b\nExample:\n  defenderctl defenders reject 7d1f3c52-6a0e-4c83-9b58-2f0c9a4be1d7")
@click.argument("enrollment", metavar="ID")
@json_option
def reject(enrollment: str, as_json: bool) -> None:
    """Turn away a defender that waits for approval."""
    _decide(enrollment, "reject", as_json)


def _decide(enrollment: str, decision: str, as_json: bool) -> None:
    ask("POST", f"/api/v1/enrollments/{part(enrollment)}", body={"decision": decision})
    if as_json:
        print_json({"id": enrollment, "decision": decision})
    else:
        print_line(f"{enrollment}: {decision}{'d' if decision.endswith('e') else 'ed'}.")
