"""Notice that a file has changed, and read it whole.

A file counts as changed when two looks in a row see the same new inode, size and times, so a writer that is
half-way through is not read. Editors and configuration tools replace files in all ways there are; a look
every quarter of a second sees each of them, and costs one system call.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

_Signature = tuple[int, int, int, int, int]


class FileWatch:
    """Calls `changed(text)` when the file has new content, `failed(why)` when it cannot be read.

    `limit` bounds the file in bytes. `missing_is_empty` makes a missing file an empty text.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        path: str,
        changed: Callable[[str], None],
        failed: Callable[[str], None],
        *,
        limit: int = 4 * 1024 * 1024,
        missing_is_empty: bool = False,
        interval: float = 0.25,
    ) -> None:
        self._path = path
        self._changed = changed
        self._failed = failed
        self._limit = limit
        self._missing_is_empty = missing_is_empty
        self._interval = interval
        self._read: _Signature | str | None = "never"
        self._seen: _Signature | str | None = "never"
        self._loop = LoopingCall(self._look)
        self._loop.clock = reactor

    def start(self) -> None:
        """Read the file now and go on looking."""
        self.read_now()
        self._loop.start(self._interval, now=False).addErrback(
            lambda failure: self.log.failure("watching {path} stopped", failure, path=self._path)
        )

    def stop(self) -> None:
        """Look no more."""
        if self._loop.running:
            self._loop.stop()

    def read_now(self) -> None:
        """Read the file whether it changed or not."""
        self._seen = self._signature()
        self._load(self._seen)

    def _look(self) -> None:
        signature, before = self._signature(), self._seen
        self._seen = signature
        if signature == self._read or signature != before:
            return
        try:
            self._load(signature)
        except Exception:  # noqa: BLE001 - a fault of ours in taking one text over must not end the watch
            self.log.failure("{path} could not be taken over", path=self._path)
            self._failed("could not be taken over; the log says more")

    def _signature(self) -> _Signature | str | None:
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return None
        except OSError as error:
            return error.strerror or "cannot be read"
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def _load(self, signature: _Signature | str | None) -> None:
        self._read = signature
        if signature is None and self._missing_is_empty:
            self._changed("")
            return
        try:
            # Not blocking on a FIFO that somebody put there.
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    self._failed("is not a regular file")
                    return
                data = file.read(self._limit + 1)
        except OSError as error:
            self._failed(f"cannot be read: {error.strerror}")
            return
        if len(data) > self._limit:
            self._failed(f"is larger than {self._limit} bytes")
            return
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            self._failed(f"is not UTF-8 at byte {error.start}")
            return
        self._changed(text)


def replace_file(path: str, text: str) -> None:
    """Write `text` so that a crash leaves the old file or the new one, mode 0600; raises OSError."""
    temporary = f"{path}.new"
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    os.replace(temporary, path)
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
