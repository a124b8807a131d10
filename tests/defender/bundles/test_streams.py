"""The machine of streams: what is accepted is on disk and in force before it is acknowledged."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from defender.bundles.commands import (
    Accepted,
    Activate,
    Frozen,
    Graded,
    Nack,
    PersistBundle,
    PersistMark,
    Refused,
    Skewed,
)
from defender.contract.bundle import NOWHERE
from defender.contract.contents import (
    LocksContent,
    PolicyContent,
    locks_content,
    mode_content,
    policy_content,
)
from defender.contract.envelope import MAX_ENVELOPE
from tests.defender.bundles.desk import acked, codes, started, those
from tests.defender.contract.signing import (
    DAY,
    FIRST,
    NOW,
    OTHER_DEFENDER,
    OTHER_FLEET,
    POLICY,
    new_root,
    position,
    signed,
    signed_root,
    snapshot_of,
    trust_push,
)


class Accepting(SynchronousTestCase):
    def test_on_disk_before_in_force_before_acknowledged(self) -> None:
        desk = started()
        data = signed(version=4)
        done = desk.offer("policy", data)
        self.assertEqual(
            [type(each).__name__ for each in done], ["PersistBundle", "Activate", "Accepted", "Ack"]
        )
        self.assertEqual(those(done, PersistBundle)[0].envelope, data)
        self.assertEqual(desk.in_force["policy"], PolicyContent("main", POLICY))
        self.assertEqual(desk.streams.positions()["policy"], position(data, 4))

    def test_every_stream(self) -> None:
        desk = started()
        for stream in ("locks", "mode", "policy"):
            self.assertEqual(acked(desk.offer(stream, signed(stream, 3))), [(stream, 3)])
        self.assertEqual(acked(desk.offer("trust", trust_push(3))), [("trust", 3)])
        self.assertEqual(set(desk.in_force), {"locks", "mode", "policy", "trust"})

    def test_the_same_again_is_acknowledged_and_nothing_else(self) -> None:
        desk = started()
        desk.offer("policy", signed(version=4))
        self.assertEqual([type(each).__name__ for each in desk.offer("policy", signed(version=4))], ["Ack"])

    def test_old_content_with_a_new_version(self) -> None:
        desk = started()
        for version in (1, 2, 3):
            desk.offer("policy", signed(version=version, content=policy_content(f"p{version % 2}", POLICY)))
        self.assertEqual(desk.in_force["policy"], PolicyContent("p1", POLICY))
        self.assertEqual(desk.version("policy"), 3)

    def test_one_at_a_time_and_the_newest_of_those_that_wait(self) -> None:
        desk = started()
        desk.hold = True
        for version in (1, 2, 3):
            desk.offer("policy", signed(version=version))
        desk.offer("locks", signed("locks", 1))
        self.assertEqual(len(desk.held), 1)
        before = len(desk.done)
        desk.release()
        self.assertEqual(acked(desk.done[before:]), [("policy", 1), ("policy", 3), ("locks", 1)])

    def test_an_answer_to_nothing_is_loud(self) -> None:
        desk = started()
        self.assertRaises(ValueError, desk.streams.persisted, 99, NOW)
        self.assertRaises(ValueError, desk.streams.activated, 99, NOW)
        desk.hold = True
        desk.offer("policy", signed())
        self.assertRaises(ValueError, desk.streams.activated, desk.held[0].ticket, NOW)


class Refusing(SynchronousTestCase):
    def setUp(self) -> None:
        self.desk = started()
        self.good = signed(version=12)
        self.desk.offer("policy", self.good)

    def assert_refused(self, code: str, data: bytes, stream: str = "policy") -> Nack:
        """The last good one stays in force and on disk, a NACK says so, and an event."""
        disk = (self.desk.mark, dict(self.desk.bundles), self.desk.roots)
        in_force = dict(self.desk.in_force)
        done = self.desk.offer(stream, data)
        self.assertEqual(codes(done), [code])
        self.assertEqual(disk, (self.desk.mark, self.desk.bundles, self.desk.roots))
        self.assertEqual(self.desk.in_force, in_force)
        (nack,) = those(done, Nack)
        self.assertEqual(nack.kept, self.desk.streams.positions()[stream])
        self.assertIn(code, self.desk.streams.status()[stream].refusal)
        return nack

    def test_each_with_its_code(self) -> None:
        tampered = bytearray(signed(version=13))
        tampered[-5] ^= 1
        for code, data in (
            ("bad-signature", bytes(tampered)),
            ("wrong-key", signed(version=13, by=("stranger",))),
            ("older-version", signed(version=11)),
            ("same-version", signed(version=12, author="another")),
            ("foreign-fleet", signed(version=13, fleet=OTHER_FLEET)),
            ("foreign-defender", signed(version=13, audience=(OTHER_DEFENDER,))),
            ("expired", signed(version=13, expires_at=NOW - 1)),
            ("not-yet-valid", signed(version=13, not_before=NOW + DAY)),
            ("epoch-ahead", signed(version=13, key_epoch=2)),
            ("agent-too-old", signed(version=13, min_agent="9.0")),
            ("wrong-stream", signed("locks", 13)),
            ("too-large", bytes(100 * 1024 * 1024)),
            ("too-large", self.good.ljust(MAX_ENVELOPE + 1, b" ")),
            ("malformed", b""),
            ("malformed", self.good + self.good),
            ("content-refused", signed(version=13, content=policy_content("main", "rules: 1"))),
        ):
            self.assertEqual(self.assert_refused(code, data).kept, position(self.good, 12))
        self.assertEqual(acked(self.desk.offer("policy", signed(version=13))), [("policy", 13)])
        self.assertEqual(self.desk.streams.status()["policy"].refusal, "")

    def test_a_stream_that_is_not_known(self) -> None:
        (nack,) = self.desk.offer("acl", signed())
        self.assertEqual(getattr(nack, "code", ""), "wrong-stream")

    def test_content_that_says_nothing_a_person_could_use(self) -> None:
        """The detail of a policy that does not load is its reader's."""
        bad = signed(version=13, content=policy_content("main", POLICY.replace("allow", "perhaps")))
        self.assertIn("main:5:", self.assert_refused("content-refused", bad).detail)

    def test_a_disk_that_is_full(self) -> None:
        self.desk.disk_full = "No space left on device"
        self.assertIn("No space", self.assert_refused("storage", signed(version=13)).detail)
        self.desk.disk_full = ""
        self.assertEqual(acked(self.desk.offer("policy", signed(version=13))), [("policy", 13)])

    def test_what_cannot_be_put_in_force(self) -> None:
        self.desk.offer("mode", signed("mode", 1))
        self.desk.port_taken = "tcp:9998: address already in use"
        done = self.desk.offer("mode", signed("mode", 2, content=mode_content("tcp")))
        self.assertEqual(codes(done), ["not-activated"])
        self.assertEqual(self.desk.version("mode"), 1)
        # Also after a start: version 2 is known, and not taken up by itself.
        self.desk.port_taken = ""
        self.desk.restart()
        self.assertEqual(self.desk.version("mode"), 1)
        self.assertEqual(codes(self.desk.offer("mode", signed("mode", 1))), ["older-version"])
        again = self.desk.offer("mode", signed("mode", 2, content=mode_content("tcp")))
        self.assertEqual(acked(again), [("mode", 2)])


