"""The link to the controller, against a real session of the other side, in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from defender.audit.commands import SegmentFile
from defender.channel.service import GOODBYE, LOOK_EVERY, ControllerLink, Uses
from defender.contract.controller_session import ControllerSession
from defender.contract.errors import ContractError
from defender.contract.message_bytes import push_frames
from defender.contract.message_fields import Cursor, Position
from defender.contract.messages import Ack, Cmd, Events, GoAway, Hello, Nack, Renewed, Result, Status
from defender.contract.session import Close, Outputs, Send
from tests.defender.audit.test_shipping import Files

NOWHERE = Position(0, 0, b"")


class Wire:
    """The transport of one connection, and the controller's session at its other end."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.session = ControllerSession(clock.seconds())
        self.heard: list[object] = []
        self.protocol: Any = None
        self.ended = ""

    def write(self, data: bytes) -> None:
        self.perform(self.session.bytes_received(data, self.clock.seconds()))

    def perform(self, outputs: Outputs) -> None:
        for output in outputs:
            if isinstance(output, Send):
                if not self.ended:
                    self.protocol.dataReceived(output.data)
            elif isinstance(output, Close):
                self.heard.append(output)
                self.end()
            else:
                self.heard.append(output)

    def loseConnection(self) -> None:
        self.end("closed")

    def abortConnection(self) -> None:
        self.end("aborted")

    def end(self, how: str = "by the controller") -> None:
        if not self.ended:
            self.ended = how
            self.clock.callLater(0, self.protocol.connectionLost, connectionDone)

    def welcome(self, cursor: Cursor | None = None, **options: Any) -> None:
        self.perform(
            self.session.welcome(
                self.clock.seconds(), generation=1, version="1", time=0, cursor=cursor, **options
            )
        )

    def of(self, kind: type) -> list[Any]:
        return [each for each in self.heard if isinstance(each, kind)]


class SpoolInMemory(Files):
    """What `ControllerLink` ships."""

    def __init__(self) -> None:
        super().__init__()
        self.moved: Callable[[], object] = lambda: None
        self.begin_epoch(7)

    def delivered(self, epoch: int, seq: int) -> None:
        self.given_away = (epoch, seq)

    def disputes(self, epoch: int, seq: int, chain: bytes) -> bool:
        return (epoch, seq) > (self.epoch, self.durable)

    def on_disk(self) -> tuple[list[SegmentFile], int, int]:
        return self.segments, self.epoch, self.durable

    def fetch(self, name: str, offset: int, size: int, took: Callable[[bytes | None], object]) -> None:
        took(self.read(name, offset, size))

    def commit(self, count: int) -> None:
        self.write(count)
        self.sync()
        self.moved()


class LinkCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.spool = SpoolInMemory()
        self.wires: list[Wire] = []
        self.refusal: Exception | None = None
        self.pushes: list[tuple[str, int, bytes]] = []
        self.commands: Callable[[Cmd], object] = lambda command: {"verb": command.verb}
        self.state: dict[str, Any] = {"listener": "tcp"}
        self.changes: list[tuple[bool, str]] = []
        self.link = ControllerLink(
            self.clock,
            self.spool,
            Uses(
                connect=self.connect,
                hello=lambda: Hello(
                    0, 1, "1.0", "web1", "boot", (), {"policy": NOWHERE, "locks": NOWHERE}, None
                ),
                pushed=lambda *push: self.pushes.append(push),
                snapshot=lambda envelope: None,
                answer=lambda command: self.commands(command),
                renewed=self.renewed,
                state=lambda: self.state,
                changed=lambda: self.changes.append((self.link.connected, self.link.problem)),
                chance=lambda: 0.5,
            ),
        )
        self.addCleanup(self.stop)
        self.link.startService()

    def stop(self) -> None:
        self.link.stopService()
        self.clock.advance(GOODBYE)
        self.clock.advance(0)

    def connect(self, factory: Factory[Any]) -> Deferred[Any]:
        if self.refusal is not None:
            return fail(self.refusal)
        wire = Wire(self.clock)
        self.wires.append(wire)
        wire.protocol = factory.buildProtocol(None)
        wire.protocol.makeConnection(wire)
        return succeed(wire.protocol)

    def renewed(self, answer: Renewed) -> None:
        raise AssertionError(answer)

    @property
    def wire(self) -> Wire:
        return self.wires[-1]

    def stored(self) -> list[tuple[int, int]]:
        """What the controller was sent, wire after wire."""
        return [
            (each.epoch, each.first_seq + index)
            for wire in self.wires
            for each in wire.of(Events)
            for index in range(each.count)
        ]


