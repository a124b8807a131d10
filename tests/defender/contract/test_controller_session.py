"""The controller's side: one push at a time for each stream, credits kept, commands with a deadline."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from defender.contract.message_bytes import message_frame, push_frames
from defender.contract.message_fields import Cursor
from defender.contract.messages import (
    MAX_CREDIT_BYTES,
    Ack,
    Cmd,
    EvAck,
    Events,
    Message,
    Nack,
    Renew,
    Renewed,
    Result,
    Status,
)
from defender.contract.session import Close, Expired, Send, SessionError
from tests.defender.contract.channel_link import EPOCH, NOWHERE, Link, Records, hello


class Side(SynchronousTestCase):
    """A controller's session that has welcomed; what the defender says is written here."""

    def setUp(self) -> None:
        self.link = Link()
        self.session = self.link.controller
        self.records = Records()

    def say(self, *messages: Message) -> list[Any]:
        """The defender says this; gives what comes of it."""
        data = b"".join(map(message_frame, messages))
        return list(self.session.bytes_received(data, self.link.now))

    def events(self, count: int, **changes: Any) -> Events:
        batch = self.records.take(count)
        del batch["chain"]
        return Events(**{**batch, "opening": None, "lost": "", **changes})

    def assert_closed(self, outputs: list[Any], code: str, said: str = "") -> None:
        self.assertIsInstance(outputs[-1], Close)
        self.assertEqual(outputs[-1].code, code, outputs[-1].detail)
        self.assertIn(said, outputs[-1].detail)
        self.assertTrue(self.session.is_closed)


class Pushing(Side):
    def test_frames_are_shared(self) -> None:
        frames = push_frames("policy", 1, b"x" * 500_000)
        for link in (Link(), Link(), Link(newest=0)):
            outputs = link.controller.push("policy", 1, frames)
            for output, each in zip(outputs, frames, strict=True):
                assert isinstance(output, Send)
                self.assertIs(output.data, each)

    def test_the_newest_waits_for_the_answer_to_the_one_before(self) -> None:
        frames = {nonce: push_frames("policy", nonce, b"%d" % nonce) for nonce in (1, 2, 3)}
        self.assertEqual(self.session.push("policy", 1, frames[1]), [Send(frames[1][0])])
        self.assertEqual(self.session.push("policy", 2, frames[2]), [])
        self.assertEqual(self.session.push("policy", 3, frames[3]), [])
        nack = Nack("policy", 1, "older", "", NOWHERE)
        self.assertEqual(self.say(nack), [nack, Send(frames[3][0])])
        ack = Ack("policy", 3, NOWHERE)
        self.assertEqual(self.say(ack), [ack])

    def test_streams_do_not_wait_for_each_other(self) -> None:
        for nonce, stream in enumerate(("trust", "policy", "locks", "mode"), 1):
            self.assertEqual(len(self.session.push(stream, nonce, push_frames(stream, nonce, b"x"))), 1)

    def test_only_what_was_pushed_is_answered(self) -> None:
        for ack in (Ack("policy", 2, NOWHERE), Ack("locks", 1, NOWHERE), Nack("mode", 1, "x", "", NOWHERE)):
            self.setUp()
            self.session.push("policy", 1, push_frames("policy", 1, b"x"))
            self.assert_closed(self.say(ack), "order", "that was not sent")
        self.setUp()
        self.session.push("policy", 1, push_frames("policy", 1, b"x"))
        self.assert_closed(self.say(Ack("policy", 1, NOWHERE), Ack("policy", 1, NOWHERE)), "order")

    def test_what_waits_is_not_sent_to_who_is_leaving(self) -> None:
        self.session.push("policy", 1, push_frames("policy", 1, b"x"))
        self.session.push("policy", 2, push_frames("policy", 2, b"x"))
        self.session.go_away(self.link.now, "restarting", "")
        ack = Ack("policy", 1, NOWHERE)
        self.assertEqual(self.say(ack), [ack])


