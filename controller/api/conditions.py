"""What a request says besides its body: tokens, conditions, queries; each read in one way or refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl

from controller.api.ports import Expected
from controller.api.problems import ProblemError, invalid
from controller.api.schema import Fault, Faults, Field, ListOf, below

REALM: Final = 'Bearer realm="defender-fleet"'

_BEARER: Final = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9._~+/-]{1,512}=*)")
_ETAGS: Final = re.compile(
    r'\s*(?:W/)?"[\x21\x23-\x7e]{0,256}"\s*(?:,\s*(?:W/)?"[\x21\x23-\x7e]{0,256}"\s*){0,15}'
)
_ETAG: Final = re.compile(r'(W/)?"([\x21\x23-\x7e]*)"')
_KEY: Final = re.compile(r"[\x21-\x7e]{1,128}")
_MAX_PAIRS: Final = 64


def bearer(values: list[str]) -> str:
    """The token of the Authorization header.

    Raises:
        ProblemError: 401 without one, 400 for two or for one of another scheme. No message holds any of it.
    """
    if not values:
        told = "sign in first: send `Authorization: Bearer TOKEN`"
        raise ProblemError(401, "not-signed-in", told, headers={"WWW-Authenticate": REALM})
    found = _BEARER.fullmatch(values[0].strip()) if len(values) == 1 else None
    if found is None:
        told = "the Authorization header is not one `Bearer TOKEN`"
        raise ProblemError(401, "not-signed-in", told, headers={"WWW-Authenticate": REALM})
    return found[1]


def expectation(match: list[str], none_match: list[str], required: bool) -> Expected:
    """What If-Match and If-None-Match say.

    Weak etags never match here (RFC 9110, section 13.1.1), so they are left out.

    Raises:
        ProblemError: 428 if one is required and there is none, 400 if they cannot be read.
    """
    if not required:
        return Expected(anything=True)
    if match and none_match:
        raise _header("/if-none-match", "must not stand beside If-Match")
    if none_match:
        if [value.strip() for value in none_match] != ["*"]:
            raise _header("/if-none-match", "must be * here")
        return Expected(absent=True)
    if not match:
        told = (
            "say which state is meant: `If-Match` with the etag that you have seen, or `If-None-Match: *` "
            "to make a new one"
        )
        raise ProblemError(
            428, "precondition-required", told, faults=[Fault("/if-match", "is required")], where="header"
        )
    text = ",".join(match)
    if text.strip() == "*":
        return Expected(anything=True)
    return Expected(etags=tuple(value for weak, value in _etags(text) if not weak))


def _etags(text: str) -> list[tuple[str, str]]:
    if len(text) > 4096 or _ETAGS.fullmatch(text) is None:
        raise _header("/if-match", 'must be etags in quotes, such as "7-a1b2"')
    return _ETAG.findall(text)


def is_unchanged(none_match: list[str], etag: str) -> bool:
    """Whether a GET's If-None-Match names what is there; one that cannot be read names nothing."""
    text = ",".join(none_match)
    if text.strip() == "*":
        return True
    if len(text) > 4096 or _ETAGS.fullmatch(text) is None:
        return False
    return any(value == etag for _, value in _ETAG.findall(text))


def repeat_key(values: list[str]) -> str:
    """The Idempotency-Key, "" if there is none; ProblemError 400."""
    if not values:
        return ""
    if len(values) > 1 or _KEY.fullmatch(values[0].strip()) is None:
        raise _header("/idempotency-key", "must be 1 to 128 printable ASCII characters without spaces")
    return values[0].strip()


def check_body_type(kind: str | None, encoding: str | None) -> None:
    """Refuse, with 415, a body that says it is no JSON."""
    media, _, parameters = (kind or "").partition(";")
    charset = parameters.strip().lower().replace('"', "")
    if media.strip().lower() != "application/json" or charset not in ("", "charset=utf-8"):
        told = "the body must be JSON in UTF-8: send `Content-Type: application/json`"
        raise ProblemError(
            415, "not-json", told, faults=[Fault("/content-type", "must be application/json")], where="header"
        )
    if (encoding or "identity").strip().lower() != "identity":
        raise ProblemError(
            415,
            "encoded",
            "a body must not be compressed",
            faults=[Fault("/content-encoding", "must be left out")],
            where="header",
        )


def read_query(raw: bytes, declared: Mapping[str, Field]) -> Mapping[str, Any]:
    """The parameters of a query, checked; ProblemError 400 names each that is wrong."""
    faults = Faults()
    found: dict[str, list[str]] = {}
    try:
        pairs = parse_qsl(
            raw.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(raw),
            errors="strict",
            max_num_fields=_MAX_PAIRS,
        )
    except ValueError:
        told = f"must be at most {_MAX_PAIRS} pairs of NAME=VALUE, percent-encoded UTF-8"
        raise invalid([Fault("", told)], "query", 400) from None
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    checked: dict[str, Any] = {}
    for name, values in found.items():
        place = below("", name)
        kind = declared.get(name)
        if kind is None:
            known = f"; known are {', '.join(declared)}" if declared else ""
            faults.add(place, f"is not known here{known}")
        elif isinstance(kind, ListOf):
            checked[name] = kind.check(values, place, faults)
        elif len(values) > 1:
            faults.add(place, "must stand there once")
        else:
            checked[name] = kind.read(values[0], place, faults)
    if faults.found:
        raise invalid(faults.found, "query", 400)
    return checked


def read_path(given: Mapping[str, str], declared: Mapping[str, Field]) -> Mapping[str, Any]:
    """The variables of a path, checked; ProblemError 400."""
    faults = Faults()
    found = {name: kind.read(given[name], below("", name), faults) for name, kind in declared.items()}
    if faults.found:
        raise invalid(faults.found, "path", 400)
    return found


def _header(pointer: str, message: str) -> ProblemError:
    return invalid([Fault(pointer, message)], "header", 400)
