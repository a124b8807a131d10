"""The controller tells its service manager the same things in the same way as the defender."""

from __future__ import annotations

import inspect
import socket
import tempfile
from pathlib import Path
from shutil import rmtree

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from controller.supervision import service as ours
from defender.contract.supervision import Supervision
from defender.supervision import service as theirs


class TwinTests(SynchronousTestCase):
    """Neither program imports the other's shells, so this one is there twice."""

    def test_the_twins_have_not_grown_apart(self) -> None:
        for name in ("adopt_supervision", "send_datagram", "SupervisionService"):
            self.assertEqual(
                inspect.getsource(getattr(ours, name)), inspect.getsource(getattr(theirs, name)), name
            )


class ServiceTests(SynchronousTestCase):
    def test_a_failing_store_starves_the_watchdog(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="dfleet-"))
        self.addCleanup(rmtree, folder)
        manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.addCleanup(manager.close)
        manager.bind(str(folder / "notify"))
        clock = Clock()
        problem = ""
        service = ours.SupervisionService(
            clock, Supervision(str(folder / "notify"), 8.0), {"store": lambda: problem}
        )
        service.startService()
        self.addCleanup(service.stopService)
        service.serving("serves")
        self.assertEqual(manager.recv(4096), b"READY=1\nSTATUS=serves\n")
        clock.advance(2)
        self.assertEqual(manager.recv(4096), b"WATCHDOG=1\n")
        problem = "its thread has ended"
        clock.advance(2)
        self.assertEqual(manager.recv(4096), b"STATUS=not well: store: its thread has ended\n")
        self.assertRaises(BlockingIOError, manager.recv, 4096)
