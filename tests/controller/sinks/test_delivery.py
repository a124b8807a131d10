"""The course of a sink: order, at least once, nothing silently passed, and bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from controller.sinks.answers import Answer, Refused, Taken, TooLarge, Unavailable
from controller.sinks.delivery import (
    LONGEST_DELAY,
    REFUSED_IN_A_ROW,
    Command,
    Delivery,
    Fetch,
    Limits,
    Passed,
    Pause,
    Rest,
    Save,
    Send,
    Troubled,
)


def payload(number: int) -> bytes:
    return b"%d;" % number


def numbers(payloads: Sequence[bytes]) -> list[int]:
    return [int(each[:-1]) for each in payloads]


class World:
    """A store of numbered events, a clock that stands, and what the machine said."""

    def __init__(self, count: int, limits: Limits | None = None) -> None:
        self.count = count
        self.now = 1000.0
        self.delivery = Delivery(
            lambda event: payload(int(str(event["n"]))),
            limits or Limits(events=10),
            chance=lambda: 1.0,
        )
        self.said: list[Command] = []
        self.batches: list[list[int]] = []

    def take(self, commands: list[Command]) -> list[Command]:
        """Note the commands; answer readings at once; return those that wait for an answer."""
        waiting: list[Command] = []
        queue = list(commands)
        while queue:
            command = queue.pop(0)
            self.said.append(command)
            if isinstance(command, Fetch):
                first = int(command.position or 0)
                last = min(self.count, first + command.limit)
                rows = [(n, {"id": f"e{n}", "n": n}) for n in range(first + 1, last + 1)]
                queue = self.delivery.fetched(rows, self.now) + queue
            elif isinstance(command, Send):
                self.batches.append(numbers(command.payloads))
                waiting.append(command)
            elif isinstance(command, (Rest, Pause, Save)):
                waiting.append(command)
        return waiting

    def start(self, position: int | None = None) -> list[Command]:
        return self.take(self.delivery.start(position, self.now))

    def answer(self, answer: Answer) -> list[Command]:
        return self.take(self.delivery.answered(answer, self.now))

    def rested(self) -> list[Command]:
        return self.take(self.delivery.rested(self.now))

    def passed(self) -> list[int]:
        return [int(each.event[1:]) for each in self.said if isinstance(each, Passed)]

    @property
    def position(self) -> Any:
        return self.delivery.standing(self.now).position


class CourseTests(SynchronousTestCase):
    """Each input, and what follows from it."""

    def test_batches_go_out_in_order_and_the_next_waits_for_the_answer(self) -> None:
        world = World(25)
        (sent,) = world.start()
        self.assertIsInstance(sent, Send)
        self.assertEqual(world.batches, [list(range(1, 11))])
        world.answer(Taken())
        (last,) = world.answer(Taken())
        self.assertIsInstance(last, Send)
        self.assertEqual(world.batches[1:], [list(range(11, 21)), list(range(21, 26))])
        self.assertEqual(world.answer(Taken()), [Rest(0.5, 5.0)])
        self.assertEqual(world.position, 25)

    def test_it_goes_on_behind_the_saved_position(self) -> None:
        world = World(25)
        world.start(20)
        self.assertEqual(world.batches, [[21, 22, 23, 24, 25]])

    def test_a_batch_is_bounded_in_octets(self) -> None:
        delivery = Delivery(lambda event: b"x" * 50, Limits(octets=100), chance=lambda: 1.0)
        delivery.start(None, 0)
        (send,) = delivery.fetched([(n, {}) for n in range(1, 5)], 0)
        assert isinstance(send, Send)
        self.assertEqual(len(send.payloads), 2)

    def test_an_event_larger_than_a_batch_goes_alone(self) -> None:
        delivery = Delivery(lambda event: b"x" * 500, Limits(octets=100), chance=lambda: 1.0)
        delivery.start(None, 0)
        (send,) = delivery.fetched([(1, {}), (2, {})], 0)
        assert isinstance(send, Send)
        self.assertEqual(len(send.payloads), 1)

    def test_after_trouble_it_begins_behind_what_is_confirmed(self) -> None:
        world = World(25)
        world.start()
        world.answer(Taken())
        waiting = world.answer(Unavailable("gone"))
        self.assertEqual(waiting, [Pause(1.0)])
        self.assertEqual(world.said[-2:], [Troubled("gone"), Pause(1.0)])
        world.rested()
        self.assertEqual(world.batches[-1], list(range(11, 21)))
        world.answer(Taken())
        self.assertIn(Troubled(""), world.said)

    def test_pauses_grow_with_chance_up_to_a_limit_and_begin_anew(self) -> None:
        world = World(1)
        world.start()
        pauses = []
        for _ in range(9):
            (pause,) = world.answer(Unavailable("gone"))
            assert isinstance(pause, Pause)
            pauses.append(pause.seconds)
            world.rested()
        self.assertEqual(pauses, [1, 2, 4, 8, 16, 32, LONGEST_DELAY, LONGEST_DELAY, LONGEST_DELAY])
        world.answer(Taken())
        world.count = 2
        world.rested()
        self.assertEqual(world.answer(Unavailable("gone")), [Pause(1.0)])
        half = Delivery(lambda event: b"", Limits(), chance=lambda: 0.0)
        half.start(None, 0)
        self.assertEqual(half.fetch_failed("locked", 0)[-1], Pause(0.5))

    def test_a_receiver_may_ask_for_a_longer_pause(self) -> None:
        world = World(1)
        world.start()
        self.assertEqual(world.answer(Unavailable("busy", 120.0)), [Pause(120.0)])

    def test_the_same_trouble_is_told_once(self) -> None:
        world = World(1)
        world.start()
        for _ in range(3):
            world.answer(Unavailable("gone"))
            world.rested()
        self.assertEqual([each for each in world.said if isinstance(each, Troubled)], [Troubled("gone")])
        self.assertEqual(world.delivery.standing(world.now).retries, 3)

    def test_a_store_that_cannot_be_read_is_tried_again(self) -> None:
        delivery = Delivery(lambda event: b"", Limits(), chance=lambda: 1.0)
        delivery.start(None, 0)
        told, pause = delivery.fetch_failed("database is locked", 0)
        self.assertEqual(told, Troubled("the events cannot be read: database is locked"))
        self.assertEqual(pause, Pause(1.0))


class RefusalTests(SynchronousTestCase):
    """Events that a receiver will never take."""

    def run_with(self, world: World, poison: set[int], name: bool = False) -> None:
        """Answer as a receiver that refuses these, until the machine rests or pauses."""
        waiting = world.start()
        while isinstance(waiting[-1], Send):
            batch = world.batches[-1]
            bad = [place for place, n in enumerate(batch) if n in poison]
            if bad:
                waiting = world.answer(Refused("bad event", bad[0] if name else None))
            else:
                waiting = world.answer(Taken())

    def test_the_one_is_found_counted_told_and_passed(self) -> None:
        for name in (False, True):
            world = World(10)
            self.run_with(world, {7}, name)
            self.assertEqual(world.passed(), [7])
            self.assertEqual(world.position, 10)
            standing = world.delivery.standing(world.now)
            self.assertEqual((standing.delivered, standing.refused), (9, 1))
            taken = [n for batch in world.batches if 7 not in batch for n in batch]
            self.assertEqual(taken, [1, 2, 3, 4, 5, 6, 8, 9, 10])

    def test_a_named_event_is_found_at_once_but_counts_only_alone(self) -> None:
        world = World(10)
        self.run_with(world, {7}, name=True)
        self.assertEqual(world.batches, [list(range(1, 11)), [1, 2, 3, 4, 5, 6], [7], [8, 9, 10]])

    def test_a_receiver_that_names_the_wrong_one(self) -> None:
        world = World(4)
        world.start()
        world.answer(Refused("bad", 0))
        self.assertEqual(world.batches[-1], [1])
        world.answer(Taken())
        self.assertEqual(world.passed(), [])
        self.assertEqual(world.position, 1)

    def test_the_first_of_all_is_passed_once_another_is_taken(self) -> None:
        world = World(3)
        world.start()
        world.answer(Refused("bad", 0))
        world.answer(Refused("bad"))
        self.assertEqual((world.passed(), world.position), ([], None))
        world.answer(Taken())
        self.assertEqual((world.passed(), world.position), ([1], 3))

    def test_a_receiver_that_refuses_everything_lets_nothing_pass(self) -> None:
        world = World(30)
        self.run_with(world, set(range(1, 31)))
        self.assertEqual((world.passed(), world.position), ([], None))
        self.assertIn("it refuses every event, so none is passed", world.delivery.standing(world.now).problem)
        # Somebody mends it: every event goes out.
        world.rested()
        while isinstance(world.answer(Taken())[-1], Send):
            pass
        self.assertEqual(world.position, 30)
        self.assertEqual(world.passed(), [])

    def test_the_only_events_there_are_wait_for_proof(self) -> None:
        world = World(1)
        world.start()
        (pause,) = world.answer(Refused("bad"))
        self.assertIsInstance(pause, Pause)
        self.assertEqual((world.passed(), world.position), ([], None))
        world.count = 2
        world.rested()
        world.answer(Refused("bad", 0))
        world.answer(Refused("bad"))
        world.answer(Taken())
        self.assertEqual((world.passed(), world.position), ([1], 2))

    def test_a_receiver_that_begins_to_refuse_everything_is_doubted(self) -> None:
        world = World(50, Limits(events=5))
        world.start()
        world.answer(Taken())
        while isinstance(world.answer(Refused("bad"))[-1], Send):
            pass
        self.assertEqual(world.passed(), list(range(6, 6 + REFUSED_IN_A_ROW)))
        self.assertEqual(world.position, 5 + REFUSED_IN_A_ROW)
        world.rested()
        while isinstance(world.answer(Refused("bad"))[-1], Send):
            pass
        self.assertEqual(len(world.passed()), REFUSED_IN_A_ROW)

    def test_batches_become_smaller_for_a_receiver_that_finds_them_too_large(self) -> None:
        big = Delivery(lambda event: b"x" * 10_000, Limits(), chance=lambda: 1.0)
        big.start(None, 0)
        commands = big.fetched([(n, {}) for n in range(1, 41)], 0)
        sizes = []
        for _ in range(3):
            (send,) = commands
            assert isinstance(send, Send)
            sizes.append(len(send.payloads))
            commands = big.answered(TooLarge("413"), 0)
        self.assertEqual(sizes, [40, 20, 10])
        self.assertEqual(big.standing(0).refused, 0)

    def test_one_event_that_is_too_large_is_passed(self) -> None:
        world = World(3)
        world.start()
        for answer in (TooLarge("413"), Taken(), Taken(), TooLarge("413")):
            world.answer(answer)
        self.assertEqual(world.passed(), [3])


class ConfirmationTests(SynchronousTestCase):
    """A stream's batches are confirmed later, or never."""

    def test_the_position_waits_for_the_confirmation(self) -> None:
        world = World(25)
        (one,) = world.start()
        (two,) = world.answer(Taken(confirmed=False))
        assert isinstance(one, Send)
        assert isinstance(two, Send)
        world.answer(Taken(confirmed=False))
        self.assertIsNone(world.position)
        world.delivery.confirmed(one.ticket, world.now)
        self.assertEqual(world.position, 10)
        world.delivery.confirmed(two.ticket, world.now)
        self.assertEqual(world.position, 20)

    def test_what_is_lost_before_it_is_sent_again(self) -> None:
        world = World(25)
        (one,) = world.start()
        assert isinstance(one, Send)
        for _ in range(3):
            world.answer(Taken(confirmed=False))
        world.delivery.confirmed(one.ticket, world.now)
        self.assertEqual(world.take(world.delivery.lost("reset", world.now)), [Pause(1.0)])
        world.rested()
        self.assertEqual(world.batches[-1], list(range(11, 21)))

    def test_an_old_confirmation_counts_for_nothing(self) -> None:
        world = World(5)
        (one,) = world.start()
        assert isinstance(one, Send)
        world.answer(Taken(confirmed=False))
        world.take(world.delivery.lost("reset", world.now))
        world.delivery.confirmed(one.ticket, world.now)
        self.assertIsNone(world.position)

    def test_a_connection_lost_with_nothing_at_stake_is_no_trouble(self) -> None:
        world = World(5)
        world.start()
        world.answer(Taken())
        self.assertEqual(world.delivery.lost("closed", world.now), [])

    def test_no_more_than_the_window_is_unconfirmed(self) -> None:
        world = World(100, Limits(events=10, window=2))
        (one,) = world.start()
        assert isinstance(one, Send)
        world.answer(Taken(confirmed=False))
        self.assertEqual(world.answer(Taken(confirmed=False)), [])
        world.take(world.delivery.confirmed(one.ticket, world.now))
        self.assertEqual(len(world.batches), 3)

    def test_a_full_window_that_is_lost_begins_anew(self) -> None:
        world = World(100, Limits(events=10, window=1))
        world.start()
        self.assertEqual(world.answer(Taken(confirmed=False)), [])
        (pause,) = world.take(world.delivery.lost("reset", world.now))
        self.assertIsInstance(pause, Pause)
        world.rested()
        self.assertEqual(world.batches[-1], list(range(1, 11)))


