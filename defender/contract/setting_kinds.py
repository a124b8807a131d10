"""What a setting's value may be: types that turn a TOML value into ours, or say in plain words why they
cannot.

Paths are joined to the settings file's directory, of whose kind they are, and not looked at. Names of users,
groups and hosts are not resolved here either.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final

MODES: Final = ("none", "unix", "tcp", "unix+tcp")
"""Listener modes: where a defender listens."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One type of setting: `name` is what the reference page prints, `read` checks and converts a TOML
    value, given the directory that relative paths start from; ValueError says what is wrong. `listed`: the
    value is a tuple.
    """

    name: str
    read: Callable[[object, PurePath], Any]
    listed: bool = False


def text_value(value: object) -> str:
    """A string without control characters."""
    if not isinstance(value, str):
        raise ValueError(f"must be a string in quotes, not {toml_type(value)}")
    if any(ord(character) < 32 or 127 <= ord(character) < 160 for character in value):
        raise ValueError("must not contain control characters")
    return value


def text(name: str, pattern: str, explanation: str) -> Kind:
    """Strings that match the pattern as a whole; `explanation` goes on "is not"."""
    compiled = re.compile(pattern)

    def read(value: object, base: PurePath) -> str:
        text = text_value(value)
        if compiled.fullmatch(text) is None:
            raise ValueError(f"{text!r} is not {explanation}")
        return text

    return Kind(name, read)


def choice(*choices: str) -> Kind:
    """One of these strings."""

    def read(value: object, base: PurePath) -> str:
        text = text_value(value)
        if text not in choices:
            raise ValueError(f"{text!r} is not one of {', '.join(choices)}")
        return text

    return Kind("one of " + ", ".join(f"`{choice}`" for choice in choices), read)


def seconds(low: float, high: float) -> Kind:
    """A number of seconds in these bounds, as a float."""

    def read(value: object, base: PurePath) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"must be a number of seconds, not {toml_type(value)}")
        if not math.isfinite(value) or not low <= value <= high:
            raise ValueError(f"{value} is out of range: {low:g} to {high:g} seconds")
        return float(value)

    return Kind(f"seconds, {low:g} to {high:g}", read)


def count(low: int, high: int, unit: str = "number") -> Kind:
    """A whole number in these bounds."""

    def read(value: object, base: PurePath) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"must be a whole number, not {toml_type(value)}")
        if not low <= value <= high:
            raise ValueError(f"{value} is out of range: {low} to {high}")
        return value

    return Kind(f"{unit}, {low} to {high}", read)


def path_value(value: object, base: PurePath) -> PurePath:
    """A path, joined to `base` and not looked at."""
    text = text_value(value)
    if not text:
        raise ValueError("must not be empty")
    if text.startswith("~"):
        raise ValueError(f"{text!r}: `~` is not expanded; write the whole path")
    return base / text


def list_of(item: Callable[[object, PurePath], Any], name: str) -> Kind:
    """A list of what `item` reads, without repetitions, as a tuple."""

    def read(value: object, base: PurePath) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise ValueError(f"must be a list in square brackets, not {toml_type(value)}")
        items = tuple(item(element, base) for element in value)
        for index, element in enumerate(items):
            if element in items[:index]:
                raise ValueError(f"{str(element)!r} is listed twice")
        return items

    return Kind(f"list of {name}", read, listed=True)


def _mode_value(value: object, base: PurePath) -> int:
    text = text_value(value)
    if re.fullmatch(r"0?[0-7]{3}", text) is None:
        raise ValueError(f'{text!r} is not an octal file mode such as "0660"')
    return int(text, 8)


def toml_type(value: object) -> str:
    """What TOML calls a value, with its article."""
    names = {
        bool: "a boolean",
        int: "a whole number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "a table",
    }
    return names.get(type(value), "a date or time")


PATH: Final = Kind("path", path_value)
FILE_MODE: Final = Kind("octal file mode in quotes", _mode_value)
NAME: Final = text(
    "name", r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}", "a host name (letters, digits, `.`, `_`, `-`)"
)
DOMAIN: Final = text(
    "trust domain",
    r"[a-z0-9][a-z0-9._-]{0,254}",
    "a trust domain (lower-case letters, digits, `.`, `_`, `-`)",
)
GROUP: Final = text("group name or number", r"[A-Za-z0-9_.$-]{0,64}", "a group name")
PREFIX: Final = text("text", r".{0,200}", "at most 200 characters")
