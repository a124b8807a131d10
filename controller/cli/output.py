"""What every command of `defenderctl` prints with, and the option that every local one has.

Tables fit 100 columns and are plain where standard output is not a terminal; `--json` prints one document for
programs.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from defender.contract.errors import one_line

MAX_WIDTH = 100
"""The widest table, in columns."""

_Command = TypeVar("_Command", bound=Callable[..., Any])


def console(*, stderr: bool = False) -> Console:
    """A console at most `MAX_WIDTH` wide; without a terminal exactly so, and without colors."""
    stream = sys.stderr if stderr else sys.stdout
    width = (
        min(shutil.get_terminal_size((MAX_WIDTH, 24)).columns, MAX_WIDTH) if stream.isatty() else MAX_WIDTH
    )
    return Console(file=stream, width=width, highlight=False, emoji=False, soft_wrap=False)


def printable(text: object) -> str:
    """Other people's text for a terminal: control characters are shown as escapes."""
    return one_line(str(text))


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, styles: Sequence[str] = (), fold: int = -1
) -> None:
    """Print an aligned table.

    `styles` are rich's, one a column ("" for none); `fold` is the column that takes what width is left and is
    broken at words; the others stay on one line as long as they can.
    """
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="bold")
    last = fold % len(columns)
    for place, column in enumerate(columns):
        style = styles[place] if place < len(styles) else ""
        table.add_column(
            column.upper(), style=style or None, overflow="fold", ratio=1 if place == last else None
        )
    for row in rows:
        # Text objects: brackets in names are no markup.
        table.add_row(*(Text(printable(cell)) for cell in row))
    target = console()
    with target.capture() as captured:
        target.print(table)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def print_line(text: str, *, style: str = "") -> None:
    """Print one paragraph: broken at words on a terminal, one line elsewhere; control characters are
    escaped."""
    target = console()
    target.print(Text(printable(text)), style=style or None, soft_wrap=not target.is_terminal)


def print_json(document: object) -> None:
    """Print one JSON document, indented; text stays readable, what could steer a terminal is escaped."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    # Outside of its strings JSON has nothing that does not print but line ends.
    shown = (c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
    click.echo("".join(shown).replace("\x7f", "\\u007f"))


def complain(text: str) -> None:
    """Print an error, a line for each of its lines, on standard error."""
    for line in text.splitlines():
        click.echo(printable(line), err=True)


def state_option(command: _Command) -> _Command:
    """Add `--state DIR` to a local command: the argument `state` is a `Path`."""
    option = click.option(
        "--state",
        type=click.Path(file_okay=False, path_type=Path),
        envvar="FLEET_STATE",
        default=".state",
        show_default="$FLEET_STATE or .state",
        help="Directory where this machine's defender keeps its files.",
    )
    return option(command)


def json_option(command: _Command) -> _Command:
    """Add `--json` to a command: the argument `as_json` is a truth value."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)
