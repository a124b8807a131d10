"""What both sides of a session do: greeting, timers, leaving, errors."""

from __future__ import annotations

import sys
from math import inf
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.contract.codec import encode
from defender.contract.controller_session import ControllerSession
from defender.contract.defender_session import DefenderSession
from defender.contract.framing import FRAME_LIMIT, GREETING_LIMIT, frame
from defender.contract.message_bytes import message_frame, push_frames
from defender.contract.messages import (
    Ack,
    Cmd,
    Error,
    GoAway,
    Message,
    Ping,
    Pong,
    Snapshot,
    Status,
    Welcome,
)
from defender.contract.session import (
    DEAD_AFTER,
    GREETING_TIME,
    LEAVING_TIME,
    PING_AFTER,
    Close,
    Pushed,
    Send,
    SessionError,
    State,
)
from tests.defender.contract.channel_link import NOWHERE, Link, Records, hello
from tests.defender.contract.channel_strategies import MESSAGES


def sent(outputs: list[Any]) -> bytes:
    return b"".join(output.data for output in outputs if isinstance(output, Send))


class Greeting(SynchronousTestCase):
    def test_both_sides_are_open_and_know_of_each_other(self) -> None:
        link = Link(generation=7)
        self.assertTrue(link.defender.is_open and link.controller.is_open)
        self.assertEqual(link.controller_heard, [hello()])
        self.assertEqual(link.welcomed.generation, 7)
        self.assertEqual(link.controller.generation, 7)
        self.assertEqual((link.welcomed.events, link.welcomed.size), (800, 8 * 1024 * 1024))

    def test_the_newest_common_revision_is_chosen(self) -> None:
        for oldest, newest, controller, chosen in (
            (0, 1, 1, 1),
            (0, 0, 1, 0),
            (0, 1, 0, 0),
            (1, 60_000, 1, 1),
        ):
            link = Link(say=hello(oldest, newest), newest=controller)
            self.assertEqual((link.defender.revision, link.controller.revision), (chosen, chosen))

    def test_without_a_common_revision_both_sides_know_why(self) -> None:
        for oldest, newest in ((2, 9), (1, 0)):
            link = Link(greeted=False, say=hello(oldest, newest))
            link.deliver()
            for closed, by_peer in ((link.controller_closed, False), (link.defender_closed, True)):
                assert closed is not None
                self.assertEqual((closed.code, closed.by_peer), ("revision", by_peer))
                self.assertIn(f"speaks revisions {oldest} to {newest} of the channel", closed.detail)

    def test_a_revision_that_was_not_offered_is_refused(self) -> None:
        for revision in (0, 2):
            defender = DefenderSession(0.0, hello(1, 1))
            welcome = Welcome(revision, 1, "1.0", 0, None, 800, 10**6, 15.0, 45.0, ())
            outputs = defender.bytes_received(message_frame(welcome), 0.0)
            closed = outputs[-1]
            assert isinstance(closed, Close)
            self.assertEqual(closed.code, "revision")

    def test_a_greeting_that_does_not_come_ends_the_session(self) -> None:
        link = Link(greeted=False)
        link.up = b""
        self.assertEqual(link.defender.wake_at, link.now + GREETING_TIME)
        link.tick(GREETING_TIME)
        for closed in (link.defender_closed, link.controller_closed):
            assert closed is not None
            self.assertEqual(closed.code, "timeout")

    def test_the_handshake_takes_nothing_of_the_greetings_time(self) -> None:
        for session in (DefenderSession(0.0, hello()), ControllerSession(0.0)):
            session.begin(9.0)
            self.assertEqual(session.wake_at, 9.0 + GREETING_TIME)
            self.assertEqual(session.tick(GREETING_TIME), [])
        link = Link()
        before = link.controller.wake_at
        link.controller.begin(link.now + 5)
        self.assertEqual(link.controller.wake_at, before)

    def test_before_the_greeting_is_over_nothing_else_may_come(self) -> None:
        for message in (Ping(1), Ack("policy", 1, NOWHERE), Status({})):
            link = Link(greeted=False)
            link.up += message_frame(message)
            link.deliver()
            assert link.controller_closed is not None
            self.assertEqual(link.controller_closed.code, "order")
        for answer in (Ping(1), Snapshot(b"x"), Cmd(1, 1.0, "probe", {})):
            link = Link(greeted=False)
            link.down = message_frame(answer)
            link.deliver()
            assert link.defender_closed is not None
            self.assertEqual(link.defender_closed.code, "order")

    def test_a_greeting_comes_once(self) -> None:
        link = Link()
        link.up = message_frame(hello())
        link.deliver()
        assert link.controller_closed is not None
        assert link.defender_closed is not None
        self.assertEqual((link.controller_closed.code, link.defender_closed.code), ("order", "order"))
        link = Link()
        link.down = message_frame(link.welcomed)
        link.deliver()
        assert link.defender_closed is not None
        self.assertEqual(link.defender_closed.code, "order")
        link = Link(greeted=False)
        link.up += link.up
        link.deliver()
        assert link.controller_closed is not None
        self.assertEqual(link.controller_closed.code, "order")

    def test_nothing_is_for_the_wrong_side(self) -> None:
        for message in (Snapshot(b"x"), Cmd(1, 1.0, "probe", {})):
            link = Link()
            link.up = message_frame(message)
            link.deliver()
            assert link.controller_closed is not None
            self.assertEqual(link.controller_closed.code, "order")
        link = Link()
        link.down = message_frame(Status({}))
        link.deliver()
        assert link.defender_closed is not None
        self.assertEqual(link.defender_closed.code, "order")

    def test_a_controller_that_is_busy_sends_a_defender_away_at_once(self) -> None:
        link = Link(greeted=False)
        link.of_controller(link.controller.go_away(link.now, "busy", "too many at once", 33.0))
        self.assertTrue(link.controller.is_closed)
        link.up = b""
        link.deliver()
        self.assertEqual(link.last("defender", GoAway), GoAway("busy", "too many at once", 33.0))
        assert link.defender_closed is not None
        self.assertEqual(link.defender_closed.code, "leaving")

    def test_a_hello_can_be_refused(self) -> None:
        link = Link(greeted=False)
        link.deliver()
        link.of_controller(link.controller.fail("refused", "this defender was removed"))
        link.deliver()
        self.assertEqual(link.defender_closed, Close("refused", "this defender was removed", by_peer=True))
        self.assertEqual(link.controller.welcome(0.0, generation=1, version="", time=0, cursor=None), [])

    def test_welcome_answers_a_hello_once(self) -> None:
        controller = ControllerSession(0.0)
        for _ in range(2):
            with self.assertRaises(SessionError):
                controller.welcome(0.0, generation=1, version="", time=0, cursor=None)
        link = Link()
        self.assertRaises(SessionError, link.welcome)


