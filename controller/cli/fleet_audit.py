"""The commands of `defenderctl audit` that speak with a controller."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Final

import click
from twisted.internet.defer import Deferred

from controller.cli.audit import Since
from controller.cli.client import Client, ClientError
from controller.cli.event_table import TableWriter, part
from controller.cli.fleet import INTERRUPTED, fail, signed_in, with_controller
from controller.cli.output import complain, json_option
from defender.contract.audit import timestamp
from defender.contract.spool_reading import Finding, Trouble

EVENTS: Final = "/api/v1/audit/events"
STREAM: Final = "/api/v1/audit/stream"
EXPORT: Final = "/api/v1/audit/export"

PAGE: Final = 1000
LINES: Final = 20
FOUND: Final = 100

_Taker = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Query:
    """Which events; every condition that is given must hold, of several values one is enough.

    `more` are conditions by their names in the API.
    """

    users: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    defenders: tuple[str, ...] = ()
    denied: bool = False
    since: datetime | None = None
    until: datetime | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def parameters(self) -> dict[str, Any]:
        """As the API takes it."""
        found: dict[str, Any] = {
            "user": list(self.users),
            "action": list(self.actions),
            "defender": list(self.defenders),
            "effect": ["deny"] if self.denied else [],
            **self.more,
        }
        if self.since is not None:
            found["since"] = timestamp(self.since.timestamp())
        if self.until is not None:
            found["until"] = timestamp(self.until.timestamp())
        return found


class _Table:
    """Events for people."""

    def __init__(self) -> None:
        self._writer = TableWriter(fleet=True)

    def event(self, event: Mapping[str, Any]) -> None:
        """A row; of an event that is not like one, a row that says so."""
        try:
            self._writer.event(dict(event))
        except (KeyError, TypeError, AttributeError) as error:
            self.gap({"gap": f"an event cannot be shown: {error!r}"})

    def gap(self, line: Mapping[str, Any]) -> None:
        """A row in the place of what is missing."""
        lost = Finding(Trouble.GAP, 0, "", 0, 0, 0, str(line["gap"]))
        self._writer.finding(lost, "", time.time_ns() // 1000)


class _Json:
    """Events for programs, a line each; what is missing is an object of `gap`."""

    def event(self, event: Mapping[str, Any]) -> None:
        """A line."""
        self._write(event)

    def gap(self, line: Mapping[str, Any]) -> None:
        """A line."""
        self._write(line)

    def _write(self, document: Mapping[str, Any]) -> None:
        # ASCII: what could steer a terminal is escaped.
        click.echo(json.dumps(document, separators=(",", ":")))


class _Tail:
    """Shows what was stored before the stream began, and then the stream; an event that is in both once."""

    def __init__(self, writer: _Table | _Json, after: str) -> None:
        self.position = after
        self.begun: Deferred[None] = Deferred()
        self._writer = writer
        self._shown: set[str] = set()
        self._waiting: list[dict[str, Any]] | None = []

    def moved(self, position: str) -> None:
        """The stream is there."""
        if self._waiting is None or not self.begun.called:
            self.position = position
        if not self.begun.called:
            self.begun.callback(None)

    def take(self, line: dict[str, Any]) -> None:
        """A line of the stream."""
        if self._waiting is not None:
            self._waiting.append(line)
        elif "gap" in line:
            self._writer.gap(line)
        else:
            event = part(line, "event")
            if event.get("id") not in self._shown:
                self._writer.event(event)

    def stored(self, event: Mapping[str, Any]) -> None:
        """An event of before."""
        self._shown.add(str(event.get("id", "")))
        self._writer.event(event)

    def go_on(self) -> None:
        """What was stored is shown: now the stream."""
        waiting, self._waiting = self._waiting or [], None
        for line in waiting:
            self.take(line)
            self.position = str(line.get("position", self.position))


def tail_fleet(query: Query, *, count: int | None, after: str, follow: bool, as_json: bool) -> None:
    """Show the last events of the fleet, and with `follow` those that come, through interruptions.

    Without `count` the last 20, with a `since` all of them. `after` is where another tail has ended: what was
    stored after it is shown, and nothing before.
    """
    writer: _Table | _Json = _Json() if as_json else _Table()
    tail = _Tail(writer, after)
    wanted = query.parameters()
    login = signed_in()

    async def act(client: Client) -> str:
        if after and not follow:
            await _page_on(client, {**wanted, "after": after}, tail)
            return ""
        if not follow:
            await _stored(client, query, count, tail.stored)
            return ""
        if after:
            tail.go_on()
            return await client.follow(
                STREAM, {**wanted, "after": after}, tail.take, _interrupted, tail.moved
            )
        streaming = Deferred.fromCoroutine(client.follow(STREAM, wanted, tail.take, _interrupted, tail.moved))
        ended: list[Any] = []
        streaming.addBoth(ended.append)
        streaming.addCallback(lambda _: None if tail.begun.called else tail.begun.callback(None))
        # What is stored is looked for once the stream has its place: nothing can come between them.
        await tail.begun
        if not ended:
            await _stored(client, query, count, tail.stored)
        tail.go_on()
        if not ended:
            await streaming
        if isinstance(ended[0], str):
            return ended[0]
        ended[0].raiseException()
        raise AssertionError

    try:
        reason = with_controller(act, login)
    except SystemExit as error:
        if error.code == INTERRUPTED and follow and tail.position:
            complain(f"go on with: --after {tail.position}")
        raise
    except BrokenPipeError:
        _quiet_end()
    if reason:
        complain(f"go on with: --after {tail.position}")
        fail(reason)


def _interrupted(reason: str) -> None:
    complain(f"{reason}; trying again")


async def _stored(client: Client, query: Query, count: int | None, take: _Taker) -> None:
    """The last `count` events, oldest first; all, if there is a `since` and no `count`."""
    if count is None and query.since is not None:
        async for item in client.pages(EVENTS, {**query.parameters(), "order": "oldest", "limit": PAGE}):
            take(item["event"])
        return
    for event in reversed(await _newest(client, query.parameters(), LINES if count is None else count)):
        take(event["event"])


async def _newest(client: Client, wanted: Mapping[str, Any], count: int) -> list[Any]:
    """The newest `count` stored events, newest first."""
    found: list[Any] = []
    if count:
        async for item in client.pages(EVENTS, {**wanted, "limit": min(count, PAGE)}):
            found.append(item)
            if len(found) == count:
                break
    return found


async def _page_on(client: Client, wanted: Mapping[str, Any], tail: _Tail) -> None:
    """What was stored after a position, up to now."""
    rest = bytearray()
    tail.go_on()

    def take(piece: bytes) -> None:
        rest.extend(piece)
        *whole, left = bytes(rest).split(b"\n")
        rest[:] = left
        for line in whole:
            document = json.loads(line)
            tail.take(document if set(document) == {"gap"} else {"event": document})

    await client.download(EXPORT, {**wanted, "format": "jsonl"}, take)


def _quiet_end() -> None:
    # What is still buffered would raise again when the interpreter closes standard output.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def _filters(command: Any) -> Any:
    """Conditions on every field of an event."""
    listed = {
        "--user": ("users", "Of this user."),
        "--action": ("actions", "Of this action, by any of its names."),
        "--defender": ("defenders", "Of this host, by name or id."),
    }
    single = {
        "--group": "Of a member of this group.",
        "--via": "Authenticated so: tls or unix.",
        "--source": "From this address.",
        "--serial": "With the certificate of this serial number.",
        "--target": "About this container, image or other object.",
        "--rule": "Decided by this rule.",
        "--kind": "Of this kind: engine, gap and others.",
        "--phase": "Of this phase: attempt, result, stream_end.",
        "--corr": "Of this one request.",
    }
    options = [
        click.option("--until", type=Since(), help="Before this time."),
        click.option(
            "--since", type=Since(), help="From this time on: 10m, 2h, 7d ago, or an ISO date and time."
        ),
        click.option(
            "--field",
            "fields",
            multiple=True,
            metavar="PATH=GLOB",
            help="Any key of an event; may be repeated.",
        ),
        click.option("--status", type=click.IntRange(0, 999), help="With this HTTP status."),
        click.option("--denied", is_flag=True, help="Only what was denied."),
    ]
    options += [click.option(name, metavar="GLOB", help=told) for name, told in reversed(single.items())]
    options += [
        click.option(name, variable, multiple=True, metavar="GLOB", help=f"{told} May be repeated.")
        for name, (variable, told) in reversed(listed.items())
    ]
    for option in options:
        command = option(command)
    return command


def _query(given: Mapping[str, Any]) -> Query:
    """The conditions of a command's options."""
    single = ("group", "via", "source", "serial", "target", "rule", "kind", "phase", "corr", "status")
    more = {name: given[name] for name in single if given[name] is not None}
    if given["fields"]:
        more["field"] = list(given["fields"])
    return Query(
        given["users"],
        given["actions"],
        given["defenders"],
        given["denied"],
        given["since"],
        given["until"],
        more,
    )


