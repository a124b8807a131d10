"""Connecting in the clear."""

from __future__ import annotations

import os
import socket
import tempfile

from twisted.internet.defer import CancelledError

from defender.streams.plain import connect_tcp, connect_unix
from tests.defender.streams.harness import (
    Recorder,
    StreamCase,
    open_sockets,
)


class ConnectTests(StreamCase):
    """Connecting to the Engine."""

    def setUp(self) -> None:
        super().setUp()
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = os.path.join(directory.name, "engine.sock")

    def listen(self, backlog: int = 5) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen(backlog)
        self.addCleanup(listener.close)
        return listener

    async def test_unix(self) -> None:
        listener = self.listen()
        stream = await connect_unix(self.poll, self.path, 5)
        self.streams.append(stream)
        engine, _ = listener.accept()
        receiver = Recorder(stream)
        stream.write(b"ping")
        self.assertEqual(engine.recv(10), b"ping")
        self.assertIsNone(stream.peer_address)
        engine.close()
        await receiver.until_ended()
        stream.half_close()
        await receiver.until_lost()

    async def test_tcp(self) -> None:
        for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
            with socket.socket(family) as listener:
                listener.bind((host, 0))
                listener.listen()
                port = listener.getsockname()[1]
                stream = await connect_tcp(self.poll, host, port, 5)
                self.streams.append(stream)
                self.assertEqual(stream.peer_address, (host, port))
            with self.assertRaises(ConnectionRefusedError):
                await connect_tcp(self.poll, host, port, 5)

    async def test_an_ipv4_peer_of_an_ipv6_listener_has_its_ipv4_address(self) -> None:
        with socket.socket(socket.AF_INET6) as listener:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind(("::", 0))
            listener.listen()
            client = socket.create_connection(("127.0.0.1", listener.getsockname()[1]))
            server, _ = listener.accept()
        self.assertEqual(self.plain(server).peer_address, client.getsockname())
        client.close()

    async def test_errors_name_the_path(self) -> None:
        before = open_sockets()
        with self.assertRaises(FileNotFoundError) as caught:
            await connect_unix(self.poll, self.path, 5)
        self.assertIn(self.path, str(caught.exception))
        self.listen().close()
        with self.assertRaises(ConnectionRefusedError):
            await connect_unix(self.poll, self.path, 5)
        with self.assertRaises(OSError):
            await connect_unix(self.poll, "/x" * 100, 5)
        self.assertEqual(open_sockets(), before)

    def fill_backlog(self, listener: socket.socket) -> list[socket.socket]:
        held = []
        while True:
            sock = socket.socket(socket.AF_UNIX)
            self.addCleanup(sock.close)
            sock.setblocking(False)
            held.append(sock)
            if sock.connect_ex(self.path):
                return held

    async def test_a_full_backlog_times_out(self) -> None:
        listener = self.listen(0)
        self.fill_backlog(listener)
        before = open_sockets()
        with self.assertRaises(TimeoutError):
            await connect_unix(self.poll, self.path, 0.1)
        self.assertEqual(open_sockets(), before)

    async def test_a_full_backlog_is_waited_for(self) -> None:
        listener = self.listen(0)
        held = self.fill_backlog(listener)
        connecting = connect_unix(self.poll, self.path, 30)
        for _ in held[:-1]:
            listener.accept()[0].close()
        self.streams.append(await connecting)

    async def test_cancelling_closes_the_socket(self) -> None:
        listener = self.listen(0)
        self.fill_backlog(listener)
        before = open_sockets()
        connecting = connect_unix(self.poll, self.path, 30)
        connecting.cancel()
        with self.assertRaises(CancelledError):
            await connecting
        self.assertEqual(open_sockets(), before)
