"""Both twistd commands appear however the project gets onto the machine, and it leaves without a trace."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.system.checkout import Venv, bare_environment, copy_checkout, run

COMMANDS = {"defender", "controller"}


def commands_of(help_text: str) -> set[str]:
    """Return which of our commands `twistd --help` lists."""
    return COMMANDS & set(re.findall(r"^    (\S+)", help_text, re.MULTILINE))


class PackagingTests(SynchronousTestCase):
    """pip install -e, the built wheel, and a checkout on PYTHONPATH."""

    scratch: Path
    checkout: Path

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.scratch = Path(tempfile.mkdtemp(prefix="dfleet-packaging-"))
        cls.checkout = copy_checkout(cls.scratch / "checkout")

    @classmethod
    def tearDownClass(cls) -> None:
        shutil.rmtree(cls.scratch)
        super().tearDownClass()

    def venv(self, name: str) -> Venv:
        venv = Venv(self.scratch / name)
        self.assertEqual(
            commands_of(venv.run("twistd", "--help")), set(), "a command leaks in from elsewhere"
        )
        return venv

    def assert_commands_work(self, venv: Venv, **extra: str) -> None:
        self.assertEqual(commands_of(venv.run("twistd", "--help", **extra)), COMMANDS)
        self.assertIn("--config", venv.run("twistd", "defender", "--help", **extra))
        self.assertIn("--config", venv.run("twistd", "controller", "--help", **extra))

    def assert_leaves_twisted_whole(self, venv: Venv) -> None:
        venv.pip("uninstall", "--yes", "defender-fleet")
        self.assertEqual([name for name, there in venv.twisted_files().items() if not there], [])
        listing = venv.run("twistd", "--help")
        self.assertEqual(commands_of(listing), set())
        self.assertIn("    web ", listing)
        self.assertEqual(list(venv.site.glob("*defender*")) + list(venv.site.glob("controller*")), [])

    def wheel(self) -> Path:
        target = self.scratch / "wheels"
        arguments = [
            "-m",
            "pip",
            "wheel",
            "--no-deps",
            "--no-build-isolation",
            "--no-index",
            f"--wheel-dir={target}",
        ]
        run(sys.executable, *arguments, str(self.checkout), cwd=self.scratch, environment=bare_environment())
        [wheel] = target.glob("defender_fleet-*.whl")
        return wheel

    def test_editable_install(self) -> None:
        venv = self.venv("editable")
        venv.pip(
            "install", "--no-deps", "--no-build-isolation", "--no-index", "--editable", str(self.checkout)
        )
        self.assert_commands_work(venv)
        self.assertIn("Usage: defenderctl", venv.run("defenderctl", "--help"))
        self.assert_leaves_twisted_whole(venv)

    def test_built_wheel(self) -> None:
        venv = self.venv("wheel")
        venv.pip("install", "--no-deps", "--no-index", str(self.wheel()))
        self.assert_commands_work(venv)
        self.assertIn("Usage: defenderctl", venv.run("defenderctl", "--help"))
        self.assertNotIn(
            str(self.checkout), venv.run("python", "-c", "import defender; print(defender.__file__)")
        )
        self.assert_leaves_twisted_whole(venv)

    def test_checkout_on_the_path(self) -> None:
        self.assert_commands_work(self.venv("uninstalled"), PYTHONPATH=str(self.checkout))

    def test_checkout_as_the_current_directory(self) -> None:
        """PYTHONPATH=. as the documentation writes it."""
        twistd = self.venv("current").directory / "bin" / "twistd"
        help_text = run(twistd, "--help", cwd=self.checkout, environment=bare_environment(PYTHONPATH="."))
        self.assertEqual(commands_of(help_text), COMMANDS)

    def test_the_wheel_holds_the_programs_and_nothing_else(self) -> None:
        with zipfile.ZipFile(self.wheel()) as archive:
            names = set(archive.namelist())
            metadata = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
        modules = {name for name in names if name.endswith(".py")}
        expected = {
            str(path.relative_to(self.checkout))
            for folder in ("defender", "controller", "twisted")
            for path in (self.checkout / folder).rglob("*.py")
        }
        self.assertEqual(modules, expected)
        self.assertEqual(
            {name.split("/")[0] for name in names if ".dist-info/" not in name}, {*COMMANDS, "twisted"}
        )
        self.assertIn("Name: defender-fleet\n", metadata)
        self.assertRegex(metadata, r"(?m)^License(-Expression)?: Apache-2\.0$")
        self.assertIn(f"Version: {self.version()}\n", metadata)

    def version(self) -> str:
        text = (self.checkout / "defender" / "__init__.py").read_text("utf-8")
        match = re.fullmatch(r'__version__ = "([0-9.]+)"\n', text)
        assert match is not None, "defender/__init__.py holds the version and nothing else"
        return match[1]
