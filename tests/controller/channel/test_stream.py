"""Connections at the channel's port, on real sockets and with real TLS: what is written arrives, whoever
stops reading or breaks off, and nothing that one of them does reaches the others.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Callable
from functools import partial
from typing import Any

from OpenSSL import SSL
from OpenSSL._util import lib
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

import controller.channel.stream as stream_module
from controller.channel.stream import READ_BUDGET, RECORD, WAITING, ChannelStream, Flushing, transports
from controller.channel.tls import channel_context
from defender.channel.tls import client_context
from defender.contract.messages import ALPN
from tests.fakes.authority import TestAuthority
from tests.fakes.fleet import controller_of

PKI = TestAuthority()
#: Bytes that no kernel takes at once, with these sockets.
LARGE = 1_500_000
UPDATES = 6
BREAKS = (SSL.SysCallError, SSL.ZeroReturnError, ConnectionError)


class Talk:
    """The protocol of one connection: `said` answers what comes."""

    def __init__(self, said: Callable[[Talk, bytes], None] | None = None) -> None:
        self.said = said
        self.transport: Any = None
        self.shaken = False
        self.received = b""
        self.lost: Failure | None = None
        self.times_lost = 0

    def makeConnection(self, transport: Any) -> None:  # noqa: N802
        self.transport = transport

    def handshakeCompleted(self) -> None:  # noqa: N802
        self.shaken = True

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if self.said is not None:
            self.said(self, data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason
        self.times_lost += 1


class Peer:
    """A client that does what it is told and nothing by itself."""

    def __init__(self, port: int) -> None:
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        self.sock.connect(("127.0.0.1", port))
        self.sock.setblocking(False)
        self.tls = SSL.Connection(client_context(anchors=[PKI.fleet], credentials=None, alpn=ALPN), self.sock)
        self.tls.set_connect_state()
        self.received = b""
        self.over: Exception | None = None

    def shake(self) -> bool:
        try:
            self.tls.do_handshake()
        except SSL.WantReadError:
            return False
        return True

    def read(self) -> None:
        """Read what is there."""
        try:
            while True:
                self.received += self.tls.recv(RECORD)
        except SSL.WantReadError:
            pass
        except BREAKS as error:
            self.over = error

    def hears(self, size: int) -> bool:
        self.read()
        return len(self.received) >= size

    def hears_the_end(self) -> bool:
        self.read()
        return self.over is not None


class StreamCase(TestCase):
    def setUp(self) -> None:
        own = controller_of(PKI)
        self.context = channel_context(own.chain, own.key, [PKI.fleet])
        self.talks: list[Talk] = []
        self.said: Callable[[Talk, bytes], None] | None = None
        factory: Any = Factory()
        factory.noisy = False
        factory.buildProtocol = self.built
        loop: Any = reactor
        self.listening: Any = loop.listenTCP(0, factory, interface="127.0.0.1")
        self.listening.transport = transports(lambda: self.context, reactor)
        self.port: int = self.listening.getHost().port
        # What nobody reads fills little memory, and soon: accepted sockets have this too.
        self.listening.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        self.addCleanup(self.end)

    def built(self, address: object) -> Talk:
        self.talks.append(Talk(self.said))
        return self.talks[-1]

    async def end(self) -> None:
        await self.listening.stopListening()
        for talk in self.talks:
            if talk.lost is None:
                talk.transport.abortConnection()
        await self.until(lambda: all(talk.lost for talk in self.talks))
        self.assertEqual({talk.times_lost for talk in self.talks}, {1} if self.talks else set())

    async def turn(self, seconds: float = 0.0) -> None:
        passed: Deferred[None] = Deferred()
        reactor.callLater(seconds, passed.callback, None)
        await passed

    async def until(self, condition: Callable[[], object]) -> None:
        for _ in range(10_000):
            if condition():
                return
            await self.turn(0.001)
        self.fail("it never came true")

    async def meet(self) -> tuple[Peer, Talk]:
        """A connection with its handshake done."""
        peer = Peer(self.port)
        self.addCleanup(peer.sock.close)
        count = len(self.talks)
        await self.until(lambda: peer.shake() and len(self.talks) > count and self.talks[-1].shaken)
        return peer, self.talks[-1]

    async def lost(self, talk: Talk) -> Any:
        await self.until(lambda: talk.lost)
        assert talk.lost is not None
        return talk.lost.type

    def is_read(self, talk: Talk) -> bool:
        return talk.transport in reactor.getReaders()


class TalkingTests(StreamCase):
    async def test_both_hear_what_the_other_says(self) -> None:
        self.said = lambda talk, data: talk.transport.write(data)
        peer, talk = await self.meet()
        self.assertEqual(talk.transport.getHandle().get_alpn_proto_negotiated(), ALPN)
        for size in (1, RECORD - 1, RECORD, RECORD + 1):
            peer.received = talk.received = b""
            data = bytes(number % 251 for number in range(size))
            peer.tls.sendall(data)
            await self.until(partial(peer.hears, size))
            self.assertEqual((talk.received, peer.received), (data, data))

    async def test_what_is_written_in_one_turn_arrives_in_order(self) -> None:
        peer, talk = await self.meet()
        large = bytes(200_000)
        parts = [b"one ", b"two ", b"", large, b" three", b"x" * RECORD, b"y" * (RECORD - 1), b"z", b" four"]
        for part in parts:
            talk.transport.write(part)
        wanted = b"".join(parts)
        await self.until(lambda: peer.hears(len(wanted)))
        self.assertEqual(peer.received, wanted)

    async def test_small_writes_of_one_turn_share_a_record(self) -> None:
        peer, talk = await self.meet()
        for _ in range(20):
            talk.transport.write(b"word")
        await self.until(lambda: peer.hears(1))
        self.assertEqual(len(peer.received), 80)

    async def test_a_handshake_may_come_in_single_bytes(self) -> None:
        away = socket.create_connection(("127.0.0.1", self.port))
        self.addCleanup(away.close)
        away.setblocking(False)
        await self.until(lambda: self.talks)
        talk = self.talks[0]
        client = SSL.Connection(client_context(anchors=[PKI.fleet], credentials=None, alpn=ALPN), None)
        client.set_connect_state()

        def moved() -> bool:
            try:
                client.do_handshake()
            except SSL.WantReadError:
                try:
                    client.bio_write(away.recv(4096))
                except BlockingIOError:
                    pass
            waiting.extend(drained(client))
            if waiting:
                away.send(waiting[:1])
                del waiting[:1]
            return talk.shaken

        waiting = bytearray()
        await self.until(moved)
        client.send(b"hello")
        waiting += drained(client)
        await self.until(lambda: moved() and talk.received == b"hello")


def drained(client: SSL.Connection) -> bytes:
    """What a client that has no socket wants to send."""
    try:
        return client.bio_read(65536)
    except SSL.WantReadError:
        return b""


class SlowPeerTests(StreamCase):
    async def test_what_it_does_not_take_waits_and_the_others_go_on(self) -> None:
        slow, talk = await self.meet()
        self.said = lambda other, data: other.transport.write(data)
        large = bytes(range(250)) * 6000
        talk.transport.write(large)
        talk.transport.write(b"the end")
        other, _ = await self.meet()
        other.tls.sendall(b"hello")
        await self.until(lambda: other.hears(5))
        self.assertIn(talk.transport, reactor.getWriters())
        self.assertTrue(self.is_read(talk))
        slow.tls.sendall(b"still here")
        await self.until(lambda: talk.received == b"still here")
        await self.until(lambda: slow.hears(LARGE + 7))
        self.assertEqual(slow.received, large + b"the end")
        self.assertNotIn(talk.transport, reactor.getWriters())

    async def test_who_does_not_take_its_answers_is_not_listened_to(self) -> None:
        def answered(talk: Talk, data: bytes) -> None:
            for _ in data:
                talk.transport.write(data[:1] * 100)

        self.said = answered
        peer, talk = await self.meet()
        talk.transport.write(bytes(LARGE))
        await self.until(lambda: talk.transport in reactor.getWriters())
        sent = 0

        def deaf() -> bool:
            nonlocal sent
            try:
                sent += peer.tls.send(b"?" * 100)
            except SSL.WantWriteError:
                pass
            return not self.is_read(talk)

        await self.until(deaf)
        self.assertLess(len(talk.received), WAITING + READ_BUDGET)
        await self.until(lambda: peer.hears(LARGE + 100 * sent))
        self.assertEqual(peer.received[LARGE:], b"?" * 100 * sent)
        self.assertTrue(self.is_read(talk))

    async def test_it_can_be_cut_meanwhile(self) -> None:
        peer, talk = await self.meet()
        talk.transport.write(bytes(LARGE))
        talk.transport.loseConnection()
        await self.until(lambda: talk.transport in reactor.getWriters())
        talk.transport.abortConnection()
        self.assertIs(await self.lost(talk), ConnectionAborted)
        await self.until(peer.hears_the_end)
        self.assertIsInstance(peer.over, (SSL.SysCallError, ConnectionResetError))


class EndTests(StreamCase):
    async def test_what_was_written_arrives_before_the_end(self) -> None:
        peer, talk = await self.meet()
        talk.transport.write(bytes(LARGE))
        talk.transport.loseConnection()
        talk.transport.write(b"too late")
        talk.transport.loseConnection()
        await self.until(peer.hears_the_end)
        self.assertEqual(len(peer.received), LARGE)
        # Said within TLS, so that nobody else can have cut it short.
        self.assertIsInstance(peer.over, SSL.ZeroReturnError)
        self.assertIsNone(talk.lost)
        peer.tls.sendall(b"nobody hears this")
        peer.sock.close()
        self.assertIs(await self.lost(talk), ConnectionDone)
        self.assertEqual(talk.received, b"")

    async def test_the_peer_ends_it(self) -> None:
        peer, talk = await self.meet()
        peer.tls.sendall(b"bye")
        peer.tls.shutdown()
        self.assertIs(await self.lost(talk), ConnectionDone)
        self.assertEqual(talk.received, b"bye")
        for late in (talk.transport.loseConnection, talk.transport.abortConnection, talk.transport.flush):
            late()
        talk.transport.write(b"nobody is there")

    async def test_the_peer_breaks_off(self) -> None:
        peer, talk = await self.meet()
        peer.sock.close()
        self.assertIs(await self.lost(talk), ConnectionLost)

    async def test_before_the_handshake_is_over_there_is_nothing_to_say(self) -> None:
        client = socket.create_connection(("127.0.0.1", self.port))
        self.addCleanup(client.close)
        await self.until(lambda: self.talks)
        client.sendall(bytes.fromhex("16030100c8010000c40303"))
        await self.turn(0.01)
        talk = self.talks[0]
        self.assertFalse(talk.shaken)
        talk.transport.write(b"never sent")
        await self.turn(0.01)
        talk.transport.loseConnection()
        self.assertIs(await self.lost(talk), ConnectionAborted)
        self.assertRaises(ConnectionResetError, client.recv, 100)


class FaultTests(StreamCase):
    async def hello(self) -> None:
        """Somebody else is served."""
        peer, talk = await self.meet()
        peer.tls.sendall(b"hello")
        await self.until(lambda: talk.received == b"hello")

    async def test_what_is_no_tls_ends_that_connection_alone(self) -> None:
        client = socket.create_connection(("127.0.0.1", self.port))
        self.addCleanup(client.close)
        client.sendall(b"GET / HTTP/1.1\r\nHost: controller\r\n\r\n")
        await self.until(lambda: self.talks)
        self.assertIs(await self.lost(self.talks[0]), SSL.Error)
        await self.hello()

    async def test_bytes_that_were_changed_on_the_way(self) -> None:
        peer, talk = await self.meet()
        peer.sock.send(b"\x17\x03\x03\x00\x20" + bytes(32))
        self.assertIs(await self.lost(talk), SSL.Error)
        await self.hello()

    async def test_a_protocol_that_raises_loses_its_connection_alone(self) -> None:
        def fails(talk: Talk, data: bytes) -> None:
            raise RuntimeError("not this")

        self.said = fails
        peer, talk = await self.meet()
        self.said = None
        peer.tls.sendall(b"hello")
        self.assertIs(await self.lost(talk), RuntimeError)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        await self.hello()

    async def test_what_cannot_be_sent_does_not_keep_the_others_waiting(self) -> None:
        _, broken = await self.meet()
        peer, talk = await self.meet()
        broken.transport.write("no bytes")
        talk.transport.write(b"for the other")
        await self.until(lambda: peer.hears(13))
        self.assertIs(await self.lost(broken), ConnectionAborted)
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)

    async def test_an_error_that_somebody_else_left_is_not_taken_for_ours(self) -> None:
        peer, talk = await self.meet()

        def leave() -> None:
            self.assertEqual(lib.SSL_CTX_use_PrivateKey_file(self.context._context, b"/nowhere", 1), 0)
            self.assertNotEqual(lib.ERR_peek_error(), 0)

        # A full record is followed by another look, which finds nothing.
        peer.tls.sendall(b"x" * RECORD)
        leave()
        await self.until(lambda: len(talk.received) == RECORD)
        leave()
        # More than the kernel takes at once.
        talk.transport.write(bytes(LARGE))
        await self.until(lambda: peer.hears(LARGE))
        self.assertIsNone(talk.lost)

    async def test_a_socket_that_is_broken_already(self) -> None:
        away, here = socket.socketpair()
        away.close()
        here.close()
        talk = Talk()
        talk.makeConnection(ChannelStream(self.context, Flushing(reactor), here, talk, reactor))
        talk.transport.write(b"nothing")
        talk.transport.abortConnection()
        self.assertIs(await self.lost(talk), OSError)

    async def test_a_peer_that_changes_its_keys_leaves_the_others_their_turn_after_each(self) -> None:
        program = shutil.which("openssl")
        assert program, "the test needs the program openssl"
        turns = 0
        read = ChannelStream.doRead

        def counted(stream: ChannelStream) -> Any:
            nonlocal turns
            turns += 1
            return read(stream)

        self.patch(ChannelStream, "doRead", counted)
        where = ["-connect", f"127.0.0.1:{self.port}", "-tls1_3", "-alpn", ALPN.decode(), "-brief"]
        process = subprocess.Popen(  # noqa: ASYNC220 - it is talked to by way of pipes
            [program, "s_client", *where],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdin
        await self.until(lambda: self.talks and self.talks[0].shaken)
        talk = self.talks[0]
        turns = 0
        # All of it waits in the kernel, and is there at once.
        loop: Any = reactor
        loop.removeReader(talk.transport)
        for line in [b"K\n"] * UPDATES + [b"end\n"]:
            process.stdin.write(line)
            process.stdin.flush()
            # It takes a command only when that is all that it read.
            await self.turn(0.05)
        loop.addReader(talk.transport)
        await self.until(lambda: talk.received)
        self.assertEqual(talk.received, b"end\n")
        self.assertGreater(turns, UPDATES)
        process.stdin.close()
        await self.lost(talk)
        await self.until(lambda: process.poll() is not None)

    async def test_reading_that_has_to_write_first_waits_for_that(self) -> None:
        peer, talk = await self.meet()
        transport = talk.transport
        read, said = stream_module._SSL_read, stream_module._SSL_get_error
        self.patch(stream_module, "_SSL_read", lambda ssl, at, size: -1)
        self.patch(stream_module, "_SSL_get_error", lambda ssl, result: lib.SSL_ERROR_WANT_WRITE)
        peer.tls.sendall(b"hello")
        # It does not run in circles meanwhile: the reactor is asked for one thing.
        await self.until(lambda: not self.is_read(talk))
        self.patch(stream_module, "_SSL_read", read)
        self.patch(stream_module, "_SSL_get_error", said)
        await self.until(lambda: talk.received == b"hello")
        self.assertNotIn(transport, reactor.getWriters())

    async def test_writing_that_has_to_read_first_waits_for_that(self) -> None:
        peer, talk = await self.meet()
        transport = talk.transport
        write, said = stream_module._SSL_write, stream_module._SSL_get_error
        self.patch(stream_module, "_SSL_write", lambda ssl, at, size: -1)
        self.patch(stream_module, "_SSL_get_error", lambda ssl, result: lib.SSL_ERROR_WANT_READ)
        transport.write(b"one ")
        await self.turn(0.01)
        self.patch(stream_module, "_SSL_write", write)
        self.patch(stream_module, "_SSL_get_error", said)
        self.assertNotIn(transport, reactor.getWriters())
        transport.write(b"two")
        await self.turn(0.01)
        self.assertFalse(peer.hears(1))
        peer.tls.sendall(b"hello")
        await self.until(lambda: peer.hears(7))
        self.assertEqual((peer.received, talk.received), (b"one two", b"hello"))
