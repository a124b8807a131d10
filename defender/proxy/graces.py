"""Streams that may go on for a while, or to their end, though what let them in is gone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Connection(Protocol):
    """What may have a grace: a connection, for the exchange that it serves now."""

    @property
    def under_way(self) -> object | None:
        """The exchange that is being served, None between requests."""


C = TypeVar("C", bound=Connection)


@dataclass(slots=True)
class _Grace:
    """`ends`: for each cause when the grace for it is over, monotonic seconds, None if it is not limited."""

    exchange: object
    ends: dict[str, float | None] = field(default_factory=dict)


class Graces(Generic[C]):
    """The graces that were given. Each is for one exchange: what comes after it on a connection has none."""

    def __init__(self) -> None:
        self._graces: dict[C, _Grace] = {}

    def give(self, connection: C, exchange: object, cause: str, end: float | None) -> bool:
        """Let a stream go on until `end`; False if it has that for this cause already, and keeps it."""
        grace = self._graces.get(connection)
        if grace is None or grace.exchange is not exchange:
            grace = self._graces[connection] = _Grace(exchange)
        if cause in grace.ends:
            return False
        grace.ends[cause] = end
        return True

    def take_back(self, connection: C, cause: str) -> None:
        """The cause is gone: the stream is as good as any."""
        grace = self._graces.get(connection)
        if grace is not None:
            grace.ends.pop(cause, None)
            if not grace.ends:
                del self._graces[connection]

    def forget(self, connection: C) -> None:
        """The connection is over."""
        self._graces.pop(connection, None)

    def due(self, now: float) -> Iterator[tuple[C, str]]:
        """Each stream whose grace is over, with the cause."""
        for connection, grace in list(self._graces.items()):
            if connection.under_way is not grace.exchange:
                del self._graces[connection]
                continue
            for cause, end in grace.ends.items():
                if end is not None and now >= end:
                    yield connection, cause
                    break
