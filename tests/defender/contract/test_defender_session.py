"""The defender's side: pushes put together, events within the credits, commands answered once."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from defender.contract.framing import Framer
from defender.contract.message_bytes import decode_message, message_frame, push_frames
from defender.contract.message_fields import Cursor, Opening, Position
from defender.contract.messages import (
    CHUNK,
    MAX_CREDIT_EVENTS,
    MAX_ENVELOPE,
    Ack,
    Cmd,
    Commit,
    EvAck,
    Events,
    Message,
    Nack,
    Push,
    Renew,
    Renewed,
    Result,
    Snapshot,
    Status,
)
from defender.contract.session import Close, Pushed, SessionError
from tests.defender.contract.channel_link import EPOCH, NOWHERE, Link, Records, hello

POSITION = Position(1, 7, b"d" * 32)


class Side(SynchronousTestCase):
    """A defender's session that was welcomed; what the controller says is written here."""

    def setUp(self) -> None:
        self.link = Link()
        self.session = self.link.defender
        self.records = Records()

    def say(self, *messages: Message) -> list[Any]:
        """The controller says this; gives what comes of it."""
        data = b"".join(map(message_frame, messages))
        return list(self.session.bytes_received(data, self.link.now))

    def assert_closed(self, outputs: list[Any], code: str, said: str = "") -> None:
        self.assertIsInstance(outputs[-1], Close)
        self.assertEqual(outputs[-1].code, code, outputs[-1].detail)
        self.assertIn(said, outputs[-1].detail)
        self.assertTrue(self.session.is_closed)


class Pushes(Side):
    def test_an_envelope_is_put_together(self) -> None:
        for size in (1, CHUNK, CHUNK + 1, MAX_ENVELOPE):
            link, envelope = Link(), b"e" * size
            link.of_controller(link.controller.push("policy", 3, push_frames("policy", 3, envelope)))
            link.deliver()
            pushed = link.last("defender", Pushed)
            self.assertEqual((pushed.stream, pushed.nonce, len(pushed.envelope)), ("policy", 3, size))
            self.assertEqual(pushed.envelope, envelope)

    def test_chunks_of_several_streams_may_be_mixed(self) -> None:
        first, second = push_frames("policy", 1, b"p" * 300_000), push_frames("locks", 2, b"l" * 300_000)
        data = b"".join(each for pair in zip(first, second, strict=True) for each in pair)
        outputs = self.session.bytes_received(data, self.link.now)
        self.assertEqual(outputs, [Pushed("policy", 1, b"p" * 300_000), Pushed("locks", 2, b"l" * 300_000)])

    def test_each_is_answered_once(self) -> None:
        self.say(Push("policy", 3, 0, 1, 1, b"e"), Push("locks", 4, 0, 1, 1, b"e"))
        self.link.of_defender(self.session.acknowledge("policy", 3, POSITION))
        self.link.of_defender(self.session.refuse("locks", 4, "signature", "no\nsignature", NOWHERE))
        found = [decode_message(payload) for payload in Framer().feed(self.link.up)]
        self.assertEqual(
            found, [Ack("policy", 3, POSITION), Nack("locks", 4, "signature", "no\\nsignature", NOWHERE)]
        )
        for stream, nonce in (("policy", 3), ("locks", 3), ("mode", 1)):
            self.assertRaises(SessionError, self.session.acknowledge, stream, nonce, POSITION)
            self.assertRaises(SessionError, self.session.refuse, stream, nonce, "x", "", POSITION)

    def test_the_next_comes_after_the_answer(self) -> None:
        self.say(Push("policy", 3, 0, 1, 1, b"e"))
        self.assert_closed(self.say(Push("policy", 4, 0, 1, 1, b"e")), "order", "before the one before was")

    def test_chunks_come_in_order_and_belong_together(self) -> None:
        first = Push("policy", 3, 0, 3, 30, b"x" * 10)
        for messages in (
            (Push("policy", 3, 1, 3, 30, b"x" * 10),),
            (first, first),
            (first, Push("policy", 3, 2, 3, 30, b"x" * 10)),
            (first, Push("policy", 4, 1, 3, 30, b"x" * 10)),
            (first, Push("policy", 4, 0, 3, 30, b"x" * 10)),
            (first, Push("policy", 3, 1, 2, 30, b"x" * 10)),
            (first, Push("policy", 3, 1, 3, 31, b"x" * 10)),
        ):
            self.setUp()
            self.assert_closed(self.say(*messages), "order", "is not the next one")

    def test_chunks_are_as_large_as_was_said(self) -> None:
        self.assert_closed(self.say(Push("policy", 3, 0, 2, 10, b"x" * 11)), "order", "more than they should")
        self.setUp()
        self.assert_closed(self.say(Push("policy", 3, 0, 1, 10, b"x" * 9)), "order", "less than they should")

    def test_only_streams_that_hello_named(self) -> None:
        self.link = Link(say=hello(streams=("policy",)))
        self.session = self.link.defender
        self.assertFalse(self.link.controller.takes("locks"))
        self.assertRaises(SessionError, self.link.controller.push, "locks", 1, ())
        self.assert_closed(self.say(Push("locks", 3, 0, 1, 1, b"e")), "order", "HELLO does not name")

    def test_a_snapshot_is_given_as_it_came(self) -> None:
        self.assertEqual(self.say(Snapshot(b"signed")), [Snapshot(b"signed")])


