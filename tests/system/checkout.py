"""Copies of the checkout, and virtual environments that have its dependencies but not itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

_NOT_COPIED = shutil.ignore_patterns(
    ".git",
    ".venv",
    ".state",
    "build",
    "dist",
    "*.egg-info",
    "__pycache__",
    ".*_cache",
    ".hypothesis",
    "dropin.cache",
)


def copy_checkout(destination: Path) -> Path:
    """Copy what a fresh clone would have, and return where."""
    shutil.copytree(ROOT, destination, ignore=_NOT_COPIED, symlinks=True)
    return destination


def bare_environment(**extra: str) -> dict[str, str]:
    """Return an environment that leads no Python anywhere by itself, with `extra` added."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))
    }
    return {**kept, **extra}


class Venv:
    """A virtual environment with Twisted really installed, and the other dependencies lent by a .pth file.

    The lender is the environment that runs the tests. Its own copy of this project, if it has one, stays out,
    and so does its Twisted: the plugin files and Twisted must meet in one folder, as they do for users.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.empty = directory / "empty"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
        self.empty.mkdir()
        self.site = Path(
            sysconfig.get_path("purelib", "venv", vars={"base": str(directory), "platbase": str(directory)})
        )
        self._install_twisted()
        self._borrow()

    def _install_twisted(self) -> None:
        for file in distribution("Twisted").files or ():
            source = Path(str(file.locate()))
            if ".." in file.parts or "__pycache__" in file.parts:
                continue  # scripts, written below; caches
            target = self.site / file
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target)
            except OSError:
                shutil.copy2(source, target)
        script = self.directory / "bin" / "twistd"
        script.write_text(
            f"#!{self.python}\nimport sys\nfrom twisted.scripts.twistd import run\nsys.exit(run())\n", "utf-8"
        )
        script.chmod(0o755)

    def _borrow(self) -> None:
        lent = self.directory / "lent"
        lent.mkdir()
        for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            for entry in Path(folder).iterdir():
                ours = entry.name.lower().startswith(("defender", "controller", "__editable__", "twisted"))
                if not ours and entry.suffix != ".pth" and entry.name != "__pycache__":
                    (lent / entry.name).symlink_to(entry)
        (self.site / "lent.pth").write_text(f"{lent}\n", "utf-8")

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"

    def run(self, program: str, *arguments: str, **extra: str) -> str:
        """Run one of its programs in an empty directory; return what it wrote, errors included.

        Raises:
            AssertionError: when it ends with another code than 0.
        """
        return run(
            self.directory / "bin" / program,
            *arguments,
            cwd=self.empty,
            environment=bare_environment(**extra),
        )

    def pip(self, *arguments: str) -> str:
        """Run the lender's pip on this environment."""
        return run(
            sys.executable,
            "-m",
            "pip",
            f"--python={self.python}",
            "--disable-pip-version-check",
            *arguments,
            cwd=self.empty,
            environment=bare_environment(),
        )

    def twisted_files(self) -> dict[str, bool]:
        """Return each file of Twisted's own record, and whether it is there."""
        files = distribution("Twisted").files or ()
        return {
            str(file): (self.site / file).is_file()
            for file in files
            if ".." not in file.parts and "__pycache__" not in file.parts
        }


def run(program: str | Path, *arguments: str, cwd: Path, environment: dict[str, str]) -> str:
    """Run a program to its end; return what it wrote, errors included.

    Raises:
        AssertionError: when it ends with another code than 0.
    """
    done = subprocess.run(
        [program, *arguments],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, (
        f"{program} {' '.join(arguments)} ended with {done.returncode}\n{done.stdout}"
    )
    return done.stdout
