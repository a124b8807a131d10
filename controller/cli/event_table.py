"""How `defenderctl audit tail` shows events: a table for people, lines of JSON for programs.

What is amiss in the spool stands where the events should be: for people as a line of the table, for programs
as a `gap` event, and on standard error what no event can say.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import sys
from collections.abc import Mapping
from typing import Any, Final, Protocol

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from controller.cli.output import MAX_WIDTH, complain
from defender.contract.audit import SCHEMA_VERSION, Event, gap_event, to_line
from defender.contract.packing import identity_text, timestamp_of
from defender.contract.spool_reading import Finding, Trouble


class Writer(Protocol):
    """Prints what a reading of the spool gives, in its order."""

    def event(self, event: Event) -> None:
        """Print one event."""

    def finding(self, finding: Finding, agent: str, micros: int) -> None:
        """Print what is amiss, found at the time `micros` (unix microseconds) of the defender `agent`."""


def part(event: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A part of an event that should be a map; an empty one if it is not."""
    value = event.get(key)
    return value if isinstance(value, dict) else {}


def describe(finding: Finding) -> str:
    """A finding in a line: where, what, and which events are missing."""
    place = f"{finding.file}, byte {finding.offset}" if finding.offset else finding.file
    text = f"{place}: {finding.reason}" if place else finding.reason
    if not finding.missing:
        return text
    if finding.missing == 1:
        return f"{text}; event {finding.first_seq} is missing"
    return f"{text}; the {finding.missing} events from {finding.first_seq} to {finding.last_seq} are missing"


class JsonWriter:
    """Prints each event as a line of JSON; events that are missing as a `gap` event in their place."""

    def event(self, event: Event) -> None:
        """Print one event."""
        sys.stdout.buffer.write(to_line(event))

    def finding(self, finding: Finding, agent: str, micros: int) -> None:
        """Print it on standard error, and as an event if it is known which are missing."""
        complain(describe(finding))
        if finding.missing:
            sys.stdout.buffer.write(to_line(event_of(finding, agent, micros)))


