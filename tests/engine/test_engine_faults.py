"""The Engine away, restarted, stopped in its tracks: errors in its own shape, and recovery by itself."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import ClassVar

from twisted.trial.unittest import SynchronousTestCase

from deploy.engine import OwnEngine
from deploy.processes import wait_until
from tests.engine.dockerd import docker_clis
from tests.engine.guarded import Guarded, of
from tests.engine.terminal import Terminal

SETTINGS = {"engine": "response_timeout = 0.5\naction_timeout = 1"}


class EngineCase(SynchronousTestCase):
    """An Engine and a defender of this class's own, and the newest client."""

    __test__ = False
    engine: ClassVar[OwnEngine]
    defender: ClassVar[Guarded]

    @classmethod
    def setUpClass(cls) -> None:
        root = Path(tempfile.mkdtemp(prefix="dfleet-", dir="/tmp"))
        cls.engine = OwnEngine(root, isolated=True, ends_with_parent=True)
        cls.defender = Guarded(engine_address=cls.engine.address, settings=SETTINGS)

    @classmethod
    def tearDownClass(cls) -> None:
        cls.defender.stop()
        cls.engine.stop()
        shutil.rmtree(cls.engine.root, ignore_errors=True)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a client that does not ask for the version first."""
        return {**self.defender.tls(), "DOCKER_API_VERSION": "1.41"}

    def docker(self, *arguments: str, newest: bool = True) -> tuple[int, str]:
        """Run a command; return its exit code and all that it said."""
        cli = docker_clis()[-1 if newest else 0]
        done = cli.run(*arguments, environment=self.environment, check=False)
        return done.returncode, (done.stdout + done.stderr).decode()

    def terminal(self, *arguments: str) -> Terminal:
        terminal = Terminal([str(docker_clis()[-1].path), *arguments], self.environment)
        self.addCleanup(terminal.end)
        return terminal

    def dockerd(self) -> int:
        process = self.engine.process()
        assert process is not None, "the Engine does not run"
        return process.pid


class AwayTests(EngineCase):
    """No Engine, then one, then none, then one again: each state is the next one's past."""

    __test__ = True

    def test_an_engine_that_comes_and_goes(self) -> None:
        defender = self.defender.start()
        for newest in (True, False):
            before = defender.trail.mark()
            code, said = self.docker("ps", newest=newest)
            self.assertEqual(code, 1)
            self.assertIn(
                f"Error response from daemon: Cannot connect to the Engine at {self.engine.address}", said
            )
            self.assertIn("Is it running?", said)
            (event, *_) = defender.trail.wait_for(of("container_list"), since=before)
            self.assertEqual((event["result"]["status"], event["decision"]["effect"]), (502, "allow"))
        code, said = self.docker("run", "--rm", "busybox", "true")
        self.assertEqual(code, 125)
        self.assertIn("Cannot connect to the Engine", said)
        # It comes, and nobody has to tell the defender.
        self.engine.start()
        self.assertEqual(self.docker("run", "--rm", "--network=none", "busybox", "echo", "up"), (0, "up\n"))
        # A kept connection of before is stale after a restart; the next read does not notice.
        before = defender.trail.mark()
        run = ("run", "-it", "--network=none", "--name=open", "--stop-signal=KILL")
        session = self.terminal(*run, "busybox", "sh")
        session.expect(rb"# ")
        self.engine.stop()
        self.assertNotEqual(session.wait(), 0)
        _, ended = defender.trail.stream("container_attach", before)
        self.assertGreater(ended["result"]["tx"], 0)
        code, said = self.docker("images")
        self.assertEqual(code, 1)
        self.assertIn("Cannot connect to the Engine", said)
        self.engine.start()
        code, said = self.docker("images", "-q")
        self.assertEqual(code, 0, said)
        self.assertEqual(self.docker("rm", "-f", "open"), (0, "open\n"))


class SlowTests(EngineCase):
    """An Engine that accepts connections and does not answer, as one on an overloaded machine."""

    __test__ = True

    def setUp(self) -> None:
        self.engine.start()
        if not (self.defender.state / "twistd.pid").exists():
            self.defender.start()

    def halt(self) -> None:
        pid = self.dockerd()
        os.kill(pid, signal.SIGSTOP)
        self.addCleanup(os.kill, pid, signal.SIGCONT)

    def test_reads_and_changes_time_out_and_work_again(self) -> None:
        pid = self.dockerd()
        self.halt()
        for arguments, action in (
            (("network", "ls"), "network_list"),
            (("network", "create", "late"), "network_create"),
        ):
            before = self.defender.trail.mark()
            code, said = self.docker(*arguments)
            self.assertEqual(code, 1)
            self.assertIn("Error response from daemon: The Engine did not answer in time", said)
            (event,) = self.defender.trail.wait_for(of(action), since=before)
            self.assertEqual(event["result"]["status"], 504)
        os.kill(pid, signal.SIGCONT)
        self.assertEqual(self.docker("network", "ls", "-q", "--filter=name=none")[0], 0)

    def test_what_waits_by_its_nature_does_not_time_out(self) -> None:
        self.docker("run", "-d", "--network=none", "--name=held", "busybox", "sleep", "1000000")
        self.addCleanup(self.docker, "rm", "-f", "held")
        pid = self.dockerd()
        session = self.terminal("exec", "-it", "held", "sh")
        session.expect(rb"# ")
        self.halt()
        session.send(b"echo $((40 + 2))\n")
        # Longer than any of the limits: the next command runs into one.
        self.assertEqual(self.docker("network", "create", "late2")[0], 1)
        self.assertEqual(self.docker("network", "ls")[0], 1)
        os.kill(pid, signal.SIGCONT)
        session.expect(rb"\n42")
        session.send(b"exit\n")
        self.assertEqual(session.wait(), 0)

    def test_an_engine_killed_in_the_middle_of_an_answer(self) -> None:
        before = self.defender.trail.mark()
        watching = self.terminal("events", "--since=1h")
        watching.expect(rb"busybox")
        process = self.engine.process()
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        self.assertNotEqual(watching.wait(), 0)
        (event,) = self.defender.trail.wait_for(of("docker_events"), since=before)
        self.assertIn("The Engine's answer ended early", event["result"]["error"])
        self.assertTrue(wait_until(lambda: not process.alive, 20))
        self.engine.stop()
