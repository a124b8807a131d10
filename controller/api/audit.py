"""Routes of the audit trail: search, the live stream, exports, chains and sinks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from controller.api import shapes
from controller.api.ports import AuditWish
from controller.api.problems import invalid
from controller.api.routes import PAGING, Answer, Call, Route
from controller.api.schema import Choice, Fault, Field, Flag, Integer, Moment
from controller.api.stream import EXPORTERS, Form, JsonLines, ServerSentEvents
from defender.contract.audit import KINDS, PHASES

_POSITION: Final = re.compile(shapes.POSITION.pattern)


def _wish(query: Mapping[str, Any]) -> AuditWish:
    """The conditions of a query; problem 400 if they leave no time between them."""
    chosen: dict[str, Any] = {key: query[key] for key in _WORDS if key in query}
    if "status" in query:
        chosen["status"] = query["status"]
    for key in ("since", "until"):
        if key in query:
            chosen[key] = datetime.fromisoformat(query[key]).timestamp()
    if "since" in chosen and "until" in chosen and chosen["since"] > chosen["until"]:
        raise invalid([Fault("/until", "must not be before since")], "query", 400)
    return AuditWish(**chosen)


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


async def sinks(call: Call) -> Answer:
    """Where events are forwarded to."""
    return Answer(await call.ports.audit.sinks())


_WORDS: Final[Mapping[str, Field]] = {
    "defender": shapes.GLOB,
    "user": shapes.GLOB,
    "group": shapes.GLOB,
    "action": shapes.GLOB,
    "effect": Choice(("allow", "deny")),
    "rule": shapes.GLOB,
    "kind": Choice((*KINDS, "admin")),
    "phase": Choice(tuple(PHASES)),
    "via": Choice(("tls", "unix", "defender", "session", "token")),
    "source": shapes.GLOB,
    "target": shapes.GLOB,
    "serial": shapes.GLOB,
    "corr": shapes.IDENTIFIER,
}
_FILTERS: Final[Mapping[str, Field]] = {
    **_WORDS,
    "status": Integer(0, 999, "HTTP status that the client got."),
    "since": Moment("Not before this time."),
    "until": Moment("Not after this time."),
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
        "/api/v1/audit/sinks",
        "list_sinks",
        "Where events are forwarded to, and how far behind each receiver is.",
        "audit.read",
        sinks,
        answer=shapes.SINK_PAGE,
    ),
)