class SavingTests(SynchronousTestCase):
    """The cursor."""

    def test_it_is_saved_at_most_once_a_second_and_only_if_it_moved(self) -> None:
        world = World(30)
        world.start()
        self.assertEqual(world.delivery.tick(world.now), [])
        world.answer(Taken())
        self.assertEqual(world.delivery.tick(world.now), [Save(10)])
        world.answer(Taken())
        self.assertEqual(world.delivery.tick(world.now + 5), [])
        world.delivery.saved()
        self.assertEqual(world.delivery.tick(world.now + 0.5), [])
        self.assertEqual(world.delivery.tick(world.now + 1), [Save(20)])

    def test_a_failure_is_told_and_tried_again(self) -> None:
        world = World(30)
        world.start()
        world.answer(Taken())
        world.delivery.tick(world.now)
        self.assertEqual(
            world.delivery.save_failed("disk full"),
            [Troubled("the position cannot be saved: disk full")],
        )
        self.assertEqual(world.delivery.tick(world.now + 1), [Save(10)])
        self.assertEqual(world.delivery.saved(), [Troubled("")])

    def test_the_end_saves_at_once_and_sends_nothing_more(self) -> None:
        world = World(30)
        world.start()
        world.answer(Taken())
        self.assertEqual(world.delivery.stop(world.now), [Save(10)])
        self.assertEqual(world.delivery.answered(Taken(), world.now), [])
        self.assertEqual(world.delivery.rested(world.now), [])


