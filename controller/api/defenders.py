"""Routes of defenders: what they are, and where they listen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from controller.api import shapes
from controller.api.ports import InvalidError, Selection
from controller.api.routes import PAGING, Answer, Call, Route
from controller.api.schema import Choice, Fault, Faults, Field, ListOf, Text


async def defenders(call: Call) -> Answer:
    """List defenders."""
    names = (call.query["name"],) if "name" in call.query else ()
    wanted = Selection((), names, _labels(call.query.get("label", [])), call.query.get("state", ""))
    return Answer(await call.ports.defenders.defenders(wanted, call.page))


def _labels(pairs: list[str]) -> Mapping[str, str]:
    """`K=V` texts as a mapping; InvalidError."""
    faults = Faults()
    found: dict[str, str] = {}
    for pair in pairs:
        key, mark, value = pair.partition("=")
        if not mark:
            faults.add("/label", "must be NAME=VALUE")
            continue
        shapes.LABEL_KEY.check(key, "/label", faults)
        shapes.LABEL_VALUE.check(value, "/label", faults)
        if found.setdefault(key, value) != value:
            faults.add("/label", "asks for two values of one label; no defender has both")
    if faults.found:
        raise InvalidError(faults.found, "query")
    return found


async def defender(call: Call) -> Answer:
    """Show a defender."""
    return Answer(await call.ports.defenders.defender(call.path["defender"]))


async def relabel(call: Call) -> Answer:
    """Set and remove labels."""
    return Answer(await call.ports.defenders.relabel(call.actor, call.path["defender"], call.body["labels"]))


async def remove(call: Call) -> Answer:
    """Forget a defender."""
    await call.ports.defenders.remove(call.actor, call.path["defender"])
    return Answer()


async def set_listener(call: Call) -> Answer:
    """Set the listener of one defender."""
    return await _set(call, Selection(ids=(call.path["defender"],)))


async def set_listeners(call: Call) -> Answer:
    """Set the listeners of all that are selected."""
    select: Mapping[str, Any] = call.body["select"]
    faults = [
        Fault(f"/select/{key}", "must not be empty: that would select every defender")
        for key in ("labels",)
        if key in select and not select[key]
    ]
    if faults:
        raise InvalidError(faults)
    wanted = Selection(tuple(select.get("ids", ())), tuple(select.get("names", ())), select.get("labels", {}))
    return await _set(call, wanted)


async def _set(call: Call, wanted: Selection) -> Answer:
    drain = call.body.get("drain")
    made = await call.ports.listeners.set_listener(call.actor, wanted, call.body["mode"], drain)
    return Answer(made)


async def change(call: Call) -> Answer:
    """How far a change of listeners is."""
    return Answer(await call.ports.listeners.change(call.path["change"]))


_DEFENDER: Final[Mapping[str, Field]] = {"defender": shapes.DEFENDER}
_FILTERS: Final[Mapping[str, Field]] = {
    "name": shapes.GLOB,
    "label": ListOf(Text(128, about="NAME=VALUE."), high=16),
    "state": Choice(("online", "stale", "offline")),
}

ROUTES: Final = (
    Route(
        "GET",
        "/api/v1/defenders",
        "list_defenders",
        "List defenders by name, label and state.",
        "defenders.read",
        defenders,
        query={**_FILTERS, **PAGING},
        answer=shapes.DEFENDER_PAGE,
    ),
    Route(
        "GET",
        "/api/v1/defenders/{defender}",
        "show_defender",
        "Show a defender: what it should have, what it has, and why not.",
        "defenders.read",
        defender,
        variables=_DEFENDER,
        answer=shapes.DEFENDER_SHAPE,
    ),
    Route(
        "PATCH",
        "/api/v1/defenders/{defender}",
        "label_defender",
        "Set and remove labels.",
        "defenders.write",
        relabel,
        variables=_DEFENDER,
        body=shapes.LABEL_CHANGE,
        answer=shapes.DEFENDER_SHAPE,
        example={"labels": {"site": "vienna", "old": None}},
    ),
    Route(
        "DELETE",
        "/api/v1/defenders/{defender}",
        "remove_defender",
        "Remove a defender from the fleet; it must enroll again to come back.",
        "defenders.write",
        remove,
        status=204,
        variables=_DEFENDER,
    ),
    Route(
        "PUT",
        "/api/v1/defenders/{defender}/listener",
        "set_listener",
        "Say where a defender is to listen.",
        "listeners.write",
        set_listener,
        status=202,
        variables=_DEFENDER,
        body=shapes.LISTENER_WISH,
        answer=shapes.CHANGE,
        example={"mode": "unix+tcp", "drain": 600},
    ),
    Route(
        "POST",
        "/api/v1/listener-changes",
        "set_listeners",
        "Say where all selected defenders are to listen.",
        "listeners.write",
        set_listeners,
        status=202,
        body=shapes.LISTENERS_WISH,
        answer=shapes.CHANGE,
        repeatable=True,
        example={"select": {"labels": {"site": "vienna"}}, "mode": "unix", "drain": 600},
    ),
    Route(
        "GET",
        "/api/v1/listener-changes/{change}",
        "show_listener_change",
        "How far a change of listeners is.",
        "defenders.read",
        change,
        variables={"change": shapes.IDENTIFIER},
        answer=shapes.CHANGE,
    ),
)
