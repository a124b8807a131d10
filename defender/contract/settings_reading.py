"""From the text of a TOML file to tables of checked values, with the place of everything that is wrong.

A table is a dataclass; the metadata of its fields is made by `about`. Both programs describe their settings
in this way, and what is said of them (`describe`) is made from the same fields.

Everything is checked before anything starts: an unknown table or key, a wrong type and a value out of range
are all reported at once, each as ``FILE:LINE:COLUMN: key: what is wrong``.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from pathlib import PurePath
from typing import Any

from defender.contract.errors import FileError, Problem
from defender.contract.setting_kinds import Kind, path_value, toml_type
from defender.contract.toml_marks import line_index


class SettingsError(FileError):
    """A settings file that cannot be used."""


def about(
    kind: Kind,
    meaning: str,
    *,
    default: Any = MISSING,
    under_state: str = "",
    host: bool = False,
    fixed: bool = False,
) -> dict[str, Any]:
    """What is known of a field: `default` as TOML would give it, `under_state` a path in the state directory,
    `host` that the host's name is the default, `fixed` that a change needs a restart.
    """
    return {
        "kind": kind,
        "meaning": meaning,
        "default": default,
        "under_state": under_state,
        "host": host,
        "fixed": fixed,
    }


class Reading:
    """One pass over a parsed document; collects problems instead of stopping at the first.

    `base` is the directory that relative paths start from, `host_name` the default of settings that are one,
    `program` the table whose `state` is the directory that others are in by default. Raises SettingsError for
    what is not TOML.
    """

    def __init__(self, text: str, source: str, base: PurePath, host_name: str, program: str) -> None:
        self._program = program
        self.source = source
        self.base = base
        self.host_name = host_name
        self.problems: list[Problem] = []
        self._shapes: Mapping[str, type[Any]] = {}
        try:
            self.document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise SettingsError(source, (_syntax_problem(text, error),)) from None
        self._lines = line_index(text)

    def problem(self, key: tuple[str, ...], message: str, suggestion: str = "") -> None:
        """Note what is wrong with a setting; the place is the nearest one that is in the file."""
        place = key
        while place and place not in self._lines:
            place = place[:-1]
        line, column = self._lines.get(place, (1, 1))
        name = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in ".".join(key))
        self.problems.append(Problem(line, column, name, message, suggestion))

    def check(self) -> None:
        """Raise SettingsError if there is a problem."""
        if self.problems:
            raise SettingsError(self.source, tuple(self.problems))

    def tables(self, shapes: Mapping[str, type[Any]]) -> dict[str, Any]:
        """Every table as its dataclass; raises SettingsError with all problems of all of them."""
        self._shapes = shapes
        for name in self.document:
            if name not in shapes:
                thing = "table" if isinstance(self.document[name], dict) else "setting outside of a table"
                self.problem((name,), f"unknown {thing}", _nearest(name, list(shapes)))
        state = self._state()
        tables = {name: self._table(name, shape, state) for name, shape in shapes.items()}
        self.check()
        return tables

    def _state(self) -> PurePath:
        table = self.document.get(self._program)
        try:
            return path_value(table["state"] if isinstance(table, dict) else "", self.base)
        except (KeyError, ValueError):
            return self.base  # reported with the other settings; the rest is still checked

    def _table(self, name: str, shape: type[Any], state: PurePath) -> Any:
        given = self.document.get(name, {})
        if not isinstance(given, dict):
            self.problem((name,), f"must be a table, [{name}], not {toml_type(given)}")
            given = {}
        entries = dataclasses.fields(shape)
        known = [entry.name for entry in entries]
        for key in given:
            if key not in known:
                self.problem((name, key), "unknown setting", _nearest(key, known) or self._elsewhere(key))
        values: dict[str, Any] = {}
        for entry in entries:
            try:
                values[entry.name] = self._value(entry, given, state)
            except ValueError as error:
                self.problem((name, entry.name), str(error))
        return None if self.problems else shape(**values)

    def _value(self, entry: dataclasses.Field[Any], given: Mapping[str, Any], state: PurePath) -> Any:
        kind: Kind = entry.metadata["kind"]
        if entry.name in given:
            return kind.read(given[entry.name], self.base)
        if entry.metadata["under_state"]:
            path = state / entry.metadata["under_state"]
            return (str(path),) if kind.listed else path
        if entry.metadata["host"]:
            try:
                return kind.read(self.host_name, self.base)
            except ValueError:
                raise ValueError(
                    f"is not set, and the host's own name {self.host_name!r} cannot be used"
                ) from None
        if entry.metadata["default"] is MISSING:
            raise ValueError("is required")
        return kind.read(entry.metadata["default"], self.base)

    def _elsewhere(self, key: str) -> str:
        tables = [
            table
            for table, shape in self._shapes.items()
            if any(entry.name == key for entry in dataclasses.fields(shape))
        ]
        return f"it belongs in [{tables[0]}]" if len(tables) == 1 else ""


def text_of(data: bytes, source: str) -> str:
    """A settings file's bytes as text; raises SettingsError for what is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise SettingsError(source, (Problem(line, 1, "", "is not UTF-8 text"),)) from None


