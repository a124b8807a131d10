"""When a defender connects again, so that a fleet that lost its controller does not come back all at once.

Pure: time and chance are arguments.
"""

from __future__ import annotations

from typing import Final

#: After a session that was up for long and was lost: up to this many seconds.
FIRST_SPREAD: Final = 15.0
#: After each attempt that fails: up to 1 s, then twice as much each time, up to the longest.
FIRST_DELAY: Final = 1.0
LONGEST_DELAY: Final = 120.0
#: Seconds that a session must be open for the delays to begin anew.
STABLE: Final = 60.0
#: How many defenders come back in a second where all were asked to go, and the shortest window.
RETURN_RATE: Final = 150.0
SHORTEST_WINDOW: Final = 10.0

#: The codes of ERROR after which it is of no use to come back soon: someone has to do something first.
PATIENT: Final = frozenset({"refused", "revision", "superseded"})


def return_window(defenders: int) -> float:
    """The window in seconds that a controller gives to all its defenders when it goes."""
    return max(SHORTEST_WINDOW, defenders / RETURN_RATE)


class Reconnect:
    """The delays of one defender; `chance` is 0 to 1 and new for each call."""

    __slots__ = ("_failures", "_opened")

    def __init__(self) -> None:
        self._opened: float | None = None
        # Attempts that failed since a session was last stable; the first time nothing was lost.
        self._failures = 1

    def opened(self, now: float) -> None:
        """A WELCOME came."""
        self._opened = now

    def delay(self, now: float, chance: float, *, window: float | None = None, code: str = "") -> float:
        """Seconds until the next attempt: a session was lost, or an attempt failed.

        `window` is that of a GOAWAY, None if there was none; `code` is that of an ERROR by the controller.
        """
        opened, self._opened = self._opened, None
        if opened is not None and now - opened >= STABLE:
            self._failures = 0
        failures = self._failures
        self._failures += 1
        if code in PATIENT:
            return LONGEST_DELAY * (1 + chance) / 2
        if window is not None:
            return window * chance
        if not failures:
            return FIRST_SPREAD * chance
        return min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(failures - 1, 16)) * chance
