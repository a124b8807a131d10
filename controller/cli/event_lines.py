"""Reads the defender's event file and the rotated ones beside it, backwards from the end or as it grows.

Works on the files alone, whether or not the defender runs. A line is bytes without its newline; `Place`
says where it stands, for messages.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

_BLOCK: Final = 64 * 1024
#: Longest line that is kept in memory; the defender's are far shorter.
MAX_LINE: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a file: its bytes, where it begins, and whether its newline is there."""

    path: Path
    file: BinaryIO
    offset: int
    data: bytes
    whole: bool = True

    def place(self) -> str:
        """``FILE:LINE``; counts the lines before it, so it is for messages only."""
        number = 1
        left = self.offset
        self.file.seek(0)
        while left > 0 and (block := self.file.read(min(left, _BLOCK))):
            number += block.count(b"\n")
            left -= len(block)
        return f"{self.path}:{number}"


def numbered(path: Path, number: int) -> Path:
    """The name of a rotated file, 0 for the current one."""
    return path.with_name(f"{path.name}.{number}") if number else path


def open_event_file(path: Path) -> BinaryIO:
    """Open one file; a FIFO in its place does not block."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb", buffering=0)


class EventFiles:
    """The current file and the rotated ones, as one text that grows at its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._place = path
        self._offset = 0
        self._rest = b""

    def backwards(self) -> Iterator[Line]:
        """Every line from the newest to the oldest; raises OSError if the newest file cannot be read.

        The files stay open while lines of them are in use. Afterwards `grown` goes on where this began.
        """
        seen: set[tuple[int, int]] = set()
        number = 0
        while True:
            path = numbered(self.path, number)
            try:
                file = open_event_file(path)
            except FileNotFoundError:
                if number == 0 and not numbered(self.path, 1).exists():
                    raise
                if number > 0:
                    return
                number += 1
                continue
            status = os.fstat(file.fileno())
            identity = (status.st_dev, status.st_ino)
            end = status.st_size
            if number == 0:
                self._file, self._offset, self._place = file, end, path
            # A rotation between two openings shows the same file again under its next name.
            if identity not in seen:
                seen.add(identity)
                for line in lines_backwards(file, path, end):
                    if number == 0 and not line.whole:
                        self._rest = line.data
                    yield line
            number += 1

    def from_end(self) -> None:
        """Let `grown` begin at the present end of the current file."""
        try:
            file = open_event_file(self.path)
        except FileNotFoundError:
            return
        self._file, self._offset = file, os.fstat(file.fileno()).st_size

    def grown(self) -> Iterator[Line | str]:
        """The whole lines that came since, across rotations; a text is a note for the reader."""
        while True:
            if self._file is None:
                try:
                    self._file = open_event_file(self.path)
                except FileNotFoundError:
                    return
                self._offset, self._rest, self._place = 0, b"", self.path
            yield from self._read()
            following = self._following()
            if following is None:
                return
            # What was written between the reading and the rotation.
            yield from self._read()
            if self._rest:
                yield Line(self._place, self._file, self._offset - len(self._rest), self._rest, whole=False)
            self._file.close()
            file, note = following
            if note:
                yield note
            self._file, self._offset, self._rest = file, 0, b""

    def _read(self) -> Iterator[Line | str]:
        file = self._file
        assert file is not None
        if os.fstat(file.fileno()).st_size < self._offset:
            yield f"{self._place}: was cut off; reading it from its beginning"
            self._offset, self._rest = 0, b""
        while True:
            file.seek(self._offset)
            block = file.read(_BLOCK)
            if not block:
                return
            start = self._offset - len(self._rest)
            self._offset += len(block)
            *whole, self._rest = (self._rest + block).split(b"\n")
            for data in whole:
                yield Line(self._place, file, start, data)
                start += len(data) + 1
            if len(self._rest) > MAX_LINE:
                yield f"{self._place}: passed over a line of more than {MAX_LINE} bytes"
                self._rest = b""

    def _following(self) -> tuple[BinaryIO, str] | None:
        """The file after the one that was read, if it is no longer the current one."""
        assert self._file is not None
        ours = os.fstat(self._file.fileno())
        number = 0
        newer: BinaryIO | None = None
        while True:
            try:
                file = open_event_file(numbered(self.path, number))
            except FileNotFoundError:
                if number:
                    break
                number = 1
                continue
            there = os.fstat(file.fileno())
            if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                file.close()
                return (newer, "") if newer else None
            if newer:
                newer.close()
            newer = file
            number += 1
        if newer is None:
            return None  # moved away, and nothing was written since
        return newer, f"{self.path}: the file that was followed is gone; events may be missing here"


def lines_backwards(file: BinaryIO, path: Path, end: int) -> Iterator[Line]:
    """The lines of the first `end` bytes of a file, last line first."""
    parts: list[bytes] = []  # of the line whose beginning is not found yet, last part first
    whole = False
    position = end
    while position > 0:
        size = min(_BLOCK, position)
        position -= size
        file.seek(position)
        block = file.read(size)
        if len(block) < size:
            return  # cut off while it was read
        while (newline := block.rfind(b"\n")) >= 0:
            data = b"".join([block[newline + 1 :], *reversed(parts)])
            if whole or data:
                yield Line(path, file, position + newline + 1, data, whole)
            parts, whole, block = [], True, block[:newline]
        parts.append(block)
    data = b"".join(reversed(parts))
    if data or whole:
        yield Line(path, file, 0, data, whole)
