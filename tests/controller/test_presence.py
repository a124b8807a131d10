"""When a defender counts as there."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from controller.presence import Presence, presence


class PresenceTests(SynchronousTestCase):
    def test_by_what_was_heard_last(self) -> None:
        for connected, silent, expected in (
            (True, 0.0, Presence.ONLINE),
            (True, 44.9, Presence.ONLINE),
            (True, 45.0, Presence.STALE),
            (True, 299.9, Presence.STALE),
            (True, 300.0, Presence.OFFLINE),
            (False, 0.0, Presence.STALE),
            (False, 299.9, Presence.STALE),
            (False, 300.0, Presence.OFFLINE),
            (True, -5.0, Presence.ONLINE),
        ):
            self.assertIs(presence(connected, 1000.0 - silent, 1000.0), expected, (connected, silent))

    def test_one_that_never_came(self) -> None:
        self.assertIs(presence(False, None, 0.0), Presence.OFFLINE)
