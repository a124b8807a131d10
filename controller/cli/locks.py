"""`defenderctl lock`: shuts somebody out of the whole fleet at once, whatever the policies say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import click

from controller.cli.client import Client
from controller.cli.fleet import (
    counted,
    fail,
    listed,
    part,
    print_items,
    shown_time,
    with_controller,
)
from controller.cli.output import json_option, print_json, print_line
from defender.contract.errors import ContractError
from defender.contract.locks import DEFENDER, KINDS, make_lock

ROOT: Final = "/api/v1/locks"

#: Seconds that connected defenders are given before the numbers are shown, and between two looks.
PATIENCE: Final = 5.0
POLL: Final = 0.1


@click.group()
def lock() -> None:
    """Shut a user, a group, a certificate or a defender out of the whole fleet at once.

    New requests are denied and live streams are cut. A defender that is locked stays in touch with its
    controller, so that it can be unlocked. `defenderctl local lock` does it on one host alone.

    \b
    Examples:
      defenderctl lock add --user bruce@example.com --reason "laptop lost"
      defenderctl lock list
    """


def _subject(command: Any) -> Any:
    for option in (
        click.option("--issuer", default="", metavar="DN", help="With --serial: the issuer it counts for."),
        click.option(
            "--defender", metavar="NAME", help="A defender, by name or id: it denies everybody everything."
        ),
        click.option("--serial", metavar="HEX", help="Serial number of a certificate."),
        click.option("--group", metavar="NAME", help="Every member of a group."),
        click.option("--user", metavar="NAME", help="A user, however they prove to be it."),
    ):
        command = option(command)
    return command


def _chosen(issuer: str, **given: str | None) -> dict[str, str]:
    """What is to be locked, as locks are written everywhere."""
    named = [(kind, value) for kind, value in given.items() if value]
    if len(named) != 1:
        raise click.UsageError(f"name exactly one of {', '.join('--' + kind for kind in KINDS)}")
    try:
        made = make_lock(*named[0], issuer)
    except ContractError as error:
        raise click.UsageError(str(error)) from None
    found = {"kind": made.kind, "value": made.value}
    return {**found, "issuer": made.issuer} if made.issuer else found


def _told(lock: Mapping[str, Any]) -> str:
    name = lock.get("name") or lock["value"]
    return f"{lock['kind']} {name}" + (f" of {lock['issuer']}" if lock.get("issuer") else "")


def _is_of(lock: Mapping[str, Any], wanted: Mapping[str, str]) -> bool:
    """Whether this is the lock of what is named; a defender may be named by its id or its name."""
    names = (lock["value"], lock["name"]) if lock["kind"] == DEFENDER else (lock["value"],)
    rest = {"issuer": "", **wanted}
    return rest.pop("value") in names and all(lock[key] == value for key, value in rest.items())


@lock.command(
    epilog="\b\nExamples:\n  defenderctl lock add --user bruce@example.com --reason 'laptop lost'\n"
    "  defenderctl lock add --serial 0a1b2c --issuer 'CN=Fleet users'"
)
@_subject
@click.option("--reason", default="", metavar="TEXT", help="Why; it stands in the list and in the event.")
@json_option
def add(
    user: str | None,
    group: str | None,
    serial: str | None,
    defender: str | None,
    issuer: str,
    reason: str,
    as_json: bool,
) -> None:
    """Lock somebody or something out. Who is locked already stays so.

    Waits up to five seconds for the defenders that are connected; who is not, or takes longer, follows.
    """
    wanted = _chosen(issuer, user=user, group=group, serial=serial, defender=defender)

    async def act(client: Client) -> tuple[int, Any]:
        reply = await client.ask("POST", ROOT, body={**wanted, "reason": reason})
        made, begun = reply.document, client.seconds()
        while made is not None and made["counts"]["waiting"] and client.seconds() - begun < PATIENCE:
            await client.pause(POLL)
            here = [each async for each in client.pages(ROOT) if each["id"] == made["id"]]
            made = here[0] if here else None
        return reply.status, made or reply.document

    status, made = with_controller(act)
    if as_json:
        print_json(made)
        return
    counts = made["counts"]
    reach = f"{counts['acked']} of {counted(counts['total'], 'defender')} have it"
    if counts["offline"]:
        reach += f", {counts['offline']} offline"
    print_line(f"{'Locked' if status == 201 else 'Locked already'}: {_told(made)}; {reach}.")


@lock.command(
    epilog="\b\nExamples:\n  defenderctl lock remove 7d1f3c52-6a0e-4c83-9b58-2f0c9a4be1d7\n"
    "  defenderctl lock remove --user bruce@example.com"
)
@click.argument("ids", metavar="[ID]...", nargs=-1)
@_subject
@json_option
def remove(
    ids: tuple[str, ...],
    user: str | None,
    group: str | None,
    serial: str | None,
    defender: str | None,
    issuer: str,
    as_json: bool,
) -> None:
    """Remove locks, by the ids that `lock list` shows, or one by what it locks."""
    named = any((user, group, serial, defender))
    if bool(ids) == named:
        raise click.UsageError("say which: by ID, or by --user, --group, --serial, --defender")
    wanted = _chosen(issuer, user=user, group=group, serial=serial, defender=defender) if named else None

    async def act(client: Client) -> list[str]:
        chosen = list(ids)
        if wanted is not None:
            async for each in client.pages(ROOT):
                if _is_of(each, wanted):
                    chosen.append(each["id"])
        for each in chosen:
            await client.ask("DELETE", f"{ROOT}/{part(each)}")
        return chosen

    gone = with_controller(act)
    if not gone:
        fail(f"not locked: {_told(wanted or {})}")
    if as_json:
        print_json({"removed": gone})
    else:
        print_line(f"No longer locked: {_told(wanted) if wanted else ', '.join(gone)}.")


@lock.command(name="list", epilog="\b\nExample:\n  defenderctl lock list")
@json_option
def list_(as_json: bool) -> None:
    """List the locks of the fleet, and how many defenders have them."""
    found = listed(ROOT)
    if as_json:
        print_json(found)
        return
    columns = {
        "id": lambda each: each["id"],
        "locked": _told,
        "have it": lambda each: f"{each['counts']['acked']}/{each['counts']['total']}",
        "since": lambda each: shown_time(each["created_at"])[:16],
        "by": lambda each: each["by"],
        "reason": lambda each: each["reason"] or "-",
    }
    print_items(found, columns, "Nobody is locked.", fold=-1)
