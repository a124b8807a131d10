"""Brings a store's file to the schema of this version: numbered steps, each one transaction.

A schema is a folder beside this module, ``schema/NAME/NNNN_what.sql``, numbered from 1 without a hole. The
file's ``user_version`` is the number of the last step it has had, its ``application_id`` says that it is a
store at all. A step that was released is never changed; a new one is added.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Final, NamedTuple

from controller.store.connection import transaction
from controller.store.errors import DamagedStoreError, NewerStoreError

#: "dfls", in the place where SQLite files say whose they are.
APPLICATION_ID: Final = 0x64666C73

_NAME: Final = re.compile(r"([0-9]{4})_([a-z0-9_]+)\.sql")


class Migration(NamedTuple):
    """One step: its number, the name of what it does, and its statements."""

    number: int
    name: str
    sql: str


def migrations_of(schema: str) -> tuple[Migration, ...]:
    """The steps of a schema, in order."""
    found = []
    for entry in (resources.files(__package__) / "schema" / schema).iterdir():
        match = _NAME.fullmatch(entry.name)
        if match is not None:
            found.append(Migration(int(match[1]), match[2], entry.read_text("utf-8")))
    found.sort()
    assert [each.number for each in found] == list(range(1, len(found) + 1)), f"holes in schema {schema}"
    return tuple(found)


def version_of(connection: sqlite3.Connection, path: Path, steps: Sequence[Migration]) -> int:
    """The number of the last step that a file has had, 0 for a new one.

    Raises NewerStoreError for one that this program does not know, DamagedStoreError for what is no store.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if version == 0 and application == 0:
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if tables == 0:
            return 0
    if application != APPLICATION_ID or version < 1:
        raise DamagedStoreError(f"{path} is a database, but not one of the controller's store; move it away")
    if version > len(steps):
        raise NewerStoreError(
            f"{path} has schema {version}, and this version of the controller knows {len(steps)} at most: "
            "a newer one has written it; install that again, or restore a backup made before the upgrade"
        )
    return int(version)


def migrate(connection: sqlite3.Connection, path: Path, steps: Sequence[Migration]) -> int:
    """Take the steps that a file has not had; gives the number that it had before.

    Raises NewerStoreError and DamagedStoreError as `version_of` does, sqlite3.Error when a step fails: the
    file is then as the step before left it.
    """
    before = version_of(connection, path, steps)
    for step in steps[before:]:
        with transaction(connection):
            for statement in statements(step.sql):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {step.number}")
    return before


def statements(sql: str) -> Iterator[str]:
    """The statements of a step: the module's own way to run several would commit in between."""
    text = ""
    for line in sql.splitlines(keepends=True):
        text += line
        if line.rstrip().endswith(";") and sqlite3.complete_statement(text):
            yield text
            text = ""
    assert not text.strip(), f"a statement without its end: {text!r}"
