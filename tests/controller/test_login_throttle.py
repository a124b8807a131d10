"""How often somebody may try to sign in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from controller.login_throttle import MINUTE, PER_ADDRESS, PER_USER, LoginThrottle


class ThrottleTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.throttle = LoginThrottle()

    def test_five_a_minute_for_a_user(self) -> None:
        tries = [self.throttle.attempt("ann", f"10.0.0.{number}", 0.0) for number in range(6)]
        self.assertEqual(tries, [0, 0, 0, 0, 0, 12])
        self.assertEqual(self.throttle.attempt("ANN", "10.9.9.9", 11.0), 1)
        # A refused try is not counted: whoever waits as told gets in.
        self.assertEqual(self.throttle.attempt("ann", "10.9.9.9", 12.0), 0)
        self.assertEqual(self.throttle.attempt("bob", "10.9.9.9", 12.0), 0)

    def test_twenty_a_minute_for_an_address(self) -> None:
        tries = [self.throttle.attempt(f"user{number}", "10.0.0.1", 0.0) for number in range(21)]
        self.assertEqual(tries, [0] * 20 + [3])
        self.assertEqual(self.throttle.attempt("other", "::ffff:10.0.0.1", 0.0), 3)
        self.assertEqual(self.throttle.attempt("other", "10.0.0.2", 0.0), 0)

    def test_a_host_has_all_of_its_ipv6_network(self) -> None:
        for number in range(20):
            self.throttle.attempt(f"user{number}", f"2001:db8::{number}", 0.0)
        self.assertGreater(self.throttle.attempt("other", "2001:db8::ffff", 0.0), 0)
        self.assertEqual(self.throttle.attempt("other", "2001:db8:0:1::1", 0.0), 0)

    def test_a_right_password_gives_the_user_new_tries(self) -> None:
        for number in range(5):
            self.throttle.attempt("ann", f"10.0.0.{number}", 0.0)
        self.throttle.succeeded("Ann")
        self.assertEqual(self.throttle.attempt("ann", "10.0.0.1", 0.0), 0)

    def test_a_flood_pushes_nobody_out(self) -> None:
        throttle = LoginThrottle(entries=100)
        for number in range(5):
            throttle.attempt("ann", f"10.0.0.{number}", 0.0)
        waits = [throttle.attempt(f"x{number}", f"10.1.{number // 20}.1", 0.0) for number in range(500)]
        self.assertGreater(throttle.attempt("ann", "10.9.9.9", 0.0), 0)
        # 99 have an entry of their own, the others share what is left.
        self.assertEqual(waits.count(0), 99 + 60)
        self.assertLessEqual(len(throttle._users.full), 100)
        # When the flood is over, so is what it did.
        self.assertEqual(throttle.attempt("new", "10.9.9.9", 2 * MINUTE), 0)

    def test_an_address_that_is_none(self) -> None:
        for number in range(20):
            self.throttle.attempt(f"user{number}", "somewhere", 0.0)
        self.assertGreater(self.throttle.attempt("other", "somewhere", 0.0), 0)

    @given(st.lists(st.floats(0, 20), min_size=1, max_size=120))
    def test_no_minute_has_more_than_twice_the_limit(self, steps: list[float]) -> None:
        """A full allowance and what a minute gives: no window of a minute has more."""
        throttle, now = LoginThrottle(), 0.0
        made: list[float] = []
        for step in steps:
            now += step
            if throttle.attempt("ann", "10.0.0.1", now) == 0:
                made.append(now)
        for start in made:
            self.assertLessEqual(len([at for at in made if start <= at < start + MINUTE]), 2 * PER_USER)
        self.assertLess(PER_USER, PER_ADDRESS)
