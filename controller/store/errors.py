"""What can be wrong with the store, each with a text for people: what, where, what to do."""

from __future__ import annotations

import sqlite3
from typing import Final


class StoreError(Exception):
    """Something about the store is not as it should be."""


class NewerStoreError(StoreError):
    """The store was written by a newer version of the program."""


class DamagedStoreError(StoreError):
    """A file of the store is not what was written."""


class SharedStoreError(StoreError):
    """Another process has the store open."""


class UnwritableStoreError(StoreError):
    """The store cannot be written at the moment, so nothing new is taken."""


class OverloadedStoreError(StoreError):
    """More is waiting to be written than is allowed to wait."""


class ConflictError(StoreError):
    """What was to be changed has changed meanwhile. `current` is its entity tag now, "" if it is gone."""

    def __init__(self, text: str, current: str) -> None:
        self.current = current
        super().__init__(text)


class MissingError(StoreError):
    """There is no such thing in the store."""


class ExistsError(StoreError):
    """There is one of this name already."""


class RecordsError(StoreError):
    """Bytes that a defender sent as records are none, or do not belong together."""


_FAULTS: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
    }
)


def is_fault(error: BaseException) -> bool:
    """Whether an error is the disk's or the file's, and not of what was to be done."""
    if isinstance(error, OSError):
        return not isinstance(error, FileExistsError)  # somebody's choice of a name
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, sqlite3.Error) and code is not None and code & 0xFF in _FAULTS


def is_damage(error: BaseException) -> bool:
    """Whether an error says that a file is not a database, or a damaged one."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def fault_text(error: BaseException) -> str:
    """A fault in words, with SQLite's own name for it."""
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    name = getattr(error, "sqlite_errorname", "")
    return f"{error} ({name})" if name else str(error)
