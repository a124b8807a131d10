"""The tables of the fleet's state: what goes in comes out, and what must not happen cannot."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from controller.store import (
    bundles,
    certificates,
    defenders,
    facts,
    forwarding,
    locks,
    modes,
    policies,
    positions,
)
from controller.store.bundles import BundleRow, PositionRow
from controller.store.certificates import CertificateRow
from controller.store.errors import ExistsError, MissingError
from controller.store.locks import LockRow
from controller.store.migrations import migrate, migrations_of
from controller.store.policies import PolicyRow, VersionRow
from controller.store.positions import HeldRow, RefusalRow


class RepositoryCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.addCleanup(self.connection.close)
        self.connection.execute("PRAGMA foreign_keys = ON")
        migrate(self.connection, Path("x.db"), migrations_of("control"))

    def enroll(self, *names: str) -> None:
        for name in names:
            defenders.add(self.connection, f"id-{name}", name, enrolled=1.0, token="t")


class Defenders(RepositoryCase):
    def test_one(self) -> None:
        c = self.connection
        defenders.add(c, "a", "Web1", enrolled=5.0, token="t", labels={"env": "prod", "dc": "1"})
        row = defenders.find(c, "a")
        assert row is not None
        self.assertEqual((row.name, row.enrolled, row.token, row.lock), ("Web1", 5.0, "t", ""))
        self.assertEqual(row.labels, {"env": "prod", "dc": "1"})
        self.assertEqual(defenders.find_named(c, "WEB1"), row)
        self.assertEqual((defenders.find(c, "b"), defenders.find_named(c, "b")), (None, None))
        for ident, name in (("a", "other"), ("b", "wEB1")):
            self.assertRaises(ExistsError, defenders.add, c, ident, name, enrolled=1.0, token="t")
        defenders.add(c, "c", "Über", enrolled=1.0, token="t")
        self.assertRaises(ExistsError, defenders.add, c, "d", "u\u0308BER", enrolled=1.0, token="t")

    def test_labels(self) -> None:
        c = self.connection
        self.enroll("a", "b")
        before, after = defenders.relabel(c, "id-a", {"x": "1", "y": "2"})
        self.assertEqual((before, after), ({}, {"x": "1", "y": "2"}))
        before, after = defenders.relabel(c, "id-a", {"x": None, "y": "3", "z": None})
        self.assertEqual((before, after), ({"x": "1", "y": "2"}, {"y": "3"}))
        self.assertEqual([row.labels for row in defenders.every(c)], [{"y": "3"}, {}])
        self.assertRaises(MissingError, defenders.relabel, c, "no", {})

    def test_sessions_status_and_locks(self) -> None:
        c = self.connection
        self.enroll("a")
        self.assertEqual(defenders.begin_session(c, "id-a", now=9.0, address="::1", program="1.0"), 1)
        self.assertEqual(defenders.begin_session(c, "id-a", now=10.0, address="::2", program="1.1"), 2)
        defenders.keep_seen(c, [("id-a", 12.0), ("id-a", 11.0), ("gone", 5.0)])
        defenders.keep_status(c, "id-a", {"listener": "tcp"})
        defenders.set_lock(c, "id-a", "its key is in use twice")
        row = defenders.find(c, "id-a")
        assert row is not None
        self.assertEqual((row.generation, row.last_seen, row.address, row.program), (2, 12.0, "::2", "1.1"))
        self.assertEqual((row.status, row.lock), ({"listener": "tcp"}, "its key is in use twice"))
        self.assertRaises(MissingError, defenders.set_lock, c, "no", "")
        self.assertRaises(MissingError, defenders.begin_session, c, "no", now=1.0, address="", program="")

    def test_pages(self) -> None:
        self.enroll("b", "A", "c", "D")
        names = [row.name for row in defenders.page(self.connection, limit=3)]
        self.assertEqual(names, ["A", "b", "c"])
        self.assertEqual([row.name for row in defenders.page(self.connection, "c")], ["D"])
        self.assertEqual([row.name for row in defenders.every(self.connection)], ["A", "b", "c", "D"])

    def test_removal_takes_everything_along(self) -> None:
        c = self.connection
        self.enroll("a", "b")
        for ident in ("id-a", "id-b"):
            defenders.relabel(c, ident, {"x": "1"})
            certificates.keep(c, ident, [CertificateRow(ident.encode(), b"k", 1, 2, "used", 1, b"pem")])
            positions.follow(c, "policy", [(ident, "default")])
            positions.refuse(c, RefusalRow(ident, "policy", PositionRow(1, 1), "code", "", 1.0))
        modes.order(c, "o", ["id-a", "id-b"], listener="tcp", drain=None, author="x", now=1.0)
        self.assertEqual(defenders.remove(c, "id-a").name, "a")
        for table in ("defenders", "labels", "certificates", "positions", "refusals", "modes"):
            (count,) = c.execute(f"SELECT count(*) FROM {table}").fetchone()
            self.assertEqual(count, 1, table)
        self.assertRaises(MissingError, defenders.remove, c, "id-a")
        self.enroll("a")


class Certificates(RepositoryCase):
    def test_a_set_is_replaced_and_keeps_its_chains(self) -> None:
        c = self.connection
        self.enroll("a", "b")
        first = CertificateRow(b"1", b"k1", 10, 20, "used", 10, b"pem 1")
        certificates.keep(c, "id-a", [first])
        self.assertEqual(certificates.of(c, "id-a"), [first])
        second = CertificateRow(b"2", b"k2", 15, 25, "used", 16, b"pem 2")
        certificates.keep(c, "id-a", [second, CertificateRow(b"1", b"k1", 10, 20, "superseded", 16)])
        kept = certificates.of(c, "id-a")
        self.assertEqual(
            [(row.state, row.chain) for row in kept], [("superseded", b"pem 1"), ("used", b"pem 2")]
        )
        self.assertEqual(certificates.owner(c, b"1"), "id-a")
        self.assertEqual(certificates.owner(c, b"3"), None)
        self.assertEqual(certificates.expiry(c), {"id-a": 25})
        # No certificate is anybody else's.
        self.assertRaises(sqlite3.IntegrityError, certificates.keep, c, "id-b", [first])
        self.assertRaises(
            sqlite3.IntegrityError, certificates.keep, c, "no", [CertificateRow(b"9", b"", 1, 2, "used", 1)]
        )


class Policies(RepositoryCase):
    def version(self, number: int, policy: str = "default", text: str = "rules: []") -> VersionRow:
        return VersionRow(policy, number, text, {"names": ["web*"]}, "sha256:x", "alice", 5.0, "why")

    def test_drafts_and_versions(self) -> None:
        c = self.connection
        self.assertEqual(policies.find(c, "default"), None)
        draft = PolicyRow("default", None, {"text": "rules: [", "by": "alice"})
        policies.keep(c, draft)
        self.assertEqual(policies.find(c, "default"), draft)
        policies.add_version(c, self.version(3))
        policies.keep(c, PolicyRow("default", 3))
        self.assertEqual(policies.every(c), [PolicyRow("default", 3)])
        self.assertEqual(policies.find_version(c, "default", 3), self.version(3))
        self.assertRaises(MissingError, policies.keep, c, PolicyRow("default", 4))
        self.assertRaises(MissingError, policies.keep, c, PolicyRow("other", 3))

    def test_a_version_is_for_good(self) -> None:
        c = self.connection
        policies.add_version(c, self.version(3))
        self.assertRaises(ExistsError, policies.add_version, c, self.version(3, text="other"))
        for statement in ("UPDATE policy_versions SET text = 'x'", "DELETE FROM policy_versions"):
            error = self.assertRaises(sqlite3.IntegrityError, c.execute, statement)
            self.assertIn("a published version", str(error))
        policies.keep(c, PolicyRow("default", 3))
        policies.remove(c, "default")
        self.assertRaises(MissingError, policies.remove, c, "default")
        self.assertEqual(policies.find_version(c, "default", 3), self.version(3))

    def test_pages_of_versions(self) -> None:
        c = self.connection
        for number in (2, 5, 7):
            policies.add_version(c, self.version(number))
        policies.add_version(c, self.version(6, "other"))
        self.assertEqual([row.number for row in policies.versions(c, "default")], [7, 5, 2])
        self.assertEqual([row.number for row in policies.versions(c, "default", 7, 1)], [5])


class Bundles(RepositoryCase):
    def bundle(
        self, version: int, line: str = "default", key_epoch: int = 1, envelope: bytes = b"e"
    ) -> BundleRow:
        position = PositionRow(key_epoch, version)
        return BundleRow("policy", position, line, position, b"d", None, 1.0, envelope)

    def test_any_version_of_64_bits(self) -> None:
        c = self.connection
        for version in (2**64 - 1, 1, 2**63, 300, 2):
            bundles.add(c, self.bundle(version))
        found = bundles.newest(c, "policy")
        self.assertEqual(found and found.position.version, 2**64 - 1)
        bundles.add(c, self.bundle(1, key_epoch=2))
        found = bundles.newest(c, "policy", "default")
        self.assertEqual(found and found.position, PositionRow(2, 1))
        self.assertEqual(bundles.newest(c, "locks"), None)
        self.assertEqual(bundles.find(c, "policy", PositionRow(1, 2**63)), self.bundle(2**63))

    def test_a_bundle_never_changes(self) -> None:
        c = self.connection
        bundles.add(c, self.bundle(1))
        bundles.add(c, self.bundle(1))
        self.assertRaises(ExistsError, bundles.add, c, self.bundle(1, envelope=b"other"))
        error = self.assertRaises(sqlite3.IntegrityError, c.execute, "UPDATE bundles SET envelope = x'00'")
        self.assertIn("a signed bundle never changes", str(error))

    def test_an_audience(self) -> None:
        row = BundleRow("mode", PositionRow(1, 2), "", PositionRow(1, 1), b"d", ("a", "b"), 1.0, b"e")
        bundles.add(self.connection, row)
        self.assertEqual(bundles.find(self.connection, "mode", PositionRow(1, 2)), row)

    def test_numbers_rise_whatever_was_restored(self) -> None:
        c = self.connection
        self.assertEqual([bundles.next_version(c, "policy") for _ in range(2)], [1, 2])
        bundles.raise_version(c, "policy", 40)
        bundles.raise_version(c, "policy", 7)
        bundles.raise_version(c, "locks", 3)
        self.assertEqual(bundles.next_version(c, "policy"), 41)
        self.assertEqual(bundles.next_version(c, "locks"), 4)

    def test_old_ones_are_forgotten_line_by_line(self) -> None:
        c = self.connection
        for version in range(1, 8):
            bundles.add(c, self.bundle(version, "default" if version < 6 else "other"))
        self.assertEqual(bundles.forget(c, "policy", 2), 3)
        left = [version for version in range(1, 8) if bundles.find(c, "policy", PositionRow(1, version))]
        self.assertEqual(left, [4, 5, 6, 7])


class Positions(RepositoryCase):
    def test_what_is_followed_and_held(self) -> None:
        c = self.connection
        self.enroll("a", "b")
        positions.follow(c, "policy", [("id-a", "default"), ("id-b", "")])
        positions.hold(c, "id-a", "policy", PositionRow(1, 2**63 + 1), b"digest", 5.0)
        positions.hold(c, "id-a", "locks", PositionRow(0, 4), b"other", 6.0)
        positions.hold(c, "gone", "locks", PositionRow(0, 4), b"other", 6.0)
        positions.follow(c, "policy", [("id-a", "web")])
        expected = HeldRow("id-a", "policy", "web", PositionRow(1, 2**63 + 1), b"digest", 5.0)
        self.assertEqual(positions.held(c, "policy", "id-a"), [expected])
        self.assertEqual(
            positions.held(c, "policy"), [expected, HeldRow("id-b", "policy", "", None, None, None)]
        )
        self.assertEqual([row.stream for row in positions.held(c, defender="id-a")], ["locks", "policy"])
        self.assertEqual(len(positions.held(c)), 3)

    def test_refusals(self) -> None:
        c = self.connection
        self.enroll("a")
        first = RefusalRow("id-a", "policy", PositionRow(1, 3), "schema", "from the future", 5.0)
        second = first._replace(origin=PositionRow(1, 2**64 - 1), detail="again")
        for row in (first, second._replace(detail="once"), second, first._replace(defender="gone")):
            positions.refuse(c, row)
        self.assertEqual(positions.refusals(c, "policy"), [first, second])
        positions.forget_refusals(c, "policy", PositionRow(1, 4))
        self.assertEqual(positions.refusals(c, "policy"), [second])

    def test_lines(self) -> None:
        c = self.connection
        positions.keep_line(c, "policy", "default", {"phase": "running", "wave": 1}, 1.0)
        positions.keep_line(c, "policy", "default", {"phase": "halted"}, 2.0)
        positions.keep_line(c, "policy", "", {}, 1.0)
        self.assertEqual(positions.lines(c, "policy"), {"": {}, "default": {"phase": "halted"}})
        positions.forget_line(c, "policy", "")
        self.assertEqual(list(positions.lines(c, "policy")), ["default"])


class Others(RepositoryCase):
    def test_locks(self) -> None:
        c = self.connection
        lock = LockRow("l1", "user", "bruce", "", "left", "alice", 1.0)
        self.assertEqual(locks.add(c, lock), (lock, True))
        self.assertEqual(locks.add(c, LockRow("l2", "user", "bruce", "", "again", "bob", 2.0)), (lock, False))
        other = LockRow("l3", "serial", "7f", "CN=x", "lost", "alice", 2.0)
        locks.add(c, other)
        self.assertEqual(locks.every(c), [lock, other])
        self.assertEqual(locks.find(c, "l3"), other)
        self.assertEqual(locks.remove(c, "l1"), lock)
        self.assertRaises(MissingError, locks.remove, c, "l1")

    def test_modes(self) -> None:
        c = self.connection
        self.enroll("a", "b")
        first = modes.order(
            c, "o1", ["id-a", "id-b", "gone"], listener="tcp", drain=None, author="x", now=1.0
        )
        self.assertEqual(first.serials, {"id-a": 1, "id-b": 1})
        modes.order(c, "o2", ["id-a"], listener="unix", drain=600.0, author="y", now=2.0)
        row = modes.ordered(c, "id-a")
        self.assertEqual(row, modes.ModeRow("id-a", "unix", 600.0, 2, "y", 2.0))
        self.assertEqual([each.serial for each in modes.every(c)], [2, 1])
        self.assertEqual(modes.change(c, "o1"), first)
        self.assertEqual(modes.forget_changes(c, 2.0), 1)
        self.assertEqual((modes.change(c, "o1"), modes.ordered(c, "no")), (None, None))

    def test_forwarding(self) -> None:
        c = self.connection
        self.assertEqual(forwarding.find(c, "siem"), None)
        forwarding.keep(c, "siem", 5, 1.0)
        forwarding.keep(c, "siem", 2**40, 2.0)
        self.assertEqual(forwarding.find(c, "siem"), 2**40)
        self.assertEqual(forwarding.every(c), {"siem": (2**40, 2.0)})
        forwarding.forget(c, "siem")
        self.assertEqual(forwarding.every(c), {})

    def test_facts(self) -> None:
        c = self.connection
        self.assertEqual(facts.find(c, "x"), None)
        self.assertEqual(facts.keep_first(c, "x", b"1"), b"1")
        self.assertEqual(facts.keep_first(c, "x", b"2"), b"1")
        facts.keep(c, "x", 3)
        self.assertEqual(facts.find(c, "x"), 3)
        self.assertEqual([facts.next_number(c, "n") for _ in range(3)], [1, 2, 3])
