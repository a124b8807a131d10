"""What a setting's value may be: types that turn a TOML value into ours, or say in plain words why they
cannot.

Paths are returned as `pathlib.Path`, joined to the settings file's directory but not looked at. Names of
users, groups and hosts are not resolved here either.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from defender.listener.spec import MAX_PATH_BYTES, parse_tcp, parse_unix

#: Longest path of a unix socket.
MAX_SOCKET_PATH: Final = MAX_PATH_BYTES

MODES: Final = ("none", "unix", "tcp", "unix+tcp")


@dataclass(frozen=True, slots=True)
class Kind:
    """One type of setting: `name` is what the reference page prints, `read` checks and converts a TOML
    value.
    """

    name: str
    read: Callable[[object, Path], Any]


def _text_value(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be a string in quotes, not {toml_type(value)}")
    if any(ord(character) < 32 or 127 <= ord(character) < 160 for character in value):
        raise ValueError("must not contain control characters")
    return value


def text(name: str, pattern: str, explanation: str) -> Kind:
    compiled = re.compile(pattern)

    def read(value: object, base: Path) -> str:
        text = _text_value(value)
        if compiled.fullmatch(text) is None:
            raise ValueError(f"{text!r} is not {explanation}")
        return text

    return Kind(name, read)


def choice(*choices: str) -> Kind:
    def read(value: object, base: Path) -> str:
        text = _text_value(value)
        if text not in choices:
            raise ValueError(f"{text!r} is not one of {', '.join(choices)}")
        return text

    return Kind("one of " + ", ".join(f"`{choice}`" for choice in choices), read)


def seconds(low: float, high: float) -> Kind:
    def read(value: object, base: Path) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"must be a number of seconds, not {toml_type(value)}")
        if not math.isfinite(value) or not low <= value <= high:
            raise ValueError(f"{value} is out of range: {low:g} to {high:g} seconds")
        return float(value)

    return Kind(f"seconds, {low:g} to {high:g}", read)


def count(low: int, high: int, unit: str = "number") -> Kind:
    def read(value: object, base: Path) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"must be a whole number, not {toml_type(value)}")
        if not low <= value <= high:
            raise ValueError(f"{value} is out of range: {low} to {high}")
        return value

    return Kind(f"{unit}, {low} to {high}", read)


def path_value(value: object, base: Path) -> Path:
    text = _text_value(value)
    if not text:
        raise ValueError("must not be empty")
    if text.startswith("~"):
        raise ValueError(f"{text!r}: `~` is not expanded; write the whole path")
    return base / text


def _tcp_value(value: object) -> str:
    text = _text_value(value)
    parse_tcp(text)
    return text


def _unix_value(value: object, base: Path) -> str:
    """``fd://NAME`` as it is; of a path, or ``unix://`` and a path, the absolute path."""
    text = _text_value(value)
    if not text.startswith(("fd://", "tcp://")):
        text = str(path_value(text.removeprefix("unix://"), base))
    parse_unix(text)
    return text


def _list_of(item: Callable[[object, Path], Any], name: str) -> Kind:
    def read(value: object, base: Path) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise ValueError(f"must be a list in square brackets, not {toml_type(value)}")
        items = tuple(item(element, base) for element in value)
        for index, element in enumerate(items):
            if element in items[:index]:
                raise ValueError(f"{str(element)!r} is listed twice")
        return items

    return Kind(f"list of {name}", read)


def _mode_value(value: object, base: Path) -> int:
    text = _text_value(value)
    if re.fullmatch(r"0?[0-7]{3}", text) is None:
        raise ValueError(f'{text!r} is not an octal file mode such as "0660"')
    return int(text, 8)


def _engine_value(value: object, base: Path) -> str:
    text = _text_value(value)
    if text.startswith("unix:///") and len(text) > len("unix:///"):
        if len(text.removeprefix("unix://").encode()) > MAX_SOCKET_PATH:
            raise ValueError(f"the socket's path is longer than {MAX_SOCKET_PATH} bytes")
        return text
    if text.startswith(("tcp://", "http://", "https://", "ssh://", "npipe://")):
        raise ValueError(
            f"{text!r}: only an Engine on a unix socket is supported, such as unix:///var/run/docker.sock"
        )
    raise ValueError(f"{text!r} is not unix:// and an absolute path, such as unix:///var/run/docker.sock")


def toml_type(value: object) -> str:
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
TCP: Final = _list_of(lambda value, base: _tcp_value(value), "`IP:PORT` or `fd://NAME`")
UNIX: Final = _list_of(_unix_value, "paths or `fd://NAME`")
FILE_MODE: Final = Kind("octal file mode in quotes", _mode_value)
ENGINE: Final = Kind("`unix://` and an absolute path", _engine_value)
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
