"""The commands of `defenderctl policy` that change what the fleet has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import click

from controller.cli.client import Client
from controller.cli.fleet import ask, confirmed, fail, label_option, shown_time, with_controller
from controller.cli.fleet_policy_view import (
    file_argument,
    find_policy,
    name_of,
    name_option,
    path_of,
    policy_argument,
    print_difference,
    title_of,
)
from controller.cli.output import json_option, print_json, print_line
from controller.cli.policy import load_data, read_file
from controller.cli.progress import conclude, summary, watch, watch_options

MOST_NAMES: Final = 8


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
    called = name_of(name, file)
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
        difference = (await client.ask("GET", path_of(called, "diff"))).document
        if difference["old"] and not difference["unified"] and not difference["target"]:
            if text is not None:
                await client.ask("DELETE", path_of(called, "draft"), etag=etag)
            return None
        return etag, difference, (await client.ask("GET", path_of(called, "preview"))).document

    async def act(client: Client) -> Mapping[str, Any]:
        body = {"comment": comment, "waves": not at_once}
        made = (await client.ask("POST", path_of(called, "publish"), body=body, etag=etag)).document
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
        print_difference(difference)
        _print_reach(preview)
    confirmed(f"Publish {called}?", yes or as_json, needed=False)
    rollout = with_controller(act, again=True)
    conclude(title_of(rollout), rollout, as_json=as_json, waited=wait)


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
    known = await find_policy(client, name)
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
        "PUT", path_of(name, "draft"), body=body, etag=known.etag if known else "", absent=known is None
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
        found: Mapping[str, Any] = (await client.ask("GET", path_of(made["policy"], "rollout"))).document
        return found

    return await watch(client, title_of(made), made, look, limit=limit, quiet=quiet)


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
        known = await client.ask("GET", path_of(name))
        return known.etag, version if version is not None else await _before(client, name)

    async def act(client: Client) -> Mapping[str, Any]:
        body = {"version": number, "comment": comment, "waves": not at_once}
        made = (await client.ask("POST", path_of(name, "rollback"), body=body, etag=etag)).document
        return await _rolled(client, made, wait, timeout, as_json)

    etag, number = with_controller(prepare)
    confirmed(f"Publish version {number} of {name} again?", yes or as_json, needed=False)
    rollout = with_controller(act, again=True)
    conclude(title_of(rollout), rollout, as_json=as_json, waited=wait)


async def _before(client: Client, name: str) -> int:
    page = (await client.ask("GET", path_of(name, "versions"), query={"limit": 2})).document["items"]
    if len(page) < 2:
        fail(f"{client.host}: {name} has no version before the newest")
    number: int = page[1]["number"]
    return number


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
        reply = await client.ask("POST", path_of(name, "rollout"), body={"action": "resume"})
        return await _rolled(client, reply.document, wait, timeout, as_json)

    rollout = with_controller(act)
    conclude(title_of(rollout), rollout, as_json=as_json, waited=wait)


@click.command(epilog="\b\nExample:\n  defenderctl policy abort builders")
@policy_argument
@json_option
def abort(name: str, as_json: bool) -> None:
    """Give up a rollout: who has the version keeps it, nobody else gets it."""
    _steer(name, "abort", as_json)


def _steer(name: str, action: str, as_json: bool) -> None:
    found = ask("POST", path_of(name, "rollout"), body={"action": action})
    if as_json:
        print_json(found)
    else:
        print_line(f"{title_of(found)}: {found['state']}, {summary(found)}.")
