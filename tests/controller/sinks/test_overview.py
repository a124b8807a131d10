"""How sinks stand, as the API and Prometheus show it."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from controller.api.metrics import Family, Sample, exposition
from controller.api.schema import Faults
from controller.api.shapes import SINK
from controller.sinks.delivery import Standing
from controller.sinks.overview import SinkState, metrics


def state(name: str, lag: float = 0.0, problem: str = "") -> SinkState:
    return SinkState(name, "syslog", Standing(7, 70, 2, 3, lag, problem), 5)


class OverviewTests(SynchronousTestCase):
    """Words and numbers."""

    def test_the_words(self) -> None:
        self.assertEqual(state("a").word, "waiting")
        self.assertEqual(state("a", 1.5).word, "running")
        self.assertEqual(state("a", 1.5, "gone").word, "failing")

    def test_a_sink_is_what_the_api_says_it_is(self) -> None:
        told = state("siem", 1.23456, "the receiver answered 503").as_json()
        faults = Faults()
        self.assertEqual(SINK.check(told, "", faults), told)
        self.assertEqual(faults.found, [])
        self.assertEqual(told["lag_seconds"], 1.235)

    def test_metrics(self) -> None:
        families = [
            Family(
                each.name, each.kind, each.about, [Sample(value, labels) for labels, value in each.samples]
            )
            for each in metrics([state("siem", 1.5), state("hook", problem="gone")])
        ]
        text = exposition(families).decode()
        for line in (
            'dfleet_sink_lag_seconds{sink="siem"} 1.5',
            'dfleet_sink_lag_events{sink="hook"} 5',
            'dfleet_sink_delivered_total{sink="siem"} 70',
            'dfleet_sink_refused_total{sink="siem"} 2',
            'dfleet_sink_retries_total{sink="siem"} 3',
            'dfleet_sink_failing{sink="siem"} 0',
            'dfleet_sink_failing{sink="hook"} 1',
        ):
            self.assertIn(line + "\n", text)