@click.command(
    epilog="\b\nExamples:\n  defenderctl audit search --user 'ci-*' --denied --since 7d\n"
    "  defenderctl audit search --defender web1 --action image_create -n 500\n"
    "  defenderctl audit search --field 'req.query.fromImage=nginx*' --json | jq .event.actor.user"
)
@click.option(
    "-n", "--lines", type=click.IntRange(1, 100_000), default=FOUND, show_default=True, help="At most."
)
@click.option("--oldest", is_flag=True, help="The oldest, instead of the newest.")
@_filters
@json_option
def search(lines: int, oldest: bool, as_json: bool, **given: Any) -> None:
    """Search the events of the fleet; every condition that is given must hold. Shown is the oldest first.

    Times are UTC. Patterns know `*` and `?` and do not tell upper case from lower. With --json a line for
    each event: where it is stored, and the event.
    """
    wanted = _query(given).parameters()
    if oldest:
        wanted["order"] = "oldest"

    async def act(client: Client) -> list[Any]:
        return await _newest(client, wanted, lines)

    found = with_controller(act)
    if not oldest:
        found.reverse()
    if as_json:
        writer = _Json()
        for item in found:
            writer.event(item)
        return
    table = _Table()
    for item in found:
        table.event(item["event"])
    complain(f"{len(found)} found" + ("; there may be more: -n" if len(found) == lines else ""))