class Sending(Side):
    def test_records_go_as_the_spool_has_them(self) -> None:
        batch = self.records.take(3)
        opening = Opening("web1", 5, 9, b"p" * 32)
        self.link.of_defender(self.session.send_events(**batch, opening=opening, lost="a\nb"))
        self.link.deliver()
        self.assertEqual(
            self.link.last("controller", Events),
            Events(EPOCH, 1, 3, batch["previous"], opening, "a\\nb", batch["records"]),
        )

    def test_credits_are_used_and_given_back(self) -> None:
        self.assertEqual((self.session.credit_events, self.session.credit_bytes), (800, 8 * 1024 * 1024))
        batch = self.records.take(3)
        self.session.send_events(**batch)
        self.assertEqual(self.session.credit_events, 797)
        self.assertEqual(self.session.credit_bytes, 8 * 1024 * 1024 - len(batch["records"]))
        self.assertEqual(self.session.in_flight, 1)
        acknowledged = EvAck(EPOCH, 3, batch["chain"], 3, len(batch["records"]))
        self.assertEqual(self.say(acknowledged), [acknowledged])
        self.assertEqual((self.session.credit_events, self.session.credit_bytes), (800, 8 * 1024 * 1024))
        self.assertEqual(self.session.in_flight, 0)

    def test_nothing_is_sent_beyond_the_credits(self) -> None:
        link, records = Link(events=5, size=1000), self.records
        link.defender.send_events(**records.take(4))
        self.assertRaises(SessionError, link.defender.send_events, **records.take(2))
        link.defender.bytes_received(message_frame(EvAck(0, 0, bytes(32), 100, 0)), link.now)
        self.assertRaises(SessionError, link.defender.send_events, **records.take(1, size=2000))
        self.assertEqual(link.defender.in_flight, 1)

    def test_nothing_is_sent_before_the_welcome(self) -> None:
        link = Link(greeted=False)
        self.assertRaises(SessionError, link.defender.send_events, **self.records.take(1))

    def test_one_acknowledgement_may_be_for_several(self) -> None:
        for _ in range(3):
            self.session.send_events(**self.records.take(2))
        chain = self.records.chain
        self.session.send_events(**self.records.take(2))
        self.say(EvAck(EPOCH, 6, chain, 6, 100))
        self.assertEqual(self.session.in_flight, 1)

    def test_epochs_follow_each_other(self) -> None:
        later = Records(EPOCH + 1)
        self.session.send_events(**self.records.take(2))
        self.session.send_events(**later.take(2))
        self.say(EvAck(EPOCH + 1, 2, later.chain, 4, 100))
        self.assertEqual(self.session.in_flight, 0)

    def test_what_was_not_sent_is_not_acknowledged(self) -> None:
        """An EVACK makes the defender forget records: it must not be believed blindly."""
        for epoch, through in ((EPOCH, 1), (EPOCH, 3), (EPOCH + 1, 2), (0, 2), (EPOCH, 0)):
            self.setUp()
            self.session.send_events(**self.records.take(2))
            self.assert_closed(self.say(EvAck(epoch, through, self.records.chain, 1, 1)), "order")
        self.setUp()
        self.assert_closed(self.say(EvAck(EPOCH, 1, bytes(32), 1, 1)), "order", "not on their way")

    def test_an_acknowledgement_of_other_records_is_refused(self) -> None:
        self.session.send_events(**self.records.take(2))
        self.assert_closed(self.say(EvAck(EPOCH, 2, b"x" * 32, 2, 100)), "chain", "another chain at record 2")

    def test_credits_alone_repeat_the_last_acknowledgement(self) -> None:
        link = Link(cursor=Cursor(EPOCH, 9, b"c" * 32), events=0, size=0)
        link.of_controller(link.controller.grant(10, 1000))
        link.deliver()
        self.assertEqual(link.last("defender", EvAck), EvAck(EPOCH, 9, b"c" * 32, 10, 1000))
        self.assertEqual((link.defender.credit_events, link.defender.credit_bytes), (10, 1000))

    def test_credits_are_bounded(self) -> None:
        self.assert_closed(self.say(EvAck(0, 0, bytes(32), MAX_CREDIT_EVENTS, 0)), "credit")