def unreadable(source: str, error: OSError) -> SettingsError:
    """The error of a settings file that cannot be read at all."""
    reason = error.strerror or str(error)
    return SettingsError(source, (Problem(0, 0, "", f"cannot be read: {reason}"),))


@dataclass(frozen=True, slots=True)
class Setting:
    """One line of the reference: `default` as a person would write it in TOML, empty for a required
    setting.
    """

    table: str
    key: str
    type: str
    default: str
    meaning: str
    fixed: bool


def describe(shapes: Mapping[str, type[Any]]) -> tuple[Setting, ...]:
    """Every setting in the order of the file, for the reference page."""
    return tuple(
        Setting(
            table,
            entry.name,
            entry.metadata["kind"].name,
            _default_text(entry),
            entry.metadata["meaning"],
            entry.metadata["fixed"],
        )
        for table, entry in _entries(shapes)
    )


def _entries(shapes: Mapping[str, type[Any]]) -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    for table, shape in shapes.items():
        for entry in dataclasses.fields(shape):
            yield table, entry


def _default_text(entry: dataclasses.Field[Any]) -> str:
    if entry.metadata["host"]:
        return "the short host name"
    if entry.metadata["under_state"]:
        path = f'"STATE/{entry.metadata["under_state"]}"'
        return f"[{path}]" if entry.metadata["kind"].listed else path
    default = entry.metadata["default"]
    if default is MISSING:
        return ""
    if isinstance(default, str):
        return f'"{default}"'
    if isinstance(default, list):
        return "[" + ", ".join(f'"{item}"' for item in default) + "]"
    return str(default)


@dataclass(frozen=True, slots=True)
class Changes:
    """What differs between two settings: `keys` all of them, `fixed` those that need a restart to take
    effect.
    """

    keys: tuple[str, ...]
    fixed: tuple[str, ...]

    @property
    def live(self) -> tuple[str, ...]:
        """The changed keys that a running program can take over."""
        return tuple(key for key in self.keys if key not in self.fixed)

    def __bool__(self) -> bool:
        return bool(self.keys)


def changed(shapes: Mapping[str, type[Any]], old: object, new: object) -> Changes:
    """Which settings differ, as ``table.key``; both have the tables as attributes."""
    keys: list[str] = []
    fixed: list[str] = []
    for table, entry in _entries(shapes):
        if getattr(getattr(old, table), entry.name) != getattr(getattr(new, table), entry.name):
            keys.append(f"{table}.{entry.name}")
            if entry.metadata["fixed"]:
                fixed.append(f"{table}.{entry.name}")
    return Changes(tuple(keys), tuple(fixed))


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else ""


def _syntax_problem(text: str, error: tomllib.TOMLDecodeError) -> Problem:
    message = str(error)
    place = re.search(r" \(at line (\d+), column (\d+)\)$", message)
    if place is None:  # "(at end of document)"
        return Problem(text.count("\n") + 1, 1, "", f"is not TOML: {message}")
    return Problem(int(place[1]), int(place[2]), "", f"is not TOML: {message[: place.start()]}")