class Taking(Side):
    def test_events_are_given_as_they_came(self) -> None:
        events = self.events(3)
        self.assertEqual(self.say(events), [events])
        self.assertEqual(self.session.unacknowledged, 1)

    def test_the_credits_hold(self) -> None:
        self.link = Link(events=5, size=10_000)
        self.session = self.link.controller
        self.say(self.events(3))
        self.assert_closed(self.say(self.events(3)), "credit", "EVENTS of 3 records")
        self.link = Link(events=5, size=500)
        self.session, self.records = self.link.controller, Records()
        self.assert_closed(self.say(self.events(5, records=b"x" * 501)), "credit", "and 501 bytes")

    def test_what_is_stored_is_acknowledged_with_the_credits_it_used(self) -> None:
        events = self.events(3)
        self.say(events)
        size = len(events.records)
        outputs = self.session.acknowledge_events(EPOCH, 3, self.records.chain)
        self.assertEqual(outputs, [Send(message_frame(EvAck(EPOCH, 3, self.records.chain, 3, size)))])
        self.assertEqual((self.session.credit_events, self.session.credit_bytes), (800, 8 * 1024 * 1024))

    def test_several_are_acknowledged_together(self) -> None:
        self.say(self.events(2), self.events(3), self.events(4))
        self.session.acknowledge_events(EPOCH, 5, b"c" * 32)
        self.assertEqual(self.session.unacknowledged, 1)
        self.assertEqual(self.session.credit_events, 800 - 4)

    def test_credits_can_be_withheld_and_granted_later(self) -> None:
        self.say(self.events(3))
        chain = self.records.chain
        outputs = self.session.acknowledge_events(EPOCH, 3, chain, events=0, size=0)
        self.assertEqual(outputs, [Send(message_frame(EvAck(EPOCH, 3, chain, 0, 0)))])
        self.assertEqual(self.session.credit_events, 797)
        self.assertEqual(self.session.grant(3, 5), [Send(message_frame(EvAck(EPOCH, 3, chain, 3, 5)))])
        self.assertRaises(SessionError, self.session.grant, 1, MAX_CREDIT_BYTES)

    def test_only_the_end_of_events_is_acknowledged(self) -> None:
        self.say(self.events(3))
        for epoch, through in ((EPOCH, 2), (EPOCH, 4), (EPOCH + 1, 3)):
            self.assertRaises(SessionError, self.session.acknowledge_events, epoch, through, b"c" * 32)
        self.assertEqual(self.session.unacknowledged, 1)

    def test_records_do_not_come_twice(self) -> None:
        events = self.events(3)
        self.say(events)
        self.assert_closed(self.say(events), "order", "EVENTS repeats record 1")

    def test_what_an_earlier_session_stored_may_come_again(self) -> None:
        """The spool was put back from an older copy; the store tells what is new."""
        self.link = Link(cursor=Cursor(EPOCH, 3, b"c" * 32))
        self.session = self.link.controller
        events = self.events(3)
        self.assertEqual(self.say(events), [events])
        self.assert_closed(self.say(events), "order", "EVENTS repeats record 1")

    def test_another_epoch_begins_anew(self) -> None:
        self.say(self.events(3))
        self.records = Records(EPOCH + 1)
        events = self.events(2)
        self.assertEqual(self.say(events), [events])

    def test_a_hole_is_for_the_store_to_judge(self) -> None:
        self.say(self.events(1))
        self.records.take(5)
        events = self.events(1, previous=b"", lost="damaged")
        self.assertEqual(self.say(events), [events])

    def test_more_records_than_the_bytes_can_hold(self) -> None:
        self.assert_closed(self.say(self.events(2, records=b"x" * 96)), "message", "cannot have 2 records")


class Asking(Side):
    def test_commands_have_a_deadline(self) -> None:
        start = self.link.now
        first, _ = self.session.command(start, "probe", {}, 5.0)
        second, outputs = self.session.command(start, "probe", {"a": 1}, 3.0)
        self.assertEqual((first, second), (1, 2))
        self.assertEqual(outputs, [Send(message_frame(Cmd(2, 3.0, "probe", {"a": 1})))])
        self.assertEqual(self.session.wake_at, start + 3.0)
        self.assertEqual(self.session.tick(start + 3.0), [Expired(2)])
        result = Result(1, True, "", "", {})
        self.assertEqual(self.say(Result(2, True, "", "", {}), result, result), [result])
        self.assertEqual(self.session.tick(start + 5.0), [])

    def test_only_what_was_asked_is_answered(self) -> None:
        self.session.command(self.link.now, "probe", {}, 5.0)
        self.assert_closed(self.say(Result(2, True, "", "", {})), "order", "which was not sent")

    def test_commands_that_wait_are_bounded(self) -> None:
        for _ in range(64):
            self.session.command(self.link.now, "probe", {}, 5.0)
        self.assertRaises(SessionError, self.session.command, self.link.now, "probe", {}, 5.0)

    def test_a_defender_of_revision_0_takes_none(self) -> None:
        link = Link(say=hello(0, 0))
        self.assertRaises(SessionError, link.controller.command, link.now, "probe", {}, 5.0)

    def test_a_renewal_is_answered_once(self) -> None:
        self.assertRaises(SessionError, self.session.renewed, (b"x",))
        self.say(Renew(b"csr", b""))
        self.assertEqual(
            self.session.refuse_renewal("locked", "this defender\nis locked"),
            [Send(message_frame(Renewed((), (), "locked", "this defender\\nis locked")))],
        )
        self.assertRaises(SessionError, self.session.refuse_renewal, "x", "")
        self.say(Renew(b"csr", b""))
        self.assert_closed(self.say(Renew(b"csr", b"")), "order", "RENEW before")

    def test_a_status_is_given_as_it_came(self) -> None:
        self.assertEqual(self.say(Status({"mode": "tcp"})), [Status({"mode": "tcp"})])
