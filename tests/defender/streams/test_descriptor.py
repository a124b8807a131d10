"""What every stream does, shown by streams in the clear, on real sockets under the real reactor."""

from __future__ import annotations

import gc
import os
import socket
import tracemalloc

from twisted.internet.defer import gatherResults
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from defender.streams.descriptor import DISCARD_LIMIT
from defender.streams.interface import HIGH_WATER, LOW_WATER, Lost
from defender.streams.plain import PlainStream
from tests.defender.streams.harness import (
    Producer,
    Recorder,
    StreamCase,
    driven_poll,
    open_sockets,
    read_all,
    reset,
    tcp_pair,
    turn,
    unix_pair,
)


class EndTests(StreamCase):
    """How a stream ends, and what still arrives."""

    async def test_half_close_leaves_the_other_direction_open(self) -> None:
        for pair in (unix_pair, tcp_pair):
            client, server = pair()
            stream = self.plain(server)
            receiver = Recorder(stream)
            client.sendall(b"question")
            client.shutdown(socket.SHUT_WR)
            await receiver.until_ended()
            self.assertEqual((bytes(receiver.data), receiver.lost), (b"question", None))
            stream.write(b"late answer")
            stream.half_close()
            self.assertEqual(await self.in_thread(read_all, client), b"late answer")
            await receiver.until_lost()
            self.assertEqual(receiver.calls, ["data_received", "end_received", "connection_lost"])
            self.assertEqual(receiver.lost, Lost(True, "closed"))
            client.close()

    async def test_half_close_waits_for_what_is_pending(self) -> None:
        client, server = unix_pair()
        stream = self.plain(server)
        receiver = Recorder(stream)
        data = os.urandom(3_000_000)
        stream.write(data)
        stream.half_close()
        stream.write(b"dropped")
        self.assertGreater(stream.pending, 0)
        self.assertEqual(await self.in_thread(read_all, client), data)
        client.sendall(b"still read")
        await receiver.until_bytes(10)
        client.close()
        await receiver.until_lost()
        self.assertTrue(receiver.lost and receiver.lost.clean)

    async def test_trap_4_nothing_is_lost_when_the_engine_closes_while_reading_is_paused(self) -> None:
        """half-close.md trap 4: reading paused, writes pending, and the peer closes."""
        client, server = unix_pair()
        stream = self.plain(server)
        receiver = Recorder(stream)
        stream.pause_reading()
        stream.write(b"x" * 3_000_000)
        last = os.urandom(150_000)
        client.sendall(last)
        await self.until(lambda: stream not in self.poll.getReaders())
        client.close()  # with our output unread
        await self.until(lambda: stream.pending == 0)
        self.assertEqual(receiver.calls, ["write_full", "write_drained"])
        self.assertFalse(stream.is_gone(), "its last bytes are unread")
        stream.write(b"dropped")
        stream.resume_reading()
        await receiver.until_lost()
        self.assertEqual(bytes(receiver.data), last)
        self.assertEqual(receiver.calls[2:], ["data_received", "end_received", "connection_lost"])
        assert receiver.lost is not None
        self.assertTrue(receiver.lost.clean)
        self.assertIn("were not sent", receiver.lost.detail)

    async def test_trap_4_a_write_that_fails_does_not_stop_reading(self) -> None:
        client, server = unix_pair()
        stream = self.plain(server)
        client.sendall(b"a" * 100_000)
        client.close()
        receiver = Recorder(stream)
        stream.write(b"to nobody")
        self.assertEqual(receiver.calls, [])
        await receiver.until_lost()
        self.assertEqual(len(receiver.data), 100_000)
        self.assertEqual(receiver.calls, ["data_received", "end_received", "connection_lost"])

    async def test_a_unix_peer_that_left_our_bytes_unread_has_still_ended_cleanly(self) -> None:
        """The kernel says ECONNRESET after its last byte: `docker run -i` of what reads no input."""
        client, server = unix_pair()
        stream = self.plain(server)
        receiver = Recorder(stream)
        stream.write(b"unread")
        client.sendall(b"output")
        client.close()
        await receiver.until_lost()
        self.assertEqual(receiver.calls, ["data_received", "end_received", "connection_lost"])
        self.assertTrue(receiver.lost and receiver.lost.clean)

    async def test_a_tcp_reset_is_no_end(self) -> None:
        client, server = tcp_pair()
        receiver = Recorder(self.plain(server))
        reset(client)
        await receiver.until_lost()
        self.assertEqual(receiver.calls, ["connection_lost"])
        self.assertEqual(receiver.lost, Lost(False, "Connection reset by peer"))

    async def test_a_tcp_reset_that_a_write_saw_first_is_no_end(self) -> None:
        """The kernel shows a reset once; a read after that sees what looks like an end."""
        client, server = tcp_pair()
        stream = self.plain(server)
        receiver = Recorder(stream)
        stream.pause_reading()
        reset(client)
        await self.until(stream.is_gone)
        stream.write(b"x")
        stream.resume_reading()
        await receiver.until_lost()
        self.assertEqual(receiver.calls, ["connection_lost"])
        self.assertFalse(receiver.lost and receiver.lost.clean)

    async def test_trap_7_close_reads_on_so_that_no_reset_destroys_the_output(self) -> None:
        client, server = tcp_pair()
        stream = self.plain(server)
        receiver = Recorder(stream)
        answer = os.urandom(400_000)

        def upload_then_read() -> bytes:
            client.sendall(b"u" * 500_000)
            got = read_all(client)
            client.close()
            return got

        done = self.in_thread(upload_then_read)
        await receiver.until_bytes(1)
        before = len(receiver.data)
        stream.write(answer)
        stream.close()
        self.assertEqual(await done, answer)
        await receiver.until_lost()
        self.assertEqual(len(receiver.data), before, "after close() nothing is delivered")
        self.assertEqual(receiver.lost, Lost(True, "closed"))
        self.assertNotIn("end_received", receiver.calls)

    async def test_close_does_not_wait_for_ever(self) -> None:
        client, server = tcp_pair()
        stream = self.plain(server, linger=0.05)
        receiver = Recorder(stream)
        stream.close()
        stream.close()
        await receiver.until_lost()
        self.assertEqual(receiver.lost, Lost(True, "closed"))
        client.close()

    async def test_close_ends_when_the_peer_takes_nothing(self) -> None:
        client, server = unix_pair()
        stream = self.plain(server, flush_timeout=0.05)
        receiver = Recorder(stream)
        stream.write(b"x" * 1_000_000)
        stream.close()
        await receiver.until_lost()
        assert receiver.lost is not None
        self.assertFalse(receiver.lost.clean)
        self.assertIn("took none of", receiver.lost.detail)
        client.close()

    async def test_a_flood_after_close_is_not_read_for_ever(self) -> None:
        client, server = unix_pair()
        stream = self.plain(server, linger=60)
        Recorder(stream)
        stream.close()
        client.setblocking(False)
        sent = 0
        while stream in self.poll.getReaders():
            try:
                sent += client.send(b"f" * 65536)
            except BlockingIOError:
                await self.turn()
        self.assertLess(sent, DISCARD_LIMIT + 1_000_000)
        client.close()

    async def test_abort_with_output_pending_resets(self) -> None:
        client, server = tcp_pair()
        stream = self.plain(server)
        receiver = Recorder(stream)
        stream.write(b"x" * 10_000_000)
        stream.abort()
        self.assertEqual(receiver.calls, ["write_full"], "the loss is told in a later turn")
        with self.assertRaises(ConnectionResetError):
            read_all(client)
        await receiver.until_lost()
        self.assertEqual(receiver.lost, Lost(False, "aborted by this side"))
        client.close()

    async def test_abort_resets_when_asked_and_not_else(self) -> None:
        for asked in (False, True):
            client, server = tcp_pair()
            stream = self.plain(server)
            receiver = Recorder(stream)
            stream.abort(reset=asked)
            if asked:
                with self.assertRaises(ConnectionResetError):
                    read_all(client)
            else:
                self.assertEqual(read_all(client), b"")
            await receiver.until_lost()
            client.close()

    async def test_a_receiver_that_comes_after_the_end_is_told(self) -> None:
        client, server = unix_pair()
        stream = self.plain(server)
        stream.abort()
        await self.turn()
        receiver = Recorder(stream)
        self.assertEqual(receiver.calls, [])
        await receiver.until_lost()
        client.close()

    async def test_no_descriptor_is_left(self) -> None:
        gc.collect()
        before = open_sockets()
        for end in ("close", "abort", "half_close", "peer"):
            receivers = []
            for pair in (unix_pair, tcp_pair) * 5:
                client, server = pair()
                stream = self.plain(server, linger=0.01)
                receiver = Recorder(stream)
                receiver.hooks["end_received"] = stream.half_close
                receivers.append(receiver)
                stream.write(b"x" * 1000)
                if end != "peer":
                    getattr(stream, end)()
                client.recv(10) if end == "close" else None
                client.close()
            await gatherResults([receiver.until_lost() for receiver in receivers])
        self.assertEqual(open_sockets(), before)


