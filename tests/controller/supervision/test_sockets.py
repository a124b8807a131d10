"""Sockets that systemd passes are found by their address; everything else is opened or refused."""

from __future__ import annotations

import os
import socket

from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase, TestCase

from controller.supervision.sockets import PassedSocketError, PassedSockets


def descriptors(*sockets: socket.socket) -> int:
    """Put the sockets at consecutive descriptors, as systemd does; return the first."""
    first = 600
    for number, each in enumerate(sockets, start=first):
        os.dup2(each.fileno(), number, inheritable=True)
        each.close()
    return first


def variables(count: int | str, pid: int | None = None) -> dict[str, str]:
    return {"LISTEN_PID": str(pid or os.getpid()), "LISTEN_FDS": str(count), "LISTEN_FDNAMES": "a:b"}


class AdoptTests(SynchronousTestCase):
    def test_each_is_found_by_its_address(self) -> None:
        four = socket.create_server(("127.0.0.1", 0))
        six = socket.create_server(("::1", 0), family=socket.AF_INET6)
        addresses = [f"127.0.0.1:{four.getsockname()[1]}", f"[::1]:{six.getsockname()[1]}"]
        environ = variables(2)
        found = PassedSockets.adopt(environ, os.getpid(), descriptors(four, six))
        self.assertEqual(list(found.sockets), addresses)
        self.assertEqual(environ, {})
        for passed in found.sockets.values():
            self.assertFalse(passed.get_inheritable())
            passed.close()

    def test_what_is_for_another_process_is_left(self) -> None:
        environ = variables(1, pid=1)
        self.assertEqual(PassedSockets.adopt(environ, os.getpid(), 600).sockets, {})
        self.assertEqual(environ, {}, "no child takes it for its own")
        self.assertEqual(PassedSockets.adopt({}, os.getpid()).sockets, {})

    def test_damaged_variables_and_other_descriptors_are_refused(self) -> None:
        for count in ("", "-1", "two", "65", "1000"):
            self.assertRaises(PassedSocketError, PassedSockets.adopt, variables(count), os.getpid(), 600)
        error = self.assertRaises(PassedSocketError, PassedSockets.adopt, variables(1), os.getpid(), 650)
        self.assertIn("650 is no socket", str(error))
        first = descriptors(socket.socket())
        self.addCleanup(os.close, first)
        error = self.assertRaises(PassedSocketError, PassedSockets.adopt, variables(1), os.getpid(), first)
        self.assertIn("not a listening TCP socket", str(error))


class ListenTests(TestCase):
    timeout = 10

    @inlineCallbacks
    def test_a_connection_that_waited_is_served(self):  # type: ignore[no-untyped-def]
        passed = socket.create_server(("127.0.0.1", 0))
        address = f"127.0.0.1:{passed.getsockname()[1]}"
        early = socket.create_connection(passed.getsockname())
        self.addCleanup(early.close)
        found = PassedSockets.adopt(variables(1), os.getpid(), descriptors(passed))
        self.addCleanup(found.sockets[address].close)
        from twisted.internet.defer import Deferred

        served: Deferred[None] = Deferred()

        class Serve(Protocol):
            def connectionMade(self) -> None:
                self.transport.loseConnection()  # type: ignore[union-attr]
                served.callback(None)

        port = found.listen(reactor, address, Factory.forProtocol(Serve))
        yield served
        yield port.stopListening()

    @inlineCallbacks
    def test_an_address_that_is_taken_is_named(self):  # type: ignore[no-untyped-def]
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            error = self.assertRaises(PassedSocketError, PassedSockets().listen, reactor, address, Factory())
        self.assertEqual(str(error), f"cannot listen on {address}: Address already in use")
        port = PassedSockets().listen(reactor, "127.0.0.1:0", Factory.forProtocol(Protocol))
        yield port.stopListening()
