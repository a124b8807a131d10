"""TLS streams on real sockets, against a client that sends TLS's ends and TCP's apart; TLS 1.2 and 1.3."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
import threading
import tracemalloc

from twisted.internet.defer import gatherResults

from defender.streams.interface import HIGH_WATER, Lost
from defender.streams.tls import HandshakeError, TLSStream
from tests.defender.streams.harness import (
    Producer,
    Recorder,
    TLSCase,
    TLSClient,
    TruncatedError,
    fleet,
    open_sockets,
    reset,
    tcp_pair,
)

MIB = 1024 * 1024


class EndTests(TLSCase):
    """Half-close, truncation, close and abort: TLS 1.3."""

    async def test_trap_6_go_sends_close_notify_alone_and_gets_late_output(self) -> None:
        client, stream = await self.connect()
        receiver = Recorder(stream)
        client.send(b"hello")
        client.close_notify()
        await receiver.until_ended()
        self.assertEqual((bytes(receiver.data), receiver.lost), (b"hello", None))
        stream.write(b"late output" * 100_000)
        stream.half_close()
        self.assertEqual(await self.in_thread(client.recv_all), b"late output" * 100_000)
        self.assertIsNone(receiver.lost, "TCP is still open on the client's side")
        client.close()
        await receiver.until_lost()
        self.assertEqual(receiver.lost, Lost(True, "closed"))
        self.assertEqual(receiver.calls.count("end_received"), 1)

    async def test_trap_6_node_sends_close_notify_and_fin_and_gets_late_output(self) -> None:
        client, stream = await self.connect()
        receiver = Recorder(stream)
        client.send(b"hello")
        client.close_notify()
        client.fin()
        await receiver.until_ended()
        await self.until(lambda: stream not in self.poll.getReaders())
        self.assertFalse(stream.is_gone())
        stream.write(b"late output" * 100_000)
        stream.half_close()
        self.assertEqual(await self.in_thread(client.recv_all), b"late output" * 100_000)
        await receiver.until_lost()
        self.assertEqual(receiver.lost, Lost(True, "closed"))

    async def test_trap_6_a_client_killed_after_close_notify_is_noticed(self) -> None:
        client, stream = await self.connect()
        receiver = Recorder(stream)
        client.close_notify()
        await receiver.until_ended()
        reset(client.socket)
        await receiver.until_lost()
        self.assertEqual(receiver.lost, Lost(False, "Connection reset by peer"))

    async def test_trap_6_a_client_killed_after_close_notify_and_fin_is_found_by_asking(self) -> None:
        client, stream = await self.connect()
        receiver = Recorder(stream)
        client.close_notify()
        client.fin()
        await receiver.until_ended()
        await self.until(lambda: stream not in self.poll.getReaders())
        reset(client.socket)
        await self.until(stream.is_gone)

    async def test_fin_without_close_notify_is_truncation(self) -> None:
        client, stream = await self.connect()
        receiver = Recorder(stream)
        client.send(b"half a")
        client.fin()
        await receiver.until_lost()
        self.assertEqual(receiver.calls, ["data_received", "connection_lost"])
        self.assertEqual(receiver.lost, Lost(False, "truncated: TCP FIN without close_notify"))

    async def test_a_reset_is_no_end(self) -> None:
        client, stream = await self.connect()
        receiver = Recorder(stream)
        reset(client.socket)
        await receiver.until_lost()
        self.assertEqual(receiver.calls, ["connection_lost"])
        self.assertEqual(receiver.lost, Lost(False, "Connection reset by peer"))

    async def test_garbage_is_no_end(self) -> None:
        client, stream = await self.connect()
        receiver = Recorder(stream)
        client.socket.sendall(b"\x17\x03\x03\x00\x20" + b"g" * 32)
        await receiver.until_lost()
        self.assertEqual(receiver.calls, ["connection_lost"])
        assert receiver.lost is not None
        self.assertFalse(receiver.lost.clean)
        self.assertTrue(receiver.lost.detail.startswith("TLS: "), receiver.lost)

    async def test_trap_2_half_close_sends_close_notify_and_no_fin(self) -> None:
        """half-close.md traps 1 and 2: after our close_notify the client's bytes are still read."""
        client, stream = await self.connect()
        receiver = Recorder(stream)
        stream.write(b"answer")
        stream.half_close()
        stream.write(b"dropped")
        self.assertEqual(await self.in_thread(client.recv_all), b"answer")
        client.socket.setblocking(False)
        with self.assertRaises(BlockingIOError):
            client.socket.recv(1)
        client.socket.settimeout(30)
        for count in (100_000, 200_000):
            if self.version == ssl.TLSVersion.TLSv1_3:  # OpenSSL's 1.2 client refuses to write from here on
                client.send(b"u" * 100_000)
                await receiver.until_bytes(count)
        client.close_notify()
        await self.in_thread(self._expect_fin, client)
        client.close()
        await receiver.until_lost()
        self.assertTrue(receiver.lost and receiver.lost.clean)

    @staticmethod
    def _expect_fin(client: TLSClient) -> None:
        while client.socket.recv(65536):
            pass

    async def test_close_sends_close_notify_then_fin_and_drains(self) -> None:
        """Trap 7: what the client still sends does not destroy the answer."""
        client, stream = await self.connect(linger=60)
        receiver = Recorder(stream)
        answer = os.urandom(600_000)
        client.send(b"u" * 300_000)
        await receiver.until_bytes(1)
        receiver.hooks["data_received"] = lambda: self.fail("delivered after close()")
        stream.write(answer)
        stream.close()
        received = self.in_thread(client.recv_all)
        await self.in_thread(client.socket.sendall, b"raw" * 100_000)
        self.assertEqual(await received, answer)
        await self.in_thread(self._expect_fin, client)
        client.close()
        await receiver.until_lost()
        self.assertEqual(receiver.lost, Lost(True, "closed"))

    async def test_close_does_not_wait_for_ever(self) -> None:
        _, stream = await self.connect(linger=0.05)
        receiver = Recorder(stream)
        stream.close()
        await receiver.until_lost()
        self.assertEqual(receiver.lost, Lost(True, "closed"))

    async def test_abort_tells_the_client_of_truncation(self) -> None:
        client, stream = await self.connect()
        receiver = Recorder(stream)
        stream.write(b"half an")
        await self.in_thread(client.recv_exactly, 7)
        stream.abort()
        with self.assertRaises(TruncatedError):
            await self.in_thread(client.recv)
        await receiver.until_lost()

    async def test_the_end_waits_for_a_paused_receiver(self) -> None:
        client, stream = await self.connect()
        receiver = Recorder(stream)
        receiver.hooks["data_received"] = stream.pause_reading
        client.send(b"d" * 100_000)
        client.close_notify()
        client.fin()
        seen = 0
        while len(receiver.data) < 100_000:
            await receiver.until_bytes(seen + 1)
            for _ in range(3):
                await self.turn()
            self.assertNotIn("end_received", receiver.calls)
            seen = len(receiver.data)
            stream.resume_reading()
        await receiver.until_ended()
        stream.half_close()
        await receiver.until_lost()
        self.assertTrue(receiver.lost and receiver.lost.clean)

    async def test_an_end_found_with_the_last_bytes_waits_for_a_paused_receiver(self) -> None:
        client, stream = await self.connect()
        client.tls.write(b"d" * 16384)  # one whole record: the stream reads on and finds close_notify
        with contextlib.suppress(ssl.SSLWantReadError):
            client.tls.unwrap()
        client.flush()
        receiver = Recorder(stream)
        receiver.hooks["data_received"] = stream.pause_reading
        await receiver.until_bytes(16384)
        for _ in range(3):
            await self.turn()
        self.assertEqual(receiver.calls, ["data_received"])
        stream.resume_reading()
        self.assertEqual(receiver.calls, ["data_received"], "nothing is called from inside resume_reading()")
        await receiver.until_ended()

    async def test_a_write_that_fails_ends_the_stream(self) -> None:
        """Even while reading is paused; OpenSSL would read no more."""
        client, stream = await self.connect()
        receiver = Recorder(stream)
        stream.pause_reading()
        reset(client.socket)
        await self.until(stream.is_gone)
        stream.write(b"x" * 100_000)
        stream.write(b"dropped")
        self.assertEqual((stream.pending, receiver.calls), (0, []))
        await receiver.until_lost()
        self.assertEqual(receiver.calls, ["connection_lost"])
        self.assertEqual(receiver.lost, Lost(False, "Connection reset by peer"))

    async def test_everything_may_be_called_from_everywhere(self) -> None:
        for method in ("data_received", "end_received", "write_full", "write_drained", "connection_lost"):
            for action in ("write", "half_close", "close", "abort", "pause_reading", "resume_reading"):
                client, stream = await self.connect(linger=0.01, flush_timeout=0.05)
                receiver = Recorder(stream)

                def act(stream: TLSStream = stream, action: str = action) -> None:
                    getattr(stream, action)(*([b"y" * 300_000] if action == "write" else []))

                receiver.hooks[method] = act
                client.send(b"x" * 1000)
                stream.write(b"x" * 5_000_000)
                with contextlib.suppress(ConnectionError):
                    client.close_notify()
                reading = self.in_thread(self._read_what_comes, client)
                await self.turn(0.01)
                stream.close()
                await receiver.until_lost()
                await reading
                await self.turn()
                self.assertEqual(receiver.calls.count("connection_lost"), 1)
                self.assertEqual(stream.fileno(), -1)

    @staticmethod
    def _read_what_comes(client: TLSClient) -> None:
        try:
            client.recv_all()
        except (OSError, TruncatedError, ssl.SSLError):
            pass
        client.close()

    async def test_no_descriptor_is_left(self) -> None:
        before = open_sockets()
        for end in ("close", "abort", "half_close", "truncate", "reset", "handshake"):
            receivers = []
            for _ in range(5):
                if end == "handshake":
                    sock, server = tcp_pair()
                    shaken = self.tls(server, fleet().context()).handshake()
                    sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
                    await self.assertFailure(shaken, HandshakeError)
                    sock.close()
                    continue
                client, stream = await self.connect(linger=0.01)
                receiver = Recorder(stream)
                receivers.append(receiver)
                if end in ("close", "abort", "half_close"):
                    getattr(stream, end)()
                elif end == "reset":
                    reset(client.socket)
                if end == "half_close":
                    client.close_notify()
                client.close()
            await gatherResults([receiver.until_lost() for receiver in receivers])
        await self.until(lambda: open_sockets() <= before)