class Limits(SynchronousTestCase):
    def test_frames_are_small_before_welcome_and_large_after_it(self) -> None:
        link = Link(greeted=False)
        link.up = (GREETING_LIMIT + 1).to_bytes(4, "big")
        link.deliver()
        for closed, by_peer in ((link.controller_closed, False), (link.defender_closed, True)):
            assert closed is not None
            self.assertEqual((closed.code, closed.by_peer), ("frame", by_peer))
            self.assertIn("16385", closed.detail)
        link = Link()
        link.up = FRAME_LIMIT.to_bytes(4, "big")
        link.deliver()
        self.assertIsNone(link.controller_closed)
        link = Link()
        link.up = (FRAME_LIMIT + 1).to_bytes(4, "big")
        link.deliver()
        assert link.controller_closed is not None
        self.assertEqual(link.controller_closed.code, "frame")

    def test_large_frames_may_come_together_with_the_welcome(self) -> None:
        link = Link(greeted=False)
        link.deliver()
        link.welcome()
        link.of_controller(link.controller.push("policy", 1, push_frames("policy", 1, b"x" * 100_000)))
        link.deliver()
        self.assertEqual(link.last("defender", Pushed), Pushed("policy", 1, b"x" * 100_000))

    def test_what_is_unknown_is_ignored_only_if_it_is_optional(self) -> None:
        link = Link()
        link.down = frame(encode([200, {"news": [1, 2]}]))
        link.up = frame(encode([128]))
        link.deliver()
        self.assertTrue(link.defender.is_open and link.controller.is_open)
        link.up = frame(encode([127]))
        link.deliver()
        for closed in (link.controller_closed, link.defender_closed):
            assert closed is not None
            self.assertEqual(closed.code, "message")
            self.assertIn("type 127", closed.detail)

    def test_an_idle_session_is_small(self) -> None:
        """What the controller keeps for each of thousands of defenders."""
        link = Link()
        session = link.controller
        slots = [name for cls in type(session).__mro__ for name in getattr(cls, "__slots__", ())]
        held = [getattr(session, name) for name in slots]
        self.assertFalse(hasattr(session, "__dict__"))
        size = sys.getsizeof(session) + sum(map(sys.getsizeof, held)) + sys.getsizeof(session._framer)
        self.assertLess(size, 3072)


