"""Roots in the machine of streams: rotation, recovery from a stolen key, and what is on disk."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from defender.bundles.commands import (
    PersistRoots,
    Refused,
    Rooted,
    Withdraw,
)
from defender.contract.contents import (
    PolicyContent,
    policy_content,
)
from defender.contract.envelope import Signer
from defender.contract.trust import ring_of
from tests.defender.bundles.desk import acked, codes, started, those
from tests.defender.contract.signing import (
    DAY,
    FIRST,
    NOW,
    POLICY,
    new_root,
    position,
    signed,
    signed_root,
    signer,
    snapshot_of,
    trust_push,
)


class Roots(SynchronousTestCase):
    def setUp(self) -> None:
        self.desk = started()
        for stream in ("locks", "mode", "policy"):
            self.desk.offer(stream, signed(stream, 1))
        self.desk.offer("trust", trust_push())

    def rotated(self, **changes: object) -> bytes:
        """A second root, signed by the old root key and a new one."""
        root = new_root(version=2, root=ring_of([signer("new root")]), **changes)
        return signed_root(root, "root", "new root")

    def test_rotation_with_both_signing_keys_listed(self) -> None:
        """Nothing is withdrawn; then the old key goes, when all has been signed again."""
        both = ring_of([signer("bundle"), signer("next")])
        second = self.rotated(bundle=both)
        done = self.desk.offer("trust", trust_push(2, (FIRST, second)))
        self.assertEqual([type(each).__name__ for each in done][:2], ["PersistRoots", "Rooted"])
        self.assertEqual(acked(done), [("trust", 2)])
        self.assertEqual(those(done, Withdraw), [])
        for stream in ("locks", "mode", "policy"):
            self.desk.offer(stream, signed(stream, 2, by=("next",)))
        third = signed_root(
            new_root(version=3, root=ring_of([signer("new root")]), bundle=ring_of([signer("next")])),
            "new root",
        )
        done = self.desk.offer("trust", trust_push(3, (FIRST, second, third), by=("next",)))
        self.assertEqual([each.stream for each in those(done, Withdraw)], ["trust"])
        self.assertEqual(acked(done), [("trust", 3)])
        self.assertEqual(codes(self.desk.offer("policy", signed(version=3))), ["wrong-key"])
        self.desk.restart()
        self.assertEqual([self.desk.version(each) for each in ("trust", "locks", "policy")], [3, 2, 2])

    def test_a_root_that_the_old_keys_did_not_sign(self) -> None:
        root = new_root(version=2, root=ring_of([signer("stranger")]), bundle=ring_of([signer("stranger")]))
        before = self.desk.roots
        done = self.desk.offer(
            "trust", trust_push(2, (FIRST, signed_root(root, "stranger")), by=("stranger",))
        )
        self.assertEqual(codes(done), ["wrong-key"])
        self.assertEqual(self.desk.roots, before)
        self.assertEqual(self.desk.version("trust"), 1)

    def test_the_bundle_names_the_roots_before_it(self) -> None:
        """No byte of the push can be changed, not even of the roots that are held already."""
        good = trust_push(2)
        for at in range(0, len(good), 5):
            bad = bytearray(good)
            bad[at] ^= 1
            self.assertEqual(len(codes(self.desk.offer("trust", bytes(bad)))), 1, at)
        self.assertEqual(codes(self.desk.offer("trust", good[len(FIRST) :])), ["content-mismatch"])
        self.assertEqual(acked(self.desk.offer("trust", good)), [("trust", 2)])

    def test_a_stolen_signing_key_at_the_highest_version(self) -> None:
        """A root with a higher epoch and another key ends what the thief signed, at once and after a start;
        the fleet goes on with small numbers."""
        stolen = policy_content("thief", POLICY.replace("admin", "thief"))
        for version in (2**63, 2**64 - 1):
            done = self.desk.offer("policy", signed(version=version, content=stolen))
            self.assertEqual(acked(done), [("policy", version)])
        self.assertEqual(codes(self.desk.offer("policy", signed(version=2))), ["older-version"])
        second = self.rotated(key_epoch=2, bundle=ring_of([signer("next")]), issued_at=NOW)
        done = self.desk.offer("trust", trust_push(1, (FIRST, second), by=("next",), key_epoch=2))
        self.assertEqual(acked(done), [("trust", 1)])
        self.assertEqual(
            {each.stream for each in those(done, Withdraw)}, {"trust", "locks", "mode", "policy"}
        )
        self.assertEqual(set(self.desk.in_force), {"trust"})
        # What was withdrawn is not looked for at a start.
        self.assertEqual(those(self.desk.restart(), Refused), [])
        self.assertEqual(set(self.desk.in_force), {"trust"})
        self.assertEqual(
            codes(self.desk.offer("policy", signed(version=2**64 - 1, content=stolen))), ["wrong-key"]
        )
        done = self.desk.offer("policy", signed(version=2, by=("next",), key_epoch=2))
        self.assertEqual(acked(done), [("policy", 2)])
        self.assertEqual(self.desk.in_force["policy"], PolicyContent("main", POLICY))
        self.desk.restart()
        self.assertEqual(self.desk.version("policy"), 2)

    def test_a_stolen_snapshot_key_in_the_future(self) -> None:
        """The time that a thief has signed ends with its epoch."""
        self.desk.now = NOW + 1
        at = {stream: position(signed(stream, 1), 1) for stream in ("locks", "mode", "policy")}
        at["trust"] = position(trust_push()[len(FIRST) :], 1)
        self.desk.snapshot(snapshot_of(at, time=NOW + DAY))
        self.assertEqual(self.desk.streams.clock(NOW), NOW + DAY)
        second = self.rotated(key_epoch=2, snapshot=ring_of([signer("next snapshot")]), issued_at=NOW)
        push = trust_push(1, (FIRST, second), key_epoch=2)
        self.desk.offer("trust", push)
        self.assertEqual(self.desk.streams.clock(NOW), NOW)
        at = {"trust": position(push[len(FIRST + second) :], 1, 2)}
        done = self.desk.snapshot(snapshot_of(at, time=NOW + 1, by="next snapshot"))
        self.assertEqual(those(done, Refused), [])
        self.assertEqual(self.desk.streams.clock(NOW), NOW + 1)

    def test_a_raised_epoch_with_the_same_key(self) -> None:
        second = self.rotated(key_epoch=2)
        done = self.desk.offer("trust", trust_push(1, (FIRST, second), key_epoch=2))
        self.assertEqual(len(those(done, Withdraw)), 4)
        self.assertEqual(codes(self.desk.offer("policy", signed(version=99))), ["epoch-retired"])

    def test_a_raised_minimum_withdraws_what_is_below(self) -> None:
        second = self.rotated(minimum={"policy": 2, "locks": 1})
        done = self.desk.offer("trust", trust_push(2, (FIRST, second)))
        self.assertEqual([each.stream for each in those(done, Withdraw)], ["policy"])
        self.assertEqual(codes(self.desk.offer("policy", signed(version=1))), ["below-minimum"])
        (refused,) = those(self.desk.snapshot(snapshot_of({})), Refused)
        self.assertEqual((refused.what, refused.code), ("snapshot", "below-minimum"))

    def test_a_root_ends_what_it_would_not_let_in(self) -> None:
        """Also a bundle that one of two keys still vouches for: at a start it would be refused."""
        both = ring_of([signer("bundle"), signer("second")])
        second = self.rotated(bundle=both)
        self.desk.offer("trust", trust_push(2, (FIRST, second)))
        self.desk.offer("policy", signed(version=2, by=("bundle", "second")))
        root = new_root(version=3, root=ring_of([signer("new root")]))
        third = signed_root(root, "new root")
        done = self.desk.offer("trust", trust_push(3, (FIRST, second, third)))
        self.assertEqual([each.stream for each in those(done, Withdraw)], ["policy"])
        fourth = signed_root(
            new_root(version=4, root=root.root, bundle=ring_of(self.signers(), 2)), "new root"
        )
        push = trust_push(4, (FIRST, second, third, fourth), by=("bundle", "second"))
        done = self.desk.offer("trust", push)
        self.assertEqual([each.stream for each in those(done, Withdraw)], ["locks", "mode", "trust"])
        self.assertEqual(acked(done), [("trust", 4)])

    @staticmethod
    def signers() -> list[Signer]:
        return [signer("bundle"), signer("second")]

    def test_roots_that_the_disk_does_not_take(self) -> None:
        self.desk.disk_full = "No space left on device"
        push = trust_push(2, (FIRST, self.rotated()))
        self.assertEqual(codes(self.desk.offer("trust", push)), ["storage"])
        self.assertEqual(self.desk.streams.root and self.desk.streams.root.version, 1)
        self.desk.disk_full = ""
        self.assertEqual(acked(self.desk.offer("trust", push)), [("trust", 2)])

    def test_before_a_snapshot_roots_are_taken_and_their_bundle_waits(self) -> None:
        """The snapshot may be signed by a key of the new root."""
        self.desk.mark = None
        self.desk.restart()
        second = self.rotated(snapshot=ring_of([signer("next snapshot")]))
        push = trust_push(2, (FIRST, second))
        done = self.desk.offer("trust", push)
        self.assertEqual([type(each).__name__ for each in done], ["PersistRoots", "Rooted"])
        at = {"trust": position(push[len(FIRST + second) :], 2)}
        (refused,) = those(self.desk.snapshot(snapshot_of(at)), Refused)
        self.assertEqual(refused.code, "wrong-key")
        done = self.desk.snapshot(snapshot_of(at, by="next snapshot"))
        self.assertIn(("trust", 2), acked(done))

    def test_an_older_root_on_disk_is_not_used(self) -> None:
        """The root may list the very key that the newer one ended."""
        second = self.rotated(bundle=ring_of([signer("next")]))
        push = trust_push(2, (FIRST, second), by=("next",))
        self.desk.offer("trust", push)
        self.desk.offer("policy", signed(version=2, by=("next",)))
        self.desk.roots = FIRST
        (refused,) = those(self.desk.restart(), Refused)
        self.assertEqual((refused.what, refused.code), ("root", "older-version"))
        self.assertEqual(self.desk.in_force, {})
        self.assertEqual(self.desk.offer("policy", signed(version=3)), [])
        self.assertEqual(self.desk.snapshot(snapshot_of({})), [])
        done = self.desk.offer("trust", push)
        self.assertEqual([each.version for each in those(done, Rooted)], [2])
        self.assertEqual((self.desk.version("trust"), self.desk.version("policy")), (2, 2))
        self.assertIn("wrong-key", self.desk.streams.status()["policy"].refusal)

    def test_a_root_between_is_not_enough(self) -> None:
        """Held is root 1, accepted was root 3: root 2 must not lower the mark."""
        frames = [FIRST, signed_root(new_root(version=2)), signed_root(new_root(version=3))]
        self.desk.offer("trust", trust_push(3, frames))
        self.desk.roots = FIRST
        self.desk.restart()
        self.assertEqual(codes(self.desk.offer("trust", trust_push(2, frames[:2]))), ["older-version"])
        self.assertEqual(self.desk.in_force, {})
        self.assertEqual(self.desk.roots, FIRST)
        self.desk.offer("trust", trust_push(3, frames))
        self.assertEqual((self.desk.version("trust"), self.desk.version("policy")), (3, 1))

    def test_another_root_of_the_same_version_on_disk(self) -> None:
        self.desk.roots = signed_root(new_root(issued_at=NOW - 5))
        (refused,) = those(self.desk.restart(), Refused)
        self.assertEqual((refused.what, refused.code), ("root", "older-version"))
        self.assertEqual(self.desk.in_force, {})

    def test_a_long_chain_is_kept_short(self) -> None:
        frames = [FIRST]
        for version in range(2, 30):
            frames.append(signed_root(new_root(version=version)))
            self.desk.offer("trust", trust_push(version, frames))
        self.assertEqual(self.desk.version("trust"), 29)
        self.desk.restart()
        self.assertEqual(self.desk.streams.root and self.desk.streams.root.version, 29)
        self.assertLess(len(self.desk.roots or b""), 20 * len(FIRST))
        self.assertEqual(those(self.desk.done, PersistRoots)[-1].chain, self.desk.roots)