class ShippingTests(LinkCase):
    def test_events_go_out_as_soon_as_they_are_on_disk(self) -> None:
        self.wire.welcome()
        self.spool.write(3)
        self.spool.moved()
        self.assertEqual(self.stored(), [])
        self.spool.commit(2)
        self.assertEqual(self.stored(), self.spool.made)
        first = self.wire.of(Events)[0]
        self.assertEqual((first.opening.agent, first.opening.predecessor), ("web1", 0))
        self.spool.commit(1)
        self.assertIsNone(self.wire.of(Events)[1].opening)

    def test_no_more_than_was_granted_is_under_way(self) -> None:
        self.spool.commit(1500)
        self.wire.welcome(events=400, size=1 << 20)
        sent = self.wire.of(Events)
        self.assertLessEqual(sum(each.count for each in sent), 400)
        while len(self.stored()) < 1500:
            before = len(self.stored())
            last = self.wire.of(Events)[-1]
            chain = self.link._in_flight[-1].chain
            self.wire.perform(
                self.wire.session.acknowledge_events(last.epoch, last.first_seq + last.count - 1, chain)
            )
            self.assertGreater(len(self.stored()), before)
        self.assertEqual(self.stored(), self.spool.made)
        self.assertEqual(self.link.cursor[1] if self.link.cursor else 0, self.link.shipped)
        # What is stored there may make room here.
        self.assertEqual(self.spool.given_away, (7, self.link.shipped))

    def test_a_new_session_goes_on_behind_what_is_stored(self) -> None:
        self.spool.commit(10)
        self.wire.welcome()
        self.assertEqual(len(self.stored()), 10)
        self.wire.end()
        self.clock.advance(0)
        self.spool.commit(5)
        self.clock.advance(15)
        self.wire.welcome(Cursor(7, 8, bytes(32)))
        again = [(each.first_seq, each.count) for each in self.wire.of(Events)]
        self.assertEqual((again[0][0], sum(count for _, count in again)), (9, 7))

    def test_what_the_controller_knows_otherwise_is_shown_again(self) -> None:
        self.spool.commit(3)
        self.wire.welcome(Cursor(7, 100, bytes(32)))
        self.assertEqual(self.stored(), self.spool.made)
        self.spool.begin_epoch(9)
        self.spool.commit(2)
        self.assertEqual(self.stored(), self.spool.made)

    def test_nothing_is_compared_before_the_spool_is_open(self) -> None:
        epoch, self.spool.epoch = self.spool.epoch, 0
        self.spool.write(3)
        self.spool.sync()
        self.wire.welcome(Cursor(7, 100, bytes(32)))
        self.spool.moved()
        self.assertEqual(self.stored(), [])
        self.spool.epoch = epoch
        self.spool.moved()
        self.assertEqual([seq for _, seq in self.stored()], [1, 2, 3])

    def test_another_epoch_is_opened_again(self) -> None:
        self.spool.commit(2)
        self.spool.begin_epoch(9)
        self.spool.commit(2)
        self.wire.welcome()
        self.assertEqual([each.opening is not None for each in self.wire.of(Events)], [True, True])


