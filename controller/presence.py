"""Whether a defender is there: what the controller shows, from when it last heard of it."""

from __future__ import annotations

from enum import Enum
from typing import Final

DEAD_AFTER: Final = 45.0
"""Seconds without a byte after which a link is dead (docs/specification/channel.md)."""

OFFLINE_AFTER: Final = 300.0
"""Seconds after which a defender that was not heard of counts as offline."""


class Presence(Enum):
    """*online*: connected, and heard of within 45 seconds. *stale*: heard of within 5 minutes. *offline*:
    anything else, a defender that never came included."""

    ONLINE = "online"
    STALE = "stale"
    OFFLINE = "offline"


def presence(connected: bool, last_heard: float | None, now: float) -> Presence:
    """How a defender is shown that was heard of last at `last_heard`, on the clock of `now` (seconds).

    A clock that went back makes nobody younger than now: what seems to come from the future counts as now.
    """
    if last_heard is None:
        return Presence.OFFLINE
    silent = max(0.0, now - last_heard)
    if connected and silent < DEAD_AFTER:
        return Presence.ONLINE
    return Presence.STALE if silent < OFFLINE_AFTER else Presence.OFFLINE
