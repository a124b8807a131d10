"""Intermediates that follow each other, in the files of an authority."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography import x509
from twisted.trial.unittest import SynchronousTestCase

from controller.pki.authority import FLEET_CA, USER_CA, Authority, AuthorityError
from controller.pki.custody import CustodyError, new_private_key
from controller.pki.storage import create_authority, open_authority, pki_directory
from controller.pki.succession import ISSUERS, make_successor, read_issuers, retire, switch

NOW = datetime(2026, 11, 22, tzinfo=UTC)


class SuccessionTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.state = Path(folder.name)
        self.first, _ = create_authority(self.state, "defender.fleet", NOW)
        self.directory = pki_directory(self.state)

    def opened(self) -> Authority:
        return open_authority(self.state, NOW)

    def prepare(self, kind: str) -> x509.Certificate:
        return make_successor(self.directory, kind, "defender.fleet", self.first.root, NOW)

    def issuers(self, authority: Authority) -> tuple[x509.Certificate, x509.Certificate]:
        """Who signs a defender and a user."""
        key = new_private_key().public_key()
        ours = authority.issue_defender_client(key, "3f0e2a52-6c51-4a43-9f6a-5f4f5b8f3b11", "web1", now=NOW)
        user = authority.issue_user(key, "bruce", (), now=NOW)
        for each in (ours, user):
            each.leaf.verify_directly_issued_by(each.issuer)
        return ours.issuer, user.issuer

    def test_each_step(self) -> None:
        old = self.first.fleet
        new = self.prepare(FLEET_CA)
        authority = self.opened()
        self.assertEqual((authority.fleet, authority.all_fleet), (old, (old, new)))
        self.assertEqual(authority.all_users, (self.first.users,))
        self.assertEqual(self.issuers(authority), (old, self.first.users))
        switch(self.directory, FLEET_CA)
        authority = self.opened()
        self.assertEqual(authority.all_fleet, (new, old))
        self.assertEqual(self.issuers(authority), (new, self.first.users))
        switch(self.directory, FLEET_CA)
        self.assertEqual(self.opened().all_fleet, (old, new))
        switch(self.directory, FLEET_CA)
        retire(self.directory, FLEET_CA)
        self.assertEqual(self.opened().all_fleet, (new,))
        self.assertFalse((self.directory / "fleet-ca.key").exists())
        newest = self.prepare(FLEET_CA)
        switch(self.directory, FLEET_CA)
        self.assertEqual(self.issuers(self.opened())[0], newest)
        users = self.prepare(USER_CA)
        switch(self.directory, USER_CA)
        self.assertEqual(self.issuers(self.opened()), (newest, users))

    def test_steps_out_of_turn(self) -> None:
        for step in (switch, retire):
            self.assertRaises(AuthorityError, step, self.directory, FLEET_CA)
        self.prepare(FLEET_CA)
        self.assertRaises(AuthorityError, self.prepare, FLEET_CA)
        retire(self.directory, FLEET_CA)  # it was thought better of
        self.assertEqual(self.opened().all_fleet, (self.first.fleet,))

    def test_the_roots_key_is_needed_for_a_new_one_alone(self) -> None:
        self.prepare(FLEET_CA)
        (self.directory / "root.key").rename(self.state / "away")
        self.assertRaises(CustodyError, self.prepare, USER_CA)
        self.assertEqual(read_issuers(self.directory)[USER_CA], (USER_CA,))
        switch(self.directory, FLEET_CA)
        self.opened()

    def test_a_file_that_is_not_ours_stops_it(self) -> None:
        for text in (
            "x",
            "[]",
            "{}",
            '{"user-ca": ["user-ca"], "fleet-ca": []}',
            '{"user-ca": ["fleet-ca"], "fleet-ca": ["fleet-ca"]}',
            '{"user-ca": ["user-ca"], "fleet-ca": ["../fleet-ca"]}',
            '{"user-ca": ["user-ca"], "fleet-ca": ["fleet-ca", "fleet-ca.2", "fleet-ca.3"]}',
        ):
            (self.directory / ISSUERS).write_text(text)
            self.assertRaises(AuthorityError, self.opened)

    def test_another_roots_intermediate_is_refused(self) -> None:
        self.prepare(FLEET_CA)
        create_authority(self.state / "other", "defender.fleet", NOW)
        name = read_issuers(self.directory)[FLEET_CA][1]
        foreign = pki_directory(self.state / "other") / "fleet-ca.pem"
        (self.directory / f"{name}.pem").write_bytes(foreign.read_bytes())
        error = self.assertRaises(AuthorityError, self.opened)
        self.assertIn("other fleet certificate was not signed by the root", str(error))
