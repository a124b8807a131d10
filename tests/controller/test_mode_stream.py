"""Orders of listener modes on their way."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from controller.fleet import Mode, ModeOrder
from controller.mode_stream import ModeStream
from controller.releases import Held, Offer, Position, Refusal, Release, Standing

TCP, UNIX = Mode("tcp", 600), Mode("unix")
IN_USE = Refusal("activation-failed", "tcp://0.0.0.0:9998: the address is in use")


class ModeStreamTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.modes = ModeStream()
        for who in "abc":
            self.modes.stream.connected(who, None, 0.0)

    def order(self, number: int, mode: Mode, who: str) -> list[object]:
        release = Release(Position(1, number), bytes([number]), Position(1, number), frozenset(who))
        return list(self.modes.ordered(f"order-{number}", ModeOrder(mode, frozenset(who)), release, 0.0))

    def ack(self, who: str, number: int) -> None:
        self.modes.stream.acked(who, Held(Position(1, number), bytes([number])), 0.0)

    def test_all_at_once_whatever_one_says(self) -> None:
        self.assertEqual(self.order(1, TCP, "abc"), [Offer(Position(1, 1), ("a", "b", "c"))])
        self.modes.stream.refused("a", Position(1, 1), IN_USE, 0.0)
        self.modes.stream.disconnected("c", 0.0)
        self.ack("b", 1)
        self.assertEqual(self.modes.stream.standing("a"), (Standing.REFUSED, IN_USE))
        # Who was away gets it, although another refused.
        self.assertEqual(self.modes.stream.connected("c", None, 0.0), [Offer(Position(1, 1), ("c",))])

    def test_the_newest_order_is_the_one_that_counts(self) -> None:
        self.order(1, TCP, "abc")
        self.assertEqual(self.order(2, UNIX, "bc"), [Offer(Position(1, 2), ("b", "c"))])
        self.assertEqual([self.modes.mode_of(who) for who in "abc"], [TCP, UNIX, UNIX])
        self.assertEqual(self.modes.stream.progress("order-1").total, 1)
        self.assertIsNone(self.modes.mode_of("x"))

    def test_told_again_after_a_refusal_it_tries_again(self) -> None:
        self.order(1, TCP, "a")
        self.modes.stream.refused("a", Position(1, 1), IN_USE, 0.0)
        self.assertEqual(self.order(2, TCP, "a"), [Offer(Position(1, 2), ("a",))])

    def test_orders_that_nobody_follows_are_forgotten(self) -> None:
        self.order(1, TCP, "ab")
        self.order(2, UNIX, "ab")
        self.assertEqual(self.modes.stream.lines(), ("order-2",))
        self.modes.removed("a", 0.0)
        self.modes.removed("b", 0.0)
        self.modes.removed("c", 0.0)
        self.assertEqual(self.modes.stream.lines(), ())

    def test_orders_are_taken_up_again(self) -> None:
        self.order(1, TCP, "a")
        state = self.modes.stream.state("order-1")
        self.modes = ModeStream()
        self.modes.stream.restore_defender("a", "order-1", None)
        self.modes.restore_orders({"order-1": TCP})
        self.modes.stream.restore(state, 0.0)
        self.assertEqual(self.modes.mode_of("a"), TCP)
        self.assertEqual(self.modes.stream.connected("a", None, 0.0), [Offer(Position(1, 1), ("a",))])
