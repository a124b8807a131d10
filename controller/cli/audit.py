"""`defenderctl audit`: reads what a defender recorded."""

from __future__ import annotations

import difflib
import io
import json
import os
import re
import shutil
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from controller.cli.event_lines import EventFiles, Line
from controller.cli.output import MAX_WIDTH, complain, state_option
from defender.contract.actions import KNOWN_NAMES, names_of
from defender.contract.audit import REQUIRED, SCHEMA_VERSION, timestamp
from defender.contract.pattern import compile_glob, is_glob
from defender.contract.rule import ACTIONS

POLL: Final = 0.2
"""Seconds between two looks at a file that is followed."""

_UNITS: Final[Mapping[str, int]] = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_AGO: Final = re.compile(r"([0-9]{1,9})([smhd])")
# The clock may have been set back in between: only what is this much older ends a search backwards.
_SLACK: Final = timedelta(hours=1)


class Since(click.ParamType[datetime]):
    """A moment: so long ago (`30s`, `10m`, `2h`, `7d`), or ISO 8601, local time if it names no zone."""

    name = "TIME"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """The moment in UTC; a usage error for anything else."""
        if isinstance(value, datetime):
            return value
        text = str(value)
        try:
            if ago := _AGO.fullmatch(text):
                return datetime.now(UTC) - timedelta(seconds=int(ago[1]) * _UNITS[ago[2]])
            return datetime.fromisoformat(text).astimezone(UTC)
        except (ValueError, OverflowError, OSError):
            self.fail(f"{text!r} is no time; write 30s, 10m, 2h, 7d or 2026-11-21T22:13:03Z", param, ctx)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events are shown; every condition that is given must hold."""

    users: tuple[Callable[[str], bool], ...] = ()
    actions: tuple[Callable[[str], bool], ...] = ()
    denied: bool = False
    since: str = ""

    def __call__(self, event: Mapping[str, Any]) -> bool:
        """Whether an event is wanted."""
        if self.since and event["ts_wall"] < self.since:
            return False
        if self.denied and _part(event, "decision").get("effect") != "deny":
            return False
        if self.users:
            user = str(_part(event, "actor").get("user", "")).casefold()
            if not any(matches(user) for matches in self.users):
                return False
        if self.actions:
            action = str(_part(event, "req").get("action", ""))
            names = {action, *(names_of(action) if action in ACTIONS else ())}
            return any(matches(name.casefold()) for matches in self.actions for name in names)
        return True


def _part(event: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = event.get(key)
    return part if isinstance(part, dict) else {}


class Reading:
    """Turns lines into events; what is damaged is named on standard error and counted."""

    def __init__(self) -> None:
        self.damaged = 0

    def event(self, line: Line) -> dict[str, Any] | None:
        """The event of a line, None if there is none to show."""
        if not line.whole:
            self._damage(line, "the line is cut off")
            return None
        try:
            event = json.loads(line.data)
        except (ValueError, RecursionError):
            self._damage(line, "is not JSON")
            return None
        if not isinstance(event, dict):
            self._damage(line, "is not an event")
            return None
        if event.get("v") != SCHEMA_VERSION:
            self._damage(line, f"is an event of version {event.get('v')!r}, which is not known here")
            return None
        if any(key not in event for key in REQUIRED) or not isinstance(event["ts_wall"], str):
            self._damage(line, "is not a complete event")
            return None
        return event

    def _damage(self, line: Line, what: str) -> None:
        self.damaged += 1
        complain(f"{line.place()}: {what}; passed over")


@click.group()
def audit() -> None:
    """Show what was asked, by whom, and what was decided."""


@audit.command(
    epilog="\b\nExamples:\n  defenderctl audit tail -f\n  defenderctl audit tail --denied --since 1h\n"
    "  defenderctl audit tail --user 'ci-*' --action 'container_*' -n 50\n"
    "  defenderctl audit tail --json --since 2026-11-21 | jq .req"
)
@click.option("-f", "--follow", is_flag=True, help="Go on with new events until Ctrl-C.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(min=0),
    help="Show at most the last N of the events asked for.  [default: 20; with --since, all]",
)
@click.option("--user", "users", multiple=True, metavar="GLOB", help="Of this user; may be repeated.")
@click.option(
    "--action",
    "actions",
    multiple=True,
    metavar="GLOB",
    help="Of this action, by any of its names; may be repeated.",
)
@click.option("--denied", is_flag=True, help="Only what was denied.")
@click.option("--since", type=Since(), help="From this time on: 10m, 2h, 7d ago, or an ISO date and time.")
@click.option("--json", "as_json", is_flag=True, help="Print the lines exactly as they are stored.")
@click.option(
    "--file",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Read this file of events instead of the defender's.",
)
@state_option
def tail(
    follow: bool,
    lines: int | None,
    users: tuple[str, ...],
    actions: tuple[str, ...],
    denied: bool,
    since: datetime | None,
    as_json: bool,
    file: Path | None,
    state: Path,
) -> None:
    """Show the last events, oldest first.

    Times are UTC. Patterns know `*` and `?` and do not tell upper case from lower. Exit code 1: there is no
    file, or lines of it could not be read.
    """
    for action in actions:
        _check_action(action)
    wanted = Wanted(
        tuple(compile_glob(user) for user in users),
        tuple(compile_glob(action) for action in actions),
        denied,
        timestamp(since.timestamp()) if since else "",
    )
    path = file or event_file(state)
    count = lines if lines is not None else (None if since else 20)
    reading = Reading()
    try:
        _tail(
            EventFiles(path), reading, wanted, count, follow, _json_writer() if as_json else _table_writer()
        )
        sys.stdout.flush()
    except KeyboardInterrupt:
        _quiet_end(130)
    except BrokenPipeError:
        _quiet_end(0)
    except FileNotFoundError:
        raise click.ClickException(
            f"{path}: there is no such file; has a defender run here? (--state DIR, --file FILE)"
        ) from None
    except OSError as error:
        hint = "; try it as root or as the defender's user" if isinstance(error, PermissionError) else ""
        raise click.ClickException(f"{path}: cannot be read: {error.strerror or error}{hint}") from None
    if reading.damaged:
        sys.exit(1)


def _quiet_end(code: int) -> None:
    # What is still buffered would raise again when the interpreter closes standard output.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _check_action(pattern: str) -> None:
    if is_glob(pattern) or pattern.casefold() in KNOWN_NAMES:
        return
    near = difflib.get_close_matches(pattern.casefold(), KNOWN_NAMES, n=1)
    if near:
        complain(f"No operation is called {pattern!r}; did you mean {near[0]!r}?")


def event_file(state: Path) -> Path:
    """Where the defender with this state directory keeps its events: as its settings say, else the
    default.
    """
    for directory in (state, state / "defender"):
        for name in ("defender.toml", "settings.toml"):
            try:
                document = tomllib.loads((directory / name).read_text("utf-8"))
            except (OSError, ValueError):
                continue
            own = _part(document, "defender").get("state")
            given = _part(document, "audit").get("file")
            if isinstance(given, str):
                return directory / given
            if isinstance(own, str):
                return directory / own / "audit" / "events.jsonl"
    for directory in (state, state / "defender"):
        path = directory / "audit" / "events.jsonl"
        if path.exists():
            return path
    return state / "audit" / "events.jsonl"


_Writer = Callable[[Line, Mapping[str, Any]], None]


def _tail(
    files: EventFiles, reading: Reading, wanted: Wanted, count: int | None, follow: bool, write: _Writer
) -> None:
    try:
        shown = list(_last(files, reading, wanted, count, follow))
    except FileNotFoundError:
        if not follow:
            raise
        complain(f"{files.path}: waiting for the file")
        shown = []
    for line, event in reversed(shown):
        write(line, event)
    while follow:
        sys.stdout.flush()
        for line in files.grown():
            if isinstance(line, str):
                complain(line)
                continue
            event = reading.event(line)
            if event is not None and wanted(event):
                write(line, event)
        sys.stdout.flush()
        time.sleep(POLL)


def _last(
    files: EventFiles, reading: Reading, wanted: Wanted, count: int | None, follow: bool
) -> Iterator[tuple[Line, dict[str, Any]]]:
    """The last `count` events that are wanted, newest first."""
    oldest = ""
    if wanted.since:
        moment = datetime.fromisoformat(wanted.since) - _SLACK
        oldest = timestamp(moment.timestamp())
    found = 0
    for number, line in enumerate(files.backwards()):
        if found == count:
            return
        if number == 0 and follow and not line.whole:
            continue  # the defender is still writing it
        event = reading.event(line)
        if event is None:
            continue
        if event["ts_wall"] < oldest:
            return
        if wanted(event):
            found += 1
            yield line, event


def _json_writer() -> _Writer:
    def write(line: Line, event: Mapping[str, Any]) -> None:
        sys.stdout.buffer.write(line.data + b"\n")

    return write


# The table: name, least width, share of what a wider terminal has to give.
_COLUMNS: Final = (
    ("TIME (UTC)", 14, 0),
    ("USER", 17, 2),
    ("ACTION", 20, 1),
    ("TARGET", 17, 4),
    ("RESULT", 10, 0),
    ("RULE", 9, 1),
    ("MS", 7, 0),
)


def _table_writer() -> _Writer:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a name must not end the command where the locale lacks it
    tty = sys.stdout.isatty()
    width = max(shutil.get_terminal_size((MAX_WIDTH, 24)).columns, MAX_WIDTH) if tty else MAX_WIDTH
    console = Console(file=sys.stdout, highlight=False, emoji=False, soft_wrap=True, width=width)
    spare = width - sum(least for _, least, _ in _COLUMNS) - (len(_COLUMNS) - 1)
    shares = sum(share for _, _, share in _COLUMNS)
    widths = [least + spare * share // shares for _, least, share in _COLUMNS]
    headed = False

    def write(line: Line, event: Mapping[str, Any]) -> None:
        nonlocal headed
        if not headed:
            headed = True
            console.print(_row([name for name, _, _ in _COLUMNS], widths, ["bold"] * len(_COLUMNS)))
        result, style = _result(event)
        console.print(_row(_cells(event, result), widths, ["dim", "", "", "", style, "dim", "dim"]))

    return write


def _row(cells: list[str], widths: list[int], styles: list[str]) -> Text:
    text = Text(no_wrap=True)
    for place, (cell, width, style) in enumerate(zip(cells, widths, styles, strict=True)):
        shown = _fit(cell, width)
        if place == len(widths) - 1:
            shown = shown.strip().rjust(width)
        text.append(shown, style=style)
        if place < len(widths) - 1:
            text.append(" ")
    text.rstrip()
    return text


def _fit(text: str, width: int) -> str:
    text = visible(text)
    if cell_len(text) > width:
        return set_cell_size(text, width - 1) + "…"
    return set_cell_size(text, width)


def visible(text: str) -> str:
    """Text of other people, with what could steer a terminal shown as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _cells(event: Mapping[str, Any], result: str) -> list[str]:
    request, decision = _part(event, "req"), _part(event, "decision")
    elapsed = _part(event, "result").get("ms", "")
    if isinstance(elapsed, (int, float)):
        elapsed = _span(elapsed)
    actor = _part(event, "actor")
    user = str(actor.get("user", "")) or ("-" if actor.get("via") != "defender" else "(defender)")
    return [
        event["ts_wall"][5:19].replace("T", " "),
        user,
        str(request.get("action", "")),
        _target(event),
        result,
        str(decision.get("rule", "")),
        str(elapsed),
    ]


