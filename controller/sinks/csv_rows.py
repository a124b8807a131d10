"""Events as rows of CSV for people with a spreadsheet (RFC 4180): one row an event, columns of fixed order.

A cell that a spreadsheet would take for a formula begins with an apostrophe: names in events come from
clients, and `=HYPERLINK(...)` is a name that a container can have. Numbers of our own stay numbers. Whoever
needs the exact text exports JSON lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from controller.sinks.jsonl import part, text_of

_Column = Callable[[Mapping[str, object]], object]


def _top(key: str) -> _Column:
    return lambda event: event.get(key)


def _of(outer: str, key: str) -> _Column:
    return lambda event: part(event, outer).get(key)


COLUMNS: Final[tuple[tuple[str, _Column], ...]] = (
    ("time", _top("ts_wall")),
    ("agent", _top("agent")),
    ("epoch", _top("epoch")),
    ("seq", _top("seq")),
    ("id", _top("id")),
    ("kind", _top("kind")),
    ("phase", _top("phase")),
    ("corr", _top("corr")),
    ("user", _of("actor", "user")),
    ("groups", _of("actor", "groups")),
    ("via", _of("actor", "via")),
    ("src", _of("actor", "src")),
    ("serial", _of("actor", "serial")),
    ("action", _of("req", "action")),
    ("method", _of("req", "method")),
    ("path", _of("req", "path")),
    ("target", _of("req", "target")),
    ("query", _of("req", "query")),
    ("effect", _of("decision", "effect")),
    ("rule", _of("decision", "rule")),
    ("version", _of("decision", "version")),
    ("reason", _of("decision", "reason")),
    ("status", _of("result", "status")),
    ("bytes", _of("result", "bytes")),
    ("ms", _of("result", "ms")),
    ("ok", _of("result", "ok")),
    ("detail", _of("result", "detail")),
    ("error", _of("result", "error")),
)

# The first characters with which a cell is a formula, or is one after the spreadsheet has stripped it
# (OWASP, "CSV Injection"); the wide forms are what some put in their place.
_FORMULA: Final = frozenset("=+-@\t\r\n|%＝＋－＠")
_QUOTED: Final = re.compile(r'[,"\t\r\n;]')


def header() -> bytes:
    """The row of the columns' names."""
    return ",".join(name for name, _ in COLUMNS).encode("ascii") + b"\r\n"


def row(event: Mapping[str, object]) -> bytes:
    """One event, in UTF-8, ended by CR LF."""
    return ",".join([cell(value(event)) for _, value in COLUMNS]).encode("utf-8") + b"\r\n"


def cell(value: object) -> str:
    """One cell: quoted where it must be, never a formula, without the characters that end a row elsewhere."""
    if value is None:
        return ""
    if isinstance(value, (bool, int, float)):
        return text_of(value)
    text = text_of(value)
    if not text.isprintable():
        text = "".join(c if c.isprintable() or c in "\t\r\n" else "\ufffd" for c in text)
    if text.lstrip(" \u00a0\u3000")[:1] in _FORMULA:
        text = "'" + text
    if _QUOTED.search(text) or text != text.strip():
        return '"' + text.replace('"', '""') + '"'
    return text
