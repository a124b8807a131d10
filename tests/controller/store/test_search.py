"""Searches by time and by position: complete, in order, resumable, across days, each filter by itself."""

from __future__ import annotations

import random
import sqlite3
from itertools import pairwise
from typing import Any
from unittest import mock

from twisted.internet.defer import inlineCallbacks
from twisted.trial.unittest import SynchronousTestCase

from controller.store import reading as reading_module
from controller.store import search as search_module
from controller.store.days import DayFile
from controller.store.errors import StoreError
from controller.store.events import EventStore
from controller.store.open_files import OpenFiles
from controller.store.query import Query, Stored, matcher
from tests.controller.store.trails import DAY, NOON, Steps, StoreCase, Trail, numbers, payload_of

START = int(NOON * 1_000_000)


def times(found: list[Stored]) -> list[str]:
    return [str(each.event["ts_wall"]) for each in found]


class SearchCase(StoreCase):
    @inlineCallbacks
    def search(self, store: EventStore, query: Query, limit: int = 3) -> Steps[list[Stored]]:
        """All pages of a search."""
        found: list[Stored] = []
        place, more = "", True
        while more:
            page = yield store.search(query, place, limit)
            found.extend(page.events)
            place, more = page.place, page.more
        return found


class ByTime(SearchCase):
    @inlineCallbacks
    def test_events_that_came_late_stand_where_they_belong(self) -> Steps[None]:
        """Three days of events, many of them taken in long after they were recorded."""
        dice = random.Random(7)
        store = self.open_store()
        moments: dict[tuple[int, int], int] = {}
        trails = [Trail(f"d{each}", each + 1) for each in range(3)]
        for day in range(3):
            self.now = NOON + day * DAY
            for trail in trails:
                before = trail.seq
                for _ in range(20):
                    # Not later than today, and some of the same microsecond.
                    micros = START + dice.randrange(0, (day + 1) * 20) * 1_000_000
                    trail.record([payload_of(trail.seq + 1, micros=micros)])
                    moments[trail.epoch, trail.seq] = micros
                yield store.ingest(trail.batch(before + 1, trail.seq))
        self.assertEqual(len(store.days), 3)
        with (
            mock.patch.object(search_module, "_WINDOW", 30),
            mock.patch.object(search_module, "_LEAST", 2),
        ):
            newest = yield self.search(store, Query(), 7)
            oldest = yield self.search(store, Query(newest_first=False), 7)
        self.assertEqual(len(newest), 180)
        self.assertEqual(len({each.position for each in newest}), 180)
        self.assertEqual(oldest, newest[::-1])
        shown = [moments[int(str(each.event["epoch"]), 16), int(str(each.event["seq"]))] for each in oldest]
        self.assertEqual(shown, sorted(moments.values()))
        for one, other in pairwise(oldest):
            self.assertTrue(one.event["ts_wall"] < other.event["ts_wall"] or one.position < other.position)
        some = yield self.search(store, Query(since=START + 5_000_000, until=START + 9_000_000))
        wanted = [at for at in moments.values() if START + 5_000_000 <= at < START + 9_000_000]
        self.assertEqual(len(some), len(wanted))

    @inlineCallbacks
    def test_only_the_days_that_may_have_something_are_opened(self) -> Steps[None]:
        store, trail = self.open_store(), Trail("d1")
        for day in range(12):
            self.now = NOON + day * DAY
            trail.many(5, micros=int(self.now * 1_000_000))
            yield store.ingest(trail.batch(trail.seq - 4, trail.seq))
        yield store.search(Query(), "", 100)
        opened: list[str] = []
        find = OpenFiles.find

        def counting(files: OpenFiles, file: DayFile) -> sqlite3.Connection | None:
            opened.append(file.day)
            return find(files, file)

        self.patch(OpenFiles, "find", counting)
        with mock.patch.object(search_module, "_WINDOW", 4), mock.patch.object(search_module, "_LEAST", 4):
            found = yield self.search(store, Query(), 7)
            self.assertEqual(numbers(found), list(range(60, 0, -1)))
            oldest = yield self.search(store, Query(newest_first=False), 7)
            self.assertEqual(numbers(oldest), list(range(1, 61)))
            opened.clear()
            page = yield store.search(Query(), "", 3)
            self.assertEqual((numbers(page.events), opened), ([60, 59, 58], ["2026-12-03"]))
        opened.clear()
        third = START + int(3 * DAY) * 1_000_000
        page = yield store.search(Query(since=third, until=third + 1), "", 9)
        self.assertEqual(numbers(page.events), [20, 19, 18, 17, 16])
        # The newest one may have anything.
        self.assertEqual(sorted(set(opened)), ["2026-11-25", "2026-12-03"])

    @inlineCallbacks
    def test_events_of_one_moment_are_told_apart_by_their_position(self) -> Steps[None]:
        store, trail = self.open_store(), Trail("d1")
        trail.many(50, micros=START)
        yield store.ingest(trail.batch(1, 50))
        found = yield self.search(store, Query())
        self.assertEqual(numbers(found), list(range(50, 0, -1)))
        self.assertEqual(len(set(times(found))), 1)

    @inlineCallbacks
    def test_one_call_looks_at_so_many_events_and_no_more(self) -> Steps[None]:
        store, trail = self.open_store(), Trail("d1")
        trail.many(400)
        trail.many(1, user="alice")
        trail.many(400)
        yield store.ingest(trail.batch(1, 801))
        wanted = Query(users=("alice",))
        with (
            mock.patch.object(search_module, "_WINDOW", 10),
            mock.patch.object(search_module, "_LEAST", 10),
            mock.patch.object(search_module, "MOST_EXAMINED", 100),
        ):
            page = yield store.search(wanted, "", 10)
            self.assertEqual((page.events, page.more), ([], True))
            self.assertGreaterEqual(page.examined, 100)
            self.assertLess(page.examined, 700)
            found = yield self.search(store, wanted)
        self.assertEqual(numbers(found), [401])
        with mock.patch.object(search_module, "MOST_OPENED", 50):
            page = yield store.search(Query(fields=(("req.query.fromImage", "nginx:401"),)), "", 10)
            self.assertEqual((page.events, page.more), ([], True))
            found = yield self.search(store, Query(fields=(("req.query.fromImage", "nginx:401"),)))
        self.assertEqual(numbers(found), [401])

    @inlineCallbacks
    def test_a_place_that_was_made_up(self) -> Steps[None]:
        store = self.open_store()
        for place in ("x", "1", "1.", "1.2.3", "-1.2", "1.²", "9" * 30 + ".1"):
            yield self.assertFailure(store.search(Query(), place), StoreError)


