"""The spool's decisions: numbers, places, what is written again and what goes."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.trial.unittest import SynchronousTestCase

from defender.audit.commands import (
    Command,
    Commit,
    Inspect,
    Open,
    Opened,
    Prepare,
    Pressure,
    Retry,
    SegmentFile,
    Survey,
    Tail,
)
from defender.audit.spool import FULL, LONGEST_RETRY, Spool, State
from defender.contract.packing import assemble, pack_body
from defender.contract.spool import (
    HEADER_SIZE,
    RECORD_OVERHEAD,
    decode_header,
    first_chain,
    scan,
    segment_name,
)
from defender.contract.spool_reading import Entry, Finding, Trouble, read_spool

SEGMENT = 4096
EPOCH = 0x9F3C
LARGEST = SEGMENT - HEADER_SIZE - RECORD_OVERHEAD - 90
MICROS = 1_800_000_000_000_000


def payload(number: int = 0, size: int = 0) -> bytes:
    """A payload that reads as an event; `size` bytes or a little more."""
    pairs, body = pack_body({"kind": "engine", "phase": "result", "pad": "x" * size, "actor": {}, "req": {}})
    return assemble(pairs, body, number.to_bytes(16, "big"), MICROS, number)


class Folder:
    """The directory and disk: performs commands on a dict, or fails as it is told."""

    def __init__(self) -> None:
        self.files: dict[str, bytearray] = {}
        self.synced: dict[str, bytes] = {}
        self.spare = False
        self.broken = False

    def commit(self, command: Commit) -> None:
        for name in command.remove:
            del self.files[name]
        for part in command.parts:
            if part.fresh:
                assert part.offset == 0
                self.files[part.name] = bytearray(SEGMENT)
                self.spare = False
            file = self.files[part.name]
            assert len(part.data) + part.offset <= SEGMENT, "beyond the segment's end"
            assert not any(file[part.offset : part.offset + len(part.data)]), "written twice"
            file[part.offset : part.offset + len(part.data)] = part.data

    def segments(self) -> list[SegmentFile]:
        files = []
        for name in sorted(self.files):
            header = decode_header(bytes(self.files[name]))
            files.append(SegmentFile(name, header.epoch, header.first_seq, SEGMENT))
        return files

    def numbers(self) -> list[int]:
        found = list(read_spool([(name, bytes(data)) for name, data in self.files.items()]))
        assert not [item for item in found if isinstance(item, Finding) and not item.harmless], found
        return [item.record.seq for item in found if isinstance(item, Entry)]


class SpoolCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Folder()
        self.spool = self.make()

    def make(self, *, segments: int = 4, refuse: bool = False) -> Spool:
        return Spool("web1", "boot", segment_bytes=SEGMENT, max_bytes=segments * SEGMENT, refuse=refuse)

    def open(self) -> list[Command]:
        self.assertEqual(self.spool.start(), [Open()])
        return self.spool.opened(Opened(EPOCH, 1, first_chain("web1", EPOCH)), 0.0)

    def work(self, commands: Sequence[Command]) -> list[Command]:
        """Perform on a disk that works until nothing is left but timers, which are returned."""
        timers: list[Command] = []
        waiting = list(commands)
        while waiting:
            command = waiting.pop(0)
            if isinstance(command, Commit):
                self.folder.commit(command)
                waiting += self.spool.committed(0.0)
            elif isinstance(command, Prepare):
                for name in command.remove:
                    del self.folder.files[name]
                self.folder.spare = True
                waiting += self.spool.prepared()
            elif isinstance(command, Survey):
                waiting += self.spool.surveyed(self.folder.segments(), self.folder.spare, MICROS, 0.0)
            else:
                timers.append(command)
        return timers

    def add(self, count: int = 1, size: int = 100) -> int:
        taken, commands = self.spool.add([payload(n, size) for n in range(count)], MICROS)
        self.timers = self.work(commands)
        return taken


class Ordinary(SpoolCase):
    def test_numbers_and_chain_go_on_over_segments(self) -> None:
        self.work(self.open())
        for _ in range(30):
            self.add(3)
        self.assertEqual(self.spool.durable_seq, 90)
        numbers = self.folder.numbers()
        self.assertEqual(numbers[-1], 90)
        self.assertEqual(numbers, list(range(numbers[0], 91)))

    def test_one_commit_at_a_time_and_all_of_it(self) -> None:
        self.work(self.open())
        taken, commands = self.spool.add([payload(n, 10) for n in range(5)], MICROS)
        self.assertEqual((taken, len(commands)), (5, 1))
        self.assertIs(self.spool.state, State.COMMITTING)
        self.assertEqual(self.spool.durable_seq, 0)
        self.assertEqual(self.work(commands), [])
        self.assertEqual(self.spool.durable_seq, 5)

    def test_room_for_a_segment_is_ready_before_it_is_needed(self) -> None:
        self.assertEqual(self.open(), [Prepare()])
        self.spool.prepared()
        _, commands = self.spool.add([payload(1)], MICROS)
        self.folder.commit(commands[0])  # type: ignore[arg-type]
        # The first segment took the room; the next one's is asked for at once.
        self.assertEqual(self.spool.committed(0.0), [Prepare()])
        self.spool.prepared()
        _, commands = self.spool.add([payload(2)], MICROS)
        self.folder.commit(commands[0])  # type: ignore[arg-type]
        self.assertEqual(self.spool.committed(0.0), [])

    def test_no_room_ahead_is_no_failure(self) -> None:
        self.open()
        self.assertEqual(self.spool.unprepared(0.0), [])
        self.assertEqual(self.spool.problem, "")
        _, commands = self.spool.add([payload(1)], MICROS)
        self.folder.commit(commands[0])  # type: ignore[arg-type]
        self.assertEqual(self.spool.committed(1.0), [])
        _, commands = self.spool.add([payload(2)], MICROS)
        self.folder.commit(commands[0])  # type: ignore[arg-type]
        self.assertEqual(self.spool.committed(31.0), [Prepare()])

    def test_a_header_says_where_its_segment_belongs(self) -> None:
        self.spool.start()
        before = (0xAB, 17, b"c" * 32)
        self.spool.opened(Opened(EPOCH, 1, first_chain("web1", EPOCH), predecessor=before), 0.0)
        self.spool.prepared()
        self.add(40, 50)
        headers = [decode_header(bytes(data)) for data in self.folder.files.values()]
        self.assertGreater(len(headers), 1)
        for header in headers:
            self.assertEqual((header.agent, header.epoch, header.boot), ("web1", EPOCH, "boot"))
            self.assertEqual((header.predecessor, header.predecessor_seq, header.predecessor_chain), before)
            self.assertEqual(header.created, MICROS)

    def test_another_epoch_names_the_one_that_it_follows(self) -> None:
        self.work(self.open())
        self.assertTrue(self.spool.is_fresh)
        self.add(3)
        end = (EPOCH, 3, self.spool.durable_chain)
        self.spool.begin_epoch(0xA0)
        self.add(20, 50)
        headers = [decode_header(bytes(data)) for data in self.folder.files.values()]
        self.assertEqual({header.epoch for header in headers}, {EPOCH, 0xA0})
        self.assertEqual(
            {
                (header.predecessor, header.predecessor_seq, header.predecessor_chain)
                for header in headers
                if header.epoch == 0xA0
            },
            {end},
        )
        found = list(read_spool([(name, bytes(data)) for name, data in self.folder.files.items()]))
        self.assertEqual([item.trouble for item in found if isinstance(item, Finding)], [Trouble.UNCLOSED])
        read = [(item.epoch.number, item.record.seq) for item in found if isinstance(item, Entry)]
        self.assertEqual(read, [(EPOCH, n) for n in (1, 2, 3)] + [(0xA0, n) for n in range(1, 21)])

    def test_an_old_segment_is_gone_on_with(self) -> None:
        self.work(self.open())
        self.add(3)
        (name,) = self.folder.files
        data = bytes(self.folder.files[name])
        found = scan(data, decode_header(data))
        self.spool = self.make()
        self.spool.start()
        opened = Opened(
            EPOCH,
            4,
            found.place.chain,
            tuple(self.folder.segments()),
            Tail(name, found.place.offset, SEGMENT),
            spare=True,
        )
        self.assertEqual(self.spool.opened(opened, 0.0), [])
        self.assertEqual(self.spool.durable_seq, 3)
        self.add(3)
        self.assertEqual(list(self.folder.files), [name])
        self.assertEqual(self.folder.numbers(), [1, 2, 3, 4, 5, 6])

    @given(strategies.lists(strategies.integers(1, LARGEST), max_size=30))
    def test_any_sizes_fit(self, sizes: list[int]) -> None:
        self.setUp()
        self.spool = self.make(segments=40)
        self.work(self.open())
        taken, commands = self.spool.add([payload(n, size) for n, size in enumerate(sizes)], MICROS)
        self.assertEqual(taken, len(sizes))
        self.work(commands)
        self.assertEqual(self.folder.numbers(), list(range(1, len(sizes) + 1)))


class Rotation(SpoolCase):
    def test_the_oldest_segment_goes_at_the_limit_and_no_sooner(self) -> None:
        self.work(self.open())
        while not self.spool.removed:
            self.add()
            self.assertLessEqual((len(self.folder.files) + self.folder.spare) * SEGMENT, 4 * SEGMENT)
        self.assertEqual((len(self.folder.files), self.folder.spare), (3, True))
        (removed,) = self.spool.removed
        self.assertEqual(removed.first_seq, 1)
        self.assertEqual(self.folder.numbers()[0], removed.last_seq + 1)
        self.assertEqual(removed.name, segment_name(EPOCH, 1))
        self.assertEqual(self.spool.first_seq, removed.last_seq + 1)

    def test_a_full_disk_of_others_removes_nothing(self) -> None:
        self.work(self.open())
        self.add(2)
        commands: list[Command] = []
        while not any(isinstance(each, Commit) and each.parts[-1].fresh for each in commands):
            self.work(commands)
            _, commands = self.spool.add([payload(1, 500)], MICROS)
        before = dict(self.folder.files)
        for _ in range(4):
            (survey_or_retry,) = self.spool.failed("No space left on device")
            self.assertEqual(self.spool.removed, [])
            if isinstance(survey_or_retry, Retry):
                (survey_or_retry,) = self.spool.retry()
            self.assertEqual(survey_or_retry, Survey())
            (commit,) = self.spool.surveyed(self.folder.segments(), False, MICROS, 0.0)
            self.assertEqual(commit.remove, ())  # type: ignore[union-attr]
        self.assertEqual(self.folder.files, before)

    def test_what_could_not_be_removed_still_counts(self) -> None:
        self.work(self.open())
        prepare: Command | None = None
        while prepare is None:
            _, (commit,) = self.spool.add([payload(1, 500)], MICROS)
            self.folder.commit(commit)  # type: ignore[arg-type]
            for command in self.spool.committed(0.0):
                if isinstance(command, Prepare) and command.remove:
                    prepare = command
                else:
                    self.work([command])
        size = self.spool.size + SEGMENT
        self.spool.unprepared(0.0, removed=0)
        self.assertEqual(self.spool.removed, [])
        self.assertEqual(self.spool.size, size)


class Refusal(SpoolCase):
    def setUp(self) -> None:
        super().setUp()
        self.spool = self.make(segments=8, refuse=True)
        self.work(self.open())

    def test_the_reserve_then_nothing_then_room_again(self) -> None:
        seen = []
        while self.spool.pressure is not Pressure.FULL:
            if self.spool.pressure not in seen:
                seen.append(self.spool.pressure)
            taken = self.add(1, 60)
        self.assertEqual(seen, [Pressure.NONE, Pressure.RESERVED])
        self.assertEqual(taken, 0)
        self.assertEqual(self.timers, [Retry(LONGEST_RETRY)])
        self.assertEqual(self.folder.numbers()[0], 1)
        self.assertEqual(len(self.folder.files), 8)
        last = self.spool.durable_seq
        # Nobody has made room yet.
        self.assertEqual(self.work(self.spool.retry()), [])
        self.assertEqual(self.add(1, 60), 0)
        self.folder.files.pop(min(self.folder.files))
        self.work(self.spool.retry())
        self.assertEqual(self.add(1, 60), 1)
        self.assertEqual(self.spool.durable_seq, last + 1)

    def test_a_batch_is_taken_as_far_as_it_fits(self) -> None:
        taken = self.add(500, 60)
        self.assertLess(taken, 500)
        self.assertGreater(taken, 100)
        self.assertEqual(self.folder.numbers(), list(range(1, taken + 1)))

    def test_what_was_delivered_makes_room(self) -> None:
        while self.spool.pressure is Pressure.NONE:
            self.add(1, 60)
        first, second, third = (segment.first_seq for segment in self.spool.segments[:3])
        self.spool.delivered(EPOCH, third - 2)
        self.assertIs(self.spool.pressure, Pressure.NONE)
        while self.spool.pressure is not Pressure.FULL:
            self.add(1, 60)
        # All of the first two but the last record of the second are the controller's.
        self.assertEqual([each.first_seq for each in self.spool.removed], [first])
        self.assertEqual(self.spool.first_seq, second)
        self.assertEqual(self.timers, [Retry(LONGEST_RETRY)])
        self.spool.delivered(EPOCH, self.spool.durable_seq)
        self.work(self.spool.retry())
        self.assertEqual(self.add(1, 60), 1)
        self.assertGreaterEqual(self.spool.first_seq, third)

    def test_earlier_epochs_were_delivered_before_this_one(self) -> None:
        while len(self.spool.segments) < 3:
            self.add(1, 60)
        self.spool.begin_epoch(EPOCH + 1)
        while self.spool.pressure is not Pressure.FULL:
            self.add(1, 60)
        self.spool.delivered(EPOCH + 1, 1)
        self.work(self.spool.retry())
        self.assertEqual(self.add(1, 60), 1)
        self.assertEqual({each.epoch for each in self.spool.removed}, {EPOCH})


class Failure(SpoolCase):
    def third(self) -> Commit:
        """A commit of the third and fourth event."""
        self.work(self.open())
        self.add(2)
        _, (commit,) = self.spool.add([payload(3), payload(4)], MICROS)
        assert isinstance(commit, Commit)
        return commit

    def test_a_poisoned_segment_is_never_written_again(self) -> None:
        poisoned = self.third()
        part = poisoned.parts[0]
        self.assertEqual(self.spool.failed("Input/output error"), [Survey((part.name, part.offset))])
        self.assertEqual(self.spool.problem, "")
        (commit,) = self.spool.surveyed(self.folder.segments(), True, MICROS, 0.0)
        assert isinstance(commit, Commit)
        (part,) = commit.parts
        self.assertTrue(part.fresh)
        self.assertEqual(part.name, segment_name(EPOCH, 3))
        # The same bytes: same numbers, same chain.
        self.assertEqual(part.data[HEADER_SIZE:], poisoned.parts[0].data)
        self.work([commit])
        self.assertEqual(self.folder.numbers(), [1, 2, 3, 4])
        self.add(1)
        self.assertEqual(self.folder.numbers(), [1, 2, 3, 4, 5])
        self.assertEqual((self.spool.problem, self.spool.durable_seq), ("", 5))

    def test_a_reader_takes_what_two_segments_hold_alike_once(self) -> None:
        self.folder.commit(self.third())  # it is in the file, and nobody knows whether it is on disk
        self.spool.failed("Input/output error")
        self.work(self.spool.surveyed(self.folder.segments(), False, MICROS, 0.0))
        self.assertEqual(self.folder.numbers(), [1, 2, 3, 4])

    def test_trouble_is_told_and_tried_again_ever_more_slowly(self) -> None:
        self.third()
        delays = []
        self.spool.failed("first")
        for number in range(8):
            self.spool.surveyed(self.folder.segments(), False, MICROS, 0.0)
            (retry,) = self.spool.failed(f"reason {number}")
            assert isinstance(retry, Retry)
            self.assertEqual(self.spool.problem, f"reason {number}")
            delays.append(retry.delay)
            self.assertEqual(self.spool.retry(), [Survey()])
        self.assertEqual(delays, [1, 2, 4, 8, 16, 30, 30, 30])
        self.work(self.spool.surveyed(self.folder.segments(), False, MICROS, 0.0))
        self.assertEqual((self.spool.problem, self.folder.numbers()), ("", [1, 2, 3, 4]))

    def test_parts_that_worked_are_not_written_again(self) -> None:
        self.work(self.open())
        _, (commit,) = self.spool.add([payload(n, 500) for n in range(8)], MICROS)
        assert isinstance(commit, Commit)
        self.assertEqual(len(commit.parts), 2)
        self.folder.commit(Commit(commit.parts[:1]))
        (survey,) = self.spool.failed("No space left on device", done=1)
        self.assertEqual(survey, Survey())
        (again,) = self.spool.surveyed(self.folder.segments(), False, MICROS, 0.0)
        assert isinstance(again, Commit)
        self.assertEqual([part.name for part in again.parts], [commit.parts[1].name])
        self.work([again])
        self.assertEqual(self.folder.numbers(), list(range(1, 9)))

    def test_a_directory_that_cannot_be_opened_is_tried_again(self) -> None:
        self.spool.start()
        self.assertEqual(self.spool.failed("Read-only file system"), [Retry(1.0)])
        self.assertEqual(self.spool.problem, "Read-only file system")
        self.assertEqual(self.spool.retry(), [Open()])

    def test_a_directory_that_is_gone_is_begun_again_with_the_next_number(self) -> None:
        self.third()
        self.spool.failed("removed or replaced")
        self.folder.files.clear()
        self.work(self.spool.surveyed([], False, MICROS, 0.0))
        (name,) = self.folder.files
        self.assertEqual(name, segment_name(EPOCH, 3))
        self.assertEqual(self.spool.durable_seq, 4)

    def test_full_and_failing_at_once(self) -> None:
        self.spool = self.make(segments=4, refuse=True)
        self.work(self.open())
        commands: list[Command] = []
        while True:
            taken, commands = self.spool.add([payload(1, 500)], MICROS)
            if not taken or len(self.folder.files) == 4:
                break
            self.work(commands)
        self.spool.failed("Input/output error")
        commands = self.spool.surveyed(self.folder.segments(), False, MICROS, 0.0)
        self.assertIsInstance(commands[0], Retry)
        self.assertEqual(self.spool.problem, FULL)
        self.folder.files.pop(min(self.folder.files))
        self.work(self.spool.retry())
        self.assertEqual(self.spool.problem, "")


class Inspection(SpoolCase):
    def test_a_look_takes_its_turn_and_renames(self) -> None:
        self.work(self.open())
        self.add(1)
        self.assertEqual(self.spool.inspect(), [Inspect()])
        name = segment_name(EPOCH, 1)
        self.assertEqual(self.spool.inspected({name: name + ".bad"}), [])
        self.assertEqual([segment.name for segment in self.spool.segments], [name + ".bad"])
        self.assertIs(self.spool.state, State.READY)


class AnyCourse(RuleBasedStateMachine):
    """Whatever fails in whatever order: what was committed is read again, once and in order."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Folder()
        self.spool = Spool("web1", "", segment_bytes=SEGMENT, max_bytes=200 * SEGMENT, refuse=False)
        self.spool.start()
        self.due: list[Command] = self.spool.opened(Opened(EPOCH, 1, first_chain("web1", EPOCH)), 0.0)
        self.acknowledged = 0

    @precondition(lambda self: self.spool.state is State.READY and not self.due)
    @rule(sizes=strategies.lists(strategies.integers(0, 1500), min_size=1, max_size=6))
    def add(self, sizes: list[int]) -> None:
        taken, self.due = self.spool.add([payload(n, size) for n, size in enumerate(sizes)], MICROS)
        assert taken == len(sizes)

    @precondition(lambda self: self.due)
    @rule(outcome=strategies.sampled_from(["ok", "ok", "fail", "half"]), cut=strategies.integers(0, 4000))
    def perform(self, outcome: str, cut: int) -> None:
        command = self.due.pop(0)
        if isinstance(command, Retry):
            self.due += self.spool.retry()
        elif isinstance(command, Survey):
            if outcome == "fail":
                self.due += self.spool.failed("survey")
            else:
                self.due += self.spool.surveyed(self.folder.segments(), self.folder.spare, MICROS, 0.0)
        elif isinstance(command, Prepare):
            self.folder.spare = outcome == "ok"
            self.due += self.spool.prepared() if outcome == "ok" else self.spool.unprepared(0.0)
        elif isinstance(command, Commit):
            self.commit(command, outcome, cut)

    def commit(self, command: Commit, outcome: str, cut: int) -> None:
        if outcome == "ok":
            self.folder.commit(command)
            self.due += self.spool.committed(0.0)
            self.acknowledged = self.spool.durable_seq
            return
        done = 0
        if outcome == "half":
            done = len(command.parts) // 2
            while 0 < done < len(command.parts) and command.parts[done].name == command.parts[done - 1].name:
                done -= 1
            self.folder.commit(Commit(command.parts[:done]))
            part = command.parts[done]
            if not part.fresh:  # torn by the failure
                end = part.offset + min(cut, len(part.data))
                self.folder.files[part.name][part.offset : end] = part.data[: end - part.offset]
        self.folder.spare = False
        self.due += self.spool.failed("commit", done=done)

    @invariant()
    def everything_acknowledged_is_there(self) -> None:
        files = [(name, bytes(data)) for name, data in self.folder.files.items()]
        numbers = [item.record.seq for item in read_spool(files) if isinstance(item, Entry)]
        assert numbers[: self.acknowledged] == list(range(1, self.acknowledged + 1))
        assert numbers == list(range(1, len(numbers) + 1))


AnyCourseTests = AnyCourse.TestCase
