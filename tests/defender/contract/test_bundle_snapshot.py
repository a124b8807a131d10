"""Snapshots and the high-water mark: never less than was accepted, and how one learns what that was."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.contract.bundle import NOWHERE, SKEW, BundleError, Position
from defender.contract.canonical import canonical
from defender.contract.envelope import SNAPSHOT_TYPE, read_envelope, seal
from defender.contract.high_water import (
    LONGEST_JUMP,
    HighWater,
    Mark,
    decode_high_water,
    first_mark,
)
from defender.contract.snapshot import MAX_SNAPSHOT, Snapshot, open_snapshot
from defender.contract.trust import Root, first_root
from tests.defender.contract.signing import (
    DAY,
    DEFENDER,
    NOW,
    OTHER_DEFENDER,
    OTHER_FLEET,
    ROOT,
    new_root,
    signed,
    signed_root,
    signer,
    snapshot_of,
)


def at(version: int, key_epoch: int = 1, content: str = "a") -> Position:
    """A position; `content` stands for what is there."""
    return Position(key_epoch, version, content.encode().ljust(32, b"."))


class SnapshotCase(SynchronousTestCase):
    def refused(self, code: str, call: Any, *arguments: Any, **named: Any) -> str:
        error = self.assertRaises(BundleError, call, *arguments, **named)
        self.assertEqual(error.code, code, error.detail)
        return str(error.detail)

    @staticmethod
    def open(data: bytes, root: Root = ROOT) -> Snapshot:
        return open_snapshot(data, root, defender=DEFENDER)

    def snapshot(self, positions: dict[str, Position], time: float = NOW) -> Snapshot:
        return self.open(snapshot_of(positions, time=time))


class Opening(SnapshotCase):
    def test_says_what_was_signed(self) -> None:
        found = self.snapshot({"policy": at(12), "locks": at(2**64 - 1)}, NOW + 0.25)
        self.assertEqual(found.positions, {"policy": at(12), "locks": at(2**64 - 1)})
        self.assertEqual(found.time, NOW + 0.25)
        self.assertEqual(self.snapshot({}).positions, {})

    def test_every_byte_counts(self) -> None:
        data = snapshot_of({"policy": at(1)})
        for index in range(len(data)):
            bad = bytearray(data)
            bad[index] ^= 0x01
            self.assertRaises(BundleError, self.open, bytes(bad))

    def test_signed_by_its_own_role(self) -> None:
        for other in ("bundle", "root", "stranger"):
            self.refused("wrong-key", self.open, snapshot_of({}, by=other))
        self.refused("wrong-type", self.open, signed(by=("snapshot",)))

    def test_for_whom(self) -> None:
        self.refused("foreign-fleet", self.open, snapshot_of({}, fleet=OTHER_FLEET))
        self.refused("foreign-fleet", self.open, snapshot_of({}, trust_domain="other.fleet"))
        self.refused("foreign-defender", self.open, snapshot_of({}, audience=(OTHER_DEFENDER,)))
        self.assertEqual(self.open(snapshot_of({}, audience=(DEFENDER,))).audience, (DEFENDER,))

    def test_never_below_what_the_root_says(self) -> None:
        """Whoever stole the key of snapshots cannot bring back what the root has ended."""
        root = new_root(minimum={"policy": 10, "mode": 0})
        detail = self.refused("below-minimum", self.open, snapshot_of({"policy": at(9)}), root)
        self.assertIn("10", detail)
        self.refused("below-minimum", self.open, snapshot_of({}), root)
        self.assertEqual(self.open(snapshot_of({"policy": at(10)}), root).positions["policy"], at(10))

    def test_epochs(self) -> None:
        self.refused("epoch-ahead", self.open, snapshot_of({"policy": at(1, 2)}))
        self.refused("epoch-retired", self.open, snapshot_of({"policy": at(1)}), new_root(key_epoch=2))

    def test_size_and_form(self) -> None:
        data = snapshot_of({"policy": at(1)})
        self.refused("too-large", self.open, data.ljust(MAX_SNAPSHOT + 1, b"\0"))
        crowd = tuple(f"0193f0aa-0000-7000-8000-{number:012x}" for number in range(2000))
        self.refused("too-large", snapshot_of, {}, audience=crowd)
        value = json.loads(read_envelope(data, SNAPSHOT_TYPE).payload)
        for name, bad, code in (
            ("schema", 2, "schema"),
            ("time_ms", "now", "invalid-field"),
            ("positions", {"policy": {"version": 1}}, "invalid-field"),
            ("positions", {"acl": value["positions"]["policy"]}, "invalid-field"),
            ("positions", [], "invalid-field"),
            ("audience", [], "invalid-field"),
            ("more", 1, "invalid-field"),
        ):
            payload = canonical({**value, name: bad})
            self.refused(code, self.open, seal(SNAPSHOT_TYPE, payload, [signer("snapshot")]))

    @given(st.binary(max_size=200))
    def test_any_bytes(self, data: bytes) -> None:
        self.assertRaises(BundleError, self.open, data)
        self.assertRaises(BundleError, self.open, seal(SNAPSHOT_TYPE, data, [signer("snapshot")]))


class Judging(SnapshotCase):
    water = HighWater(1, ROOT.digest).accept("policy", at(12))

    def test_only_higher(self) -> None:
        self.assertTrue(self.water.judge("policy", at(13)))
        self.assertTrue(self.water.judge("policy", at(2**64 - 1)))
        self.assertTrue(self.water.judge("locks", at(1)))

    def test_older(self) -> None:
        for version in (1, 11):
            self.refused("older-version", self.water.judge, "policy", at(version))

    def test_the_same_version(self) -> None:
        self.assertFalse(self.water.judge("policy", at(12)))
        self.refused("same-version", self.water.judge, "policy", at(12, content="b"))

    def test_the_epoch_comes_before_the_version(self) -> None:
        """What a stolen key has signed, up to the highest version, is below everything of the next epoch."""
        water = self.water.accept("policy", at(2**63))
        self.refused("older-version", water.judge, "policy", at(13))
        self.assertTrue(water.judge("policy", at(1, 2)))
        self.refused("older-version", water.accept("policy", at(1, 2)).judge, "policy", at(2**64 - 1))

    @given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.sampled_from("ab")), max_size=12))
    def test_never_less(self, offers: list[tuple[int, int, str]]) -> None:
        """Whatever is offered in whatever order: positions never fall, and none has two contents."""
        water = HighWater(1, ROOT.digest)
        seen: dict[tuple[int, int], bytes] = {}
        for epoch, version, content in offers:
            position = at(version, epoch, content)
            before = water.mark("policy").high
            try:
                new = water.judge("policy", position)
            except BundleError:
                continue
            water = water.accept("policy", position)
            self.assertEqual(seen.setdefault(position.number, position.digest), position.digest)
            self.assertEqual(position.number > before.number, new)


class WithoutAMark(SnapshotCase):
    def test_a_snapshot_gives_one(self) -> None:
        water = first_mark(self.snapshot({"policy": at(12)}), ROOT, NOW)
        self.refused("older-version", water.judge, "policy", at(11))
        self.refused("same-version", water.judge, "policy", at(12, content="b"))
        self.assertTrue(water.judge("policy", at(13)))
        self.assertFalse(water.judge("policy", at(12)))
        self.assertEqual(water.mark("policy").active, NOWHERE)
        self.assertTrue(water.judge("locks", at(1)))


class Taking(SnapshotCase):
    def setUp(self) -> None:
        self.water = HighWater(1, ROOT.digest).accept("policy", at(12))

    def take(self, positions: dict[str, Position], time: float = NOW, now: float = NOW) -> HighWater:
        return self.water.take(self.snapshot(positions, time), ROOT, now)

    def test_confirms_what_is_in_force(self) -> None:
        self.assertEqual(self.take({"policy": at(12)}).mark("policy").confirmed_ms, NOW * 1000)
        self.assertEqual(self.take({"policy": at(13)}).mark("policy").confirmed_ms, 0)

    def test_never_moves_a_mark(self) -> None:
        """Whoever stole the key of snapshots must not shut out good bundles by naming a high version."""
        water = self.take({"policy": at(2**64 - 1), "locks": at(2**64 - 1)})
        self.assertTrue(water.judge("policy", at(13)))
        self.assertTrue(water.judge("locks", at(1)))

    def test_below_a_mark(self) -> None:
        self.refused("older-version", self.take, {"policy": at(11)})
        self.refused("older-version", self.take, {})
        self.refused("same-version", self.take, {"policy": at(12, content="b")})

    def test_what_a_raised_epoch_has_ended_need_not_be_named(self) -> None:
        root = first_root(signed_root(new_root(key_epoch=2)))
        snapshot = self.open(snapshot_of({"locks": at(1, 2)}), root)
        self.assertEqual(self.water.take(snapshot, root, NOW).snapshot_ms, NOW * 1000)

    def test_an_older_snapshot(self) -> None:
        self.water = self.take({"policy": at(12)})
        self.refused("older-snapshot", self.take, {"policy": at(12)}, NOW - SKEW - 1)
        # Two controllers whose clocks differ a little are none.
        self.assertEqual(self.take({"policy": at(12)}, NOW - SKEW).snapshot_ms, NOW * 1000)


class Clocks(SnapshotCase):
    def setUp(self) -> None:
        self.water = HighWater(1, ROOT.digest, floor_ms=NOW * 1000)

    def take(self, time: float, now: float, root: Root = ROOT) -> HighWater:
        return self.water.take(self.open(snapshot_of({}, time=time), root), root, now)

    def test_never_earlier_than_the_floor(self) -> None:
        self.assertEqual(self.water.clock(NOW - DAY), NOW)
        self.assertEqual(self.water.clock(NOW + 1), NOW + 1)
        self.assertEqual(self.take(NOW + 60, NOW).clock(0), NOW + 60)

    def test_24_hours_and_no_more(self) -> None:
        self.assertEqual(self.take(NOW + LONGEST_JUMP, NOW).floor_ms, (NOW + LONGEST_JUMP) * 1000)
        self.refused("clock-jump", self.take, NOW + LONGEST_JUMP + 1, NOW)
        snapshot = self.snapshot({}, NOW + LONGEST_JUMP + 1)
        self.refused("clock-jump", first_mark, snapshot, ROOT, NOW)

    def test_many_steps_lead_no_further_than_one(self) -> None:
        self.water = self.take(NOW + LONGEST_JUMP, NOW)
        self.refused("clock-jump", self.take, NOW + 2 * LONGEST_JUMP, NOW)
        self.refused("clock-jump", self.take, NOW + LONGEST_JUMP + 60, NOW + 59)

    def test_a_week_away_with_a_clock_that_runs_is_no_jump(self) -> None:
        self.assertEqual(self.take(NOW + 7 * DAY, NOW + 7 * DAY - 5).clock(0), NOW + 7 * DAY)

    def test_the_root_may_move_it_anywhere(self) -> None:
        root = first_root(signed_root(new_root(version=2, issued_at=NOW + 300 * DAY)))
        self.water = self.water.adopt(root)
        self.assertEqual(self.water.clock(NOW), NOW + 300 * DAY)
        self.assertEqual(self.take(NOW + 301 * DAY, NOW, root).clock(NOW), NOW + 301 * DAY)

    def test_an_older_root_does_not_move_it_back(self) -> None:
        self.assertEqual(self.water.adopt(ROOT).floor_ms, NOW * 1000)

    def test_a_raised_epoch_ends_the_times_of_a_stolen_key(self) -> None:
        self.water = replace(self.take(NOW + LONGEST_JUMP, NOW), streams={"policy": Mark(at(1), at(1), 5)})
        root = first_root(signed_root(new_root(version=2, key_epoch=2, issued_at=NOW)))
        water = self.water.adopt(root).restart_clock(root)
        self.assertEqual((water.clock(NOW), water.snapshot_ms), (NOW, 0))
        self.assertEqual(water.mark("policy"), Mark(at(1), at(1), 0))


class TheFile(SnapshotCase):
    water = (
        HighWater(3, ROOT.digest, floor_ms=5, snapshot_ms=4)
        .accept("policy", at(2**64 - 1, 2))
        .activate("policy", at(7), 123)
        .accept("locks", at(1))
        .activate("locks", NOWHERE)
    )

    def test_comes_back_as_it_was(self) -> None:
        self.assertEqual(decode_high_water(self.water.encode()), self.water)
        empty = HighWater(1, ROOT.digest)
        self.assertEqual(decode_high_water(empty.encode()), empty)

    def test_every_byte_counts(self) -> None:
        data = self.water.encode()
        for index in range(len(data)):
            bad = bytearray(data)
            bad[index] ^= 0x01
            self.refused("malformed", decode_high_water, bytes(bad))
            self.refused("malformed", decode_high_water, data[:index])

    @given(st.binary(max_size=100))
    def test_any_bytes(self, data: bytes) -> None:
        self.assertRaises(BundleError, decode_high_water, data)
