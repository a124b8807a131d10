"""The journal when the disk fails or is full, and when the clock is set."""

from __future__ import annotations

from defender.audit.journal import Journal
from defender.audit.mishaps import CLOCK_STEP
from defender.audit.recording import MAX_WAITING, MAX_WAITING_BYTES
from defender.contract.audit import SYSTEM, control_event, identity_event
from tests.defender.audit.disks import SEGMENT, JournalCase, packed
from tests.spool import findings


class Failing(JournalCase):
    def test_a_poisoned_segment_spares_those_who_wait(self) -> None:
        journal = self.journal()
        self.durable(journal, 1)
        self.disk.work()
        self.durable(journal, 2)
        self.disk.trouble = "Input/output error"
        self.disk.step()
        self.disk.trouble = ""
        self.disk.work()
        self.assertEqual(self.told, [(1, ""), (2, "")])
        self.assertEqual((journal.failed, journal.problem), (1, ""))
        self.later()
        self.assertEqual(self.numbers(), [1, 2])
        self.assertEqual(self.actions(), ["audit_failed"])
        self.assertEqual(len(list(self.directory.glob("*.seg"))), 2)
        self.assertEqual(findings(self.directory), [])

    def break_disk(self, journal: Journal, reason: str = "No space left on device") -> None:
        self.disk.trouble = reason
        journal.append(*packed(0))
        self.later()

    def test_while_the_disk_fails_all_who_wait_are_told_why(self) -> None:
        journal = self.journal()
        self.durable(journal, 1)
        self.durable(journal, 2)
        self.disk.trouble = "No space left on device"
        self.disk.work()
        self.assertEqual(self.told, [(1, "No space left on device"), (2, "No space left on device")])
        self.assertEqual(journal.problem, "No space left on device")
        self.assertEqual(journal.status()["problem"], "No space left on device")
        self.durable(journal, 3)
        self.clock.advance(0)
        self.assertEqual(self.told[2:], [(3, "No space left on device")])
        self.disk.trouble = ""
        self.later(2)
        self.later()
        self.assertEqual(self.numbers(), [1, 2, 3])
        self.assertEqual((journal.problem, journal.dropped), ("", 0))
        self.later()
        (note,) = [each for each in self.events() if "nothing" in str(each["result"].get("detail"))]
        self.assertEqual(note["req"]["action"], "audit_failed")
        self.assertRegex(note["result"]["detail"], r"^nothing .* for [12]\.\d s: No space left on device$")

    def test_what_waits_is_bounded_and_a_gap_says_what_was_lost(self) -> None:
        journal = self.journal()
        self.break_disk(journal)
        for number in range(1, MAX_WAITING + 500):
            journal.append(*packed(number))
        self.assertGreater(journal.dropped, 490)
        self.later(3.5)
        self.disk.trouble = ""
        self.later(60)
        self.later()
        numbers = self.numbers()
        self.assertEqual(numbers, list(range(len(numbers))))
        self.assertLessEqual(len(numbers), MAX_WAITING + 1)
        (gap,) = [each for each in self.events() if each["kind"] == "gap"]
        self.assertEqual(gap["result"]["dropped"], journal.dropped)
        self.assertEqual(gap["result"]["dropped"] + len(numbers), MAX_WAITING + 500)
        self.assertEqual(gap["result"]["first_seq"], 0)
        self.assertEqual(gap["result"]["reason"], "No space left on device")
        self.assertGreater(gap["result"]["ms"], 60_000)
        # Numbers and chain are whole: what was dropped had none.
        self.assertEqual(findings(self.directory), [])

    def test_denials_and_the_administration_find_more_room(self) -> None:
        journal = self.journal()
        self.break_disk(journal)
        for number in range(MAX_WAITING + 10):
            journal.append(*packed(number))
        dropped = journal.dropped
        journal.append(*packed(7001), reserved=True)
        journal.record(control_event(SYSTEM, "lock_add"))
        journal.record(identity_event("expired", "on Monday"))
        self.assertEqual(journal.dropped, dropped)
        journal.append(*packed(7002))
        self.assertEqual(journal.dropped, dropped + 1)

    def test_bytes_that_wait_are_bounded_also_while_the_disk_is_only_slow(self) -> None:
        journal = self.journal()
        self.durable(journal, 0)
        count = MAX_WAITING_BYTES // 30_000 + 20
        for number in range(count):
            journal.append(*packed(number, "x" * 30_000))
        self.assertGreater(journal.dropped, 10)
        self.assertEqual(journal.problem, "")

    def test_a_durable_event_that_finds_no_room_is_told(self) -> None:
        journal = self.journal()
        self.durable(journal, 0)
        for number in range(MAX_WAITING_BYTES // 30_000 + 2):
            journal.append(*packed(number, "x" * 30_000))
        self.durable(journal, 1, "x" * 30_000)
        self.clock.advance(0)
        self.assertEqual(self.told, [(1, "the audit disk is too slow")])

    def test_a_fault_of_ours_ends_nothing(self) -> None:
        journal = self.journal()
        broken = self.patch(self.disk.store, "_append", lambda *_: 1 / 0)
        self.durable(journal, 1)
        self.disk.work()
        self.durable(journal, 2)
        self.disk.work()
        broken.restore()
        self.later(2)
        self.later()
        self.assertEqual((self.told[0], self.numbers()), ((1, ""), [1, 2]))

    def test_a_spool_that_cannot_be_opened_is_tried_again(self) -> None:
        self.directory.parent.joinpath("audit").write_text("no directory")
        journal = self.journal()
        self.assertIn("is not a directory", journal.problem)
        self.durable(journal, 1)
        self.clock.advance(0)
        self.assertIn("is not a directory", self.told[0][1])
        self.directory.unlink()
        self.later(1)
        self.later()
        self.assertEqual((journal.problem, self.numbers()), ("", [1]))

    def test_a_spool_that_is_removed_is_made_anew(self) -> None:
        journal = self.journal()
        self.durable(journal, 1)
        self.disk.work()
        for path in self.directory.iterdir():
            path.unlink()
        self.directory.rmdir()
        self.durable(journal, 2)
        self.disk.work()
        self.assertEqual(self.told, [(1, ""), (2, "")])
        self.later()
        self.assertEqual(self.numbers(), [2])
        self.assertEqual(self.events()[0]["seq"], 2)
        (gap,) = [each["result"] for each in self.events() if each["kind"] == "gap"]
        self.assertEqual((gap["dropped"], gap["first_seq"]), (1, 1))


class Filling(JournalCase):
    def test_the_oldest_events_make_room_and_an_event_says_which(self) -> None:
        journal = self.journal(segments=4)
        while not journal.rotated:
            self.durable(journal, 1, "x" * 5000)
            self.disk.work()
        self.later()
        (note,) = [each for each in self.events() if each["req"]["action"] == "audit_rotate"]
        first = self.events()[0]["seq"]
        self.assertIn(f"sequence numbers 1 to {first - 1}", note["result"]["detail"])
        self.assertEqual(journal.status()["first_seq"], first)
        self.assertLessEqual(sum(path.stat().st_size for path in self.directory.glob("*.seg")), 4 * SEGMENT)

    def test_a_spool_that_refuses_keeps_a_reserve_and_then_refuses(self) -> None:
        journal = self.journal(refuse=True, segments=4)
        while not any(reason for _, reason in self.told):
            self.durable(journal, 1, "x" * 1000)
            self.disk.work()
            self.clock.advance(0)
        self.assertEqual(self.told[-1][1], "the audit spool is full (audit.max_bytes)")
        # The reserve is for denials and the administration.
        dropped = journal.dropped
        journal.append(*packed(2, "x" * 1000), reserved=True)
        self.assertEqual(journal.dropped, dropped)
        while journal.dropped == dropped:
            journal.append(*packed(2, "x" * 1000), reserved=True)
            self.later()
        self.assertIn("full", str(journal.status()["problem"]))
        self.assertIn(2, self.numbers())
        self.assertEqual(self.numbers()[0], 1)
        before = len(self.disk.commits)
        for _ in range(100):
            journal.append(*packed(3))
            self.later()
        self.assertEqual(len(self.disk.commits), before, "a full spool writes no gaps about itself")
        # One that is too large for a batch is told like the others.
        told = len(self.told)
        self.durable(journal, 5, "x" * SEGMENT)
        self.clock.advance(0)
        self.assertEqual(self.told[told:], [(5, "the audit spool is full (audit.max_bytes)")])
        # Somebody makes room.
        min(self.directory.glob("*.seg")).unlink()
        self.later(31)
        self.durable(journal, 4)
        self.later()
        self.assertEqual(self.told[-1], (4, ""))
        self.later()
        gaps = {
            each["result"]["first_seq"]: each["result"] for each in self.events() if each["kind"] == "gap"
        }
        self.assertEqual(sorted(gaps), [0, 1])
        self.assertEqual(gaps[0]["dropped"], journal.dropped)
        self.assertEqual(gaps[1]["dropped"], self.events()[0]["seq"] - 1)
        self.assertIn("was taken away", gaps[1]["reason"])

    def test_a_spool_that_is_full_and_fails_at_once(self) -> None:
        journal = self.journal(refuse=True, segments=4)
        while journal.status()["segments"] != 4:
            self.durable(journal, 1, "x" * 1000)
            self.disk.work()
        self.told.clear()
        self.durable(journal, 2)
        self.disk.trouble = "Input/output error"
        self.disk.work()
        # There is no room for another segment to write it to.
        self.assertEqual(self.told, [(2, "the audit spool is full (audit.max_bytes)")])
        self.disk.trouble = ""
        min(self.directory.glob("*.seg")).unlink()
        self.later(2)
        self.later()
        self.assertEqual((journal.problem, self.numbers()[-1]), ("", 2))

    def test_a_spool_that_becomes_full_within_a_batch(self) -> None:
        journal = self.journal(refuse=True, segments=4)
        while journal.status()["durable_seq"] != 200:
            self.durable(journal, 1, "x" * 1000)
            self.disk.work()
        self.told.clear()
        for _ in range(58):
            journal.append(*packed(2, "x" * 1000))
        for number in range(6):
            self.durable(journal, number, "x" * 1000)
        self.disk.work()
        self.clock.advance(0)
        self.assertEqual([number for number, _ in self.told], [0, 1, 2, 3, 4, 5])
        self.assertTrue(all("full" in reason for _, reason in self.told))
        self.assertEqual(self.numbers().count(2) + journal.dropped, 58 + 6)


class Clocks(JournalCase):
    def test_a_step_of_the_clock_is_an_event(self) -> None:
        journal = self.journal()
        for step in (CLOCK_STEP - 1, 3600.0, -7200.0):
            self.wall += step
            journal.append(*packed())
            self.later()
        self.later()
        details = [
            each["result"]["detail"] for each in self.events() if each["req"]["action"] == "audit_clock"
        ]
        self.assertEqual(details, ["the clock was set by +3600 s", "the clock was set by -7200 s"])
        ids = [each["id"] for each in self.events()]
        self.assertEqual(ids, sorted(ids))
        self.assertEqual(findings(self.directory), [])

    def test_a_clock_that_is_behind_the_last_run(self) -> None:
        journal = self.journal()
        self.durable(journal, 1)
        self.disk.work()
        self.stop(journal)
        self.wall -= 86400
        journal = self.journal()
        self.durable(journal, 2)
        self.disk.work()
        self.later()
        self.assertIn("audit_clock", self.actions())
        ids = [each["id"] for each in self.events()]
        self.assertEqual(ids, sorted(ids))