class Asking(Side):
    def test_commands_are_answered_once(self) -> None:
        command = Cmd(1, 2.0, "probe", {"what": "listener"})
        self.assertEqual(self.say(command), [command])
        self.link.of_defender(self.session.answer(1, False, {"a": [1]}, code="busy", detail="later"))
        self.assertEqual(self.link.up, message_frame(Result(1, False, "busy", "later", {"a": [1]})))
        self.assertRaises(SessionError, self.session.answer, 1, True, {})

    def test_commands_rise_in_number(self) -> None:
        self.say(Cmd(5, 2.0, "probe", {}))
        self.assert_closed(self.say(Cmd(5, 2.0, "probe", {})), "order", "CMD 5 came after CMD 5")

    def test_commands_that_wait_are_bounded(self) -> None:
        self.assert_closed(
            self.say(*(Cmd(number, 2.0, "probe", {}) for number in range(1, 66))), "order", "more than 64 CMD"
        )

    def test_certificates_are_renewed_in_two_steps(self) -> None:
        self.link.of_defender(self.session.renew(b"csr", b"server csr"))
        self.link.deliver()
        self.assertEqual(self.link.last("controller", Renew), Renew(b"csr", b"server csr"))
        self.link.of_controller(self.link.controller.renewed((b"leaf", b"ca"), (b"server",)))
        self.link.deliver()
        renewed = Renewed((b"leaf", b"ca"), (b"server",), "", "")
        self.assertEqual(self.link.last("defender", Renewed), renewed)
        self.link.of_defender(self.session.commit("7f01"))
        self.link.deliver()
        self.assertEqual(self.link.last("controller", Commit), Commit("7f01"))

    def test_a_status_is_for_those_who_know_it(self) -> None:
        self.link.of_defender(self.session.report({"mode": "tcp"}))
        self.link.deliver()
        self.assertEqual(self.link.last("controller", Status), Status({"mode": "tcp"}))
        link = Link(newest=0)
        self.assertEqual(link.defender.report({"mode": "tcp"}), [])
