"""The controller's settings file: everything that is wrong is told at once, with its place."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.trial.unittest import SynchronousTestCase

from controller.settings import Settings, SettingsError, changed, describe, load_settings, read_settings

STATE = '[controller]\nstate = "state"\n'


def read(text: str) -> Settings:
    return read_settings(text, source="controller.toml", base=Path("/etc/controller"), host_name="hq")


class ReadingTests(SynchronousTestCase):
    def told(self, text: str) -> list[str]:
        return str(self.assertRaises(SettingsError, read, text)).splitlines()

    def test_only_the_state_directory_is_required(self) -> None:
        settings = read(STATE)
        self.assertEqual(settings.controller.state, Path("/etc/controller/state"))
        self.assertEqual((settings.https.listen, settings.channel.listen), ("0.0.0.0:8083", "0.0.0.0:8084"))
        self.assertEqual(self.told(""), ["controller.toml:1:1: controller.state: is required"])

    def test_every_problem_is_told_with_its_place(self) -> None:
        told = self.told(
            STATE + '[https]\nlisten = "hq:8083"\n[chanel]\n[audit]\nretention_days = 0\nretention = 9\n'
        )
        self.assertEqual(
            [line.split(": ")[:2] for line in told],
            [
                ["controller.toml:4:1", "https.listen"],
                ["controller.toml:5:1", "chanel"],
                ["controller.toml:7:1", "audit.retention_days"],
                ["controller.toml:8:1", "audit.retention"],
            ],
        )
        self.assertIn("did you mean 'channel'?", told[1])
        self.assertIn("an IP address and a port", told[0])

    def test_ports_that_cannot_be(self) -> None:
        self.assertIn(
            "https.listen: 99999 is no port", self.told(STATE + '[https]\nlisten = "0.0.0.0:99999"\n')[0]
        )
        both = self.told(STATE + '[channel]\nlisten = "0.0.0.0:8083"\n')[0]
        self.assertIn("channel.listen: must not be the address of https.listen", both)

    def test_a_file_that_cannot_be_read_or_is_no_text(self) -> None:
        with TemporaryDirectory() as name:
            path = Path(name) / "controller.toml"
            error = self.assertRaises(SettingsError, load_settings, path)
            self.assertEqual(str(error), f"{path}: cannot be read: No such file or directory")
            path.write_bytes(b"[controller]\nstate = '\xff'\n")
            error = self.assertRaises(SettingsError, load_settings, path)
            self.assertEqual(str(error), f"{path}:2:1: is not UTF-8 text")
            path.write_text(STATE)
            self.assertEqual(load_settings(path).controller.state, Path(name) / "state")

    def test_what_a_running_controller_can_take_over(self) -> None:
        old = read(STATE)
        new = read(STATE + '[audit]\nretention_days = 7\n[https]\nlisten = "127.0.0.1:8083"\n')
        changes = changed(old, new)
        self.assertEqual((changes.live, changes.fixed), (("audit.retention_days",), ("https.listen",)))

    def test_every_setting_is_described(self) -> None:
        described = {(each.table, each.key): each for each in describe()}
        self.assertEqual(described["controller", "state"].default, "")
        self.assertEqual(described["https", "listen"].default, '"0.0.0.0:8083"')
        self.assertTrue(all(each.meaning.endswith(".") for each in described.values()))
