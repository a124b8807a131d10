"""The live view while a change rolls through the fleet: how many defenders have it, refused it, are away.

On a terminal one block is drawn anew; elsewhere a line is printed when a number changes. With `--json`
nothing is shown on the way, and the last state is the document.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import click
from rich.console import Group
from rich.live import Live
from rich.text import Text

from controller.cli.client import Client
from controller.cli.fleet import REFUSED, Seconds, counted
from controller.cli.output import complain, console, print_json, print_line, printable

POLL: Final = 1.0
"""Seconds between two looks at a change."""

MOST_LINES: Final = 12
"""Defenders that are named one by one."""

_STYLES: Final = {"acked": "green", "refused": "bold red", "waiting": "yellow", "offline": "dim"}
_RUNNING: Final = ("", "running")

Look = Callable[[], Awaitable[Mapping[str, Any]]]
"""Gives the change as it is now."""


def watch_options(command: Any) -> Any:
    """Add `--no-wait` and `--timeout`: the arguments `wait` and `timeout`."""
    for option in (
        click.option(
            "--timeout",
            type=Seconds(most=86400),
            default="5m",
            show_default=True,
            help="How long to watch; what is not done by then goes on without you.",
        ),
        click.option("--wait/--no-wait", default=True, help="Watch until it is done.  [default: watch]"),
    ):
        command = option(command)
    return command


def is_over(change: Mapping[str, Any]) -> bool:
    """Whether nothing more will happen by itself, except with defenders that are offline."""
    return change.get("state", "") not in _RUNNING or not change["counts"]["waiting"]


def summary(change: Mapping[str, Any]) -> str:
    """The numbers in one line."""
    counts = change["counts"]
    told = f"{counts['acked']} of {counted(counts['total'], 'defender')} done"
    told += "".join(
        f", {counts[key]} {key}"
        for key in ("refused", "waiting", "offline")
        if counts[key] or key != "waiting"
    )
    if change.get("waves", 0) > 1 and change.get("state") == "running":
        told += f" (wave {change['wave']} of {change['waves']})"
    return told


def unfinished(change: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The defenders that have it not, refusals first."""
    order = ("refused", "waiting", "offline")
    steps = [step for step in change["defenders"] if step["state"] in order]
    return sorted(steps, key=lambda step: (order.index(step["state"]), step["name"]))


async def watch(
    client: Client, title: str, change: Mapping[str, Any], look: Look, *, limit: float, quiet: bool
) -> Mapping[str, Any]:
    """Show a change until it is over, or for `limit` seconds; returns its last state."""
    view: _Lines | _Block | _Nothing
    view = _Nothing() if quiet else _Block(title) if sys.stdout.isatty() else _Lines(title)
    begun = client.seconds()
    version = change.get("version")
    with view:
        view.show(change)
        while not is_over(change) and client.seconds() - begun < limit:
            await client.pause(POLL)
            seen = await look()
            if seen.get("version") != version:
                # Another version has taken its place; the last that was seen of this one stands.
                return {**change, "state": "superseded"}
            change = seen
            view.show(change)
    return change


def conclude(title: str, change: Mapping[str, Any], *, as_json: bool, waited: bool) -> None:
    """Print how it stands in the end; the command ends with 1 if it failed, or was not done in time."""
    counts, state = change["counts"], change.get("state", "")
    if as_json:
        print_json(change)
    else:
        for step in unfinished(change)[:MOST_LINES] if not sys.stdout.isatty() else ():
            print_line(_line(step))
        print_line(f"{title}: {summary(change)}.")
    if state == "halted":
        complain(f"halted: {change.get('detail') or 'nobody says why'}")
    elif state == "aborted":
        complain(f"aborted{': ' if change.get('detail') else ''}{change.get('detail', '')}")
    elif state == "superseded":
        complain("a newer version has taken its place")
    elif waited and not is_over(change):
        complain("not done yet; it goes on without you")
    elif counts["offline"] and not as_json:
        print_line(f"{counted(counts['offline'], 'defender')} offline: it follows when they are back.")
    failed = counts["refused"] or state in ("halted", "aborted", "superseded")
    if failed or (waited and not is_over(change)):
        raise SystemExit(REFUSED)


def _line(step: Mapping[str, Any]) -> str:
    return f"  {step['name']}: {step['state']}" + (f": {step['detail']}" if step["detail"] else "")


class _Nothing:
    """Shows nothing."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, change: Mapping[str, Any]) -> None:
        """Nothing."""


class _Lines(_Nothing):
    """A line for each change of the numbers."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._last = ""

    def show(self, change: Mapping[str, Any]) -> None:
        """Print it, if it is news."""
        text = f"{self._title}: {summary(change)}"
        if text != self._last and not is_over(change):
            self._last = text
            print_line(text)
            sys.stdout.flush()


class _Block(_Nothing):
    """Numbers and names that are drawn anew."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._live = Live(console=console(), auto_refresh=False, transient=False)

    def __enter__(self) -> None:
        self._live.start()

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, change: Mapping[str, Any]) -> None:
        """Draw it."""
        left = unfinished(change)
        lines = [Text(printable(f"{self._title}: {summary(change)}"), style="bold")]
        lines += [
            Text(printable(_line(step)), style=_STYLES[step["state"]], no_wrap=True, overflow="ellipsis")
            for step in left[:MOST_LINES]
        ]
        if len(left) > MOST_LINES:
            lines.append(Text(f"  and {len(left) - MOST_LINES} more", style="dim"))
        self._live.update(Group(*lines), refresh=True)
