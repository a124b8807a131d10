"""Exactly once: whatever is sent again, out of order, altered or not at all."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import DeferredList, inlineCallbacks
from twisted.trial.unittest import SynchronousTestCase

from controller.store import writer as writer_module
from controller.store.batch import Batch, Taken, check
from controller.store.errors import RecordsError, UnwritableStoreError
from controller.store.events import EventStore
from controller.store.ingest import Day
from controller.store.query import Query
from defender.contract.spool import first_chain, seal
from tests.controller.store.trails import NOON, Steps, StoreCase, Trail, numbers, payload_of


class InOrder(StoreCase):
    @inlineCallbacks
    def test_what_came_is_there_as_it_was(self) -> Steps[None]:
        store, trail = self.open_store(), Trail("d1")
        trail.many(5)
        self.assertEqual(store.cursor("d1"), None)
        taken = yield store.ingest(trail.batch(1, 3))
        self.assertEqual(taken, Taken(3, trail.chains[3], stored=3, position=3))
        taken = yield store.ingest(trail.batch(4, 5, agent="", predecessor=None))
        self.assertEqual(taken, Taken(5, trail.chain, stored=2, position=5))
        cursor = store.cursor("d1")
        assert cursor is not None
        self.assertEqual((cursor.epoch, cursor.seq, cursor.chain, cursor.gaps), (7, 5, trail.chain, 0))
        self.assertEqual(cursor.received, int(NOON * 1_000_000))
        self.assertEqual(store.cursor("d1", 7), cursor)
        found = yield self.events(store)
        self.assertEqual(numbers(found), [1, 2, 3, 4, 5])
        first = found[0]
        self.assertEqual((first.position, first.defender), (1, "d1"))
        self.assertEqual(first.event["agent"], "host-d1")
        self.assertEqual(first.event["epoch"], "0000000000000007")
        self.assertEqual(first.event["req"]["query"], {"fromImage": "nginx:1"})
        yield self.assert_whole(store)

    @inlineCallbacks
    def test_it_is_there_after_a_restart(self) -> Steps[None]:
        store, trail = self.open_store(), Trail("d1")
        trail.many(5)
        yield store.ingest(trail.batch(1, 3))
        yield store.stop()
        store = self.open_store()
        self.assertEqual(store.position, 3)
        taken = yield store.ingest(trail.batch(2, 5))
        self.assertEqual((taken.stored, taken.repeated), (2, 2))
        self.assertEqual(numbers((yield self.events(store))), [1, 2, 3, 4, 5])
        yield self.assert_whole(store)

    @inlineCallbacks
    def test_resends_are_acknowledged_and_not_stored(self) -> Steps[None]:
        store, trail = self.open_store(), Trail("d1")
        trail.many(6)
        yield store.ingest(trail.batch(1, 4))
        for first, last, stored, repeated in ((1, 4, 0, 4), (2, 3, 0, 2), (3, 6, 2, 2), (6, 6, 0, 1)):
            taken = yield store.ingest(trail.batch(first, last))
            self.assertEqual((taken.stored, taken.repeated, taken.quarantined), (stored, repeated, ""))
            self.assertEqual(taken.chain, trail.chains[taken.seq])
        self.assertEqual(numbers((yield self.events(store))), [1, 2, 3, 4, 5, 6])
        self.assertEqual((store.counts.stored, store.counts.repeated), (6, 9))

    @inlineCallbacks
    def test_racing_connections_with_overlapping_resends(self) -> Steps[None]:
        """Eight defenders, each with three connections that send the same in pieces of their own."""
        dice = random.Random(4)
        store = self.open_store()
        trails = [Trail(f"d{each}") for each in range(8)]
        waiting: list[list[Batch]] = []
        for trail in trails:
            trail.many(120)
            for _ in range(3):
                sending, first = [], 1
                while first <= 120:
                    last = min(first + dice.randrange(1, 20), 120)
                    sending.append(trail.batch(max(first - dice.randrange(0, 5), 1), last))
                    first = last + 1
                waiting.append(sending)
        answers: list[Any] = []
        while any(waiting):
            sending = dice.choice([each for each in waiting if each])
            answers.append(store.ingest(sending.pop(0)))
        results = yield DeferredList(answers, fireOnOneErrback=True)
        for _, taken in results:
            self.assertEqual((taken.quarantined, taken.missing), ("", 0))
        found = yield self.events(store)
        for trail in trails:
            self.assertEqual(numbers(found, trail.defender), list(range(1, 121)))
        self.assertEqual(len(found), 960)
        self.assertEqual([each.position for each in found], list(range(1, 961)))
        yield self.assert_whole(store)


class Faults(StoreCase):
    def setUp(self) -> None:
        super().setUp()
        self.patch(writer_module, "PAUSE", 0.01)

    @inlineCallbacks
    def healed(self, store: EventStore) -> Steps[None]:
        while store.problem:
            yield store.after(0, Query(), 1)

    @inlineCallbacks
    def test_a_transaction_that_failed_leaves_nothing_behind(self) -> Steps[None]:
        """Neither on disk nor in memory, also when memory cannot be set right at once."""
        store, trail = self.open_store(), Trail("d1")
        trail.many(9)
        yield store.ingest(trail.batch(1, 3))
        broken = OSError(5, "Input/output error")
        for method in ("commit", "reload", "commit"):
            with mock.patch.object(Day, "commit", side_effect=broken):
                batch = trail.batch(4, 9)
                yield self.assertFailure(store.ingest(batch), UnwritableStoreError)
                self.assertIn("Input/output error", store.problem or "Input/output error")
                yield self.healed(store)
            if method == "reload":
                with mock.patch.object(Day, "reload", side_effect=broken):
                    yield self.assertFailure(store.ingest(batch), UnwritableStoreError)
                    yield self.healed(store)
            cursor = store.cursor("d1")
            self.assertEqual((cursor and cursor.seq, store.position), (3, 3))
        taken = yield store.ingest(trail.batch(4, 9))
        self.assertEqual((taken.stored, taken.repeated, taken.position), (6, 0, 9))
        self.assertEqual(numbers((yield self.events(store))), list(range(1, 10)))
        yield self.assert_whole(store)

    @inlineCallbacks
    def test_what_the_code_did_not_foresee_harms_no_other(self) -> Steps[None]:
        store, trail, other = self.open_store(), Trail("d1"), Trail("d2")
        trail.many(2)
        other.many(2)
        take = Day.take

        def odd(day: Day, batch: Batch, *rest: Any) -> Taken:
            if batch.defender == "d1":
                raise ZeroDivisionError
            return take(day, batch, *rest)

        with mock.patch.object(Day, "take", odd):
            waiting = [store.ingest(trail.batch(1, 2)), store.ingest(other.batch(1, 2))]
            results = yield DeferredList(waiting, consumeErrors=True)
        self.assertEqual([good for good, _ in results], [False, True])
        self.assertEqual(store.problem, "")
        taken = yield store.ingest(trail.batch(1, 2))
        self.assertEqual(taken.stored, 2)
        self.assertEqual(len((yield self.events(store))), 4)


class Bytes(SynchronousTestCase):
    @given(
        st.binary(max_size=300), st.integers(0, 2**64), st.integers(0, 2**64), st.sampled_from([0, 31, 32])
    )
    def test_any_bytes_are_records_or_refused(self, data: bytes, epoch: int, first: int, size: int) -> None:
        try:
            found = check(Batch("d", "a", epoch, first, bytes(size), data))
        except RecordsError:
            return
        self.assertEqual(found[0].seq, first)

    @given(st.integers(0, 5), st.integers(0, 700), st.integers(1, 255))
    def test_a_flipped_bit_is_found(self, record: int, at: int, flip: int) -> None:
        trail = Trail("d")
        trail.many(6)
        good = trail.batch(1, 6)
        self.assertEqual(len(check(good)), 6)
        at = (record * 400 + at) % len(good.records)
        bad = good.records[:at] + bytes([good.records[at] ^ flip]) + good.records[at + 1 :]
        self.assertRaises(RecordsError, check, replace(good, records=bad))


class Missing(StoreCase):
    @inlineCallbacks
    def test_a_hole_is_an_event_in_its_place(self) -> Steps[None]:
        store, trail = self.open_store(), Trail("d1")
        trail.many(10)
        yield store.ingest(trail.batch(1, 3))
        taken = yield store.ingest(trail.batch(7, 8, lost="the spool was full"))
        self.assertEqual((taken.seq, taken.stored, taken.missing), (8, 2, 3))
        yield store.ingest(trail.batch(9, 10))
        found = yield self.events(store)
        self.assertEqual([each.event["kind"] == "gap" for each in found], [False] * 3 + [True] + [False] * 4)
        gap = found[3]
        self.assertEqual(gap.defender, "d1")
        self.assertEqual(gap.event["agent"], "controller")
        request: Any = gap.event["req"]
        self.assertEqual(request["target"], "host-d1")
        self.assertEqual(request["fields"], {"defender": "d1", "epoch": "0000000000000007"})
        reason = "events are missing here: the spool was full"
        self.assertEqual((yield self.gaps(store)), [("audit_gap", 4, 3, reason)])
        cursor = store.cursor("d1")
        self.assertEqual(cursor and cursor.gaps, 1)
        self.assertEqual((store.counts.gaps, store.counts.missing), (1, 3))
        # What comes too late is told by its number: the gap stays one.
        late = yield store.ingest(trail.batch(4, 6))
        self.assertEqual((late.seq, late.stored), (6, 0))
        yield self.assert_whole(store)

    @inlineCallbacks
    def test_the_first_epoch_of_a_defender_begins_anywhere(self) -> Steps[None]:
        store, trail = self.open_store(), Trail("d1")
        trail.many(9)
        yield store.ingest(trail.batch(6, 9))
        self.assertEqual((yield self.gaps(store)), [])
        self.assertEqual(numbers((yield self.events(store))), [6, 7, 8, 9])
        yield self.assert_whole(store)

    @inlineCallbacks
    def test_an_epoch_that_was_closed_is_followed_in_silence(self) -> Steps[None]:
        store, trail = self.open_store(), Trail("d1")
        trail.many(2)
        trail.close()
        yield store.ingest(trail.batch(1, 3))
        second = Trail("d1", 9, after=trail)
        second.many(2)
        yield store.ingest(second.batch(1, 2))
        self.assertEqual((yield self.gaps(store)), [])
        cursor = store.cursor("d1")
        self.assertEqual(cursor and cursor.epoch, 9)
        # The epoch before is known still.
        taken = yield store.ingest(trail.batch(2, 3))
        self.assertEqual((taken.stored, taken.repeated, taken.missing), (0, 2, 0))
        yield self.assert_whole(store)

    @inlineCallbacks
    def test_what_an_epoch_that_was_not_closed_may_have_lost(self) -> Steps[None]:
        cases = {
            "unclosed": (lambda first: None, 0, 0, "was not ended in good order: events after number 2"),
            "same end": (lambda first: first, 0, 0, "was not ended in good order: events after number 2"),
            "more": (
                lambda first: _longer(first, 3),
                3,
                3,
                "on disk when the defender started again are gone",
            ),
            "other end": (lambda first: _other(first), 0, 0, "does not end as it did when this one began"),
            "another": (lambda first: Trail("d", 5), 0, 0, "epoch 0000000000000005, which epoch"),
        }
        store = self.open_store()
        for name, (before, at, dropped, reason) in cases.items():
            defender = name.replace(" ", "-")
            first = Trail(defender)
            first.many(2)
            yield store.ingest(first.batch(1, 2))
            second = Trail(defender, 8, after=before(first))
            second.many(1)
            taken = yield store.ingest(second.batch(1, 1))
            self.assertEqual(taken.missing, dropped or -1, name)
            told = (yield self.gaps(store))[-1]
            self.assertEqual(told[:3], ("audit_gap", at, dropped), name)
            self.assertIn(reason, told[3], name)
        yield self.assert_whole(store)

    @inlineCallbacks
    def test_the_beginning_of_a_later_epoch(self) -> Steps[None]:
        store, first = self.open_store(), Trail("d1")
        first.close()
        yield store.ingest(first.batch(1, 1))
        second = Trail("d1", 8, after=first)
        second.many(5)
        taken = yield store.ingest(second.batch(4, 5))
        self.assertEqual((taken.seq, taken.stored, taken.missing), (5, 2, 3))
        told = ("audit_gap", 1, 3, "the beginning of this epoch is missing")
        self.assertEqual((yield self.gaps(store)), [told])

    @inlineCallbacks
    def test_a_chain_that_damage_has_made_unknown(self) -> Steps[None]:
        store, trail = self.open_store(), Trail("d1")
        trail.many(9)
        yield store.ingest(trail.batch(1, 2))
        # It follows all the same: the store knows the chain before it.
        taken = yield store.ingest(trail.batch(3, 4, previous=b""))
        self.assertEqual((taken.stored, taken.missing), (2, 0))
        taken = yield store.ingest(trail.batch(7, 9, previous=b"", lost="damaged"))
        self.assertEqual((taken.stored, taken.missing), (3, 2))
        self.assertEqual(numbers((yield self.events(store))), [1, 2, 3, 4, 7, 8, 9])
        yield self.assert_whole(store)


class Broken(StoreCase):
    @inlineCallbacks
    def test_records_of_another_chain_are_put_aside(self) -> Steps[None]:
        store, trail = self.open_store(), Trail("d1")
        trail.many(4)
        yield store.ingest(trail.batch(1, 4))
        other = _other(trail)
        other.many(6)
        sent = other.batch(3, 8)
        taken = yield store.ingest(sent)
        self.assertIn("hash chain", taken.quarantined)
        self.assertEqual((taken.seq, taken.chain, taken.stored), (8, other.chains[8], 0))
        # Sent again it is known, and told of once; what follows it is stored.
        again = yield store.ingest(sent)
        self.assertEqual((again.quarantined, again.repeated), ("", 6))
        yield store.ingest(other.batch(9, 10))
        found = yield self.events(store)
        self.assertEqual(numbers(found), [1, 2, 3, 4, 9, 10])
        (told,) = yield self.gaps(store)
        self.assertEqual(told[:3], ("audit_quarantine", 3, 6))
        (aside,) = yield store.aside(store.days[0])
        self.assertEqual((aside.defender, aside.epoch, aside.first_seq), ("d1", 7, 3))
        self.assertEqual((aside.records, aside.previous), (sent.records, sent.previous))
        self.assertEqual(store.counts.quarantined, 1)
        yield self.assert_whole(store)

    @inlineCallbacks
    def test_a_defender_that_was_brought_back_from_a_copy(self) -> Steps[None]:
        """Its numbers begin again below the cursor: nothing is taken for a resend that is none."""
        store, trail = self.open_store(), Trail("d1")
        trail.many(9)
        yield store.ingest(trail.batch(1, 9))
        other = _other(trail, 3)
        other.many(2)
        for _ in range(2):
            taken = yield store.ingest(other.batch(4, 5))
            self.assertIn("ran twice", taken.quarantined)
            # It is kept, so it is acknowledged; the cursor stays.
            self.assertEqual((taken.seq, taken.chain), (5, other.chains[5]))
            cursor = store.cursor("d1")
            self.assertEqual(cursor and cursor.seq, 9)
        self.assertEqual(len((yield store.aside(store.days[0]))), 1)
        self.assertEqual(len((yield self.gaps(store))), 1)

    @inlineCallbacks
    def test_a_chain_that_does_not_begin_with_this_defender(self) -> Steps[None]:
        store, trail = self.open_store(), Trail("d1")
        trail.many(3)
        taken = yield store.ingest(trail.batch(1, 2, agent="web2"))
        self.assertIn("does not begin with defender 'web2'", taken.quarantined)
        self.assertEqual(taken.seq, 2)
        self.assertEqual(numbers((yield self.events(store))), [])

    @inlineCallbacks
    def test_bytes_that_are_no_records(self) -> Steps[None]:
        store, trail = self.open_store(), Trail("d1")
        trail.many(5)
        good = trail.batch(1, 3)
        hole = (
            seal(trail.chains[0], 1, trail.payloads[:1])[0] + seal(trail.chains[1], 3, trail.payloads[2:3])[0]
        )
        cases = {
            "cut": good.records[:-1],
            "altered": good.records[:70] + bytes([good.records[70] ^ 1]) + good.records[71:],
            "more": good.records + bytes(64),
            "empty": b"",
            "hole": hole,
            "zeros": bytes(100),
        }
        for number, (name, records) in enumerate(cases.items()):
            batch = Batch("d1", trail.agent, 7, 1, trail.chains[0], records)
            yield self.assertFailure(store.ingest(batch), RecordsError)
            yield self.assertFailure(store.ingest(batch), RecordsError)
            self.assertEqual(len((yield self.gaps(store))), number + 1, f"{name}: told once")
        yield self.assertFailure(store.ingest(trail.batch(1, 1, agent="")), RecordsError)
        self.assertEqual(store.cursor("d1"), None)
        # And the next good ones are taken as ever.
        taken = yield store.ingest(good)
        self.assertEqual((taken.stored, taken.missing), (3, 0))
        yield self.assert_whole(store)

    @inlineCallbacks
    def test_one_bad_batch_in_a_group_harms_no_other(self) -> Steps[None]:
        store, trail, other = self.open_store(), Trail("d1"), Trail("d2")
        trail.many(2)
        other.many(2)
        bad = Batch("d3", "x", 7, 1, first_chain("x", 7), b"nothing")
        waiting = [store.ingest(trail.batch(1, 2)), store.ingest(bad), store.ingest(other.batch(1, 2))]
        results = yield DeferredList(waiting, consumeErrors=True)
        self.assertEqual([good for good, _ in results], [True, False, True])
        self.assertEqual(len(numbers((yield self.events(store)))), 4)

    @inlineCallbacks
    def test_a_payload_that_is_no_event_is_kept_and_shown_as_such(self) -> Steps[None]:
        store, trail = self.open_store(), Trail("d1")
        late = payload_of(3, micros=2**64 - 1)
        odd = payload_of(4, user="ä\ud800\0b", action="x" * 3000, effect="perhaps")
        trail.record([b"\xc1 no msgpack", b"\x81\xa1a\x01", late, odd])
        yield store.ingest(trail.batch(1, 4))
        found = yield self.events(store)
        self.assertEqual([each.event["kind"] for each in found], ["unreadable"] * 3 + ["engine"])
        self.assertEqual([each.event["seq"] for each in found], [1, 2, 3, 4])
        page = yield store.search(Query(effects=("perhaps",)))
        self.assertEqual(numbers(page.events), [4])
        yield self.assert_whole(store)


def _longer(trail: Trail, count: int) -> Trail:
    longer = _copy(trail, trail.seq)
    longer.many(count)
    return longer


def _other(trail: Trail, keep: int = 1) -> Trail:
    """A trail that is another one after `keep` records."""
    other = _copy(trail, keep)
    other.record([payload_of(1000 + each) for each in range(trail.seq - keep)])
    return other


def _copy(trail: Trail, count: int) -> Trail:
    copy = Trail(trail.defender, trail.epoch)
    copy.record(trail.payloads[:count])
    return copy
