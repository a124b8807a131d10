"""Chores come again after each end, good or bad, never twice at a time; and an end waits for them."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import Logger, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from controller.chores import Chores


class ChoresTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.logged: list[str] = []
        observer: Any = lambda event: self.logged.append(str(formatEvent(event)))  # noqa: E731
        self.patch(Chores, "log", Logger(observer=observer))
        self.chores = Chores(self.clock)
        self.begun: list[Deferred[None]] = []

    async def work(self) -> None:
        doing: Deferred[None] = Deferred()
        self.begun.append(doing)
        await doing

    def test_it_begins_after_its_time_or_at_once(self) -> None:
        self.chores.every(10, "look", self.work)
        self.assertEqual(len(self.begun), 0)
        self.clock.advance(10)
        self.assertEqual(len(self.begun), 1)
        self.chores.every(10, "look elsewhere", self.work, now=True)
        self.assertEqual(len(self.begun), 2)

    def test_one_that_takes_long_is_not_begun_twice(self) -> None:
        self.chores.every(10, "look", self.work)
        self.clock.pump([10] * 3)
        self.assertEqual(len(self.begun), 1)
        self.begun[0].callback(None)
        self.clock.advance(10)
        self.assertEqual(len(self.begun), 2)

    def test_trouble_is_told_once_and_its_end_too(self) -> None:
        self.chores.every(10, "tidy", self.work)
        for trouble in ("the disk is full", "the disk is full", "the disk is gone", ""):
            self.clock.advance(10)
            if trouble:
                self.begun[-1].errback(OSError(trouble))
            else:
                self.begun[-1].callback(None)
        self.assertEqual(
            self.logged,
            ["could not tidy: the disk is full", "could not tidy: the disk is gone", "done again: tidy"],
        )

    def test_work_that_fails_at_once_comes_again(self) -> None:
        async def fail() -> None:
            self.begun.append(Deferred())
            raise OSError("no")

        self.chores.every(10, "tidy", fail)
        self.clock.pump([10, 10])
        self.assertEqual(len(self.begun), 2)

    def test_the_end_waits_for_what_is_under_way(self) -> None:
        self.chores.every(10, "look", self.work)
        self.chores.every(20, "tidy", self.work)
        self.clock.advance(10)
        ended = self.chores.stop()
        self.assertNoResult(ended)
        self.begun[0].errback(OSError("too late"))
        self.successResultOf(ended)
        self.clock.pump([10] * 4)
        self.assertEqual(len(self.begun), 1)