class Filters(SearchCase):
    @inlineCallbacks
    def test_each_filter_by_itself_and_all_together(self) -> Steps[None]:
        store = self.open_store()
        first, second = Trail("d1", agent="web1"), Trail("d2", agent="web2")
        first.many(1, user="Alice@example.com", action="container_list", effect="allow")
        first.many(1, user="ci-1", action="image_create", effect="deny")
        first.many(1, user="ci-2", action="container_list", effect="")
        second.many(1, user="ci-1", action="container_create", effect="allow")
        yield store.ingest(first.batch(1, 3))
        yield store.ingest(second.batch(1, 1))
        cases = {
            Query(): ["web1 1", "web1 2", "web1 3", "web2 1"],
            Query(defenders=("d2",)): ["web2 1"],
            Query(defenders=("WEB1",)): ["web1 1", "web1 2", "web1 3"],
            Query(defenders=("*2", "nobody")): ["web2 1"],
            Query(defenders=("d*",)): ["web1 1", "web1 2", "web1 3", "web2 1"],
            Query(users=("alice@example.com",)): ["web1 1"],
            Query(users=("CI-*",)): ["web1 2", "web1 3", "web2 1"],
            Query(users=("nobody",)): [],
            Query(users=("ci-1", "alice*")): ["web1 1", "web1 2", "web2 1"],
            Query(actions=("container_*",)): ["web1 1", "web1 3", "web2 1"],
            Query(actions=("image_pull",)): ["web1 2"],
            Query(effects=("allow",)): ["web1 1", "web2 1"],
            Query(effects=("",)): ["web1 3"],
            Query(users=("ci-1",), effects=("deny",)): ["web1 2"],
            Query(users=("ci-1",), effects=("deny",), defenders=("d2",)): [],
            Query(fields=(("req.query.fromImage", "NGINX:2"),)): ["web1 2"],
            Query(fields=(("decision.effect", ""),)): ["web1 3"],
            Query(fields=(("agent", "web2"),)): ["web2 1"],
        }
        for query, wanted in cases.items():
            by_position = yield self.events(store, query)
            by_time = yield self.search(store, query)
            for found in (by_position, by_time):
                shown = sorted(f"{each.event['agent']} {each.event['seq']}" for each in found)
                self.assertEqual(shown, wanted, query)

    @inlineCallbacks
    def test_an_event_by_its_id(self) -> Steps[None]:
        store, trail = self.open_store(), Trail("d1")
        trail.many(300)
        yield store.ingest(trail.batch(1, 300))
        self.now += DAY
        trail.many(1, micros=START + 3600 * 1_000_000)
        yield store.ingest(trail.batch(301, 301))
        for stored in (yield self.events(store))[::60]:
            found = yield store.event(str(stored.event["id"]))
            self.assertEqual(found, stored)
        for wrong in ("", "x", "01936b2e-0000-7000-8000-000000000000"):
            self.assertIsNone((yield store.event(wrong)))

    @inlineCallbacks
    def test_a_search_that_nobody_should_ask(self) -> Steps[None]:
        store = self.open_store()
        for query in (
            Query(fields=(("a", "b"),) * 21),
            Query(users=("u",) * 1001),
            Query(fields=(("", "b"),)),
        ):
            yield self.assertFailure(store.search(query), StoreError)
            yield self.assertFailure(store.after(0, query), StoreError)


