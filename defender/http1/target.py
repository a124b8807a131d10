"""One canonical reading of the request target, and its writing.

The Docker Engine decodes the path once and matches its routes on the result, so that is what is judged here
as well (research on Engine 20.10 to 29: gorilla/mux matches ``URL.Path``). Where the Engine would redirect,
ignore or guess (dot segments, empty segments, exotic version prefixes, absolute targets), the target is
refused instead, because no Docker client needs it. The target that goes on to the Engine is written by
:func:`write_target` from what was read here, so the Engine routes exactly the path that was judged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

from defender.contract.actions import NEWEST_API, OLDEST_API
from defender.http1.errors import HTTPError, excerpt

MAX_PAIRS = 1000
"""Query pairs of one target."""

_OLDEST = OLDEST_API[1]
_NEWEST = NEWEST_API[1]
_SEGMENT = r"[A-Za-z0-9._~:@+=,!$&'()*\-]"
# Segments of allowed characters that are neither empty nor "." nor "..", perhaps a slash at the end: the
# fixed points of gorilla/mux's cleanPath. The first one is looked at for a version prefix.
_PATH = re.compile(rf"(?:/v1\.([1-9][0-9]{{0,3}})(?=/))?+((?:/(?!\.\.?(?:/|\Z)){_SEGMENT}++)*+/?)")
_VERSIONED = re.compile(r"/v([0-9.]+)(?:/|\Z)")
_PRINTABLE = re.compile(r"[\x21-\x7e]+")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_DOTS = re.compile(r"/\.\.?(?:/|\Z)")
_FORBIDDEN = re.compile(r"[^A-Za-z0-9._~:@/+=,!$&'()*\-]")
_UNRESERVED = re.compile(r"[A-Za-z0-9._~\-]*")


@dataclass(frozen=True, slots=True)
class Target:
    """A request target, read.

    ``version``: the API version named by the prefix, (1, N); None without a prefix, which the Engine reads
    as the newest it has. ``path``: decoded, without the version prefix, equal to its own cleaned form, of
    allowed characters only; it starts with a slash. ``query``: the decoded pairs in the order received,
    duplicates included (the Engine takes the first, or all of them for lists); values may hold any Unicode
    text, control characters included.
    """

    version: tuple[int, int] | None
    path: str
    query: tuple[tuple[str, str], ...]


def read_target(raw: str) -> Target:
    """Read the request target of a request line. Raises HTTPError 400 with a message that names the reason.

    Accepted is origin-form only: a path that is decoded once and then consists of the characters
    ``A-Za-z0-9._~:@/+=,!$&'()*-`` without empty, ``.`` or ``..`` segments; a version prefix ``/v1.N`` with
    N from that of OLDEST_API to that of NEWEST_API; a query split at ``&`` only.
    """
    if _PRINTABLE.fullmatch(raw) is None:
        shown = _quoted(raw.partition("?")[0])  # not the query: it may hold build arguments
        raise HTTPError(400, f"the request target {shown} holds a space, a control or a non-ASCII character")
    encoded, _, query = raw.partition("?")
    path = encoded
    if "%" in encoded:
        if _BAD_PERCENT.search(encoded) is not None:
            raise HTTPError(
                400, f"the path {_quoted(encoded)} holds a % that is not followed by two hexadecimal digits"
            )
        if not encoded.startswith("/"):
            raise _path_fault(encoded)
        path = unquote_to_bytes(encoded).decode("latin-1")
    match = _PATH.fullmatch(path)
    if match is None:
        raise _path_fault(path)
    minor, rest = match.groups()
    if minor is None:
        if _VERSIONED.match(path) is not None:
            raise _version_fault(path)
        version = None
        if not rest:
            raise _path_fault(path)
    else:
        number = int(minor)
        if not _OLDEST <= number <= _NEWEST:
            raise _version_fault(path)
        version = (1, number)
    return Target(version, rest, _read_query(query) if query else ())


def write_target(target: Target, version: tuple[int, int] | None) -> str:
    """The canonical spelling of ``target`` under the prefix of ``version`` (without a prefix for None).

    ``read_target(write_target(t, t.version)) == t`` for every Target that was read. Raises ValueError when
    the path without a prefix would itself be read as a version prefix: that would be another request.
    """
    path = target.path
    if version is not None:
        path = f"/v{version[0]}.{version[1]}{path}"
    elif _VERSIONED.match(path) is not None:
        raise ValueError(f"the path {path!r} cannot be written without a version prefix")
    if not target.query:
        return path
    return path + "?" + "&".join([f"{_encode(name)}={_encode(value)}" for name, value in target.query])


def _read_query(query: str) -> tuple[tuple[str, str], ...]:
    if ";" in query:
        raise HTTPError(
            400, "the query holds a semicolon; pairs are separated by & only (write %3B for the character)"
        )
    pieces = query.split("&")
    if len(pieces) > MAX_PAIRS:
        raise HTTPError(400, f"the query has more than {MAX_PAIRS} pairs")
    pairs: list[tuple[str, str]] = []
    if "%" in query or "+" in query:
        if _BAD_PERCENT.search(query) is not None:
            raise HTTPError(400, "the query holds a % that is not followed by two hexadecimal digits")
        for piece in pieces:
            if piece:
                name, _, value = piece.partition("=")
                pairs.append((_decode(name), _decode(value)))
    else:
        for piece in pieces:
            if piece:
                name, _, value = piece.partition("=")
                pairs.append((name, value))
    return tuple(pairs)


def _decode(text: str) -> str:
    text = text.replace("+", " ")
    if "%" not in text:
        return text
    try:
        return unquote_to_bytes(text).decode("utf-8")
    except UnicodeDecodeError:
        raise HTTPError(400, "the query holds bytes that are not UTF-8") from None


def _encode(text: str) -> str:
    return text if _UNRESERVED.fullmatch(text) is not None else quote(text, safe="")


def _quoted(text: str) -> str:
    """A path for a message, without the user and password of a URL that stands where a path should."""
    before, at, rest = text.rpartition("@")
    if at and ("//" in before or not before.startswith("/")):
        text = f"***@{rest}"
    return excerpt(text.encode("utf-8", "backslashreplace"), 60)


def _path_fault(path: str) -> HTTPError:
    """Find out, slowly, why ``path`` is not accepted."""
    if not path.startswith("/"):
        return HTTPError(400, f"the request target {_quoted(path)} is not of the form /path?query")
    forbidden = _FORBIDDEN.search(path)
    if forbidden is not None:
        return HTTPError(
            400, f"the path {_quoted(path)} holds the character {forbidden[0]!a}, which is not accepted"
        )
    if "//" in path or _DOTS.search(path) is not None:
        return HTTPError(400, f"the path {_quoted(path)} holds an empty, . or .. segment")
    return HTTPError(400, f"the path {_quoted(path)} is not accepted")


def _version_fault(path: str) -> HTTPError:
    """``path`` starts with what the Engine reads as a version, but not as one that is accepted."""
    match = _VERSIONED.match(path)
    assert match is not None
    text = match[1]
    plain = re.fullmatch(r"([0-9]|[1-9][0-9]{0,3})\.(0|[1-9][0-9]{0,3})", text)
    if plain is None:
        return HTTPError(400, f"the API version {_quoted(text)} in the path is malformed; write /v1.N/")
    number = (int(plain[1]), int(plain[2]))
    if number < OLDEST_API:
        return HTTPError(
            400,
            f"client version {text} is too old. Minimum supported API version is 1.{_OLDEST},"
            " please upgrade your client to a newer version",
        )
    if number > NEWEST_API:
        return HTTPError(
            400, f"client version {text} is too new. Maximum supported API version is 1.{_NEWEST}"
        )
    return HTTPError(400, f"the path {_quoted(path)} ends after the API version")
