"""Misbehavior for the fake Engine: each function returns a script for ``FakeEngine.behave``.

A script is called with the `Exchange` once the head has arrived; the body is unread until it reads it.
"""

from __future__ import annotations

import select
import socket
import struct
from typing import TYPE_CHECKING

from tests.fakes.engine_exchange import MIDDLEWARE, Exchange, Gate
from tests.fakes.engine_wire import GoneError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Script = Callable[[Exchange], None]


def raw(answer: bytes, *, read_body: bool = True, keep: bool = False) -> Script:
    """Send exactly these bytes: a malformed head, surplus after an answer, an unasked 101, a wrong length.

    With `keep` the connection stays open and the next request is read; else it is closed after the bytes.
    """

    def script(exchange: Exchange) -> None:
        if read_body:
            exchange.read_body()
        exchange.started = True
        exchange.send(answer)
        exchange.keep = keep

    return script


def never(*, read_body: bool = True) -> Script:
    """Take the request and answer nothing until the client goes or the fake stops."""

    def script(exchange: Exchange) -> None:
        if read_body:
            exchange.read_body()
        gate = Gate()
        while True:
            exchange.wait(gate)

    return script


def in_parts(parts: Iterable[bytes], gate: Gate, *, keep: bool = False) -> Script:
    """Send one part at each release of the gate: a slow Engine without a clock."""

    def script(exchange: Exchange) -> None:
        exchange.read_body()
        exchange.started = True
        for part in parts:
            exchange.wait(gate)
            exchange.send(part)
        exchange.keep = keep

    return script


def early(answer: bytes, *, after: int = 0, keep: bool = False, gate: Gate | None = None) -> Script:
    """Answer before the body was read, after about `after` bytes of it: a 413 and the like.

    With `keep` the rest of the body is read and the connection serves on, else it is closed with the body
    unread (a reset for the client). With `gate` the script holds after the answer until it is released.
    """

    def script(exchange: Exchange) -> None:
        if after:
            exchange.read_body(after)
        exchange.started = True
        exchange.send(answer)
        if gate is not None:
            exchange.wait(gate)
        if keep:
            exchange.read_body()
        exchange.keep = keep

    return script


def read_later(gate: Gate, then: Script, *, step: int | None = None) -> Script:
    """Leave the body in the kernel until the gate is released (each `step` bytes anew), then run `then`."""

    def script(exchange: Exchange) -> None:
        while not exchange.request.body_complete:
            _wait_unwatched(exchange, gate)
            exchange.read_body(step)
        then(exchange)

    return script


def _wait_unwatched(exchange: Exchange, gate: Gate) -> None:
    """Wait without reading the socket, so that the client's bytes stay where they are."""
    while not gate.take():
        if exchange.stopping():
            raise GoneError("the fake is stopping")
        select.select([gate], [], [], 0.1)


def stock_answer(status: int = 200, body: bytes = b"", content_type: str | None = None) -> Script:
    """Read the body and answer as the Engine's middleware would, keeping the connection."""

    def script(exchange: Exchange) -> None:
        exchange.read_body()
        exchange.answer(status, body, content_type=content_type)

    return script


def with_close(status: int = 200, body: bytes = b"") -> Script:
    """Answer with ``Connection: close`` and close."""

    def script(exchange: Exchange) -> None:
        exchange.read_body()
        exchange.keep = False
        exchange.answer(status, body)

    return script


def with_trailers(chunks: Iterable[bytes], trailers: Iterable[tuple[str, str]]) -> Script:
    """Answer chunked, ending with trailers."""

    def script(exchange: Exchange) -> None:
        exchange.read_body()
        exchange.start_chunked(headers=(*MIDDLEWARE, ("Trailer", ", ".join(name for name, _ in trailers))))
        for data in chunks:
            exchange.chunk(data)
        exchange.end_chunks(trailers)

    return script


def informational(status_lines: Iterable[bytes], then: Script) -> Script:
    """Send 1xx answers (``b"HTTP/1.1 103 Early Hints\\r\\nLink: x\\r\\n\\r\\n"``) before the real one."""

    def script(exchange: Exchange) -> None:
        for head in status_lines:
            exchange.send(head)
        then(exchange)

    return script


def close_at_head() -> Script:
    """Close without a byte: the stale keep-alive connection a client may retry on."""

    def script(exchange: Exchange) -> None:
        exchange.keep = False
        exchange.started = True

    return script


def reset(after: bytes = b"") -> Script:
    """Send some bytes and drop the connection with its input unread: a reset for the client."""

    def script(exchange: Exchange) -> None:
        exchange.started = True
        exchange.send(after)
        exchange.keep = False
        linger = struct.pack("ii", 1, 0)
        exchange.wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    return script
