"""Reading files of lines backwards and while they grow."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings, strategies
from twisted.trial.unittest import SynchronousTestCase

from controller.cli import event_lines
from controller.cli.event_lines import EventFiles, Line, lines_backwards, open_event_file


class Backwards(SynchronousTestCase):
    @settings(max_examples=200, deadline=None)
    @given(strategies.lists(strategies.binary(max_size=30), max_size=20), strategies.integers(1, 40))
    def test_any_bytes_come_apart_into_their_lines(self, parts: list[bytes], block: int) -> None:
        data = b"\n".join(parts)
        self.patch(event_lines, "_BLOCK", block)
        with TemporaryDirectory() as directory:
            path = Path(directory) / "file"
            path.write_bytes(data)
            with open_event_file(path) as file:
                lines = list(lines_backwards(file, path, len(data)))
                places = [line.place() for line in lines]
        expected = data.split(b"\n")
        if not expected[-1]:
            expected.pop()
        self.assertEqual([line.data for line in reversed(lines)], expected)
        for line in lines:
            self.assertEqual(data[line.offset : line.offset + len(line.data)], line.data)
            self.assertEqual(line.whole, data[line.offset + len(line.data) :][:1] == b"\n")
        self.assertEqual(places, [f"{path}:{number}" for number in range(len(lines), 0, -1)])


class Growing(SynchronousTestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name) / "events.jsonl"
        self.files = EventFiles(self.path)

    def put(self, data: bytes, number: int = 0) -> None:
        with event_lines.numbered(self.path, number).open("ab") as file:
            file.write(data)

    def rotate(self, keep: int = 3) -> None:
        for number in range(keep, 0, -1):
            older = event_lines.numbered(self.path, number)
            if older.exists():
                older.rename(event_lines.numbered(self.path, number + 1))
        self.path.rename(event_lines.numbered(self.path, 1))

    def grown(self) -> list[bytes | str]:
        return [item.data if isinstance(item, Line) else item for item in self.files.grown()]

    def test_a_file_that_comes_later_is_read_from_its_beginning(self) -> None:
        self.assertEqual(self.grown(), [])
        self.put(b"a\nb\n")
        self.assertEqual(self.grown(), [b"a", b"b"])
        self.assertEqual(self.grown(), [])

    def test_a_line_is_given_when_its_end_is_there(self) -> None:
        self.put(b"a\nb1")
        self.assertEqual(self.grown(), [b"a"])
        self.put(b"b2")
        self.assertEqual(self.grown(), [])
        self.put(b"b3\nc\n")
        items = list(self.files.grown())
        self.assertEqual([item.data for item in items if isinstance(item, Line)], [b"b1b2b3", b"c"])
        self.assertEqual(items[0].place() if isinstance(items[0], Line) else "", f"{self.path}:2")

    def test_goes_on_where_the_reading_backwards_began(self) -> None:
        self.put(b"a\nb\nc")
        backwards = self.files.backwards()
        self.assertEqual(next(backwards).data, b"c")
        self.put(b"d\n")
        self.assertEqual(next(backwards).data, b"b")
        self.assertEqual(self.grown(), [b"cd"])

    def test_several_rotations_between_two_looks(self) -> None:
        self.put(b"1\n")
        self.assertEqual(self.grown(), [b"1"])
        self.put(b"2\n")
        self.rotate()
        self.put(b"3\n")
        self.rotate()
        self.put(b"4\n")
        self.rotate()
        self.assertEqual(self.grown(), [b"2", b"3", b"4"])
        self.put(b"5\n")
        self.assertEqual(self.grown(), [b"5"])

    def test_a_followed_file_that_is_gone_is_said(self) -> None:
        self.put(b"1\n")
        self.grown()
        self.put(b"2\n")
        self.path.unlink()
        self.assertEqual(self.grown(), [b"2"])
        self.put(b"3\n")
        note, line = self.grown()
        self.assertIn("events may be missing here", str(note))
        self.assertEqual(line, b"3")

    def test_a_file_that_was_cut_off_is_read_again(self) -> None:
        self.put(b"1\n2\n")
        self.grown()
        self.path.write_bytes(b"3\n")
        note, line = self.grown()
        self.assertIn("was cut off", str(note))
        self.assertEqual(line, b"3")

    def test_a_line_without_end_is_bounded(self) -> None:
        self.patch(event_lines, "MAX_LINE", 100)
        self.put(b"x" * 200)
        [note] = self.grown()
        self.assertIn("more than 100 bytes", str(note))
