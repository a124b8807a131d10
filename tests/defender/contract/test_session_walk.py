"""A walk of two sessions against each other: bytes come in any pieces, time passes, everything is asked for.

Whatever the order, two honest sides never end in an error, nothing is lost, doubled or out of order, and the
credits add up.
"""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from defender.contract.message_bytes import push_frames
from defender.contract.message_fields import Position
from defender.contract.messages import STREAMS, Ack, Cmd, EvAck, Events, GoAway, Nack, Result, Snapshot
from defender.contract.session import Expired, Pushed, State
from tests.defender.contract.channel_link import NOWHERE, Link, Records, hello

CREDITS = (12, 4000)


class Walk(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.link = Link(greeted=False)
        self.records = Records()
        self.seen_up = self.seen_down = 0
        # What went in on one side and has to come out on the other.
        self.batches: deque[Events] = deque()
        self.taken: deque[tuple[int, bytes]] = deque()
        self.stored = self.acknowledged = 0
        self.chains = {0: self.records.chain}
        self.nonce = 0
        self.wanted: dict[str, int] = {}
        self.pushed: dict[int, bytes] = {}
        self.due: list[Pushed] = []
        self.answered: list[int] = []
        self.settled: list[int] = []
        self.commands: list[int] = []
        self.asked: list[Cmd] = []
        self.results: set[int] = set()
        self.withheld = (0, 0)

    # -- the link

    @rule(size=st.integers(1, 5000))
    def up(self, size: int) -> None:
        data, self.link.up = self.link.up[:size], self.link.up[size:]
        if data and self.link.controller_closed is None:
            self.link.of_controller(self.link.controller.bytes_received(data, self.link.now))
            self.look()

    @rule(size=st.integers(1, 5000))
    def down(self, size: int) -> None:
        data, self.link.down = self.link.down[:size], self.link.down[size:]
        if data and self.link.defender_closed is None:
            self.link.of_defender(self.link.defender.bytes_received(data, self.link.now))
            self.look()

    @rule(seconds=st.floats(0.1, 20.0))
    def time(self, seconds: float) -> None:
        """Time passes, and the link is not slower than it."""
        self.link.now += seconds
        self.link.of_defender(self.link.defender.tick(self.link.now))
        self.link.of_controller(self.link.controller.tick(self.link.now))
        self.link.deliver()
        self.look()

    def look(self) -> None:
        """What the callers were told since last time, held against what went in."""
        for message in self.link.controller_heard[self.seen_up :]:
            if isinstance(message, Events):
                assert message == self.batches.popleft()
                self.taken.append((message.first_seq + message.count - 1, message.records))
            elif isinstance(message, (Ack, Nack)):
                assert message.nonce == self.answered.pop(0)
                self.settled.append(message.nonce)
            elif isinstance(message, Result):
                assert message.number in self.results
                self.commands.remove(message.number)
            elif isinstance(message, Expired):
                self.commands.remove(message.number)
        self.seen_up = len(self.link.controller_heard)
        for message in self.link.defender_heard[self.seen_down :]:
            if isinstance(message, Pushed):
                assert message.envelope == self.pushed[message.nonce]
                self.due.append(message)
            elif isinstance(message, EvAck):
                assert message.through >= self.acknowledged
                assert message.chain == self.chains[message.through] or not message.through
                self.acknowledged = message.through
            elif isinstance(message, Cmd):
                self.asked.append(message)
            else:
                assert not isinstance(message, Snapshot) or message.envelope == b"snapshot"
        self.seen_down = len(self.link.defender_heard)

    # -- the controller

    @precondition(lambda self: self.greetable())
    @rule()
    def welcome(self) -> None:
        self.link.welcome(events=CREDITS[0], size=CREDITS[1])

    def greetable(self) -> bool:
        session = self.link.controller
        return session.state is State.GREETING and bool(self.link.controller_heard)

    @precondition(lambda self: self.link.controller.is_open)
    @rule(stream=st.sampled_from(STREAMS), size=st.integers(1, 300_000))
    def push(self, stream: str, size: int) -> None:
        self.nonce += 1
        self.pushed[self.nonce] = b"%d" % self.nonce * size
        self.wanted[stream] = self.nonce
        frames = push_frames(stream, self.nonce, self.pushed[self.nonce])
        self.link.of_controller(self.link.controller.push(stream, self.nonce, frames))

    @precondition(lambda self: self.taken)
    @rule(many=st.integers(1, 3), withhold=st.booleans())
    def store(self, many: int, withhold: bool) -> None:
        events, size = self.withheld
        for _ in range(min(many, len(self.taken))):
            last, records = self.taken.popleft()
            events += last - self.stored
            size += len(records)
            self.stored = last
        self.withheld = (events, size) if withhold else (0, 0)
        self.link.of_controller(
            self.link.controller.acknowledge_events(
                *(self.records.epoch, self.stored, self.chains[self.stored]),
                events=0 if withhold else events,
                size=0 if withhold else size,
            )
        )

    @precondition(lambda self: self.withheld[0] and self.link.controller.is_open)
    @rule()
    def grant(self) -> None:
        (events, size), self.withheld = self.withheld, (0, 0)
        self.link.of_controller(self.link.controller.grant(events, size))

    @precondition(lambda self: self.link.controller.is_open and self.link.controller.revision)
    @rule(timeout=st.floats(1.0, 30.0))
    def command(self, timeout: float) -> None:
        if len(self.commands) + len(self.asked) < 20:
            number, outputs = self.link.controller.command(self.link.now, "probe", {}, round(timeout, 3))
            self.commands.append(number)
            self.link.of_controller(outputs)

    # -- the defender

    @precondition(lambda self: self.link.defender.is_open)
    @rule(count=st.integers(1, 12))
    def send(self, count: int) -> None:
        session = self.link.defender
        if count > session.credit_events or count * 150 > session.credit_bytes:
            return
        batch = self.records.take(count)
        self.link.of_defender(session.send_events(**batch))
        self.chains[self.records.seq] = batch.pop("chain")
        self.batches.append(Events(**batch, opening=None, lost=""))

    @precondition(lambda self: self.due)
    @rule(good=st.booleans())
    def answer_push(self, good: bool) -> None:
        pushed, session = self.due.pop(0), self.link.defender
        position = Position(1, pushed.nonce, bytes(32))
        self.link.of_defender(
            session.acknowledge(pushed.stream, pushed.nonce, position)
            if good
            else session.refuse(pushed.stream, pushed.nonce, "older", "", NOWHERE)
        )
        self.answered.append(pushed.nonce)

    @precondition(lambda self: self.asked)
    @rule()
    def answer_command(self) -> None:
        command = self.asked.pop(0)
        self.results.add(command.number)
        self.link.of_defender(self.link.defender.answer(command.number, True, {}))

    # -- both

    @precondition(lambda self: self.link.controller.is_open and self.nonce > 3)
    @rule()
    def controller_leaves(self) -> None:
        self.link.of_controller(self.link.controller.go_away(self.link.now, "restarting", ""))

    @precondition(lambda self: self.link.defender.is_open and self.records.seq > 20)
    @rule()
    def defender_leaves(self) -> None:
        self.link.of_defender(self.link.defender.go_away(self.link.now, "stopping", ""))

    # -- what holds

    @invariant()
    def nobody_is_wronged(self) -> None:
        for closed in (self.link.defender_closed, self.link.controller_closed):
            assert closed is None or closed.code in ("leaving", "timeout"), closed
            if closed is not None and closed.code == "timeout":
                assert "greeting" in closed.detail

    @invariant()
    def credits_are_kept(self) -> None:
        for session in (self.link.defender, self.link.controller):
            assert 0 <= session.credit_events <= CREDITS[0]
            assert 0 <= session.credit_bytes <= CREDITS[1]
        assert self.acknowledged <= self.stored <= self.records.seq

    def teardown(self) -> None:
        """In the end all that was begun is completed."""
        link = self.link
        for _ in range(60):
            link.deliver()
            self.look()
            if not (link.defender.is_open and link.controller.is_open):
                return
            if self.taken:
                self.store(3, False)
            elif self.withheld[0]:
                self.grant()
            elif self.due:
                self.answer_push(True)
            elif self.asked:
                self.answer_command()
            else:
                break
        assert not self.batches
        assert self.acknowledged == self.stored == self.records.seq
        assert link.defender.credit_events == link.controller.credit_events == CREDITS[0]
        assert link.defender.credit_bytes == link.controller.credit_bytes == CREDITS[1]
        assert set(self.wanted.values()) <= set(self.settled), "the newest push of each stream was answered"
        assert not any(isinstance(each, GoAway) for each in link.defender_heard)


class WalkWithRevision0(Walk):
    """The same with a defender of the revision before."""

    def __init__(self) -> None:
        super().__init__()
        self.link = Link(greeted=False, say=hello(0, 0))


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestWalkWithRevision0 = WalkWithRevision0.TestCase
TestWalkWithRevision0.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
