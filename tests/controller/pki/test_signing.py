"""The keys of bundles: made once, kept apart, replaced by root documents that the old key signs."""

from __future__ import annotations

import uuid
from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.trial.unittest import SynchronousTestCase

from controller.pki.custody import CustodyError
from controller.pki.signing import BUNDLE, CHAIN, ROLES, ROOT, SNAPSHOT, SigningKeys
from defender.contract.bundle import Bundle, open_envelope, sign_bundle
from defender.contract.canonical import BundleError
from defender.contract.contents import mode_content
from defender.contract.trust import load_chain

FLEET = str(uuid.UUID(int=7))
DEFENDER = str(uuid.UUID(int=8))
NOW = 1_800_000_000


class SigningCase(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.directory = Path(folder.name) / "signing"
        self.keys = SigningKeys.create(self.directory, fleet=FLEET, trust_domain="defender.fleet", now=NOW)

    def bundle(self, keys: SigningKeys, version: int = 1) -> bytes:
        return sign_bundle(
            Bundle(
                fleet=FLEET,
                trust_domain="defender.fleet",
                stream="mode",
                key_epoch=keys.root.key_epoch,
                version=version,
                issued_at=NOW,
                content=mode_content("tcp"),
            ),
            [keys.bundle],
        )

    def opened(self, keys: SigningKeys, data: bytes) -> Bundle:
        return open_envelope(data, keys.root, stream="mode", defender=DEFENDER, agent_version="1.0", now=NOW)

    def refused(self, keys: SigningKeys, data: bytes) -> str:
        error: BundleError = self.assertRaises(BundleError, self.opened, keys, data)
        return error.code

    def files(self) -> set[str]:
        return {path.name for path in self.directory.iterdir()}


class KeepingTests(SigningCase):
    def test_three_keys_and_a_root_that_names_them(self) -> None:
        self.assertEqual(self.files(), {"root.key", "bundle.key", "snapshot.key", CHAIN})
        for path in self.directory.iterdir():
            self.assertEqual(path.stat().st_mode & 0o777, 0o600, path.name)
        self.assertEqual(self.directory.stat().st_mode & 0o777, 0o700)
        self.assertEqual(len({getattr(self.keys.root, role).keys for role in ROLES}), 3)
        self.opened(self.keys, self.bundle(self.keys))

    def test_what_was_made_is_loaded(self) -> None:
        again = SigningKeys.load(self.directory)
        self.assertEqual((again.root, again.chain), (self.keys.root, self.keys.chain))
        self.opened(self.keys, self.bundle(again))

    def test_nothing_is_made_twice(self) -> None:
        for name in ("root.key", CHAIN):
            other = self.directory / ".." / name.replace(".", "")
            other.mkdir()
            (other / name).write_bytes(b"")
            error = self.assertRaises(
                CustodyError, SigningKeys.create, other, fleet=FLEET, trust_domain="defender.fleet", now=NOW
            )
            self.assertIn("there is one already", str(error))

    def test_the_roots_key_may_be_away(self) -> None:
        (self.directory / "root.key").unlink()
        keys = SigningKeys.load(self.directory)
        self.assertFalse(keys.has_root)
        self.opened(keys, self.bundle(keys))
        error = self.assertRaises(CustodyError, keys.replace_key, BUNDLE, NOW)
        self.assertIn("root.key: the key of root documents is not here", str(error))
        self.opened(SigningKeys.load(self.directory), self.bundle(keys))

    def test_files_that_cannot_be_used(self) -> None:
        def told() -> str:
            return str(self.assertRaises(CustodyError, SigningKeys.load, self.directory))

        key = self.directory / "bundle.key"
        pem = key.read_bytes()
        key.chmod(0o640)
        self.assertIn("bundle.key: mode 0640 lets others read the key", told())
        key.chmod(0o600)
        key.write_bytes(b"-----BEGIN PRIVATE KEY-----\nsecret\n")
        self.assertIn("bundle.key: not an unencrypted private key", told())
        self.assertNotIn("secret", told())
        key.write_bytes((self.directory / "snapshot.key").read_bytes())
        self.assertIn("bundle.key: is not the bundle key that the root document names", told())
        key.unlink()
        self.assertIn("bundle.key: No such file", told())
        key.write_bytes(pem)
        key.chmod(0o600)
        (self.directory / CHAIN).write_bytes(self.keys.chain[:-1])
        self.assertIn(f"{CHAIN}: is no chain of root documents", told())


class ReplacingTests(SigningCase):
    def test_each_key_can_be_replaced(self) -> None:
        before = self.bundle(self.keys)
        for version, role in enumerate((BUNDLE, SNAPSHOT, ROOT), 2):
            old = getattr(self.keys.root, role)
            root = self.keys.replace_key(role, NOW + version)
            self.assertEqual((root.version, root.key_epoch), (version, 1))
            self.assertNotEqual(getattr(root, role), old)
            self.assertEqual(load_chain(self.keys.chain), root)
            again = SigningKeys.load(self.directory)
            self.assertEqual(again.root, root)
            self.opened(again, self.bundle(again, version))
        self.assertEqual(self.refused(self.keys, before), "wrong-key")
        self.assertEqual(self.files(), {"root.key", "bundle.key", "snapshot.key", CHAIN})
        self.keys.replace_key(BUNDLE, NOW)  # with the new root key, and a clock that went back

    def test_both_keys_count_until_the_old_one_is_retired(self) -> None:
        before = self.bundle(self.keys)
        self.keys.replace_key(BUNDLE, NOW, keep_old=True)
        again = SigningKeys.load(self.directory)
        after = self.bundle(again, 2)
        for bundle in (before, after):
            self.opened(again, bundle)
        again.retire_old(BUNDLE, NOW)
        again = SigningKeys.load(self.directory)
        self.assertEqual(self.refused(again, before), "wrong-key")
        self.opened(again, after)
        error = self.assertRaises(CustodyError, again.retire_old, BUNDLE, NOW)
        self.assertIn("names no bundle key but the present one", str(error))

    def test_a_stolen_key_is_answered_by_the_epoch(self) -> None:
        stolen = SigningKeys.load(self.directory)
        loot = self.bundle(stolen, 2**63)
        self.opened(self.keys, loot)
        root = self.keys.raise_epoch(NOW + 1, {"mode": 3})
        self.assertEqual((root.key_epoch, root.minimum), (2, {"mode": 3}))
        self.assertNotEqual(self.refused(self.keys, loot), "")
        self.assertEqual(self.refused(self.keys, self.bundle(self.keys, 2)), "below-minimum")
        self.opened(self.keys, self.bundle(self.keys, 3))

    def test_a_crash_between_two_steps_leaves_keys_that_load(self) -> None:
        names = ("bundle.key", "root.key")
        for role, name in zip((BUNDLE, ROOT), names, strict=True):
            old = (self.directory / name).read_bytes()
            self.keys.replace_key(role, NOW)
            new = (self.directory / name).read_bytes()
            # As if the last step had not been taken.
            (self.directory / name).write_bytes(old)
            (self.directory / name.replace(".key", ".new.key")).write_bytes(new)
            (self.directory / name.replace(".key", ".new.key")).chmod(0o600)
            again = SigningKeys.load(self.directory)
            self.opened(again, self.bundle(again, 9))
            (self.directory / name).write_bytes(new)
            (self.directory / name.replace(".key", ".new.key")).unlink()
