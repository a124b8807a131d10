"""`twistd controller`: its options, and what a person reads when it cannot start."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.internet.task import Clock
from twisted.logger import LogLevel, formatEvent
from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase

from controller.service import Controller
from controller.tap import LOG_BYTES, LOG_FILES, Options, bounded_log, makeService

SETTINGS = '[controller]\nstate = "."\n[https]\nlisten = "127.0.0.1:0"\n[channel]\nlisten = "127.0.0.2:0"\n'


class TapCase(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.state = Path(folder.name) / "state"
        self.state.mkdir(0o700)
        self.file = self.state / "controller.toml"
        self.file.write_text(SETTINGS)

    def parsed(self, *arguments: str) -> Options:
        options = Options()
        options.parseOptions(list(arguments))
        return options

    def refused(self, *arguments: str) -> str:
        return str(self.assertRaises(usage.UsageError, self.parsed, *arguments))


class OptionTests(TapCase):
    def test_a_state_directory_holds_its_settings(self) -> None:
        options = self.parsed("--state", str(self.state))
        self.assertEqual(str(options.settings.controller.state), str(self.state))
        self.assertEqual(
            self.parsed("--config", str(self.file)).settings.https.listen, options.settings.https.listen
        )

    def test_relative_paths_are_those_of_the_shell(self) -> None:
        before = os.getcwd()
        self.addCleanup(os.chdir, before)
        os.chdir(self.state.parent)
        self.assertEqual(self.parsed("--state", "state")["state"], str(self.state))

    def test_one_of_both(self) -> None:
        said = self.refused("--state", str(self.state), "--config", str(self.file))
        self.assertIn("--config and --state exclude each other", said)

    def test_what_is_not_there_is_named(self) -> None:
        self.assertIn("there is no directory /none/at/all", self.refused("--state", "/none/at/all"))
        self.assertIn("there is no file /none/at/all", self.refused("--config", "/none/at/all"))

    def test_settings_that_cannot_be_used_are_told_with_file_and_key(self) -> None:
        self.file.write_text(SETTINGS + '[accounts]\nlogins_per_user = "many"\n')
        said = self.refused("--state", str(self.state))
        self.assertIn(f"{self.file}", said)
        self.assertIn("accounts.logins_per_user", said)

    def test_help_has_an_example(self) -> None:
        said = " ".join(str(Options()).split())
        self.assertIn("Example: twistd -n controller --state /srv/fleet", said)
        self.assertIn("--config=", said)


class ServiceTests(TapCase):
    def test_it_is_a_controller_and_keys_are_private(self) -> None:
        service = makeService(self.parsed("--state", str(self.state)), Clock())
        self.assertIsInstance(service, Controller)
        private = {path.name for path in (self.state / "pki").iterdir() if path.name.endswith(".key")}
        self.assertTrue(private)
        for name in private:
            self.assertEqual((self.state / "pki" / name).stat().st_mode & 0o777, 0o600)

    def test_what_lies_on_the_disk_and_cannot_be_used_is_one_sentence(self) -> None:
        options = self.parsed("--state", str(self.state))
        makeService(options, Clock())
        next((self.state / "pki").glob("root*.pem")).write_text("no certificate\n")
        said = self.assertRaises(SystemExit, makeService, options, Clock())
        self.assertRegex(str(said.code), rf"\Atwistd controller: .*{self.state}")
        self.assertNotIn("\n", str(said.code))


class LogTests(TapCase):
    def test_the_log_is_private_and_bounded(self) -> None:
        path = self.state / "controller.log"
        self.patch(os, "environ", {**os.environ, "CONTROLLER_LOG": str(path)})
        observer = bounded_log()
        self.addCleanup(lambda: observer._outFile.close())
        event = {"log_format": "x" * 1000, "log_level": LogLevel.info, "log_time": 0.0}
        self.assertTrue(formatEvent(event))
        for _ in range((LOG_FILES + 2) * LOG_BYTES // 1000):
            observer(event)
        found = sorted(path.parent.glob("controller.log*"))
        self.assertEqual(len(found), LOG_FILES + 1)
        self.assertLess(sum(each.stat().st_size for each in found), (LOG_FILES + 1) * LOG_BYTES + 4096)
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
