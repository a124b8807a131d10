"""What a listener and the proxy know of each other: two protocols and a value, all pure.

The listener authenticates a connection and hands it over (`Accept`); from then on it only needs to end it,
politely or at once (`Connection`), and to hear when it has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from defender.contract.facts import Subject
from defender.streams.interface import Stream


class Connection(Protocol):
    """One accepted connection, as the listener sees it. Both methods may come after its end."""

    def close_when_idle(self) -> None:
        """Close now if no request or stream is open, else as soon as the last one has ended.

        A request whose first bytes have arrived counts as open.
        """

    def abort(self, reason: str = "aborted") -> None:
        """Close now, whatever is open, and record `reason` as why.

        Its `closed` is called, in this turn of the reactor or a later one.
        """


class Accept(Protocol):
    """Takes an authenticated connection over."""

    def __call__(self, stream: Stream, subject: Subject, closed: Callable[[], None]) -> Connection:
        """Serve `subject` on `stream`.

        Args:
            stream: has no receiver yet; the callee sets one.
            subject: who was proven to be at the other end.
            closed: to be called once, when the stream's connection is lost; a second call does nothing.
        """


@dataclass(frozen=True, slots=True)
class Refusal:
    """A peer that was not let in.

    `check` is the short name of the failed check ("" if unknown, as for a peer that went away), `subject`
    the best-known name of who it was ("" if none). `address` is an IP text, None on a unix socket.
    """

    via: str
    check: str
    detail: str
    subject: str = ""
    address: str | None = None
    port: int = 0
