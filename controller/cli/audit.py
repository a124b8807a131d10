"""`defenderctl audit`: reads what a defender recorded.

What speaks with a controller is in `controller.cli.fleet_audit`, and imported when it is used.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import click
from click.core import ParameterSource

from controller.cli.event_table import JsonWriter, TableWriter, Writer, part
from controller.cli.groups import LazyGroup
from controller.cli.login import login_file
from controller.cli.output import complain, json_option, state_option
from controller.cli.spool_check import verify_spool
from controller.cli.spool_files import Follower, SpoolFiles, spool_of
from defender.contract.actions import KNOWN_NAMES, names_of
from defender.contract.audit import Event
from defender.contract.packing import micros_of, unpack
from defender.contract.pattern import compile_glob, is_glob
from defender.contract.rule import ACTIONS
from defender.contract.spool import SpoolError
from defender.contract.spool_order import NO_HEADER, Epoch, Segment
from defender.contract.spool_reading import (
    Entry,
    Finding,
    Item,
    Trouble,
    Walk,
    foreign_findings,
    walk,
)

POLL: Final = 0.1
"""Seconds between two looks at a spool that is followed."""

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
    """Which events are shown; every condition that is given must hold. `since` is unix microseconds."""

    users: tuple[Callable[[str], bool], ...] = ()
    actions: tuple[Callable[[str], bool], ...] = ()
    denied: bool = False
    since: int = 0

    @property
    def selective(self) -> bool:
        """Whether an event must be looked into to know."""
        return bool(self.users or self.actions or self.denied)

    def may(self, payload: bytes) -> bool:
        """Whether a record may hold a wanted event; quick, and before it is unpacked."""
        if self.since and 0 < micros_of(payload) < self.since:
            return False
        return not self.denied or _DENIED in payload

    def __call__(self, event: Mapping[str, object]) -> bool:
        """Whether an event is wanted, of those that `may` let through."""
        if self.denied and part(event, "decision").get("effect") != "deny":
            return False
        if self.users:
            user = str(part(event, "actor").get("user", "")).casefold()
            if not any(matches(user) for matches in self.users):
                return False
        if self.actions:
            action = str(part(event, "req").get("action", ""))
            names = {action, *(names_of(action) if action in ACTIONS else ())}
            return any(matches(name.casefold()) for matches in self.actions for name in names)
        return True


_DENIED: Final = b"\xa6effect\xa4deny"
_BROKEN: Final = frozenset({Trouble.DAMAGE, Trouble.CHAIN, Trouble.CONFLICT, Trouble.FOREIGN})


@dataclass(frozen=True, slots=True)
class Note:
    """A finding, and when and in whose records it was found."""

    finding: Finding
    agent: str
    micros: int


class Reading:
    """Chooses the records of wanted events, and keeps what is amiss in its place among them."""

    def __init__(self, wanted: Wanted, writer: Writer) -> None:
        self.broken = False
        """Whether something that was shown could not be read, or was altered."""
        self._wanted = wanted
        self._writer = writer
        self._agent = ""
        self._micros = 0

    def choose(self, items: Iterable[Item]) -> Iterator[Entry | Note]:
        """What is to be shown, in order. A finding before the first event that is recent enough is not."""
        wanted = self._wanted
        waiting: list[Finding] = []
        for item in items:
            if isinstance(item, Finding):
                if not item.harmless:
                    waiting.append(item)
                continue
            payload = item.record.payload
            self._agent, self._micros = item.epoch.agent, micros_of(payload)
            if waiting:
                if self._micros >= wanted.since:
                    yield from map(self._note, waiting)
                waiting.clear()
            if wanted.may(payload) and (not wanted.selective or self._matches(item)):
                yield item
        yield from map(self._note, waiting)

    def _matches(self, entry: Entry) -> bool:
        try:
            return self._wanted(_event(entry))
        except SpoolError:
            return True  # nobody knows; it is shown as what it is

    def _note(self, finding: Finding) -> Note:
        return Note(finding, self._agent, self._micros)

    def show(self, line: Entry | Note) -> None:
        """Print it."""
        if isinstance(line, Entry):
            try:
                self._writer.event(_event(line))
                return
            except SpoolError as error:
                seq, segment, offset = line.record.seq, line.segment.name, line.record.offset
                trouble = Finding(Trouble.DAMAGE, line.epoch.number, segment, offset, seq, seq, str(error))
                line = Note(trouble, line.epoch.agent, micros_of(line.record.payload))
        self.broken = self.broken or line.finding.trouble in _BROKEN
        self._writer.finding(line.finding, line.agent, line.micros)


def _event(entry: Entry) -> Event:
    record = entry.record
    return unpack(record.payload, agent=entry.epoch.agent, epoch=entry.epoch.number, seq=record.seq)


FLEET: Final = {
    "export": ("controller.cli.fleet_audit:export", "Write the fleet's events to a file."),
    "search": ("controller.cli.fleet_audit:search", "Search the fleet's events."),
}
"""Commands that speak with a controller."""


@click.group(cls=LazyGroup, places=FLEET)
def audit() -> None:
    """Show what was asked, by whom, and what was decided.

    \b
    Examples:
      defenderctl audit tail -f
      defenderctl audit search --user 'ci-*' --denied --since 7d
    """


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
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each event.")
@click.option(
    "--fleet", is_flag=True, help="Of the whole fleet, from the controller where you are signed in."
)
@click.option("--defender", "defenders", multiple=True, metavar="GLOB", help="With a fleet: of this one.")
@click.option("--after", metavar="POSITION", help="With a fleet: go on where another tail has ended.")
@click.option(
    "--spool",
    "spool",
    type=click.Path(path_type=Path),
    help="Read this directory, or this one segment, instead of the defender's spool.",
)
@state_option
@click.pass_context
def tail(
    ctx: click.Context,
    follow: bool,
    lines: int | None,
    users: tuple[str, ...],
    actions: tuple[str, ...],
    denied: bool,
    since: datetime | None,
    as_json: bool,
    fleet: bool,
    defenders: tuple[str, ...],
    after: str | None,
    spool: Path | None,
    state: Path,
) -> None:
    """Show the last events, oldest first.

    Of this host with --state, --spool or $FLEET_STATE. Without them: of the fleet, if you are signed in at a
    controller (`defenderctl login`); otherwise of this host.

    Times are UTC. Patterns know `*` and `?` and do not tell upper case from lower. What is missing or damaged
    is shown in its place. Exit code 1: there is no spool, or something in it is damaged.
    """
    for action in actions:
        _check_action(action)
    asked_fleet = fleet or bool(defenders) or after is not None
    if asked_fleet and spool is not None:
        raise click.UsageError("--spool is about this host; it does not go with --fleet, --defender, --after")
    said = spool is not None or ctx.get_parameter_source("state") is not ParameterSource.DEFAULT
    if asked_fleet or (not said and login_file(os.environ).exists()):
        from controller.cli.fleet_audit import Query, tail_fleet  # it imports Twisted

        query = Query(users, actions, defenders, denied, since)
        tail_fleet(query, count=lines, after=after or "", follow=follow, as_json=as_json)
        return
    wanted = Wanted(
        tuple(compile_glob(user) for user in users),
        tuple(compile_glob(action) for action in actions),
        denied,
        max(int(since.timestamp() * 1_000_000), 0) if since else 0,
    )
    files = _files(spool, state)
    count = lines if lines is not None else (None if since else 20)
    reading = Reading(wanted, JsonWriter() if as_json else TableWriter())
    with _reading_of(files.path):
        _tail(files, reading, wanted, count, follow)
    if reading.broken:
        sys.exit(1)


@audit.command(
    epilog="\b\nExamples:\n  defenderctl audit verify\n  defenderctl audit verify --spool /mnt/copy/audit\n"
    "  defenderctl audit verify --fleet --day 2026-11-21"
)
@click.option(
    "--spool",
    "spool",
    type=click.Path(path_type=Path),
    help="Read this directory, or this one segment, instead of the defender's spool.",
)
@click.option(
    "--fleet", is_flag=True, help="What the controller has stored, where you are signed in, instead."
)
@click.option("--day", metavar="DAY", help="With a fleet: of this day only, such as 2026-11-21.")
@json_option
@state_option
@click.pass_context
def verify(
    ctx: click.Context, spool: Path | None, fleet: bool, day: str | None, as_json: bool, state: Path
) -> None:
    """Walk the whole spool: every checksum, the hash chain, and whether events are missing.

    Of this host or of the fleet as `audit tail` does it. The controller computes the chains of all events
    that it keeps again; what its defenders told to be missing is told by events, and no fault of its store.

    Exit code 1: something is missing, damaged or altered.
    """
    if (fleet or day) and spool is not None:
        raise click.UsageError("--spool is about this host; it does not go with --fleet and --day")
    said = spool is not None or ctx.get_parameter_source("state") is not ParameterSource.DEFAULT
    if fleet or day or (not said and login_file(os.environ).exists()):
        from controller.cli.fleet_verify import verify_fleet  # it imports Twisted

        if not verify_fleet(day or "", as_json=as_json):
            sys.exit(1)
        return
    files = _files(spool, state)
    with _reading_of(files.path):
        good = verify_spool(files, as_json=as_json)
    if not good:
        sys.exit(1)


def _files(spool: Path | None, state: Path) -> SpoolFiles:
    if spool is not None:
        return SpoolFiles(spool)
    own = spool_of(state)
    return SpoolFiles(own.directory, own.agent)


@contextlib.contextmanager
def _reading_of(path: Path) -> Iterator[None]:
    """How a command that reads the spool at `path` ends early."""
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        _quiet_end(130)
    except BrokenPipeError:
        _quiet_end(0)
    except FileNotFoundError:
        raise click.ClickException(
            f"{path}: there is no spool; has a defender run here? (--state DIR, --spool DIR)"
        ) from None
    except SpoolError as error:
        raise click.ClickException(f"{path}: {error}") from None
    except OSError as error:
        hint = "; try it as root or as the defender's user" if isinstance(error, PermissionError) else ""
        raise click.ClickException(f"{path}: cannot be read: {error.strerror or error}{hint}") from None


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


def _tail(files: SpoolFiles, reading: Reading, wanted: Wanted, count: int | None, follow: bool) -> None:
    state = Walk()
    try:
        listing = files.look()
    except FileNotFoundError:
        if not follow:
            raise
        complain(f"{files.path}: waiting for the spool")
        segments: list[tuple[Epoch, Segment]] = []
    else:
        for finding in foreign_findings(listing.epochs):
            reading.show(Note(finding, "", 0))
        segments = listing.segments
        # One that has no header yet is just being made.
        while follow and segments and segments[-1][1].problem == NO_HEADER:
            segments.pop()
        state, chosen = _last(files, segments, reading, wanted, count, follow)
        for line in chosen:
            reading.show(line)
    follower = Follower(files, state)
    follower.begin(segments)
    while follow:
        for line in reading.choose(follower.poll()):
            reading.show(line)
        sys.stdout.flush()
        time.sleep(POLL)


def _last(
    files: SpoolFiles,
    segments: list[tuple[Epoch, Segment]],
    reading: Reading,
    wanted: Wanted,
    count: int | None,
    follow: bool,
) -> tuple[Walk, Iterable[Entry | Note]]:
    """The last `count` events that are wanted, with what is amiss between them, and the walk's state.

    As few of the newest segments are read as hold them. Without `count` the walk is made while the result is
    gone through.
    """
    first = 0
    if wanted.since:
        oldest = wanted.since - int(_SLACK.total_seconds() * 1_000_000)
        begun = (place for place in reversed(range(len(segments))) if _begun(segments[place]) < oldest)
        first = next(begun, 0)
    state = Walk()
    if count is None:
        return state, reading.choose(walk(segments[first:], files.load, state, living=follow))
    width = 1
    while True:
        start = max(len(segments) - width, first)
        state = Walk()
        chosen: deque[Entry | Note] = deque()
        found = 0
        for line in reading.choose(walk(segments[start:], files.load, state, living=follow)):
            chosen.append(line)
            found += isinstance(line, Entry)
            while found > count:
                found -= isinstance(chosen.popleft(), Entry)
        if found == count or start <= first:
            return state, chosen
        width *= 8


def _begun(place: tuple[Epoch, Segment]) -> int:
    """When a segment was begun; one that does not say may hold anything."""
    header = place[1].header
    return header.created if header.agent else 2**64
