"""The files of a membership: private, whole, and verified when they are read."""

from __future__ import annotations

import json
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from twisted.trial.unittest import SynchronousTestCase

from controller.pki.admission import admit, keys_of
from controller.pki.authority import certificate_pem
from defender.channel.store import Member, MembershipError, MemberStore
from defender.listener.tls import TLSFiles, server_context
from tests.fakes.authority import TestAuthority
from tests.fakes.fleet import DEFENDER

PKI = TestAuthority()


class StoreCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp()) / "fleet"
        self.store = MemberStore(self.directory)

    def join(self, pki: TestAuthority = PKI) -> Member:
        keys = self.store.new_keys()
        answer = admit(
            pki.authority,
            keys_of(keys.csr, keys.server_csr),
            identifier=DEFENDER,
            name="web1",
            requested=("web1",),
            source=None,
            trust=b"trust",
            now=pki.now,
        )
        member = Member(answer, keys, "aaqeayeaudaocaj")
        self.store.save(member)
        return member

    def refused(self) -> str:
        with self.assertRaises(MembershipError) as caught:
            MemberStore(self.directory).load()
        self.assertNotIn("PRIVATE", str(caught.exception))
        return str(caught.exception)


class FileTests(StoreCase):
    """What lies where."""

    def test_nothing_yet(self) -> None:
        self.assertIsNone(self.store.load())
        self.assertFalse(self.directory.exists())

    def test_there_and_back(self) -> None:
        member = self.join()
        loaded = MemberStore(self.directory).load()
        assert loaded is not None
        self.assertEqual(loaded.answer, member.answer)
        self.assertEqual(loaded.token, member.token)
        for mine, kept in (
            (member.keys.key, loaded.keys.key),
            (member.keys.server_key, loaded.keys.server_key),
        ):
            self.assertEqual(mine.private_numbers(), kept.private_numbers())

    def test_modes(self) -> None:
        """Whatever the umask lets through."""
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        self.store.new_keys()
        self.assertEqual((self.directory / "next.json").stat().st_mode & 0o777, 0o600)
        self.join()
        self.assertEqual(self.directory.stat().st_mode & 0o777, 0o700)
        names = sorted(path.name for path in self.directory.iterdir())
        self.assertEqual(names, ["member.json", "server.pem"], "nothing is left behind")
        for name in names:
            self.assertEqual((self.directory / name).stat().st_mode & 0o777, 0o600, name)

    def test_the_listener_reads_its_file(self) -> None:
        """Key and chain in one file, which is replaced whole: they always belong together."""
        self.join()
        clients = self.directory.with_name("clients.pem")
        clients.write_bytes(certificate_pem(PKI.users))
        path = str(self.store.server_file)
        server_context(TLSFiles(path, path, str(clients)), trust_domain=PKI.trust_domain)
        key = serialization.load_pem_private_key(self.store.server_file.read_bytes(), None)
        leaf, issuer = x509.load_pem_x509_certificates(self.store.server_file.read_bytes())
        self.assertEqual((leaf.public_key(), issuer), (key.public_key(), PKI.fleet))

    def test_the_listeners_file_is_made_again(self) -> None:
        self.join()
        content = self.store.server_file.read_bytes()
        self.store.server_file.unlink()
        self.store.load()
        self.assertEqual(self.store.server_file.read_bytes(), content)
        self.store.server_file.write_bytes(b"damaged")
        self.store.load()
        self.assertEqual(self.store.server_file.read_bytes(), content)