class Following(SearchCase):
    @inlineCallbacks
    def test_positions_go_on_over_days_and_restarts(self) -> Steps[None]:
        store, trail = self.open_store(), Trail("d1")
        told: list[int] = []
        stop = store.listen(told.append)
        for day in range(3):
            self.now = NOON + day * DAY
            trail.many(10)
            yield store.ingest(trail.batch(trail.seq - 9, trail.seq))
        self.assertEqual(told, [10, 20, 30])
        stop()
        stop()
        page = yield store.after(8, Query(), 4)
        self.assertEqual([each.position for each in page.events], [9, 10, 11, 12])
        self.assertEqual((page.place, page.more), ("12", True))
        yield store.stop()
        store = self.open_store()
        self.assertEqual((store.position, store.first_position), (30, 1))
        page = yield store.after(int(page.place), Query(), 100)
        self.assertEqual([each.position for each in page.events], list(range(13, 31)))
        self.assertEqual((page.place, page.more), ("30", False))
        page = yield store.after(30, Query())
        self.assertEqual((page.events, page.place, page.more), ([], "30", False))
        page = yield store.after(5, Query(), 100, 14)
        self.assertEqual([each.position for each in page.events], list(range(6, 15)))

    @inlineCallbacks
    def test_what_is_not_wanted_is_passed(self) -> Steps[None]:
        store, trail = self.open_store(), Trail("d1")
        trail.many(200)
        yield store.ingest(trail.batch(1, 200))
        with mock.patch.object(reading_module, "STRIDE", 10):
            page = yield store.after(0, Query(users=("nobody",)))
            self.assertEqual((page.events, page.place, page.more), ([], "200", False))
            with mock.patch.object(search_module, "MOST_EXAMINED", 50):
                page = yield store.after(0, Query(users=("nobody",)))
            self.assertEqual((page.place, page.more, page.examined), ("50", True, 50))


class Matching(SynchronousTestCase):
    def test_paths_into_an_event(self) -> None:
        event: dict[str, Any] = {
            "actor": {"groups": ["Dev team", "Ops"], "uid": 1000},
            "req": {"query": {"a.b": "x", "force": True, "list": [{"n": 1.5}, {"n": None}]}},
        }
        for path, pattern, wanted in (
            ("actor.groups", "dev*", True),
            ("actor.groups", "dev", False),
            ("actor.uid", "1000", True),
            ("actor.uid", "10*", True),
            ("req.query.a.b", "X", True),
            ("req.query.force", "true", True),
            ("req.query.list.n", "1.5", True),
            ("req.query.list.n", "", True),
            ("req.query.other", "", True),
            ("req.query.other", "*", False),
            ("actor.uid.deeper", "*", False),
        ):
            test = matcher(Query(fields=((path, pattern),)))
            assert test is not None
            self.assertEqual(test(event), wanted, (path, pattern))
        self.assertIsNone(matcher(Query()))
