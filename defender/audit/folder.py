"""The spool's directory as a thing that is held: its lock, and the files in it, none of them followed or
trusted because of its name.

The directory has mode 0700 and the files 0600, and nothing is taken that belongs to somebody else. The lock
keeps a second defender out, for as long as the process lives.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Final

from defender.audit.commands import SegmentFile
from defender.audit.recovery import ASIDE, LOCK, Seen, first_place
from defender.contract.spool import (
    HEADER_SIZE,
    MAX_SEGMENT_SIZE,
    Damage,
    Record,
    Scan,
    parse_segment_name,
    quarantine_name,
    scan,
)
from defender.contract.spool_order import Segment

_FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_SLICE: Final = 1024 * 1024


class FolderError(Exception):
    """The directory cannot be used; a sentence for people, clients among them: without its path."""


class Folder:
    """See the module; `fd` is the directory's descriptor, -1 if it is not held.

    Its methods raise FolderError, and OSError for what the disk does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = -1
        self._lock = -1

    def close(self) -> None:
        """Give it back, the lock first of all."""
        for fd in (self._lock, self.fd):
            if fd >= 0:
                os.close(fd)
        self._lock = self.fd = -1

    def own(self) -> None:
        """Have the directory and its lock."""
        self.close()
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
            _sync_directory(self.path.parent)
        try:
            self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise FolderError("the audit spool is not a directory, or is a symbolic link") from None
            raise
        status = os.fstat(self.fd)
        if status.st_uid != os.geteuid():
            raise FolderError(f"the audit spool belongs to the user {status.st_uid}, not to the defender's")
        if stat.S_IMODE(status.st_mode) != 0o700:
            # Too much is others', and too little (a restored copy) would keep us out for good.
            os.fchmod(self.fd, 0o700)
        self._lock = self.open(LOCK, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 32, 0).split(b"\n")[0].decode("ascii", "replace")
            whose = f"process {holder}" if holder.isdigit() else "another process"
            self.close()
            raise FolderError(
                f"the audit spool is in use by {whose}; two defenders cannot share one (audit.directory)"
            ) from None
        with contextlib.suppress(OSError):  # a full disk: the number is only for the other one's message
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, b"%d\n" % os.getpid(), 0)

    def is_ours(self) -> bool:
        """Whether the directory and the lock at their paths are still those that we hold."""
        if self._lock < 0:
            return False
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.fd)) and os.path.samestat(
                os.stat(LOCK, dir_fd=self.fd, follow_symlinks=False), os.fstat(self._lock)
            )
        except FileNotFoundError:
            return False

    def open(self, name: str, flags: int) -> int:
        """Open a file of ours in the directory; FolderError for anything else that has its name."""
        try:
            fd = os.open(name, flags | _FLAGS, 0o600, dir_fd=self.fd)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise FolderError(f"the audit spool's {name} is not a regular file") from None
            raise
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            os.close(fd)
            raise FolderError(f"the audit spool's {name} is not a regular file of the defender's own")
        if stat.S_IMODE(status.st_mode) & 0o077:
            os.fchmod(fd, 0o600)
        return fd

    def look(self, name: str) -> Seen:
        """What a name in the directory is, with the beginning of the file if it may be a segment."""
        status = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            return Seen(name, flaw="is not a regular file")
        if status.st_uid != os.geteuid():
            return Seen(name, flaw=f"belongs to the user {status.st_uid}")
        if parse_segment_name(name) is None:
            return Seen(name, flaw="is not a segment of a spool")
        fd = self.open(name, os.O_RDONLY)
        try:
            return Seen(name, status.st_size, os.pread(fd, HEADER_SIZE, 0))
        except OSError:
            return Seen(name, status.st_size)
        finally:
            os.close(fd)

    def scan(self, segment: Segment) -> Scan:
        """Read a segment to its end, a slice at a time; of its records only the last one is kept."""
        place = first_place(segment)
        damage: list[Damage] = []
        last: list[Record] = []
        size = _SLICE
        fd = self.open(segment.name, os.O_RDONLY)
        try:
            while True:
                try:
                    data = os.pread(fd, size, place.offset)
                    whole = len(data) < size or place.offset + size >= MAX_SEGMENT_SIZE
                except OSError:
                    # A block that the disk does not give back: nothing is appended to such a segment.
                    data, whole = b"\xff", True
                found = scan(data, segment.header, place)
                if not whole and found.place == place:
                    # Damage, the end of what was written, or a large record: what follows tells.
                    size *= 8
                    continue
                damage += [each for each in found.damage if whole or each.next_seq]
                last = found.records[-1:] or last
                place = found.place
                if whole:
                    return Scan(last, damage, place, found.torn)
                size = _SLICE
        finally:
            os.close(fd)

    def free_name(self, name: str) -> str:
        """A path below `ASIDE` that is not in use, relative to the directory."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(ASIDE, 0o700, dir_fd=self.fd)
        if not stat.S_ISDIR(os.stat(ASIDE, dir_fd=self.fd, follow_symlinks=False).st_mode):
            raise FolderError(f"the audit spool's {ASIDE} is not a directory")
        taken = set(os.listdir(self.path / ASIDE))
        number = 0
        free = name
        while free in taken:
            number += 1
            free = f"{name}.{number}"
        return f"{ASIDE}/{free}"

    def set_aside(self, name: str) -> str:
        """Move what does not belong here; returns where it is now, which is where it was if that fails."""
        with contextlib.suppress(OSError, FolderError):
            status = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                free = self.free_name(name)
                os.rename(name, free, src_dir_fd=self.fd, dst_dir_fd=self.fd)
                return free
        return name

    def quarantine(self, segment: SegmentFile) -> SegmentFile:
        """Rename a damaged segment; its good records still count."""
        number = 0
        there = set(os.listdir(self.fd))
        while (name := quarantine_name(segment.name, number)) in there:
            number += 1
        try:
            os.rename(segment.name, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except OSError:
            return segment
        return SegmentFile(name, segment.epoch, segment.first_seq, segment.size)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
