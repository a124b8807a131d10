"""The rollout, walked through every order of events: what must never happen does not happen."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from controller.distribution import AT_ONCE, Distribution
from controller.releases import (
    Command,
    Halted,
    Held,
    Offer,
    Phase,
    Plan,
    Position,
    Refusal,
    Reissue,
    Release,
    Standing,
    Wave,
)
from controller.rollout_documents import dump_state, load_state

WHO = st.sampled_from(["a", "b", "c", "d", "e", "f"])
LINES = st.sampled_from(["p", "q"])
PLANS = st.sampled_from([AT_ONCE, Plan((Wave(1), Wave(1, 50)), halts=True, patience=10), Plan((Wave(2),))])
BAD = Refusal("schema", "from the future")


class Walk(RuleBasedStateMachine):
    """A fleet whose defenders and operators do what they like, and a model of what may be offered."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = Distribution()
        self.now = 0.0
        self.next = 1
        self.signed: dict[Position, tuple[str, Release]] = {}
        # What each defender really has, what it was sent in its session, and what it refused ever.
        self.online: set[str] = set()
        self.held: dict[str, Held] = {}
        self.inbox: dict[str, list[Position]] = {}
        self.refused: set[tuple[str, Position]] = set()
        self.follows: dict[str, str] = {}
        self.wanted: list[tuple[str, Position, tuple[str, ...]]] = []

    def perform(self, commands: list[Command]) -> None:
        """Do what a shell does, and hold each offer to what was promised."""
        for command in commands:
            if isinstance(command, Offer):
                line, release = self.signed[command.position]
                for who in command.defenders:
                    assert who in self.online, "offered to one that is away"
                    assert self.follows[who] == line, "offered to one that follows another line"
                    assert release.is_for(who), "offered to one it was not signed for"
                    assert (who, release.origin) not in self.refused, "offered again after a refusal"
                    before = self.held.get(who)
                    assert before is None or release.position > before.position, "offered something older"
                    assert all(release.position > each for each in self.inbox[who]), "offered out of order"
                    state = self.stream.state(line)
                    stopped = state.phase in (Phase.HALTED, Phase.ABORTED)
                    if stopped and release.origin == state.release.origin:
                        raise AssertionError("offered after a stop")
                    self.inbox[who].append(release.position)
            elif isinstance(command, Reissue):
                for who in command.defenders:
                    assert (who, command.origin) not in self.refused, "signed again after a refusal"
                self.wanted.append((command.line, command.origin, command.defenders))

    def held_by(self, who: str) -> Held | None:
        return self.held.get(who)

    # -- what happens

    @initialize(lines=st.tuples(*[LINES] * 4), plan=PLANS)
    def begin(self, lines: tuple[str, ...], plan: Plan) -> None:
        for who, line in zip("abcd", lines, strict=True):
            self.follow(who, line)
            self.connect(who)
        self.publish("p", plan, False)

    @rule(who=WHO, line=LINES)
    def follow(self, who: str, line: str) -> None:
        self.follows[who] = line
        self.perform(self.stream.assign(who, line, self.now))

    @rule(who=WHO)
    def leave(self, who: str) -> None:
        """Removed, and whatever enrols under this letter later is another host: it has refused nothing."""
        for known in (self.follows, self.held, self.inbox):
            known.pop(who, None)
        self.online.discard(who)
        self.refused = {each for each in self.refused if each[0] != who}
        self.perform(self.stream.remove(who, self.now))

    @rule(who=WHO)
    def connect(self, who: str) -> None:
        self.online.add(who)
        self.inbox[who] = []
        self.perform(self.stream.connected(who, self.held_by(who), self.now))

    @rule(who=WHO)
    def disconnect(self, who: str) -> None:
        self.online.discard(who)
        self.inbox[who] = []
        self.perform(self.stream.disconnected(who, self.now))

    @rule(who=WHO)
    def take(self, who: str) -> None:
        """Put the next thing in the inbox in force, and say so."""
        if self.inbox.get(who):
            position = self.inbox[who].pop(0)
            self.held[who] = Held(position, self.signed[position][1].digest)
            self.perform(self.stream.acked(who, self.held[who], self.now))

    @rule(who=WHO)
    def take_and_lose_the_link(self, who: str) -> None:
        if self.inbox.get(who):
            position = self.inbox[who].pop(0)
            self.held[who] = Held(position, self.signed[position][1].digest)
            self.disconnect(who)

    @rule(who=WHO)
    def refuse(self, who: str) -> None:
        if self.inbox.get(who):
            position = self.inbox[who].pop(0)
            origin = self.signed[position][1].origin
            self.refused.add((who, origin))
            must_halt = False
            if self.follows[who] in self.stream.lines():
                state = self.stream.state(self.follows[who])
                running = state.phase is Phase.RUNNING and state.plan.halts
                must_halt = running and state.release.origin == origin
            commands = self.stream.refused(who, position, BAD, self.now)
            assert must_halt == any(isinstance(each, Halted) for each in commands)
            self.perform(commands)

    @rule(line=LINES, plan=PLANS, small=st.booleans())
    def publish(self, line: str, plan: Plan, small: bool) -> None:
        self.next += 1
        position = Position(1, self.next)
        audience = frozenset(who for who in self.follows if self.follows[who] == line) if small else None
        release = Release(position, bytes([self.next % 256]), position, audience)
        self.signed[position] = (line, release)
        self.perform(self.stream.publish(line, release, plan, self.now))
        assert self.stream.state(line).release == release

    @rule(line=LINES, plan=PLANS, joining=st.sets(WHO))
    def publish_and_take_over(self, line: str, plan: Plan, joining: set[str]) -> None:
        """A new version with another target: some come to it from elsewhere."""
        self.next += 1
        position = Position(1, self.next)
        release = Release(position, bytes([self.next % 256]), position)
        self.signed[position] = (line, release)
        self.follows.update(dict.fromkeys(joining, line))
        self.perform(self.stream.publish(line, release, plan, self.now, joining))

    @rule(line=LINES)
    def publish_late(self, line: str) -> None:
        """The loser of a race arrives after the winner."""
        if line in self.stream.lines():
            newest = self.stream.state(line)
            late = Release(Position(0, self.next), b"late", Position(0, self.next))
            commands = self.stream.publish(line, late, AT_ONCE, self.now)
            assert len(commands) == 1
            assert self.stream.state(line) == newest

    @precondition(lambda self: self.wanted)
    @rule(works=st.booleans())
    def sign_again(self, works: bool) -> None:
        line, origin, defenders = self.wanted.pop(0)
        if not works:
            self.perform(self.stream.reissue_failed(line, origin, defenders))
            return
        self.next += 1
        position = Position(1, self.next)
        release = Release(position, bytes([self.next % 256]), origin, frozenset(defenders))
        self.signed[position] = (line, release)
        self.perform(self.stream.reissued(line, release, self.now))

    @rule(line=LINES, what=st.sampled_from(["halt", "resume", "abort"]))
    def decide(self, line: str, what: str) -> None:
        if line not in self.stream.lines():
            return
        phase = self.stream.state(line).phase
        if what == "halt" and phase is Phase.RUNNING:
            self.perform(self.stream.halt(line))
        elif what == "resume" and phase is Phase.HALTED:
            self.perform(self.stream.resume(line, self.now))
        elif what == "abort" and phase in (Phase.RUNNING, Phase.HALTED):
            self.perform(self.stream.abort(line))

    @rule(seconds=st.sampled_from([1, 10, 100]))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds
        self.perform(self.stream.tick(self.now))

    @rule()
    def restart(self) -> None:
        """The controller is killed; what it had kept is all that is left, and nobody is connected."""
        old, self.stream = self.stream, Distribution()
        for who in self.online:
            self.inbox[who] = []
        self.online.clear()
        self.wanted.clear()
        for who, line in self.follows.items():
            self.stream.restore_defender(who, line, self.held.get(who))
        for line in old.lines():
            self.perform(self.stream.restore(load_state(dump_state(old.state(line))), self.now))
        for who, origin in self.refused:
            self.stream.restore_refusal(who, origin, BAD)

    # -- what always holds

    @invariant()
    def the_counts_add_up(self) -> None:
        for line in self.stream.lines():
            progress = self.stream.progress(line)
            members = {who for who, followed in self.follows.items() if followed == line}
            assert progress.total == len(members)
            counted = progress.acked + progress.refused + progress.offline + progress.waiting
            assert counted == progress.total
            assert {who for who, _, _ in self.stream.standings(line)} == members

    @invariant()
    def who_is_acked_has_it(self) -> None:
        for line in self.stream.lines():
            origin = self.stream.state(line).release.origin
            for who, standing, _ in self.stream.standings(line):
                held = self.held.get(who)
                if standing is Standing.ACKED:
                    assert held is not None
                    assert self.signed[held.position][1].origin == origin

    @invariant()
    def nobody_who_is_there_lacks_what_is_everybodys(self) -> None:
        """Settled or in its last wave, the release is with everyone who is connected, or on its way, or was
        refused."""
        for line in self.stream.lines():
            state = self.stream.state(line)
            is_open = state.phase is Phase.SETTLED or (
                state.phase is Phase.RUNNING and state.wave >= len(state.plan.waves)
            )
            if is_open:
                on_its_way = {who for _, _, names in self.wanted for who in names}
                for who, standing, _ in self.stream.standings(line):
                    if standing is Standing.QUEUED:
                        failed = self.stream.line_of(who) == line and who not in on_its_way
                        assert not failed or who in self.unsigned(line)

    def unsigned(self, line: str) -> set[str]:
        """Who would need a bundle signed again, that could not be: they get it when they connect next."""
        release = self.stream.state(line).release
        found = set()
        for who in self.online:
            seen = [*self.inbox[who], *([self.held[who].position] if who in self.held else [])]
            if not release.is_for(who) or any(each >= release.position for each in seen):
                found.add(who)
        return found


class Gentle(Walk):
    """The same, and at the end everything works: everybody comes, answers, and nobody says no."""

    def teardown(self) -> None:
        for line in ("p", "q"):
            self.publish(line, AT_ONCE, False)
        for who in list(self.follows):
            self.connect(who)
        while self.wanted or any(self.inbox.values()):
            while self.wanted:
                self.sign_again(True)
            for who in list(self.inbox):
                self.take(who)
        self.time_passes(100)
        self.the_counts_add_up()
        for line in ("p", "q"):
            progress = self.stream.progress(line)
            assert progress.acked == progress.total
            assert progress.phase is Phase.SETTLED
        for who in self.follows:
            desired = self.stream.desired(who)
            assert desired is not None
            assert self.held[who].position == desired.position


WalkTests = Walk.TestCase
WalkTests.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
GentleTests = Gentle.TestCase
GentleTests.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
