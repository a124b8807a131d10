"""The file of the sign-in is its owner's alone, and is whole or not there."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from controller.cli.login import (
    Login,
    LoginError,
    config_folder,
    controller_address,
    forget_login,
    read_login,
    write_login,
)

LOGIN = Login("https://controller.example.com:8083", "PEM\n", "admin", "dfs1_secret", "2026-11-21T20:00:00Z")


class LoginFileTests(SynchronousTestCase):
    """`login.json`."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()) / "config" / "login.json"

    def test_what_is_written_is_read(self) -> None:
        write_login(self.path, LOGIN)
        self.assertEqual(read_login(self.path), LOGIN)
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)
        self.assertEqual(self.path.parent.stat().st_mode & 0o777, 0o700)
        self.assertEqual(os.listdir(self.path.parent), ["login.json"])

    def test_one_that_others_can_read_is_refused(self) -> None:
        write_login(self.path, LOGIN)
        for mode in (0o640, 0o604, 0o620):
            self.path.chmod(mode)
            self.assertIn("can be read by others", str(self.assertRaises(LoginError, read_login, self.path)))

    def test_what_is_no_file_is_refused(self) -> None:
        write_login(self.path, LOGIN)
        other = self.path.with_name("other.json")
        other.symlink_to(self.path)
        self.assertRaises(LoginError, read_login, other)
        other.unlink()
        os.mkfifo(other, 0o600)
        self.assertIn("not a file of yours", str(self.assertRaises(LoginError, read_login, other)))

    def test_none_says_what_to_do(self) -> None:
        self.assertIn("defenderctl login", str(self.assertRaises(LoginError, read_login, self.path)))
        self.assertFalse(forget_login(self.path))

    def test_it_is_forgotten(self) -> None:
        write_login(self.path, LOGIN)
        self.assertTrue(forget_login(self.path))
        self.assertFalse(self.path.exists())

    def test_a_folder_that_cannot_be_made_is_told(self) -> None:
        self.path.parent.parent.mkdir(parents=True)
        self.path.parent.write_text("")
        self.assertIn("cannot keep", str(self.assertRaises(LoginError, write_login, self.path, LOGIN)))

    @given(
        st.binary(max_size=80)
        | st.fixed_dictionaries(
            dict.fromkeys(
                ("controller", "authority", "user", "token", "expires_at"), st.text(max_size=9) | st.none()
            )
        ).map(lambda document: json.dumps(document).encode())
    )
    @settings(max_examples=150, deadline=None)
    def test_no_content_raises_anything_else(self, data: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch(0o600)
        self.path.write_bytes(data)
        try:
            read_login(self.path)
        except LoginError as error:
            self.assertEqual(len(str(error).splitlines()), 1)

    def test_the_token_is_in_no_repr(self) -> None:
        self.assertNotIn("dfs1_secret", repr(LOGIN))

    def test_when_it_is_over(self) -> None:
        now = datetime.now(UTC)
        for ends, over in ((now - timedelta(seconds=1), True), (now + timedelta(hours=1), False)):
            self.assertEqual(Login("https://a:1", "", "", "", ends.isoformat()).is_over, over)
        self.assertFalse(Login("https://a:1", "").is_over)


class AddressTests(SynchronousTestCase):
    """Where the controller is, and where the file."""

    def test_addresses(self) -> None:
        for text, address in (
            ("controller", "https://controller:8083"),
            ("controller:1", "https://controller:1"),
            ("https://Controller.example.com/", "https://controller.example.com:8083"),
            ("[::1]:9", "https://[::1]:9"),
            ("192.0.2.1", "https://192.0.2.1:8083"),
        ):
            self.assertEqual(controller_address(text), address)
        for wrong in (
            "",
            "http://controller",
            "https://",
            "a/b",
            "a?b",
            "a#b",
            "a b",
            "a:x",
            "a:99999",
            "https://user:secret@controller",
            "büro",
            "\x1b[2J",
        ):
            told = str(self.assertRaises(LoginError, controller_address, wrong))
            self.assertNotIn("secret", told)
            self.assertTrue(told.isprintable())

    def test_folders(self) -> None:
        for environment, folder in (
            ({"DEFENDERCTL_CONFIG": "/a", "XDG_CONFIG_HOME": "/b", "HOME": "/c"}, "/a"),
            ({"XDG_CONFIG_HOME": "/b", "HOME": "/c"}, "/b/defenderctl"),
            ({"XDG_CONFIG_HOME": "relative", "HOME": "/c"}, "/c/.config/defenderctl"),
            ({"HOME": "/c"}, "/c/.config/defenderctl"),
        ):
            self.assertEqual(str(config_folder(environment)), folder)
