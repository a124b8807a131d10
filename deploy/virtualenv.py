"""The virtual environment ``.venv`` of the checkout: made, filled with pinned versions, kept while they hold.

Standard library only: it is what brings the libraries.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy import packages
from deploy.choices import ROOT, SetupError
from deploy.output import say

INPUTS = ("setup.cfg", "pyproject.toml", "constraints.txt", "defender/__init__.py")


def base_python() -> str:
    """Return the interpreter below all virtual environments.

    env.sh puts `.venv/bin` first on PATH, so make itself may run on the environment that it is to replace.
    """
    return str(getattr(sys, "_base_executable", None) or sys.executable)


def has_ensurepip() -> bool:
    """Tell whether this Python can put pip into a virtual environment."""
    return importlib.util.find_spec("ensurepip") is not None


def clean_environment() -> dict[str, str]:
    """Return our environment without what would lead a Python astray."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))
    }
    return {
        **kept,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
        "PIP_NO_INPUT": "1",
        "PIP_USER": "0",
    }


def telling(output: str) -> str:
    """Return what pip says of a failure: its last attempt at the network and its errors, else its end."""
    lines = [line.strip() for line in output.splitlines()]
    attempts = [line for line in lines if line.startswith("WARNING: Retrying ")]
    errors = [line for line in dict.fromkeys(lines) if line.startswith("ERROR: ")]
    return "\n".join([*attempts[-1:], *errors[-6:]] or lines[-12:])


class Virtualenv:
    """One virtual environment with the project in it, editable.

    Args:
        root: the checkout.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self.directory = root / ".venv"
        self.bin = self.directory / "bin"
        self._stamp = self.directory / "made-by-make.json"

    def ensure(self, extras: Sequence[str] = ()) -> None:
        """Have the environment with the project and these extras, of exactly the pinned versions.

        Raises:
            SetupError: when Python cannot make one, or pip cannot fill it, with the end of its words.
        """
        folder = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # one make at a time, without a file that stays
            self._ensure(extras)
        finally:
            os.close(folder)

    def _ensure(self, extras: Sequence[str]) -> None:
        fingerprint = self._fingerprint()
        made = self._read_stamp()
        enough = set(extras) <= set(made.get("extras", ()))
        if made.get("fingerprint") == fingerprint and enough and (self.bin / "python").exists():
            return
        if made.get("home") != self._home() or not self._works():
            self._make()
            made = {}
        wanted = sorted({*extras, *made.get("extras", ())})
        say(f"Installing the project's Python libraries into {self.directory}")
        project = str(self.root) + (f"[{','.join(wanted)}]" if wanted else "")
        self._pip("install", "--editable", project)
        self._check_commands()
        stamp = {"fingerprint": fingerprint, "extras": wanted, "home": self._home()}
        self._stamp.write_text(json.dumps(stamp) + "\n", "utf-8")

    def run(self, program: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run one of its programs to the end, and return what it wrote, errors included, in `stdout`.

        Args:
            program: its name.
            arguments: of the program.
            variables: added to the environment.
        """
        return self._run(subprocess.STDOUT, program, *arguments, **variables)

    def run_apart(self, program: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run one of its programs as `run` does, with errors in `stderr`."""
        return self._run(subprocess.PIPE, program, *arguments, **variables)

    def _run(
        self, errors: int, program: str, *arguments: str, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.bin / program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=clean_environment() | variables,
            check=False,
        )

    def _read_stamp(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self._stamp.read_text("utf-8")))
        except (OSError, ValueError):
            return {}

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(self._home().encode())
        for name in INPUTS:
            digest.update((self.root / name).read_bytes())
        return digest.hexdigest()

    def _home(self) -> str:
        """Name what the scripts have in their first lines, and what the libraries are built for.

        Not sys.version: an update of the distribution's Python 3.11 changes it, and changes nothing for us.
        """
        build = f"{sys.implementation.cache_tag}{sys.abiflags} {platform.machine()}"
        return f"{self.directory} {os.path.realpath(base_python())} {build}"

    def _works(self) -> bool:
        python = self.bin / "python"
        return python.exists() and not self.run("python", "-m", "pip", "--version").returncode

    def _make(self) -> None:
        if not has_ensurepip():
            # Debian and Ubuntu keep it in a package of its own.
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            if not packages.may_install():
                raise SetupError(
                    f"this Python cannot make virtual environments; on Debian or Ubuntu: apt-get install "
                    f"python{version}-venv"
                )
            say(f"Virtual environments need ensurepip: installing python{version}-venv")
            packages.install([f"python{version}-venv"])
        if self.directory.exists():
            if not (self.directory / "pyvenv.cfg").exists():
                raise SetupError(f"{self.directory} is there and is no virtual environment: move it away")
            shutil.rmtree(self.directory)
        say(f"Making a virtual environment in {self.directory}")
        done = subprocess.run(
            [base_python(), "-m", "venv", str(self.directory)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=clean_environment(),
            check=False,
        )
        if done.returncode:
            raise SetupError(
                f"no virtual environment could be made in {self.directory}:\n{done.stdout.strip()}"
            )

    def _pip(self, *arguments: str) -> None:
        # In variables and not as an option, so that they hold for what builds the project, too, which has a
        # variable of its own in newer versions of pip. A URL, for a path with a space in it would be two.
        pinned = (self.root / "constraints.txt").as_uri()
        constraints = {"PIP_CONSTRAINT": pinned, "PIP_BUILD_CONSTRAINT": pinned}
        done = self.run("python", "-m", "pip", *arguments, **constraints)
        if done.returncode:
            log = self.directory / "pip.log"
            log.write_text(done.stdout, "utf-8")
            raise SetupError(
                f"pip could not install the project's libraries:\n{telling(done.stdout)}\n"
                f"All that it said is in {log}"
            )

    def _check_commands(self) -> None:
        """See that twistd has both commands, which also writes its cache of plugins."""
        listing = self.run("twistd", "--help").stdout
        for command in ("defender", "controller"):
            if f"    {command} " not in listing:
                raise SetupError(
                    f"twistd does not list {command!r}: remove {self.directory} and run make again"
                )
