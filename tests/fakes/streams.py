"""A stream in memory: what was written, whether it is paused, and the peer's side by hand."""

from __future__ import annotations

from defender.streams.interface import Lost, Receiver


class MemoryStream:
    """Implements `defender.streams.interface.Stream`; the test plays the kernel and the peer."""

    def __init__(self, peer_address: tuple[str, int] | None = None) -> None:
        self.receiver: Receiver | None = None
        self.written = bytearray()
        self.paused = False
        self.half_closed = False
        self.closed = False
        self.aborted = False
        self.gone = False
        self.pending = 0
        self.peer_address = peer_address

    def set_receiver(self, receiver: Receiver) -> None:
        self.receiver = receiver

    def write(self, data: bytes) -> None:
        if not (self.half_closed or self.closed or self.aborted):
            self.written += data

    def half_close(self) -> None:
        self.half_closed = True

    def close(self) -> None:
        self.closed = True

    def abort(self, *, reset: bool = False) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def is_gone(self) -> bool:
        return self.gone

    # -- the peer

    def _to(self) -> Receiver:
        assert self.receiver is not None, "nobody took this stream"
        return self.receiver

    def deliver(self, data: bytes) -> None:
        """The peer sends `data`."""
        self._to().data_received(data)

    def end(self) -> None:
        """The peer half-closes."""
        self._to().end_received()

    def lose(self, *, clean: bool = True, detail: str = "") -> None:
        """The connection is gone."""
        self._to().connection_lost(Lost(clean, detail))

    def fill(self) -> None:
        """The peer does not read any more."""
        self._to().write_full()

    def drain(self) -> None:
        """The peer reads again."""
        self._to().write_drained()

    def take(self) -> bytes:
        """What was written since the last look."""
        taken = bytes(self.written)
        self.written.clear()
        return taken
