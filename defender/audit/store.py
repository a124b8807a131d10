"""The spool's directory: its lock and its segments.

`Store` does what the commands say and answers with a value, also for what does not work. It is used by one
thread at a time, and everything in it may block. The directory has mode 0700 and the files 0600; no link in
it is followed, and nothing is taken that belongs to somebody else. Its lock keeps a second defender out, for
as long as the process lives.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from defender.audit.commands import (
    Close,
    Command,
    Commit,
    Inspect,
    Open,
    Opened,
    Part,
    Prepare,
    SegmentFile,
    Survey,
    Tail,
)
from defender.audit.inspection import Inspection
from defender.audit.recovery import (
    ASIDE,
    LOCK,
    OWN_NAMES,
    SPARE,
    Continuation,
    Finding,
    Judgement,
    Seen,
    continuation,
    first_place,
    judge,
)
from defender.contract.packing import is_closing
from defender.contract.spool import (
    HEADER_SIZE,
    MAX_SEGMENT_SIZE,
    NO_CHAIN,
    Scan,
    first_chain,
    parse_segment_name,
    quarantine_name,
    scan,
)
from defender.contract.spool_order import Segment

_FILE: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class StoreError(Exception):
    """The directory cannot be used; a sentence for people, clients among them: without its path."""


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


Answer = Opening | Done | There | Looked | Trouble


class Store:
    """See the module; `entropy` makes the number of a new epoch."""

    def __init__(
        self,
        directory: Path,
        agent: str,
        *,
        segment_bytes: int,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.directory = directory
        self._agent = agent
        self._segment_bytes = segment_bytes
        self._entropy = entropy
        self._folder = -1
        self._lock = -1
        self._fd = -1
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
                    return self._survey()
                case Inspect():
                    return self._inspect()
                case Close():
                    self.close()
            return Done()
        except StoreError as error:
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
        return Trouble(reason, self._done, self._removed, self._touched)

    def close(self) -> None:
        """Give everything back, the lock as well."""
        self._let_go()
        for fd in (self._lock, self._folder):
            if fd >= 0:
                os.close(fd)
        self._lock = self._folder = -1

    # -- possession

    def _own(self) -> None:
        """Have the directory and its lock."""
        self.close()
        self.directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            self.directory.mkdir(mode=0o700)
            _sync_directory(self.directory.parent)
        try:
            self._folder = os.open(
                self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            )
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise StoreError("the audit spool is not a directory, or is a symbolic link") from None
            raise
        status = os.fstat(self._folder)
        if status.st_uid != os.geteuid():
            raise StoreError(f"the audit spool belongs to the user {status.st_uid}, not to the defender's")
        if stat.S_IMODE(status.st_mode) & 0o077:
            os.fchmod(self._folder, 0o700)
        self._lock = self._open_file(LOCK, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 32, 0).split(b"\n")[0].decode("ascii", "replace")
            whose = f"process {holder}" if holder.isdigit() else "another process"
            self.close()
            raise StoreError(
                f"the audit spool is in use by {whose}; two defenders cannot share one (audit.directory)"
            ) from None
        with contextlib.suppress(OSError):  # a full disk: the number is only for the other one's message
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, b"%d\n" % os.getpid(), 0)

    def _owned(self) -> bool:
        """Whether the directory and the lock at their paths are still those that we hold."""
        if self._lock < 0:
            return False
        try:
            return os.path.samestat(os.stat(self.directory), os.fstat(self._folder)) and os.path.samestat(
                os.stat(LOCK, dir_fd=self._folder, follow_symlinks=False), os.fstat(self._lock)
            )
        except FileNotFoundError:
            return False

    def _open_file(self, name: str, flags: int) -> int:
        """Open a file of ours in the directory; StoreError for anything else that has its name."""
        try:
            fd = os.open(name, flags | _FILE, 0o600, dir_fd=self._folder)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise StoreError(f"the audit spool's {name} is not a regular file") from None
            raise
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            os.close(fd)
            raise StoreError(f"the audit spool's {name} is not a regular file of the defender's own")
        if stat.S_IMODE(status.st_mode) & 0o077:
            os.fchmod(fd, 0o600)
        return fd

    # -- opening

    def _open(self) -> Opening:
        self._own()
        judgement = judge(
            [self._look(name) for name in os.listdir(self._folder) if name not in OWN_NAMES], self._agent
        )
        findings = [
            Finding("aside", self._set_aside(name), why) for name, why in sorted(judgement.aside.items())
        ]
        files = list(judgement.files)
        for index, (_, segment) in enumerate(judgement.segments[:-1]):
            if segment.problem and not segment.quarantined:
                findings.append(Finding("damaged", segment.name, segment.problem))
                files[index] = self._quarantine(files[index])
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
        found = self._scan(segment)
        how = continuation(segment, found)
        findings = list(how.findings)
        last = found.records[-1].payload if found.records else b""
        if how.quarantine:
            files[-1] = self._quarantine(file)
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

    def _look(self, name: str) -> Seen:
        status = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            return Seen(name, flaw="is not a regular file")
        if status.st_uid != os.geteuid():
            return Seen(name, flaw=f"belongs to the user {status.st_uid}")
        if parse_segment_name(name) is None:
            return Seen(name, flaw="is not a segment of a spool")
        fd = self._open_file(name, os.O_RDONLY)
        try:
            return Seen(name, status.st_size, os.pread(fd, HEADER_SIZE, 0))
        except OSError:
            return Seen(name, status.st_size)
        finally:
            os.close(fd)

    def _scan(self, segment: Segment) -> Scan:
        place = first_place(segment)
        fd = self._open_file(segment.name, os.O_RDONLY)
        try:
            data = bytearray()
            try:
                while len(data) < MAX_SEGMENT_SIZE:
                    block = os.pread(fd, 4 * 1024 * 1024, place.offset + len(data))
                    if not block:
                        break
                    data += block
            except OSError:
                # A block that the disk does not give back: what is before it counts, and no more is appended.
                data += b"\xff"
            return scan(bytes(data), segment.header, place)
        finally:
            os.close(fd)

    def _mend(self, segment: SegmentFile, how: Continuation) -> Tail:
        """Make the last segment end after its last good record, for certain, and be as large as it was."""
        self._fd = self._open_file(segment.name, os.O_RDWR)
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
        rest = b""
        with contextlib.suppress(OSError):
            rest = os.pread(self._fd, segment.size - offset, offset).rstrip(b"\0")
            name = self._free_name(f"{segment.name}.{offset}.torn")
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE, 0o600, dir_fd=self._folder)
            try:
                os.write(fd, rest)
            finally:
                os.close(fd)

    def _free_name(self, name: str) -> str:
        """A path below `ASIDE` that is not in use, relative to the directory."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(ASIDE, 0o700, dir_fd=self._folder)
        taken = set(os.listdir(self.directory / ASIDE))
        number = 0
        free = name
        while free in taken:
            number += 1
            free = f"{name}.{number}"
        return f"{ASIDE}/{free}"

    def _set_aside(self, name: str) -> str:
        """Move what does not belong here; returns where it is now, which is where it was if that fails."""
        with contextlib.suppress(OSError):
            status = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                free = self._free_name(name)
                os.rename(name, free, src_dir_fd=self._folder, dst_dir_fd=self._folder)
                return free
        return name

    def _quarantine(self, segment: SegmentFile) -> SegmentFile:
        """Rename a damaged segment; its good records still count."""
        number = 0
        there = set(os.listdir(self._folder))
        while (name := quarantine_name(segment.name, number)) in there:
            number += 1
        try:
            os.rename(segment.name, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except OSError:
            return segment
        return SegmentFile(name, segment.epoch, segment.first_seq, segment.size)

    # -- surveying

    def _inspect(self) -> Looked:
        inspection = self._inspection
        if inspection is None:
            return Looked(False)
        if inspection.wanted is not None:
            name, offset, size = inspection.wanted
            try:
                fd = self._open_file(name, os.O_RDONLY)
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
                file = self._quarantine(SegmentFile(finding.name, 0, 0, 0))
                renamed[finding.name] = file.name
            findings.append(finding)
        return Looked(False, tuple(findings), renamed)

    def _survey(self) -> There:
        if not self._owned():
            self._own()
        files = []
        for name in os.listdir(self._folder):
            named = parse_segment_name(name)
            if named is None:
                continue
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    files.append(SegmentFile(name, *named, status.st_size))
        files.sort(key=lambda file: (self._ranks.get(file.epoch, -1), file.first_seq, file.name))
        return There(tuple(files), self._spare_is_there())

    def _spare_is_there(self) -> bool:
        """Whether the next segment's room is there, clean; what a crash left in it goes."""
        try:
            fd = self._open_file(SPARE, os.O_RDWR)
        except FileNotFoundError:
            return False
        except StoreError:
            self._set_aside(SPARE)
            return False
        try:
            if os.fstat(fd).st_size == self._segment_bytes:
                if os.pread(fd, HEADER_SIZE, 0).strip(b"\0"):
                    # Not truncated: what other people's full disk would not give again.
                    for offset in range(0, self._segment_bytes, 1 << 20):
                        os.pwrite(fd, bytes(min(1 << 20, self._segment_bytes - offset)), offset)
                return True
        finally:
            os.close(fd)
        os.unlink(SPARE, dir_fd=self._folder)
        return False

    # -- writing

    def _remove(self, names: tuple[str, ...]) -> None:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._folder)
            self._removed += 1

    def _allocate(self) -> None:
        """Have the room of one segment under the name `SPARE`."""
        fd = os.open(SPARE, os.O_RDWR | os.O_CREAT | os.O_TRUNC | _FILE, 0o600, dir_fd=self._folder)
        try:
            os.posix_fallocate(fd, 0, self._segment_bytes)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(SPARE, dir_fd=self._folder)
            raise StoreError(
                f"the audit spool: no room for {self._segment_bytes} bytes: {error.strerror}"
            ) from None
        finally:
            os.close(fd)

    def _commit(self, parts: tuple[Part, ...]) -> None:
        if self._lock < 0 or not self._owned():
            raise StoreError("the audit spool was removed or replaced")
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
                self._append(first.name, first.offset, data)
            self._done = start = end

    def _append(self, name: str, offset: int, data: bytes) -> None:
        if name != self._name:
            self._let_go()
            self._fd = self._open_file(name, os.O_RDWR)
            self._name = name
        try:
            there = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            there = None
        if there is None or not os.path.samestat(there, os.fstat(self._fd)):
            raise StoreError(f"the audit spool's {name} was removed or replaced")
        self._touched = name
        self._write(name, data, offset)
        self._touched = ""

    def _create(self, name: str, data: bytes) -> None:
        """A new segment with its first records: it has its name when they are on disk."""
        self._let_go()
        try:
            fd = self._open_file(SPARE, os.O_RDWR)
        except FileNotFoundError:
            self._allocate()
            fd = self._open_file(SPARE, os.O_RDWR)
        self._fd = fd
        try:
            self._write(name, data, 0)
        except StoreError:
            # What the disk has of it is not known any more.
            with contextlib.suppress(OSError):
                os.unlink(SPARE, dir_fd=self._folder)
            raise
        os.rename(SPARE, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        os.fsync(self._folder)
        self._name = name

    def _write(self, name: str, data: bytes, offset: int) -> None:
        view = memoryview(data)
        try:
            while view:
                done = os.pwrite(self._fd, view, offset)
                view = view[done:]
                offset += done
            os.fdatasync(self._fd)
        except OSError as error:
            raise StoreError(f"the audit spool's {name} cannot be written: {error.strerror}") from None

    def _let_go(self) -> None:
        if self._fd >= 0:
            # An error here tells of nothing that fdatasync has not told.
            with contextlib.suppress(OSError):
                os.close(self._fd)
        self._fd = -1
        self._name = ""


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
