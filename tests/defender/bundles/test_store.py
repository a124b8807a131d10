"""Bundles on disk: a crash leaves the old or the new, and nothing that is read is believed."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from defender.bundles.commands import PersistBundle, PersistMark, PersistRoots
from defender.bundles.store import KEPT, BundleStore, bundle_name
from defender.bundles.streams import Streams
from defender.contract.bundle import NOWHERE, BundleError
from defender.contract.envelope import MAX_ENVELOPE
from defender.contract.high_water import HighWater
from tests.defender.bundles.desk import Desk
from tests.defender.contract.signing import (
    FIRST,
    OTHER_FLEET,
    ROOT,
    new_root,
    position,
    signed,
    signed_root,
)


class CrashError(BaseException):
    """The process ends here."""


class StoreCase(SynchronousTestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name) / "bundles"
        self.store = BundleStore(self.path)
        self.water = HighWater(1, ROOT.digest)

    def keep(self, version: int, stream: str = "policy", *, active: bool = True) -> bytes:
        """Accept a version as the machine would."""
        data = signed(stream, version)
        keep = self.water.mark(stream).active
        water = self.water.accept(stream, position(data, version))
        self.store.perform(PersistBundle(0, stream, position(data, version), data, water.encode(), keep))
        self.water = water if active else water.activate(stream, keep)
        return data

    def names(self, stream: str = "policy") -> list[str]:
        return sorted(os.listdir(self.path / stream))


class Keeping(StoreCase):
    def test_nothing_at_first(self) -> None:
        loaded = self.store.load()
        self.assertEqual((loaded.stored.roots, loaded.stored.high_water, loaded.problems), (None, None, ()))
        self.assertFalse(self.path.exists())

    def test_what_is_kept_comes_back(self) -> None:
        self.store.perform(PersistRoots(1, FIRST, self.water.encode()))
        one, two = self.keep(1), self.keep(2)
        lock = self.keep(7, "locks")
        stored = self.store.load().stored
        self.assertEqual((stored.roots, stored.high_water), (FIRST, self.water.encode()))
        self.assertEqual(stored.bundles["policy"], (two, one))
        self.assertEqual(stored.bundles["locks"], (lock,))
        self.assertEqual(stored.bundles["mode"], ())

    def test_one_of_them_for_a_controller_that_has_lost_it(self) -> None:
        data = self.keep(4)
        at = position(data, 4)
        self.assertEqual(self.store.envelope("policy", at), data)
        self.assertIs(self.store.envelope("policy", position(data, 5)), None)
        self.assertIs(self.store.envelope("locks", at), None)
        self.assertIs(self.store.envelope("../bundles/policy", at), None)

    def test_nobody_else_reads_it(self) -> None:
        self.store.perform(PersistRoots(1, FIRST, None))
        self.keep(1)
        for folder, _, files in os.walk(self.path):
            self.assertEqual(stat.S_IMODE(os.stat(folder).st_mode), 0o700)
            for name in files:
                self.assertEqual(stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode), 0o600)

    def test_three_are_kept_and_the_one_in_force(self) -> None:
        first = self.keep(1)
        for version in (2, 3, 4, 5):
            self.keep(version, active=False)
        kept = [bundle_name(position(signed(version=version), version)) for version in (1, 3, 4, 5)]
        self.assertEqual(self.names(), kept)
        self.store.perform(PersistMark(0, self.water.encode()))
        stored = self.store.load().stored.bundles["policy"]
        self.assertEqual(len(stored), KEPT + 1)
        self.assertEqual(stored[-1], first)

    def test_names_sort_by_position(self) -> None:
        versions = [1, 9, 10, 2**63, 2**64 - 1]
        names = [bundle_name(position(signed(version=version), version)) for version in versions]
        self.assertEqual(sorted(names), names)


class Damage(StoreCase):
    def setUp(self) -> None:
        super().setUp()
        self.store.perform(PersistRoots(1, FIRST, None))
        self.data = self.keep(1)
        self.file = self.path / "policy" / self.names()[0]

    def test_what_is_no_file_of_ours_is_told(self) -> None:
        for make in (self._link, self._fifo, self._folder, self._large):
            self.file.unlink()
            make()
            loaded = self.store.load()
            self.assertEqual(loaded.stored.bundles["policy"], ())
            self.assertEqual(len(loaded.problems), 1, make.__name__)
            self.assertIn(str(self.file), loaded.problems[0])
            if make == self._folder:
                self.file.rmdir()
                self.file.touch()

    def _link(self) -> None:
        elsewhere = self.path / "elsewhere"
        elsewhere.write_bytes(self.data)
        self.file.symlink_to(elsewhere)

    def _fifo(self) -> None:
        os.mkfifo(self.file)

    def _folder(self) -> None:
        self.file.mkdir()

    def _large(self) -> None:
        """Of a size that no bundle has; it is not read to its end."""
        with self.file.open("wb") as file:
            file.truncate(100 * MAX_ENVELOPE)

    def test_other_files_are_left_alone(self) -> None:
        other = self.path / "policy" / "notes.txt"
        other.write_text("mine")
        self.keep(2)
        self.assertEqual(len(self.store.load().stored.bundles["policy"]), 2)
        self.assertEqual(other.read_text(), "mine")

    def test_a_link_in_the_place_of_what_is_written(self) -> None:
        """Nobody makes this program write elsewhere."""
        target = self.path / "target"
        (self.path / "high-water.new").symlink_to(target)
        self.assertRaises(OSError, self.store.perform, PersistMark(0, self.water.encode()))
        self.assertFalse(target.exists())

    def test_what_is_on_disk_is_not_believed(self) -> None:
        """From the file to what is in force every byte is verified."""
        for index in range(0, len(self.data), 17):
            bad = bytearray(self.data)
            bad[index] ^= 4
            self.file.write_bytes(bytes(bad))
            desk = Desk()
            desk.mark = self.water.encode()
            desk.bundles = {"policy": list(self.store.load().stored.bundles["policy"])}
            desk.restart()
            self.assertEqual(desk.in_force, {})


class Crashes(StoreCase):
    """The process ends, or the disk fails, at every call that reaches the disk."""

    def setUp(self) -> None:
        super().setUp()
        self.store.perform(PersistRoots(1, FIRST, None))
        self.old = self.keep(11)

    def after(self, count: int, error: BaseException) -> Callable[[], int]:
        """Raise at the call of that number from now on, and at each that follows."""
        calls = 0

        def counted(call: Callable[..., Any]) -> Callable[..., Any]:
            def replacement(*arguments: Any, **named: Any) -> Any:
                nonlocal calls
                if call is os.open and not arguments[1] & os.O_CREAT:
                    return call(*arguments, **named)
                calls += 1
                if calls > count:
                    raise error
                return call(*arguments, **named)

            return replacement

        for name in ("fsync", "replace", "open"):
            self.patch(os, name, counted(getattr(os, name)))
        return lambda: calls

    def start(self) -> Streams:
        """A start with what is on disk."""
        desk = Desk()
        stored = BundleStore(self.path).load().stored
        desk.roots, desk.mark = stored.roots, stored.high_water
        desk.bundles = {stream: list(each) for stream, each in stored.bundles.items()}
        desk.restart()
        self.assertEqual(desk.streams.waiting, "")
        return desk.streams

    def test_a_bundle_is_there_or_not(self) -> None:
        seen = []
        for count in range(100):
            calls = self.after(count, CrashError())
            water = self.water
            try:
                self.keep(12)
                done = True
            except CrashError:
                done = False
            total = calls()
            self.water = water
            self._restore_os()
            version = self.start().positions()["policy"].version
            seen.append(version)
            if done:
                self.assertEqual(version, 12)
                self.assertEqual(total, count)
                break
            self.assertIn(version, (11, 12))
            # Back to before.
            for name in self.names():
                if name != bundle_name(position(self.old, 11)):
                    (self.path / "policy" / name).unlink()
            self.store.perform(PersistMark(0, self.water.encode()))
        self.assertEqual(seen, sorted(seen))
        self.assertGreater(len(seen), 5)
        self.assertEqual((seen[0], seen[-1]), (11, 12))

    def test_a_disk_that_fails(self) -> None:
        for count in range(100):
            calls = self.after(count, OSError(5, "Input/output error"))
            water = self.water
            try:
                self.keep(12)
                break
            except OSError:
                self.water = water
            finally:
                total = calls()
                self._restore_os()
            self.assertGreater(total, count)
            self.assertIn(self.start().positions()["policy"].version, (11, 12))
            self.store.perform(PersistMark(0, self.water.encode()))
        self.assertEqual(self.start().positions()["policy"].version, 12)

    def test_roots_are_old_or_new(self) -> None:
        chain = FIRST + signed_root(new_root(version=2))
        for count in range(100):
            calls = self.after(count, CrashError())
            try:
                self.store.perform(PersistRoots(1, chain, self.water.encode()))
                done = True
            except CrashError:
                done = False
            calls()
            self._restore_os()
            root = self.start().root
            self.assertIn(root.version if root else 0, (2,) if done else (1, 2))
            if done:
                break

    def _restore_os(self) -> None:
        for name in ("fsync", "replace", "open"):
            self.patch(os, name, getattr(_REAL, name))

    def test_everything_is_synced(self) -> None:
        """The envelope before the mark that names it, each file before its name, each folder after."""
        log: list[str] = []
        names: dict[int, str] = {}

        def opened(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
            descriptor = _REAL.open(path, flags, *arguments, **named)
            names[descriptor] = Path(path).name
            return descriptor

        def synced(descriptor: int) -> None:
            log.append(f"sync {names[descriptor]}")
            _REAL.fsync(descriptor)

        def replaced(source: Any, target: Any) -> None:
            kind = "bundle" if str(target).endswith(".bundle") else Path(target).name
            log.append(f"{Path(source).name} becomes {kind}")
            _REAL.replace(source, target)

        self.patch(os, "open", opened)
        self.patch(os, "fsync", synced)
        self.patch(os, "replace", replaced)
        self.keep(12)
        self.assertEqual(
            log,
            [
                "sync incoming",
                "sync policy",
                "sync high-water.new",
                "high-water.new becomes high-water",
                "sync bundles",
                "incoming becomes bundle",
                "sync policy",
            ],
        )


class _Real:
    open = staticmethod(os.open)
    fsync = staticmethod(os.fsync)
    replace = staticmethod(os.replace)


_REAL = _Real()


class Adopting(StoreCase):
    def refused(self, code: str, chain: bytes) -> None:
        self.assertEqual(self.assertRaises(BundleError, self.store.adopt, chain).code, code)

    def test_the_roots_of_an_enrolment(self) -> None:
        self.store.adopt(FIRST)
        self.assertEqual(self.store.load().stored.roots, FIRST)

    def test_roots_that_are_none(self) -> None:
        self.refused("malformed", b"")
        self.refused("wrong-key", signed_root(new_root(), "stranger"))
        self.assertFalse(self.path.exists())

    def test_newer_ones_stay(self) -> None:
        chain = FIRST + signed_root(new_root(version=2))
        self.store.adopt(chain)
        self.store.adopt(FIRST)
        self.assertEqual(self.store.load().stored.roots, chain)

    def test_another_fleet(self) -> None:
        self.store.adopt(FIRST)
        self.refused("foreign-fleet", signed_root(new_root(fleet=OTHER_FLEET)))
        self.assertEqual(self.store.load().stored.roots, FIRST)

    def test_damaged_ones_are_mended(self) -> None:
        self.store.adopt(FIRST)
        (self.path / "roots").write_bytes(FIRST[:-1])
        self.store.adopt(FIRST)
        self.assertEqual(self.store.load().stored.roots, FIRST)
        self.assertEqual(self.water.mark("policy").active, NOWHERE)
