"""From a request to its operation, and from an operation to the names a policy may use for it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from defender.contract.catalogue import CATALOGUE, UNKNOWN, Body, Operation

__all__ = [
    "KNOWN_NAMES",
    "NEWEST_API",
    "OLDEST_API",
    "OPERATIONS",
    "UNKNOWN",
    "Body",
    "Operation",
    "names_of",
    "recognize",
]

OPERATIONS = CATALOGUE
"""Every operation that has an action, in the Engine's match order."""

OLDEST_API = (1, 24)
"""The oldest API version that is spoken; older ones are refused."""

NEWEST_API = (1, 56)
"""The newest API version whose routes the catalogue holds."""

_VARIABLE = re.compile(r"\{(\w+)(?::([^{}]*))?\}")


def _compile(template: str) -> re.Pattern[str]:
    """The template as gorilla/mux reads it: `{v}` is `[^/]+`, `{v:RE}` is RE, and `.` does not match a
    newline."""
    parts: list[str] = []
    end = 0
    for variable in _VARIABLE.finditer(template):
        parts.append(re.escape(template[end : variable.start()]))
        parts.append(f"(?P<{variable[1]}>{variable[2] or '[^/]+'})")
        end = variable.end()
    parts.append(re.escape(template[end:]))
    return re.compile("".join(parts))


_Routes = tuple[tuple[re.Pattern[str], Operation], ...]


def _first_segment(path: str) -> str:
    end = path.find("/", 1)
    return path[1:] if end < 0 else path[1:end]


def _index(operations: Iterable[Operation]) -> dict[tuple[str, str], dict[str, _Routes]]:
    """(method, first segment) -> last segment -> the routes that could match, in match order.

    A template whose last segment is a variable could match any last segment: it is in every list, and in the
    list "" that serves the segments which no template names.
    """
    groups: dict[tuple[str, str], list[Operation]] = {}
    for operation in operations:
        groups.setdefault((operation.method, _first_segment(operation.template)), []).append(operation)
    index: dict[tuple[str, str], dict[str, _Routes]] = {}
    for key, members in groups.items():
        lasts = {member.order: member.template.rpartition("/")[2] for member in members}
        names = {last for last in lasts.values() if "{" not in last} | {""}
        index[key] = {
            name: tuple(
                (_compile(member.template), member)
                for member in members
                if lasts[member.order] == name or "{" in lasts[member.order]
            )
            for name in names
        }
    return index


_INDEX = _index(OPERATIONS)


def _search(method: str, path: str) -> tuple[Operation, dict[str, str]]:
    by_last = _INDEX.get((method, _first_segment(path)))
    if by_last is None:
        return UNKNOWN, {}
    last = path[path.rfind("/") + 1 :]
    for pattern, operation in by_last.get(last) or by_last[""]:
        match = pattern.fullmatch(path)
        if match is not None:
            return operation, match.groupdict()
    return UNKNOWN, {}


# Routes without a variable, found by one look-up.  They are searched for once, so that order still rules.
_LITERAL = {
    (operation.method, operation.template): _search(operation.method, operation.template)
    for operation in OPERATIONS
    if "{" not in operation.template
}


def recognize(method: str, path: str) -> tuple[Operation, dict[str, str]]:
    """The operation that the Engine would run for a request, and the values of its path variables.

    `method` is matched exactly (upper case); `path` is decoded once, starts with "/" and has no version
    prefix.  Rows are tried in the Engine's order against the whole path; values of variables may be empty.
    What no row matches is `(UNKNOWN, {})`.  The dictionary is the caller's own.
    """
    found = _LITERAL.get((method, path))
    if found is not None:
        return found[0], found[1].copy()
    return _search(method, path)


def _collect_names() -> dict[str, frozenset[str]]:
    names: dict[str, set[str]] = {}
    for operation in (*OPERATIONS, UNKNOWN):
        names.setdefault(operation.action, {operation.action}).update(operation.aliases)
    return {action: frozenset(known) for action, known in names.items()}


_NAMES = _collect_names()

KNOWN_NAMES = frozenset[str]().union(*(known for action, known in _NAMES.items() if action != UNKNOWN.action))
"""Every name that a policy may use for an action, canonical or alias; `unknown` is not among them."""


def names_of(action: str) -> frozenset[str]:
    """All the names of a canonical action, itself included.  Raises `KeyError` for anything else.

    An alias may lead to two actions: `images_archive` is the name of one and an alias of `image_save`.
    """
    return _NAMES[action]
