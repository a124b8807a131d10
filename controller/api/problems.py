"""Errors as people and programs get them: problem+json (RFC 9457), and JSON that is read in one way only."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from controller.api.schema import Fault

PROBLEM_TYPE: Final = "application/problem+json"

_MAX_DEPTH: Final = 32

# A string as a whole, or a bracket. Nothing is tried twice: a policy of a megabyte takes milliseconds.
_TOKENS: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)


class ProblemError(Exception):
    """An answer that says what was wrong and what to do.

    Args:
        status: HTTP status, 4xx or 5xx.
        code: a word for programs that stays the same, such as `not-found`.
        detail: one or two sentences for people; it holds no secret.
        faults: the places in the request that are wrong, with their JSON pointers.
        headers: header fields of the answer, such as Retry-After.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        faults: Sequence[Fault] = (),
        headers: Mapping[str, str] | None = None,
        where: str = "body",
    ) -> None:
        self.status = status
        self.code = code
        self.detail = detail
        self.faults = tuple(faults)
        self.headers = dict(headers or {})
        self.where = where
        super().__init__(status, code, detail)

    def document(self, instance: str = "") -> dict[str, Any]:
        """The problem as JSON; `instance` names the one request, for those who look into the log."""
        made: dict[str, Any] = {
            "type": f"urn:defender-fleet:problem:{self.code}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        if self.faults:
            made["errors"] = [
                {"in": self.where, "pointer": fault.pointer, "message": fault.message}
                for fault in self.faults
            ]
        if instance:
            made["instance"] = instance
        return made


def invalid(faults: Sequence[Fault], where: str = "body", status: int = 422) -> ProblemError:
    """A part of the request that does not fit its declaration; the first faults stand in the detail too."""
    shown = [f"{fault.pointer or '(the whole)'} {fault.message}" for fault in faults[:3]]
    more = len(faults) - len(shown)
    detail = f"{where}: " + "; ".join(shown) + (f"; and {more} more" if more > 0 else "")
    return ProblemError(status, "invalid", detail, faults=faults, where=where)


class _RepeatedError(ValueError):
    """A key that stands twice in one object."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RepeatedError(key[:80])
            seen.add(key)
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def read_json(data: bytes) -> Any:
    """The one JSON value in `data`.

    Raises:
        ProblemError: 400, saying where: not UTF-8, not JSON, a key that stands twice in an object, NaN or
            infinity, nested deeper than 32 levels, a number of thousands of digits.
    """

    def refused(message: str) -> ProblemError:
        return ProblemError(400, "not-json", message, faults=[Fault("", message)])

    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise refused(f"the body is not UTF-8 at byte {error.start}") from None
    if not text.strip():
        raise refused("the body is empty; a JSON object is wanted")
    if _depth_exceeds(text):
        raise refused(f"the body is nested deeper than {_MAX_DEPTH} levels")
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise refused(
            f"the body is not JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from None
    except _RepeatedError as error:
        key = str(error).encode("utf-8", "replace").decode("utf-8")
        raise refused(f"the body is not usable: the key {key!r} stands twice in one object") from None
    except (ValueError, RecursionError):
        raise refused("the body is not usable: it holds a number that cannot be read") from None


def _depth_exceeds(text: str) -> bool:
    """Whether brackets outside of strings nest too deep, without recursion."""
    if text.count("[") + text.count("{") <= _MAX_DEPTH:
        return False
    depth = 0
    for token in _TOKENS.finditer(text):
        first = text[token.start()]
        if first in "[{":
            depth += 1
            if depth > _MAX_DEPTH:
                return True
        elif first != '"':
            depth -= 1
    return False
