"""Which passwords are taken."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from controller.passwords import PasswordError, check_password, prepare


class PasswordTests(SynchronousTestCase):
    def test_good_ones(self) -> None:
        for password in (
            "correct horse battery staple",
            "Xk3-9vQ!mmz2",
            "přežít zimu venku",
            "ann likes long walks",
            "my password for the fleet is long",
            "x" * 500 + "abcdefg and so on",
        ):
            check_password(password, "ann")

    def test_bad_ones(self) -> None:
        for password, text in (
            ("short", "fewer than 12"),
            ("aaaaaaaaaaaaaaaa", "different characters"),
            ("abababababababab", "different characters"),
            ("bruce@example.com1", "user's name"),
            ("brucebruce12", "user's name"),
            ("Password12345", "guessed first"),
            ("P4ssw0rd!!secret", "guessed first"),
            ("abcdefghijklmnop", "guessed first|spells the alphabet"),
            ("cdefghijklmnopq", "spells the alphabet"),
            ("with a \n newline", "control characters"),
            ("y" * 1025, "more than 1024"),
        ):
            with self.assertRaisesRegex(PasswordError, text) as caught:
                check_password(password, "bruce@example.com")
            self.assertNotIn(password, str(caught.exception))

    def test_accents_are_the_same_however_typed(self) -> None:
        self.assertEqual(prepare("e\u0301"), prepare("\u00e9"))