class NewKeyTests(StoreCase):
    """Keys that are asked for, and not settled yet."""

    def test_they_stay_until_they_are_settled(self) -> None:
        keys = self.store.new_keys()
        again = MemberStore(self.directory).new_keys()
        self.assertEqual(again.key.private_numbers(), keys.key.private_numbers())
        self.join()
        self.assertNotEqual(self.store.new_keys().key.private_numbers(), keys.key.private_numbers())

    def test_a_crash_before_they_are_forgotten(self) -> None:
        """The certificate is in place, the file of new keys still there: they are not asked for twice."""
        self.store.new_keys()
        pending = (self.directory / "next.json").read_bytes()
        member = self.join()
        (self.directory / "next.json").write_bytes(pending)
        (self.directory / "next.json").chmod(0o600)
        store = MemberStore(self.directory)
        store.load()
        self.assertNotEqual(store.new_keys().key.public_key(), member.keys.key.public_key())

    def test_damaged_ones_are_made_anew(self) -> None:
        self.store.new_keys()
        for content in (b"", b"{}", b'{"v": 1}', b'{"v": 1, "key": "x", "server_key": "y"}'):
            (self.directory / "next.json").write_bytes(content)
            self.store.new_keys()

    def test_that_others_can_read_are_refused(self) -> None:
        self.store.new_keys()
        (self.directory / "next.json").chmod(0o640)
        self.assertRaises(MembershipError, self.store.new_keys)


class RefusedTests(StoreCase):
    """Files that are not as they were written."""

    def setUp(self) -> None:
        super().setUp()
        self.member = self.join()
        self.path = self.directory / "member.json"
        self.content = json.loads(self.path.read_text())

    def put(self, **changes: object) -> None:
        self.path.write_text(json.dumps({**self.content, **changes}))

    def test_open_to_others(self) -> None:
        self.path.chmod(0o644)
        self.assertIn("chmod it 600", self.refused())

    def test_a_directory_open_to_others(self) -> None:
        self.directory.chmod(0o755)
        self.assertRaises(MembershipError, self.store.save, self.member)
        self.assertIn("chmod it 700", self.refused())

    def test_a_directory_of_another_user(self) -> None:
        if os.geteuid() == 0:
            os.chown(self.directory, 12345, -1)
        else:
            owner = self.directory.stat().st_uid
            self.patch(os, "geteuid", lambda: owner + 1)
        self.assertIn("chown it", self.refused())

    def test_a_link(self) -> None:
        self.path.rename(self.directory / "elsewhere")
        self.path.symlink_to(self.directory / "elsewhere")
        self.assertIn("member.json", self.refused())

    def test_a_fifo(self) -> None:
        """It is refused at once, not waited for."""
        self.path.unlink()
        os.mkfifo(self.path, 0o600)
        self.assertIn("not a regular file", self.refused())

    def test_damage(self) -> None:
        other = TestAuthority()
        mine = self.content
        faults: tuple[dict[str, object], ...] = (
            {"v": 2},
            {"key": mine["server_key"]},
            {"key": "x"},
            {"key": None},
            {"chain": mine["server_chain"]},
            {"chain": "x"},
            {"chain": []},
            {"roots": []},
            {"roots": [certificate_pem(other.root).decode()]},
            {"fleet": [certificate_pem(other.fleet).decode()]},
            {"fleet": ["x"]},
            {"defender": DEFENDER.replace("3", "4")},
            {"trust_domain": "elsewhere.example"},
            {"trust": "*"},
            {"token": 7},
        )
        for changes in faults:
            self.put(**changes)
            self.assertIn("join again", self.refused(), changes)
        self.put()
        self.store.load()

    def test_cut_off_anywhere(self) -> None:
        data = json.dumps(self.content).encode()
        for end in range(0, len(data), 97):
            self.path.write_bytes(data[:end])
            self.refused()

    def test_a_disk_that_cannot_be_written(self) -> None:
        """The old membership is whole, and nothing is left behind."""
        before = self.path.read_bytes()
        self.patch(os, "fsync", self.fail_fsync)
        self.assertRaises(MembershipError, self.store.save, self.member)
        self.assertEqual(self.path.read_bytes(), before)
        self.assertEqual(
            sorted(path.name for path in self.directory.iterdir()), ["member.json", "server.pem"]
        )

    @staticmethod
    def fail_fsync(descriptor: int) -> None:
        raise OSError(5, "Input/output error")
