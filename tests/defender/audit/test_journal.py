"""The recorder: every event on disk once and in order, those who wait told, nothing raised or blocked."""

from __future__ import annotations

import shutil
import uuid

from defender.audit.commands import Commit, Inspect, Open, Prepare
from defender.audit.journal import MOST, PATIENCE, PAUSE
from defender.audit.recording import INTERVAL
from defender.audit.shipping import Shipping
from defender.audit.store import Opening
from defender.contract.audit import defender_event
from defender.contract.spool_reading import Trouble
from tests.defender.audit.disks import NANOS, SEGMENT, Disk, JournalCase, event, packed
from tests.spool import findings


class Recording(JournalCase):
    def test_events_of_a_quarter_second_are_one_commit(self) -> None:
        journal = self.journal()
        for number in range(5):
            journal.record(event(number))
            self.clock.advance(INTERVAL / 10)
        self.assertEqual(self.disk.waiting, [])
        timers = [
            call for call in self.clock.getDelayedCalls() if call.getTime() - self.clock.seconds() < PAUSE
        ]
        self.assertEqual(timers, [], "no turn of its own for an event")
        self.later()
        self.assertEqual(len(self.disk.commits), 1)
        self.assertEqual(self.numbers(), [0, 1, 2, 3, 4])
        self.assertEqual((journal.written, journal.durable, journal.dropped), (5, 0, 0))

    def test_many_bytes_do_not_wait(self) -> None:
        journal = self.journal()
        for number in range(100):
            journal.append(*packed(number, "x" * 1000))
        self.disk.work()
        self.assertGreater(journal.written, 50)
        self.later()
        self.assertEqual(self.numbers(), list(range(100)))

    def test_what_identifies_an_event(self) -> None:
        journal = self.journal()
        first = journal.append(*packed(1))
        self.clock.advance(0.0015)
        second = journal.append(*packed(2), first)
        self.later()
        one, two = self.events()
        self.assertEqual(one["id"], str(uuid.UUID(bytes=first)))
        self.assertEqual(one["corr"], one["id"])
        self.assertEqual((two["id"], two["corr"]), (str(uuid.UUID(bytes=second)), one["id"]))
        self.assertEqual((one["agent"], one["seq"], two["seq"]), ("web1", 1, 2))
        self.assertEqual(one["ts_wall"], "2027-01-15T08:00:00.000Z")
        self.assertEqual(two["ts_wall"], "2027-01-15T08:00:00.001Z")
        self.assertEqual(two["ts_mono"] - one["ts_mono"], 1500)
        self.assertRegex(one["epoch"], "^[0-9a-f]{16}$")

    def test_ids_are_uuids_of_version_7_that_only_rise(self) -> None:
        journal = self.journal()
        ids = []
        for step in (0.0, 0.0, 0.5, -3600.0, 0.0, 7200.0):
            self.wall += step
            ids += [journal.append(*packed()) for _ in range(3)]
        self.assertEqual(ids, sorted(set(ids)))
        for each in ids:
            identity = uuid.UUID(bytes=each)
            self.assertEqual((identity.version, identity.variant), (7, uuid.RFC_4122))
        self.assertEqual(uuid.UUID(bytes=ids[0]).int >> 80, NANOS // 1_000_000)

    def test_corr_may_be_text_or_bytes_or_nothing(self) -> None:
        journal = self.journal()
        corr = uuid.UUID("0193a2e4-0000-7000-8000-000000000001")
        for value in (str(corr), corr.hex, corr.bytes, "", None, "no uuid", 7):
            journal.record({**event(), "corr": value})
        journal.record(defender_event("defender_start", version="1"))
        self.later()
        events = self.events()
        self.assertEqual([each["corr"] == str(corr) for each in events], [True] * 3 + [False] * 5)
        for each in events[3:]:
            self.assertEqual(each["corr"], each["id"])

    def test_a_spool_from_an_older_copy_goes_on_in_another_epoch(self) -> None:
        journal = self.journal()
        self.durable(journal, 1)
        self.stop(journal)
        copy = self.directory.with_name("copy")
        shutil.copytree(self.directory, copy)
        journal = self.journal()
        self.durable(journal, 2)
        self.disk.work()
        stored = journal.newest
        self.assertFalse(journal.disputes(*stored))
        self.assertFalse(journal.disputes(stored[0], stored[1] - 1, bytes(32)))
        self.stop(journal)
        shutil.rmtree(self.directory)
        copy.rename(self.directory)
        journal = self.journal()
        self.durable(journal, 3)
        self.disk.work()
        self.assertNotEqual(journal.newest, stored)
        self.assertEqual(journal.newest[:2], stored[:2], "another record has its number")
        self.assertTrue(journal.disputes(*stored))
        self.durable(journal, 4)
        self.disk.work()
        self.assertNotEqual(journal.newest[0], stored[0])
        self.assertTrue(journal.disputes(*stored), "until the controller has gone on")
        gaps = [each for each in self.events() if each["kind"] == "gap"]
        self.assertEqual([(each["seq"], each["epoch"]) for each in gaps], [(1, f"{journal.newest[0]:016x}")])
        self.assertIn(f"the controller has number {stored[1]} of epoch {stored[0]:016x}", str(gaps[0]))
        self.assertEqual(self.numbers(), [1, 3, 4])
        newest = journal.newest
        self.stop(journal)
        journal = self.journal()
        self.assertEqual(journal.newest[0], newest[0])
        self.assertFalse(journal.disputes(*newest))
        self.assertEqual([each.trouble for each in findings(self.directory)], [Trouble.UNCLOSED])

    def test_a_spool_that_was_emptied_says_so_once(self) -> None:
        journal = self.journal()
        self.durable(journal, 1)
        self.disk.work()
        epoch = journal.newest[0]
        for _ in range(2):
            self.assertTrue(journal.disputes(7, 100, bytes(32)))
        self.later()
        self.assertEqual([each["kind"] for each in self.events()], ["engine", "gap"])
        self.assertEqual(journal.newest[0], epoch, "it is another one already")

    def test_events_before_the_start_wait_for_it(self) -> None:
        journal = self.journal(start=False)
        journal.record(event(1))
        journal.start()
        self.durable(journal, 2)
        self.later()
        self.assertEqual(self.numbers(), [1, 2])
        self.assertEqual(self.told, [(2, "")])

    def test_what_cannot_be_packed_is_reduced_and_counted(self) -> None:
        journal = self.journal()
        journal.record({**event(), "result": {"status": object()}})
        self.later()
        (kept,) = self.events()
        self.assertEqual((kept["kind"], kept["req"]["action"]), ("engine", "docker_ping"))
        self.assertEqual(kept["redacted"], ["*"])
        self.assertEqual(journal.reduced, 1)

    def test_what_no_segment_holds_is_reduced_and_counted(self) -> None:
        journal = self.journal()
        before = {"effect": "deny", "rule": "r", "version": 1, "digest": "", "reason": "why"}
        journal.append(*packed(1))
        journal.record({**event(7, "x" * SEGMENT), "decision": before})
        journal.append(*packed(2))
        self.durable(journal, 3, "y" * 2 * SEGMENT)
        self.later()
        self.assertEqual(self.numbers(), [1, 7, 2, 3])
        kept = self.events()[1]
        self.assertGreater(kept["req"]["fields"]["reduced"], SEGMENT)
        self.assertEqual((kept["actor"]["user"], kept["decision"]), ("u", before))
        self.assertEqual((journal.reduced, journal.dropped, self.told), (2, 0, [(3, "")]))
        self.assertEqual(findings(self.directory), [])


class Waiting(JournalCase):
    def test_a_durable_event_is_committed_at_once_and_told_when_it_is(self) -> None:
        journal = self.journal()
        self.durable(journal, 1)
        ((command, _),) = self.disk.waiting
        self.assertIsInstance(command, Commit)
        self.assertEqual(self.told, [])
        self.disk.step()
        self.assertEqual(self.told, [(1, "")])
        self.assertEqual(self.numbers(), [1])
        self.assertEqual((journal.written, journal.durable), (1, 1))

    def test_what_comes_during_a_commit_goes_into_the_next(self) -> None:
        journal = self.journal()
        for number in range(5):
            self.durable(journal, number)
        journal.append(*packed(5))
        self.assertEqual(len(self.disk.waiting), 1)
        self.disk.work()
        self.assertEqual(len(self.disk.commits), 2)
        self.assertEqual(self.told, [(number, "") for number in range(5)])
        # What nobody waits for rode along.
        self.assertEqual(self.numbers(), list(range(6)))

    def test_what_nobody_waits_for_adds_no_commit(self) -> None:
        journal = self.journal()
        self.durable(journal, 1)
        for number in range(2, 9):
            journal.append(*packed(number))
        self.disk.work()
        self.assertEqual(len(self.disk.commits), 1)
        self.later()
        self.assertEqual(len(self.disk.commits), 2)

    def test_a_disk_that_does_not_answer(self) -> None:
        journal = self.journal()
        self.durable(journal, 1)
        self.durable(journal, 2)
        self.clock.advance(PATIENCE - 0.1)
        self.assertEqual(self.told, [])
        self.clock.advance(0.2)
        self.assertEqual(
            self.told, [(1, "the audit disk does not answer"), (2, "the audit disk does not answer")]
        )
        self.assertIn("does not answer", journal.problem)
        self.durable(journal, 3)
        self.assertEqual(len(self.told), 2, "not before the next turn")
        self.clock.advance(0)
        self.assertEqual(self.told[2:], [(3, "the audit disk does not answer")])
        # It was slow, not dead.
        self.disk.work()
        self.assertEqual(journal.problem, "")
        self.later()
        self.assertEqual(self.numbers(), [1, 2, 3])
        self.durable(journal, 4)
        self.disk.work()
        self.assertEqual(self.told[3:], [(4, "")])

    def test_one_who_fails_at_being_told_keeps_nothing_from_the_others(self) -> None:
        journal = self.journal()

        def broken(_: str) -> None:
            raise ValueError("ours")

        journal.append_durable(*packed(1), b"", broken)
        self.durable(journal, 2)
        self.disk.work()
        self.assertEqual(self.told, [(2, "")])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)


