"""The defender tells its service manager over a real socket, and its poll is asked to come round."""

from __future__ import annotations

import os
import select
import socket
import tempfile
from pathlib import Path
from shutil import rmtree
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from defender.contract.supervision import Supervision
from defender.supervision.service import Pulse, SupervisionService, adopt_supervision, send_datagram


class EnvironmentTests(SynchronousTestCase):
    def test_no_child_can_speak_for_us(self) -> None:
        environ = {"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "5", "PATH": "/bin"}
        self.assertEqual(adopt_supervision(environ, 5), Supervision("/run/n", 4.0))
        self.assertEqual(environ, {"PATH": "/bin"})


class SocketTests(SynchronousTestCase):
    """What a manager would hear."""

    def setUp(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="dfleet-"))
        self.addCleanup(rmtree, folder)
        self.path = str(folder / "notify")
        self.manager = self.listen(self.path)

    def listen(self, address: str) -> socket.socket:
        manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.addCleanup(manager.close)
        manager.bind(address)
        return manager

    def heard(self) -> list[bytes]:
        found = []
        while True:
            try:
                found.append(self.manager.recv(4096))
            except BlockingIOError:
                return found

    def test_a_path_and_an_abstract_name(self) -> None:
        send_datagram(self.path, b"READY=1\n")
        self.assertEqual(self.heard(), [b"READY=1\n"])
        name = f"dfleet-test-{os.getpid()}"
        self.manager = self.listen("\0" + name)
        send_datagram("@" + name, b"READY=1\n")
        self.assertEqual(self.heard(), [b"READY=1\n"])

    def test_a_life(self) -> None:
        clock = Clock()
        service = SupervisionService(clock, Supervision(self.path, 4.0), {"clients": lambda: ""})
        service.startService()
        clock.advance(1)
        self.assertEqual(self.heard(), [], "not ready yet")
        service.serving("listening on unix")
        clock.pump([1, 1])
        self.assertEqual(
            self.heard(), [b"READY=1\nSTATUS=listening on unix\n", b"WATCHDOG=1\n", b"WATCHDOG=1\n"]
        )
        service.ending(5.0)
        service.stopService()
        self.assertEqual(self.heard(), [b"STOPPING=1\nEXTEND_TIMEOUT_USEC=5000000\n", b"STOPPING=1\n"])
        self.assertEqual(clock.getDelayedCalls(), [])


class CheckTests(SynchronousTestCase):
    """Checks that fail, hang or break."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.sent: list[bytes] = []

    def serve(self, check: Any, address: str = "/run/n") -> SupervisionService:
        service = SupervisionService(
            self.clock, Supervision(address, 4.0), {"it": check}, lambda _, message: self.sent.append(message)
        )
        service.startService()
        self.addCleanup(service.stopService)
        service.serving("serves")
        self.sent.clear()
        return service

    def test_a_check_that_hangs_is_asked_once_and_starves_the_watchdog(self) -> None:
        asked: list[Deferred[str]] = []

        def check() -> Deferred[str]:
            asked.append(Deferred())
            return asked[-1]

        service = self.serve(check)
        self.clock.pump([1, 1, 1])
        self.assertEqual(self.sent, [b"WATCHDOG=1\n", b"STATUS=not well: it: no answer within 2 s\n"])
        self.assertEqual(len(asked), 1)
        asked[0].callback("")
        self.clock.advance(1)
        self.assertEqual(self.sent[-2:], [b"WATCHDOG=1\n", b"STATUS=serves\n"])
        self.assertEqual(service.problems, [])

    def test_a_check_that_breaks_is_no_good_news(self) -> None:
        def check() -> str:
            raise RuntimeError("oops")

        service = self.serve(check)
        self.assertEqual(service.problems, ["it: the check itself failed: RuntimeError"])
        self.clock.advance(1)
        self.assertEqual(self.sent, [b"STATUS=not well: it: the check itself failed: RuntimeError\n"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)

    def test_without_a_manager_nothing_is_sent_and_all_is_checked(self) -> None:
        service = self.serve(lambda: "stuck", address="")
        self.clock.advance(1)
        self.assertEqual((self.sent, service.problems), ([], ["it: stuck"]))

    def test_a_manager_that_is_gone_does_not_end_us(self) -> None:
        service = SupervisionService(self.clock, Supervision("/nowhere/notify", 4.0), {})
        service.startService()
        service.serving("serves")
        self.clock.pump([1, 1])
        service.stopService()


class PulseTests(SynchronousTestCase):
    """A poll that comes round, and one that does not."""

    def test_the_answer_comes_with_the_polls_turn(self) -> None:
        readers: list[Any] = []

        class Poll:
            addReader = readers.append
            removeReader = readers.remove

        pulse = Pulse(Poll)
        pulse.start()
        for _ in range(2):
            asking = pulse.check()
            self.assertNoResult(asking)
            self.assertEqual(select.select(readers, [], [], 0)[0], [pulse])
            pulse.doRead()
            self.assertEqual(self.successResultOf(asking), "")
            self.assertEqual(select.select(readers, [], [], 0)[0], [])
        pulse.stop()
        self.assertEqual(readers, [])
        pulse.stop()
