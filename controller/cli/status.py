"""`defenderctl status`: the fleet in a few numbers."""

from __future__ import annotations

from typing import Any

import click

from controller.cli.client import Client
from controller.cli.fleet import REFUSED, counted, with_controller
from controller.cli.output import json_option, print_json, print_table


@click.command(epilog="\b\nExamples:\n  defenderctl status\n  defenderctl status --json | jq .defenders")
@json_option
def status(as_json: bool) -> None:
    """Show the controller's own checks, who is connected, and what is locked.

    Exit code 1: a check of the controller does not hold. `defenderctl local status` is about this host alone.
    """

    async def act(client: Client) -> Any:
        return (await client.ask("GET", "/api/v1/status")).document

    found = with_controller(act)
    if as_json:
        print_json(found)
    else:
        there = found["defenders"]
        rows = [
            ("controller", f"{found['controller']}, version {found['program']}"),
            ("trust domain", found["trust_domain"]),
            ("root key", found["root"]),
            ("defenders", f"{there['online']} online, {there['stale']} stale, {there['offline']} offline"),
            ("locks", found["locks"]),
            ("stored", counted(found["events"], "event")),
        ]
        for check in found["checks"]:
            condition = "ok" if check["ok"] else "NOT OK"
            told = f"{condition}: {check['detail']}" if check["detail"] else condition
            rows.append((f"check {check['name']}", told))
        print_table(("what", "value"), rows, fold=1)
    if not all(check["ok"] for check in found["checks"]):
        raise SystemExit(REFUSED)
