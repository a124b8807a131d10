"""A fault of ours in one place must not end what guards all: the watch over the policy, and the sweep."""

from __future__ import annotations

import os
from unittest import mock

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from defender.bundles.watch import FileWatch
from tests.defender.proxy.house import LIST, HouseCase


class WatchTests(SynchronousTestCase):
    def test_fault_while_a_file_is_taken_over(self) -> None:
        path = os.path.abspath(self.mktemp())
        with open(path, "w", encoding="ascii") as file:
            file.write("one")
        clock, seen, failed = Clock(), list[str](), list[str]()

        def changed(text: str) -> None:
            seen.append(text)
            if text == "two":
                raise RuntimeError("a bug")

        watch = FileWatch(clock, path, changed, failed.append)
        watch.start()
        self.addCleanup(watch.stop)
        for text in ("two", "three!"):
            with open(path, "w", encoding="ascii") as file:
                file.write(text)
            clock.pump([0.25] * 4)
        self.assertEqual(seen, ["one", "two", "three!"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(len(failed), 1)


class SweepTests(HouseCase):
    def test_fault_in_one_connection(self) -> None:
        """Time-outs and expiry of all others depend on the sweep."""
        client = self.house.client()
        client.deliver(LIST)
        other = self.house.client()
        broken = RuntimeError("a bug")
        with (
            mock.patch.object(client, "is_gone", side_effect=broken),
            mock.patch.object(client, "abort", side_effect=broken),
        ):
            self.house.advance(12)
        self.assertTrue(other.closed)
        self.assertTrue(self.house.proxy._sweeper.running)
        self.assertTrue(self.flushLoggedErrors(RuntimeError))