class FlowTests(StreamCase):
    """Back-pressure in both directions."""

    async def test_write_full_and_write_drained_alternate(self) -> None:
        client, server = unix_pair()
        stream = self.plain(server)
        receiver = Recorder(stream)
        while not receiver.calls:
            stream.write(b"x" * 10_000)
        self.assertGreater(stream.pending, HIGH_WATER)
        stream.write(b"x" * 10_000)
        self.assertEqual(receiver.calls, ["write_full"])
        receiver.hooks["write_drained"] = lambda: self.assertLess(stream.pending, LOW_WATER)
        reading = self.in_thread(read_all, client)
        await receiver.until(lambda: len(receiver.calls) == 2)
        self.assertEqual(receiver.calls, ["write_full", "write_drained"])
        stream.half_close()
        await reading
        client.close()

    async def test_a_slow_peer_holds_bounded_output(self) -> None:
        client, server = unix_pair()
        stream = self.plain(server)
        producer = Producer(stream, 64 * 1024 * 1024)
        producer.produce()
        self.assertGreater(producer.left, 60 * 1024 * 1024)
        await self.in_thread(read_all, client)
        self.assertLess(producer.most_pending, HIGH_WATER + 64 * 1024 + 1)
        client.close()

    async def test_a_paused_reader_is_given_nothing_and_holds_nothing(self) -> None:
        client, server = unix_pair()
        stream = self.plain(server)
        receiver = Recorder(stream)
        stream.pause_reading()
        total = 64 * 1024 * 1024
        chunk = b"p" * 65536
        client.setblocking(False)
        tracemalloc.start()
        sent = 0
        idle = 0
        while idle < 20:
            try:
                sent += client.send(chunk)
            except BlockingIOError:
                idle += 1
                await self.turn()
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        self.assertEqual(receiver.calls, [])
        self.assertLess(held, 1024 * 1024)
        client.setblocking(True)
        seen = 0

        def count() -> None:
            nonlocal seen
            seen += len(receiver.data)
            receiver.data.clear()

        receiver.hooks["data_received"] = count
        receiver.hooks["end_received"] = stream.half_close
        stream.resume_reading()

        def send_the_rest() -> None:
            left = total - sent
            while left:
                left -= client.send(chunk[:left])
            client.close()

        await self.in_thread(send_the_rest)
        await receiver.until_lost()
        self.assertEqual(seen, total)
        self.assertLessEqual(receiver.largest, 256 * 1024)

    async def test_the_end_is_not_told_while_reading_is_paused(self) -> None:
        client, server = unix_pair()
        stream = self.plain(server)
        receiver = Recorder(stream)
        receiver.hooks["data_received"] = stream.pause_reading
        client.sendall(b"data")
        client.close()
        await receiver.until_bytes(4)
        for _ in range(5):
            await self.turn()
        self.assertEqual(receiver.calls, ["data_received"])
        receiver.hooks["end_received"] = stream.half_close
        stream.resume_reading()
        await receiver.until_lost()
        self.assertEqual(receiver.calls, ["data_received", "end_received", "connection_lost"])

    async def test_nothing_is_read_before_there_is_a_receiver(self) -> None:
        client, server = unix_pair()
        stream = self.plain(server)
        client.sendall(b"early")
        await self.turn()
        first = Recorder(stream)
        await first.until_bytes(5)
        second = Recorder(stream)
        second.hooks["end_received"] = stream.half_close
        client.sendall(b"later")
        client.close()
        await second.until_lost()
        self.assertEqual((bytes(first.data), bytes(second.data)), (b"early", b"later"))
        self.assertIsNone(first.lost)

    async def test_many_small_writes_leave_in_order(self) -> None:
        client, server = unix_pair()
        stream = self.plain(server)
        Recorder(stream)
        pieces = [b"%d," % number for number in range(200_000)]
        for piece in pieces:
            stream.write(piece)
        stream.half_close()
        self.assertEqual(await self.in_thread(read_all, client), b"".join(pieces))
        client.close()


