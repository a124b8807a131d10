"""A fresh copy of the checkout with a state directory, in which `make up` is run as a person runs it."""

from __future__ import annotations

import atexit
import functools
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from twisted.trial.unittest import SynchronousTestCase

from deploy.docker_api import answers
from deploy.processes import Process, read_pidfile
from tests.engine.dockerd import client_environment, docker_clis, engine
from tests.system.checkout import bare_environment, copy_checkout

GUEST_POLICY = """\
schema: 1
rules:
  - name: admin_rule
    users: [admin]
    effect: allow
  - name: guest_rule
    users: [bruce]
    effect: allow
    actions: [{actions}]
"""


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@functools.cache
def shared_checkout() -> Path:
    """Return the copy that all classes use, whose virtual environment takes long to make."""
    scratch = tempfile.mkdtemp(prefix="dfup-", dir="/tmp")
    atexit.register(shutil.rmtree, scratch)
    return copy_checkout(Path(scratch) / "checkout")


class UpCase(SynchronousTestCase):
    """One copy and one state directory for all tests of a class, in front of a real Engine.

    Each test brings the defender into the state that it needs first, which is itself the point: make up is
    idempotent.
    """

    scratch: Path
    checkout: Path
    state: Path
    port: int
    fixed: ClassVar[Mapping[str, str]] = {}
    """Variables that every make of a class has."""
    made: dict[str, str] | None = None
    """The variables of the last make up that went well, while nothing else was done since."""

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.scratch = Path(tempfile.mkdtemp(prefix="dfup-", dir="/tmp"))
        cls.checkout = shared_checkout()
        cls.state = cls.scratch / "state"
        cls.port = free_port()

    @classmethod
    def tearDownClass(cls) -> None:
        cls.make("down")
        shutil.rmtree(cls.scratch)
        super().tearDownClass()

    @classmethod
    def make(cls, goal: str, **variables: str) -> subprocess.CompletedProcess[str]:
        given = {
            "ENGINE": engine().address,
            "FLEET_STATE": str(cls.state),
            "DEFENDER_PORT": str(cls.port),
            **cls.fixed,
            **variables,
        }
        environment = {
            name: value
            for name, value in bare_environment().items()
            if not name.startswith(("DOCKER_", "MAKE", "MFLAGS"))
        }
        return subprocess.run(
            ["make", "--no-print-directory", goal, *(f"{name}={value}" for name, value in given.items())],
            cwd=cls.checkout,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )

    def up(self, **variables: str) -> str:
        done = self.make("up", **variables)
        self.assertEqual(done.returncode, 0, done.stdout)
        type(self).made = variables
        return done.stdout

    def stand(self) -> Process:
        """Have the defender that a plain make up gives, and return it."""
        if self.made != {} or read_pidfile(self.state / "defender.pid") is None:
            self.up()
        return self.process()

    def disturb(self) -> None:
        """Note that the test changes what the last make up made."""
        type(self).made = None

    def refused(self, **variables: str) -> str:
        """Run make up with what cannot be; return its sentence, and see that nothing was harmed."""
        before = self.stand()
        done = self.make("up", **variables)
        self.assertNotEqual(done.returncode, 0, done.stdout)
        self.assertNotIn("Traceback", done.stdout)
        self.assertEqual(self.process(), before)
        self.assertTrue(answers(self.address, self.state / "certs/admin"))
        return done.stdout

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def process(self, program: str = "defender") -> Process:
        process = read_pidfile(self.state / f"{program}.pid")
        assert process is not None, f"the {program} does not run"
        return process

    def in_shell(self, script: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a shell script after sourcing env.sh, as a person would."""
        done = subprocess.run(
            ["/bin/sh", "-c", f'. "{self.state}/env.sh"; {script}'],
            cwd=self.scratch,
            env=bare_environment(HOME=str(self.scratch)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if check:
            self.assertEqual(done.returncode, 0, f"{script}\n{done.stdout}{done.stderr}")
        return done

    def denial(self, user: str, *arguments: str) -> str:
        """Issue a certificate, run docker with it, and return what docker complains of, if it does."""
        directory = self.scratch / "certificates" / user
        self.in_shell(f"defenderctl pki issue --user {user} --out {directory} --force")
        environment = client_environment(self.address, directory)
        return docker_clis()[-1].run(*arguments, environment=environment, check=False).stderr.decode()
