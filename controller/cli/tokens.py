"""`defenderctl tokens`: what lets new defenders in; `defenderctl api-tokens`: what programs sign in with."""

from __future__ import annotations

from typing import Any, Final

import click

from controller.cli.fleet import (
    Seconds,
    ask,
    label_option,
    listed,
    part,
    print_items,
    shown_labels,
    shown_time,
)
from controller.cli.output import json_option, print_json, print_line

JOIN: Final = "/api/v1/join-tokens"
API: Final = "/api/v1/api-tokens"

LONGEST_JOIN: Final = 30 * 86400
LONGEST_API: Final = 365 * 86400


@click.group()
def tokens() -> None:
    """Make the join tokens that let new defenders in.

    \b
    Examples:
      defenderctl tokens create --uses 3 --expires 1h --label site=vienna
      defenderctl tokens list
    """


@tokens.command(
    epilog="\b\nExamples:\n  defenderctl tokens create\n"
    "  defenderctl tokens create --uses 3 --expires 2h --network 10.0.0.0/8 --label site=vienna\n"
    "  defenderctl tokens create --name 'web*' --approval --comment 'new rack'\n"
    "  defenderctl tokens create --name ci1 --host ci.example.com --host 10.9.0.7"
)
@click.option(
    "--uses", type=click.IntRange(1, 10_000), default=1, show_default=True, help="Defenders it lets in."
)
@click.option(
    "--expires",
    type=Seconds(most=LONGEST_JOIN),
    default="1h",
    show_default=True,
    help="How long it can be used.",
)
@click.option(
    "--network", "networks", multiple=True, metavar="CIDR", help="Only from there; may be repeated."
)
@click.option(
    "--name", "names", multiple=True, metavar="GLOB", help="Only under such names; may be repeated."
)
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="GLOB",
    help="Users may reach them under such names or networks, besides their own; may be repeated.",
)
@label_option("The defenders get this label.")
@click.option("--approval", is_flag=True, help="Each defender waits until somebody approves it.")
@click.option("--comment", default="", metavar="TEXT", help="What it is for.")
@json_option
def create(
    uses: int,
    expires: int,
    networks: tuple[str, ...],
    names: tuple[str, ...],
    hosts: tuple[str, ...],
    labels: dict[str, str],
    approval: bool,
    comment: str,
    as_json: bool,
) -> None:
    """Make a join token. It is shown this once: standard output holds the token alone."""
    wanted: dict[str, Any] = {"uses": uses, "expires_in": expires, "approval": approval, "comment": comment}
    for key, values in (("networks", networks), ("names", names), ("hosts", hosts)):
        if values:
            wanted[key] = list(values)
    if labels:
        wanted["labels"] = labels
    made = ask("POST", JOIN, body=wanted)
    if as_json:
        print_json(made)
        return
    click.echo(made["token"])
    until = shown_time(made["expires_at"])
    click.echo(f"Id {made['id']}, until {until} UTC. On the new host:", err=True)
    click.echo(f"  twistd defender --controller {made['channel']} --join-token TOKEN", err=True)


@tokens.command(name="list", epilog="\b\nExample:\n  defenderctl tokens list")
@json_option
def list_(as_json: bool) -> None:
    """List join tokens; their secrets are kept nowhere."""
    found = listed(JOIN)
    if as_json:
        print_json(found)
        return
    columns = {
        "id": lambda each: each["id"],
        "state": lambda each: each["state"],
        "used": lambda each: f"{each['used']}/{each['uses']}",
        "until": lambda each: shown_time(each["expires_at"])[:16],
        "by": lambda each: each["by"],
        "restricted to": _restrictions,
    }
    print_items(found, columns, "There are no join tokens.", fold=-1)


def _restrictions(token: Any) -> str:
    parts = [", ".join(token["networks"]), ", ".join(token["names"])]
    if token["hosts"]:
        parts.append(f"hosts {', '.join(token['hosts'])}")
    if token["labels"]:
        parts.append(f"labels {shown_labels(token['labels'])}")
    if token["approval"]:
        parts.append("approval")
    if token["comment"]:
        parts.append(f"({token['comment']})")
    return " ".join(filter(None, parts)) or "-"


@tokens.command(epilog="\b\nExample:\n  defenderctl tokens revoke k7c3q")
@click.argument("token", metavar="ID")
@json_option
def revoke(token: str, as_json: bool) -> None:
    """Revoke a join token by its id. Defenders that joined with it stay."""
    _revoke(JOIN, token, as_json)


def _revoke(root: str, token: str, as_json: bool) -> None:
    ask("DELETE", f"{root}/{part(token)}")
    if as_json:
        print_json({"revoked": token})
    else:
        print_line(f"Revoked {token}.")


@click.group(name="api-tokens")
def api_tokens() -> None:
    """Make the API tokens that programs sign in with.

    \b
    Examples:
      defenderctl api-tokens create prometheus --permission metrics.read --expires 90d
      defenderctl api-tokens list
    """


@api_tokens.command(
    name="create",
    epilog="\b\nExample:\n  defenderctl api-tokens create prometheus --permission metrics.read --expires 90d",
)
@click.argument("name")
@click.option(
    "--permission", "permissions", multiple=True, required=True, metavar="NAME", help="May be repeated."
)
@click.option("--expires", type=Seconds(most=LONGEST_API), default="90d", show_default=True, help="Its life.")
@json_option
def create_api_token(name: str, permissions: tuple[str, ...], expires: int, as_json: bool) -> None:
    """Make an API token of your own, which can do no more than you.

    It is shown this once: standard output holds the token alone.
    """
    wanted = {"name": name, "permissions": list(permissions), "expires_in": expires}
    made = ask("POST", API, body=wanted)
    if as_json:
        print_json(made)
        return
    click.echo(made["token"])
    click.echo(f"Id {made['id']}, until {shown_time(made['expires_at'])} UTC.", err=True)


@api_tokens.command(name="list", epilog="\b\nExample:\n  defenderctl api-tokens list")
@json_option
def list_api_tokens(as_json: bool) -> None:
    """List API tokens: your own; for who may see accounts, everybody's."""
    found = listed(API)
    if as_json:
        print_json(found)
        return
    columns = {
        "id": lambda each: each["id"],
        "name": lambda each: each["name"],
        "user": lambda each: each["user"],
        "until": lambda each: shown_time(each["expires_at"])[:10],
        "used": lambda each: shown_time(each["last_used_at"])[:10],
        "may": lambda each: ", ".join(each["permissions"]),
    }
    print_items(found, columns, "There are no API tokens.", fold=-1)


@api_tokens.command(
    name="revoke",
    epilog="\b\nExample:\n  defenderctl api-tokens revoke 7d1f3c52-6a0e-4c83-9b58-2f0c9a4be1d7",
)
@click.argument("token", metavar="ID")
@json_option
def revoke_api_token(token: str, as_json: bool) -> None:
    """Revoke an API token by its id."""
    _revoke(API, token, as_json)
