"""Waves: how far a release goes, and what one defender is offered of it.

The lower half of `distribution`, which has the inputs and says what holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from controller.lines import Answer, Follower, Line, RolloutError
from controller.releases import (
    NOTHING,
    Advanced,
    Ahead,
    Cause,
    Conflict,
    Halted,
    Phase,
    Position,
    Refusal,
    Release,
    Settled,
    Standing,
    Wake,
    turn_order,
)


class Waves:
    """The lines of one stream and who follows them; what is decided goes into the `Answer` given."""

    def __init__(self) -> None:
        self.highest = NOTHING
        """The newest position that was issued; the next one is above it."""
        self._lines: dict[str, Line] = {}
        self._members: dict[str, set[str]] = {}
        self._defenders: dict[str, Follower] = {}
        self._refusals: dict[Position, dict[str, Refusal]] = {}
        self._again: dict[Position, Release] = {}
        self._origins: dict[Position, Position] = {}

    # -- waves

    def _drive(self, line: Line, now: float, answer: Answer) -> None:
        """Take a running release as far as the answers allow."""
        if line.phase is not Phase.RUNNING:
            return
        while not line.is_open:
            if not line.picked:
                goal = line.plan.waves[line.wave].goal(len(line.members))
                missing = goal - len(line.reached)
                if missing > 0 and not self._pick(line, missing, now, answer):
                    return
                if missing <= 0:
                    self._advance(line, answer)
                    continue
            if line.awaiting or not line.proven:
                return
            self._advance(line, answer)
        if not line.awaiting and line.deadline is None:
            line.phase = Phase.SETTLED
            line.base = line.release
            self._prune()
            answer.say(Settled(line.name, line.release.position))

    def _pick(self, line: Line, count: int, now: float, answer: Answer) -> bool:
        """Choose who is in the wave, of those that are connected; False if there is nobody to choose."""
        candidates = [
            who
            for who in line.members
            if who not in line.reached
            and (defender := self._defenders[who]).online
            and not self._is_ahead(defender)
            and not self._was_refused(who, line.release)
        ]
        for who in turn_order(line.release.position, candidates)[:count]:
            line.picked.add(who)
            line.reached.add(who)
            self._weigh(who, self._defenders[who], line)
            self._serve(who, self._defenders[who], line, answer)
        if line.picked:
            line.deadline = now + line.plan.patience
            answer.say(Wake(line.deadline))
        return bool(line.picked)

    def _advance(self, line: Line, answer: Answer) -> None:
        line.wave += 1
        line.picked.clear()
        line.awaiting.clear()
        line.proven = False
        line.deadline = None
        answer.say(Advanced(line.name, line.release.position, line.wave + 1, len(line.plan.waves) + 1))
        if line.is_open:
            self._open(line, answer)

    def _open(self, line: Line, answer: Answer) -> None:
        """The release is everybody's."""
        for who in line.members:
            self._weigh(who, self._defenders[who], line)
        self._serve_all(line, answer)

    def _halt(
        self, line: Line, cause: Cause, defenders: tuple[str, ...], detail: str, answer: Answer
    ) -> None:
        line.phase = Phase.HALTED
        line.deadline = None
        line.halted = Halted(line.name, line.release.position, cause, defenders, detail)
        answer.say(line.halted)

    # -- one defender

    def _arrived(self, who: str, defender: Follower, now: float, answer: Answer) -> None:
        """Something about a defender changed: see what it lacks, and whether others waited for it."""
        line = self._line_of(defender)
        if line is None:
            return
        self._weigh(who, defender, line)
        self._serve(who, defender, line, answer)
        self._drive(line, now, answer)

    def _weigh(self, who: str, defender: Follower, line: Line) -> None:
        """Note whether the wave waits for a member, and whether it proves the wave."""
        has = self._has(defender, line.release)
        if has and who in line.picked:
            line.proven = True
        silent = not has and not self._was_refused(who, line.release)
        called = line.is_open or who in line.picked
        if defender.online and called and silent and not self._is_ahead(defender):
            line.awaiting.add(who)
        else:
            line.awaiting.discard(who)

    def _serve_all(self, line: Line, answer: Answer) -> None:
        for who in sorted(line.members):
            self._serve(who, self._defenders[who], line, answer)

    def _serve(self, who: str, defender: Follower, line: Line, answer: Answer) -> None:
        """Offer a connected defender what it should have and does not."""
        if not defender.online or self._is_ahead(defender) or self._has(defender, line.release):
            return
        for release in self._candidates(who, line):
            if self._was_refused(who, release):
                continue
            bundle = line.bundle_for(who, release)
            if self._has(defender, release) or defender.offered == bundle.position:
                return
            if bundle.position > max(defender.position, defender.offered) and bundle.is_for(who):
                defender.offered = bundle.position
                answer.offer(bundle.position, who)
            elif release is line.release and defender.asked != release.origin:
                defender.asked = release.origin
                answer.reissue(line.name, release.origin, who)
            return

    def _candidates(self, who: str, line: Line) -> Iterator[Release]:
        """What a member may be offered, best first."""
        if line.is_offered_to(who):
            yield line.release
        if line.base is not None and line.base.origin != line.release.origin:
            yield line.base

    def _has(self, defender: Follower, release: Release) -> bool:
        """Whether a defender holds a release, or the same content signed again."""
        held = defender.held
        if held is None:
            return False
        bundle = self._again.get(held.position, release)
        return (
            bundle.origin == release.origin
            and held.position == bundle.position
            and held.digest == bundle.digest
        )

    def _standing(self, who: str, defender: Follower, line: Line) -> tuple[Standing, Refusal | None]:
        if self._has(defender, line.release):
            return Standing.ACKED, None
        refusal = self._refusals.get(line.release.origin, {}).get(who)
        if refusal is not None:
            return Standing.REFUSED, refusal
        if not defender.online:
            return Standing.OFFLINE, None
        bundles = (line.release, line.bundle_for(who, line.release))
        sent = any(defender.offered == each.position for each in bundles)
        return (Standing.SENT if sent else Standing.QUEUED), None

    def _examine(self, who: str, defender: Follower, answer: Answer) -> None:
        """Report what a defender cannot have from here."""
        held = defender.held
        if held is None:
            return
        if self._is_ahead(defender):
            answer.say(Ahead(who, held))
        line = self._line_of(defender)
        if line is None:
            return
        known = [release for release in (line.release, line.base) if release is not None]
        known += [line.bundle_for(who, release) for release in known]
        if any(each.position == held.position and each.digest != held.digest for each in known):
            answer.say(Conflict(who, held))

    def _is_ahead(self, defender: Follower) -> bool:
        return defender.position > self.highest

    def _was_refused(self, who: str, release: Release) -> bool:
        return who in self._refusals.get(release.origin, ())

    # -- small

    def _move(self, who: str, line: str | None) -> Line | None:
        """Let a defender follow another line; returns the one it left."""
        defender = self._defenders.setdefault(who, Follower())
        left = self._line_of(defender)
        if defender.line is not None:
            self._members[defender.line].discard(who)
        if left is not None:
            left.forget(who)
        defender.line = line
        defender.asked = None
        if line is not None:
            self._members.setdefault(line, set()).add(who)
        return left

    def _drive_all(self, lines: Iterable[Line | None], now: float, answer: Answer) -> None:
        for line in {each.name: each for each in lines if each is not None}.values():
            self._drive(line, now, answer)

    def _line_of(self, defender: Follower) -> Line | None:
        return None if defender.line is None else self._lines.get(defender.line)

    def _expect(self, name: str, *phases: Phase) -> Line:
        line = self._lines.get(name)
        if line is None:
            raise RolloutError(f"nothing was published on {name!r}")
        if phases and line.phase not in phases:
            wanted = " or ".join(phase.value for phase in phases)
            version = line.release.position.version
            raise RolloutError(f"version {version} of {name!r} is {line.phase.value}, not {wanted}")
        return line

    def _live(self) -> set[Position]:
        """The origins that may still be offered to somebody."""
        found = {line.release.origin for line in self._lines.values()}
        return found | {line.base.origin for line in self._lines.values() if line.base is not None}

    def _prune(self) -> None:
        """Forget what was said of, and signed for, content that is never offered again."""
        live = self._live()
        self._again = {position: each for position, each in self._again.items() if each.origin in live}
        self._origins = {position: origin for position, origin in self._origins.items() if origin in live}
        self._refusals = {origin: who for origin, who in self._refusals.items() if origin in live}