class LagTests(SynchronousTestCase):
    """How far behind a sink is."""

    def lag(self, world: World) -> float:
        return world.delivery.standing(world.now).lag_seconds

    def test_a_sink_that_has_everything_has_none(self) -> None:
        world = World(5)
        world.start()
        world.answer(Taken())
        world.now += 3600
        self.assertEqual(self.lag(world), 0)

    def test_it_grows_while_the_receiver_is_away(self) -> None:
        world = World(5)
        world.start()
        world.answer(Taken())
        world.now += 10
        world.count = 6
        world.rested()
        world.now += 20
        world.answer(Unavailable("gone"))
        world.now += 30
        self.assertEqual(self.lag(world), 60)
        world.rested()
        world.answer(Taken())
        self.assertEqual(self.lag(world), 0)

    def test_a_full_page_is_not_the_end(self) -> None:
        world = World(25)
        world.start()
        world.now += 7
        world.answer(Taken())
        self.assertEqual(self.lag(world), 7)

    def test_what_is_not_confirmed_counts(self) -> None:
        world = World(5)
        (one,) = world.start()
        assert isinstance(one, Send)
        world.answer(Taken(confirmed=False))
        world.now += 9
        self.assertEqual(self.lag(world), 9)
        world.delivery.confirmed(one.ticket, world.now)
        self.assertEqual(self.lag(world), 0)


