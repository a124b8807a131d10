"""The files of a defender's spool: which there are, what they hold, and what is appended to them.

Only reads, and works whether or not the defender runs. Nothing is mapped into memory: the defender may cut a
file that is being read.
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from defender.contract.spool import (
    HEADER_SIZE,
    MAX_PAYLOAD,
    MAX_SEGMENT_SIZE,
    Place,
    Scan,
    SpoolError,
    parse_segment_name,
    quarantine_name,
    scan,
)
from defender.contract.spool_order import NO_HEADER, Epoch, Segment, arrange, flatten, segment_of
from defender.contract.spool_reading import Finding, Item, Trouble, Walk

#: What is read at once of a segment that grows; the largest record fits.
CHUNK: Final = 2 * MAX_PAYLOAD
#: After so many looks a record that is not whole is taken for damaged, if others follow it.
PATIENCE: Final = 10
#: Files and directories of the defender's own that are no segments.
_OWN: Final = frozenset({"lock", "spare", "quarantine", "lost+found"})


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where a defender keeps its spool, and its name; "" if the settings do not say."""

    directory: Path
    agent: str


def spool_of(state: Path) -> Whereabouts:
    """Where the defender with this state directory keeps its spool: as its settings say, else the default.

    Settings that cannot be read count as none.
    """
    for directory in (state, state / "defender"):
        try:
            document = tomllib.loads((directory / "defender.toml").read_text("utf-8"))
        except (OSError, ValueError):
            continue
        agent = _text(document, "defender", "name")
        own = directory / _text(document, "defender", "state")
        given = _text(document, "audit", "directory")
        return Whereabouts(directory / given if given else own / "audit", agent)
    for directory in (state, state / "defender"):
        if (directory / "audit").is_dir():
            return Whereabouts(directory / "audit", "")
    return Whereabouts(state / "audit", "")


def _text(document: Mapping[str, Any], table: str, key: str) -> str:
    part = document.get(table)
    value = part.get(key) if isinstance(part, dict) else None
    return value if isinstance(value, str) else ""


@dataclass(frozen=True, slots=True)
class Listing:
    """What is in the directory: epochs in order, and names that are no segments."""

    epochs: list[Epoch]
    unknown: list[str]

    @property
    def segments(self) -> list[tuple[Epoch, Segment]]:
        """Every segment of this defender, in order."""
        return flatten(self.epochs)


