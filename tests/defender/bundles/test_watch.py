"""A file that changes is read, once, and whole."""

from __future__ import annotations

import os

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from defender.bundles.watch import FileWatch


class WatchTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = os.path.abspath(self.mktemp())
        os.makedirs(directory)
        self.path = os.path.join(directory, "policy.yaml")
        self.clock = Clock()
        self.texts: list[str] = []
        self.failures: list[str] = []

    def watch(self, *, missing_is_empty: bool = False, limit: int = 100) -> FileWatch:
        watch = FileWatch(
            self.clock,
            self.path,
            self.texts.append,
            self.failures.append,
            limit=limit,
            missing_is_empty=missing_is_empty,
        )
        watch.start()
        self.addCleanup(watch.stop)
        return watch

    def write(self, text: str, *, replace: bool = False) -> None:
        path = self.path + ".new" if replace else self.path
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        if replace:
            os.replace(path, self.path)

    def look(self, times: int = 2) -> None:
        self.clock.pump([0.25] * times)

    def test_read_at_the_start_and_after_each_change_only(self) -> None:
        self.write("one")
        self.watch()
        self.look(10)
        self.assertEqual(self.texts, ["one"])
        self.write("two", replace=True)
        self.look(10)
        self.assertEqual(self.texts, ["one", "two"])

    def test_half_written_file_is_not_read(self) -> None:
        """A file that still changes between two looks waits for the next one."""
        self.write("one")
        self.watch()
        self.write("tw")
        self.look(1)
        self.write("two!")
        self.look(1)
        self.assertEqual(self.texts, ["one"])
        self.look(1)
        self.assertEqual(self.texts, ["one", "two!"])

    def test_missing_file_is_said_and_read_when_it_comes(self) -> None:
        self.watch()
        self.assertEqual(self.failures, ["cannot be read: No such file or directory"])
        self.write("one")
        self.look()
        self.assertEqual(self.texts, ["one"])

    def test_missing_file_may_be_empty(self) -> None:
        self.write("one")
        self.watch(missing_is_empty=True)
        os.unlink(self.path)
        self.look()
        self.assertEqual((self.texts, self.failures), (["one", ""], []))

    def test_what_cannot_be_a_file_of_ours_is_said(self) -> None:
        os.mkfifo(self.path)
        self.watch()
        self.assertEqual(self.failures, ["is not a regular file"])

    def test_too_large_and_not_text(self) -> None:
        self.write("x" * 101)
        self.watch()
        with open(self.path, "wb") as file:
            file.write(b"a\xff")
        self.look()
        self.assertEqual(self.failures, ["is larger than 100 bytes", "is not UTF-8 at byte 1"])
        self.assertEqual(self.texts, [])
