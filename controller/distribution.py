"""The rollout: which defender is offered which release of one stream, and when.

Inputs in, commands out (`releases` has the commands). The shell performs the commands in order. After every
input that answers with more than `Offer` and `Wake` it saves `state` of the line first, so that a controller
that starts again goes on from there (`restore`).

Invariants:

* A release that a defender refused is never offered to it again, whatever happens in between; nor is the
  same content under another number.
* A release is offered only while its line is *running* or *settled*. Whoever is not reached by it yet keeps
  what it has, or gets the line's base: the last release that settled.
* A defender is offered a position only above the one it holds and above those it was offered in this
  session, and only a release that is signed for it. Where the content it should have does not fit that, a
  `Reissue` is asked for, once.
* Of two releases published on a line the newer stays, in whichever order they come.
* A wave ends when every connected defender of it has answered, and one of them has taken the release. A
  defender that is not connected holds nobody up; it gets the release when it returns.
* Every defender that follows a line has one `Standing`, so that the counts of `Progress` add up.
* What a defender says of itself changes no number: a position that nobody issued is reported (`Ahead`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from controller.lines import Answer, Follower, Line, RolloutError
from controller.releases import (
    AT_ONCE,
    GRADUAL,
    NOTHING,
    Aborted,
    Cause,
    Command,
    Held,
    LineState,
    Phase,
    Plan,
    Position,
    Progress,
    Refusal,
    Release,
    Resumed,
    Standing,
    Superseded,
    Wake,
)
from controller.waves import Waves

__all__ = ["AT_ONCE", "GRADUAL", "Distribution", "RolloutError"]


class Distribution(Waves):
    """One stream's releases over the fleet; see the module. Defenders are known by their ids.

    `now` is a clock in seconds that never goes back.
    """

    # -- inputs: what is published

    def publish(
        self, line: str, release: Release, plan: Plan, now: float, joining: Iterable[str] = ()
    ) -> list[Command]:
        """A new release of a line, for all who follow it. An older one than the current changes nothing.

        Who is `joining` follows the line from this release on, and waits for its wave with what it has. (With
        `assign` it would get what the line had before.)
        """
        answer = Answer()
        self.highest = max(self.highest, release.position)
        current = self._lines.get(line)
        base = None
        if current is not None:
            base = current.base
            if release.position <= current.release.position:
                return [Superseded(line, release.position, current.release.position)]
            if current.phase in (Phase.RUNNING, Phase.HALTED):
                answer.say(Superseded(line, current.release.position, release.position))
        left = [self._move(who, line) for who in joining if self.line_of(who) != line]
        self._drive_all(left, now, answer)
        reissues = {} if current is None or base is None else current.reissues
        kept = {who: again for who, again in reissues.items() if base and again.origin == base.origin}
        members = self._members.setdefault(line, set())
        new = self._lines[line] = Line(line, release, plan, members, base, reissues=kept)
        self._origins[release.position] = release.origin
        self._prune()
        if new.is_open:
            self._open(new, answer)
        self._drive(new, now, answer)
        return answer.commands()

    def reissued(self, line: str, release: Release, now: float) -> list[Command]:
        """What a `Reissue` asked for is signed."""
        answer = Answer()
        self.highest = max(self.highest, release.position)
        current = self._lines.get(line)
        is_live = release.origin in self._live()
        if is_live:
            self._again[release.position] = release
            self._origins[release.position] = release.origin
        for who in sorted(release.audience or ()):
            defender = self._defenders.get(who)
            if defender is None:
                continue
            if defender.asked == release.origin:
                defender.asked = None
            if current is not None and is_live:
                current.reissues[who] = release
            self._arrived(who, defender, now, answer)
        return answer.commands()

    def reissue_failed(self, line: str, origin: Position, defenders: tuple[str, ...]) -> list[Command]:
        """What a `Reissue` asked for could not be signed; each is asked for again when it connects."""
        for who in defenders:
            defender = self._defenders.get(who)
            if defender is not None and defender.line == line and defender.asked == origin:
                defender.asked = None
        return []

    def verified(self, position: Position, now: float) -> list[Command]:
        """A signed bundle proves that this position was issued, though not by what is known here."""
        answer = Answer()
        before, self.highest = self.highest, max(self.highest, position)
        for who, defender in self._defenders.items():
            if defender.online and before < defender.position <= self.highest:
                self._arrived(who, defender, now, answer)
        return answer.commands()

    # -- inputs: who follows what

    def assign(self, who: str, line: str | None, now: float) -> list[Command]:
        """A defender follows another line; None: it follows none and is offered nothing."""
        return self.assign_all({who: line}, now)

    def assign_all(self, lines: Mapping[str, str | None], now: float) -> list[Command]:
        """Several defenders follow other lines from now on: none is offered what another just left."""
        answer = Answer()
        moved = {who: line for who, line in lines.items() if line != self.line_of(who)}
        left = [self._move(who, line) for who, line in lines.items() if who in moved]
        self._drive_all(left, now, answer)
        for who in moved:
            self._arrived(who, self._defenders[who], now, answer)
        return answer.commands()

    def remove(self, who: str, now: float) -> list[Command]:
        """A defender left the fleet."""
        answer = Answer()
        if who in self._defenders:
            left = self._move(who, None)
            del self._defenders[who]
            self._drive_all([left], now, answer)
            for refusals in self._refusals.values():
                refusals.pop(who, None)
            for line in self._lines.values():
                line.reissues.pop(who, None)
        return answer.commands()

    def retire(self, line: str) -> None:
        """Forget a line; raises RolloutError while defenders follow it."""
        if self._members.get(line):
            raise RolloutError(f"{line} is followed by {len(self._members[line])} defenders")
        self._members.pop(line, None)
        self._lines.pop(line, None)
        self._prune()

    # -- inputs: what defenders do

    def connected(self, who: str, held: Held | None, now: float) -> list[Command]:
        """A defender is there, by a first session or by one that replaces another, and holds this."""
        answer = Answer()
        defender = self._defenders.setdefault(who, Follower())
        defender.online = True
        defender.offered = NOTHING
        defender.held = held
        self._examine(who, defender, answer)
        self._arrived(who, defender, now, answer)
        return answer.commands()

    def disconnected(self, who: str, now: float) -> list[Command]:
        """A defender's only session is over."""
        answer = Answer()
        defender = self._defenders.get(who)
        if defender is not None:
            defender.online = False
            defender.offered = NOTHING
            line = self._line_of(defender)
            if line is not None:
                line.awaiting.discard(who)
                self._drive(line, now, answer)
        return answer.commands()

    def acked(self, who: str, held: Held, now: float) -> list[Command]:
        """A defender has verified a release, has it on disk and in force."""
        answer = Answer()
        defender = self._defenders.get(who)
        if defender is None:
            return []
        if defender.offered <= held.position:
            defender.offered = NOTHING
        if held.position >= defender.position:
            defender.held = held
        self._arrived(who, defender, now, answer)
        return answer.commands()

    def refused(self, who: str, position: Position, refusal: Refusal, now: float) -> list[Command]:
        """A defender did not take a release, and keeps what it had."""
        answer = Answer()
        defender = self._defenders.get(who)
        if defender is None:
            return []
        if defender.offered <= position:
            defender.offered = NOTHING
        origin = self.origin_of(position)
        if origin not in self._live():
            return []
        self._refusals.setdefault(origin, {})[who] = refusal
        line = self._line_of(defender)
        if line is not None and line.release.origin == origin and not self._has(defender, line.release):
            line.awaiting.discard(who)
            if line.phase is Phase.RUNNING and line.plan.halts:
                detail = f"{refusal.code}: {refusal.detail}" if refusal.detail else refusal.code
                self._halt(line, Cause.REFUSED, (who,), detail, answer)
        self._arrived(who, defender, now, answer)
        return answer.commands()

    # -- inputs: people and the clock

    def halt(self, line: str, detail: str = "") -> list[Command]:
        """Somebody stops a running release; raises RolloutError if none is running."""
        answer = Answer()
        self._halt(self._expect(line, Phase.RUNNING), Cause.OPERATOR, (), detail, answer)
        return answer.commands()

    def resume(self, line: str, now: float) -> list[Command]:
        """Somebody lets a halted release go on, without those that the wave waited for; raises RolloutError
        if it is not halted."""
        answer = Answer()
        current = self._expect(line, Phase.HALTED)
        current.phase = Phase.RUNNING
        current.halted = None
        answer.say(Resumed(line, current.release.position))
        if current.is_open:
            self._open(current, answer)
        elif current.picked:
            current.awaiting.clear()
            current.proven = True
            for who in sorted(current.reached):
                self._serve(who, self._defenders[who], current, answer)
        self._drive(current, now, answer)
        return answer.commands()

    def abort(self, line: str) -> list[Command]:
        """Somebody gives a release up that has not settled; raises RolloutError if it has. Who has it keeps
        it: publish older content again to take it back."""
        current = self._expect(line, Phase.RUNNING, Phase.HALTED)
        current.phase = Phase.ABORTED
        current.halted = None
        current.deadline = None
        answer = Answer()
        answer.say(Aborted(line, current.release.position))
        self._serve_all(current, answer)
        return answer.commands()

    def tick(self, now: float) -> list[Command]:
        """The time of a `Wake` has come; any other time does no harm."""
        answer = Answer()
        for line in self._lines.values():
            if line.phase is not Phase.RUNNING or line.deadline is None or now < line.deadline:
                continue
            line.deadline = None
            if not line.is_open and line.plan.halts:
                silent = sorted(line.awaiting or line.picked)
                self._halt(line, Cause.SILENT, tuple(silent), "", answer)
                continue
            if not line.is_open:
                line.awaiting.clear()
                line.proven = True
            self._drive(line, now, answer)
        return answer.commands()

    # -- keeping and taking up again

    def state(self, line: str) -> LineState:
        """What to keep of a line."""
        return self._expect(line).state()

    def restore(self, state: LineState, now: float) -> list[Command]:
        """A line as it was kept, before anybody is connected; its members are those assigned to it.

        A release that was running waits its patience for those who are coming back.
        """
        members = self._members.setdefault(state.line, set())
        line = self._lines[state.line] = Line(
            state.line,
            state.release,
            state.plan,
            members,
            state.base,
            phase=state.phase,
            wave=state.wave,
            reached=set(state.reached) & members,
            picked=set(state.picked) & members,
            proven=state.proven and bool(state.picked & members),
            halted=state.halted,
        )
        for again in state.reissues:
            self._again[again.position] = again
            line.reissues.update(dict.fromkeys(again.audience or (), again))
        known = [line.release, *state.reissues, *([line.base] if line.base else [])]
        self.highest = max(self.highest, *(release.position for release in known))
        self._origins.update({release.position: release.origin for release in known})
        if line.phase is not Phase.RUNNING or not (line.is_open or line.picked):
            return []
        line.deadline = now + line.plan.patience
        return [Wake(line.deadline)]

    def restore_defender(self, who: str, line: str | None, held: Held | None) -> None:
        """A defender as it was known, before `restore` of its line: what it follows and last said to hold."""
        self._defenders[who] = Follower(line=line, held=held)
        if line is not None:
            self._members.setdefault(line, set()).add(who)

    def restore_refusal(self, who: str, position: Position, refusal: Refusal) -> None:
        """A refusal as it was known, after `restore` of the lines, by the position or origin it was of."""
        origin = self.origin_of(position)
        if origin in self._live():
            self._refusals.setdefault(origin, {})[who] = refusal

    # -- what is there

    def lines(self) -> tuple[str, ...]:
        """The lines that something was published on."""
        return tuple(self._lines)

    def origin_of(self, position: Position) -> Position:
        """Where the content that stands at a position was published: keep a refusal by that."""
        return self._origins.get(position, position)

    def line_of(self, who: str) -> str | None:
        """The line that a defender follows."""
        defender = self._defenders.get(who)
        return None if defender is None else defender.line

    def desired(self, who: str) -> Release | None:
        """The bundle that a defender should have in force by now; None if it is to keep what it has."""
        defender = self._defenders.get(who)
        line = None if defender is None else self._line_of(defender)
        if defender is None or line is None:
            return None
        candidates = list(self._candidates(who, line))
        for release in (line.release, *candidates):
            if self._has(defender, release):
                return self._again.get(defender.position, release)
        for release in candidates:
            if not self._was_refused(who, release):
                bundle = line.bundle_for(who, release)
                is_behind = release is line.base and bundle.position < defender.position
                return None if is_behind else bundle
        return None

    def standing(self, who: str) -> tuple[Standing, Refusal | None]:
        """How a defender stands to the current release of its line, which there must be."""
        defender = self._defenders[who]
        line = self._line_of(defender)
        assert line is not None, who
        return self._standing(who, defender, line)

    def standings(self, line: str) -> Iterator[tuple[str, Standing, Refusal | None]]:
        """How each defender that follows a line stands to its current release, in the order of their ids."""
        current = self._expect(line)
        for who in sorted(current.members):
            yield (who, *self._standing(who, self._defenders[who], current))

    def progress(self, line: str) -> Progress:
        """How far the current release of a line went."""
        current = self._expect(line)
        counts = dict.fromkeys(Standing, 0)
        for who in current.members:
            counts[self._standing(who, self._defenders[who], current)[0]] += 1
        return current.progress(counts)
