"""The audit trail as a file of JSON lines.

`Journal` is the recorder that the defender's features are given: it never blocks on anything but the local
file system's page cache, and never raises. The events of one reactor turn become one `write`. When the file
cannot be written, events wait in memory up to a bound and are tried again; the oldest are dropped first,
and the first line that is written afterwards is a `gap` event with their number. What was written is not
synced: a power failure may take the last moments with it, a crash of the defender does not.
"""

from __future__ import annotations

import errno
import os
import random
import stat
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from defender.contract.audit import (
    REQUIRED,
    SCHEMA_VERSION,
    SYSTEM,
    Event,
    gap_event,
    timestamp,
    to_line,
)

#: What waits in memory while the file cannot be written: events and bytes.
MAX_WAITING: Final = 1000
MAX_WAITING_BYTES: Final = 4 * 1024 * 1024
#: One turn that records more than this writes before its end, bytes.
MAX_BATCH: Final = 256 * 1024
#: Seconds between two looks whether the file at the path is still ours.
CHECK_INTERVAL: Final = 1.0
#: Seconds until a failed write is tried again: the first time, and at most.
FIRST_RETRY: Final = 1.0
LAST_RETRY: Final = 30.0


class Stamp:
    """Gives events their identity: name of the defender, epoch, sequence number, time, id.

    The epoch is a random 64-bit number, new with each start, so that a sequence number is never used twice.
    Ids are UUIDs of version 7 (RFC 9562 section 5.7) that only rise within an epoch, also when the clock
    steps back.
    """

    def __init__(
        self,
        agent: str,
        *,
        clock: Callable[[], float] = time.time,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.agent = agent
        self.epoch = entropy(8).hex()
        self.sequence = 0
        self._clock = clock
        # Ids must be unique, not secret: a seeded generator costs a tenth of the system's.
        self._bits = random.Random(entropy(32)).getrandbits  # noqa: S311
        self._last = 0
        self._second = -1
        self._prefix = ""

    def new_id(self) -> str:
        """A UUID v7; also for `corr`, which joins the events of one call."""
        return self._id(int(self._clock() * 1000))

    def seal(self, event: Mapping[str, object], sequence: int = 0) -> Event:
        """The event with all its keys; takes the next sequence number unless one is given."""
        if not sequence:
            self.sequence += 1
            sequence = self.sequence
        milliseconds = int(self._clock() * 1000)
        second, rest = divmod(milliseconds, 1000)
        if second != self._second:
            self._second = second
            self._prefix = timestamp(second)[:-4]
        identity = self._id(milliseconds)
        sealed: Event = {
            "v": SCHEMA_VERSION,
            "id": identity,
            "agent": self.agent,
            "epoch": self.epoch,
            "seq": sequence,
            "ts_wall": f"{self._prefix}{rest:03d}Z",
            **event,
        }
        if not event.get("corr"):
            sealed["corr"] = identity
        return sealed

    def _id(self, milliseconds: int) -> str:
        number = milliseconds << 74 | self._bits(74)
        if number <= self._last:
            number = self._last + 1
        self._last = number
        bits = (number >> 62) << 64 | 0b10 << 62 | number & 0x3FFFFFFFFFFFFFFF
        bits = (bits >> 76) << 80 | 0x7 << 76 | bits & 0xFFFFFFFFFFFFFFFFFFF
        text = f"{bits:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class Journal:
    """A recorder that appends JSON lines to a file.

    The file is created with mode 0600, its directory with 0700. At `max_bytes` it becomes ``FILE.1``, that
    one ``FILE.2`` and so on; `keep` of them stay. A file that someone else moved away or removed is made
    anew within a second.

    `written` counts the events in the file, `failed` the writes that did not work, `dropped` the events
    that are lost; `problem` says why writing does not work at present, "" if it does.
    """

    _log = Logger()

    def __init__(
        self,
        path: Path | str,
        *,
        reactor: IReactorTime,
        stamp: Stamp,
        max_bytes: int = 64 * 1024 * 1024,
        keep: int = 8,
    ) -> None:
        self.path = Path(path)
        self.stamp = stamp
        self.written = 0
        self.failed = 0
        self.dropped = 0
        self.problem = ""
        self._reactor = reactor
        self._max_bytes = max_bytes
        self._keep = keep
        self._rotate_at = max_bytes
        self._fd = -1
        self._size = 0
        self._torn = False
        self._checked = 0.0
        # (sequence number, unix time or so of its recording, line)
        self._waiting: deque[tuple[int, float, bytes]] = deque()
        self._waiting_bytes = 0
        self._gap: tuple[int, int, float] | None = None  # first and last dropped sequence number, when
        self._turn: IDelayedCall | None = None
        self._retry = FIRST_RETRY
        self._stopped = False

    def start(self) -> None:
        """Open the file, so that a wrong path is known at the start: see `problem`."""
        try:
            self._open()
        except OSError as error:
            self._failing(error)

    def stop(self) -> None:
        """Write what waits and close the file. Events that still come are written one by one."""
        self._stopped = True
        self.flush()
        self._cancel()
        if self.problem and self._waiting:
            self.dropped += len(self._waiting)
            self._log.error(
                "audit: {lost} events are lost, {path} cannot be written: {problem}",
                lost=len(self._waiting),
                path=self.path,
                problem=self.problem,
            )
            self._waiting.clear()
            self._waiting_bytes = 0
        self._close()

    def new_id(self) -> str:
        """An id that joins the events of one call (`corr`)."""
        return self.stamp.new_id()

    def record(self, event: Event) -> None:
        """Take one event; see `Recorder`."""
        sealed = self.stamp.seal(event)
        try:
            line = to_line(sealed)
        except (TypeError, ValueError, RecursionError) as error:
            self._log.error("audit: an event that is not JSON was reduced to its kind: {error}", error=error)
            sealed.update(actor=SYSTEM, req={"action": "unknown"}, corr=str(sealed["corr"]))
            line = to_line({key: sealed[key] for key in REQUIRED})
        now = self._reactor.seconds()
        self._waiting.append((self.stamp.sequence, now, line))
        self._waiting_bytes += len(line)
        if self._stopped:
            self.stop()
        elif self.problem:
            self._bound()
        elif self._waiting_bytes > MAX_BATCH:
            self.flush()
        elif self._turn is None:
            self._turn = self._reactor.callLater(0, self.flush)

    def flush(self) -> None:
        """Write what waits now; when that does not work, try again later."""
        self._cancel()
        if not self._waiting and not self._gap and not self.problem:
            return
        try:
            self._write()
        except OSError as error:
            self._failing(error)
        else:
            if self.problem:
                self._log.info("audit: {path} is written again", path=self.path)
            self.problem = ""
            self._retry = FIRST_RETRY

    def _cancel(self) -> None:
        if self._turn is not None and self._turn.active():
            self._turn.cancel()
        self._turn = None

    def _failing(self, error: OSError) -> None:
        self.failed += 1
        reason = "is a symbolic link" if error.errno == errno.ELOOP else error.strerror or str(error)
        if reason != self.problem:
            self._log.error("audit: {path} cannot be written: {reason}", path=self.path, reason=reason)
        self.problem = reason
        self._close()
        self._bound()
        if not self._stopped:
            self._turn = self._reactor.callLater(self._retry, self.flush)
            self._retry = min(self._retry * 2, LAST_RETRY)

    def _bound(self) -> None:
        while len(self._waiting) > MAX_WAITING or self._waiting_bytes > MAX_WAITING_BYTES:
            sequence, when, line = self._waiting.popleft()
            self._waiting_bytes -= len(line)
            self.dropped += 1
            first, _, since = self._gap or (sequence, sequence, when)
            self._gap = (first, sequence, since)

    def _write(self) -> None:
        self._check()
        if self._gap:
            # In the place of the last event that is missing, so that sequence numbers rise in the file.
            first, last, since = self._gap
            missing = last - first + 1
            age = self._reactor.seconds() - since
            event = gap_event(missing, first, age, self.problem)
            self._append([to_line(self.stamp.seal(event, last))])
            self._gap = None
        if self._waiting:
            self._append([line for _, _, line in self._waiting])

    def _append(self, lines: list[bytes]) -> None:
        """Write lines to the file; those that are in it leave the queue even if a later one fails."""
        data = b"".join(lines)
        if self._size and self._size + len(data) > self._rotate_at:
            self._rotate()
        if self._torn:
            self._put(b"\n")
            self._torn = False
        done = 0
        try:
            while done < len(data):
                done += self._put(data[done:] if done else data)
        except OSError:
            whole = data.rfind(b"\n", 0, done) + 1
            self._cut(done - whole)
            self._written(data.count(b"\n", 0, whole))
            raise
        self._written(len(lines))

    def _put(self, data: bytes) -> int:
        count = os.write(self._fd, data)
        self._size += count
        return count

    def _cut(self, torn: int) -> None:
        """Take the beginning of an incomplete line away again, or remember that it is there."""
        if not torn:
            return
        try:
            self._size = os.fstat(self._fd).st_size - torn
            os.ftruncate(self._fd, self._size)
        except OSError:
            self._torn = True

    def _written(self, count: int) -> None:
        self.written += count
        if self._gap:  # the line was the gap event, which does not wait in the queue
            return
        for _ in range(count):
            self._waiting_bytes -= len(self._waiting.popleft()[2])

    def _check(self) -> None:
        """Open the file unless the one that is open is still the one at the path."""
        now = self._reactor.seconds()
        if self._fd >= 0 and now - self._checked < CHECK_INTERVAL:
            return
        self._checked = now
        if self._fd >= 0:
            ours = os.fstat(self._fd)
            self._size = ours.st_size
            try:
                there = os.lstat(self.path)
            except FileNotFoundError:
                self._close()
            else:
                if (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
                    self._close()
        if self._fd < 0:
            self._open()

    def _open(self) -> None:
        self._close()
        if not self.path.parent.is_dir():
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # O_NONBLOCK: a FIFO in the file's place must not stop the reactor.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(self.path, flags, 0o600)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "is not a regular file")
            self._torn = status.st_size > 0 and os.pread(fd, 1, status.st_size - 1) != b"\n"
        except OSError:
            os.close(fd)
            raise
        self._fd = fd
        self._size = status.st_size
        self._rotate_at = self._max_bytes

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _rotate(self) -> None:
        """Move the files one number up; if that does not work, go on with the same file for a while."""
        try:
            for number in range(self._keep - 1, 0, -1):
                if os.path.lexists(self._numbered(number)):
                    os.replace(self._numbered(number), self._numbered(number + 1))
            os.replace(self.path, self._numbered(1))
        except OSError as error:
            self._rotate_at = self._size + self._max_bytes
            self._log.error(
                "audit: {path} cannot be rotated: {reason}", path=self.path, reason=error.strerror or error
            )
        else:
            self._open()

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")
