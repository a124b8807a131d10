"""What the ports ask of the desk that the channel's sessions are at."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from controller.presence import Presence, presence


class Desk(Protocol):
    """Who is connected; `controller.desk.Desk` is one."""

    def last_heard(self, defender: str) -> float | None:
        """When it was last heard of since the start, in unix seconds."""

    def connected(self) -> Collection[str]:
        """The ids of the defenders whose session is open."""

    def cut(self, defender: str, why: str) -> bool:
        """End a defender's session; whether there was one."""


class Links:
    """The sessions, as they are shown. `desk` is None where there is no channel: nobody is connected."""

    def __init__(self, desk: Desk | None = None) -> None:
        self._desk = desk

    def last_heard(self, defender: str, kept: float | None) -> float | None:
        """When it was last heard of; `kept` is what the store says."""
        heard = None if self._desk is None else self._desk.last_heard(defender)
        return max((each for each in (heard, kept) if each is not None), default=None)

    def is_connected(self, defender: str) -> bool:
        """Whether its session is open."""
        return self._desk is not None and defender in self._desk.connected()

    def presence(self, defender: str, kept: float | None, now: float) -> Presence:
        """Whether it is online, stale or offline."""
        return presence(self.is_connected(defender), self.last_heard(defender, kept), now)

    def cut(self, defender: str, why: str) -> None:
        """End its session, if there is one."""
        if self._desk is not None:
            self._desk.cut(defender, why)
