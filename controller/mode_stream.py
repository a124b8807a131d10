"""The mode stream: orders of listener modes on their way, each to the defenders that it was for.

Inputs in, commands out, as `distribution`. Every order is a line of its own, and a defender follows the
newest order that it was part of; so an order's progress counts those that nobody told otherwise since. Orders
go out at once: a port that is taken on one host is no reason to leave the others as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

from controller.distribution import AT_ONCE, Distribution
from controller.fleet import Mode, ModeOrder
from controller.releases import Command, Release


class ModeStream:
    """See the module; an order has an id of the shell's choice."""

    def __init__(self) -> None:
        self.stream = Distribution()
        self._modes: dict[str, Mode] = {}

    def ordered(self, order: str, wanted: ModeOrder, release: Release, now: float) -> list[Command]:
        """An order whose bundle was signed for its defenders goes out."""
        self._modes[order] = wanted.mode
        left = {self.stream.line_of(who) for who in wanted.defenders}
        commands = self.stream.publish(order, release, AT_ONCE, now, sorted(wanted.defenders))
        for line in left - {None, order}:
            self._drop(line)
        return commands

    def removed(self, defender: str, now: float) -> list[Command]:
        """A defender left the fleet."""
        line = self.stream.line_of(defender)
        commands = self.stream.remove(defender, now)
        self._drop(line)
        return commands

    def mode_of(self, defender: str) -> Mode | None:
        """What was ordered for a defender last; None if nothing was, and it listens as its settings say."""
        line = self.stream.line_of(defender)
        return None if line is None else self._modes.get(line)

    def restore_orders(self, modes: Mapping[str, Mode]) -> None:
        """What the orders said that still have defenders, by their ids; restore `stream` as its own."""
        self._modes.update(modes)

    def _drop(self, line: str | None) -> None:
        """Forget an order that nobody follows any more."""
        if line is not None and not any(self.stream.standings(line)):
            self.stream.retire(line)
            self._modes.pop(line, None)
