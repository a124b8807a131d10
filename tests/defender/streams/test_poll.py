"""The nested epoll: what it promises to descriptors, and to the reactor that it is in."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from defender.streams.plain import PlainStream
from defender.streams.poll import EVENTS, Poll
from tests.defender.streams.harness import Recorder, driven_poll, reset, tcp_pair, turn, unix_pair


class Descriptor:
    """Writes down what it is called with; ``act`` is done inside."""

    def __init__(self, sock: socket.socket, act: Callable[[], object] = lambda: None) -> None:
        self.sock = sock
        self.act = act
        self.calls: list[str] = []
        self.reason: Failure | None = None

    def fileno(self) -> int:
        return self.sock.fileno()

    def logPrefix(self) -> str:
        return "-"

    def doRead(self) -> None:
        self.calls.append("read")
        self.act()

    def doWrite(self) -> None:
        self.calls.append("write")
        self.act()

    def connectionLost(self, reason: Failure) -> None:
        self.calls.append("lost")
        self.reason = reason
        self.act()


class PollTests(SynchronousTestCase):
    """One round at a time."""

    def setUp(self) -> None:
        context = driven_poll()
        self.poll = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        self.peers: list[socket.socket] = []

    def make(self, pair: Callable[[], tuple[socket.socket, socket.socket]] = unix_pair) -> Descriptor:
        peer, ours = pair()
        self.peers.append(peer)
        for sock in (peer, ours):
            self.addCleanup(sock.close)
        return Descriptor(ours)

    def test_input_and_room_are_told_until_they_are_no_longer_asked_for(self) -> None:
        descriptor = self.make()
        self.poll.addReader(descriptor)
        self.poll.addReader(descriptor)
        turn(self.poll)
        self.assertEqual(descriptor.calls, [])
        self.peers[0].send(b"x")
        turn(self.poll)
        self.poll.addWriter(descriptor)
        self.assertEqual((self.poll.getReaders(), self.poll.getWriters()), ([descriptor], [descriptor]))
        turn(self.poll)
        self.poll.removeReader(descriptor)
        turn(self.poll)
        self.poll.removeWriter(descriptor)
        self.poll.removeWriter(descriptor)
        turn(self.poll)
        self.assertEqual(descriptor.calls, ["read", "read", "write", "write"])
        self.assertEqual((self.poll.getReaders(), self.poll.getWriters()), ([], []))

    def test_the_reactor_holds_it_as_long_as_there_is_something_in_it(self) -> None:
        descriptor = self.make()
        self.assertNotIn(self.poll, self.poll.reactor.getReaders())
        self.poll.addWriter(descriptor)
        self.assertIn(self.poll, self.poll.reactor.getReaders())
        self.poll.removeWriter(descriptor)
        self.assertNotIn(self.poll, self.poll.reactor.getReaders())

    def test_an_exception_closes_the_descriptor_that_raised_it_and_no_other(self) -> None:
        for error in (ZeroDivisionError, SystemExit):
            bad, good = self.make(), self.make()

            def fail(error: type[BaseException] = error) -> None:
                raise error

            bad.act = fail
            self.poll.addWriter(bad)
            self.poll.addWriter(good)
            turn(self.poll)
            self.poll.removeWriter(good)
            self.assertEqual((bad.calls, good.calls), (["write", "lost"], ["write"]))
            self.assertTrue(bad.reason and bad.reason.check(error))
            self.assertEqual((self.poll.getReaders(), self.poll.getWriters()), ([], []))
            self.assertEqual(len(self.flushLoggedErrors(error)), 2, "its own, and connectionLost's")

    def test_a_hang_up_without_input_is_told_as_the_reactor_does(self) -> None:
        waiting, writing = self.make(tcp_pair), self.make(tcp_pair)
        self.poll.addReader(waiting)
        self.poll.addWriter(writing)
        for descriptor in (waiting, writing):
            descriptor.sock.shutdown(socket.SHUT_WR)
        for peer in self.peers:
            reset(peer)
        # The kernel reports a reset together with input: hide that, as when it has been read.
        self.poll._hung_up(waiting.fileno(), waiting)
        self.poll._hung_up(writing.fileno(), writing)
        self.assertEqual((waiting.calls, writing.calls), (["lost"], ["lost"]))
        self.assertTrue(waiting.reason and waiting.reason.check(ConnectionDone))
        self.assertTrue(writing.reason and writing.reason.check(ConnectionLost))
        self.assertEqual((self.poll.getReaders(), self.poll.getWriters()), ([], []))

    def test_a_hang_up_of_what_only_writes_reaches_it(self) -> None:
        descriptor = self.make()
        while True:
            try:
                descriptor.sock.send(b"x" * 65536, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
        self.poll.addWriter(descriptor)
        turn(self.poll)
        self.assertEqual(descriptor.calls, [])
        self.peers[0].close()
        turn(self.poll)
        self.assertEqual(descriptor.calls, ["lost"])

    def test_an_event_of_a_closed_descriptor_does_not_reach_the_one_with_its_number(self) -> None:
        """The first of two closes the other, and its number is used again, all in one batch."""
        first, second = self.make(), self.make()
        spare = self.make().sock
        newcomers: list[Descriptor] = []

        def replace(victim: Descriptor) -> None:
            if newcomers or victim.calls:
                return
            number = victim.fileno()
            self.poll.removeReader(victim)
            victim.sock.close()
            moved = socket.socket(fileno=os.dup2(spare.fileno(), number))
            self.addCleanup(moved.close)
            newcomers.append(Descriptor(moved))
            self.poll.addReader(newcomers[0])

        first.act = lambda: replace(second)
        second.act = lambda: replace(first)
        for descriptor, peer in ((first, self.peers[0]), (second, self.peers[1])):
            self.poll.addReader(descriptor)
            peer.send(b"x")
        turn(self.poll)
        self.assertEqual(sorted([first.calls, second.calls]), [[], ["read"]])
        self.assertEqual(newcomers[0].calls, [])
        for descriptor in (first, second, *newcomers):
            self.poll.removeReader(descriptor)

    def test_one_that_closes_itself_while_reading_is_not_asked_to_write(self) -> None:
        descriptor = self.make()

        def close() -> None:
            self.poll.removeReader(descriptor)
            self.poll.removeWriter(descriptor)
            descriptor.sock.close()

        descriptor.act = close
        self.poll.addReader(descriptor)
        self.poll.addWriter(descriptor)
        self.peers[0].send(b"x")
        turn(self.poll)
        self.assertEqual(descriptor.calls, ["read"])

    def test_a_descriptor_that_was_closed_first_can_still_be_taken_out(self) -> None:
        descriptor = self.make()
        self.poll.addReader(descriptor)
        descriptor.sock.close()
        self.poll.removeReader(descriptor)
        self.poll.removeReader(descriptor)
        self.assertEqual(self.poll.getReaders(), [])

    def test_the_reactors_other_work_has_its_turn_after_a_bounded_batch(self) -> None:
        descriptors = [self.make() for _ in range(3 * EVENTS)]
        for descriptor in descriptors:
            self.poll.addWriter(descriptor)
        turns = 0
        while not all(descriptor.calls for descriptor in descriptors):
            before = sum(len(descriptor.calls) for descriptor in descriptors)
            turn(self.poll)
            turns += 1
            self.assertLessEqual(sum(len(descriptor.calls) for descriptor in descriptors) - before, EVENTS)
        self.assertEqual(turns, 3, "each has its turn before any has a second one")
        for descriptor in descriptors:
            self.poll.removeWriter(descriptor)

    def test_the_end_of_the_reactor_reaches_everything_in_it(self) -> None:
        peer, ours = unix_pair()
        self.addCleanup(peer.close)
        bad = self.make()

        def fail() -> None:
            raise ZeroDivisionError

        bad.act = fail
        self.poll.addReader(bad)
        receiver = Recorder(PlainStream(self.poll, ours))
        self.poll.reactor.disconnectAll()
        self.assertEqual((bad.calls, receiver.calls), (["lost"], ["connection_lost"]))
        self.assertEqual((self.poll.getReaders(), self.poll.getWriters()), ([], []))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class LeadingTests(PollTests):
    """The same, with the reactor waiting in the poll; and what is particular to that."""

    def setUp(self) -> None:
        super().setUp()
        self.poll.lead()
        self.addCleanup(self.poll.follow)

    def test_the_reactor_holds_it_as_long_as_there_is_something_in_it(self) -> None:
        """It does not while the poll leads: each would wait for the other."""
        descriptor = self.make()
        self.poll.addReader(descriptor)
        self.assertNotIn(self.poll, self.poll.reactor.getReaders())
        self.poll.follow()
        self.poll.follow()
        self.assertIn(self.poll, self.poll.reactor.getReaders())
        self.assertEqual(self.poll.reactor.doIteration, self.poll.reactor.doPoll)
        self.peers[0].send(b"x")
        turn(self.poll)
        self.poll.lead()
        turn(self.poll)
        self.assertEqual(descriptor.calls, ["read", "read"])
        self.assertNotIn(self.poll, self.poll.reactor.getReaders())
        self.poll.removeReader(descriptor)

    def test_the_end_of_the_reactor_reaches_everything_in_it(self) -> None:
        """Who leads lets go before."""
        self.poll.follow()
        super().test_the_end_of_the_reactor_reaches_everything_in_it()

    def test_the_reactors_own_descriptors_are_served(self) -> None:
        inner, outer = self.make(), self.make()
        self.poll.addReader(inner)
        self.poll.reactor.addReader(outer)
        for peer in self.peers:
            peer.send(b"x")
        turn(self.poll)
        self.assertEqual((inner.calls, outer.calls), (["read"], ["read"]))
        self.poll.removeReader(inner)
        self.poll.reactor.removeReader(outer)

    def test_another_thread_wakes_it(self) -> None:
        heard: list[str] = []
        self.poll.reactor.installWaker()
        thread = threading.Thread(target=self.poll.reactor.callFromThread, args=(heard.append, "heard"))
        thread.start()
        self.poll.reactor.doIteration(20)
        self.poll.reactor.runUntilCurrent()
        thread.join()
        self.assertEqual(heard, ["heard"])

    def test_one_poll_leads_a_reactor(self) -> None:
        second = Poll(self.poll.reactor)
        second.lead()
        descriptor = self.make()
        second.addReader(descriptor)
        self.peers[0].send(b"x")
        turn(self.poll)
        self.assertEqual(descriptor.calls, ["read"], "it is nested, as without leading")
        second.follow()
        self.assertEqual(self.poll.reactor.doIteration, self.poll._iterate)
        second.removeReader(descriptor)

    def test_a_reactor_without_epoll_is_left_alone(self) -> None:
        clock = Clock()
        Poll(clock).lead()
        self.assertNotIn("doIteration", vars(clock))
