"""The rollout: single stories of what is offered to whom."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from controller.distribution import AT_ONCE, GRADUAL, Distribution, RolloutError
from controller.releases import (
    NOTHING,
    Aborted,
    Advanced,
    Ahead,
    Cause,
    Command,
    Conflict,
    Halted,
    Held,
    Offer,
    Phase,
    Plan,
    Position,
    Refusal,
    Reissue,
    Release,
    Resumed,
    Settled,
    Standing,
    Superseded,
    Wake,
    Wave,
    turn_order,
)

BAD = Refusal("schema", "the schema is from the future")


def at(version: int, epoch: int = 1) -> Position:
    return Position(epoch, version)


def release(version: int, *audience: str, origin: int | None = None) -> Release:
    return Release(at(version), bytes([version]), at(origin or version), frozenset(audience) or None)


def held(version: int) -> Held:
    return Held(at(version), bytes([version]))


def offers(commands: list[Command]) -> dict[int, set[str]]:
    """version -> who it was offered to."""
    found: dict[int, set[str]] = {}
    for command in commands:
        if isinstance(command, Offer):
            found.setdefault(command.position.version, set()).update(command.defenders)
    return found


class Story(SynchronousTestCase):
    """A fleet of `names`, connected, that follows the line "p" and holds nothing."""

    names: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.stream = Distribution()
        self.now = 100.0
        for name in self.names:
            self.stream.connected(name, None, self.now)
            self.stream.assign(name, "p", self.now)

    def publish(self, version: int, plan: Plan = GRADUAL, line: str = "p", **more: int) -> list[Command]:
        return self.stream.publish(line, release(version, **more), plan, self.now)

    def ack(self, name: str, version: int) -> list[Command]:
        return self.stream.acked(name, held(version), self.now)

    def refuse(self, name: str, version: int) -> list[Command]:
        return self.stream.refused(name, at(version), BAD, self.now)

    def settle(self, version: int, line: str = "p") -> None:
        """Publish to everybody and let everybody take it."""
        for name in sorted(offers(self.publish(version, AT_ONCE, line)).get(version, ())):
            self.ack(name, version)
        self.assertIs(self.stream.progress(line).phase, Phase.SETTLED)

    def counts(self) -> tuple[int, int, int, int]:
        """acked, refused, offline, waiting; they add up."""
        progress = self.stream.progress("p")
        found = (progress.acked, progress.refused, progress.offline, progress.waiting)
        self.assertEqual(sum(found), progress.total)
        return found


class Waves(Story):
    names = tuple(f"web{number}" for number in range(30))

    def test_one_then_a_tenth_then_all(self) -> None:
        order = turn_order(at(1), self.names)
        self.assertEqual(self.publish(1), [Wake(160.0), Offer(at(1), (order[0],))])
        self.assertEqual(self.counts(), (0, 0, 0, 30))
        second = self.ack(order[0], 1)
        self.assertEqual(second, [Advanced("p", at(1), 2, 3), Wake(160.0), Offer(at(1), tuple(order[1:3]))])
        self.assertEqual(self.ack(order[1], 1), [])
        third = self.ack(order[2], 1)
        self.assertEqual(third[0], Advanced("p", at(1), 3, 3))
        self.assertEqual(offers(third), {1: set(order[3:])})
        for name in order[3:-1]:
            self.assertEqual(self.ack(name, 1), [])
        self.assertEqual(self.ack(order[-1], 1), [Settled("p", at(1))])
        self.assertEqual(self.counts(), (30, 0, 0, 0))

    def test_everybody_at_once(self) -> None:
        self.assertEqual(self.publish(1, AT_ONCE), [Offer(at(1), tuple(sorted(self.names)))])

    def test_it_is_not_always_the_same_host_that_goes_first(self) -> None:
        firsts = {turn_order(at(version), self.names)[0] for version in range(1, 20)}
        self.assertGreater(len(firsts), 3)

    def test_a_refusal_stops_the_waves(self) -> None:
        (first,) = offers(self.publish(1))[1]
        self.assertEqual(
            self.refuse(first, 1),
            [Halted("p", at(1), Cause.REFUSED, (first,), "schema: the schema is from the future")],
        )
        self.assertEqual(self.counts(), (0, 1, 0, 29))
        # Nobody else is asked, whoever comes and goes.
        for name in self.names:
            self.stream.disconnected(name, self.now)
            self.assertEqual(offers(self.stream.connected(name, None, self.now)), {})
        self.assertEqual(self.stream.tick(10_000), [])

    def test_a_refusal_of_what_another_key_signed_again_stops_the_waves(self) -> None:
        self.publish(4, AT_ONCE)
        for name in self.names:
            self.ack(name, 4)
        for stream in (self.stream, Distribution()):
            if stream is self.stream:
                stream.publish("p", release(7, origin=4), GRADUAL, self.now)
                kept = stream.state("p")
            else:
                for name in self.names:
                    stream.restore_defender(name, "p", held(4))
                stream.restore(kept, self.now)
                for name in self.names:
                    stream.connected(name, held(4), self.now)
            self.assertEqual(stream.origin_of(at(7)), at(4))
            first, *_ = [name for name in self.names if stream.standing(name)[0] is Standing.SENT]
            commands = stream.refused(first, at(7), BAD, self.now)
            self.assertEqual([type(each) for each in commands], [Halted])
            self.assertEqual(stream.standing(first), (Standing.REFUSED, BAD))

    def test_a_refusal_in_the_last_wave_stops_those_who_return(self) -> None:
        self.stream.disconnected("web7", self.now)
        (first,) = offers(self.publish(1))[1]
        last: list[Command] = self.ack(first, 1)
        while not any(isinstance(each, Advanced) and each.wave == 3 for each in last):
            (name, *_) = sorted(offers(last)[1])
            for each in sorted(offers(last)[1]):
                last = self.ack(each, 1)
        name = sorted(offers(last)[1])[0]
        self.assertIsInstance(self.refuse(name, 1)[0], Halted)
        self.assertEqual(offers(self.stream.connected("web7", None, self.now)), {})
        self.assertEqual(offers(self.stream.resume("p", self.now)), {1: {"web7"}})

    def test_resumed_it_goes_on_without_the_one_that_refused(self) -> None:
        (first,) = offers(self.publish(1))[1]
        self.refuse(first, 1)
        going_on = self.stream.resume("p", self.now)
        self.assertEqual(going_on[:2], [Resumed("p", at(1)), Advanced("p", at(1), 2, 3)])
        while True:
            asked = sorted(offers(going_on).get(1, ()))
            self.assertNotIn(first, asked)
            if not asked:
                break
            for name in asked:
                going_on = self.ack(name, 1)
        self.assertEqual(going_on, [Settled("p", at(1))])
        self.assertEqual(self.counts(), (29, 1, 0, 0))
        self.assertEqual(self.stream.standing(first), (Standing.REFUSED, BAD))

    def test_a_wave_that_does_not_answer_stops(self) -> None:
        (first,) = offers(self.publish(1))[1]
        self.assertEqual(self.stream.tick(159.9), [])
        self.assertEqual(self.stream.tick(160.0), [Halted("p", at(1), Cause.SILENT, (first,))])
        # It answers after all: that is noted, and somebody still has to say go.
        self.assertEqual(self.ack(first, 1), [])
        self.assertEqual(self.counts(), (1, 0, 0, 29))
        self.assertIn(Advanced("p", at(1), 2, 3), self.stream.resume("p", self.now))

    def test_a_wave_that_vanished_proves_nothing(self) -> None:
        (first,) = offers(self.publish(1))[1]
        self.assertEqual(self.stream.disconnected(first, self.now), [])
        self.assertEqual(self.stream.tick(160.0), [Halted("p", at(1), Cause.SILENT, (first,))])

    def test_a_vanished_member_does_not_hold_up_a_wave_that_another_proved(self) -> None:
        (first,) = offers(self.publish(1))[1]
        one, other = sorted(offers(self.ack(first, 1))[1])
        self.ack(one, 1)
        self.assertEqual(self.stream.disconnected(other, self.now)[0], Advanced("p", at(1), 3, 3))

    def test_somebody_stops_it_and_gives_it_up(self) -> None:
        (first,) = offers(self.publish(1))[1]
        self.assertEqual(
            self.stream.halt("p", "wait for Ann"), [Halted("p", at(1), Cause.OPERATOR, (), "wait for Ann")]
        )
        self.assertEqual(self.ack(first, 1), [])
        self.assertEqual(self.stream.abort("p"), [Aborted("p", at(1))])
        self.assertEqual(self.counts(), (1, 0, 0, 29))
        for wrong in (self.stream.halt, self.stream.abort):
            with self.assertRaisesRegex(RolloutError, "version 1 of 'p' is aborted"):
                wrong("p")
        with self.assertRaisesRegex(RolloutError, "is aborted, not halted"):
            self.stream.resume("p", self.now)
        with self.assertRaisesRegex(RolloutError, "nothing was published on 'q'"):
            self.stream.halt("q")


class ComingAndGoing(Story):
    names = ("a", "b", "c")

    def test_who_was_away_gets_it_on_return(self) -> None:
        self.stream.disconnected("c", self.now)
        self.settle(1)
        self.assertEqual(self.counts(), (2, 0, 1, 0))
        self.assertEqual(self.stream.connected("c", None, self.now), [Offer(at(1), ("c",))])
        self.assertEqual(self.ack("c", 1), [])
        self.assertEqual(self.counts(), (3, 0, 0, 0))

    def test_who_has_it_already_is_not_asked(self) -> None:
        self.settle(1)
        self.stream.disconnected("a", self.now)
        self.assertEqual(self.counts(), (3, 0, 0, 0))
        self.assertEqual(self.stream.connected("a", held(1), self.now), [])

    def test_who_lost_it_gets_it_again(self) -> None:
        self.settle(1)
        self.assertEqual(self.stream.connected("a", None, self.now), [Offer(at(1), ("a",))])

    def test_a_second_session_is_asked_again(self) -> None:
        self.publish(1, AT_ONCE)
        self.assertEqual(self.stream.connected("a", None, self.now), [Offer(at(1), ("a",))])

    def test_who_was_away_waits_for_its_wave_with_the_base(self) -> None:
        self.stream.disconnected("c", self.now)
        self.settle(1)
        self.stream.disconnected("b", self.now)
        self.assertEqual(offers(self.publish(2)), {2: {"a"}})
        self.assertEqual(self.stream.connected("c", None, self.now), [Offer(at(1), ("c",))])
        self.assertEqual(self.stream.desired("c"), release(1))
        self.refuse("a", 2)
        self.assertEqual(self.stream.desired("a"), release(1))
        self.assertEqual(offers(self.stream.connected("b", held(1), self.now)), {})
        self.assertEqual(self.counts(), (0, 1, 0, 2))

    def test_a_release_without_followers_settles(self) -> None:
        for name in self.names:
            self.stream.remove(name, self.now)
        self.assertEqual(
            self.publish(1), [Advanced("p", at(1), 2, 3), Advanced("p", at(1), 3, 3), Settled("p", at(1))]
        )
        self.stream.connected("n", None, self.now)
        self.assertEqual(self.stream.assign("n", "p", self.now), [Offer(at(1), ("n",))])

    def test_nobody_there_yet(self) -> None:
        for name in self.names:
            self.stream.disconnected(name, self.now)
        self.assertEqual(self.publish(1), [])
        self.assertEqual(self.stream.connected("b", None, self.now), [Wake(160.0), Offer(at(1), ("b",))])

    def test_the_only_one_of_a_wave_leaves_the_fleet(self) -> None:
        (first,) = offers(self.publish(1))[1]
        self.assertEqual(set(offers(self.stream.remove(first, self.now))[1]) & {first}, set())
        self.assertEqual(self.counts(), (0, 0, 0, 2))
        self.assertEqual(self.stream.progress("p").sent, 1)

    def test_strangers_do_no_harm(self) -> None:
        self.settle(1)
        self.assertEqual(self.stream.disconnected("x", self.now), [])
        self.assertEqual(self.ack("x", 1), [])
        self.assertEqual(self.refuse("x", 1), [])
        self.assertEqual(self.stream.remove("x", self.now), [])
        self.assertEqual(self.stream.connected("x", None, self.now), [])
        self.assertIsNone(self.stream.desired("x"))
        self.assertIsNone(self.stream.line_of("x"))


class Races(Story):
    names = ("a", "b", "c")

    def test_the_newer_of_two_wins_in_either_order(self) -> None:
        self.assertEqual(offers(self.publish(2, AT_ONCE)), {2: {"a", "b", "c"}})
        self.assertEqual(self.publish(1, AT_ONCE), [Superseded("p", at(1), at(2))])
        again = self.publish(3, AT_ONCE)
        self.assertEqual(again[0], Superseded("p", at(2), at(3)))
        self.assertEqual(offers(again), {3: {"a", "b", "c"}})
        # The answer to the older one is late.
        self.assertEqual(self.ack("a", 2), [])
        self.assertEqual(self.ack("a", 3), [])
        self.assertEqual(self.counts(), (1, 0, 0, 2))

    def test_a_late_refusal_of_the_older_does_not_stop_the_newer(self) -> None:
        (first,) = offers(self.publish(1))[1]
        self.publish(2)
        self.assertEqual(offers(self.refuse(first, 1)), {})
        self.assertIs(self.stream.progress("p").phase, Phase.RUNNING)
        self.assertEqual(self.counts(), (0, 0, 0, 3))

    def test_a_newer_one_takes_over_a_halted_one(self) -> None:
        (first,) = offers(self.publish(1))[1]
        self.refuse(first, 1)
        self.assertEqual(self.publish(2, AT_ONCE)[0], Superseded("p", at(1), at(2)))

    def test_a_rollback_is_a_release_like_any_other(self) -> None:
        self.settle(1)
        (first,) = offers(self.publish(2))[2]
        self.ack(first, 2)
        back = self.publish(3, AT_ONCE)
        self.assertEqual(offers(back), {3: {"a", "b", "c"}})

    def test_a_higher_key_epoch_outranks_any_version(self) -> None:
        self.settle(200)
        newer = Release(at(1, epoch=2), b"n", at(1, epoch=2))
        self.assertEqual(
            self.stream.publish("p", newer, AT_ONCE, self.now), [Offer(at(1, epoch=2), ("a", "b", "c"))]
        )


class Lines(Story):
    names = ("a", "b", "c")

    def test_a_defender_that_changes_its_line_gets_what_that_one_has(self) -> None:
        self.settle(1)
        self.settle(2, "q")
        self.assertEqual(self.stream.assign("a", "q", self.now), [Offer(at(2), ("a",))])
        self.assertEqual(self.counts(), (2, 0, 0, 0))

    def test_a_lower_number_is_signed_again(self) -> None:
        self.settle(1)
        self.settle(2, "q")
        self.stream.assign("a", "q", self.now)
        self.ack("a", 2)
        self.assertEqual(self.stream.assign("a", "p", self.now), [Reissue("p", at(1), ("a",))])
        self.assertEqual(self.counts(), (2, 0, 0, 1))
        # It is asked for once.
        self.assertEqual(self.stream.connected("a", held(2), self.now), [])
        again = release(3, "a", origin=1)
        self.assertEqual(self.stream.reissued("p", again, self.now), [Offer(at(3), ("a",))])
        self.assertEqual(self.stream.desired("a"), again)
        self.assertEqual(self.stream.progress("p").sent, 1)
        self.assertEqual(self.ack("a", 3), [])
        self.assertEqual(self.counts(), (3, 0, 0, 0))
        self.assertEqual(self.stream.connected("a", held(3), self.now), [])
        self.assertEqual(self.stream.highest, at(3))

    def test_a_bundle_for_others_is_signed_again(self) -> None:
        self.stream.publish("p", release(1, "a", "b", "c"), AT_ONCE, self.now)
        self.stream.connected("new", None, self.now)
        self.assertEqual(self.stream.assign("new", "p", self.now), [Reissue("p", at(1), ("new",))])
        self.stream.reissue_failed("p", at(1), ("new",))
        self.assertEqual(self.stream.connected("new", None, self.now), [Reissue("p", at(1), ("new",))])

    def test_what_was_refused_is_not_signed_again(self) -> None:
        self.settle(1)
        self.settle(2, "q")
        self.stream.assign("a", "q", self.now)
        self.ack("a", 2)
        self.stream.assign("a", "p", self.now)
        self.stream.reissued("p", release(3, "a", origin=1), self.now)
        self.assertEqual(self.refuse("a", 3), [])
        self.assertEqual(self.stream.standing("a"), (Standing.REFUSED, BAD))
        for line in ("q", "p"):
            self.stream.assign("a", line, self.now)
        self.assertEqual(self.stream.connected("a", held(2), self.now), [])

    def test_a_reissue_that_comes_too_late(self) -> None:
        self.stream.publish("p", release(1, "b", "c"), AT_ONCE, self.now)
        self.assertEqual(offers(self.publish(2, AT_ONCE)), {2: {"a", "b", "c"}})
        self.assertEqual(self.stream.reissued("p", release(3, "a", "gone", origin=1), self.now), [])

    def test_what_was_held_first_stays_what_is_desired(self) -> None:
        """Signed again for nothing: the link was lost before the answer to the first came."""
        self.stream.publish("p", release(1, "a", "b", "c"), AT_ONCE, self.now)
        self.stream.connected("new", None, self.now)
        self.stream.assign("new", "p", self.now)
        self.stream.reissued("p", release(2, "new", "a", origin=1), self.now)
        self.assertEqual(self.stream.desired("new"), release(2, "new", "a", origin=1))
        self.ack("a", 1)
        self.assertEqual(self.stream.desired("a"), release(1, "a", "b", "c"))
        self.stream.reissue_failed("p", at(1), ("a", "nobody"))

    def test_nothing_is_desired_beyond_what_was_refused(self) -> None:
        self.publish(1, AT_ONCE)
        self.assertEqual(self.stream.desired("a"), release(1))
        self.refuse("a", 1)
        self.assertIsNone(self.stream.desired("a"))
        self.assertIsNone(self.stream.desired("nobody"))

    def test_who_is_beyond_the_base_keeps_what_it_has(self) -> None:
        self.settle(1)
        self.publish(2, AT_ONCE)
        self.ack("a", 2)
        self.publish(3)
        self.stream.halt("p")
        waiting = [who for who in self.names if self.stream.progress("p").queued and who == "a"]
        self.assertEqual(waiting, ["a"])
        self.assertIsNone(self.stream.desired("a"))
        self.assertEqual(self.stream.desired("b"), release(1))

    def test_late_answers_change_nothing(self) -> None:
        self.settle(1)
        self.settle(2)
        self.assertEqual(self.ack("a", 1), [])
        self.assertEqual(self.refuse("a", 2), [])
        self.assertEqual(self.stream.standing("a"), (Standing.ACKED, None))
        self.stream.assign("a", None, self.now)
        self.assertEqual(self.refuse("a", 2), [])

    def test_several_go_at_once(self) -> None:
        """None of them is picked for the place that another has just left."""
        self.settle(1, "q")
        said = self.publish(2)
        (first,) = offers(said)[2]
        others = [who for who in self.names if who != first]
        moved = self.stream.assign_all({first: "q", others[0]: "q"}, self.now)
        self.assertEqual(offers(moved), {1: {others[0]}, 2: {others[1]}})

    def test_no_line_is_no_offer(self) -> None:
        self.settle(1)
        self.assertEqual(self.stream.assign("a", None, self.now), [])
        self.publish(2, AT_ONCE)
        self.assertEqual(self.stream.connected("a", None, self.now), [])

    def test_a_line_is_retired_when_nobody_follows_it(self) -> None:
        self.settle(1)
        with self.assertRaisesRegex(RolloutError, "3 defenders"):
            self.stream.retire("p")
        for name in self.names:
            self.stream.assign(name, None, self.now)
        self.stream.retire("p")
        self.assertEqual(self.stream.lines(), ())


class ClaimsOfDefenders(Story):
    names = ("a", "b", "c")

    def test_a_number_that_nobody_issued_changes_nothing(self) -> None:
        self.settle(1)
        self.assertEqual(self.stream.connected("a", held(9), self.now), [Ahead("a", held(9))])
        self.assertEqual(self.stream.highest, at(1))
        self.assertEqual(offers(self.publish(2, AT_ONCE)), {2: {"b", "c"}})
        self.ack("b", 2)
        self.assertEqual(self.ack("c", 2), [Settled("p", at(2))])
        self.assertEqual(self.counts(), (2, 0, 0, 1))

    def test_proved_it_is_above_all_that_comes(self) -> None:
        self.settle(1)
        self.stream.connected("a", held(9), self.now)
        self.assertEqual(self.stream.verified(at(9), self.now), [Reissue("p", at(1), ("a",))])
        self.assertEqual(self.stream.highest, at(9))

    def test_other_content_under_our_number(self) -> None:
        self.settle(1)
        other = Held(at(1), b"other")
        self.assertEqual(
            self.stream.connected("a", other, self.now), [Conflict("a", other), Reissue("p", at(1), ("a",))]
        )
        self.assertEqual(self.counts(), (2, 0, 0, 1))


class TakingUpAgain(Story):
    names = tuple("abcdefghijklmnopqrstuvwxyz")

    def restart(self) -> None:
        """A controller that knows what was kept, and nobody connected."""
        old, self.stream = self.stream, Distribution()
        rows = [(name, *old.standing(name)) for name in self.names]
        for name, standing, _ in rows:
            version = old.progress("p").position.version
            self.stream.restore_defender(name, "p", held(version) if standing is Standing.ACKED else None)
        self.assertEqual(old.lines(), ("p",))
        self.said = self.stream.restore(old.state("p"), self.now)
        for name, _, refusal in rows:
            if refusal is not None:
                self.stream.restore_refusal(name, old.state("p").release.origin, refusal)
        self.assertEqual(self.stream.state("p"), old.state("p"))

    def test_a_wave_goes_on(self) -> None:
        (first,) = offers(self.publish(1))[1]
        self.restart()
        self.assertEqual(self.said, [Wake(160.0)])
        self.assertEqual(self.stream.connected("x", None, self.now), [])
        self.assertEqual(self.stream.connected(first, None, self.now), [Offer(at(1), (first,))])

    def test_the_last_wave_waits_for_who_comes_back(self) -> None:
        self.publish(1, AT_ONCE)
        self.ack("a", 1)
        self.restart()
        self.assertEqual(self.stream.connected("b", None, self.now), [Offer(at(1), ("b",))])
        self.assertEqual(self.ack("b", 1), [])
        self.assertEqual(self.counts(), (2, 0, 24, 0))
        self.assertEqual(self.stream.tick(160.0), [Settled("p", at(1))])

    def test_a_refusal_of_something_long_gone_is_not_taken_up(self) -> None:
        self.settle(1)
        self.stream.restore_refusal("a", at(77), BAD)
        self.assertEqual(self.stream.standing("a"), (Standing.ACKED, None))

    def test_a_halt_and_its_reason_are_kept(self) -> None:
        (first,) = offers(self.publish(1))[1]
        self.refuse(first, 1)
        self.restart()
        self.assertEqual(self.said, [])
        self.assertEqual(self.stream.connected(first, None, self.now), [])
        self.assertEqual(self.stream.standing(first), (Standing.REFUSED, BAD))
        halted = self.stream.state("p").halted
        assert halted is not None
        self.assertEqual(halted.defenders, (first,))

    def test_what_was_signed_again_is_known(self) -> None:
        self.settle(1)
        self.settle(2, "q")
        self.stream.assign("a", "q", self.now)
        self.ack("a", 2)
        self.stream.assign("a", "p", self.now)
        self.stream.reissued("p", release(3, "a", origin=1), self.now)
        state = self.stream.state("p")
        self.stream = Distribution()
        self.stream.restore_defender("a", "p", held(3))
        self.stream.restore(state, self.now)
        self.assertEqual(self.stream.highest, at(3))
        self.assertEqual(self.stream.connected("a", held(3), self.now), [])
        self.assertEqual(self.counts(), (1, 0, 0, 0))


class Values(SynchronousTestCase):
    def test_goals(self) -> None:
        self.assertEqual([Wave(1).goal(total) for total in (0, 1, 50)], [0, 1, 1])
        self.assertEqual([Wave(1, 10).goal(total) for total in (0, 1, 10, 11, 5000)], [0, 1, 1, 2, 500])

    def test_positions(self) -> None:
        self.assertLess(NOTHING, at(0, epoch=0))
        self.assertLess(at(2**63), at(1, epoch=2))

    def test_waves_that_do_not_halt_go_on_by_the_clock(self) -> None:
        stream = Distribution()
        for name in "ab":
            stream.connected(name, None, 0)
            stream.assign(name, "p", 0)
        stream.publish("p", release(1), Plan((Wave(1),), patience=5), 0)
        self.assertEqual(stream.tick(5)[0], Advanced("p", at(1), 2, 2))
