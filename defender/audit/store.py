"""What the commands of the spool do on the disk: opening and mending, writing and syncing.

`Store` answers each with a value, also what does not work. It is used by one thread at a time, and everything
in it may block.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from defender.audit.commands import (
    Close,
    Command,
    Commit,
    Fetch,
    Inspect,
    Open,
    Opened,
    Part,
    Prepare,
    SegmentFile,
    Survey,
    Tail,
)
from defender.audit.folder import Folder, FolderError
from defender.audit.inspection import Inspection
from defender.audit.recovery import (
    OWN_NAMES,
    SPARE,
    Continuation,
    Finding,
    Judgement,
    continuation,
    judge,
)
from defender.contract.packing import is_closing
from defender.contract.spool import (
    NO_CHAIN,
    first_chain,
    parse_segment_name,
)

_NEW: Final = os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK: Final = 1024 * 1024
_PAGE: Final = 4096
#: Bytes of zeros that are written behind the records, so that the next ones find blocks that are in use.
ZEROS_AHEAD: Final = 128 * 1024
#: Seconds in which the directory and the names in it are not looked at again.
LOOK_AGAIN: Final = 0.1
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, slots=True)
class Opening:
    """The answer to `Open`: what is there, what was found, and the last payload of the last run.

    `inspect`: there are earlier segments to look at.
    """

    opened: Opened
    findings: tuple[Finding, ...]
    last: bytes
    inspect: bool


@dataclass(frozen=True, slots=True)
class Done:
    """The answer to a `Commit` or `Prepare` that worked."""


@dataclass(frozen=True, slots=True)
class There:
    """The answer to `Survey`."""

    segments: tuple[SegmentFile, ...]
    spare: bool


@dataclass(frozen=True, slots=True)
class Trouble:
    """The answer to what did not work: why, how many parts did, how many segments were removed.

    `poisoned` is the segment that is not written again, "" if none was touched.
    """

    reason: str
    done: int = 0
    removed: int = 0
    poisoned: str = ""


@dataclass(frozen=True, slots=True)
class Looked:
    """The answer to `Inspect`: whether there is more to look at; at the end what was found, and the new names
    of damaged segments.
    """

    more: bool
    findings: tuple[Finding, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fetched:
    """The answer to `Fetch`: fewer bytes at the end of the file, None if they cannot be read."""

    data: bytes | None


Answer = Opening | Done | There | Looked | Fetched | Trouble


class Store:
    """See the module; `entropy` makes the number of a new epoch, `seconds` is a monotonic clock."""

    def __init__(
        self,
        directory: Path,
        agent: str,
        *,
        segment_bytes: int,
        entropy: Callable[[int], bytes] = os.urandom,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._agent = agent
        self._segment_bytes = segment_bytes
        self._entropy = entropy
        self._seconds = seconds
        self._looked = -math.inf  # when all names were looked at
        self._folder = Folder(directory)
        self._fd = -1
        self._zeroed = 0  # up to here the open segment's blocks have been written
        self._name = ""
        self._ranks: dict[int, int] = {}  # of epochs, the present one's is the highest
        self._inspection: Inspection | None = None
        self._removed = 0
        self._done = 0
        self._touched = ""

    def perform(self, command: Command) -> Answer:
        """Do it; raises nothing that the disk can be the reason of."""
        self._removed = self._done = 0
        self._touched = ""
        try:
            match command:
                case Open():
                    return self._open()
                case Commit():
                    self._remove(command.remove)
                    self._commit(command.parts)
                case Prepare():
                    self._remove(command.remove)
                    self._allocate()
                case Survey():
                    return self._survey(*command.poisoned)
                case Inspect():
                    return self._inspect()
                case Fetch():
                    return self._fetch(command)
                case Close():
                    self.close()
            return Done()
        except FolderError as error:
            reason = str(error)
        except OSError as error:
            reason = f"the audit spool: {error.strerror or error}"
        except Exception as error:  # noqa: BLE001 - a fault of ours must not end the thread
            reason = f"the audit spool: {error!r}"
        if isinstance(command, Commit):
            self._let_go()
        elif isinstance(command, Inspect):
            self._inspection = None
            return Looked(False)
        elif isinstance(command, Fetch):
            return Fetched(None)
        return Trouble(reason, self._done, self._removed, self._touched)

    def close(self) -> None:
        """Give everything back, the lock as well."""
        self._let_go()
        self._folder.close()

    # -- opening

    def _open(self) -> Opening:
        self._folder.own()
        folder = self._folder
        names = [name for name in sorted(os.listdir(folder.fd)) if name not in OWN_NAMES]
        judgement = judge([folder.look(name) for name in names], self._agent)
        findings = [Finding("aside", folder.set_aside(name), why) for name, why in judgement.aside.items()]
        files = list(judgement.files)
        for index, (_, segment) in enumerate(judgement.segments[:-1]):
            if segment.problem and not segment.quarantined:
                findings.append(Finding("damaged", segment.name, segment.problem))
                files[index] = self._folder.quarantine(files[index])
        opened, last, more = self._go_on(judgement, files)
        named = [
            (epoch, replace(segment, name=file.name))
            for (epoch, segment), file in zip(judgement.segments, files, strict=True)
        ]
        # The last one was read from its beginning to its end, and is appended to.
        self._inspection = Inspection(named, [*findings, *more]) if len(named) > 1 else None
        epochs = [*(file.epoch for file in files), opened.epoch]
        self._ranks = {epoch: rank for rank, epoch in enumerate(epochs)}
        return Opening(opened, (*findings, *more), last, self._inspection is not None)

    def _go_on(
        self, judgement: Judgement, files: list[SegmentFile]
    ) -> tuple[Opened, bytes, tuple[Finding, ...]]:
        """Go on after the last record, or with a new epoch."""
        spare = self._spare_is_there()
        if not files:
            return self._new_epoch(files, spare, (0, 0, NO_CHAIN)), b"", ()
        file, segment = files[-1], judgement.segments[-1][1]
        found = self._folder.scan(segment)
        how = continuation(segment, found)
        findings = list(how.findings)
        last = found.records[-1].payload if found.records else b""
        if how.quarantine:
            files[-1] = self._folder.quarantine(file)
        if not is_closing(last):
            findings.append(Finding("unclosed", file.name, "the last run did not stop in good order"))
        if not how.usable or not judgement.going_on:
            reached = how.last_seq if found.records else 0
            if not how.usable:
                why = "the end of its epoch cannot be read; a new epoch begins"
                findings.append(Finding("missing", file.name, why, reached + 1))
            return self._new_epoch(files, spare, (file.epoch, reached, how.chain)), last, tuple(findings)
        tail = self._mend(file, how) if how.append else None
        header = segment.header
        before = (header.predecessor, header.predecessor_seq, header.predecessor_chain)
        opened = Opened(file.epoch, how.last_seq + 1, how.chain, tuple(files), tail, spare, before)
        return opened, last, tuple(findings)

    def _new_epoch(
        self, files: list[SegmentFile], spare: bool, predecessor: tuple[int, int, bytes]
    ) -> Opened:
        taken = {file.epoch for file in files} | {0}
        epoch = 0
        while epoch in taken:
            epoch = int.from_bytes(self._entropy(8), "big")
        chain = first_chain(self._agent, epoch)
        return Opened(epoch, 1, chain, tuple(files), None, spare, predecessor)

    def _mend(self, segment: SegmentFile, how: Continuation) -> Tail:
        """Make the last segment end after its last good record, for certain, and be as large as it was."""
        self._fd = self._folder.open(segment.name, os.O_RDWR)
        self._name = segment.name
        size = segment.size
        if how.cut:
            self._keep_torn(segment, how.offset)
            os.ftruncate(self._fd, how.offset)
            try:
                os.posix_fallocate(self._fd, 0, segment.size)
            except OSError as error:
                if error.errno not in _NO_SPACE:
                    raise
                os.ftruncate(self._fd, how.offset)
                size = how.offset
        os.fsync(self._fd)
        return Tail(segment.name, how.offset, size)

    def _keep_torn(self, segment: SegmentFile, offset: int) -> None:
        """Keep what is cut away: it was never acknowledged, unless the disk lies."""
        with contextlib.suppress(OSError, FolderError):
            rest = os.pread(self._fd, segment.size - offset, offset).rstrip(b"\0")
            name = self._folder.free_name(f"{segment.name}.{offset}.torn")
            fd = os.open(name, os.O_WRONLY | os.O_EXCL | _NEW, 0o600, dir_fd=self._folder.fd)
            try:
                os.write(fd, rest)
            finally:
                os.close(fd)

    # -- surveying

    def _inspect(self) -> Looked:
        inspection = self._inspection
        if inspection is None:
            return Looked(False)
        if inspection.wanted is not None:
            name, offset, size = inspection.wanted
            try:
                fd = self._folder.open(name, os.O_RDONLY)
            except FileNotFoundError:
                inspection.feed(None)
                return Looked(True)
            try:
                inspection.feed(os.pread(fd, size, offset))
            finally:
                os.close(fd)
            return Looked(True)
        self._inspection = None
        findings = []
        renamed = {}
        for finding in inspection.findings():
            if finding.kind == "damaged" and finding.name != self._name:
                file = self._folder.quarantine(SegmentFile(finding.name, 0, 0, 0))
                renamed[finding.name] = file.name
            findings.append(finding)
        return Looked(False, tuple(findings), renamed)

    def _fetch(self, wanted: Fetch) -> Fetched:
        fd = self._folder.open(wanted.name, os.O_RDONLY)
        try:
            return Fetched(os.pread(fd, wanted.size, wanted.offset))
        finally:
            os.close(fd)

    def _survey(self, poisoned: str, end: int) -> There:
        if not self._folder.is_ours():
            self._folder.own()
        elif poisoned:
            self._give_back(poisoned, end)
        files = []
        for name in os.listdir(self._folder.fd):
            named = parse_segment_name(name)
            if named is None:
                continue
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(name, dir_fd=self._folder.fd, follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    files.append(SegmentFile(name, *named, status.st_size))
        files.sort(key=lambda file: (self._ranks.get(file.epoch, -1), file.first_seq, file.name))
        return There(tuple(files), self._spare_is_there())

    def _give_back(self, poisoned: str, end: int) -> None:
        """Cut a segment behind the page that it ends in: nothing of it is written for that."""
        with contextlib.suppress(OSError, FolderError):
            fd = self._folder.open(poisoned, os.O_RDWR)
            try:
                os.ftruncate(fd, min(os.fstat(fd).st_size, -(-end // _PAGE) * _PAGE))
            finally:
                os.close(fd)

    def _spare_is_there(self) -> bool:
        """Whether the next segment's room is there, clean; what a crash left in it goes."""
        try:
            fd = self._folder.open(SPARE, os.O_RDWR)
        except FileNotFoundError:
            return False
        except FolderError:
            self._folder.set_aside(SPARE)
            return False
        try:
            if os.fstat(fd).st_size == self._segment_bytes:
                self._clean(fd)
                return True
        finally:
            os.close(fd)
        os.unlink(SPARE, dir_fd=self._folder.fd)
        return False

    def _clean(self, fd: int) -> None:
        """Write zeros where there are none. Not truncated: a full disk would not give the room again."""
        for offset in range(0, self._segment_bytes, _BLOCK):
            block = os.pread(fd, min(_BLOCK, self._segment_bytes - offset), offset)
            if block.strip(b"\0"):
                os.pwrite(fd, bytes(len(block)), offset)

    # -- writing

    def _remove(self, names: tuple[str, ...]) -> None:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._folder.fd)
            self._removed += 1

    def _allocate(self) -> None:
        """Have the room of one segment under the name `SPARE`."""
        fd = os.open(SPARE, os.O_RDWR | os.O_TRUNC | _NEW, 0o600, dir_fd=self._folder.fd)
        try:
            os.posix_fallocate(fd, 0, self._segment_bytes)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(SPARE, dir_fd=self._folder.fd)
            raise FolderError(
                f"the audit spool: no room for {self._segment_bytes} bytes: {error.strerror}"
            ) from None
        finally:
            os.close(fd)

    def _commit(self, parts: tuple[Part, ...]) -> None:
        # Looking at all names costs a tenth of a sync. In between, a file that has a name is good enough.
        now = self._seconds()
        looking = not 0 <= now - self._looked < LOOK_AGAIN or parts[0].name != self._name
        if looking:
            if not self._folder.is_ours():
                raise FolderError("the audit spool was removed or replaced")
            self._looked = now
        start = 0
        while start < len(parts):
            end = start + 1
            while end < len(parts) and parts[end].name == parts[start].name:
                end += 1
            first = parts[start]
            data = b"".join(part.data for part in parts[start:end])
            if first.fresh:
                self._create(first.name, data)
            else:
                self._append(first.name, first.offset, data, looking)
            self._done = start = end

    def _append(self, name: str, offset: int, data: bytes, looking: bool) -> None:
        if name != self._name:
            self._let_go()
            self._fd = self._folder.open(name, os.O_RDWR)
            self._name = name
        if looking:
            good = self._has_name(name)
        else:
            good = os.fstat(self._fd).st_nlink > 0
        if not good:
            raise FolderError(f"the audit spool's {name} was removed or replaced")
        self._touched = name
        self._write(name, data, offset)
        self._touched = ""

    def _has_name(self, name: str) -> bool:
        """Whether the open segment is what has its name."""
        try:
            there = os.stat(name, dir_fd=self._folder.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(self._fd))

    def _create(self, name: str, data: bytes) -> None:
        """A new segment with its first records: it has its name when they are on disk."""
        self._let_go()
        try:
            fd = self._folder.open(SPARE, os.O_RDWR)
        except FileNotFoundError:
            self._allocate()
            fd = self._folder.open(SPARE, os.O_RDWR)
        self._fd = fd
        try:
            self._write(name, data, 0)
        except FolderError:
            # What the disk has of it is not known any more.
            with contextlib.suppress(OSError):
                os.unlink(SPARE, dir_fd=self._folder.fd)
            raise
        os.rename(SPARE, name, src_dir_fd=self._folder.fd, dst_dir_fd=self._folder.fd)
        os.fsync(self._folder.fd)
        self._name = name
        named = parse_segment_name(name)
        assert named is not None, name
        # An epoch that begins while we run is behind all others.
        self._ranks.setdefault(named[0], len(self._ranks))

    def _write(self, name: str, data: bytes, offset: int) -> None:
        end = offset + len(data)
        if end > self._zeroed:
            # Blocks that were written once are synced in half the time that reserved ones take, because the
            # file system has nothing to note. So zeros go ahead of the records, some at a time.
            self._zeroed = max(end, min(end + ZEROS_AHEAD, os.fstat(self._fd).st_size))
            data += bytes(self._zeroed - end)
        view = memoryview(data)
        try:
            while view:
                done = os.pwrite(self._fd, view, offset)
                view = view[done:]
                offset += done
            os.fdatasync(self._fd)
        except OSError as error:
            raise FolderError(f"the audit spool's {name} cannot be written: {error.strerror}") from None

    def _let_go(self) -> None:
        if self._fd >= 0:
            # An error here tells of nothing that fdatasync has not told.
            with contextlib.suppress(OSError):
                os.close(self._fd)
        self._fd = -1
        self._zeroed = 0
        self._name = ""
