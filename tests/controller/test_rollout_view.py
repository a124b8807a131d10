"""What people are shown of a rollout."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from controller.distribution import AT_ONCE, GRADUAL, Distribution
from controller.releases import Cause, Halted, Held, Phase, Position, Refusal, Release, turn_order
from controller.rollout_view import STATES, Step, counts, describe_halt, steps

FIRST = Position(1, 1)


class ViewTests(SynchronousTestCase):
    def test_who_stands_where(self) -> None:
        stream = Distribution()
        for who in "dcba":
            stream.assign(who, "p", 0.0)
            if who != "a":
                stream.connected(who, None, 0.0)
        stream.publish("p", Release(FIRST, b"x", FIRST), AT_ONCE, 0.0)
        stream.acked("b", Held(FIRST, b"x"), 0.0)
        stream.refused("d", FIRST, Refusal("schema", "from the\nfuture"), 0.0)
        self.assertEqual(
            list(steps(stream, "p", str.upper)),
            [
                Step("d", "D", "refused", "schema: from the\\nfuture"),
                Step("c", "C", "waiting", "sent, not answered yet"),
                Step("a", "A", "offline", ""),
                Step("b", "B", "acked", ""),
            ],
        )
        self.assertEqual(
            counts(stream.progress("p")), {"acked": 1, "refused": 1, "waiting": 1, "offline": 1, "total": 4}
        )

    def test_whose_turn_has_not_come(self) -> None:
        stream = Distribution()
        for who in "ab":
            stream.assign(who, "p", 0.0)
            stream.connected(who, None, 0.0)
        stream.publish("p", Release(FIRST, b"x", FIRST), AT_ONCE, 0.0)
        for who in "ab":
            stream.acked(who, Held(FIRST, b"x"), 0.0)
        second = Position(1, 2)
        stream.publish("p", Release(second, b"y", second), GRADUAL, 0.0)
        stream.halt("p", "lunch")
        later = turn_order(second, "ab")[1]
        self.assertIn(Step(later, later, "waiting", "its turn has not come"), steps(stream, "p", str))

    def test_why_it_is_halted(self) -> None:
        def told(cause: Cause, who: str = "", detail: str = "") -> str:
            return describe_halt(Halted("p", FIRST, cause, tuple(who), detail), str.upper, 60.0)

        self.assertEqual(told(Cause.REFUSED, "a", "schema: no"), "A refused it: schema: no")
        self.assertEqual(told(Cause.SILENT, "abcde"), "A, B, C and 2 more did not answer within 60 s")
        self.assertEqual(told(Cause.OPERATOR), "halted by hand")
        self.assertEqual(told(Cause.OPERATOR, detail="wait\x1b"), "halted by hand: wait\\x1b")

    def test_every_phase_has_a_word(self) -> None:
        self.assertEqual(set(STATES), set(Phase))