class Timers(SynchronousTestCase):
    def test_silence_is_broken_with_a_ping(self) -> None:
        link = Link()
        self.assertEqual(link.defender.wake_at, link.now + PING_AFTER)
        link.now += PING_AFTER
        self.assertEqual(link.defender.tick(link.now - 0.001), [])
        self.assertEqual(link.defender.tick(link.now), [Send(message_frame(Ping(1)))])
        self.assertEqual(link.defender.tick(link.now), [])

    def test_a_ping_keeps_both_sides_alive(self) -> None:
        link = Link()
        for _ in range(50):
            link.tick(PING_AFTER)
            link.deliver()
        self.assertTrue(link.defender.is_open and link.controller.is_open)
        self.assertEqual(link.defender.round_trip, 0.0)

    def test_pings_are_spread(self) -> None:
        for jitter, seconds in ((-1.0, 12.0), (0.0, 15.0), (1.0, 18.0), (5.0, 18.0)):
            session = DefenderSession(0.0, hello(), jitter=jitter)
            session.bytes_received(message_frame(Welcome(1, 1, "", 0, None, 1, 1, 15.0, 45.0, ())), 0.0)
            self.assertAlmostEqual(session.wake_at, seconds)

    def test_a_half_open_link_is_noticed_in_45_seconds(self) -> None:
        link = Link()
        start = link.now
        for session in (link.defender, link.controller):
            for number in (1, 2):
                self.assertEqual(session.wake_at, start + number * PING_AFTER)
                self.assertEqual(sent(session.tick(session.wake_at)), message_frame(Ping(number)))
            self.assertEqual(session.wake_at, start + DEAD_AFTER)
            outputs = session.tick(session.wake_at)
            self.assertEqual(outputs[-1], Close("timeout", "nothing was heard for 45 s", abort=True))
            self.assertEqual(session.wake_at, inf)

    def test_any_byte_is_a_sign_of_life(self) -> None:
        link = Link()
        for byte in message_frame(Snapshot(b"x" * 20)):
            link.now += 30.0
            link.of_defender(link.defender.bytes_received(bytes([byte]), link.now))
            self.assertEqual(link.defender.wake_at, link.now + PING_AFTER)
        self.assertEqual(link.last("defender", Snapshot), Snapshot(b"x" * 20))

    def test_the_controller_sets_the_timers(self) -> None:
        link = Link(ping_after=2.0, dead_after=5.0)
        for session in (link.defender, link.controller):
            self.assertEqual(session.wake_at, link.now + 2.0)
            self.assertEqual((session.ping_after, session.dead_after), (2.0, 5.0))
        link = Link(greeted=False)
        link.deliver()
        self.assertRaises(SessionError, link.welcome, ping_after=5.0, dead_after=6.0)
        defender = DefenderSession(0.0, hello())
        bad = Welcome(1, 1, "", 0, None, 1, 1, 5.0, 6.0, ())
        self.assertIsInstance(defender.bytes_received(message_frame(bad), 0.0)[-1], Close)

    def test_the_round_trip_is_that_of_the_last_ping(self) -> None:
        link = Link()
        link.tick(PING_AFTER)
        link.now += 0.25
        link.deliver()
        self.assertEqual(link.defender.round_trip, 0.25)
        link.down = message_frame(Pong(1)) + message_frame(Pong(99))
        link.now += 5
        link.deliver()
        self.assertEqual(link.defender.round_trip, 0.25, "a PONG that nobody asked for says nothing")


