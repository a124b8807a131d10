"""Peers that vanish while nothing is asked of the socket."""

from __future__ import annotations

import ctypes
import socket
import struct

from defender.streams.interface import Lost
from defender.streams.peer import KeepAlive
from tests.defender.streams.harness import (
    Recorder,
    StreamCase,
    reset,
    tcp_pair,
    unix_pair,
)


class GoneTests(StreamCase):
    """Peers that vanish while nothing is asked of the socket."""

    async def test_trap_6_a_reset_while_reading_is_paused_is_found_by_asking(self) -> None:
        client, server = tcp_pair()
        stream = self.plain(server)
        Recorder(stream)
        stream.pause_reading()
        client.sendall(b"makes the stream stop reading")
        await self.until(lambda: stream not in self.poll.getReaders())
        self.assertFalse(stream.is_gone())
        reset(client)
        await self.until(stream.is_gone)

    async def test_trap_6_a_peer_that_half_closed_is_not_gone_until_it_resets(self) -> None:
        client, server = tcp_pair()
        stream = self.plain(server)
        receiver = Recorder(stream)
        client.shutdown(socket.SHUT_WR)
        await receiver.until_ended()
        self.assertFalse(stream.is_gone())
        reset(client)
        await self.until(stream.is_gone)

    async def test_a_silent_peer_is_found_by_keepalive(self) -> None:
        client, server = tcp_pair()
        receiver = Recorder(self.plain(server, keepalive=KeepAlive(idle=1, interval=1, count=1)))
        go_deaf(client)
        await receiver.until_lost()
        self.assertEqual(receiver.lost, Lost(False, "Connection timed out"))
        client.close()

    async def test_a_silent_peer_with_output_under_way_is_gone(self) -> None:
        client, server = tcp_pair()
        stream = self.plain(server, keepalive=KeepAlive(count=2, unanswered=1))
        Recorder(stream)
        go_deaf(client)
        stream.write(b"to nobody")
        self.assertFalse(stream.is_gone())
        await self.until(stream.is_gone)
        client.close()

    async def test_a_live_peer_that_reads_nothing_is_not_gone(self) -> None:
        """No TCP_USER_TIMEOUT: the kernel would end the connection of a reader who pauses that long."""
        client, server = tcp_pair()
        stream = self.plain(server, keepalive=KeepAlive(count=1, unanswered=-1))
        Recorder(stream)
        stream.write(b"x" * 20_000_000)
        self.assertEqual(server.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT), 0)
        # tcpi_backoff grows with each probe of the shut window; an answer makes tcpi_probes zero again.
        await self.until(lambda: tcp_info(server)[4] > 0 and tcp_info(server)[3] == 0)
        self.assertFalse(stream.is_gone())
        client.close()

    async def test_after_the_end_it_is_gone(self) -> None:
        client, server = unix_pair()
        stream = self.plain(server)
        stream.abort()
        self.assertTrue(stream.is_gone())
        client.close()


def tcp_info(sock: socket.socket) -> bytes:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)


def go_deaf(sock: socket.socket) -> None:
    """Have the kernel drop every packet for ``sock``, as if its host had lost power (SO_ATTACH_FILTER)."""
    code = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF_RET | BPF_K, 0 bytes
    program = struct.pack("HxxxxxxP", 1, ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, 26, program)
