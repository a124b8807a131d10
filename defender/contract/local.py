"""What `defenderctl local` and a defender say to each other over the defender's control socket.

One line of JSON each way, UTF-8, ended by a newline: a `Request` of at most `MAX_LINE` bytes, then an
`Answer`. A connection may carry several, one after the other. Who may ask is decided by the peer's uid, not
here.

=================  ==========================================================  ==============================
verb               arguments                                                   result
=================  ==========================================================  ==============================
``status``                                                                     what the defender is doing
``listener_set``   ``mode``; ``drain`` in seconds, 0 without limit, or absent  mode, outcome, listeners
``reload``                                                                     ``said``, a list of sentences
``lock_add``       ``kind`` (of `LOCK_KINDS`), ``value``, ``issuer``           ``changed``
``lock_remove``    the same                                                    ``changed``
``lock_list``                                                                  ``locks``, a list of objects
=================  ==========================================================  ==============================
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from defender.contract.errors import ContractError
from defender.contract.locks import KINDS

MAX_LINE: Final = 64 * 1024
"""Most bytes of a request, without its newline."""

MAX_ANSWER: Final = 32 * 1024 * 1024
"""Most bytes of an answer that a client reads: 100,000 locks fit."""

LONGEST_DRAIN: Final = 7 * 86400.0

MODES: Final = ("none", "unix", "tcp", "unix+tcp")
LOCK_KINDS: Final = KINDS

_UNITS: Final[Mapping[str, float]] = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION: Final = re.compile(r"([0-9]{1,9})(s|m|h|d|)")


class LocalError(ContractError):
    """A request or answer that cannot be understood; the text is for a person."""


@dataclass(frozen=True, slots=True)
class Request:
    """One thing that is asked for; `arguments` has been checked for its verb."""

    verb: str
    arguments: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of it: a `result` if `ok`, else the reason in `error`."""

    ok: bool
    result: Mapping[str, object] = field(default_factory=dict)
    error: str = ""


def parse_duration(text: str) -> float:
    """Return the seconds of ``90``, ``90s``, ``10m``, ``2h`` or ``1d``.

    Raises:
        LocalError: it is none of these, or more than a week.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise LocalError(f"{text!r} is not a duration; write 90s, 10m, 2h or 1d, or 0 for no limit")
    seconds = int(match[1]) * _UNITS[match[2]]
    if seconds > LONGEST_DRAIN:
        raise LocalError(f"{text!r} is longer than a week; 0 means no limit")
    return float(seconds)


def _mode(value: object) -> object:
    if value not in MODES:
        raise LocalError(f"mode: {value!r} is not one of {', '.join(MODES)}")
    return value


def _drain(value: object) -> object:
    if value is None:
        return None
    # bool is an int to Python, but not to a reader of JSON.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise LocalError("drain: not a number of seconds")
    if not 0 <= value <= LONGEST_DRAIN:
        raise LocalError(f"drain: {value} is not between 0 and {LONGEST_DRAIN:g} seconds")
    return float(value)


def _lock_kind(value: object) -> object:
    if value not in LOCK_KINDS:
        raise LocalError(f"kind: {value!r} is not one of {', '.join(LOCK_KINDS)}")
    return value


def _name(value: object) -> object:
    if not isinstance(value, str) or not 0 < len(value) <= 1024:
        raise LocalError("value: not a text of 1 to 1024 characters")
    return value


def _issuer(value: object) -> object:
    if not isinstance(value, str) or len(value) > 1024:
        raise LocalError("issuer: not a text of at most 1024 characters")
    return value


_LOCK: Final[Mapping[str, Any]] = {"kind": _lock_kind, "value": _name, "issuer": _issuer}
_VERBS: Final[Mapping[str, Mapping[str, Any]]] = {
    "status": {},
    "listener_set": {"mode": _mode, "drain": _drain},
    "reload": {},
    "lock_add": _LOCK,
    "lock_remove": _LOCK,
    "lock_list": {},
}
_OPTIONAL: Final = frozenset({"drain", "issuer"})

VERBS: Final = tuple(_VERBS)


def make_request(verb: str, arguments: Mapping[str, object]) -> Request:
    """Check a request; an optional argument may be absent. Raises LocalError."""
    if verb not in _VERBS:
        raise LocalError(f"{verb!r} is not one of {', '.join(VERBS)}")
    checks = _VERBS[verb]
    for name in arguments:
        if name not in checks:
            raise LocalError(f"{verb}: there is no argument {name!r}")
    for name in checks:
        if name not in arguments and name not in _OPTIONAL:
            raise LocalError(f"{verb}: the argument {name!r} is missing")
    return Request(verb, {name: checks[name](value) for name, value in arguments.items()})


def _object(line: bytes, what: str) -> dict[str, object]:
    try:
        document = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise LocalError(f"{what} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise LocalError(f"{what} is not a JSON object")
    return document


def read_request(line: bytes) -> Request:
    """Read a line without its newline; raises LocalError."""
    if len(line) > MAX_LINE:
        raise LocalError(f"the request is longer than {MAX_LINE} bytes")
    document = _object(line, "the request")
    verb = document.pop("verb", None)
    if not isinstance(verb, str):
        raise LocalError("the request has no verb")
    return make_request(verb, document)


def write_request(request: Request) -> bytes:
    """Return the line of a request, with its newline."""
    return _line({"verb": request.verb, **request.arguments})


def read_answer(line: bytes) -> Answer:
    """Read a line; raises LocalError."""
    document = _object(line, "the answer")
    ok, result, error = document.get("ok"), document.get("result", {}), document.get("error", "")
    if not isinstance(ok, bool) or not isinstance(result, dict) or not isinstance(error, str):
        raise LocalError("the answer is not of a form that this version knows")
    return Answer(ok, result, error)


def write_answer(answer: Answer) -> bytes:
    """Return the line of an answer, with its newline."""
    if answer.ok:
        return _line({"ok": True, "result": answer.result})
    return _line({"ok": False, "error": answer.error})


def _line(document: Mapping[str, object]) -> bytes:
    # ASCII: no character of a name can end the line or reach a terminal as it is.
    return json.dumps(document, separators=(",", ":"), ensure_ascii=True).encode("ascii") + b"\n"
