"""Idle connections by the thousand, each of which was used once."""

from __future__ import annotations

import contextlib
import resource
import select
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

REQUEST = b"HEAD /_ping HTTP/1.1\r\nHost: x\r\n\r\n"
PATIENCE = 60.0

Connect = Callable[[], socket.socket]


class RefusedError(Exception):
    """The connection was closed before it could be used; the text says how."""


def connect_unix(path: Path | str) -> socket.socket:
    """Connect to the unix socket at `path`."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    sock.connect(str(path))
    return sock


def connect_tls(port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Connect to a port of the loopback and shake hands."""
    sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
    # Its first request would wait for the acknowledgment of the handshake's end.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        return context.wrap_socket(sock, server_hostname="localhost")
    except BaseException:
        sock.close()
        raise


def use(sock: socket.socket) -> int:
    """Ask for a ping and return the status of its answer.

    Raises:
        RefusedError: the connection ended before the answer.
    """
    answer = b""
    try:
        sock.sendall(REQUEST)
        while b"\r\n\r\n" not in answer:
            data = sock.recv(65536)
            if not data:
                raise RefusedError(f"closed after {answer!r}")
            answer += data
    except (ConnectionError, ssl.SSLError) as error:
        raise RefusedError(str(error)) from error
    return int(answer.split(b" ", 2)[1])


class Crowd:
    """Connections that are kept open and cost this process no more than a descriptor each."""

    def __init__(self) -> None:
        self._members: list[socket.socket] = []

    def __len__(self) -> int:
        return len(self._members)

    def open(self, connect: Connect, count: int) -> None:
        """Open `count` more connections, one after the other, and ask each once.

        Raises:
            RefusedError: one was closed instead of answered, or answered with another status than 200.
        """
        for _ in range(count):
            try:
                sock = connect()
            except (ConnectionError, ssl.SSLError) as error:
                raise RefusedError(str(error)) from error
            status = use(sock)
            # What TLS holds at this end is not needed for being idle.
            self._members.append(socket.socket(fileno=sock.detach()))
            if status != 200:
                raise RefusedError(f"answered with {status}")

    def lost(self) -> int:
        """How many of them the other side has ended."""
        poll = select.poll()
        for sock in self._members:
            poll.register(sock, select.POLLIN | select.POLLRDHUP)
        return sum(1 for _, events in poll.poll(0) if events & (select.POLLRDHUP | select.POLLHUP))

    def close(self, count: int | None = None) -> None:
        """Close the last `count` of them, by default all."""
        keep = 0 if count is None else len(self._members) - count
        for sock in self._members[keep:]:
            sock.close()
        del self._members[keep:]


def most_files() -> int:
    """The hard limit of open files, which this process and its children may raise theirs to."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


@contextlib.contextmanager
def many_files() -> Iterator[None]:
    """Let this process, and the children that it starts, have as many open files as they may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