class Starting(SynchronousTestCase):
    def setUp(self) -> None:
        self.desk = started()
        for stream in ("locks", "mode", "policy"):
            for version in (1, 2, 3):
                self.desk.offer(stream, signed(stream, version))
        self.desk.offer("trust", trust_push())

    def test_with_what_was_in_force(self) -> None:
        """Without a controller; the locks before the policy, since nobody is let in before they are known."""
        done = self.desk.restart()
        self.assertEqual(
            [each.bundle.stream for each in those(done, Activate)], ["trust", "locks", "policy", "mode"]
        )
        self.assertEqual([each.restored for each in those(done, Accepted)], [True] * 4)
        self.assertEqual([self.desk.version(each) for each in ("locks", "policy")], [3, 3])
        self.assertEqual(self.desk.streams.waiting, "")

    def test_it_is_verified_again(self) -> None:
        """Every byte of what is on disk."""
        good = self.desk.bundles["policy"][0]
        for at in range(0, len(good), 3):
            bad = bytearray(good)
            bad[at] ^= 0x20
            self.desk.bundles["policy"][0] = bytes(bad)
            done = self.desk.restart()
            self.assertEqual([each.what for each in those(done, Refused)], ["policy"])
            self.assertNotIn("policy", self.desk.in_force)
            self.assertIn("locks", self.desk.in_force)

    def test_damage_brings_no_older_policy_back(self) -> None:
        self.desk.bundles["policy"][0] = b"damaged"
        self.desk.restart()
        self.assertEqual(self.desk.version("policy"), 0)
        self.assertEqual(acked(self.desk.offer("policy", signed(version=3))), [("policy", 3)])

    def test_a_bundle_that_is_gone(self) -> None:
        del self.desk.bundles["locks"]
        (refused,) = those(self.desk.restart(), Refused)
        self.assertEqual((refused.what, refused.code), ("locks", "missing"))

    def test_what_cannot_be_put_in_force_now_may_be_at_the_next_start(self) -> None:
        """A port that was taken for a moment must not make the host forget where it listens."""
        self.desk.port_taken = "tcp:9998: address already in use"
        done = self.desk.restart()
        self.assertEqual({each.code for each in those(done, Refused)}, {"not-activated"})
        self.assertEqual(those(done, Nack), [])
        self.desk.port_taken = ""
        self.desk.restart()
        self.assertEqual(self.desk.version("mode"), 3)

    def test_expired_meanwhile(self) -> None:
        """It is in force, and said to be expired: what that means is the host's business."""
        self.desk.offer("policy", signed(version=4, expires_at=NOW + 10))
        self.desk.now += 11
        done = self.desk.restart()
        self.assertEqual([(each.stream, each.grade) for each in those(done, Graded)], [("policy", "expired")])
        self.assertEqual(self.desk.version("policy"), 4)

    def test_damaged_roots(self) -> None:
        self.desk.roots = FIRST[:-1]
        (refused,) = those(self.desk.restart(), Refused)
        self.assertEqual((refused.what, refused.code), ("root", "malformed"))
        self.assertEqual(self.desk.in_force, {})
        self.assertEqual(codes(self.desk.offer("policy", signed(version=9))), ["no-root"])
        self.assertIn("enroll", self.desk.streams.waiting)

    def test_roots_of_another_trust_domain(self) -> None:
        self.desk.roots = signed_root(new_root(trust_domain="other.fleet"))
        (refused,) = those(self.desk.restart(), Refused)
        self.assertEqual(refused.code, "foreign-fleet")