ANSWERS = st.sampled_from(["take", "take", "later", "confirm", "lose", "unavailable", "too large", "die"])


class AnyCourseTests(SynchronousTestCase):
    """Whatever a receiver does: at least once, in order, nothing passed but what it refuses."""

    @settings(deadline=None, max_examples=150)
    @given(
        count=st.integers(0, 40),
        poison=st.sets(st.integers(1, 40), max_size=4),
        page=st.integers(1, 12),
        window=st.integers(1, 4),
        course=st.lists(ANSWERS, max_size=80),
    )
    def test_nothing_is_missing(
        self, count: int, poison: set[int], page: int, window: int, course: list[str]
    ) -> None:
        limits = Limits(events=page, window=window)
        world = World(count, limits)
        saved: int | None = None
        taken: list[int] = []
        held: list[tuple[int, list[int]]] = []  # sent, unconfirmed: lost with the connection
        passed_before: list[int] = []
        waiting = world.start()

        def confirm() -> list[Command]:
            ticket, _ = held[-1]
            for _, batch in held:
                taken.extend(batch)
            held.clear()
            return world.take(world.delivery.confirmed(ticket, world.now))

        steps = [*course, *["take", "confirm"] * 400]
        for step in steps:
            world.now += 1
            saves = world.delivery.tick(world.now)
            if saves:
                assert isinstance(saves[0], Save)
                saved = saves[0].position  # type: ignore[assignment]
                world.delivery.saved()
            if step == "die":
                # Killed: a new program begins at the saved position.
                passed_before += world.passed()
                held.clear()
                world = World(count, limits)
                waiting = world.start(saved)
                continue
            last = waiting[-1] if waiting else None
            if step == "confirm" and held:
                waiting = confirm() or waiting
            elif step == "lose" and not isinstance(last, Send):
                held.clear()
                waiting = world.take(world.delivery.lost("reset", world.now)) or waiting
            elif isinstance(last, (Rest, Pause)):
                waiting = world.rested()
            elif isinstance(last, Send):
                batch = world.batches[-1]
                if step == "unavailable":
                    held.clear()
                    waiting = world.answer(Unavailable("gone"))
                elif poison & set(batch):
                    waiting = world.answer(Refused("bad"))
                elif step == "too large" and len(batch) > 3:
                    waiting = world.answer(TooLarge("413"))
                elif step == "later":
                    held.append((last.ticket, batch))
                    waiting = world.answer(Taken(confirmed=False))
                else:
                    held.append((last.ticket, batch))
                    answer = Taken(confirmed=False)
                    waiting = world.answer(answer)
                    waiting = confirm() or waiting
        good = [n for n in range(1, count + 1) if n not in poison]
        self.assertEqual(sorted(set(taken)), good)
        # In order: each event for the first time only behind all before it.
        firsts = [n for place, n in enumerate(taken) if n not in taken[:place]]
        self.assertEqual(firsts, good)
        passed = set(world.passed()) | set(passed_before)
        self.assertTrue(passed <= poison)
        if good:
            last_good = good[-1]
            self.assertTrue({n for n in poison if n < last_good} <= passed)
            self.assertGreaterEqual(world.position, last_good)
