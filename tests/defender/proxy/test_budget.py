"""What one user may ask, hold and write, and what becomes of the denials that are not events of their own."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

from hypothesis import given, settings, strategies
from twisted.trial.unittest import SynchronousTestCase

from defender.proxy import budget
from defender.proxy.budget import OTHERS, Budgets, Share
from defender.proxy.tally import INTERVAL, Aggregate, Counted, Tally
from defender.settings import LimitSettings

_GIB = 1 << 30


@dataclass(frozen=True)
class Limits:
    requests_per_second: int = 500
    request_burst: int = 2000
    connections_per_user: int = 1024
    engine_connections_per_user: int = 128
    spool_share: int = 10


NONE = Limits(0, 1, 0, 0, 0)


def budgets(limits: Limits = Limits(), spool_bytes: int = _GIB) -> Budgets:
    return Budgets(limits, spool_bytes)


def granted(share: Share, now: float, asked: int = 10_000) -> int:
    return sum(share.request(now) for _ in range(asked))


class Requests(SynchronousTestCase):
    def test_the_burst_and_then_the_rate(self) -> None:
        share = budgets().enter("bruce")
        self.assertEqual(granted(share, 1e6), 2000)
        self.assertEqual(granted(share, 1e6 + 1), 500)
        self.assertEqual(granted(share, 1e6 + 1.1), 50)
        self.assertEqual(granted(share, 1e6 + 3600), 2000)

    def test_a_refusal_says_why_and_when_to_come_back(self) -> None:
        share = budgets(Limits(requests_per_second=1, request_burst=3)).enter("bruce")
        self.assertEqual(granted(share, 50.0), 3)
        refusal = share.too_fast(50.0)
        self.assertEqual(refusal.status, 429)
        self.assertEqual(refusal.rule, "limits.requests_per_second")
        self.assertEqual(refusal.reason, "too many requests: more than 1 a second; try again in 1 s")
        self.assertFalse(share.request(50.4))
        self.assertTrue(share.request(50.0 + refusal.retry_after))

    def test_zero_is_no_limit(self) -> None:
        house = budgets(NONE)
        share = house.enter("bruce")
        self.assertEqual(granted(share, 1.0, 100_000), 100_000)
        self.assertTrue(share.spend(1 << 40, 1.0))
        self.assertTrue(share.request(1.0))
        for _ in range(5000):
            self.assertFalse(house.enter("bruce").is_crowded)
            self.assertTrue(share.take_engine())

    def test_users_do_not_share_and_connections_do(self) -> None:
        house = budgets()
        first, second, other = house.enter("bruce"), house.enter("bruce"), house.enter("clark")
        local = house.enter("bruce", "unix")
        self.assertEqual(granted(first, 9.0), 2000)
        self.assertFalse(second.request(9.0))
        self.assertTrue(other.request(9.0))
        self.assertTrue(local.request(9.0))
        self.assertEqual(house.users, 3)

    @settings(deadline=None)
    @given(
        strategies.integers(1, 1000),
        strategies.integers(1, 50),
        strategies.lists(strategies.floats(0, 2), min_size=1, max_size=200),
    )
    def test_no_stretch_of_time_has_more_than_burst_and_rate(
        self, rate: int, burst: int, pauses: list[float]
    ) -> None:
        share = budgets(Limits(requests_per_second=rate, request_burst=burst)).enter("bruce")
        now, times = 1e6, []
        for pause in pauses:
            now += pause
            if share.request(now):
                times.append(now)
            else:
                wait = share.too_fast(now).retry_after
                self.assertGreaterEqual(wait, 1)
        for index, start in enumerate(times):
            for count, end in enumerate(times[index:], 1):
                self.assertLessEqual(count, burst + (end - start) * rate + 1)

    def test_other_limits_hold_for_those_who_are_connected(self) -> None:
        house = budgets()
        share = house.enter("bruce")
        house.resize(Limits(requests_per_second=1, request_burst=5, engine_connections_per_user=1), _GIB)
        self.assertEqual(granted(share, 7.0), 5)
        self.assertTrue(share.take_engine())
        self.assertFalse(share.take_engine())
        house.resize(NONE, _GIB)
        self.assertEqual(granted(share, 7.0), 10_000)
        self.assertTrue(share.take_engine())

    def test_the_settings_are_limits(self) -> None:
        names = set(Limits.__dataclass_fields__)
        self.assertLessEqual(names, set(LimitSettings.__dataclass_fields__))
        for name, default in Limits().__dict__.items():
            self.assertEqual(LimitSettings.__dataclass_fields__[name].metadata["default"], default)


class Holding(SynchronousTestCase):
    def test_calls_with_the_engine(self) -> None:
        share = budgets(Limits(engine_connections_per_user=2)).enter("bruce")
        self.assertEqual([share.take_engine() for _ in range(3)], [True, True, False])
        refusal = share.too_busy()
        self.assertEqual(
            refusal.reason, "too many calls at one time: 2 are with the Engine; try again in 1 s"
        )
        self.assertEqual(refusal.rule, "limits.engine_connections_per_user")
        share.give_engine()
        self.assertTrue(share.take_engine())
        self.assertEqual(share.engine_connections, 2)

    def test_the_connection_that_is_too_many_is_the_new_one(self) -> None:
        house = budgets(Limits(connections_per_user=2))
        shares = [house.enter("bruce") for _ in range(2)]
        self.assertFalse(shares[0].is_crowded)
        self.assertTrue(house.enter("bruce").is_crowded)
        self.assertIn("2 are open", shares[0].too_crowded().reason)
        house.leave(shares[0], 1.0)
        house.leave(shares[0], 1.0)
        self.assertFalse(house.enter("bruce").is_crowded)
        self.assertEqual(house.refused, {"limits.connections_per_user": 1})


class SpoolShare(SynchronousTestCase):
    def test_a_quarter_at_once_and_the_rest_over_the_hour(self) -> None:
        share = budgets(Limits(spool_share=10), 4000).enter("bruce")  # 400 bytes an hour
        self.assertTrue(share.spend(60, 5.0))
        self.assertTrue(share.request(5.0))
        self.assertFalse(share.spend(60, 5.0))
        self.assertFalse(share.request(5.0))
        refusal = share.too_fast(5.0)
        self.assertEqual(refusal.rule, "limits.spool_share")
        self.assertRegex(
            refusal.reason,
            r"^too many events: more than 10 % of the audit trail in an hour; try again in \d+ s$",
        )
        self.assertFalse(share.request(5.0 + refusal.retry_after - 2))
        self.assertTrue(share.request(5.0 + refusal.retry_after))

    @settings(deadline=None)
    @given(
        strategies.lists(
            strategies.tuples(strategies.floats(0, 1200), strategies.integers(1, 40)), max_size=150
        )
    )
    def test_no_hour_has_more_than_the_share(self, steps: list[tuple[float, int]]) -> None:
        share = budgets(Limits(spool_share=100), 400).enter("bruce")
        now = 1e6
        spent: list[tuple[float, int]] = []
        for pause, size in steps:
            now += pause
            if share.request(now):
                share.spend(size, now)
                spent.append((now, size))
        for start, _ in spent:
            hour = sum(size for when, size in spent if start <= when < start + 3600)
            self.assertLessEqual(hour, 400 + 40)  # the last event may be the one that goes beyond

    def test_while_it_is_used_up_denials_are_only_counted(self) -> None:
        house = budgets(Limits(spool_share=1), 40_000)
        share = house.enter("bruce")
        share.spend(1000, 1.0)
        self.assertFalse(share.denied("container_stop", "r", 403, 1.0))
        self.assertEqual([row.count for row in house.drain()], [1])


class Remembering(SynchronousTestCase):
    def test_coming_again_gives_no_new_budget(self) -> None:
        house = budgets()
        share = house.enter("bruce")
        self.assertEqual(granted(share, 100.0), 2000)
        house.leave(share, 100.0)
        self.assertEqual((house.users, house.remembered), (0, 1))
        again = house.enter("bruce")
        self.assertFalse(again.request(100.0))
        self.assertEqual((house.users, house.remembered), (1, 0))

    def test_who_used_nothing_is_forgotten_at_once(self) -> None:
        house = budgets()
        share = house.enter("bruce")
        share.request(100.0)
        house.leave(share, 200.0)
        self.assertEqual(house.remembered, 0)

    def test_a_flood_of_names_is_bounded_and_pushes_no_throttled_user_out(self) -> None:
        house = budgets()
        bruce = house.enter("bruce")
        granted(bruce, 100.0)
        house.leave(bruce, 100.0)
        for number in range(3 * budget.RESTING):
            share = house.enter(f"user{number}")
            for _ in range(20):
                share.denied("container_stop", "r", 403, 100.0)
            share.request(100.0)
            house.leave(share, 100.0)
            self.assertLessEqual(house.remembered, budget.RESTING)
        self.assertFalse(house.enter("bruce").request(100.0))


class Denials(SynchronousTestCase):
    def test_the_first_ones_are_events_and_the_flood_is_counted(self) -> None:
        house = budgets()
        share = house.enter("bruce")
        own = sum(share.denied("container_stop", "devs", 403, 10.0 + n / 1000) for n in range(5000))
        self.assertGreaterEqual(own, budget.SINGLE)
        self.assertLess(own, budget.SINGLE + 10)
        self.assertEqual(house.due(14.0), [])
        (row,) = house.due(21.0)
        self.assertEqual(
            replace(row, first=0, last=0),
            Aggregate("engine", "bruce", "tls", "", "container_stop", "devs", 403, 5000 - own, 0, 0),
        )
        self.assertAlmostEqual(row.last, 14.999)
        self.assertLess(row.first, 10.2)
        self.assertEqual(house.due(40.0), [])

    def test_one_more_is_an_event_after_a_while(self) -> None:
        share = budgets().enter("bruce")
        for _ in range(1000):
            share.denied("container_stop", "devs", 403, 10.0)
        self.assertFalse(share.denied("container_stop", "devs", 403, 10.5))
        self.assertTrue(share.denied("container_stop", "devs", 403, 12.0))

    def test_one_user_takes_few_rows_and_leaves_those_of_others(self) -> None:
        house = budgets()
        loud, quiet = house.enter("loud"), house.enter("quiet")
        for number in range(2000):
            loud.denied(f"action{number}", f"rule{number}", 403, 1.0)
        for _ in range(200):
            quiet.denied("container_stop", "r", 403, 1.0)
        rows = house.drain()
        self.assertEqual(sum(row.user == "loud" for row in rows), budget.ROWS_OF_A_USER + 1)
        self.assertEqual([row.count for row in rows if row.user == "quiet"], [100])
        self.assertIn(OTHERS, {row.action for row in rows})

    def test_many_users_take_a_bounded_number_of_rows(self) -> None:
        tally = Tally("engine", Counted(OTHERS, "defender"), rows=50, each=4)
        for number in range(1000):
            tally.count(Counted(f"u{number}", "tls"), "a", "r", 403 if number % 2 else 429, 1.0)
        rows = tally.drain()
        self.assertEqual(len(rows), 52)
        self.assertEqual(sum(row.count for row in rows), 1000)
        self.assertEqual({row.user for row in rows[50:]}, {OTHERS})

    def test_an_endless_flood_makes_the_next_requests_wait(self) -> None:
        share = budgets().enter("bruce")
        for _ in range(budget.ANSWERED):
            self.assertLessEqual(share.flooded_until, 10.0)
            share.denied("container_stop", "devs", 403, 10.0)
        share.denied("container_stop", "devs", 403, 10.0)
        self.assertGreater(share.flooded_until, 10.0)
        self.assertLessEqual(share.flooded_until, 12.0)

    @settings(deadline=None)
    @given(
        strategies.lists(
            strategies.tuples(
                strategies.sampled_from(["a", "b", "c", "d", "e"]),
                strategies.integers(0, 30),
                strategies.sampled_from([403, 429, 400]),
                strategies.floats(0, 6),
                strategies.integers(1, 60),
                strategies.booleans(),
            ),
            max_size=60,
        )
    )
    def test_counts_add_up(self, steps: list[tuple[str, int, int, float, int, bool]]) -> None:
        house = budgets()
        house.tally = Tally("engine", Counted(OTHERS, "defender"), rows=20, each=5)
        now = 0.0
        asked: Counter[tuple[str, int]] = Counter()
        told: Counter[tuple[str, int]] = Counter()
        total = 0
        for user, action, status, pause, times, leaves in steps:
            now += pause
            share = house.enter(user)
            for _ in range(times):
                total += 1
                if not share.denied(f"action{action}", "r", status, now):
                    asked[user, status] += 1
            if leaves:
                house.leave(share, now)
            for row in house.due(now):
                self.assertGreaterEqual(row.last, row.first)
                self.assertGreater(row.count, 0)
                told[row.user, row.status] += row.count
        for row in house.drain():
            told[row.user, row.status] += row.count
        by_status = Counter[int]()
        for (_, status), count in asked.items():
            by_status[status] += count
        for (user, status), count in told.items():
            by_status[status] -= count
            if user != OTHERS:
                self.assertLessEqual(count, asked[user, status])
        self.assertEqual(set(by_status.values()) - {0}, set())
        self.assertEqual(house.drain(), [])


class Peers(SynchronousTestCase):
    def test_the_first_ones_of_an_address_are_events(self) -> None:
        house = budgets()
        own = sum(house.turned_away("10.0.0.1", "expired", 5.0) for _ in range(500))
        self.assertEqual(own, budget.TURNED_AWAY)
        self.assertTrue(house.turned_away("10.0.0.2", "expired", 5.0))
        self.assertEqual(house.due(5.0 + INTERVAL / 2), [])
        (row,) = house.due(5.0 + INTERVAL)
        self.assertEqual(
            row,
            Aggregate(
                "identity", "", "tls", "10.0.0.1", "handshake", "expired", 0, 500 - own, row.first, row.last
            ),
        )

    def test_many_addresses_are_bounded_and_all_counted(self) -> None:
        house = budgets()
        for _ in range(1000):
            house.turned_away("10.0.0.1", "expired", 5.0)
        own = sum(house.turned_away(f"2001:db8::{number:x}", "expired", 5.0) for number in range(20_000))
        self.assertLessEqual(own, budget.ALL_TURNED_AWAY)
        rows = house.drain()
        self.assertLessEqual(len(rows), budget.ROWS_OF_PEERS + 1)
        self.assertEqual(sum(row.count for row in rows) + own + budget.TURNED_AWAY, 21_000)
        self.assertIn(OTHERS, {row.address for row in rows})
        # The flood of addresses gave the first one no new events.
        self.assertFalse(house.turned_away("10.0.0.1", "expired", 5.1))
        self.assertTrue(math.isfinite(house._unnamed.full))

    def test_addresses_come_and_go(self) -> None:
        house = budgets()
        for number in range(5000):
            self.assertTrue(house.turned_away(f"10.0.{number >> 8}.{number & 255}", "expired", number * 1.0))
        self.assertLessEqual(len(house._addresses), budget.ADDRESSES)
