"""The Engine of the tests is real, is ours alone, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from deploy.docker_api import answers, call, connection
from deploy.engine import OwnEngine, mounts_below
from deploy.processes import Process, processes_naming, wait_until
from tests.engine.dockerd import client_environment, docker_clis, engine

ROOT = Path(__file__).resolve().parent.parent.parent


class SharedEngineTests(SynchronousTestCase):
    """The one that every other test uses."""

    def test_every_client_runs_a_container(self) -> None:
        environment = client_environment(engine().address)
        for cli in docker_clis():
            self.assertIn(
                b"ran through a defender",
                cli.run("run", "--rm", "defender/hello", environment=environment).stdout,
            )
            listing = cli.run("run", "--rm", "busybox", "id", "-un", environment=environment).stdout
            self.assertEqual(listing, b"root\n")

    def test_the_same_one_again(self) -> None:
        self.assertIs(engine(), engine())
        engine().start()
        self.assertTrue(answers(engine().address))

    def test_it_has_its_own_network(self) -> None:
        process = engine().process()
        assert process is not None
        self.assertNotEqual(os.readlink(f"/proc/{process.pid}/ns/net"), os.readlink("/proc/self/ns/net"))


class OwnEngineTests(SynchronousTestCase):
    """Start, kill, start again, stop."""

    def setUp(self) -> None:
        root = Path(tempfile.mkdtemp(prefix="dfleet-", dir="/tmp"))
        self.own = OwnEngine(root, isolated=True, ends_with_parent=True)
        self.addCleanup(shutil.rmtree, root, ignore_errors=True)
        self.addCleanup(self.own.stop)

    def assert_nothing_left(self) -> None:
        self.assertEqual(list(processes_naming(self.own.root)), [])
        self.assertEqual(mounts_below(self.own.root), [])
        self.assertFalse(self.own.socket.exists())
        self.assertFalse(self.own.pidfile.exists())

    def test_a_killed_engine_is_cleared_away(self) -> None:
        self.own.start()
        created = call(
            connection(self.own.address),
            "POST",
            "/containers/create",
            b'{"Image": "busybox", "Cmd": ["sleep", "1000"]}',
            **{"Content-Type": "application/json"},
        )
        call(connection(self.own.address), "POST", f"/containers/{created['Id']}/start")
        inside = call(connection(self.own.address), "GET", f"/containers/{created['Id']}/json")["State"][
            "Pid"
        ]
        container, daemon = Process.of(inside), self.own.process()
        assert container is not None
        assert daemon is not None
        os.kill(daemon.pid, signal.SIGKILL)
        self.assertTrue(wait_until(lambda: not daemon.alive, 10))
        self.assertTrue(container.alive)
        self.own.stop()
        self.assertFalse(container.alive)
        self.assert_nothing_left()

    def test_it_ends_with_the_process_that_started_it(self) -> None:
        program = (
            "import sys, pathlib; from deploy.engine import OwnEngine; "
            "OwnEngine(pathlib.Path(sys.argv[1]), isolated=True, ends_with_parent=True).start()"
        )
        subprocess.run([sys.executable, "-c", program, str(self.own.root)], cwd=ROOT, check=True, timeout=120)
        self.assertTrue(wait_until(lambda: self.own.process() is None, 60))
        self.own.stop()
        self.assert_nothing_left()