class WithoutAHighWaterFile(SynchronousTestCase):
    def setUp(self) -> None:
        self.desk = started()
        self.data = {version: signed(version=version) for version in (9, 10, 11, 12)}
        for version in (10, 11):
            self.desk.offer("policy", self.data[version])

    def snapshot(self, version: int) -> bytes:
        return snapshot_of({"policy": position(self.data[version], version)})

    def test_nothing_is_in_force_and_nothing_accepted_before_a_snapshot(self) -> None:
        self.desk.mark = None
        self.assertEqual(self.desk.restart(), [])
        self.assertIn("snapshot", self.desk.streams.waiting)
        self.assertEqual(self.desk.offer("policy", self.data[12]), [])
        self.assertEqual(self.desk.in_force, {})
        # The offer was not refused: it has waited.
        done = self.desk.snapshot(self.snapshot(12))
        self.assertIsInstance(done[0], PersistMark)
        self.assertEqual(acked(done), [("policy", 12)])
        self.assertEqual(self.desk.streams.waiting, "")

    def test_the_snapshot_vouches_for_what_is_on_disk(self) -> None:
        self.desk.mark = None
        self.desk.restart()
        done = self.desk.snapshot(self.snapshot(11))
        self.assertEqual([each.restored for each in those(done, Accepted)], [True])
        self.assertEqual(self.desk.version("policy"), 11)
        self.desk.restart()
        self.assertEqual(self.desk.version("policy"), 11)

    def test_what_is_below_the_snapshot_stays_out(self) -> None:
        self.desk.mark = None
        self.desk.restart()
        self.assertEqual(those(self.desk.snapshot(self.snapshot(12)), Activate), [])
        self.assertEqual(codes(self.desk.offer("policy", self.data[11])), ["older-version"])
        self.assertEqual(codes(self.desk.offer("policy", signed(version=12, author="x"))), ["same-version"])
        self.assertEqual(acked(self.desk.offer("policy", self.data[12])), [("policy", 12)])

    def test_what_is_above_the_snapshot_is_newer_than_the_controller(self) -> None:
        """A controller that was restored from a backup does not bring an old policy back."""
        self.desk.mark = None
        self.desk.restart()
        self.desk.snapshot(self.snapshot(9))
        self.assertEqual(self.desk.version("policy"), 11)

    def test_a_damaged_file_is_as_none(self) -> None:
        self.desk.mark = (self.desk.mark or b"")[:-1] + b"?"
        (refused,) = those(self.desk.restart(), Refused)
        self.assertEqual((refused.what, refused.code), ("high-water", "malformed"))
        self.assertEqual(self.desk.in_force, {})
        self.assertIn("snapshot", self.desk.streams.waiting)

    def test_an_older_file_is_as_none(self) -> None:
        older = self.desk.mark
        self.desk.offer("policy", self.data[12])
        self.desk.mark = older
        (refused,) = those(self.desk.restart(), Refused)
        self.assertEqual((refused.what, refused.code), ("high-water", "older-version"))
        self.assertEqual(self.desk.in_force, {})
        self.desk.snapshot(self.snapshot(12))
        self.assertEqual(self.desk.version("policy"), 12)

    def test_a_file_that_nobody_signed_is_no_reason(self) -> None:
        """A bundle above the mark counts only if it verifies."""
        self.desk.bundles["policy"].append(signed(version=99, by=("stranger",)))
        self.desk.restart()
        self.assertEqual(self.desk.version("policy"), 11)

    def test_a_disk_that_does_not_take_the_mark(self) -> None:
        self.desk.mark = None
        self.desk.restart()
        self.desk.disk_full = "Input/output error"
        (refused,) = those(self.desk.snapshot(self.snapshot(11)), Refused)
        self.assertEqual((refused.what, refused.code), ("snapshot", "storage"))
        self.assertEqual(self.desk.in_force, {})
        self.desk.disk_full = ""
        self.desk.snapshot(self.snapshot(11))
        self.assertEqual(self.desk.version("policy"), 11)


