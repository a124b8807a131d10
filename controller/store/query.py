"""What is asked of the event store and what it answers: values, and the test of an event."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from controller.store.errors import StoreError
from defender.contract.audit import Event
from defender.contract.packing import MAX_DEPTH, timestamp_of
from defender.contract.pattern import compile_glob
from defender.contract.spool import MAX_SEQ, SpoolError


@dataclass(frozen=True, slots=True)
class Query:
    """Which events are wanted; every condition that is given must hold, one of several patterns each.

    Patterns are globs of `*` and `?` without regard to case. `since` and `until` are unix microseconds, the
    second one excluded. `defenders` are ids, or names as their records have them; `actions` go by any of
    their names. `fields` are paths into the event and patterns, as ``("req.query.fromImage", "nginx")``: of
    a list one element must match, numbers match as they are written in JSON; a path that is not there matches
    the pattern "" only.
    """

    since: int = 0
    until: int = MAX_SEQ
    defenders: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    effects: tuple[str, ...] = ()
    fields: tuple[tuple[str, str], ...] = ()
    newest_first: bool = True


class Stored(NamedTuple):
    """One event: its position, the defender that it is about (its id), and the event itself.

    `received` is when it was stored, in unix microseconds.
    """

    position: int
    defender: str
    received: int
    event: Event


class Aside(NamedTuple):
    """A batch that was put aside: what it said of itself, the bytes as they came, and why.

    `number` rises; `received` is in unix microseconds.
    """

    number: int
    received: int
    defender: str
    agent: str
    epoch: int
    first_seq: int
    previous: bytes
    records: bytes
    reason: str


class Page(NamedTuple):
    """Some of the events that are wanted, in order.

    `place` is what the next call goes on from (`after`: a position), `more` whether there may be anything
    behind it, `examined` how many events were looked at.
    """

    events: list[Stored]
    place: str
    more: bool
    examined: int


def check_query(query: Query) -> None:
    """Raise StoreError for a query that cannot be asked."""
    if len(query.fields) > 20 or any(len(path) > 200 or not path for path, _ in query.fields):
        raise StoreError("a search has at most 20 fields, each a path like req.query.fromImage")
    for name in ("defenders", "users", "actions", "effects"):
        if len(getattr(query, name)) > 1000:
            raise StoreError(f"a search names at most 1000 {name}")


def matcher(query: Query) -> Callable[[Event], bool] | None:
    """A test of events for what the index cannot say; None if that is nothing."""
    if not query.fields:
        return None
    tests = [(path.split("."), compile_glob(pattern), pattern == "") for path, pattern in query.fields]

    def matches(event: Event) -> bool:
        for path, test, absent in tests:
            values = list(_values(event, path))
            if not values:
                if not absent:
                    return False
            elif not any(test(_text(value).casefold()) for value in values):
                return False
        return True

    return matches


def _values(value: object, path: list[str], depth: int = 1) -> Iterator[object]:
    """What stands at a path, each element of lists on the way; keys may hold dots themselves."""
    if depth > MAX_DEPTH:
        return  # no event is nested so deep; what a defender sent is not checked yet
    if isinstance(value, list):
        for item in value:
            yield from _values(item, path, depth + 1)
    elif not path:
        yield value
    elif isinstance(value, dict):
        for size in range(1, len(path) + 1):
            key = ".".join(path[:size])
            if key in value:
                yield from _values(value[key], path[size:], depth + 1)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def unreadable(micros: int, agent: str, epoch: int, seq: int, reason: str) -> Event:
    """What stands for an event whose bytes are as the defender sent them, and no event."""
    nobody = "00000000-0000-0000-0000-000000000000"
    try:
        when = timestamp_of(micros)
    except SpoolError:
        when = timestamp_of(0)
    return {
        "v": 1,
        "id": nobody,
        "agent": agent,
        "epoch": f"{epoch:016x}",
        "seq": seq,
        "ts_wall": when,
        "kind": "unreadable",
        "phase": "result",
        "corr": nobody,
        "actor": {"user": "", "groups": [], "via": "defender"},
        "req": {"action": ""},
        "result": {"ok": False, "detail": reason},
    }
