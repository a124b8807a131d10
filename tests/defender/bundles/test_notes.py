"""What the record says of bundles."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from defender.bundles.commands import Skewed
from defender.bundles.notes import note_of


class ClockTests(SynchronousTestCase):
    """A clock that is off, and right again."""

    def problems(self, seconds: float) -> list[str]:
        event: Any = note_of(Skewed(seconds))
        self.assertEqual((event["req"]["action"], event["result"]["ok"]), ("clock_skew", not seconds))
        found: list[str] = event["result"]["problems"]
        return found

    def test_it_is_said_which_way_it_is_off(self) -> None:
        self.assertEqual(self.problems(400.2), ["this host's clock is 400 seconds behind the controller's"])
        self.assertEqual(
            self.problems(-3600), ["this host's clock is 3600 seconds ahead of the controller's"]
        )
        self.assertEqual(self.problems(0.0), [])
