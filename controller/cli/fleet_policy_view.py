"""The commands of `defenderctl policy` that look at what a controller has, and what the others share."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click
from rich.text import Text

from controller.cli.client import Client, ClientError, Reply
from controller.cli.fleet import (
    ask,
    fail,
    listed,
    part,
    print_items,
    shown_labels,
    shown_time,
    with_controller,
)
from controller.cli.output import console, json_option, print_json, print_line, print_table, printable
from controller.cli.policy import load_data, read_file
from controller.cli.progress import summary
from controller.policy_diff import compare_text

ROOT: Final = "/api/v1/policies"

_MISSING: Final = 404


def path_of(name: str, *more: str) -> str:
    return "/".join((ROOT, part(name), *more))


def name_of(name: str | None, file: str | None) -> str:
    """The name of a policy: as it is said, or the file's without its ending."""
    if name:
        return name
    if file is None or file == "-":
        raise click.UsageError("say which policy: --name NAME")
    return Path(file).stem


name_option: Final = click.option(
    "--name", metavar="NAME", help="The policy; without it, the file's name is its."
)
file_argument: Final = click.argument(
    "file", required=False, type=click.Path(exists=True, dir_okay=False, allow_dash=True, readable=True)
)
policy_argument: Final = click.argument("name", metavar="NAME")


async def find_policy(client: Client, name: str) -> Reply | None:
    """The policy, None if there is none."""
    try:
        return await client.ask("GET", path_of(name))
    except ClientError as error:
        if error.status == _MISSING:
            return None
        raise


def title_of(rollout: Mapping[str, Any]) -> str:
    return f"{rollout['policy']} version {rollout['version']}"


def print_difference(difference: Mapping[str, Any]) -> None:
    target = console()
    for line in difference["unified"].splitlines():
        style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
        target.print(Text(printable(line)), style=style or None, soft_wrap=True)
    for change in difference["rules"]:
        print_line(f"rule {change['rule']}: {change['detail'] or change['change']}")
    if difference["target"]:
        print_line(f"for whom: {difference['target']}")


@click.command(
    epilog="\b\nExamples:\n  defenderctl policy diff builders.yaml\n"
    "  defenderctl policy diff --name builders                   # the draft\n"
    "  defenderctl policy diff --name builders --old 11 --new 12"
)
@file_argument
@name_option
@click.option(
    "--old", type=click.IntRange(min=1), metavar="N", help="This version, instead of the published one."
)
@click.option("--new", type=click.IntRange(min=1), metavar="N", help="This version, instead of the draft.")
@json_option
@click.pass_context
def diff(
    ctx: click.Context, file: str | None, name: str | None, old: int | None, new: int | None, as_json: bool
) -> None:
    """Compare FILE, the draft or a version with what is published, or with another version."""
    called = name_of(name, file)
    if file is None:
        found = ask("GET", path_of(called, "diff"), query={"old": old, "new": new})
    else:
        if new is not None:
            raise click.UsageError("compare either FILE or --new")
        data = read_file(file)
        load_data(ctx, data, "<stdin>" if file == "-" else file, as_json)
        found = _against(called, data.decode("utf-8-sig"), Path(file).name, old)
    if as_json:
        print_json(found)
    elif found["unified"] or found["target"]:
        print_difference(found)
    else:
        print_line(f"{called}: no difference.")


def _against(name: str, text: str, file: str, old: int | None) -> dict[str, Any]:
    """The difference from a version to a file that the controller does not have."""

    async def act(client: Client) -> Any:
        known = await find_policy(client, name)
        number = old if old is not None else known.document["published"] if known else None
        if number is None:
            return None
        return (await client.ask("GET", path_of(name, "versions", str(number)))).document

    before = with_controller(act)
    said = str(before["number"]) if before else ""
    shown = f"{name} {said}" if said else "/dev/null"
    unified = compare_text(before["text"] if before else "", text, shown, file)
    return {"old": said, "new": file, "unified": unified, "rules": [], "target": ""}


