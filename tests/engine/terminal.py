"""A program under a terminal of its own, as a person would run it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence

PATIENCE = 40.0


class Terminal:
    """A program whose standard streams are a new terminal, which is also its controlling one.

    Args:
        command: program and arguments.
        environment: all of its environment.
        size: rows and columns.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], size: tuple[int, int] = (24, 80)
    ) -> None:
        self._master, slave = pty.openpty()
        self.seen = b""
        self.resize(*size)
        try:
            self._child = subprocess.Popen(
                command,
                stdin=slave,
                stdout=slave,
                stderr=slave,
                env={"TERM": "xterm", **environment},
                start_new_session=True,
                preexec_fn=_take_terminal,
            )
        finally:
            os.close(slave)

    def resize(self, rows: int, columns: int) -> None:
        """Give the window another size; the kernel tells the program with SIGWINCH (ioctl_tty(2))."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def send(self, keys: bytes) -> None:
        """Type."""
        os.write(self._master, keys)

    def expect(self, pattern: bytes, patience: float = PATIENCE) -> re.Match[bytes]:
        """Read until a regular expression matches what was written since the last match.

        Raises:
            AssertionError: with what came instead.
        """
        deadline = time.monotonic() + patience
        while True:
            found = re.search(pattern, self.seen)
            if found is not None:
                self.seen = self.seen[found.end() :]
                return found
            if not self._read(deadline - time.monotonic()):
                raise AssertionError(f"{pattern!r} did not come; this did: {self.seen!r}")

    def ask(self, keys: bytes, pattern: bytes) -> re.Match[bytes]:
        """Type a line and expect an answer."""
        self.send(keys + b"\n")
        return self.expect(pattern)

    def wait(self, patience: float = PATIENCE) -> int:
        """Read to the end of the program, and return its exit code; what it wrote last is in `seen`."""
        deadline = time.monotonic() + patience
        while self._read(deadline - time.monotonic()):
            pass
        return self._child.wait(max(0.1, deadline - time.monotonic()))

    def end(self) -> None:
        """End the program if it runs, and close the terminal."""
        if self._child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child.pid, signal.SIGKILL)
            self._child.wait(PATIENCE)
        os.close(self._master)

    def _read(self, patience: float) -> bool:
        """Take what comes next; False at the end, and when nothing comes in time."""
        if not select.select([self._master], [], [], max(0.0, patience))[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # EIO: nobody has the other side open any more
            return False
        self.seen += data
        return bool(data)


def _take_terminal() -> None:
    """Make standard input the controlling terminal of this new session."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
