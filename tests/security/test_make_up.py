"""`make up`, often run by root, in a place that others prepared."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from deploy.choices import ROOT, Choices, SetupError, read_choices
from deploy.client import write_environment
from deploy.up import LOCK, prepare_state


class StateTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.state = Path(tempfile.mkdtemp(prefix="dfleet-", dir="/tmp"))
        self.addCleanup(shutil.rmtree, self.state, ignore_errors=True)

    def refused(self) -> str:
        before = self.state.stat().st_mode
        said = str(self.assertRaises(SetupError, prepare_state, Choices(state=self.state)))
        self.assertEqual(self.state.stat().st_mode, before)
        self.assertFalse((self.state / "pki").exists())
        return said

    def test_directory_of_another_user(self) -> None:
        """He could put links in it, for root to write through."""
        os.chown(self.state, 12345, -1)
        (self.state / LOCK).touch()
        self.assertIn("belongs to user 12345", self.refused())

    def test_directory_that_everybody_may_write_to(self) -> None:
        self.state.chmod(0o1777)
        (self.state / LOCK).touch()
        self.assertIn("everybody", self.refused())

    def test_directory_of_the_owner_of_the_checkout(self) -> None:
        """His code is being run anyway."""
        os.chown(self.state, ROOT.stat().st_uid, -1)
        prepare_state(Choices(state=self.state))

    def test_name_that_would_break_out_of_its_line(self) -> None:
        for name in ("/tmp/a\nid", "/tmp/a\rid", "/tmp/a\x1b[31m"):
            self.assertRaises(SetupError, read_choices, {"FLEET_STATE": name}, Path("/tmp"))

    def test_names_are_quoted(self) -> None:
        """The file is run by a shell."""
        canary = self.state / "canary"
        for name in (
            "it's",
            "a b",
            "$(touch canary)",
            "`touch canary`",
            '"',
            "*",
            "\\",
            "# x",
            "é;touch canary",
        ):
            state = self.state / name
            state.mkdir()
            choices = Choices(state=state)
            write_environment(choices, state / "bin")
            done = subprocess.run(
                ["sh", "-c", '. "$1/env.sh"; echo "$DOCKER_CERT_PATH"; echo "$PATH"', "sh", str(state)],
                cwd=self.state,
                capture_output=True,
                text=True,
                check=True,
            )
            certificates, path = done.stdout.splitlines()
            self.assertEqual(certificates, str(choices.certificates))
            self.assertTrue(path.startswith(f"{state}/bin:"), path)
            self.assertFalse(canary.exists(), name)
