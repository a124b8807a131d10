"""The mode chosen at run time, on disk: ``STATE/listener.json``."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from twisted.logger import Logger

from defender.listener.spec import DesiredMode, SpecError, parse_mode

_MAX_BYTES = 4096


class ModeStore:
    """Keeps a `DesiredMode`; a file that is missing or damaged says nothing."""

    log = Logger()

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> DesiredMode | None:
        """Read the file; damage is logged and counts as no file, so that the settings decide."""
        try:
            with self.path.open("rb") as file:
                data = json.loads(file.read(_MAX_BYTES))
            return DesiredMode(parse_mode(data["mode"]), parse_mode(data["over"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, SpecError) as error:
            self.log.warn(
                "{path} is unreadable ({error}); the settings decide the mode", path=self.path, error=error
            )
            return None

    def save(self, desired: DesiredMode) -> None:
        """Write the file, so that a crash leaves the old one or the new one; raises OSError."""
        text = json.dumps({"mode": desired.mode, "over": desired.over}) + "\n"
        temporary = self.path.with_name(self.path.name + ".new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        self._sync_directory()

    def clear(self) -> None:
        """Remove the file; raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
            self._sync_directory()

    def _sync_directory(self) -> None:
        descriptor = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
