"""What went wrong and has to be told when it is over: lost events, times without a disk, steps of the clock.

Pure: times are arguments, nanoseconds of the monotonic clock (`now`) or of unix time (`wall`).
"""

from __future__ import annotations

from typing import Final

from defender.audit import notes
from defender.contract.audit import Event

#: Seconds by which the wall clock may run apart from the monotonic one between two looks.
CLOCK_STEP: Final = 300.0


class Losses:
    """Events that were dropped: `total` of them, `untold` since the last gap event, and `because` of what."""

    def __init__(self) -> None:
        self.total = self.untold = 0
        self.because = ""
        self._since = 0

    def add(self, count: int, because: str, now: int) -> None:
        """So many more."""
        self.total += count
        if not self.untold:
            self._since = now
        self.untold += count
        self.because = because

    def gap(self, now: int) -> Event:
        """The event that tells of those that are untold."""
        event = notes.gap(self.untold, 0, (now - self._since) / 1e9, self.because)
        self.untold = 0
        return event


class Outage:
    """A time in which nothing could be written."""

    def __init__(self) -> None:
        self._since = -1

    def follow(self, problem: str, before: str, now: int) -> Event | None:
        """Take note of the problem and the one before, "" for none; gives the event when it is over."""
        if problem:
            if self._since < 0:
                self._since = now
            return None
        if not before:
            return None
        seconds, self._since = (now - self._since) / 1e9, -1
        return notes.note("audit_failed", f"nothing could be written for {seconds:.1f} s: {before}", ok=False)


class ClockWatch:
    """Notices when somebody sets the wall clock."""

    def __init__(self, wall: int, now: int) -> None:
        self._apart = wall - now

    def look(self, wall: int, now: int) -> Event | None:
        """The event of a step since the last look, if there was one."""
        apart = wall - now
        step, self._apart = (apart - self._apart) / 1e9, apart
        if abs(step) <= CLOCK_STEP:
            return None
        return notes.note("audit_clock", f"the clock was set by {step:+.0f} s", ok=False)

    @staticmethod
    def behind(last: int, wall: int) -> Event | None:
        """The event of a clock that is behind the last event of the run before (`last`, microseconds)."""
        seconds = last / 1e6 - wall / 1e9
        if seconds <= CLOCK_STEP:
            return None
        return notes.note("audit_clock", f"the clock is {seconds:.0f} s before the last event", ok=False)
