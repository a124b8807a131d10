"""How the controller is: its checks, the fleet in a few numbers, its metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from controller.api.metrics import Family, Sample
from controller.api.ports import Check, Json
from controller.ports.ledger import Ledger
from controller.ports.links import Links
from controller.sinks import overview
from controller.sinks.overview import SinkState
from controller.store import defenders, locks
from controller.store.events import EventStore
from defender.contract.trust import STREAMS


@dataclass(frozen=True, slots=True)
class Names:
    """What a controller says of itself: its host, its program's version, the fleet's trust domain, and the
    pin of its root in hexadecimal."""

    controller: str
    program: str
    trust_domain: str
    root: str


class Health:
    """`controller.api.ports.Health`. `checks` are those of other services beside the stores'.

    `turned_away` counts connections that the channel did not take, by reason (`Reception.refused`), and
    `nacks` the bundles that defenders refused, by stream. `channel` says at which HOST:PORT they are served.
    """

    def __init__(
        self,
        ledger: Ledger,
        events: EventStore,
        links: Links,
        names: Names,
        *,
        checks: Sequence[Callable[[], Check]] = (),
        sinks: Callable[[], Iterable[SinkState]] = tuple,
        turned_away: Callable[[], Mapping[str, int]] = dict,
        nacks: Callable[[], Mapping[str, int]] = dict,
        channel: Callable[[], str] = str,
    ) -> None:
        self._ledger = ledger
        self._events = events
        self._links = links
        self._names = names
        self._checks = checks
        self._sinks = sinks
        self._turned_away = turned_away
        self._nacks = nacks
        self._channel = channel

    def channel(self) -> str:
        """Where defenders are served."""
        return self._channel()

    async def ready(self) -> Sequence[Check]:
        """Whether both stores can be written, and what the other services say. A sink that fails is no
        reason not to be ready: its events wait in the store.
        """
        return (
            _check("store", self._ledger.database.problem),
            _check("events", self._events.problem),
            *(check() for check in self._checks),
        )

    async def status(self) -> Json:
        """`FleetStatus`."""
        rows = await self._ledger.read(defenders.every)
        held = await self._ledger.read(locks.every)
        names = self._names
        return {
            "controller": names.controller,
            "program": names.program,
            "trust_domain": names.trust_domain,
            "root": names.root,
            "defenders": self._present(rows),
            "locks": len(held),
            "events": self._stored(),
            "checks": [
                {"name": check.name, "ok": check.ok, "detail": check.detail} for check in await self.ready()
            ],
        }

    async def families(self) -> Iterable[Family]:
        """Metrics of the fleet, of what is taken in, and of the sinks."""
        present = self._present(await self._ledger.read(defenders.every))
        counts = self._events.counts
        seconds = self._events.commit_seconds
        sinks = overview.metrics(self._sinks())
        return [
            Family(
                "dfleet_defenders",
                "gauge",
                "Defenders of the fleet, by presence.",
                [Sample(count, {"state": state}) for state, count in present.items()],
            ),
            _one("dfleet_events_stored_total", "counter", "Events stored since the start.", counts.stored),
            _one("dfleet_events_repeated_total", "counter", "Events that came again.", counts.repeated),
            _one("dfleet_event_gaps_total", "counter", "Times that events were missing.", counts.gaps),
            _one("dfleet_events_missing_total", "counter", "Events known to be missing.", counts.missing),
            _one(
                "dfleet_event_batches_quarantined_total",
                "counter",
                "Batches of events that were put aside.",
                counts.quarantined,
            ),
            _one(
                "dfleet_event_batches_refused_total",
                "counter",
                "Batches whose bytes were no records.",
                counts.refused,
            ),
            _one(
                "dfleet_events_waiting_bytes",
                "gauge",
                "Bytes of events that wait to be stored.",
                self._events.waiting,
            ),
            _one(
                "dfleet_event_commit_seconds",
                "gauge",
                "The longest of the last commits of events.",
                max(seconds, default=0.0),
            ),
            Family(
                "dfleet_channel_turned_away_total",
                "counter",
                "Connections of defenders that were turned away before TLS, by reason.",
                [
                    Sample(self._turned_away().get(reason, 0), {"reason": reason})
                    for reason in ("connections", "pending_per_address")
                ],
            ),
            Family(
                "dfleet_bundles_refused_total",
                "counter",
                "Bundles that a defender refused, by stream.",
                [Sample(self._nacks().get(stream, 0), {"stream": stream}) for stream in STREAMS],
            ),
            Family(
                "dfleet_ready",
                "gauge",
                "1 for a check that holds.",
                [Sample(int(check.ok), {"check": check.name}) for check in await self.ready()],
            ),
            *(
                Family(
                    each.name,
                    each.kind,
                    each.about,
                    [Sample(value, labels) for labels, value in each.samples],
                )
                for each in sinks
                if each.samples
            ),
        ]

    def _present(self, rows: Iterable[defenders.DefenderRow]) -> dict[str, int]:
        now = self._ledger.clock()
        states = Counter(self._links.presence(row.id, row.last_seen, now).value for row in rows)
        return {state: states[state] for state in ("online", "stale", "offline")}

    def _stored(self) -> int:
        return max(self._events.position - self._events.first_position + 1, 0)


def _check(name: str, problem: str) -> Check:
    return Check(name, not problem, problem)


def _one(name: str, kind: str, about: str, value: float) -> Family:
    return Family(name, kind, about, [Sample(value)])
