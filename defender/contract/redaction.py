"""What of a request may be written down: secrets are taken out where events are made, not where they are
read.

Headers and bodies are never recorded, so `X-Registry-Auth`, `X-Registry-Config` and environment values have
no way into an event. What is left is the query. It is an allow-list: a parameter that the Engine is known
to have and that carries no secret keeps its value, every other one keeps its name only.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Final

HIDDEN: Final = "***"


def words_of(text: str) -> frozenset[str]:
    """The words of a text, for a table that is written as one."""
    return frozenset(text.split())


#: Longest recorded text, in characters, of a value, a path and a key.
MAX_VALUE: Final = 512
MAX_PATH: Final = 1024
MAX_KEY: Final = 64
#: Most recorded parameters of a query, and keys of one `buildargs`.
MAX_PAIRS: Final = 64

#: Query parameters of the Engine API 1.24 to 1.56 whose values are recorded.
PLAIN: Final = words_of("""
    CheckpointDir all author before buildid cachefrom cgroupparent checkpoint checkpoint-dir comment
    condition container copyUIDGID cpuperiod cpuquota cpusetcpus cpusetmems cpushares detachKeys details
    dir dockerfile extrahosts filter filters follow force forcerm format fromImage h id identity
    insertDefaults isolation keep-storage labels limit link logs manifests max-used-space memory memswap
    message min-free-space name names networkmode noOverwriteDirNonDir nocache noprune one-shot path
    pause platform platforms ps_args pull q quiet registryAuthFrom repo reserved-space rm rollback
    rotateManagerToken rotateManagerUnlockKey rotateWorkerToken scope securityopt shared-size shmsize
    signal since size squash status stderr stdin stdout stream t tag tail target term timeout timestamps
    type ulimits until v verbose version w
""")

#: Parameters whose value is, or may be, the URL of something that the Engine fetches.
URLS: Final = frozenset({"fromSrc", "remote"})

_USERINFO: Final = re.compile(r"//[^/?#\s\"']*@")
_DIGEST: Final = re.compile(r"sha\d+:")
_NAME_START: Final = re.compile(r".*[/=,;'\"]", re.DOTALL)
_SCHEME_END: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,31}\Z")
_SEPARATOR: Final = re.compile(r"([?&;])")


def shorten(text: str, limit: int = MAX_VALUE) -> str:
    """`text`, or its beginning with its length and digest: ``abc...(70000 characters, sha256:0f3a...)``."""
    if len(text) <= limit:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{text[: limit // 2]}...({len(text)} characters, sha256:{digest})"


def hide_url_secrets(url: str) -> str:
    """The URL of a download without what may let others make it: user, password, values of its query.

    Takes what the Engine takes for `remote` and `fromSrc`: ``https://...``, ``git@host:path``, a bare image
    or plugin reference, ``-``. What cannot be taken apart safely is hidden whole.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    if "\\" in url or not url.isprintable():
        return f"{scheme}{separator}{HIDDEN}"  # readers of URLs differ in what these mean
    end = min((found for mark in "/?#" if (found := rest.find(mark)) >= 0), default=len(rest))
    authority, tail = rest[:end], rest[end:]
    user, at, host = authority.rpartition("@")
    if at:
        # `git` is the user of every public SSH remote; any other name may be a token.
        authority = f"{user if user == 'git' else HIDDEN}@{host}"
    elif _is_cut_password(host, tail, bool(separator)):
        return f"{scheme}{separator}{HIDDEN}"
    path, hash_mark, fragment = tail.partition("#")
    path = _hide_values(path)
    if "=" in fragment:
        fragment = HIDDEN
    return f"{scheme}{separator}{authority}{_USERINFO.sub(f'//{HIDDEN}@', path)}{hash_mark}{fragment}"


def _hide_values(path: str) -> str:
    """The path and query without values. One pass: a search for each separator is quadratic in what a
    request may hold, and minutes of the reactor's time.
    """
    first, *rest = _SEPARATOR.split(path)
    shown = [first]
    in_query = False
    for separator, piece in zip(rest[::2], rest[1::2], strict=True):
        name, equals, _ = piece.partition("=")
        in_query = in_query or separator == "?"
        if equals:
            piece = f"{name}={HIDDEN}"
        elif separator == "?" or (in_query and piece):
            piece = HIDDEN
        shown += (separator, piece)
    return "".join(shown)


def _is_cut_password(host: str, tail: str, absolute: bool) -> bool:
    """Whether what looks like a port is the beginning of a password with a raw `/` in it."""
    if ":" not in host or (host.startswith("[") and host.endswith("]")):
        return False
    if host.rpartition(":")[2].isdigit():
        return absolute and "@" in tail
    return absolute or "@" in tail


def redact_query(action: str, pairs: Iterable[tuple[str, str]]) -> tuple[dict[str, object], tuple[str, ...]]:
    """A query as it may be recorded, and which of its parameters were hidden in part or whole.

    `pairs` are decoded. A repeated parameter becomes a list, in order. `buildargs` is an object of the
    arguments' names; the Dockerfile lines in `changes` keep their instruction only.
    """
    query: dict[str, object] = {}
    hidden: list[str] = []
    for count, (key, value) in enumerate(pairs):
        if count == MAX_PAIRS:
            query["..."] = "more parameters"
            hidden.append("...")
            break
        if key in PLAIN:
            shown: object = value if len(value) < 64 and "://" not in value else _scrub(value)
        else:
            shown = _hide(action, key, value)
            key = shorten(key, MAX_KEY)
        if shown != value and key not in hidden and shown != shorten(value):
            hidden.append(key)
        if key not in query:
            query[key] = shown
        else:
            first = query[key]
            if isinstance(first, list):
                first.append(shown)
            else:
                query[key] = [first, shown]
    return query, tuple(hidden)


def hide_url(word: str) -> str:
    """A word without spaces; of a URL in it what `hide_url_secrets` leaves."""
    before, mark, _ = word.partition("://")
    if not mark:
        return word
    scheme = _SCHEME_END.search(before)
    start = scheme.start() if scheme is not None else len(before)
    return word[:start] + hide_url_secrets(word[start:])


def hide_user(text: str) -> str:
    """A text without the user and password of any URL in it."""
    return _USERINFO.sub(f"//{HIDDEN}@", text) if "@" in text else text


def hide_password(word: str) -> str:
    """A word without spaces; of ``NAME:PASSWORD@HOST`` the host; the digest of an image is no host."""
    before, _, host = word.rpartition("@")
    name, colon, password = before.partition(":")
    if not colon or not password or _DIGEST.match(host) is not None:
        return word
    start = _NAME_START.match(name)
    return f"{start[0] if start is not None else ''}{HIDDEN}@{host}"


def _scrub(value: str) -> str:
    return shorten(hide_user(value))


def _hide(action: str, key: str, value: str) -> object:
    if not value:
        return value
    if key in URLS:
        return shorten(hide_url_secrets(value))
    if key == "changes":
        return f"{shorten(value.split(None, 1)[0], 16)} {HIDDEN}" if value.strip() else value
    if key == "buildargs" and action == "image_build":
        return _names_only(value)
    return HIDDEN


def _names_only(value: str) -> object:
    try:
        arguments = json.loads(value) if len(value) <= 65536 else None
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        return HIDDEN
    names = [shorten(name, MAX_KEY) for name in arguments]
    shown = dict.fromkeys(names[:MAX_PAIRS], HIDDEN)
    return shown if len(names) <= MAX_PAIRS else {**shown, "...": f"{len(names) - MAX_PAIRS} more"}
