"""A hijacked stream: the client's connection and the Engine's, joined.

Each direction ends by itself: a half-close of one side is a half-close of the other, output goes on until its
own end. When the Engine has ended, its exchange is over; the client is drained for a bounded time (closing
with unread input makes a reset that can destroy output under way), then both are closed. The data path has no
object and no Deferred per chunk: bytes received are bytes written, and back-pressure is a pause on the other
side.
"""

from __future__ import annotations

from collections.abc import Callable

from defender.streams.interface import HIGH_WATER, Lost, Stream


class _Side:
    """Receives from one stream and writes to the other. Implements `defender.streams.interface.Receiver`."""

    __slots__ = ("_tunnel", "count", "ended", "mine", "name", "other")

    def __init__(self, tunnel: Tunnel, name: str, mine: Stream, other: Stream) -> None:
        self._tunnel = tunnel
        self.name = name
        self.mine = mine
        self.other = other
        self.count = 0
        self.ended = False

    def data_received(self, data: bytes) -> None:
        self.count += len(data)
        self.other.write(data)

    def end_received(self) -> None:
        self.ended = True
        self.other.half_close()
        self._tunnel.side_ended(self)

    def write_full(self) -> None:
        self.other.pause_reading()

    def write_drained(self) -> None:
        self.other.resume_reading()

    def connection_lost(self, reason: Lost) -> None:
        self._tunnel.side_lost(self, reason)


class Tunnel:
    """Both streams of one hijacked exchange, and how it ended.

    `done(tunnel)` is called once, when both streams are closed. `sent` and `received` are the payload bytes
    from the client to the Engine and back. `reason` says why it ended when that was not the ordinary end.
    """

    __slots__ = (
        "_client",
        "_deadline",
        "_done",
        "_engine",
        "_finished",
        "_linger",
        "_lost",
        "_seconds",
        "reason",
    )

    def __init__(
        self,
        client: Stream,
        engine: Stream,
        *,
        seconds: Callable[[], float],
        linger: float,
        done: Callable[[Tunnel], None],
    ) -> None:
        self._client = _Side(self, "client", client, engine)
        self._engine = _Side(self, "engine", engine, client)
        self._seconds = seconds
        self._linger = linger
        self._done = done
        self._deadline: float | None = None
        self._lost: set[str] = set()
        self._finished = False
        self.reason = ""

    @property
    def sent(self) -> int:
        """Bytes from the client to the Engine."""
        return self._client.count

    @property
    def received(self) -> int:
        """Bytes from the Engine to the client."""
        return self._engine.count

    def start(self, from_client: bytes, from_engine: bytes) -> None:
        """Join the streams; the arguments are what came early on each side."""
        client, engine = self._client.mine, self._engine.mine
        client.set_receiver(self._client)
        engine.set_receiver(self._engine)
        client.resume_reading()
        engine.resume_reading()
        if from_engine:
            self._engine.data_received(from_engine)
        if from_client:
            self._client.data_received(from_client)
        if self._client.ended:
            engine.half_close()
        if client.pending > HIGH_WATER:
            # The edge was crossed before this receiver was there to hear of it.
            engine.pause_reading()

    def client_has_ended(self) -> None:
        """The client half-closed before the Engine had answered; say it before `start`."""
        self._client.ended = True

    def sweep(self, now: float) -> None:
        """Called every second or so: notice peers that vanished, end the bounded drain."""
        if self._deadline is not None and self._client.mine.pending:
            # The drain is for input. Output that a slow reader has not taken yet is waited for.
            self._deadline = now + self._linger
        if self._deadline is not None and now >= self._deadline:
            self.abort(self.reason)
        elif self._client.mine.is_gone():
            # A client that half-closed and died, or died while nothing is read from it: only a look tells.
            self.abort("client vanished")

    def abort(self, reason: str) -> None:
        """Cut both streams now."""
        if reason and not self.reason:
            self.reason = reason
        self._client.mine.abort()
        self._engine.mine.abort()

    def side_ended(self, side: _Side) -> None:
        if self._client.ended and self._engine.ended:
            self._client.mine.close()
            self._engine.mine.close()
        elif side is self._engine:
            self._deadline = self._seconds() + self._linger

    def side_lost(self, side: _Side, reason: Lost) -> None:
        self._lost.add(side.name)
        if not reason.clean and not self.reason and not side.ended:
            self.reason = f"{side.name}: {reason.detail}"
        if len(self._lost) == 2:
            if not self._finished:
                self._finished = True
                self._done(self)
        elif side is self._client and not side.ended:
            # The client is gone for good: the Engine must learn it, as it would from a direct client.
            side.other.abort()
        else:
            # What one side said before its end is still on its way to the other.
            side.other.close()