class EndTests12(EndTests):
    """The same under TLS 1.2."""

    version = ssl.TLSVersion.TLSv1_2


class FlowTests(TLSCase):
    """Bytes in bulk, and back-pressure: TLS 1.3."""

    async def test_32_mib_both_ways_at_once(self) -> None:
        client, stream = await self.connect()
        up = os.urandom(MIB) * 32
        producer = Producer(stream, 32 * MIB, 100_003)
        digest = hashlib.sha256()
        seen = 0

        def count() -> None:
            nonlocal seen
            digest.update(producer.data)
            seen += len(producer.data)
            producer.data.clear()

        producer.hooks["data_received"] = count
        down = hashlib.sha256()
        piece, left = producer.chunk, 32 * MIB
        while left:
            down.update(piece[:left])
            left -= len(piece[:left])

        def relay() -> str:
            got = hashlib.sha256()
            sender = client.socket.dup()
            # One TLS object is not for two threads: encrypt ahead, then send while the other thread reads.
            parts = []
            for start in range(0, len(up), 65536):
                client.tls.write(up[start : start + 65536])
            parts.append(client._out.read())
            try:
                client.tls.unwrap()
            except ssl.SSLWantReadError:
                parts.append(client._out.read())
            thread = threading.Thread(target=lambda: sender.sendall(b"".join(parts)))
            thread.start()
            while data := client.recv():
                got.update(data)
            thread.join()
            sender.close()
            return got.hexdigest()

        receiving = self.in_thread(relay)
        producer.produce()
        self.assertEqual(await receiving, down.hexdigest())
        client.close()
        await producer.until_lost()
        self.assertEqual((seen, digest.hexdigest()), (32 * MIB, hashlib.sha256(up).hexdigest()))
        self.assertLess(producer.most_pending, HIGH_WATER + 100_004)
        self.assertLessEqual(producer.largest, 256 * 1024)
        self.assertTrue(producer.lost and producer.lost.clean)

    async def test_a_slow_client_holds_bounded_output(self) -> None:
        client, stream = await self.connect()
        producer = Producer(stream, 64 * MIB)
        tracemalloc.start()
        producer.produce()
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        self.assertLess(held, MIB)
        self.assertLess(producer.most_pending, HIGH_WATER + 64 * 1024 + 1)
        self.assertGreater(producer.left, 40 * MIB)

        def read() -> int:
            count = 0
            while data := client.recv():
                count += len(data)
            return count

        self.assertEqual(await self.in_thread(read), 64 * MIB)

    async def test_a_paused_reader_holds_nothing_of_a_client_that_sends_64_mib(self) -> None:
        client, stream = await self.connect()
        receiver = Recorder(stream)
        stream.pause_reading()
        client.socket.setblocking(False)
        tracemalloc.start()
        chunk = b"p" * 16384
        total = 64 * MIB
        written = idle = 0
        cipher = b""
        while idle < 20:
            if not cipher:
                client.tls.write(chunk)
                written += len(chunk)
                cipher = client._out.read()
            try:
                cipher = cipher[client.socket.send(cipher) :]
            except BlockingIOError:
                idle += 1
                await self.turn()
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        self.assertEqual(receiver.calls, [])
        self.assertLess(held, MIB)
        seen = 0

        def count() -> None:
            nonlocal seen
            seen += len(receiver.data)
            receiver.data.clear()
            stream.pause_reading()
            self.reactor.callLater(0, stream.resume_reading)

        receiver.hooks["data_received"] = count
        receiver.hooks["end_received"] = stream.half_close

        def send_the_rest() -> None:
            client.socket.settimeout(30)
            client.socket.sendall(cipher)
            for _ in range((total - written) // len(chunk)):
                client.send(chunk)
            client.close_notify()
            client.recv()
            client.close()

        sending = self.in_thread(send_the_rest)
        stream.resume_reading()
        await sending
        await receiver.until_lost()
        self.assertEqual(seen, total)
        self.assertLessEqual(receiver.largest, 256 * 1024)

    async def test_a_receiver_that_pauses_after_every_piece_gets_everything(self) -> None:
        client, stream = await self.connect()
        receiver = Recorder(stream)
        receiver.hooks["data_received"] = stream.pause_reading
        client.send(b"m" * (3 * MIB // 2))
        while len(receiver.data) < 3 * MIB // 2:
            seen = len(receiver.data)
            stream.resume_reading()
            await receiver.until_bytes(seen + 1)
        self.assertEqual(len(receiver.data), 3 * MIB // 2)

    async def test_trap_5_pausing_before_the_handshake_does_not_stall_it(self) -> None:
        sock, server = tcp_pair()
        client = TLSClient(sock, fleet().client_context(self.version))
        stream = self.tls(server, fleet().context())
        receiver = Recorder(stream)
        stream.pause_reading()
        stream.write(b"greeting")
        await gatherResults([stream.handshake(), self.in_thread(client.handshake)])
        client.send(b"request")
        self.assertEqual(await self.in_thread(client.recv_exactly, 8), b"greeting")
        self.assertEqual(receiver.calls, [])
        stream.resume_reading()
        await receiver.until_bytes(7)
        sock.close()

    async def test_many_small_writes_share_records_and_keep_their_order(self) -> None:
        client, stream = await self.connect()
        Recorder(stream)
        filler = b"f" * 8_000_000
        pieces = [b"%d," % number for number in range(50_000)]
        stream.write(filler)
        for piece in pieces:
            stream.write(piece)
        stream.half_close()
        self.assertEqual(await self.in_thread(client.recv_all), filler + b"".join(pieces))

    async def test_trap_8_an_interrupted_record_is_sent_again_with_the_same_bytes(self) -> None:
        """The kernel takes a part of a record; the retry begins with the same bytes, more follow."""
        client, stream = await self.connect()
        Recorder(stream)
        stream._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 5000)
        sent = bytearray()
        while not stream.pending:
            piece = os.urandom(5000)
            stream.write(piece)
            sent += piece
        for _ in range(200):
            piece = os.urandom(1 + len(sent) % 700)
            stream.write(piece)
            sent += piece
        stream.half_close()
        self.assertEqual(await self.in_thread(client.recv_all), bytes(sent))


class FlowTests12(FlowTests):
    """The same under TLS 1.2."""

    version = ssl.TLSVersion.TLSv1_2
