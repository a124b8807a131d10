"""Whatever comes in whatever order: what is acknowledged is on disk, in force, and never less than before."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.bundles.commands import Ack, Nack
from defender.contract.bundle import Position
from defender.contract.envelope import payload_digest
from defender.contract.high_water import decode_high_water
from tests.defender.bundles.desk import Desk, those
from tests.defender.contract.signing import position, signed, snapshot_of

_VERSIONS = (1, 2, 3, 2**64 - 1)
_OFFERS = {
    (version, author, by): signed(version=version, author=author, by=(by,))
    for version in _VERSIONS
    for author in ("a", "b")
    for by in ("bundle", "stranger")
}
_STEPS: Any = st.one_of(
    st.tuples(st.just("offer"), st.sampled_from(sorted(_OFFERS))),
    st.tuples(st.just("snapshot"), st.sampled_from((0, *_VERSIONS))),
    st.tuples(st.just("disk"), st.booleans()),
    st.tuples(st.just("port"), st.booleans()),
    st.tuples(st.just("restart"), st.none()),
    st.tuples(st.just("damage"), st.none()),
    st.tuples(st.just("forget"), st.none()),
)


class AnySequence(SynchronousTestCase):
    @settings(max_examples=300, deadline=None)
    @given(st.lists(_STEPS, max_size=14))
    def test_holds(self, steps: list[tuple[str, Any]]) -> None:
        desk = Desk()
        # What was acknowledged since the defender last knew nothing.
        self.acknowledged: dict[tuple[int, int], bytes] = {}
        for step, argument in steps:
            before = len(desk.done)
            self.take(desk, step, argument)
            self.check(desk, before)
            if step == "forget":
                self.acknowledged = {}

    @staticmethod
    def take(desk: Desk, step: str, argument: Any) -> None:
        if step == "offer":
            desk.offer("policy", _OFFERS[argument])
        elif step == "snapshot":
            at = {"policy": position(_OFFERS[argument, "a", "bundle"], argument)} if argument else {}
            desk.snapshot(snapshot_of(at))
        elif step == "disk":
            desk.disk_full = "No space left on device" if argument else ""
        elif step == "port":
            desk.port_taken = "Address already in use" if argument else ""
        elif step == "damage":
            desk.bundles = {stream: [data[:-1] for data in each] for stream, each in desk.bundles.items()}
            desk.restart()
        else:
            if step == "forget":
                desk.mark = None
            desk.restart()

    def check(self, desk: Desk, before: int) -> None:
        at = desk.streams.positions()["policy"]
        self.assertEqual(at != (0, 0, b""), "policy" in desk.in_force)
        for answer in those(desk.done[before:], Ack):
            self.assert_kept(desk, answer.position)
            number = answer.position.number
            self.assertEqual(
                self.acknowledged.setdefault(number, answer.position.digest), answer.position.digest
            )
            self.assertEqual(number, max(self.acknowledged))
        for refusal in those(desk.done[before:], Nack):
            self.assertEqual(refusal.kept, at)
        if at.version:
            self.assert_kept(desk, at)
            digests = {payload_digest(data) for (_, _, by), data in _OFFERS.items() if by == "bundle"}
            self.assertIn(at.digest, digests)

    def assert_kept(self, desk: Desk, at: Position) -> None:
        """What is in force is on disk: bundle and mark."""
        self.assertIsNotNone(desk.mark)
        mark = decode_high_water(desk.mark or b"").mark("policy")
        self.assertGreaterEqual(mark.high.number, at.number)
        self.assertIn(at.digest, [payload_digest(data) for data in desk.bundles["policy"]])
