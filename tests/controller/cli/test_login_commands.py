"""Signing in and out."""

from __future__ import annotations

import json

from twisted.internet.defer import fail, succeed

from controller.api.ports import InvalidError, UnavailableError
from controller.api.schema import Fault
from controller.cli.login import read_login
from tests.controller.api.doubles import EVERYTHING, PASSWORD, example
from tests.controller.cli.fleet_server import FleetTestCase


class LoginTests(FleetTestCase):
    """`defenderctl login`."""

    def setUp(self) -> None:
        super().setUp()
        self.file.unlink()
        self.authority = self.folder / "ca.pem"
        self.authority.write_text(self.server.authority)
        self.first = ("login", self.server.host, "--ca", str(self.authority))

    def test_the_first_time_and_again(self) -> None:
        told = self.good(*self.first, "--user", "admin", "--password-file", "-", stdin=PASSWORD + "\n")
        self.assertIn(f"Signed in at https://{self.server.host} as admin", told)
        kept = read_login(self.file)
        self.assertEqual((kept.user, kept.token), ("admin", "dfs1.EXAMPLE"))
        self.assertNotIn("dfs1", told)
        self.file.chmod(0o600)
        # The controller, its authority and the user are known now.
        document = json.loads(self.good("login", "--password-file", "-", "--json", stdin=PASSWORD))
        self.assertEqual(document["user"], "admin")
        self.assertNotIn("token", document)

    def test_a_wrong_password_is_told_and_nothing_is_kept(self) -> None:
        told = self.bad(*self.first, "--user", "admin", "--password-file", "-", stdin="wrong")
        self.assertIn("do not belong together", told)
        self.assertFalse(self.file.exists())

    def must_change(self, must: bool = True) -> list[tuple[str, str]]:
        """Have the controller want another password; what it is given, in order."""
        changed: list[tuple[str, str]] = []
        made = {**example("Login"), "token": EVERYTHING, "must_change_password": must}

        def change(actor: object, present: str, wanted: str) -> object:
            if len(wanted) < 12:
                return fail(InvalidError([Fault("/wanted", "must have at least 12 characters")]))
            changed.append((present, wanted))
            return succeed(None)

        self.patch(self.world.accounts, "log_in", lambda *_: succeed(made))
        self.patch(self.world.accounts, "change_password", change)
        return changed

    def test_a_password_that_must_be_changed(self) -> None:
        changed = self.must_change()
        options = (*self.first, "--user", "admin", "--password-file", "-")
        told = self.bad(*options, stdin=PASSWORD)
        self.assertIn("use --new-password-file", told)
        self.assertFalse(self.file.exists())
        new = self.folder / "new"
        new.write_text("short\n")
        told = self.bad(*options, "--new-password-file", str(new), stdin=PASSWORD)
        self.assertIn("at least 12", told)
        self.assertFalse(self.file.exists())
        self.assertEqual([act for act, _ in self.world.accounts.acts], ["log_out"] * 2)
        new.write_text("tall glass of cold water\n")
        told = self.good(*options, "--new-password-file", str(new), stdin=PASSWORD)
        self.assertIn("as admin", told)
        self.assertEqual(changed, [(PASSWORD, "tall glass of cold water")])
        self.assertNotIn("tall glass", self.file.read_text() + told)
        told = self.bad(*options, "--new-password-file", "-", stdin=PASSWORD, code=2)
        self.assertIn("only one password", told)

    def test_a_password_is_changed_because_somebody_wants_to(self) -> None:
        changed = self.must_change(False)
        new = self.folder / "new"
        new.write_text("tall glass of cold water")
        options = (*self.first, "--user", "admin", "--password-file", "-", "--new-password-file", str(new))
        self.good(*options, stdin=PASSWORD)
        self.assertEqual(changed, [(PASSWORD, "tall glass of cold water")])

    def test_an_api_token(self) -> None:
        told = self.good(*self.first, "--token-file", "-", stdin=EVERYTHING + "\n")
        self.assertIn("as admin", told)
        self.assertEqual(read_login(self.file).token, EVERYTHING)
        self.assertIn("stands alone", self.bad(*self.first, "--token-file", "-", "--user", "a", code=2))

    def test_a_new_controller_needs_its_authority(self) -> None:
        self.assertIn("--ca FILE", self.bad("login", self.server.host, "--user", "admin"))
        self.sign_in()
        self.assertIn("--ca FILE", self.bad("login", "other.example.com", "--user", "admin", code=2))
        self.authority.write_text("nonsense")
        self.assertIn("no certificates", self.bad(*self.first, "--user", "admin", code=2))

    def test_nobody_can_be_asked(self) -> None:
        self.assertIn("--password-file", self.bad(*self.first, "--user", "admin", code=2))
        self.assertIn("no secret", self.bad(*self.first, "--user", "admin", "--password-file", "-"))

    def test_an_address_that_is_none(self) -> None:
        self.assertIn("is no address", self.bad("login", "http://a", *self.first[2:], code=2))


class LogoutTests(FleetTestCase):
    """`defenderctl logout`."""

    def test_the_session_ends_and_is_forgotten(self) -> None:
        self.assertIn("Signed out", self.good("logout"))
        self.assertEqual([act for act, _ in self.world.accounts.acts], ["log_out"])
        self.assertFalse(self.file.exists())
        self.assertIn("defenderctl login HOST --ca FILE", self.bad("logout"))

    def test_it_is_forgotten_even_if_the_controller_cannot_be_told(self) -> None:
        def log_out(actor: object) -> object:
            raise UnavailableError("the store is away")

        self.patch(self.world.accounts, "log_out", log_out)
        result = self.run_command("logout")
        self.assertEqual(result.exit_code, 0)
        self.assertIn("the store is away", result.stderr)
        self.assertIn("the session ends by itself", result.stderr)
        self.assertFalse(self.file.exists())

    def test_here_only(self) -> None:
        self.assertEqual(self.run_command("logout", "--keep-session").exit_code, 0)
        self.assertEqual(self.world.accounts.acts, [])
