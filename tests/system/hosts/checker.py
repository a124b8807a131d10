"""What must be true of a fleet when it has come to rest, whatever was done to it before.

* Every event that a defender brought to its disk is stored by the controller, once, in order, and as it was.
* Both ends' chains verify, and nothing was put aside.
* Each defender has in force what it should have.

What tests did that has to be told is said: `Expected`. Everything else that is amiss is one line each.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from deploy.processes import wait_until
from tests.engine.guarded import Event
from tests.system.hosts.fleet import FleetController, FleetDefender, Json
from tests.system.hosts.hosts import Hosts

PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Expected:
    """What tests have done that must be told, by the defender's name.

    Attributes:
        kills: how often a defender was killed, which it tells when it starts again.
        drops: which defenders could not write, so that they say how many events they dropped.
    """

    kills: Mapping[str, int] = field(default_factory=dict)
    drops: frozenset[str] = frozenset()


def check_fleet(hosts: Hosts, expected: Expected | None = None, patience: float = PATIENCE) -> None:
    """Bring the fleet to rest and look at all of it; the controller is stopped then.

    Raises:
        AssertionError: with everything that is amiss.
    """
    controller, members = hosts.controller, list(hosts.members.values())
    rest = Rest(controller, members)
    wait_until(lambda: not rest.look(), patience, 0.3)
    problems = [
        *rest.problems,
        *_as_desired(controller, members),
        *(problem for member in members for problem in _verified(controller, member)),
        *told_gaps(rest.stored, expected or Expected()),
        *_store(controller),
    ]
    assert not problems, "\n".join(problems[:50])


class Rest:
    """Compares what defenders have on their disks with what the controller has.

    Attributes:
        stored: the controller's events at the last look.
        problems: what differed then.
    """

    def __init__(self, controller: FleetController, members: list[FleetDefender]) -> None:
        self.stored: list[Event] = []
        self.problems: list[str] = []
        self._controller = controller
        self._members = members

    def look(self) -> list[str]:
        """Look, and return `problems`."""
        before = {member.host.name: member.events() for member in self._members}
        lines = self._controller.export()
        after = {member.host.name: member.events() for member in self._members}
        self.stored = [line for line in lines if "gap" not in line]
        self.problems = [f"the export has a hole: {line['gap']}" for line in lines if "gap" in line]
        for name in before:
            theirs = [event for event in self.stored if event["agent"] == name]
            self.problems += compare(name, before[name], theirs, after[name])
        return self.problems


def compare(name: str, before: list[Event], stored: list[Event], after: list[Event]) -> Iterator[str]:
    """Yield how the stored events of a defender differ from those on its disk before and after."""
    if not before:
        yield f"{name}: nothing is on the disk"  # not even that it was started
    places = [_place(event) for event in stored]
    known = {_place(event): event for event in after}
    for place, count in Counter(places).items():
        if count > 1:
            yield f"{name}: {place} is stored {count} times"
        if place not in known:
            yield f"{name}: {place} is stored, and is not on the disk"
    if len({event["id"] for event in stored}) != len(stored):
        yield f"{name}: an id is stored twice"
    for event in stored:
        mine = known.get(_place(event))
        if mine not in (None, event):
            yield f"{name}: {_place(event)} is stored as {json.dumps(event)}, and was {json.dumps(mine)}"
    there = set(places)
    for event in before:
        if _place(event) not in there:
            yield f"{name}: {_place(event)} is not stored: {event['kind']} {event['req'].get('action')}"
    if places != [place for place in known if place in there]:
        yield f"{name}: the events are stored in another order"


def _place(event: Event) -> tuple[str, int]:
    return event["epoch"], event["seq"]


def _as_desired(controller: FleetController, members: list[FleetDefender]) -> Iterator[str]:
    shown = controller.defenders()
    for member in members:
        name = member.host.name
        if name not in shown:
            yield f"{name} is not in the fleet"
            continue
        said = member.fleet()
        yield from _streams(name, shown[name], said)
        listener = shown[name]["listener"]
        if listener["desired"] not in (None, listener["actual"]):
            yield f"{name} listens on {listener['actual']}, and should on {listener['desired']}"
        if listener["actual"] != member.status()["listener"]["actual"]:
            yield f"{name} is shown to listen on {listener['actual']}, and does not"


def _streams(name: str, shown: Json, said: Mapping[str, Json]) -> Iterator[str]:
    for stream, state in shown["streams"].items():
        if state["state"] not in ("acked", "none"):
            yield f"{name}: {stream} is {state['state']}: {state['detail']}"
        elif state["state"] == "acked" and state["active"] != state["desired"]:
            yield f"{name}: {stream} {state['active']} is active, {state['desired']} is desired"
        own = said["streams"][stream]
        if own["refusal"]:
            yield f"{name}: {stream}: {own['refusal']}"
        if state["state"] == "acked" and own["version"] < state["desired"]:
            yield f"{name}: {stream} {own['version']} is in force, {state['desired']} is desired"


def _verified(controller: FleetController, member: FleetDefender) -> Iterator[str]:
    """Yield what `defenderctl audit verify` finds amiss in a defender's spool."""
    done = controller.run_ctl("audit", "verify", "--spool", str(member.spool))
    if done.returncode:
        yield f"{member.host.name}: {(done.stdout + done.stderr).decode()}"


def told_gaps(stored: list[Event], expected: Expected) -> Iterator[str]:
    """Yield what is told to be missing, and nobody expects; and what should be told and is not."""
    kills: Counter[str] = Counter()
    for event in stored:
        if event["req"].get("action") == "audit_unclosed":
            kills[event["agent"]] += 1
        if event["kind"] == "gap" and event["agent"] not in expected.drops:
            yield f"{event['req'].get('target', event['agent'])}: a gap: {json.dumps(event)}"
    if kills != Counter(expected.kills):
        yield f"ends that nobody recorded: {dict(kills)}, expected were {dict(expected.kills)}"


def _store(controller: FleetController) -> Iterator[str]:
    """Yield what is wrong with the chains in the controller's store, and what it put aside."""
    done = controller.run_ctl("audit", "verify", "--fleet")
    if done.returncode:
        yield f"the controller's store: {(done.stdout + done.stderr).decode()}"
    controller.stop()
    # SQLite resolves a path's links before it opens it, which leads out of the node.
    copy = controller.node.directory / "store"
    shutil.copytree(controller.files / "store" / "events", copy)
    yield from (f"the store put {path.name} aside" for path in copy.glob("*.bad*"))
    for path in sorted(copy.glob("*.db")):
        with contextlib.closing(sqlite3.connect(path)) as connection:
            (aside,) = connection.execute("SELECT count(*) FROM quarantine").fetchone()
            if aside:
                yield f"{path.name}: {aside} batches were put aside"