class Snapshots(SynchronousTestCase):
    def setUp(self) -> None:
        self.desk = started()
        self.data = signed(version=12, stale_after=600)
        self.desk.offer("policy", self.data)
        self.at = {"policy": position(self.data, 12)}

    def grades(self, done: list[object]) -> list[tuple[str, str]]:
        return [(each.stream, each.grade) for each in done if isinstance(each, Graded)]

    def test_a_stream_without_confirmation_becomes_stale(self) -> None:
        self.assertEqual(self.grades([*self.desk.tick(539)]), [])
        self.assertEqual(self.grades([*self.desk.tick(1)]), [("policy", "stale")])
        self.assertEqual(self.grades([*self.desk.tick(1)]), [])
        done = self.desk.snapshot(snapshot_of(self.at, time=self.desk.now))
        self.assertEqual(self.grades([*done]), [("policy", "fresh")])
        self.assertEqual(self.grades([*self.desk.tick(599)]), [])

    def frozen(self, done: list[object]) -> list[str]:
        return [each.reason for each in done if isinstance(each, Frozen)]

    def test_nothing_may_be_changed_without_a_snapshot_for_too_long(self) -> None:
        self.desk.silence = 3600.0
        self.desk.restart()
        self.desk.snapshot(snapshot_of(self.at, time=self.desk.now))
        self.assertEqual(self.frozen([*self.desk.tick(3599)]), [])
        (reason,) = self.frozen([*self.desk.tick(1)])
        self.assertIn("the controller has not been heard of since 20", reason)
        self.assertEqual(self.frozen([*self.desk.tick(1)]), [])
        # It is so after a start as well, and a clock that was set back does not end it.
        self.assertEqual(self.frozen([*self.desk.restart()]), [reason])
        self.desk.now -= 3000
        done = self.desk.snapshot(snapshot_of(self.at, time=self.desk.now))
        self.assertEqual(self.frozen([*done]), [""])

    def test_without_the_setting_it_may_be_as_old_as_it_likes(self) -> None:
        self.assertEqual(self.frozen([*self.desk.tick(10 * 365 * 86400)]), [])

    def test_nothing_may_be_changed_by_what_has_expired(self) -> None:
        until = int(self.desk.now) + 600
        self.desk.offer("policy", signed(version=13, expires_at=until))
        self.assertEqual(self.frozen([*self.desk.tick(599)]), [])
        (reason,) = self.frozen([*self.desk.tick(1)])
        self.assertIn("the policy of the fleet expired at 20", reason)
        done = self.desk.offer("policy", signed(version=14))
        self.assertEqual(self.frozen([*done]), [""])

    def test_a_frozen_stream_becomes_stale_although_snapshots_come(self) -> None:
        """They say that another version is the current one."""
        newer = {"policy": position(signed(version=13), 13)}
        self.desk.now += 600
        done = self.desk.snapshot(snapshot_of(newer, time=self.desk.now))
        self.assertEqual(self.grades([*done]), [("policy", "stale")])
        self.assertEqual(self.desk.streams.status()["policy"].behind, newer["policy"])

    def test_snapshots_that_are_held_back_do_not_help(self) -> None:
        """Their time counts, not that of their arrival."""
        self.desk.now += 700
        self.assertEqual(
            self.grades([*self.desk.snapshot(snapshot_of(self.at, time=NOW + 60))]), [("policy", "stale")]
        )

    def test_the_age_outlives_a_start(self) -> None:
        self.desk.snapshot(snapshot_of(self.at, time=NOW))
        self.desk.now += 601
        self.assertEqual(self.grades([*self.desk.restart()]), [("policy", "stale")])
        self.assertEqual(self.desk.version("policy"), 12)

    def test_what_comes_after_its_snapshot_is_confirmed_by_it(self) -> None:
        data = signed(version=13, issued_at=NOW - 10 * DAY)
        self.desk.snapshot(snapshot_of({"policy": position(data, 13)}))
        self.assertEqual(self.grades([*self.desk.offer("policy", data)]), [])

    def test_refused_snapshots_change_nothing(self) -> None:
        self.desk.snapshot(snapshot_of(self.at))
        before = self.desk.mark
        for code, data in (
            ("wrong-key", snapshot_of(self.at, by="bundle")),
            ("older-version", snapshot_of({})),
            ("same-version", snapshot_of({"policy": position(signed(version=12), 12)})),
            ("older-snapshot", snapshot_of(self.at, time=NOW - 301)),
            ("clock-jump", snapshot_of(self.at, time=NOW + DAY + 1)),
            ("foreign-defender", snapshot_of(self.at, audience=(OTHER_DEFENDER,))),
            ("too-large", bytes(100 * 1024 * 1024)),
            ("malformed", b""),
        ):
            (refused,) = those(self.desk.snapshot(data), Refused)
            self.assertEqual((refused.what, refused.code), ("snapshot", code))
            self.assertEqual(self.desk.mark, before)

    def test_the_clock_is_not_believed_below_the_last_snapshot(self) -> None:
        """Whoever sets this host's clock back cannot make an expired bundle good again."""
        self.desk.snapshot(snapshot_of(self.at, time=NOW + 100))
        self.desk.now = NOW - 1000
        self.assertEqual(self.desk.streams.clock(self.desk.now), NOW + 100)
        self.assertEqual(
            codes(self.desk.offer("policy", signed(version=13, expires_at=NOW + 50))), ["expired"]
        )
        self.desk.restart()
        self.assertEqual(
            codes(self.desk.offer("policy", signed(version=13, expires_at=NOW + 50))), ["expired"]
        )

    def test_a_clock_that_is_off_is_told_once(self) -> None:
        def skews(time: float) -> list[float]:
            return [
                each.seconds for each in those(self.desk.snapshot(snapshot_of(self.at, time=time)), Skewed)
            ]

        self.assertEqual(skews(NOW + 300), [])
        self.assertEqual(skews(NOW + 301), [301])
        self.assertEqual(skews(NOW + 302), [])
        self.desk.now += 300
        self.assertEqual(skews(NOW + 303), [0])


class Locks(SynchronousTestCase):
    def test_locks_are_whole(self) -> None:
        """Full state: what the new list does not have is unlocked, and there is no list without locks that
        was not sent."""
        desk = started()
        desk.offer("locks", signed("locks", 1))
        content = desk.in_force["locks"]
        assert isinstance(content, LocksContent)
        self.assertEqual(len(content.locks.locks), 1)
        desk.offer("locks", signed("locks", 2, content=locks_content([])))
        content = desk.in_force["locks"]
        assert isinstance(content, LocksContent)
        self.assertEqual(len(content.locks.locks), 0)
        self.assertEqual(desk.streams.positions()["policy"], NOWHERE)
