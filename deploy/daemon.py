"""A program of ours that runs behind `twistd`: found again, started, ended by its pid, known by its code."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from deploy.choices import ROOT, SetupError
from deploy.processes import Process, processes_naming, read_pidfile, remove
from deploy.virtualenv import Virtualenv, clean_environment

STOP_PATIENCE = 20.0


class Daemon:
    """One process of a state directory.

    Args:
        command: of twistd, which is also the package that its code is in: ``defender`` or ``controller``.
        state: the state directory; settings, pid file and log are named after the command.
        tools: the virtual environment it runs in.
    """

    def __init__(self, command: str, state: Path, tools: Virtualenv) -> None:
        self.command = command
        self.config = state / f"{command}.toml"
        self.pidfile = state / f"{command}.pid"
        self.log = state / f"{command}.log"
        self._state = state
        self._tools = tools
        self._code = state / ("running.json" if command == "defender" else f"running-{command}.json")

    def process(self) -> Process | None:
        """Return it if it runs: the pid file's process, if that names our settings file."""
        process = read_pidfile(self.pidfile)
        if process is not None and process in processes_naming(self.config):
            return process
        return None

    def start(self, *options: str) -> None:
        """Start it with options of its own; raise SetupError with its last words when it does not."""
        remove(self.pidfile)
        done = subprocess.run(
            [
                self._tools.bin / "twistd",
                f"--pidfile={self.pidfile}",
                f"--logger={self.command}.tap.bounded_log",
                f"--rundir={self._state}",
                self.command,
                *("--config", str(self.config)),
                *options,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            umask=0o077,
            # twistd loads what lies in plugin folders on Python's path: nobody may add one.
            env={
                **clean_environment(),
                "PYTHONSAFEPATH": "1",
                f"{self.command.upper()}_LOG": str(self.log),
            },
            check=False,
        )
        if done.returncode:
            words = done.stdout.strip().splitlines() or ["it said nothing"]
            raise SetupError(f"the {self.command} did not start: {words[-1]}")
        self._code.write_text(json.dumps({"code": self._present_code()}) + "\n", "utf-8")

    def stop(self) -> bool:
        """End it, if it runs, by its pid; return whether it did run."""
        process = self.process()
        if process is not None:
            process.end(STOP_PATIENCE)
        remove(self.pidfile)
        return process is not None

    def is_of_present_code(self) -> bool:
        """Tell whether what runs was started from the code that is here now."""
        try:
            running = json.loads(self._code.read_text("utf-8"))["code"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return bool(running == self._present_code())

    def write_settings(self, settings: str) -> str:
        """Write the settings file; return what the change asks of a running one: none, live or fixed.

        Raises:
            SetupError: when they cannot be used; the file stays as it was.
        """
        fresh = self.config.with_name(f"{self.config.name}.new")
        fresh.write_text(settings, "utf-8")
        fresh.chmod(0o600)
        old = self.config if self.config.exists() else fresh
        compared = self._compare(old, fresh)
        need = compared.stdout.strip()
        if compared.returncode:
            # The old file may be broken by hand, or of an older version: only the new one has to be good.
            compared = self._compare(fresh, fresh)
            if compared.returncode:
                raise SetupError(f"the settings cannot be used: {compared.stdout.strip().splitlines()[-1]}")
            need = "fixed"
        fresh.replace(self.config)
        return need

    def log_end(self) -> str:
        """Return the last lines of its log."""
        try:
            lines = self.log.read_text("utf-8", "replace").splitlines()
        except OSError:
            return "(there is none)"
        return "\n".join(lines[-12:])

    def _compare(self, old: Path, new: Path) -> subprocess.CompletedProcess[str]:
        program = COMPARE.format(package=self.command)
        return self._tools.run("python", "-c", program, str(old), str(new))

    def _present_code(self) -> str:
        """Digest of what it is made of, so that a new version is started and not only installed."""
        digest = hashlib.sha256((ROOT / "constraints.txt").read_bytes())
        for path in _sources(("defender", "controller") if self.command == "controller" else ("defender",)):
            digest.update(f"{path.relative_to(ROOT)}\0".encode())
            digest.update(path.read_bytes())
        return digest.hexdigest()


# Prints none, live or fixed: what the difference between two settings files asks of a running program.
COMPARE = """\
import sys
from {package}.settings import changed, load_settings
changes = changed(load_settings(sys.argv[1]), load_settings(sys.argv[2]))
print("fixed" if changes.fixed else "live" if changes else "none")
"""


def _sources(packages: Sequence[str]) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))
