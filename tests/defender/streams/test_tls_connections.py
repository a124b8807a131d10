"""TLS connections as wholes: new keys under way, and many connections beside each other."""

from __future__ import annotations

import shutil
import socket
import subprocess

from twisted.internet.defer import Deferred, gatherResults

from defender.streams.tls import HandshakeError, TLSStream
from tests.defender.streams.harness import (
    Recorder,
    TLSCase,
    TLSClient,
    fleet,
    reset,
    tcp_pair,
)

MIB = 1024 * 1024


class KeyUpdateTests(TLSCase):
    """New keys in the middle of a stream (TLS 1.3), from a client that sends them when told: openssl's."""

    def s_client(self, port: int, *options: str) -> subprocess.Popen[bytes]:
        program = shutil.which("openssl")
        assert program, "the test needs the program openssl"
        user = fleet().user
        # fmt: off
        return subprocess.Popen(
            [program, "s_client", "-connect", f"127.0.0.1:{port}", "-cert", user.certificate_chain,
             "-key", user.private_key, "-CAfile", user.ca, "-brief", *options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )
        # fmt: on

    async def accept_from(self, *options: str) -> tuple[subprocess.Popen[bytes], TLSStream]:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            process = self.s_client(listener.getsockname()[1], *options)
            server, _ = await self.in_thread(listener.accept)
        stream = self.tls(server, fleet().context())
        await stream.handshake()
        return process, stream

    async def test_key_update_in_both_directions(self) -> None:
        process, stream = await self.accept_from("-tls1_3")
        receiver = Recorder(stream)
        assert process.stdin
        assert process.stdout
        expected = b""
        for number in range(5):
            # s_client reads a line at a time from a pipe: "K" alone is its command (update and be updated).
            process.stdin.write(b"K\n")
            process.stdin.flush()
            await self.turn(0.02)
            line = b"line %d\n" % number
            expected += line
            process.stdin.write(line)
            process.stdin.flush()
            await receiver.until_bytes(len(expected))
            stream.write(b"answer %d\n" % number)
            self.assertEqual(await self.in_thread(process.stdout.readline), b"answer %d\n" % number)
        self.assertEqual(bytes(receiver.data), expected)
        process.stdin.close()
        stream.close()
        await receiver.until_lost()
        await self.in_thread(process.wait)
        process.stdout.close()

    async def test_renegotiation_is_refused(self) -> None:
        process, stream = await self.accept_from("-tls1_2")
        receiver = Recorder(stream)
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"R\n")
        process.stdin.close()
        await receiver.until(lambda: bool(receiver.calls))
        self.assertEqual(bytes(receiver.data), b"")
        stream.abort()
        await self.in_thread(process.wait)
        process.stdout.close()


class ManyTests(TLSCase):
    """Connections do not disturb each other."""

    async def test_errors_of_one_connection_do_not_reach_another(self) -> None:
        """OpenSSL's queue of errors belongs to the thread, and so to all connections of a reactor."""
        client, stream = await self.connect()
        receiver = Recorder(stream)
        for number in range(30):
            sock, server = tcp_pair()
            bad = self.tls(server, fleet().context())
            shaken = bad.handshake()
            sock.sendall([b"\x16\x03\x01\x00\x05junk!", b"\x00" * 50, b"GET / HTTP/1.0\r\n\r\n"][number % 3])
            await self.assertFailure(shaken, HandshakeError)
            other, cut = await self.connect()
            cut_receiver = Recorder(cut)
            reset(other.socket)
            cut.write(b"x" * 1000)
            await cut_receiver.until_lost()
            sock.close()
            client.send(b"ping")
            await receiver.until_bytes(4 * (number + 1))
            stream.write(b"pong")
            self.assertEqual(await self.in_thread(client.recv_exactly, 4), b"pong")

    async def test_a_hundred_at_once(self) -> None:
        context = fleet().client_context()

        def talk(sock: socket.socket) -> bytes:
            client = TLSClient(sock, context).handshake()
            client.send(b"ping")
            client.close_notify()
            answer = client.recv_all()
            sock.close()
            return answer

        talks: list[Deferred[bytes]] = []
        for _ in range(100):
            sock, server = tcp_pair()
            stream = self.tls(server, fleet().context())
            stream.handshake().addCallback(self._echo)
            talks.append(self.in_thread(talk, sock))
        self.assertEqual(set(await gatherResults(talks)), {b"ping"})

    @staticmethod
    def _echo(stream: TLSStream) -> None:
        receiver = Recorder(stream)
        receiver.hooks["data_received"] = lambda: stream.write(bytes(receiver.data))
        receiver.hooks["end_received"] = stream.half_close