def event_of(finding: Finding, agent: str, micros: int) -> Event:
    """The `gap` event that stands for missing events; the same each time that it is found."""
    epoch = f"{finding.epoch:016x}"
    text = f"{agent} {epoch} {finding.first_seq} {finding.last_seq}"
    digest = hashlib.sha256(text.encode()).digest()
    identity = bytearray((micros // 1000).to_bytes(8, "big")[2:] + digest[:10])
    identity[6] = 0x70 | identity[6] & 0x0F
    identity[8] = 0x80 | identity[8] & 0x3F
    name = identity_text(bytes(identity))
    body = gap_event(finding.missing, finding.first_seq, 0.0, describe(finding))
    return {
        "v": SCHEMA_VERSION,
        "id": name,
        "agent": agent,
        "epoch": epoch,
        "seq": finding.last_seq,
        "ts_wall": timestamp_of(micros),
        **body,
        "corr": name,
    }


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
_FLEET_COLUMNS: Final = (
    ("TIME (UTC)", 14, 0),
    ("HOST", 10, 1),
    ("USER", 13, 2),
    ("ACTION", 19, 1),
    ("TARGET", 12, 4),
    ("RESULT", 10, 0),
    ("RULE", 8, 1),
    ("MS", 7, 0),
)
_HOST: Final = 1
"""The place of the column that only a fleet's table has."""


class TableWriter:
    """Prints for people: aligned, colored on a terminal, 100 columns or as many as that has.

    `fleet`: with a column for the host, since the events are of many.
    """

    def __init__(self, *, fleet: bool = False) -> None:
        self._fleet = fleet
        self._columns = _FLEET_COLUMNS if fleet else _COLUMNS
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A name must not end the command where the locale lacks it.
            sys.stdout.reconfigure(errors="replace")
        tty = sys.stdout.isatty()
        width = max(shutil.get_terminal_size((MAX_WIDTH, 24)).columns, MAX_WIDTH) if tty else MAX_WIDTH
        self._console = Console(file=sys.stdout, highlight=False, emoji=False, soft_wrap=True, width=width)
        spare = width - sum(least for _, least, _ in self._columns) - (len(self._columns) - 1)
        shares = sum(share for _, _, share in self._columns)
        self._widths = [least + spare * share // shares for _, least, share in self._columns]
        self._headed = False

    def event(self, event: Event) -> None:
        """Print one row."""
        result, style = _result(event)
        cells, styles = _cells(event, result), ["dim", "", "", "", style, "dim", "dim"]
        if self._fleet:
            cells.insert(_HOST, str(event.get("agent", "")))
            styles.insert(_HOST, "")
        self._row(cells, styles)

    def finding(self, finding: Finding, agent: str, micros: int) -> None:
        """Print a row, and below it, where a row has no room, what it is about."""
        cells = [
            timestamp_of(micros)[5:19].replace("T", " "),
            "",
            f"audit_{finding.trouble.value}",
            finding.file,
            f"lost {finding.missing or '?'}" if finding.missing or finding.trouble in _LOSSES else "broken",
            "",
            "",
        ]
        if self._fleet:
            cells.insert(_HOST, agent)
        style = "dim" if finding.harmless else "bold red"
        self._row(cells, [style] * len(cells))
        self._console.print(Text(f"  {visible(describe(finding))}", style=style))

    def _row(self, cells: list[str], styles: list[str]) -> None:
        if not self._headed:
            self._headed = True
            names = [name for name, _, _ in self._columns]
            self._console.print(_row(names, self._widths, ["bold"] * len(names)))
        self._console.print(_row(cells, self._widths, styles))


_LOSSES: Final = frozenset({Trouble.GAP, Trouble.UNCLOSED, Trouble.DAMAGE})


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
    request, decision = part(event, "req"), part(event, "decision")
    elapsed = part(event, "result").get("ms", "")
    if isinstance(elapsed, (int, float)):
        elapsed = _span(elapsed)
    actor = part(event, "actor")
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
    request, result = part(event, "req"), part(event, "result")
    if event["kind"] == "engine":
        return f"{result['count']} times" if "count" in result else _object(request)
    problems = result.get("problems")
    if isinstance(problems, list) and problems:
        return str(problems[0])
    for text in (
        result.get("detail"),
        part(event, "decision").get("reason"),
        result.get("reason"),
        request.get("target"),
        result.get("program"),
    ):
        if text:
            return str(text)
    return ""


def _object(request: Mapping[str, Any]) -> str:
    """The container, image or other object of a call, by its name where that is known; what is run in it."""
    if request.get("action") == "unknown":
        return str(request.get("target") or request.get("path", ""))
    body = part(request, "body")
    name = part(request, "container").get("name") or request.get("target") or body.get("image") or ""
    command = body.get("command")
    if request.get("action") == "container_exec_create" and isinstance(command, list):
        return f"{name}: {' '.join(map(str, command))}"
    return str(name)


def _result(event: Mapping[str, Any]) -> tuple[str, str]:
    """Effect and status in a word or two, and their style."""
    result = part(event, "result")
    effect = str(part(event, "decision").get("effect", ""))
    if event["kind"] == "gap":
        return f"lost {result.get('dropped') or '?'}", "bold red"
    if event["kind"] != "engine":
        if effect == "deny":
            return "deny", "red"
        # What people do at the controller has no result: a change that was refused is a denial.
        return ("ok", "green") if result.get("ok", not result) else ("failed", "bold red")
    if event["phase"] == "attempt":
        return "attempt", "dim"
    if event["phase"] == "stream_end":
        return "end", "dim" if not result.get("error") else "yellow"
    status = result.get("status", "")
    if effect == "deny":
        return f"deny {status}", "red"
    broken = not isinstance(status, int) or status >= 500 or status == 0
    return f"{effect} {status}", "yellow" if broken else "green"