class Leaving(SynchronousTestCase):
    def test_what_was_begun_is_completed(self) -> None:
        link, records = Link(), Records()
        link.of_defender(link.defender.send_events(**records.take(3)))
        link.of_controller(link.controller.push("locks", 5, push_frames("locks", 5, b"envelope")))
        link.of_controller(link.controller.go_away(link.now, "restarting", "an update", 20.0))
        link.deliver()
        self.assertEqual(link.last("defender", GoAway), GoAway("restarting", "an update", 20.0))
        self.assertIsNone(link.defender_closed)
        link.of_controller(link.controller.acknowledge_events(records.epoch, 3, records.chain))
        link.deliver()
        self.assertIsNone(link.defender_closed)
        link.of_defender(link.defender.acknowledge("locks", 5, NOWHERE))
        link.deliver()
        self.assertEqual(link.defender_closed, Close("leaving", "the peer asked for it", by_peer=True))
        self.assertEqual(link.last("controller", Ack), Ack("locks", 5, NOWHERE))

    def test_nothing_is_begun(self) -> None:
        link, records = Link(), Records()
        link.of_defender(link.defender.send_events(**records.take(3)))
        link.deliver()
        link.of_controller(link.controller.go_away(link.now, "restarting", ""))
        link.deliver()
        for session in (link.defender, link.controller):
            self.assertEqual(session.state, State.LEAVING)
            self.assertEqual(session.go_away(link.now, "again", ""), [])
        for begin in (
            lambda: link.defender.send_events(**records.take(1)),
            lambda: link.defender.renew(b"x"),
            lambda: link.defender.report({}),
            lambda: link.controller.push("policy", 1, ()),
            lambda: link.controller.show(b""),
            lambda: link.controller.command(link.now, "probe", {}, 1.0),
        ):
            self.assertRaises(SessionError, begin)

    def test_it_does_not_take_for_ever(self) -> None:
        link, records = Link(), Records()
        link.of_defender(link.defender.send_events(**records.take(3)))
        link.of_defender(link.defender.go_away(link.now, "stopping", ""))
        link.deliver()
        self.assertEqual(link.defender.wake_at, link.now + LEAVING_TIME)
        link.tick(LEAVING_TIME)
        for closed in (link.defender_closed, link.controller_closed):
            self.assertEqual(closed, Close("leaving", "the time for leaving is over"))

    def test_a_controller_that_is_asked_closes_when_it_has_stored_all(self) -> None:
        link, records = Link(), Records()
        link.of_defender(link.defender.send_events(**records.take(3)))
        link.of_defender(link.defender.go_away(link.now, "stopping", ""))
        link.deliver()
        self.assertIsNone(link.controller_closed)
        link.of_controller(link.controller.acknowledge_events(records.epoch, 3, records.chain))
        assert link.controller_closed is not None
        self.assertEqual(link.controller_closed.code, "leaving")
        link.deliver()
        self.assertEqual(link.defender.in_flight, 0)

    def test_a_peer_of_revision_0_hears_of_no_window(self) -> None:
        link = Link(say=hello(0, 0))
        link.of_controller(link.controller.go_away(link.now, "restarting", "x", 99.0))
        self.assertEqual(link.down, frame(encode([17, "restarting", "x"])))
        link.deliver()
        self.assertEqual(link.last("defender", GoAway), GoAway("restarting", "x", 10.0))

    def test_a_newer_session_takes_the_place_of_an_older(self) -> None:
        old, new = Link(generation=1), Link(generation=2)
        old.of_controller(old.controller.supersede())
        old.deliver()
        assert old.defender_closed is not None
        self.assertEqual((old.defender_closed.code, old.defender_closed.by_peer), ("superseded", True))
        self.assertTrue(new.defender.is_open)


