"""The virtual environment is made when it must be, filled when its inputs change, and else left alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from deploy import packages, virtualenv
from deploy.choices import ROOT, SetupError
from deploy.virtualenv import INPUTS, Virtualenv, base_python
from tests.system.checkout import bare_environment


class EnsureTests(SynchronousTestCase):
    """Which steps are taken; what they do is for tests/system."""

    def setUp(self) -> None:
        self.scratch = Path(tempfile.mkdtemp(prefix="dfleet-"))
        self.addCleanup(shutil.rmtree, self.scratch)
        self.root = self.scratch / "checkout"
        for name in INPUTS:
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_text("first", "utf-8")
        self.steps: list[str] = []
        self.works = True

        def make(environment: Virtualenv) -> None:
            self.steps.append("make")
            environment.bin.mkdir(parents=True, exist_ok=True)
            (environment.bin / "python").touch()

        def pip(environment: Virtualenv, *arguments: str) -> None:
            self.steps.append(f"pip {arguments[-1].removeprefix(str(environment.root))}")

        self.patch(Virtualenv, "_make", make)
        self.patch(Virtualenv, "_pip", pip)
        self.patch(Virtualenv, "_check_commands", lambda environment: self.steps.append("check"))
        self.patch(Virtualenv, "_works", lambda environment: self.works)

    def ensure(self, *extras: str) -> list[str]:
        """Return the steps that it took."""
        self.steps.clear()
        Virtualenv(self.root).ensure(extras)
        return self.steps[:]

    def test_once(self) -> None:
        self.assertEqual(self.ensure(), ["make", "pip ", "check"])
        self.assertEqual(self.ensure(), [])

    def test_extras_are_added_and_kept(self) -> None:
        self.ensure("test")
        self.assertEqual(self.ensure("docs"), ["pip [docs,test]", "check"])
        self.assertEqual(self.ensure(), [])

    def test_each_input_counts(self) -> None:
        self.ensure("test")
        for name in INPUTS:
            (self.root / name).write_text("second", "utf-8")
            self.assertEqual(self.ensure(), ["pip [test]", "check"], name)

    def test_an_update_of_the_same_python_changes_nothing(self) -> None:
        self.ensure()
        self.patch(sys, "version", "3.11.99 (built today)")
        self.assertEqual(self.ensure(), [])

    def test_another_python_makes_another(self) -> None:
        self.ensure()
        self.patch(virtualenv, "base_python", lambda: "/opt/other/python3")
        self.assertEqual(self.ensure(), ["make", "pip ", "check"])

    def test_a_moved_checkout_makes_another(self) -> None:
        """Scripts hold the path of their interpreter."""
        self.ensure("test")
        self.root = self.root.rename(self.scratch / "moved")
        self.assertEqual(self.ensure(), ["make", "pip ", "check"])

    def test_a_failure_is_not_taken_for_done(self) -> None:
        def pip(environment: Virtualenv, *arguments: str) -> None:
            raise SetupError("no network")

        working = self.patch(Virtualenv, "_pip", pip)
        self.assertRaises(SetupError, self.ensure)
        working.restore()
        self.assertEqual(self.ensure(), ["make", "pip ", "check"])


class TellingTests(SynchronousTestCase):
    """A failure of pip is told in a few lines, which name the network if it was that."""

    def test_errors_and_the_last_attempt(self) -> None:
        said = (
            "Obtaining x\n  WARNING: Retrying (total=1) after /a/\n  WARNING: Retrying (total=0) after /a/\n"
            "  ERROR: No matching distribution\n\n  [end]\nERROR: No matching distribution\nnote: x\n"
        )
        self.assertEqual(
            virtualenv.telling(said),
            "WARNING: Retrying (total=0) after /a/\nERROR: No matching distribution",
        )

    def test_else_the_end(self) -> None:
        lines = [str(number) for number in range(20)]
        self.assertEqual(virtualenv.telling("\n".join(lines)), "\n".join(lines[8:]))


class InterpreterTests(SynchronousTestCase):
    """The environment may be replaced by a make that runs on it, as env.sh has it."""

    def test_the_base_is_never_the_environment_itself(self) -> None:
        scratch = Path(tempfile.mkdtemp(prefix="dfleet-"))
        self.addCleanup(shutil.rmtree, scratch)
        subprocess.run([base_python(), "-m", "venv", "--without-pip", scratch], check=True)
        done = subprocess.run(
            [scratch / "bin" / "python3", "-c", "from deploy.virtualenv import base_python as b; print(b())"],
            env=bare_environment(PYTHONPATH=str(ROOT)),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found = Path(done.stdout.strip())
        self.assertNotIn(scratch, found.parents)
        self.assertEqual(os.path.realpath(found), os.path.realpath(base_python()))

    def root_with(self, *names: str) -> Path:
        """Return a directory with empty files of these names in it."""
        root = Path(tempfile.mkdtemp(prefix="dfleet-"))
        self.addCleanup(shutil.rmtree, root)
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        return root

    def test_what_lacks_is_named_where_it_cannot_be_installed(self) -> None:
        self.patch(packages, "may_install", lambda: False)
        self.patch(virtualenv, "has_ensurepip", lambda: False)
        said = str(self.assertRaises(SetupError, Virtualenv(self.root_with(*INPUTS)).ensure))
        self.assertIn(f"apt-get install python{sys.version_info.major}.{sys.version_info.minor}-venv", said)

    def test_a_directory_that_is_something_else_is_left_alone(self) -> None:
        root = self.root_with(*INPUTS, ".venv/letter")
        said = str(self.assertRaises(SetupError, Virtualenv(root).ensure))
        self.assertIn("is no virtual environment: move it away", said)
        self.assertTrue((root / ".venv" / "letter").exists())