class Stopping(JournalCase):
    def test_all_is_on_disk_and_the_closing_record_last(self) -> None:
        journal = self.journal()
        journal.append(*packed(1))
        stopped: list[object] = []
        journal.stop().addCallback(stopped.append)
        self.assertEqual(stopped, [])
        self.disk.work()
        self.assertEqual(len(stopped), 1)
        self.assertEqual((self.numbers(), self.actions()), ([1], ["audit_close"]))
        self.assertTrue(self.disk.stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        journal.append(*packed(2))
        self.durable(journal, 3)
        self.clock.advance(0)
        self.assertEqual((journal.dropped, self.told), (2, [(3, "the defender is stopping")]))

    def test_the_spool_is_given_back_before_it_is_said_to_be_stopped(self) -> None:
        journal = self.journal()
        journal.append(*packed(1))
        free: list[object] = []

        def stopped(_: object) -> None:
            other = Disk(self.directory)
            other.submit(Open(), free.append)
            other.work()
            other.stop()

        journal.stop().addCallback(stopped)
        self.disk.work()
        self.assertIsInstance(free[0], Opening)

    def test_stopping_twice_and_without_a_start(self) -> None:
        journal = self.journal()
        first, second = journal.stop(), journal.stop()
        self.disk.work()
        self.successResultOf(first)
        self.successResultOf(second)
        self.successResultOf(self.journal(start=False).stop())

    def test_a_disk_that_hangs_does_not_keep_it(self) -> None:
        journal = self.journal()
        self.durable(journal, 1)
        stopped = journal.stop()
        self.clock.advance(PATIENCE)
        self.successResultOf(stopped)
        self.assertEqual(len(self.told), 1)
        self.assertEqual(journal.dropped, 2)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_disk_that_fails_gets_one_more_chance(self) -> None:
        journal = self.journal()
        self.disk.trouble = "No space left on device"
        journal.append(*packed(1))
        self.later()
        self.disk.trouble = ""
        stopped = journal.stop()
        self.disk.work()
        self.successResultOf(stopped)
        self.assertEqual(self.numbers(), [1])
        self.assertIn("audit_close", self.actions())

    def test_a_disk_that_fails_on_ends_it_at_once(self) -> None:
        journal = self.journal()
        self.disk.trouble = "No space left on device"
        journal.append(*packed(1))
        self.later()
        stopped = journal.stop()
        self.disk.work()
        self.successResultOf(stopped)
        self.assertEqual(journal.dropped, 3)

    def test_the_next_run_goes_on_with_the_numbers(self) -> None:
        for number in range(3):
            journal = self.journal()
            self.durable(journal, number)
            self.disk.work()
            self.stop(journal)
        events = self.events()
        self.assertEqual([each["seq"] for each in events], [1, 2, 3, 4, 5, 6])
        self.assertEqual(len({each["epoch"] for each in events}), 1)
        self.assertEqual(self.actions(), ["audit_close"] * 3)
        self.assertEqual(len(list(self.directory.glob("*.seg"))), 1)


class Looking(JournalCase):
    def test_earlier_segments_are_looked_at_between_the_commits(self) -> None:
        journal = self.journal()
        for number in range(60):
            self.durable(journal, number, "x" * 5000)
            self.disk.work()
        self.stop(journal)
        oldest = min(self.directory.glob("*.seg"))
        data = bytearray(oldest.read_bytes())
        data[20_000] ^= 1
        oldest.write_bytes(data)
        journal = self.journal()
        for _ in range(200):
            self.later(PAUSE)
        self.assertFalse(any(isinstance(command, Inspect) for command, _ in self.disk.waiting))
        self.later()
        self.assertEqual(self.actions()[-2:], ["audit_damaged", "audit_gap"])
        gap = self.events()[-1]
        self.assertEqual(gap["result"]["dropped"], 1)
        self.assertTrue((self.directory / f"{oldest.name}.bad").exists())
        self.assertEqual(len(self.numbers()), 59)
        self.assertEqual(journal.repaired, 2)
        self.stop(journal)
        # The next start does not tell it again.
        before = len(self.actions())
        journal = self.journal()
        for _ in range(200):
            self.later(PAUSE)
        self.assertEqual(self.actions()[before:], [])

    def test_a_directory_full_of_other_things(self) -> None:
        self.directory.mkdir()
        for number in range(MOST + 30):
            (self.directory / f"file{number}").touch()
        journal = self.journal()
        self.later()
        self.assertEqual(journal.repaired, MOST + 30)
        self.assertEqual(self.actions(), ["audit_aside"] * (MOST + 1))
        last = self.events()[-1]["result"]["detail"]
        self.assertEqual(last, "30 more things were found in the spool's directory")


class Status(JournalCase):
    def test_what_an_operator_sees(self) -> None:
        journal = self.journal()
        self.durable(journal, 1)
        journal.append(*packed(2))
        self.disk.step()
        status = journal.status()
        self.assertEqual(status.pop("directory"), str(self.directory))
        self.assertRegex(str(status.pop("epoch")), "^[0-9a-f]{16}$")
        self.assertEqual(
            status,
            {
                "segments": 1,
                "bytes": SEGMENT,
                "first_seq": 1,
                "last_seq": 1,
                "durable_seq": 1,
                "waiting": 1,
                "written": 1,
                "durable": 1,
                "failed": 0,
                "dropped": 0,
                "reduced": 0,
                "repaired": 0,
                "rotated": 0,
                "problem": "",
            },
        )

    def test_settling(self) -> None:
        journal = self.journal()
        journal.append(*packed(1))
        self.assertTrue(journal.settle())
        self.assertEqual(self.numbers(), [1])
        self.disk.trouble = "Input/output error"
        journal.append(*packed(2))
        self.assertFalse(journal.settle())
        self.disk.trouble = ""
        self.assertIsInstance(self.disk.done[0], object)
        self.assertTrue(any(isinstance(command, Prepare) for command in self.disk.done))


class Shipped(JournalCase):
    """What the journal offers to whoever ships its events."""

    def test_what_is_on_disk_can_be_shipped_and_nothing_else(self) -> None:
        journal = self.journal()
        shipping = Shipping()
        shipping.resume(0, 0)
        sent: list[int] = []

        def go_on() -> None:
            shipping.spool(*journal.on_disk())
            wanted = shipping.next()
            if wanted is not None:
                journal.fetch(*wanted, took)

        def took(data: bytes | None) -> None:
            sent.extend(
                seq for batch in shipping.feed(data) for seq in range(batch.first_seq, batch.last_seq + 1)
            )
            go_on()

        journal.moved = go_on
        for number in range(150):
            journal.append(*packed(number, "x" * 1000))  # over two segments
        self.assertEqual(sent, [])
        self.later()
        journal.append(*packed(150))
        self.disk.work()
        self.assertEqual(sent, list(range(1, 151)))
        self.assertEqual(len(journal.on_disk()[0]), 3)
        self.later()
        self.assertEqual(sent, list(range(1, 152)))

    def test_a_disk_that_fails_ships_nothing_of_what_it_lost(self) -> None:
        journal = self.journal()
        self.disk.trouble = "EIO"
        journal.append(*packed(1))
        self.later()
        self.assertEqual(journal.on_disk()[2], 0)
