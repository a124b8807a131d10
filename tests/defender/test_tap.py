"""`twistd defender` takes its options, and says what is wrong with them."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any

from twisted.application.service import MultiService
from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase

from defender import service
from defender.contract.errors import ContractError
from defender.tap import Options, makeService


class OptionsTests(SynchronousTestCase):
    """Where the settings come from."""

    def setUp(self) -> None:
        self.state = tempfile.mkdtemp(dir="/tmp")  # short: it holds the control socket
        self.addCleanup(shutil.rmtree, self.state)
        self.config = os.path.join(self.state, "defender.toml")
        self.write('[defender]\nstate = "."\nname = "web1"\n')

    def write(self, text: str) -> None:
        with open(self.config, "w", encoding="utf-8") as file:
            file.write(text)

    def parsed(self, *arguments: str) -> Options:
        options = Options()
        options.parseOptions(list(arguments))
        return options

    def refused(self, *arguments: str) -> str:
        return str(self.assertRaises(usage.UsageError, self.parsed, *arguments))

    def test_a_settings_file(self) -> None:
        self.assertEqual(self.parsed("--config", self.config).settings.defender.name, "web1")

    def test_a_state_directory(self) -> None:
        self.assertEqual(self.parsed("--state", self.state).settings.defender.name, "web1")

    def test_the_path_stays_true_after_twistd_changes_directory(self) -> None:
        relative = os.path.relpath(self.config)
        self.assertEqual(self.parsed("-c", relative).settings.source, self.config)

    def test_one_of_the_two(self) -> None:
        self.assertIn("exclude each other", self.refused("-c", self.config, "-s", self.state))

    def test_what_is_not_there_is_named(self) -> None:
        self.assertIn(
            f"there is no file {self.state}/other.toml", self.refused("-c", f"{self.state}/other.toml")
        )
        self.assertIn(f"there is no directory {self.config}", self.refused("-s", self.config))

    def test_bad_settings_name_file_line_and_key(self) -> None:
        self.write('[defender]\nstate = "."\n\n[listen]\nmode = "tpc"\n')
        self.assertIn(f"{self.config}:5:1: listen.mode: ", self.refused("-c", self.config))

    def test_a_controller_makes_it_a_member_of_a_fleet(self) -> None:
        options = self.parsed("-c", self.config, "--controller", "hq:8084", "--join-token", "dft1.x")
        self.assertEqual((options.settings.controller.address, options.token), ("hq:8084", "dft1.x"))
        self.write('[defender]\nstate = "."\nname = "web1"\n[controller]\naddress = "other:8084"\n')
        self.assertEqual(self.parsed("-c", self.config).settings.controller.address, "other:8084")
        options = self.parsed("-c", self.config, "--controller", "[2001:db8::1]:8084")
        self.assertEqual(options.settings.controller.address, "[2001:db8::1]:8084")
        for wrong in ("hq", "hq:0", "hq:65536", ":8084", "a b:8084"):
            self.assertIn("HOST:PORT", self.refused("-c", self.config, "--controller", wrong), wrong)
        self.assertIn("in brackets", self.refused("-c", self.config, "--controller", "2001:db8::1:8084"))

    def test_a_token_needs_a_controller(self) -> None:
        said = self.refused("-c", self.config, "--join-token", "dft1.secret")
        self.assertIn("--join-token needs a controller", said)
        self.assertNotIn("secret", said)
        said = self.refused("-c", self.config, "--join-token-file", "token")
        self.assertIn("needs a controller", said)

    def test_a_token_may_come_from_a_file(self) -> None:
        to_join = ("-c", self.config, "--controller", "hq:8084", "--join-token-file", "/run/token")
        self.assertEqual(self.parsed(*to_join).token, "@/run/token")
        said = self.refused(*to_join, "--join-token", "dft1.secret")
        self.assertIn("exclude each other", said)
        self.assertNotIn("secret", said)

    def test_no_arguments(self) -> None:
        self.assertIn("argument", self.refused("extra").lower())


class MakeServiceTests(SynchronousTestCase):
    """The settings and the reactor reach the composition root."""

    def compose(self, make_service: Any, token: str | None = None) -> Any:
        self.patch(service, "make_service", make_service)
        options = Options()
        options.token = token
        options.settings = "the settings"  # type: ignore[assignment]
        return makeService(options, "the reactor")

    def test_composes(self) -> None:
        made = MultiService()
        seen: list[object] = []

        def make_service(*arguments: object) -> MultiService:
            seen.extend(arguments)
            return made

        self.assertIs(self.compose(make_service), made)
        self.assertEqual(seen, ["the settings", "the reactor", None])

    def test_a_token_that_is_none_is_not_repeated(self) -> None:
        said = self.assertRaises(SystemExit, self.compose, lambda *_: None, "dft1.abc.secret.x")
        self.assertIn("twistd defender: ", str(said.code))
        self.assertNotIn("secret", str(said.code))

    def test_what_cannot_be_used_is_one_sentence(self) -> None:
        for error in (
            ContractError("policy.yaml:3:1: rules: empty"),
            FileNotFoundError(2, "No such file", "server.pem"),
        ):

            def make_service(*_: object, error: Exception = error) -> MultiService:
                raise error

            said = self.assertRaises(SystemExit, self.compose, make_service)
            self.assertEqual(said.code, f"twistd defender: {error}")
