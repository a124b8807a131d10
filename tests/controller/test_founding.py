"""A controller's first start, and every other one: what is there is used, and nothing is made twice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from controller.founding import Founded, FoundingError, found, life_left, notes_epoch, open_database
from controller.pki.credentials import certificate_hosts
from controller.settings import Settings, read_settings

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


class FoundingTests(TestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.state = Path(folder.name) / "controller"

    def settings(self, more: str = "") -> Settings:
        return read_settings(
            f'[controller]\nstate = "{self.state}"\n{more}',
            source="controller.toml",
            base=Path("/"),
            host_name="hq",
        )

    def found(self, more: str = "", now: datetime = NOW) -> Founded:
        return found(self.settings(more), "hq", now)

    def refused(self, more: str = "") -> str:
        return str(self.assertRaises(FoundingError, self.found, more))

    def files(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.state.rglob("*") if path.is_file()}

    def test_a_first_start_makes_everything_and_nobody_else_can_read_it(self) -> None:
        founded = self.found()
        self.assertTrue(founded.fresh)
        for path in self.state.rglob("*"):
            self.assertEqual(path.stat().st_mode & 0o077, 0, path)
        self.assertEqual(founded.keys.root.trust_domain, founded.authority.trust_domain)
        self.assertEqual(
            set(certificate_hosts(founded.identity.chain[0])), {"hq", "localhost", "127.0.0.1", "::1"}
        )
        self.assertEqual(len(founded.identity.chain), 3)

    def test_a_second_start_changes_nothing(self) -> None:
        first = self.found()
        before = self.files()
        again = self.found()
        self.assertEqual((again.fresh, self.files()), (False, before))
        self.assertEqual(again.keys.root, first.keys.root)

    def test_another_name_is_another_certificate_of_the_same_authority(self) -> None:
        first = self.found()
        again = self.found('names = ["controller.example.com", "10.0.0.7"]\n')
        self.assertIn("controller.example.com", certificate_hosts(again.identity.chain[0]))
        self.assertIn("10.0.0.7", again.identity.names)
        self.assertEqual(again.authority.root, first.authority.root)

    def test_a_certificate_that_ends_soon_is_replaced(self) -> None:
        first = self.found()
        later = NOW + life_left(first.identity, NOW) - timedelta(days=1)
        again = self.found(now=later)
        self.assertGreater(life_left(again.identity, later), timedelta(days=30))

    def test_what_cannot_be_used_is_named(self) -> None:
        self.found()
        self.assertIn(
            "controller.trust_domain: 'other.fleet'", self.refused('trust_domain = "other.fleet"\n')
        )
        key = self.state / "signing" / "bundle.key"
        key.chmod(0o644)
        self.assertIn("bundle.key: mode 0644 lets others read the key", self.refused())
        key.unlink()
        self.assertIn("bundle.key: No such file", self.refused())
        (self.state / "signing" / "roots").unlink()
        # The keys that are left are not thrown away.
        self.assertIn("roots: No such file", self.refused())

    def test_a_state_that_cannot_be_made(self) -> None:
        self.state.write_text("a file")
        self.assertIn(str(self.state), self.refused())

    async def test_the_store_has_one_number_for_its_notes(self) -> None:
        self.found()
        clock: Any = reactor
        database = open_database(self.state, clock)
        self.addCleanup(database.stop)
        first = await database.write(notes_epoch)
        self.assertEqual(await database.write(notes_epoch), first)
        self.assertTrue(0 < first < 2**64)
        error = self.assertRaises(FoundingError, open_database, self.state, clock)
        self.assertIn("store", str(error))