class SpoolFiles:
    """A spool's directory, or one segment's file.

    `agent` is the name of the defender whose spool it is, "" for whoever wrote last.
    """

    def __init__(self, path: Path, agent: str = "") -> None:
        self.path = path
        self._agent = agent
        self._heads: dict[tuple[str, int, int], Segment] = {}

    def look(self) -> Listing:
        """What is there now. Raises OSError if the directory cannot be read."""
        if not self.path.is_dir():
            return self._single()
        segments: list[Segment] = []
        unknown: list[str] = []
        heads: dict[tuple[str, int, int], Segment] = {}
        with os.scandir(self.path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if parse_segment_name(entry.name) is None:
                    if entry.name not in _OWN:
                        unknown.append(entry.name)
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                    key = (entry.name, status.st_ino, status.st_ctime_ns)
                    segment = self._heads.get(key) or self._segment(entry.name)
                except FileNotFoundError:
                    continue  # removed in this moment
                if not segment.problem:
                    heads[key] = segment
                segments.append(segment)
        self._heads = heads
        known = {segment.header.agent for segment in segments}
        return Listing(arrange(segments, self._agent if self._agent in known else ""), unknown)

    def _single(self) -> Listing:
        """One file, whatever its name is: segments are copied about."""
        with _open(self.path) as file:
            head = file.read(0, HEADER_SIZE)
        segment = segment_of(self.path.name, head)
        if segment is None:
            named = segment_of(f"{1:016x}-{1:020d}.seg", head)
            if named is None or not named.header.agent:
                raise OSError(22, "is not a segment of a spool", str(self.path))
            segment = Segment(self.path.name, named.header)
        return Listing(arrange([segment]), [])

    def _segment(self, name: str) -> Segment:
        try:
            with _open(self.path / name) as file:
                head = file.read(0, HEADER_SIZE)
        except SpoolError:
            head = b""
        segment = segment_of(name, head)
        assert segment is not None, name
        return segment

    def file_of(self, segment: Segment) -> Path:
        """The path of a segment."""
        return self.path / segment.name if self.path.is_dir() else self.path

    def open(self, segment: Segment) -> OpenFile | None:
        """Open a segment, also if it was quarantined since it was listed; None if it is gone.

        SpoolError if the file cannot be used, PermissionError if it is not ours to read.
        """
        path = self.file_of(segment)
        for name in (path.name, *(quarantine_name(path.name, number) for number in range(4))):
            try:
                return _open(path.with_name(name))
            except FileNotFoundError:
                continue
        return None

    def load(self, segment: Segment) -> bytes | None:
        """A segment's content; see `spool_reading.walk`."""
        file = self.open(segment)
        if file is None:
            return None
        with file:
            return file.read(0, file.size)


class OpenFile:
    """A file that is read; close it, or use it in a `with`."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @property
    def size(self) -> int:
        """Bytes of the file now."""
        return os.fstat(self.fd).st_size

    def read(self, offset: int, count: int) -> bytes:
        """So many bytes from an offset on, fewer at the end; SpoolError if the disk does not give them."""
        parts: list[bytes] = []
        try:
            while count > 0 and (part := os.pread(self.fd, count, offset)):
                parts.append(part)
                offset += len(part)
                count -= len(part)
        except OSError as error:
            raise SpoolError(f"cannot be read: {error.strerror or error}") from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Give the descriptor back."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(path: Path) -> OpenFile:
    """Open a segment's file; a FIFO in its place does not block."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, PermissionError):
        raise
    except OSError as error:
        raise SpoolError(f"cannot be read: {error.strerror or error}") from None
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_SEGMENT_SIZE:
        return OpenFile(fd)
    os.close(fd)
    raise SpoolError("is not a regular file" if status.st_size <= MAX_SEGMENT_SIZE else "is too large")


class Follower:
    """Goes on where a `Walk` ended: what is appended, in this segment and in new ones.

    Use `begin` once, then `poll` again and again.
    """

    def __init__(self, files: SpoolFiles, state: Walk, *, patience: int = PATIENCE) -> None:
        self._files = files
        self._state = state
        self._patience = patience
        self._seen: set[tuple[int, int, int]] = set()
        self._current: Segment | None = None
        self._file: OpenFile | None = None
        self._place = Place(0, 0, b"")
        self._looks = 0

    def begin(self, walked: list[tuple[Epoch, Segment]]) -> None:
        """Go on at the end of the last one of these segments that was read."""
        for _, segment in walked:
            self._seen.add(segment.key)
            if segment is self._state.segment and self._state.place is not None:
                self._current, self._place = segment, self._state.place
                self._file = self._files.open(segment)
                break

    def poll(self) -> Iterator[Item]:
        """What came since. Raises OSError if the directory cannot be read."""
        yield from self._grown(last=False)
        try:
            segments = self._files.look().segments
        except FileNotFoundError:
            return
        keys = [segment.key for _, segment in segments]
        start = keys.index(self._current.key) + 1 if self._current and self._current.key in keys else 0
        for epoch, segment in segments[start:]:
            # One that has no header yet is just being made.
            if segment.key in self._seen or segment.problem == NO_HEADER:
                continue
            yield from self._grown(last=True)
            yield from self._enter(epoch, segment)

    def _enter(self, epoch: Epoch, segment: Segment) -> Iterator[Item]:
        if self._file is not None:
            self._file.close()
            self._file = None
        try:
            self._file = self._files.open(segment)
        except SpoolError as error:
            yield Finding(Trouble.DAMAGE, epoch.number, segment.name, 0, 0, 0, str(error))
        yield from self._state.enter(epoch, segment, oldest=self._current is None)
        self._seen.add(segment.key)
        self._current = segment
        self._place = Place(HEADER_SIZE, segment.header.first_seq - 1, segment.header.previous)
        self._looks = 0
        yield from self._grown(last=False)

    def _grown(self, *, last: bool) -> Iterator[Item]:
        """What came in the present segment; `last` if nothing more will."""
        file, segment = self._file, self._current
        if file is None or segment is None:
            return
        while True:
            offset = self._place.offset
            if not last and not any(file.read(offset, 4)):
                return
            patient = not last and self._looks < self._patience
            data = file.read(offset, CHUNK if patient else file.size - offset)
            found = scan(data, segment.header, self._place)
            if patient and (found.damage or (found.torn and not found.records)):
                # The defender may be writing there in this moment.
                self._looks += 1
                found = _before_damage(found, self._place)
            if found.records:
                self._looks = 0
            yield from self._state.read(found)
            self._state.remember(found)
            self._place = found.place
            if last:
                yield from self._state.leave(found)
                return
            if not patient:
                self._looks = 0
            if not found.records:
                return


def _before_damage(found: Scan, start: Place) -> Scan:
    if not found.damage:
        return found
    records = [record for record in found.records if record.offset < found.damage[0].start]
    end = found.damage[0].start
    place = Place(end, records[-1].seq, records[-1].chain) if records else start
    return Scan(records, [], place)
