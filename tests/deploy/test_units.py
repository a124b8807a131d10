"""The systemd units: systemd understands every line, and they take away what the programs do not need."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from deploy.choices import ROOT

UNITS = ROOT / "deploy" / "systemd"
NAMES = ("defender.service", "defender.socket", "controller.service", "controller.socket")

FOREIGN = {
    "sysinit.target": "",
    "basic.target": "",
    "shutdown.target": "",
    "sockets.target": "",
    "multi-user.target": "",
    "network.target": "",
    "network-online.target": "",
    "nss-user-lookup.target": "",
    "-.mount": "[Mount]\nWhat=none\nWhere=/\n",
    "tmp.mount": "[Mount]\nWhat=tmpfs\nWhere=/tmp\nType=tmpfs\n",
    "system.slice": "",
    "docker.service": "[Service]\nExecStart=/bin/kill\n",
}
"""Units of the distribution that ours name."""


def values(text: str, key: str) -> list[str]:
    """Every value of a key, continued lines joined; an inactive line has none."""
    return re.findall(rf"(?m)^{key}=(.*)$", text.replace("\\\n", " "))


class UnitCase(SynchronousTestCase):
    """A root directory with the units in it, and with all that they name."""

    def setUp(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="dfleet-units-"))
        self.addCleanup(shutil.rmtree, self.root)
        folder = self.root / "etc" / "systemd" / "system"
        folder.mkdir(parents=True)
        for name in NAMES:
            shutil.copy(UNITS / name, folder / name)
        for name, body in FOREIGN.items():
            (folder / name).write_text(f"[Unit]\nDescription={name}\nDefaultDependencies=no\n{body}")
        for program in ("opt/defender-fleet/current/bin/twistd", "bin/kill"):
            path = self.root / program
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("#!/bin/sh\n")
            path.chmod(0o755)

    def analyze(self, *arguments: str) -> str:
        done = subprocess.run(
            ["systemd-analyze", f"--root={self.root}", "--man=no", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.stdout


class VerifyTests(UnitCase):
    def test_systemd_has_nothing_to_say(self) -> None:
        self.assertEqual(self.analyze("verify", *NAMES), "")

    def test_a_wrong_line_is_found(self) -> None:
        unit = self.root / "etc/systemd/system/controller.service"
        unit.write_text(unit.read_text().replace("ProtectHome=", "ProtectHme="))
        self.assertIn("ProtectHme", self.analyze("verify", "controller.service"))

    def test_little_is_left_to_either_program(self) -> None:
        """systemd's own measure: 10 is a service that may do everything, 2 one that may do little."""
        for name in ("defender.service", "controller.service"):
            told = self.analyze("--offline=true", "security", name)
            exposure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", told)
            assert exposure is not None, told
            self.assertLessEqual(float(exposure[1]), 2.0, name)


class TextTests(SynchronousTestCase):
    """What other parts of the project rely on."""

    def text(self, name: str) -> str:
        return (UNITS / name).read_text("utf-8")

    def test_both_programs_notify_and_are_watched(self) -> None:
        for name in ("defender.service", "controller.service"):
            text = self.text(name)
            self.assertEqual(values(text, "Type"), ["notify"])
            self.assertEqual(values(text, "WatchdogSec"), ["60"])
            self.assertEqual(values(text, "LimitCORE"), ["0"])
            self.assertEqual(values(text, "CapabilityBoundingSet"), [""])
            self.assertIn("PYTHONSAFEPATH=1", " ".join(values(text, "Environment")))
            self.assertIn("PYTHONPATH", " ".join(values(text, "UnsetEnvironment")))

    def test_users_differ(self) -> None:
        users = [values(self.text(f"{name}.service"), "User") for name in ("defender", "controller")]
        self.assertEqual(users, [["defender"], ["defender-controller"]])

    def test_the_defender_sees_its_peers_processes(self) -> None:
        """Each of these would make every unix peer anonymous."""
        for key in ("ProtectProc", "ProcSubset", "PrivateUsers", "PrivatePIDs"):
            self.assertEqual(values(self.text("defender.service"), key), [], key)

    def test_sockets_are_those_of_the_default_settings(self) -> None:
        self.assertEqual(
            values(self.text("defender.socket"), "ListenStream"),
            ["/run/defender/docker.sock", "0.0.0.0:9998"],
        )
        self.assertEqual(
            values(self.text("controller.socket"), "ListenStream"), ["0.0.0.0:8083", "0.0.0.0:8084"]
        )
