"""The running defender of a state directory: started, told of new settings, started anew when it must be."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import socket
import subprocess

from deploy.choices import ROOT, Choices, SetupError
from deploy.docker_api import answers
from deploy.processes import Process, processes_naming, read_pidfile, remove, wait_until
from deploy.virtualenv import Virtualenv, clean_environment

START_PATIENCE = 30.0
STOP_PATIENCE = 20.0

# Prints none, live or fixed: what the difference between two settings files asks of a running defender.
COMPARE = """\
import sys
from defender.settings import changed, load_settings
changes = changed(load_settings(sys.argv[1]), load_settings(sys.argv[2]))
print("fixed" if changes.fixed else "live" if changes else "none")
"""


class Guard:
    """The defender of one state directory.

    Args:
        choices: where it is and how it listens.
        tools: the virtual environment it runs in.
    """

    def __init__(self, choices: Choices, tools: Virtualenv) -> None:
        self.choices = choices
        self.tools = tools
        self._code = choices.state / "running.json"

    def process(self) -> Process | None:
        """Return it if it runs: the pid file's process, if that names our settings file."""
        process = read_pidfile(self.choices.pidfile)
        if process is not None and process in processes_naming(self.choices.config):
            return process
        return None

    def ensure(self, settings: str) -> None:
        """Have it run with these settings.

        Raises:
            SetupError: when an address is taken, the settings are bad, or it does not come up.
        """
        process = self.process()
        self._check_port(process)
        need = self._write(settings)
        if process is not None and (need == "fixed" or self._running_code() != self._present_code()):
            self.stop()
            process = None
        if process is None:
            self._start()
        elif need == "live" or not self._serves():
            self._mode_from_settings()
            os.kill(process.pid, signal.SIGHUP)
        if not wait_until(self._serves, START_PATIENCE):
            running = "runs" if self.process() is not None else "has ended"
            raise SetupError(
                f"the defender {running} and does not answer on {self.choices.listen}; the end of its log:\n"
                f"{self._log_end()}"
            )

    def stop(self) -> bool:
        """End it, if it runs, by its pid; return whether it did run."""
        process = self.process()
        if process is not None:
            process.end(STOP_PATIENCE)
        remove(self.choices.pidfile)
        return process is not None

    def _write(self, settings: str) -> str:
        config = self.choices.config
        fresh = config.with_name("defender.toml.new")
        fresh.write_text(settings, "utf-8")
        fresh.chmod(0o600)
        old = config if config.exists() else fresh
        compared = self.tools.run("python", "-c", COMPARE, str(old), str(fresh))
        if compared.returncode:
            # The old file may be broken by hand, or of an older version: only the new one has to be good.
            compared = self.tools.run("python", "-c", COMPARE, str(fresh), str(fresh))
            if compared.returncode:
                raise SetupError(f"the settings cannot be used: {compared.stdout.strip().splitlines()[-1]}")
            compared.stdout = "fixed"
        os.replace(fresh, config)
        return compared.stdout.strip()

    def _mode_from_settings(self) -> None:
        """Forget a mode chosen by `defenderctl local listener set`: make up says which one it is now."""
        remove(self.choices.state / "listener.json")

    def _check_port(self, running: Process | None) -> None:
        """Refuse a port that another program has; one that answers with our own certificates is ours."""
        choices = self.choices
        if not choices.listens_on_tcp:
            return
        if running is not None and answers(choices.tcp_address, choices.certificates):
            return
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", choices.port))  # noqa: S104 - where it will listen
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    why = "another program listens there; choose another DEFENDER_PORT"
                else:
                    why = error.strerror or str(error)
                raise SetupError(f"DEFENDER_PORT={choices.port}: {why}") from None

    def _start(self) -> None:
        self._mode_from_settings()
        remove(self.choices.pidfile)
        done = subprocess.run(
            [
                self.tools.bin / "twistd",
                f"--pidfile={self.choices.pidfile}",
                "--logger=defender.tap.bounded_log",
                f"--rundir={self.choices.state}",
                "defender",
                "--config",
                str(self.choices.config),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            umask=0o077,
            # twistd loads what lies in plugin folders on Python's path: nobody may add one.
            env={**clean_environment(), "PYTHONSAFEPATH": "1", "DEFENDER_LOG": str(self.choices.log)},
            check=False,
        )
        if done.returncode:
            words = done.stdout.strip().splitlines() or ["it said nothing"]
            raise SetupError(f"the defender did not start: {words[-1]}")
        self._code.write_text(json.dumps({"code": self._present_code()}) + "\n", "utf-8")

    def _running_code(self) -> str:
        try:
            return str(json.loads(self._code.read_text("utf-8"))["code"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def _present_code(self) -> str:
        """Digest of what a defender is made of, so that a new version is started and not only installed."""
        digest = hashlib.sha256((ROOT / "constraints.txt").read_bytes())
        for path in sorted((ROOT / "defender").rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT)}\0".encode())
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def _serves(self) -> bool:
        """Tell whether exactly the chosen listeners answer."""
        choices = self.choices
        tcp = answers(choices.tcp_address, choices.certificates)
        unix = choices.socket.exists() and answers(choices.unix_address)
        return (tcp, unix) == (choices.listens_on_tcp, choices.listens_on_unix) and self.process() is not None

    def _log_end(self) -> str:
        try:
            lines = self.choices.log.read_text("utf-8", "replace").splitlines()
        except OSError:
            return "(there is none)"
        return "\n".join(lines[-12:])
