"""When a defender comes back: never all at once, and never long after it could."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.contract.reconnecting import (
    FIRST_SPREAD,
    LONGEST_DELAY,
    PATIENT,
    STABLE,
    Reconnect,
    return_window,
)


class Delays(SynchronousTestCase):
    def test_a_session_that_was_lost_is_begun_anew_within_15_seconds(self) -> None:
        for chance in (0.0, 0.5, 1.0):
            reconnect = Reconnect()
            reconnect.opened(1000.0)
            self.assertEqual(reconnect.delay(1000.0 + STABLE, chance), FIRST_SPREAD * chance)

    def test_delays_double_up_to_the_longest(self) -> None:
        reconnect = Reconnect()
        reconnect.opened(0.0)
        delays = [reconnect.delay(STABLE, 1.0) for _ in range(12)]
        self.assertEqual(delays, [15.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 120.0, 120.0, 120.0, 120.0])

    def test_the_first_attempts_of_all_have_nothing_that_was_lost(self) -> None:
        reconnect = Reconnect()
        self.assertEqual([reconnect.delay(0.0, 1.0) for _ in range(3)], [1.0, 2.0, 4.0])

    def test_a_session_that_was_short_changes_nothing(self) -> None:
        reconnect = Reconnect()
        for _ in range(5):
            reconnect.delay(0.0, 1.0)
        reconnect.opened(100.0)
        self.assertEqual(reconnect.delay(100.0 + STABLE - 1, 1.0), 32.0)
        reconnect.opened(200.0)
        self.assertEqual(reconnect.delay(200.0 + STABLE, 1.0), FIRST_SPREAD)

    def test_who_was_asked_to_go_comes_back_within_the_window(self) -> None:
        reconnect = Reconnect()
        reconnect.opened(0.0)
        self.assertEqual(reconnect.delay(1.0, 0.25, window=40.0), 10.0)
        self.assertEqual(reconnect.delay(1.0, 1.0, window=0.0), 0.0)

    def test_where_it_is_of_no_use_it_waits(self) -> None:
        for code in PATIENT:
            self.assertEqual(Reconnect().delay(0.0, 0.0, code=code), LONGEST_DELAY / 2)
            self.assertEqual(Reconnect().delay(0.0, 1.0, code=code), LONGEST_DELAY)
        self.assertEqual(Reconnect().delay(0.0, 1.0, code="frame"), 1.0)

    @given(st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.floats(0, 500)), max_size=60))
    def test_no_delay_is_longer_than_the_longest(self, story: list[tuple[float, bool, float]]) -> None:
        reconnect, now = Reconnect(), 0.0
        for chance, opened, duration in story:
            if opened:
                reconnect.opened(now)
                now += duration
            delay = reconnect.delay(now, chance)
            self.assertTrue(0.0 <= delay <= LONGEST_DELAY)
            now += delay

    def test_the_window_grows_with_the_fleet(self) -> None:
        self.assertEqual(
            [return_window(number) for number in (0, 50, 1500, 15_000)], [10.0, 10.0, 10.0, 100.0]
        )
