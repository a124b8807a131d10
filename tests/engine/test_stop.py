"""A defender that is told to stop while somebody has a terminal open."""

from __future__ import annotations

import os
import signal

from twisted.trial.unittest import SynchronousTestCase

from deploy.docker_api import answers
from deploy.processes import Process, wait_until
from tests.engine.clients import shared_box
from tests.engine.dockerd import docker_clis
from tests.engine.guarded import Guarded, certificates, of
from tests.engine.terminal import Terminal

PATIENCE = 30


class StopTests(SynchronousTestCase):
    """Admin has a shell in a container."""

    def stop_with(self, settings: str) -> tuple[Guarded, Process, Terminal]:
        """Return a defender that was sent SIGTERM, its process, and the terminal."""
        defender = Guarded(mode="tcp", settings={"streams": settings}).start()
        self.addCleanup(defender.stop)
        command = [str(docker_clis()[-1].path), "exec", "-it", shared_box(), "sh"]
        terminal = Terminal(command, defender.tls("admin"))
        self.addCleanup(terminal.end)
        terminal.expect(rb"# ")
        process = Process.of(defender.pid)
        assert process is not None
        os.kill(defender.pid, signal.SIGTERM)
        return defender, process, terminal

    def assert_stopped(self, defender: Guarded, process: Process, error: str | None) -> None:
        self.assertTrue(wait_until(lambda: not process.alive, PATIENCE))
        (ended,) = defender.trail.wait_for(of("container_exec_start", "stream_end"))
        self.assertEqual(ended["result"].get("error"), error)
        self.assertTrue(defender.trail.wait_for(of("defender_stop")))

    def test_it_has_its_time_and_nobody_new_is_let_in(self) -> None:
        defender, process, terminal = self.stop_with('on_stop = "drain"\nstop_drain = 120')
        address = defender.tcp_address
        self.assertTrue(wait_until(lambda: not answers(address, certificates("admin")), PATIENCE))
        terminal.ask(b"echo $((40 + 2))", rb"\n42")
        terminal.send(b"exit\n")
        # The command's exit status is asked for anew, which nobody answers any more.
        terminal.wait()
        self.assert_stopped(defender, process, None)

    def test_its_time_has_an_end(self) -> None:
        defender, process, terminal = self.stop_with('on_stop = "drain"\nstop_drain = 0.2')
        self.assertNotEqual(terminal.wait(), 0)
        self.assert_stopped(defender, process, "the defender stops")

    def test_or_it_is_cut_at_once(self) -> None:
        defender, process, terminal = self.stop_with('on_stop = "cut"')
        self.assertNotEqual(terminal.wait(), 0)
        self.assert_stopped(defender, process, "the defender stops")
