"""What the rollout remembers while it runs: of a line, of a defender, of its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from controller.releases import (
    NOTHING,
    Command,
    Halted,
    Held,
    LineState,
    Offer,
    Phase,
    Plan,
    Position,
    Progress,
    Reissue,
    Release,
    Standing,
)


class RolloutError(Exception):
    """Something that cannot be asked of a rollout in its phase; the text is for the person who asked."""


@dataclass(slots=True)
class Line:
    """A line's current release, and how far it went. `awaiting` are connected, offered it, and silent."""

    name: str
    release: Release
    plan: Plan
    members: set[str]
    base: Release | None = None
    phase: Phase = Phase.RUNNING
    wave: int = 0
    reached: set[str] = field(default_factory=set)
    picked: set[str] = field(default_factory=set)
    proven: bool = False
    halted: Halted | None = None
    awaiting: set[str] = field(default_factory=set)
    deadline: float | None = None
    reissues: dict[str, Release] = field(default_factory=dict)

    @property
    def is_open(self) -> bool:
        """Whether the last wave was reached: the release is everybody's."""
        return self.wave >= len(self.plan.waves)

    def is_offered_to(self, defender: str) -> bool:
        """Whether the current release may be offered to a member now."""
        if self.phase not in (Phase.RUNNING, Phase.SETTLED):
            return False
        return self.is_open or defender in self.reached

    def bundle_for(self, defender: str, release: Release) -> Release:
        """The bundle with a release's content that was signed last for this defender."""
        again = self.reissues.get(defender)
        return again if again is not None and again.origin == release.origin else release

    def progress(self, counts: Mapping[Standing, int]) -> Progress:
        """How far it went, with the members counted by their standing."""
        return Progress(
            position=self.release.position,
            phase=self.phase,
            wave=self.wave + 1,
            waves=len(self.plan.waves) + 1,
            total=len(self.members),
            acked=counts[Standing.ACKED],
            refused=counts[Standing.REFUSED],
            offline=counts[Standing.OFFLINE],
            sent=counts[Standing.SENT],
            queued=counts[Standing.QUEUED],
        )

    def state(self) -> LineState:
        """What is to be kept of it."""
        return LineState(
            line=self.name,
            release=self.release,
            base=self.base,
            plan=self.plan,
            phase=self.phase,
            wave=self.wave,
            reached=frozenset(self.reached),
            picked=frozenset(self.picked),
            proven=self.proven,
            halted=self.halted,
            reissues=tuple(sorted(set(self.reissues.values()), key=lambda release: release.position)),
        )

    def forget(self, defender: str) -> None:
        """A member went elsewhere."""
        for group in (self.members, self.reached, self.picked, self.awaiting):
            group.discard(defender)
        if not self.picked:
            self.proven = False


@dataclass(slots=True)
class Follower:
    """What is known of a defender. `offered` is the highest position it was offered in this session and has
    not answered, `asked` the origin that is being signed for it again."""

    line: str | None = None
    online: bool = False
    held: Held | None = None
    offered: Position = NOTHING
    asked: Position | None = None

    @property
    def position(self) -> Position:
        return NOTHING if self.held is None else self.held.position


class Answer:
    """Collects commands: what happened first, then what is to be signed and sent, each in one command."""

    def __init__(self) -> None:
        self._said: list[Command] = []
        self._reissues: dict[tuple[str, Position], list[str]] = {}
        self._offers: dict[Position, list[str]] = {}

    def say(self, command: Command) -> None:
        self._said.append(command)

    def reissue(self, line: str, origin: Position, defender: str) -> None:
        self._reissues.setdefault((line, origin), []).append(defender)

    def offer(self, position: Position, defender: str) -> None:
        self._offers.setdefault(position, []).append(defender)

    def commands(self) -> list[Command]:
        reissues = [Reissue(line, origin, tuple(who)) for (line, origin), who in self._reissues.items()]
        offers = [Offer(position, tuple(who)) for position, who in self._offers.items()]
        return [*self._said, *reissues, *offers]
