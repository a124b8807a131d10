"""The files of days that reading threads have open: each thread its own, a few of them, none that is gone."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from controller.store.connection import open_reader
from controller.store.days import DayFile, Days

#: Files that a thread keeps open when it has nothing to read.
MOST_OPEN: Final = 8


class _Mine:
    """What one thread has open, by path, the one that was used last at the end."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.files: dict[Path, sqlite3.Connection] = {}


class OpenFiles:
    """Connections to the files of `days`; `find` is called inside `use`, in the same thread."""

    def __init__(self, days: Days) -> None:
        self._days = days
        self._local = threading.local()
        self._all: list[_Mine] = []

    @contextmanager
    def use(self) -> Iterator[None]:
        """While this lasts, no connection that `find` gives is closed."""
        mine: _Mine | None = getattr(self._local, "mine", None)
        if mine is None:
            mine = self._local.mine = _Mine()
            self._all.append(mine)
        with mine.lock:
            try:
                yield
            finally:
                self._tidy(mine)

    def find(self, file: DayFile) -> sqlite3.Connection | None:
        """A connection to a file, None if retention has removed it meanwhile. Raises sqlite3.Error."""
        files = self._local.mine.files
        connection: sqlite3.Connection | None = files.pop(file.path, None)
        if connection is None:
            try:
                connection = open_reader(file.path)
            except sqlite3.OperationalError:
                if file not in self._days.files:
                    return None
                raise
        files[file.path] = connection
        return connection

    def let_go(self) -> None:
        """Have no removed file open: it takes its room on the disk until then. Any thread may call it.

        A thread that is reading lets go by itself, when it is done.
        """
        for mine in list(self._all):
            if mine.lock.acquire(blocking=False):
                try:
                    self._tidy(mine)
                finally:
                    mine.lock.release()

    def close(self) -> None:
        """Close everything; when no thread reads any more."""
        for mine in self._all:
            for connection in mine.files.values():
                connection.close()
            mine.files.clear()

    def _tidy(self, mine: _Mine) -> None:
        kept = {each.path for each in self._days.files}
        surplus = list(mine.files)[:-MOST_OPEN]
        for path in list(mine.files):
            if path not in kept or path in surplus:
                mine.files.pop(path).close()
