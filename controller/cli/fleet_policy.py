"""The commands of `defenderctl policy` that speak with a controller."""

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
    confirmed,
    fail,
    label_option,
    listed,
    part,
    print_items,
    shown_labels,
    shown_time,
    with_controller,
)
from controller.cli.output import console, json_option, print_json, print_line, print_table, printable
from controller.cli.policy import load_data, read_file
from controller.cli.progress import conclude, summary, watch, watch_options
from controller.policy_diff import compare_text

ROOT: Final = "/api/v1/policies"
MOST_NAMES: Final = 8

_MISSING: Final = 404


def _path(name: str, *more: str) -> str:
    return "/".join((ROOT, part(name), *more))


def _name_of(name: str | None, file: str | None) -> str:
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


async def _found(client: Client, name: str) -> Reply | None:
    """The policy, None if there is none."""
    try:
        return await client.ask("GET", _path(name))
    except ClientError as error:
        if error.status == _MISSING:
            return None
        raise


@click.command(
    epilog="\b\nExamples:\n  defenderctl policy publish builders.yaml --comment 'CI may build'\n"
    "  defenderctl policy publish builders.yaml --host 'web*' --label site=vienna --at-once\n"
    "  defenderctl policy publish --name builders      # the draft that is there"
)
@file_argument
@name_option
@click.option(
    "--host", "hosts", multiple=True, metavar="GLOB", help="For defenders of such names; may be repeated."
)
@label_option("For defenders with this label.")
@click.option(
    "--rank", type=click.IntRange(min=0), help="Of several policies for a defender the highest wins."
)
@click.option("--everywhere", is_flag=True, help="For all defenders, also if it was for some before.")
@click.option("--comment", default="", metavar="TEXT", help="Why; it stands in the history.")
@click.option("--at-once", is_flag=True, help="To all at once, instead of one, a tenth, and all.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@watch_options
@json_option
@click.pass_context
def publish(
    ctx: click.Context,
    file: str | None,
    name: str | None,
    hosts: tuple[str, ...],
    labels: dict[str, str],
    rank: int | None,
    everywhere: bool,
    comment: str,
    at_once: bool,
    yes: bool,
    wait: bool,
    timeout: int,
    as_json: bool,
) -> None:
    """Publish a policy to the fleet, and watch it arrive.

    FILE is checked here first. Without options that say for whom, it stays for whom it was; a new policy is
    for all. It goes out in waves, and halts when somebody refuses it. On a terminal you are asked first.
    Exit code 1: it is invalid, was refused, or took too long.
    """
    called = _name_of(name, file)
    target = _target(hosts, labels, rank, everywhere)
    text = None
    if file is not None:
        data = read_file(file)
        load_data(ctx, data, "<stdin>" if file == "-" else file, as_json)
        text = data.decode("utf-8-sig")
    elif target is not None:
        raise click.UsageError("for whom it is stands in the draft; it is changed with FILE")

    async def prepare(client: Client) -> tuple[str, Mapping[str, Any], Mapping[str, Any]] | None:
        etag = await _save(client, called, text, target)
        difference = (await client.ask("GET", _path(called, "diff"))).document
        if difference["old"] and not difference["unified"] and not difference["target"]:
            if text is not None:
                await client.ask("DELETE", _path(called, "draft"), etag=etag)
            return None
        return etag, difference, (await client.ask("GET", _path(called, "preview"))).document

    async def act(client: Client) -> Mapping[str, Any]:
        body = {"comment": comment, "waves": not at_once}
        made = (await client.ask("POST", _path(called, "publish"), body=body, etag=etag)).document
        return await _rolled(client, made, wait, timeout, as_json)

    prepared = with_controller(prepare)
    if prepared is None:
        if as_json:
            print_json({"policy": called, "state": "unchanged"})
        else:
            print_line(f"{called}: nothing to publish, this is what is published.")
        return
    etag, difference, preview = prepared
    if not as_json:
        _print_difference(difference)
        _print_reach(preview)
    confirmed(f"Publish {called}?", yes or as_json, needed=False)
    rollout = with_controller(act, again=True)
    conclude(_title(rollout), rollout, as_json=as_json, waited=wait)


def _target(
    hosts: tuple[str, ...], labels: Mapping[str, str], rank: int | None, everywhere: bool
) -> dict[str, Any] | None:
    found: dict[str, Any] = {}
    if hosts:
        found["names"] = list(hosts)
    if labels:
        found["labels"] = dict(labels)
    if everywhere and found:
        raise click.UsageError("--everywhere stands alone: without --host and --label")
    if rank is not None:
        found["rank"] = rank
    return found if found or everywhere else None


async def _save(client: Client, name: str, text: str | None, target: Mapping[str, Any] | None) -> str:
    """Save the draft, if there is one to save; returns the etag of what is to be published."""
    known = await _found(client, name)
    if text is None:
        if known is None or known.document["draft"] is None:
            fail(f"{client.host}: {name} has no draft; name a FILE")
        return known.etag
    body: dict[str, Any] = {"text": text}
    if known is None:
        wanted = target
    else:
        draft = known.document["draft"]
        wanted = target if target is not None else known.document["target"]
        if draft is not None and draft["text"] != text:
            print_line(f"replaces the draft that {draft['by']} saved at {shown_time(draft['saved_at'])} UTC")
    if wanted is not None:
        body["target"] = dict(wanted)
    saved = await client.ask(
        "PUT", _path(name, "draft"), body=body, etag=known.etag if known else "", absent=known is None
    )
    return saved.etag


async def _rolled(
    client: Client,
    made: Mapping[str, Any],
    wait: bool,
    limit: int,
    quiet: bool,
) -> Mapping[str, Any]:
    """The rollout in the end, or as it began."""
    if not wait:
        return made

    async def look() -> Mapping[str, Any]:
        found: Mapping[str, Any] = (await client.ask("GET", _path(made["policy"], "rollout"))).document
        return found

    return await watch(client, _title(made), made, look, limit=limit, quiet=quiet)


def _title(rollout: Mapping[str, Any]) -> str:
    return f"{rollout['policy']} version {rollout['version']}"


def _print_difference(difference: Mapping[str, Any]) -> None:
    target = console()
    for line in difference["unified"].splitlines():
        style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
        target.print(Text(printable(line)), style=style or None, soft_wrap=True)
    for change in difference["rules"]:
        print_line(f"rule {change['rule']}: {change['detail'] or change['change']}")
    if difference["target"]:
        print_line(f"for whom: {difference['target']}")


def _print_reach(preview: Mapping[str, Any]) -> None:
    for key, told in (
        ("enter", "would get it"),
        ("leave", "would no longer have it"),
        ("uncovered", "would have no policy at all, so that everything is denied there"),
    ):
        names = preview[key]
        if names:
            more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
            print_line(f"{', '.join(names[:MOST_NAMES])}{more} {told}")


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
    called = _name_of(name, file)
    if file is None:
        found = ask("GET", _path(called, "diff"), query={"old": old, "new": new})
    else:
        if new is not None:
            raise click.UsageError("compare either FILE or --new")
        data = read_file(file)
        load_data(ctx, data, "<stdin>" if file == "-" else file, as_json)
        found = _against(called, data.decode("utf-8-sig"), Path(file).name, old)
    if as_json:
        print_json(found)
    elif found["unified"] or found["target"]:
        _print_difference(found)
    else:
        print_line(f"{called}: no difference.")


def _against(name: str, text: str, file: str, old: int | None) -> dict[str, Any]:
    """The difference from a version to a file that the controller does not have."""

    async def act(client: Client) -> Any:
        known = await _found(client, name)
        number = old if old is not None else known.document["published"] if known else None
        if number is None:
            return None
        return (await client.ask("GET", _path(name, "versions", str(number)))).document

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
    found = listed(_path(name, "versions"))
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


@click.command(
    epilog="\b\nExamples:\n  defenderctl policy rollback builders\n"
    "  defenderctl policy rollback builders 11 --comment 'CI could build too much'"
)
@policy_argument
@click.argument("version", type=click.IntRange(min=1), required=False)
@click.option("--comment", default="", metavar="TEXT", help="Why; it stands in the history.")
@click.option("--at-once", is_flag=True, help="To all at once, instead of one, a tenth, and all.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@watch_options
@json_option
def rollback(
    name: str,
    version: int | None,
    comment: str,
    at_once: bool,
    yes: bool,
    wait: bool,
    timeout: int,
    as_json: bool,
) -> None:
    """Publish an old version's content as a new version: without VERSION, the one before the newest."""

    async def prepare(client: Client) -> tuple[str, int]:
        known = await client.ask("GET", _path(name))
        return known.etag, version if version is not None else await _before(client, name)

    async def act(client: Client) -> Mapping[str, Any]:
        body = {"version": number, "comment": comment, "waves": not at_once}
        made = (await client.ask("POST", _path(name, "rollback"), body=body, etag=etag)).document
        return await _rolled(client, made, wait, timeout, as_json)

    etag, number = with_controller(prepare)
    confirmed(f"Publish version {number} of {name} again?", yes or as_json, needed=False)
    rollout = with_controller(act, again=True)
    conclude(_title(rollout), rollout, as_json=as_json, waited=wait)


async def _before(client: Client, name: str) -> int:
    page = (await client.ask("GET", _path(name, "versions"), query={"limit": 2})).document["items"]
    if len(page) < 2:
        fail(f"{client.host}: {name} has no version before the newest")
    number: int = page[1]["number"]
    return number


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
            return [({"name": name}, (await client.ask("GET", _path(name, "rollout"))).document)]
        async for each in client.pages(ROOT):
            rollout = None
            if each["published"] is not None:
                rollout = (await client.ask("GET", _path(each["name"], "rollout"))).document
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
    print_line(f"{_title(rollout)}, {by}.")
    print_line(f"{rollout['state']}: {summary(rollout)}.")
    if rollout["detail"]:
        print_line(rollout["detail"])
    if rollout["defenders"]:
        rows = [(step["name"], step["state"], step["detail"]) for step in rollout["defenders"]]
        print_table(("defender", "state", "why"), rows)
    if rollout["state"] == "halted":
        name = rollout["policy"]
        print_line(f"Go on with `defenderctl policy resume {name}`, or give up with `policy abort {name}`.")


@click.command(epilog="\b\nExample:\n  defenderctl policy halt builders")
@policy_argument
@json_option
def halt(name: str, as_json: bool) -> None:
    """Halt a rollout: nobody else gets the version until `policy resume`."""
    _steer(name, "halt", as_json)


@click.command(epilog="\b\nExample:\n  defenderctl policy resume builders")
@policy_argument
@watch_options
@json_option
def resume(name: str, wait: bool, timeout: int, as_json: bool) -> None:
    """Go on with a rollout that is halted. Who refused the version is not asked again."""

    async def act(client: Client) -> Mapping[str, Any]:
        reply = await client.ask("POST", _path(name, "rollout"), body={"action": "resume"})
        return await _rolled(client, reply.document, wait, timeout, as_json)

    rollout = with_controller(act)
    conclude(_title(rollout), rollout, as_json=as_json, waited=wait)


@click.command(epilog="\b\nExample:\n  defenderctl policy abort builders")
@policy_argument
@json_option
def abort(name: str, as_json: bool) -> None:
    """Give up a rollout: who has the version keeps it, nobody else gets it."""
    _steer(name, "abort", as_json)


def _steer(name: str, action: str, as_json: bool) -> None:
    found = ask("POST", _path(name, "rollout"), body={"action": action})
    if as_json:
        print_json(found)
    else:
        print_line(f"{_title(found)}: {found['state']}, {summary(found)}.")


@click.command(
    epilog="\b\nExamples:\n  defenderctl policy show builders > builders.yaml\n"
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
        known = (await client.ask("GET", _path(name))).document
        if draft:
            if known["draft"] is None:
                fail(f"{client.host}: {name} has no draft")
            return str(known["draft"]["text"])
        number = version if version is not None else known["published"]
        if number is None:
            fail(f"{client.host}: nothing of {name} was published; its draft: --draft")
        return str((await client.ask("GET", _path(name, "versions", str(number)))).document["text"])

    text = with_controller(act)
    if sys.stdout.isatty():
        text = "\n".join(printable(line) for line in text.split("\n"))
    click.echo(text, nl=not text.endswith("\n"))
