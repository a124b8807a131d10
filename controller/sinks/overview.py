"""How all sinks stand: for the API's list, and for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from controller.sinks.delivery import Standing


@dataclass(frozen=True, slots=True)
class SinkState:
    """One sink: its name, its kind ("syslog", "webhook" or "hec"), how it stands, how many events wait."""

    name: str
    kind: str
    standing: Standing
    lag_events: int

    @property
    def word(self) -> str:
        """ "failing": it does not get on; "waiting": it has sent all there is; "running": it is at it."""
        if self.standing.problem:
            return "failing"
        return "running" if self.standing.lag_seconds else "waiting"

    def as_json(self) -> dict[str, object]:
        """The `Sink` of the REST API."""
        return {
            "name": self.name,
            "kind": self.kind,
            "state": self.word,
            "detail": self.standing.problem,
            "lag_events": self.lag_events,
            "lag_seconds": round(self.standing.lag_seconds, 3),
            "refused": self.standing.refused,
        }


@dataclass(frozen=True, slots=True)
class Metric:
    """A family of numbers, one for each sink by its labels. `kind` is "counter" or "gauge"."""

    name: str
    kind: str
    about: str
    samples: tuple[tuple[Mapping[str, str], float], ...]


def metrics(states: Iterable[SinkState]) -> list[Metric]:
    """The sinks' metrics, with the label `sink`."""
    states = tuple(states)
    numbers = (
        (
            "dfleet_sink_lag_seconds",
            "gauge",
            "Upper bound of the time that an event in the store has waited for its receiver.",
            lambda state: state.standing.lag_seconds,
        ),
        (
            "dfleet_sink_lag_events",
            "gauge",
            "Events in the store that the receiver has not confirmed, as last counted.",
            lambda state: state.lag_events,
        ),
        (
            "dfleet_sink_delivered_total",
            "counter",
            "Events that the receiver has confirmed.",
            lambda state: state.standing.delivered,
        ),
        (
            "dfleet_sink_refused_total",
            "counter",
            "Events that the receiver refused for good and that were passed.",
            lambda state: state.standing.refused,
        ),
        (
            "dfleet_sink_retries_total",
            "counter",
            "Times that a sink began again behind the last confirmed event.",
            lambda state: state.standing.retries,
        ),
        (
            "dfleet_sink_failing",
            "gauge",
            "1 while the sink does not get on.",
            lambda state: int(bool(state.standing.problem)),
        ),
    )
    return [
        Metric(name, kind, about, tuple(({"sink": state.name}, float(value(state))) for state in states))
        for name, kind, about, value in numbers
    ]
