"""Private files: whole or not there, and nobody else's. Keys, where they are kept. Names of hosts."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from unittest import mock

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from twisted.trial.unittest import SynchronousTestCase

from controller.pki.custody import (
    CustodyError,
    FileCustody,
    MemoryCustody,
    load_private_key,
    new_private_key,
    private_key_pem,
)
from controller.pki.files import make_private_directory, write_all_private, write_private
from controller.pki.names import local_names, server_names, short_host_name


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


class FileTests(SynchronousTestCase):
    """`controller.pki.files`."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.addCleanup(os.umask, os.umask(0))  # the most careless of callers

    def test_modes(self) -> None:
        """0600 and 0700, whatever the umask and whatever was there."""
        path = self.directory / "key"
        path.write_bytes(b"old")
        path.chmod(0o666)
        write_private(path, b"new")
        self.assertEqual((path.read_bytes(), mode(path)), (b"new", 0o600))
        make_private_directory(self.directory / "a" / "b")
        self.assertEqual(mode(self.directory / "a" / "b"), 0o700)

    def test_existing_directory_keeps_its_mode(self) -> None:
        """It may be shared, and not ours."""
        self.directory.chmod(0o1777)
        make_private_directory(self.directory)
        self.assertEqual(mode(self.directory), 0o1777)

    def test_link_is_replaced(self) -> None:
        """A link that somebody left does not send a key elsewhere."""
        target = self.directory / "elsewhere"
        target.write_bytes(b"theirs")
        (self.directory / "key").symlink_to(target)
        write_private(self.directory / "key", b"ours")
        self.assertEqual(target.read_bytes(), b"theirs")
        self.assertFalse((self.directory / "key").is_symlink())

    def test_failure_leaves_everything_as_it_was(self) -> None:
        """A full disk at the second file changes neither, and leaves no scraps."""
        first, second = self.directory / "a", self.directory / "b"
        first.write_bytes(b"old")
        real = os.fsync
        calls = []

        def fsync(descriptor: int) -> None:
            calls.append(descriptor)
            if len(calls) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(descriptor)

        with mock.patch.object(os, "fsync", fsync):
            self.assertRaises(OSError, write_all_private, [(first, b"new"), (second, b"new")])
        self.assertEqual(first.read_bytes(), b"old")
        self.assertEqual(os.listdir(self.directory), ["a"])

    def test_synced_before_renamed(self) -> None:
        """The content is durable before the name shows it, and then the name."""
        order: list[str] = []
        rename, fsync = os.rename, os.fsync

        def seen_rename(*arguments: Path) -> None:
            order.append("rename")
            rename(*arguments)

        def seen_fsync(descriptor: int) -> None:
            order.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
            fsync(descriptor)

        with mock.patch.multiple(os, rename=seen_rename, fsync=seen_fsync):
            write_private(self.directory / "key", b"x")
        self.assertEqual(order, ["file", "rename", "directory"])


class CustodyTests(SynchronousTestCase):
    """`controller.pki.custody`."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()

    def test_kept_in_a_file(self) -> None:
        """PKCS #8 in PEM, P-256, 0600, and the same key comes back."""
        custody = FileCustody(self.directory)
        created = custody.create("root")
        path = self.directory / "root.key"
        self.assertEqual(mode(path), 0o600)
        self.assertTrue(path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----"))
        self.assertEqual(custody.signer("root").public_key, created.public_key)
        self.assertTrue(custody.holds("root"))

    def test_never_overwritten(self) -> None:
        """A key is made once."""
        for custody in (FileCustody(self.directory), MemoryCustody()):
            custody.create("root")
            self.assertRaises(CustodyError, custody.create, "root")
            self.assertFalse(custody.holds("other"))
            self.assertRaises(CustodyError, custody.signer, "other")

    def test_unusable_keys(self) -> None:
        """Open to others, of another kind, encrypted, or no key: each is refused by its path."""
        key = new_private_key()
        path = self.directory / "a.key"

        def refused(content: bytes, file_mode: int = 0o600) -> str:
            path.write_bytes(content)
            path.chmod(file_mode)
            text = str(self.assertRaises(CustodyError, load_private_key, path))
            self.assertIn(str(path), text)
            return text

        self.assertIn("0640", refused(private_key_pem(key), 0o640))
        refused(b"")
        refused(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        locked = key.private_bytes(encoding, form, serialization.BestAvailableEncryption(b"x"))
        refused(locked)
        other = ec.generate_private_key(ec.SECP384R1())
        self.assertIn("P-256", refused(other.private_bytes(encoding, form, serialization.NoEncryption())))
        path.unlink()
        path.mkdir()
        self.assertRaises(CustodyError, load_private_key, path)


class NameTests(SynchronousTestCase):
    """`controller.pki.names`."""

    def test_server_names(self) -> None:
        """Lower case, each once, addresses as addresses."""
        names = server_names(["Web1", "web1.", "10.0.0.1", "[fd00::1]", "fd00:0::1", "my_container"])
        self.assertEqual([str(name) for name in names], ["web1", "10.0.0.1", "fd00::1", "my_container"])

    def test_refused(self) -> None:
        """What no client connects to, or reads differently."""
        for name in (
            "", ".", "a..b", "*.a", "a b", "-a", "a-", "a/b", "ä.example", "a" * 64, "a." * 130 + "a",
            "0.0.0.0", "::", "224.0.0.1", "fe80::1%eth0", "1.2.3", "256.1.1.1", "a:9998", "a\n",
        ):  # fmt: skip
            if name == "a\n":
                self.assertEqual(server_names([name]), ("a",))
                continue
            self.assertRaises(ValueError, server_names, [name])

    def test_local_names(self) -> None:
        """The host's names and every address but link-local ones, from the kernel's tables."""
        proc = Path(self.mktemp())
        (proc / "net").mkdir(parents=True)
        (proc / "net/fib_trie").write_text(
            "Main:\n  +-- 0.0.0.0/0 3 0 5\n"
            "     |-- 0.0.0.0\n        /0 universe UNICAST\n"
            "           |-- 127.0.0.1\n              /32 host LOCAL\n"
            "           |-- 10.0.0.7\n              /32 host LOCAL\n"
            "           |-- 10.0.0.255\n              /32 link BROADCAST\n"
            "           |-- 169.254.3.4\n              /32 host LOCAL\n"
        )
        (proc / "net/if_inet6").write_text(
            "00000000000000000000000000000001 01 80 10 80       lo\n"
            "fd000000000000000000000000000002 02 40 00 80     eth0\n"
            "fe800000000000000000000000000002 02 40 20 80     eth0\n"
        )
        names = local_names(proc)
        self.assertEqual(names[-5:], ("localhost", "127.0.0.1", "::1", "10.0.0.7", "fd00::2"))
        self.assertIn(short_host_name().lower(), names)

    def test_local_names_without_tables(self) -> None:
        """A container may hide them."""
        self.assertIn("localhost", local_names(Path(self.mktemp())))