class SayingTests(LinkCase):
    def test_pushes_are_passed_on_and_answered(self) -> None:
        self.wire.welcome()
        self.wire.perform(self.wire.session.push("policy", 5, push_frames("policy", 5, b"envelope")))
        self.assertEqual(self.pushes, [("policy", 5, b"envelope")])
        self.link.acknowledge("policy", 5, Position(1, 2, bytes(32)))
        self.wire.perform(self.wire.session.push("locks", 6, push_frames("locks", 6, b"x")))
        self.link.refuse("locks", 6, "signature", "a wrong key", NOWHERE)
        self.assertEqual(
            (self.wire.of(Ack), self.wire.of(Nack)),
            (
                [Ack("policy", 5, Position(1, 2, bytes(32)))],
                [Nack("locks", 6, "signature", "a wrong key", NOWHERE)],
            ),
        )

    def test_an_answer_to_an_earlier_session_is_dropped(self) -> None:
        self.wire.welcome()
        self.wire.perform(self.wire.session.push("policy", 5, push_frames("policy", 5, b"envelope")))
        self.wire.end()
        self.clock.advance(0)
        self.link.acknowledge("policy", 5, Position(1, 2, bytes(32)))
        self.clock.advance(15)
        self.wire.welcome()
        self.link.acknowledge("policy", 5, Position(1, 2, bytes(32)))
        self.assertEqual([wire.of(Ack) for wire in self.wires], [[], []])

    def test_commands_have_their_results(self) -> None:
        answers: list[object] = [{"a": 1}, ContractError("no such thing"), KeyError("secret"), Deferred()]

        def answer(command: Cmd) -> object:
            value = answers[command.number - 1]
            if isinstance(value, Exception):
                raise value
            return value

        self.commands = answer
        self.wire.welcome()
        for _ in answers:
            self.wire.perform(self.wire.session.command(self.clock.seconds(), "look", {}, 30.0)[1])
        results: list[Result] = self.wire.of(Result)
        self.assertEqual(
            [(each.number, each.ok, each.detail, each.value) for each in results],
            [
                (1, True, "", {"a": 1}),
                (2, False, "no such thing", {}),
                (3, False, "the defender failed: KeyError", {}),
            ],
        )
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_the_state_is_said_when_it_is_another(self) -> None:
        self.link.report()
        self.wire.welcome()
        self.link.report()
        self.state["listener"] = "unix"
        self.link.report()
        self.link.report()
        said: list[Mapping[str, Any]] = [each.state for each in self.wire.of(Status)]
        self.assertEqual(said, [{"listener": "tcp"}, {"listener": "unix"}])

    def test_what_changes_on_the_host_alone_is_said_as_well(self) -> None:
        self.wire.welcome()
        self.state["listener"] = "none"
        self.clock.advance(LOOK_EVERY)
        self.assertEqual([each.state["listener"] for each in self.wire.of(Status)], ["tcp", "none"])

    def test_counts_alone_are_said_once_a_minute(self) -> None:
        self.state["streams"] = 0
        self.wire.welcome()
        for count in range(1, 13):
            self.state["streams"] = count
            self.clock.advance(LOOK_EVERY)
        self.assertEqual([each.state["streams"] for each in self.wire.of(Status)], [0, 12])
        self.state |= {"streams": 13, "listener": "none"}
        self.clock.advance(LOOK_EVERY)
        self.assertEqual([each.state["streams"] for each in self.wire.of(Status)], [0, 12, 13])


class ComingBackTests(LinkCase):
    def test_a_controller_that_does_not_answer_is_tried_again(self) -> None:
        self.wire.end()
        self.refusal = OSError("connection refused")
        self.clock.advance(0)
        self.clock.advance(0.5)
        self.assertEqual((self.link.connected, self.link.problem), (False, "connection refused"))
        self.refusal = None
        self.clock.advance(1)
        self.assertEqual(len(self.wires), 2)
        self.wire.welcome()
        self.assertEqual((self.link.connected, self.link.problem), (True, ""))
        self.assertEqual(self.changes[-1], (True, ""))

    def test_who_is_asked_to_go_comes_back_in_the_window(self) -> None:
        self.wire.welcome()
        self.wire.perform(self.wire.session.go_away(self.clock.seconds(), "restart", "upgrade", 40.0))
        self.clock.advance(0)
        self.assertEqual(len(self.wires), 1)
        self.clock.advance(19)
        self.assertEqual(len(self.wires), 1)
        self.clock.advance(2)
        self.assertEqual(len(self.wires), 2)
        self.assertEqual(self.changes[-1], (False, "upgrade"))

    def test_a_link_that_is_dead_is_noticed(self) -> None:
        self.wire.welcome()
        wire = self.wire
        wire.write = lambda data: None  # type: ignore[method-assign]
        for _ in range(46):
            self.clock.advance(1)
        self.assertEqual(wire.ended, "aborted")
        self.assertFalse(self.link.connected)

    def test_other_credentials_are_used_at_once(self) -> None:
        self.wire.welcome()
        self.link.redial()
        self.clock.advance(0)
        self.clock.advance(0)
        self.assertTrue(self.wires[0].ended)
        self.assertEqual(len(self.wires), 2)

    def test_a_link_that_waits_is_made_at_once(self) -> None:
        for number, ask in enumerate((self.link.redial, self.link.hurry), 1):
            self.wire.welcome()
            self.wire.perform(self.wire.session.go_away(self.clock.seconds(), "store", "full", 40.0))
            self.clock.advance(0)
            self.assertEqual(len(self.wires), number)
            ask()
            self.assertEqual(len(self.wires), number + 1)
        # The attempts that it waited for do not come on top.
        self.wire.welcome()
        self.link.hurry()
        for _ in range(40):
            self.clock.advance(1)
        self.assertEqual(len(self.wires), 3)

    def test_the_end_is_said(self) -> None:
        self.wire.welcome()
        gone: list[object] = []
        self.link.stopService().addCallback(gone.append)
        self.assertEqual([each.code for each in self.wire.of(GoAway)], ["stopping"])
        self.clock.advance(GOODBYE)
        self.clock.advance(0)
        self.assertEqual(gone, [None])
        self.clock.advance(300)
        self.assertEqual(len(self.wires), 1)
