"""What the kernel knows of the peer of a socket: where it is, whether it is still there."""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import termios
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """How a peer that vanished without a word is found (seconds; ``count`` unanswered probes).

    Nothing is in flight: the kernel probes after ``idle``, then every ``interval``, and ends the connection
    after ``count``. Something is in flight, or waits for the peer's window: `is_silent` after ``unanswered``.

    TCP_USER_TIMEOUT would do the second in the kernel, but it also ends a connection whose live peer does not
    read for that long: Linux since 5.11 counts a closed window as no progress, answered or not. A person who
    reads logs in a pager, or a slow disk under `docker save`, does just that.
    """

    idle: int = 15
    interval: int = 5
    count: int = 3
    unanswered: int = 30


def tune_tcp(sock: socket.socket, keepalive: KeepAlive) -> None:
    """Small writes go out at once, and dead peers are found."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, keepalive.idle)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, keepalive.interval)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, keepalive.count)


def address_of(sock: socket.socket) -> tuple[str, int] | None:
    """Return (IP text, port) of the peer: IPv4-mapped addresses unmapped, no scope. None on a unix socket."""
    if sock.family == socket.AF_UNIX:
        return None
    try:
        host, port = sock.getpeername()[:2]
    except OSError:
        return None  # it is gone already; the first read will say so
    if sock.family == socket.AF_INET:
        return host, port
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address), port


def is_hung_up(sock: socket.socket) -> bool:
    """Tell whether both directions are over, or an error waits. A peer that only half-closed is not meant."""
    poll = select.poll()
    poll.register(sock, 0)  # POLLHUP and POLLERR are reported unasked
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))


def has_unread(sock: socket.socket) -> bool:
    """Tell whether the kernel holds bytes for us."""
    count: int = struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, b"\0" * 4))[0]
    return count > 0


def is_silent(sock: socket.socket, keepalive: KeepAlive) -> bool:
    """Tell whether the peer of a TCP socket has left several packets unanswered for ``unanswered`` seconds.

    struct tcp_info of linux/tcp.h: tcpi_retransmits is byte 2 and tcpi_probes byte 3, both zeroed by an
    answer; tcpi_last_ack_recv is the 32-bit word at byte 56, in milliseconds.
    """
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 60)
    (last_answer,) = struct.unpack_from("I", info, 56)
    return max(info[2], info[3]) >= keepalive.count and last_answer > keepalive.unanswered * 1000
