"""Keys that are not in the state directory: systemd has decrypted them elsewhere."""

from __future__ import annotations

import os
import shutil
import uuid
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.trial.unittest import SynchronousTestCase

from controller.pki.custody import CustodyError, new_private_key
from controller.pki.signing import SigningKeys
from controller.pki.storage import create_authority, open_authority

NOW = datetime(2026, 11, 22, tzinfo=UTC)


class PassedKeyTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.state = Path(folder.name) / "state"
        self.state.mkdir(0o700)
        self.credentials = Path(folder.name) / "credentials"
        self.credentials.mkdir(0o700)
        create_authority(self.state, "defender.fleet", NOW)
        self.signing = self.state / "signing"
        fleet = str(uuid.UUID(int=7))
        SigningKeys.create(self.signing, fleet=fleet, trust_domain="defender.fleet", now=int(NOW.timestamp()))
        self.patch(os, "environ", {**os.environ, "CREDENTIALS_DIRECTORY": str(self.credentials)})

    def hand_over(self, *names: str) -> None:
        """Move keys to where the service manager has them; it may show its own access list as group bits."""
        for name in names:
            passed = self.credentials / name.replace("/", ".")
            shutil.move(self.state / name, passed)
            passed.chmod(0o440)

    def test_keys_of_the_authority(self) -> None:
        self.hand_over("pki/user-ca.key", "pki/fleet-ca.key")
        authority = open_authority(self.state, NOW)
        issued = authority.issue_user(new_private_key().public_key(), "bruce", (), now=NOW)
        issued.leaf.verify_directly_issued_by(authority.users)

    def test_keys_of_bundles(self) -> None:
        self.hand_over("signing/bundle.key", "signing/snapshot.key")
        keys = SigningKeys.load(self.signing)
        self.assertIn(keys.bundle.public, keys.root.bundle.keys)

    def test_a_key_that_was_replaced_since_is_the_files(self) -> None:
        self.hand_over("signing/bundle.key")
        keys = SigningKeys.load(self.signing)
        keys.replace_key("bundle", int(NOW.timestamp()) + 60)
        again = SigningKeys.load(self.signing)
        self.assertIn(again.bundle.public, again.root.bundle.keys)
        self.assertTrue((self.signing / "bundle.key").exists())

    def test_a_key_that_is_nowhere_is_named_as_the_file(self) -> None:
        self.hand_over("signing/bundle.key")
        (self.credentials / "signing.bundle.key").unlink()
        said = self.assertRaises(CustodyError, SigningKeys.load, self.signing)
        self.assertIn(str(self.signing / "bundle.key"), str(said))

    def test_a_file_that_others_may_read_is_refused_all_the_same(self) -> None:
        (self.state / "pki" / "user-ca.key").chmod(0o440)
        said = self.assertRaises(CustodyError, open_authority, self.state, NOW)
        self.assertIn("lets others read the key", str(said))
