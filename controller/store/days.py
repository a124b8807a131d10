"""The files of the event store: one a day of taking in (UTC), ``NUMBER-YYYY-MM-DD.db``.

Their numbers give their order. The newest one is written, with the cursors of all defenders in it; those
before it stay as they are until retention removes them. A file that is damaged is put aside as ``.bad``: what
was in it counts as missing, and the defenders' next records say so.
"""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from controller.store.connection import open_reader, open_writer, transaction
from controller.store.errors import DamagedStoreError, fault_text, is_damage
from controller.store.migrations import migrate, migrations_of, version_of

PAGE_SIZE: Final = 8192
#: Pages of the log (32 MiB) after which they are written back.
CHECKPOINT: Final = 4096
#: Epochs of one defender whose cursors a new day takes over: the ones it used last.
EPOCHS: Final = 16
#: Positions that are left out where nobody knows how many a damaged file had.
_LEAP: Final = 2**32

_NAME: Final = re.compile(r"([0-9]{6,12})-([0-9]{4}-[0-9]{2}-[0-9]{2})\.db", re.ASCII)


class DayFile(NamedTuple):
    """One file: its number, its day, where it is, and the position of its first event."""

    number: int
    day: str
    path: Path
    first_position: int


class Days:
    """The directory `path` of these files. One thread calls its methods; any may look at `files`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: tuple[DayFile, ...] = ()
        """In order; a new tuple with every change."""
        self.put_aside: list[str] = []
        """What was found damaged, for people."""
        self.connection: sqlite3.Connection
        """To the newest file."""
        self._steps = migrations_of("events")

    def open(self, today: str) -> None:
        """Open the newest file; make the first one, of the day `today`, if there is none.

        Raises NewerStoreError, sqlite3.Error or OSError.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in self.path.glob(".*.new*"):
            leftover.unlink()
        found = sorted(
            (int(match[1]), match[2], match[0]) for match in map(_match, os.listdir(self.path)) if match
        )
        files = []
        for number, day, name in found:
            file = self._examine(number, day, self.path / name, newest=(number, day, name) == found[-1])
            if file is not None:
                files.append(file)
        self.files = tuple(files)
        if not files:
            self._make(1 if not found else found[-1][0] + 1, today, [], 1 if not found else _LEAP)
        elif files[-1].number != found[-1][0]:
            self._follow(found[-1][0] + 1, today, _LEAP)
        else:
            self.connection = self._write_to(files[-1].path)

    def due(self, today: str) -> bool:
        """Whether the newest file's day is over. A clock that was set back a little ends none."""
        newest = self.files[-1].day
        return today > newest or date.fromisoformat(today) < date.fromisoformat(newest) - timedelta(days=1)

    def turn(self, today: str) -> None:
        """Begin the file of a new day, with the cursors of the one before. Raises sqlite3.Error, OSError."""
        self._follow(self.files[-1].number + 1, today, 0)

    def remove_before(self, day: str) -> list[str]:
        """Remove the files of earlier days but the newest; gives their days. Raises OSError."""
        gone = [file for file in self.files[:-1] if file.day < day]
        if gone:
            self.files = tuple(file for file in self.files if file not in gone)
            for file in gone:
                # The log without its file would be nobody's; the file without its log is whole.
                for suffix in ("-wal", "-shm", ""):
                    Path(f"{file.path}{suffix}").unlink(missing_ok=True)
            _sync(self.path)
        return [file.day for file in gone]

    def close(self) -> None:
        """Write the log back and close the newest file."""
        self.connection.close()

    def _examine(self, number: int, day: str, path: Path, *, newest: bool) -> DayFile | None:
        """A file that is there, brought to the present schema; None if it had to be put aside."""
        try:
            connection = open_reader(path)
            try:
                version = version_of(connection, path, self._steps)
            finally:
                connection.close()
            if version == 0:
                raise DamagedStoreError("it is empty")
            if version < len(self._steps):
                connection = open_writer(path)
                try:
                    migrate(connection, path, self._steps)
                finally:
                    connection.close()
            connection = open_reader(path)
            try:
                if newest:
                    for table in ("meta", "names", "chains", "batches"):
                        checked = connection.execute(f"PRAGMA quick_check({table})").fetchall()
                        if checked != [("ok",)]:
                            raise DamagedStoreError("; ".join(str(text) for (text,) in checked[:3]))
                    connection.execute("SELECT max(position) FROM events").fetchone()
                row = connection.execute("SELECT value FROM meta WHERE name = 'first_position'").fetchone()
            finally:
                connection.close()
            if row is None:
                raise DamagedStoreError("it does not say where it begins")
            return DayFile(number, day, path, row[0])
        except (sqlite3.Error, DamagedStoreError) as error:
            if isinstance(error, sqlite3.Error) and not is_damage(error):
                raise
            aside = f"{path}.bad"
            for suffix in ("-wal", "-shm", ""):
                if os.path.exists(f"{path}{suffix}"):
                    os.rename(f"{path}{suffix}", f"{aside}{suffix}")
            _sync(self.path)
            self.put_aside.append(
                f"{path.name} is damaged ({fault_text(error)}) and was put aside as {path.name}.bad"
            )
            return None

    def _follow(self, number: int, today: str, leap: int) -> None:
        """Make a file with the cursors of the newest one there is."""
        connection = open_reader(self.files[-1].path)
        try:
            (last,) = connection.execute("SELECT max(position) FROM events").fetchone()
            first = (last + 1 if last is not None else self.files[-1].first_position) + leap
            chains = connection.execute(
                "SELECT id, defender, agent, epoch, seq, chain, closed, used, gaps, received FROM ("
                " SELECT *, row_number() OVER (PARTITION BY defender ORDER BY used DESC) AS place FROM chains"
                ") WHERE place <= ?",
                (EPOCHS,),
            ).fetchall()
        finally:
            connection.close()
        self._make(number, today, chains, first)

    def _make(self, number: int, today: str, chains: list[tuple[object, ...]], first: int) -> None:
        """Make a file under another name, whole, give it its own, and write to it from now on."""
        path = self.path / f"{number:06d}-{today}.db"
        staging = self.path / f".{path.name}.new"
        for leftover in self.path.glob(f"{staging.name}*"):
            leftover.unlink()
        connection = open_writer(staging, page_size=PAGE_SIZE)
        try:
            migrate(connection, staging, self._steps)
            with transaction(connection):
                connection.execute("INSERT INTO meta VALUES ('first_position', ?)", (first,))
                connection.executemany("INSERT INTO chains VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", chains)
        finally:
            connection.close()
        os.rename(staging, path)
        _sync(self.path)
        connection = self._write_to(path)
        if self.files and hasattr(self, "connection"):
            with suppress(sqlite3.Error):
                self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self.connection.close()
        self.connection = connection
        self.files = (*self.files, DayFile(number, today, path, first))

    @staticmethod
    def _write_to(path: Path) -> sqlite3.Connection:
        return open_writer(path, page_size=PAGE_SIZE, checkpoint=CHECKPOINT)


def day_of(seconds: float) -> str:
    """The day (UTC) of unix seconds: ``2026-11-22``."""
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def _match(name: str) -> re.Match[str] | None:
    return _NAME.fullmatch(name)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