class ReceiverTests(StreamCase):
    """What a receiver does from inside a call, well or badly."""

    async def test_an_exception_cuts_the_stream_and_nothing_else(self) -> None:
        for method in ("data_received", "end_received", "write_full", "write_drained", "connection_lost"):
            client, server = unix_pair()
            stream = self.plain(server)
            receiver = Recorder(stream)

            def fail() -> None:
                raise ZeroDivisionError

            receiver.hooks[method] = fail
            client.sendall(b"x")
            if "write" in method:
                stream.write(b"x" * 1_000_000)
                client.setblocking(False)
                while not receiver.calls or (method == "write_drained" and method not in receiver.calls):
                    try:
                        client.recv(1_000_000)
                    except (BlockingIOError, ConnectionError):
                        await self.turn()
                await receiver.until_lost()
                client.close()
            else:
                client.close()
                if method == "connection_lost":
                    await receiver.until_ended()
                    stream.half_close()
            await receiver.until_lost()
            await self.turn()
            self.assertEqual(receiver.calls.count("connection_lost"), 1)
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1, method)
            self.assertEqual(stream.fileno(), -1)

    async def test_everything_may_be_called_from_everywhere(self) -> None:
        """connection_lost comes once and last, whatever is called from inside which method."""
        actions = ("write", "half_close", "close", "abort", "pause_reading", "resume_reading", "set_receiver")
        for method in ("data_received", "end_received", "write_full", "write_drained", "connection_lost"):
            for first in actions:
                for second in ("abort", "close"):
                    await self._act(method, first, second)

    async def _act(self, method: str, *actions: str) -> None:
        client, server = unix_pair()
        stream = self.plain(server, linger=0.01, flush_timeout=0.05)
        receiver = Recorder(stream)

        def act() -> None:
            for action in actions:
                if action == "write":
                    stream.write(b"y" * 300_000)
                elif action == "set_receiver":
                    stream.set_receiver(receiver)
                else:
                    getattr(stream, action)()

        receiver.hooks[method] = act
        client.sendall(b"x" * 1000)
        stream.write(b"x" * 400_000)
        client.setblocking(False)
        rounds = 0
        while receiver.lost is None:
            try:
                if not client.recv(65536):
                    client.shutdown(socket.SHUT_WR)
            except (BlockingIOError, ConnectionError, OSError):
                pass
            rounds += 1
            if rounds == 30 and client.fileno() >= 0:
                client.close()
            if rounds == 40:
                stream.close()
            await self.turn()
        await self.turn()
        self.assertEqual(receiver.calls.count("connection_lost"), 1, (method, actions))
        self.assertEqual(receiver.calls[-1], "connection_lost")
        self.assertEqual(stream.fileno(), -1)
        self.assertNotIn(stream, self.poll.getReaders() + self.poll.getWriters())
        client.close()