@click.command(epilog="\b\nExample:\n  defenderctl policy history builders")
@policy_argument
@json_option
def history(name: str, as_json: bool) -> None:
    """List the published versions of a policy, the newest first."""
    found = listed(path_of(name, "versions"))
    if as_json:
        print_json(found)
        return
    columns = {
        "version": lambda each: each["number"],
        "published": lambda each: shown_time(each["published_at"]),
        "by": lambda each: each["by"],
        "digest": lambda each: each["digest"].removeprefix("sha256:")[:12],
        "comment": lambda each: (
            each["comment"] or (f"as version {each['rolled_back_to']}" if each["rolled_back_to"] else "-")
        ),
    }
    print_items(found, columns, "Nothing of it was published.", fold=-1)


@click.command(epilog="\b\nExamples:\n  defenderctl policy status\n  defenderctl policy status builders")
@click.argument("name", required=False)
@json_option
def status(name: str | None, as_json: bool) -> None:
    """Show how far the newest version is: who has it, who refused it and why, who is offline.

    Without NAME, a line for each policy.
    """

    async def act(client: Client) -> list[tuple[Mapping[str, Any], Mapping[str, Any] | None]]:
        found: list[tuple[Mapping[str, Any], Mapping[str, Any] | None]] = []
        if name is not None:
            return [({"name": name}, (await client.ask("GET", path_of(name, "rollout"))).document)]
        async for each in client.pages(ROOT):
            rollout = None
            if each["published"] is not None:
                rollout = (await client.ask("GET", path_of(each["name"], "rollout"))).document
            found.append((each, rollout))
        return found

    found = with_controller(act)
    if as_json:
        print_json(
            found[0][1] if name is not None else [{**each, "rollout": rolled} for each, rolled in found]
        )
    elif name is None:
        columns = {
            "name": lambda pair: pair[0]["name"],
            "version": lambda pair: pair[0]["published"] or "-",
            "draft": lambda pair: "yes" if pair[0]["has_draft"] else "no",
            "for": lambda pair: _shown_target(pair[0]["target"]),
            "state": lambda pair: f"{pair[1]['state']}: {summary(pair[1])}" if pair[1] else "not published",
        }
        print_items(list(found), columns, "There are no policies.", fold=-1)
    elif (rollout := found[0][1]) is not None:
        _print_rollout(rollout)


def _shown_target(target: Mapping[str, Any]) -> str:
    parts = [*target.get("names", ()), *(target.get("ids") or ())]
    if target.get("labels"):
        parts.append(shown_labels(target["labels"]))
    return ", ".join(parts) or "all"


def _print_rollout(rollout: Mapping[str, Any]) -> None:
    by = f"by {rollout['started_by']} at {shown_time(rollout['started_at'])} UTC"
    print_line(f"{title_of(rollout)}, {by}.")
    print_line(f"{rollout['state']}: {summary(rollout)}.")
    if rollout["detail"]:
        print_line(rollout["detail"])
    if rollout["defenders"]:
        rows = [(step["name"], step["state"], step["detail"]) for step in rollout["defenders"]]
        print_table(("defender", "state", "why"), rows)
    if rollout["state"] == "halted":
        name = rollout["policy"]
        print_line(f"Go on with `defenderctl policy resume {name}`, or give up with `policy abort {name}`.")


@click.command(
    epilog="\b\nExamples:\n  defenderctl policy show builders\n"
    "  defenderctl policy show builders --version 11"
)
@policy_argument
@click.option(
    "--version", type=click.IntRange(min=1), metavar="N", help="This one, instead of the published one."
)
@click.option("--draft", is_flag=True, help="The draft.")
def show(name: str, version: int | None, draft: bool) -> None:
    """Print the text of a policy."""
    if draft and version is not None:
        raise click.UsageError("show either --draft or --version")

    async def act(client: Client) -> str:
        known = (await client.ask("GET", path_of(name))).document
        if draft:
            if known["draft"] is None:
                fail(f"{client.host}: {name} has no draft")
            return str(known["draft"]["text"])
        number = version if version is not None else known["published"]
        if number is None:
            fail(f"{client.host}: nothing of {name} was published; its draft: --draft")
        return str((await client.ask("GET", path_of(name, "versions", str(number)))).document["text"])

    text = with_controller(act)
    if sys.stdout.isatty():
        text = "\n".join(printable(line) for line in text.split("\n"))
    click.echo(text, nl=not text.endswith("\n"))