class Ends(SynchronousTestCase):
    def test_after_the_end_nothing_is_said(self) -> None:
        link, records = Link(), Records()
        link.of_defender(link.defender.send_events(**records.take(1)))
        link.of_controller(link.controller.push("locks", 5, push_frames("locks", 5, b"envelope")))
        _, outputs = link.controller.command(link.now, "probe", {}, 1.0)
        link.of_controller(outputs)
        link.deliver()
        link.of_controller(link.controller.fail("internal", "something"))
        link.deliver()
        controller, defender = link.controller, link.defender
        for outputs in (
            controller.bytes_received(message_frame(Ping(1)), link.now),
            controller.tick(link.now + 1000),
            controller.go_away(link.now, "x", ""),
            controller.fail("x", ""),
            controller.acknowledge_events(records.epoch, 1, records.chain),
            controller.grant(1, 1),
            controller.renewed(()),
            defender.acknowledge("locks", 5, NOWHERE),
            defender.refuse("locks", 5, "older", "", NOWHERE),
            defender.answer(1, True, {}),
            defender.bytes_received(b"x", link.now),
            defender.tick(link.now + 1000),
        ):
            self.assertEqual(outputs, [])

    def test_an_error_is_not_answered(self) -> None:
        link = Link()
        self.assertEqual(
            link.defender.bytes_received(message_frame(Error("internal", "a\nb\x1b[0m")), link.now),
            [Close("internal", "a\\nb\\x1b[0m", by_peer=True)],
        )

    def test_what_follows_an_error_is_not_looked_at(self) -> None:
        link = Link()
        outputs = link.defender.bytes_received(message_frame(Error("x", "")) + b"\xff" * 99, link.now)
        self.assertEqual(outputs, [Close("x", "", by_peer=True)])

    def test_details_fit(self) -> None:
        link = Link()
        link.of_controller(link.controller.fail("internal", "\udcff\n" * 2000))
        link.deliver()
        assert link.defender_closed is not None
        self.assertEqual(len(link.defender_closed.detail), 1024)

    @given(st.lists(st.binary(max_size=40), max_size=8), st.booleans(), st.booleans())
    def test_random_bytes_raise_nothing(self, parts: list[bytes], greeted: bool, framed: bool) -> None:
        link = Link(greeted=greeted)
        link.up = b""
        for part in parts:
            data = frame(part) if framed and part else part
            link.of_defender(link.defender.bytes_received(data, link.now))
            link.of_controller(link.controller.bytes_received(data, link.now))

    @given(st.lists(MESSAGES, max_size=6), st.booleans())
    def test_any_messages_raise_nothing_and_a_close_is_the_last_word(
        self, messages: list[Message], greeted: bool
    ) -> None:
        link = Link(greeted=greeted)
        link.up = b""
        for message in messages:
            data = message_frame(message)
            link.of_defender(link.defender.bytes_received(data, link.now))
            link.of_controller(link.controller.bytes_received(data, link.now))
        for session in (link.defender, link.controller):
            self.assertEqual(session.is_closed, session.wake_at == inf)

    @given(st.lists(st.integers(0, 4000), max_size=30))
    def test_any_cut_of_the_bytes_gives_the_same(self, places: list[int]) -> None:
        data = b"".join(
            [
                message_frame(Welcome(1, 1, "1.0", 5, None, 800, 10**6, 15.0, 45.0, ())),
                *push_frames("policy", 1, b"p" * 2000),
                message_frame(Ping(3)),
                message_frame(Snapshot(b"s" * 500)),
                *push_frames("locks", 2, b"l"),
                message_frame(Cmd(1, 1.5, "probe", {"a": 1})),
                message_frame(GoAway("restarting", "", 9.0)),
            ]
        )
        whole = DefenderSession(0.0, hello())
        expected = whole.bytes_received(data, 1.0)
        ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
        session, outputs = DefenderSession(0.0, hello()), []
        for start, end in zip([0, *ends], ends, strict=False):
            outputs += session.bytes_received(data[start:end], 1.0)
        self.assertEqual(outputs, expected)
        self.assertEqual(
            [type(each).__name__ for each in expected],
            ["Welcome", "Pushed", "Send", "Snapshot", "Pushed", "Cmd", "GoAway"],
        )
