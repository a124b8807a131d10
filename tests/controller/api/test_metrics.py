"""Metrics are written as Prometheus reads them."""

from __future__ import annotations

import math

from twisted.trial.unittest import SynchronousTestCase

from controller.api.metrics import ApiMetrics, Family, Sample, exposition


class ExpositionTests(SynchronousTestCase):
    """The text format."""

    def test_families_are_written(self) -> None:
        families = [
            Family(
                "dfleet_a_total", "counter", "As\nin \\ two lines.", [Sample(3), Sample(0.5, {"x": 'q"\\\n'})]
            ),
            Family("dfleet_b", "gauge", "B.", [Sample(math.inf), Sample(math.nan), Sample(1e20)]),
        ]
        self.assertEqual(
            exposition(families).decode(),
            "# HELP dfleet_a_total As\\nin \\\\ two lines.\n# TYPE dfleet_a_total counter\n"
            'dfleet_a_total 3\ndfleet_a_total{x="q\\"\\\\\\n"} 0.5\n'
            "# HELP dfleet_b B.\n# TYPE dfleet_b gauge\ndfleet_b +Inf\ndfleet_b NaN\ndfleet_b 1e+20\n",
        )
        self.assertEqual(exposition([]), b"")

    def test_names_are_held_to_the_format(self) -> None:
        self.assertRaises(ValueError, Family, "a-b", "gauge", "", [])
        self.assertRaises(ValueError, Family, "a", "summary", "", [])
        self.assertRaises(ValueError, Family, "a", "gauge", "", [Sample(1, {"a-b": ""})])

    def test_the_api_counts_itself(self) -> None:
        metrics = ApiMetrics()
        metrics.called("list_locks", 200, 0.02)
        metrics.called("list_locks", 200, 30.0)
        text = exposition(metrics.families()).decode()
        for line in (
            'dfleet_api_requests_total{operation="list_locks",status="200"} 2',
            'dfleet_api_request_seconds_bucket{operation="list_locks",le="0.01"} 0',
            'dfleet_api_request_seconds_bucket{operation="list_locks",le="0.025"} 1',
            'dfleet_api_request_seconds_bucket{operation="list_locks",le="10.0"} 1',
            'dfleet_api_request_seconds_bucket{operation="list_locks",le="+Inf"} 2',
            'dfleet_api_request_seconds_count{operation="list_locks"} 2',
        ):
            self.assertIn(line + "\n", text)