def _span(milliseconds: float) -> str:
    try:
        span = float(milliseconds)
    except OverflowError:  # an integer that no clock measured
        return "?"
    return f"{span:.1f}" if span < 10_000 else f"{span / 1000:.0f}s"


def _target(event: Mapping[str, Any]) -> str:
    """What the call was about; for other events what a person wants to know of them."""
    request, result = _part(event, "req"), _part(event, "result")
    if event["kind"] == "engine":
        path = str(request.get("path", "")) if request.get("action") == "unknown" else ""
        return str(request.get("target", "")) or path
    problems = result.get("problems")
    if isinstance(problems, list) and problems:
        return str(problems[0])
    for text in (
        result.get("detail"),
        _part(event, "decision").get("reason"),
        result.get("reason"),
        request.get("target"),
        result.get("program"),
    ):
        if text:
            return str(text)
    return ""


def _result(event: Mapping[str, Any]) -> tuple[str, str]:
    """Effect and status in a word or two, and their style."""
    result = _part(event, "result")
    effect = str(_part(event, "decision").get("effect", ""))
    if event["kind"] == "gap":
        return f"lost {result.get('dropped', '?')}", "bold red"
    if event["kind"] != "engine":
        if effect == "deny":
            return "deny", "red"
        return ("ok", "green") if result.get("ok") else ("failed", "bold red")
    if event["phase"] == "attempt":
        return "attempt", "dim"
    if event["phase"] == "stream_end":
        return "end", "dim" if not result.get("error") else "yellow"
    status = result.get("status", "")
    if effect == "deny":
        return f"deny {status}", "red"
    broken = not isinstance(status, int) or status >= 500 or status == 0
    return f"{effect} {status}", "yellow" if broken else "green"
