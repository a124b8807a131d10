"""Routes of the audit trail: search, the live stream, exports, chains and sinks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from controller.api import shapes
from controller.api.ports import AuditWish
from controller.api.problems import invalid
from controller.api.routes import PAGING, Answer, Call, Route
from controller.api.schema import Choice, Fault, Faults, Field, Flag, Integer, ListOf, Moment, Text
from controller.api.stream import EXPORTERS, Form, JsonLines, ServerSentEvents

_POSITION: Final = re.compile(shapes.POSITION.pattern)
_PATH: Final = re.compile(r"[A-Za-z0-9_.-]{1,200}")


def _wish(query: Mapping[str, Any]) -> AuditWish:
    """The conditions of a query; problem 400 if one of them cannot be used."""
    faults = Faults()
    fields = [(_PATHS[name], query[name]) for name in _PATHS if name in query]
    if "status" in query:
        fields.append(("result.status", str(query["status"])))
    for pair in query.get("field", ()):
        path, mark, glob = pair.partition("=")
        if not mark or _PATH.fullmatch(path) is None:
            faults.add("/field", "must be PATH=GLOB, such as req.query.fromImage=nginx")
        fields.append((path, glob))
    since, until = (_micros(query[key]) if key in query else None for key in ("since", "until"))
    if since is not None and until is not None and since > until:
        faults.add("/until", "must not be before since")
    if faults.found:
        raise invalid(faults.found, "query", 400)
    listed = {name + "s": tuple(query.get(name, ())) for name in _LISTS}
    return AuditWish(**listed, fields=tuple(fields), since=since, until=until)


def _micros(text: str) -> int:
    return (datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


async def search(call: Call) -> Answer:
    """Search events."""
    newest_first = call.query.get("order", "newest") == "newest"
    return Answer(await call.ports.audit.search(_wish(call.query), newest_first, call.page))


async def event(call: Call) -> Answer:
    """Show one event."""
    return Answer(await call.ports.audit.event(call.path["event"]))


async def stream(call: Call) -> None:
    """Events as they are stored, from a position on."""
    accepted = call.request.getHeader("accept") or ""
    form: Form = ServerSentEvents() if "text/event-stream" in accepted.lower() else JsonLines()
    position = call.request.getHeader("last-event-id") or call.query.get("after", "")
    if position and (len(position) > shapes.POSITION.high or _POSITION.fullmatch(position) is None):
        raise invalid([Fault("/last-event-id", "must be a position that an answer gave")], "header", 400)
    wanted = _wish(call.query)
    with call.streams.place(call.actor.user):
        if not position and not call.query.get("beginning", False):
            position = await call.ports.audit.end()

        async def still_allowed() -> str:
            found = await call.ports.accounts.authenticate(call.token, call.actor.address)
            if found is None:
                return "the sign-in has ended; sign in again and go on from the last position"
            return "" if "audit.read" in found.permissions else "the audit trail may no longer be read"

        await call.streams.follow(call.request, form, call.ports.audit, wanted, position, still_allowed)


async def export(call: Call) -> None:
    """All events that match, up to now."""
    wanted = _wish(call.query)
    exporter = EXPORTERS[call.query.get("format", "jsonl")]
    with call.streams.place(call.actor.user):
        after, stop = call.query.get("after", ""), await call.ports.audit.end()
        await call.streams.export(call.request, exporter, call.ports.audit, wanted, after=after, stop=stop)


async def chains(call: Call) -> Answer:
    """Up to where each defender's events have come."""
    return Answer(await call.ports.audit.chains(call.page))


async def verify(call: Call) -> None:
    """Whether the events are those that were stored."""
    with call.streams.place(call.actor.user):
        await call.streams.lines(call.request, call.ports.audit.verify(call.query.get("day", "")))


async def sinks(call: Call) -> Answer:
    """Where events are forwarded to."""
    return Answer(await call.ports.audit.sinks())


_LISTS: Final[Mapping[str, Field]] = {
    "defender": ListOf(shapes.GLOB, 16, about="Name or id; any of them."),
    "user": ListOf(shapes.GLOB, 16, about="Any of them."),
    "action": ListOf(shapes.GLOB, 16, about="Any of them."),
    "effect": ListOf(Choice(("allow", "deny")), 2),
}
_PATHS: Final[Mapping[str, str]] = {
    "group": "actor.groups",
    "via": "actor.via",
    "source": "actor.src",
    "serial": "actor.serial",
    "target": "req.target",
    "rule": "decision.rule",
    "kind": "kind",
    "phase": "phase",
    "corr": "corr",
}
"""Condition -> where it stands in an event."""
_FILTERS: Final[Mapping[str, Field]] = {
    **_LISTS,
    **dict.fromkeys(_PATHS, shapes.GLOB),
    "status": Integer(0, 999, "HTTP status that the client got."),
    "field": ListOf(Text(400, about="PATH=GLOB for any key of an event."), 10),
    "since": Moment("Not before this time."),
    "until": Moment("Before this time."),
}

ROUTES: Final = (
    Route(
        "GET",
        "/api/v1/audit/events",
        "search_events",
        "Search events; every condition that is given must hold.",
        "audit.read",
        search,
        query={**_FILTERS, "order": Choice(("newest", "oldest")), **PAGING},
        answer=shapes.EVENT_PAGE,
    ),
    Route(
        "GET",
        "/api/v1/audit/events/{event}",
        "show_event",
        "Show one event.",
        "audit.read",
        event,
        variables={"event": shapes.IDENTIFIER},
        answer=shapes.STORED_EVENT,
    ),
    Route(
        "GET",
        "/api/v1/audit/stream",
        "stream_events",
        "Events as they are stored, as server-sent events or lines of JSON, from now on or from a position.",
        "audit.read",
        stream,
        query={
            **_FILTERS,
            "after": shapes.POSITION,
            "beginning": Flag("From the oldest event that is kept, if no position is given."),
        },
        media=("application/x-ndjson", "text/event-stream"),
        streams=True,
    ),
    Route(
        "GET",
        "/api/v1/audit/export",
        "export_events",
        "All events that match, up to now, oldest first. A body that ends early is not whole.",
        "audit.read",
        export,
        query={**_FILTERS, "after": shapes.POSITION, "format": Choice(tuple(EXPORTERS))},
        media=("application/x-ndjson", "text/csv"),
        streams=True,
    ),
    Route(
        "GET",
        "/api/v1/audit/chains",
        "list_chains",
        "Up to where the events of each defender have come, with the hash of its chain.",
        "audit.read",
        chains,
        query=PAGING,
        answer=shapes.CHAIN_PAGE,
    ),
    Route(
        "GET",
        "/api/v1/audit/verification",
        "verify_events",
        "Compute the chains of all stored events again, or of a day's: lines of how far, and what is wrong.",
        "audit.read",
        verify,
        query={"day": shapes.DAY},
        media=("application/x-ndjson",),
        streams=True,
    ),
    Route(
        "GET",
        "/api/v1/audit/sinks",
        "list_sinks",
        "Where events are forwarded to, and how far behind each receiver is.",
        "audit.read",
        sinks,
        answer=shapes.SINK_PAGE,
    ),
)
