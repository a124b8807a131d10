"""Opens SQLite files in the one way that the store wants them."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

PRIVATE_FILE: Final = 0o600
#: Milliseconds that a statement waits for another process's lock: for somebody's backup, not for us.
PATIENCE: Final = 5000
#: Bytes that a write-ahead log keeps once it was written back.
LOG_SIZE: Final = 16 * 1024 * 1024


def open_writer(path: Path, *, page_size: int = 4096, checkpoint: int = 1000) -> sqlite3.Connection:
    """The connection that writes: write-ahead log, every commit synced.

    The file is made with mode 0600 if it is not there. `checkpoint` is the number of pages in the log after
    which a commit writes them back. Raises sqlite3.Error and OSError.
    """
    if not path.exists():
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, PRIVATE_FILE))
    connection = _connect(path)
    try:
        connection.execute(f"PRAGMA page_size = {page_size}")
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise sqlite3.OperationalError(f"{path}: this file system has no write-ahead log for SQLite")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {checkpoint}")
        connection.execute(f"PRAGMA journal_size_limit = {LOG_SIZE}")
        # What an earlier process left in the log may be in the page cache only, if its last sync failed: read
        # as good, and not on disk. Written back and synced here before anything is built on it.
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """A connection that reads only. Raises sqlite3.Error, also if the file is not there."""
    connection = _connect(path, "?mode=rw")
    try:
        connection.execute("PRAGMA query_only = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(path: Path, options: str = "") -> sqlite3.Connection:
    # Transactions are ours to begin: the module's own way of beginning them hides where one starts.
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}{options}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=PATIENCE / 1000,
        cached_statements=256,
    )
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        connection.execute("PRAGMA temp_store = MEMORY")
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what is done inside, or none of it. Raises what the inside or the commit raises."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # A full disk rolls back by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def try_to_write(connection: sqlite3.Connection) -> None:
    """A trial write to the table `probe`, synced; raises sqlite3.Error if it fails.

    The log is written back and cut before, as far as that can be done: on a full disk, it may be what fills
    it.
    """
    with suppress(sqlite3.Error):
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    with transaction(connection):
        connection.execute("UPDATE probe SET count = count + 1")


def copy_to(connection: sqlite3.Connection, path: Path) -> None:
    """Copy a whole database, as it is in this moment, to a new file with mode 0600."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, PRIVATE_FILE))
    target = sqlite3.connect(path)
    try:
        connection.backup(target)
    finally:
        target.close()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
