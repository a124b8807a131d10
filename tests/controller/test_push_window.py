"""How many pushes are on their way: bounds, turns, what is put aside, and that nothing is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from controller.push_window import PATIENCE, Push, PushWindow
from controller.releases import Position
from defender.contract.trust import LOCKS, POLICY, STREAMS

ONE, TWO = Position(1, 1), Position(1, 2)


class Windows(SynchronousTestCase):
    def test_locks_have_their_turn_before_policies(self) -> None:
        window = PushWindow(pushes=2)
        for who in "abc":
            window.ask(Push(who, POLICY, ONE), 1)
        window.ask(Push("c", LOCKS, ONE), 1)
        self.assertEqual(list(window.next(0)), [Push("c", LOCKS, ONE), Push("a", POLICY, ONE)])
        self.assertEqual((list(window.next(0)), window.waiting, window.unanswered), ([], 2, 2))
        window.answered("c", LOCKS)
        self.assertEqual(list(window.next(0)), [Push("b", POLICY, ONE)])

    def test_bytes_count_and_one_always_fits(self) -> None:
        window = PushWindow(size=10)
        for who in "abc":
            window.ask(Push(who, POLICY, ONE), 6)
        window.ask(Push("d", POLICY, ONE), 11)
        self.assertEqual([push.defender for push in window.next(0)], ["a"])
        for expected, before in (("b", "a"), ("c", "b"), ("d", "c")):
            window.answered(before, POLICY)
            self.assertEqual([push.defender for push in window.next(0)], [expected])

    def test_who_is_silent_holds_up_nobody_for_long(self) -> None:
        window = PushWindow(pushes=1)
        window.ask(Push("a", POLICY, ONE), 1)
        window.ask(Push("b", POLICY, ONE), 1)
        self.assertEqual([push.defender for push in window.next(0)], ["a"])
        self.assertEqual(list(window.next(PATIENCE - 0.1)), [])
        self.assertEqual([push.defender for push in window.next(PATIENCE)], ["b"])

    def test_the_newest_takes_the_place_of_what_waits(self) -> None:
        window = PushWindow()
        window.ask(Push("a", POLICY, ONE), 1)
        window.ask(Push("a", POLICY, TWO), 1)
        self.assertEqual(list(window.next(0)), [Push("a", POLICY, TWO)])

    def test_what_may_not_be_sent_waits_aside(self) -> None:
        window = PushWindow(pushes=1)
        for who in "abc":
            window.ask(Push(who, POLICY, ONE), 1)
        window.ask(Push("d", POLICY, TWO), 1)
        self.assertEqual(list(window.next(0, lambda stream, at: at != ONE)), [Push("d", POLICY, TWO)])
        window.answered("d", POLICY)
        self.assertEqual(list(window.next(0)), [])
        window.ask(Push("a", POLICY, TWO), 1)
        window.gone("b")
        window.unbar(POLICY)
        self.assertEqual(list(window.next(0)), [Push("a", POLICY, TWO)])
        window.answered("a", POLICY)
        self.assertEqual(list(window.next(0)), [Push("c", POLICY, ONE)])

    def test_who_is_gone_waits_for_nothing(self) -> None:
        window = PushWindow(pushes=1)
        window.ask(Push("a", LOCKS, ONE), 1)
        list(window.next(0))
        window.ask(Push("a", POLICY, ONE), 1)
        window.gone("a")
        self.assertEqual((window.waiting, window.unanswered, list(window.next(0))), (0, 0, []))

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["ask", "next", "answer", "gone"]),
                st.sampled_from("abcd"),
                st.sampled_from(STREAMS),
                st.integers(1, 40),
            ),
            max_size=80,
        )
    )
    def test_the_bounds_hold_whatever_happens(self, steps: list[tuple[str, str, str, int]]) -> None:
        window = PushWindow(pushes=3, size=50)
        sent: dict[tuple[str, str], int] = {}
        asked: dict[tuple[str, str], tuple[Position, int]] = {}
        for number, (what, who, stream, size) in enumerate(steps, 1):
            if what == "ask":
                asked[who, stream] = (Position(1, number), size)
                window.ask(Push(who, stream, Position(1, number)), size)
            elif what == "answer":
                sent.pop((who, stream), None)
                window.answered(who, stream)
            elif what == "gone":
                sent = {key: each for key, each in sent.items() if key[0] != who}
                asked = {key: each for key, each in asked.items() if key[0] != who}
                window.gone(who)
            else:
                for push in window.next(0):
                    position, size = asked.pop((push.defender, push.stream))
                    self.assertEqual(push.position, position)
                    sent[push.defender, push.stream] = size
            self.assertLessEqual(len(sent), 3)
            self.assertTrue(len(sent) <= 1 or sum(sent.values()) <= 50)
            self.assertEqual((window.unanswered, window.waiting), (len(sent), len(asked)))