class ReactorTests(SynchronousTestCase):
    """What the reactor may call, by hand."""

    def test_the_loss_is_told_at_once_when_the_reactor_ends(self) -> None:
        with driven_poll() as poll:
            client, server = unix_pair()
            receiver = Recorder(PlainStream(poll, server))
            poll.reactor.disconnectAll()
            self.assertEqual(receiver.calls, ["connection_lost"])
            turn(poll)
            self.assertEqual(receiver.calls, ["connection_lost"])
            self.assertEqual(server.fileno(), -1)
            client.close()

    def test_a_bug_of_ours_closes_the_descriptor(self) -> None:
        with driven_poll() as poll:
            client, server = unix_pair()
            stream = PlainStream(poll, server)
            receiver = Recorder(stream)
            poll.removeReader(stream)
            stream.connectionLost(Failure(ZeroDivisionError("bug")))
            turn(poll)
            self.assertEqual(receiver.lost, Lost(False, "internal error: bug"))
            client.close()

    def test_a_hang_up_without_input_ends_the_stream(self) -> None:
        """epoll's HUP without IN, as the reactor hands it on: it has removed the descriptor."""
        with driven_poll() as poll:
            client, server = unix_pair()
            stream = PlainStream(poll, server)
            receiver = Recorder(stream)
            client.close()
            poll.removeReader(stream)
            stream.connectionLost(Failure(ConnectionLost()))
            turn(poll)
            self.assertEqual(receiver.calls, ["end_received", "connection_lost"])

    def test_nothing_is_sent_twice_when_the_descriptor_is_used_again(self) -> None:
        """An event of a descriptor that was closed and opened again in the same round finds nothing to do."""
        with driven_poll() as poll:
            client, server = unix_pair()
            stream = PlainStream(poll, server)
            receiver = Recorder(stream)
            stream.doRead()
            stream.doWrite()
            self.assertEqual(receiver.calls, [])
            stream.abort()
            turn(poll)
            client.close()
