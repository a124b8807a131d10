"""What the proxy knows about a byte stream: two protocols and the reason a stream ended.

A stream is one full-duplex connection, in the clear or under TLS. Everything above this package is written
against these names, so that a faster transport can take the place of ours without a change to the proxy.

Order of calls on a receiver::

    (data_received | write_full | write_drained)*  end_received?  (write_full | write_drained)*
    connection_lost

``connection_lost`` is exactly one and the last. ``end_received`` comes at most once, after the last byte.
``write_full`` and ``write_drained`` alternate, starting with ``write_full``; the last ``write_full`` may stay
without its ``write_drained`` when the connection is lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

HIGH_WATER = 128 * 1024
"""Bytes pending above which a stream calls `Receiver.write_full`."""

LOW_WATER = 32 * 1024
"""Bytes pending below which a stream that was full calls `Receiver.write_drained`."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Why a stream ended.

    ``clean`` holds when every byte the peer meant to send was received up to its own end mark (FIN, or
    close_notify under TLS), or when this side closed the stream itself. It is false for a reset, a time-out,
    an abort and a truncation: TLS whose TCP connection ended without close_notify. ``detail`` is one line for
    a log.
    """

    clean: bool
    detail: str


class Receiver(Protocol):
    """Who is told what happens on a stream. No method is called before `Stream.set_receiver`.

    An exception raised by any of these methods is logged and the stream is aborted.
    """

    def data_received(self, data: bytes) -> None:
        """Bytes from the peer, never empty, at most 256 KiB at once; not called while reading is paused."""

    def end_received(self) -> None:
        """The peer ended its direction cleanly; writing still works. Not called while reading is paused."""

    def write_full(self) -> None:
        """More than `HIGH_WATER` bytes are pending: write no more until `write_drained`.

        May be called from inside `Stream.write`.
        """

    def write_drained(self) -> None:
        """Fewer than `LOW_WATER` bytes are pending again, or the output is being thrown away."""

    def connection_lost(self, reason: Lost) -> None:
        """The stream is gone and its descriptor closed."""


class Stream(Protocol):
    """One full-duplex byte stream.

    Every method may be called at any time, from inside any method of the receiver too, and after the end.
    """

    def set_receiver(self, receiver: Receiver) -> None:
        """Take ``receiver`` from now on; before the first one nothing is read. May be called again."""

    def write(self, data: bytes) -> None:
        """Send ``data`` as soon as the kernel takes it; never blocks, never raises.

        After `half_close`, `close`, `abort` or the loss of the connection it is silently dropped.
        """

    def half_close(self) -> None:
        """After what is pending: end our direction (FIN, close_notify under TLS); reading goes on.

        When the peer has ended its own direction too, the stream closes by itself.
        """

    def close(self) -> None:
        """After what is pending: `half_close`, then throw input away for a bounded time, then close.

        The receiver hears nothing more than `Receiver.connection_lost`.
        """

    def abort(self, *, reset: bool = False) -> None:
        """Close now. Pending output is lost and then TCP sends RST, as it does when ``reset`` asks for it.

        `Receiver.connection_lost` follows in a later turn of the reactor, nothing else does.
        """

    def pause_reading(self) -> None:
        """Deliver neither data nor the end until `resume_reading`. Takes effect at once."""

    def resume_reading(self) -> None:
        """Deliver again; the first call of the receiver comes in a later turn of the reactor."""

    def is_gone(self) -> bool:
        """True when nobody can read what we write any more, though no event has said so.

        A stream whose reading is paused or has ended, and which has nothing to write, is not watched by the
        reactor: a peer that vanished is found only here. For a sweep every few seconds (two system calls).
        Output of an Engine that is still unread keeps a unix stream from being gone.
        """

    @property
    def pending(self) -> int:
        """Bytes accepted by `write` and not yet given to the kernel."""

    @property
    def peer_address(self) -> tuple[str, int] | None:
        """(IP text, port) of the peer; IPv4-mapped addresses unmapped, no scope. None on a unix socket."""
