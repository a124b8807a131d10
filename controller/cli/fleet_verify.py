"""`defenderctl audit verify` for the fleet: the controller computes the chains of its events again."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Final

import click

from controller.cli.client import Client
from controller.cli.fleet import fail, print_items, with_controller
from controller.cli.output import print_json

VERIFICATION: Final = "/api/v1/audit/verification"


class _Progress:
    """What came so far, by day; shows how far on a terminal."""

    def __init__(self) -> None:
        self.days: dict[str, dict[str, Any]] = {}
        self._before: dict[str, int] = {}
        self._shows = sys.stderr.isatty()
        self._ended = ""

    def take(self, line: Mapping[str, Any]) -> None:
        """A line of the answer. A day that has several files counts in all of them."""
        day = self.days.setdefault(line["day"], {"day": line["day"], "events": 0, "problems": []})
        day["problems"] += line["problems"]
        day["events"] = self._before.get(line["day"], 0) + line["events"]
        if line["done"]:
            self._before[line["day"]] = day["events"]
        self._ended = line["day"] if line["done"] else ""
        if self._shows:
            click.echo(f"\r{line['day']}: {day['events']} events\x1b[K", err=True, nl=False)

    def end(self) -> bool:
        """Nothing more comes; whether what came was whole."""
        if self._shows:
            click.echo("\r\x1b[K", err=True, nl=False)
        return bool(self._ended)


def verify_fleet(day: str, *, as_json: bool) -> bool:
    """Print what the controller says of its events; whether they are all as they were stored."""
    progress = _Progress()

    async def act(client: Client) -> None:
        await client.lines(VERIFICATION, {"day": day} if day else {}, progress.take)

    try:
        with_controller(act)
    finally:
        whole = progress.end()
    if not whole:
        fail("the controller did not get to the end")
    days = list(progress.days.values())
    problems = [(each["day"], problem) for each in days for problem in each["problems"]]
    if as_json:
        print_json({"days": days, "ok": not problems})
        return not problems
    columns = {
        "day": lambda each: each["day"],
        "events": lambda each: str(each["events"]),
        "chains": lambda each: f"{len(each['problems'])} problems" if each["problems"] else "ok",
    }
    print_items(days, columns, "There are no events.", fold=-1)
    for found, problem in problems:
        click.echo(f"{found}: {problem}")
    return not problems