@click.command(
    epilog="\b\nExamples:\n  defenderctl audit export --since 2026-11-01 --until 2026-12-01 --out nov.jsonl\n"
    "  defenderctl audit export --format csv --denied --out denied.csv"
)
@click.option("--format", "form", type=click.Choice(("jsonl", "csv")), default="jsonl", show_default=True)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="This file, for you only; whole or not at all.",
)
@_filters
def export(form: str, out: Path | None, **given: Any) -> None:
    """Write all events that match, oldest first: lines of JSON, or CSV that is safe in a spreadsheet.

    What is no longer kept is told in its place. Exit code 1: what was written is not whole.
    """
    wanted = {**_query(given).parameters(), "format": form}
    try:
        if out is None:
            _fetch(wanted, sys.stdout.buffer)
        else:
            _into(out, wanted)
    except BrokenPipeError:
        _quiet_end()
    except OSError as error:
        fail(f"{out or 'standard output'}: {error.strerror or error}")


def _into(out: Path, wanted: Mapping[str, Any]) -> None:
    # Made with mode 0600.
    descriptor, name = tempfile.mkstemp(prefix=f".{out.name}-", dir=out.parent)
    try:
        with open(descriptor, "wb") as stream:
            _fetch(wanted, stream)
            stream.flush()
            os.fsync(stream.fileno())
            size = stream.tell()
        os.replace(name, out)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    complain(f"{out}: {size} bytes")


def _fetch(wanted: Mapping[str, Any], stream: BinaryIO) -> None:
    def write(piece: bytes) -> None:
        stream.write(piece)

    async def act(client: Client) -> None:
        try:
            await client.download(EXPORT, wanted, write)
        except ClientError as error:
            raise ClientError(f"{error}; what was written is not whole", error.status, error.code) from None

    with_controller(act)
    stream.flush()
