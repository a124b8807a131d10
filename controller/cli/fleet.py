"""What every command that speaks with a controller has in common.

Such a command names, on standard error, the controller that it spoke to: standard output is for the answer.
Whatever the controller refuses is one line there as well, with exit code 1.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NoReturn, TypeVar
from urllib.parse import quote

import click

from controller.cli.client import Client, ClientError, run
from controller.cli.login import Login, LoginError, login_file, read_login
from controller.cli.output import complain, print_table
from defender.contract.local import LONGEST_DRAIN

REFUSED: Final = 1
INTERRUPTED: Final = 130

_UNITS: Final[Mapping[str, int]] = {"s": 1, "m": 60, "h": 3600, "d": 86400}

_T = TypeVar("_T")
_Command = TypeVar("_Command", bound=Callable[..., Any])


def fail(text: str) -> NoReturn:
    """End the command with one line and exit code 1."""
    complain(text)
    raise SystemExit(REFUSED)


def signed_in() -> Login:
    """The sign-in that is kept; without a usable one the command ends."""
    try:
        login = read_login(login_file(os.environ))
    except LoginError as error:
        fail(str(error))
    if login.is_over:
        fail(f"the sign-in at {login.controller} has ended; sign in again: defenderctl login")
    return login


def with_controller(
    act: Callable[[Client], Awaitable[_T]], login: Login | None = None, *, again: bool = False
) -> _T:
    """Run `act` with a client of the controller where somebody is signed in, and name it.

    `again`: this command has named it already. What asks a person something stands between two runs, not in
    one: the reactor takes Ctrl-C for itself.
    """
    known = login or signed_in()
    who = f" as {known.user}" if known.user else ""
    if not again:
        complain(f"controller {known.controller.removeprefix('https://')}{who}")
    try:
        return run(known, act)
    except ClientError as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


def ask(method: str, path: str, *, body: Any = None, query: Mapping[str, Any] | None = None) -> Any:
    """The document of one answer."""

    async def act(client: Client) -> Any:
        return (await client.ask(method, path, body=body, query=query)).document

    return with_controller(act)


def listed(path: str, query: Mapping[str, Any] | None = None) -> list[Any]:
    """Every item of a list."""

    async def act(client: Client) -> list[Any]:
        return [item async for item in client.pages(path, query)]

    return with_controller(act)


def part(text: str) -> str:
    """A text as one part of a path."""
    return quote(text, safe="")


def label_option(told: str) -> Callable[[_Command], _Command]:
    """Add `--label K=V`: the argument `labels` is a mapping."""
    return click.option(
        "--label", "labels", multiple=True, metavar="K=V", callback=_labels, help=f"{told} May be repeated."
    )


def _labels(ctx: click.Context, param: click.Parameter, given: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in given:
        key, mark, value = pair.partition("=")
        if not mark or not key:
            raise click.BadParameter(f"{pair!r} is not K=V", ctx, param)
        if found.setdefault(key, value) != value:
            raise click.BadParameter(f"two values for {key}", ctx, param)
    return found


class Seconds(click.ParamType[int]):
    """A span of time: 90s, 10m, 2h, 7d.

    Args:
        zero: whether 0 may be written without a unit, and stands for no limit.
        most: the longest, in seconds.
    """

    name = "TIME"

    def __init__(self, *, zero: bool = False, most: float = LONGEST_DRAIN) -> None:
        self._zero = zero
        self._most = most

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The seconds; a usage error for anything else."""
        if isinstance(value, int):
            return value
        text = str(value)
        if self._zero and text == "0":
            return 0
        number, unit = text[:-1], text[-1:]
        if not (number.isascii() and number.isdigit() and len(number) < 10 and unit in _UNITS):
            also = ", or 0 for no limit" if self._zero else ""
            self.fail(f"{text!r} is no span of time; write 90s, 10m, 2h or 7d{also}", param, ctx)
        seconds = int(number) * _UNITS[unit]
        if seconds > self._most:
            self.fail(f"{text!r} is longer than {self._most / 86400:g} days", param, ctx)
        return seconds


def shown_time(text: str | None) -> str:
    """A time of an answer for a table: UTC, to the second; `-` for none."""
    return text[:19].replace("T", " ") if text else "-"


def ago(text: str | None) -> str:
    """How long ago a time of an answer was, by this machine's clock; `-` for none."""
    if not text:
        return "-"
    seconds = (datetime.now(UTC) - datetime.fromisoformat(text)).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def shown_labels(labels: Mapping[str, str]) -> str:
    """Labels in one cell."""
    return ", ".join(f"{key}={value}" for key, value in sorted(labels.items())) or "-"


def counted(count: int, noun: str) -> str:
    """`1 defender`, `2 defenders`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def print_items(
    items: list[Any], columns: Mapping[str, Callable[[Any], object]], nothing: str, *, fold: int
) -> None:
    """A table of items, a column for each function; `nothing` where there are none."""
    if items:
        print_table(tuple(columns), [[show(item) for show in columns.values()] for item in items], fold=fold)
    else:
        click.echo(nothing)


def print_json_line(document: object) -> None:
    """One object on one line, for programs that read lines."""
    click.echo(json.dumps(document, separators=(",", ":")))


def confirmed(question: str, yes: bool, *, needed: bool) -> None:
    """Ask on a terminal, unless it was said already; elsewhere go on, or with `needed` want `--yes`."""
    if yes:
        return
    if sys.stdin.isatty():
        if not click.confirm(question, err=True):
            raise SystemExit(REFUSED)
    elif needed:
        raise click.UsageError("nobody can be asked here; say it with --yes")
