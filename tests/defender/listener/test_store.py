"""The mode chosen at run time, on disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from defender.listener.spec import DesiredMode
from defender.listener.store import ModeStore


class Keeping(SynchronousTestCase):
    def setUp(self) -> None:
        os.mkdir(folder := self.mktemp())
        self.path = Path(folder, "listener.json")
        self.store = ModeStore(self.path)

    def test_nothing_is_kept_at_first(self) -> None:
        self.assertIs(self.store.load(), None)
        self.store.clear()

    def test_what_is_kept_comes_back(self) -> None:
        desired = DesiredMode("unix+tcp", over="tcp")
        self.store.save(desired)
        self.assertEqual(self.store.load(), desired)
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
        self.assertEqual(os.listdir(self.path.parent), ["listener.json"])
        self.store.clear()
        self.assertIs(self.store.load(), None)

    def test_damage_counts_as_nothing(self) -> None:
        for text in ("", "{", "[]", "null", '{"mode": "unix"}', '{"mode": "x", "over": "tcp"}', "\udcff"):
            self.path.write_bytes(text.encode("utf-8", "surrogateescape"))
            self.assertIs(self.store.load(), None)

    def test_a_full_disk_keeps_the_old(self) -> None:
        self.store.save(DesiredMode("unix", over="tcp"))

        def full(*args: object) -> None:
            raise OSError(28, "No space left on device")

        self.patch(os, "fsync", full)
        self.assertRaises(OSError, self.store.save, DesiredMode("none", over="tcp"))
        self.assertEqual(self.store.load(), DesiredMode("unix", over="tcp"))
