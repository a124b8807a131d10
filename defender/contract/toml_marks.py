"""Where keys stand in a TOML text, for messages: `tomllib` keeps no line numbers."""

from __future__ import annotations

import re
from typing import Final

_TABLE_LINE: Final = re.compile(r"[ \t]*(\[{1,2})[ \t]*([^\[\]#]+?)[ \t]*\]")
_PART: Final = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_KEY_LINE: Final = re.compile(rf"[ \t]*({_PART}(?:[ \t]*\.[ \t]*{_PART})*)[ \t]*=")
_KEY_PART: Final = re.compile(_PART)


def line_index(text: str) -> dict[tuple[str, ...], tuple[int, int]]:
    """Where tables and keys of a TOML text stand: ``("listen", "mode")`` to (line, column), both from 1.

    `tomllib` keeps no marks. This scan is only for messages, so it need not be a parser: text that is already
    known to be TOML is read line by line, lines inside multi-line strings are passed over, and a key in an
    inline table is found under its table.
    """
    index: dict[tuple[str, ...], tuple[int, int]] = {}
    table: tuple[str, ...] = ()
    quote = ""
    for number, line in enumerate(text.split("\n"), start=1):
        if quote:
            quote = "" if quote in line else quote
            continue
        if match := _TABLE_LINE.match(line):
            table = _key_parts(match[2])
            for length in range(1, len(table) + 1):
                index.setdefault(table[:length], (number, match.start(1) + 1))
        elif match := _KEY_LINE.match(line):
            key = table + _key_parts(match[1])
            for length in range(1, len(key) + 1):
                index.setdefault(key[:length], (number, match.start(1) + 1))
        for mark in ('"""', "'''"):
            if line.count(mark) % 2:
                quote = mark
                break
    return index


def _key_parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in _KEY_PART.findall(text))
