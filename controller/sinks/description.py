"""The file that describes a sink: TOML, one file a sink, named after it.

Everything that is wrong with a file is reported at once, each with its key. No message repeats a secret;
secrets are in files of their own, which the description names.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from controller.sinks.hec import HecFormat
from controller.sinks.syslog import FACILITY_AUDIT, USUAL_OCTETS, SyslogFormat
from controller.sinks.targets import HecTarget, SyslogTarget, Target, TlsFiles, WebhookTarget
from defender.contract.errors import FileError, Problem

_ANY: Final = object()
_TLS: Final[Mapping[str, tuple[type, object]]] = {"ca": (str, ""), "certificate": (str, ""), "key": (str, "")}

KEYS: Final[Mapping[str, Mapping[str, tuple[type, object]]]] = {
    "syslog": {
        "host": (str, _ANY),
        "port": (int, 6514),
        "facility": (int, FACILITY_AUDIT),
        "app_name": (str, "defender-fleet"),
        "max_octets": (int, USUAL_OCTETS),
        **_TLS,
    },
    "webhook": {"url": (str, _ANY), "secret_file": (str, _ANY), **_TLS},
    "hec": {
        "url": (str, _ANY),
        "token_file": (str, _ANY),
        "index": (str, ""),
        "sourcetype": (str, "defender:audit"),
        "source": (str, "defender-fleet"),
        **_TLS,
    },
}
"""Of each kind its keys, with their types and defaults; `_ANY` has none."""

_WORDS: Final = {str: "a string", int: "a whole number"}


class SinkFileError(FileError):
    """A description of a sink that cannot be used."""


@dataclass(frozen=True, slots=True)
class Files:
    """Reads the files that a description names; each raises ValueError, saying why, for one it cannot.

    `secret` refuses a file that others may read.
    """

    public: Callable[[str], bytes]
    secret: Callable[[str], bytes]


def describe_sink(name: str, text: str, source: str, files: Files) -> Target:
    """Return the target that a description makes; raises SinkFileError with everything that is wrong."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise SinkFileError(source, (Problem(0, 0, "", f"this is not TOML: {error}"),)) from None
    problems: list[Problem] = []
    kind = document.pop("kind", None)
    if not isinstance(kind, str) or kind not in KEYS:
        problems.append(Problem(0, 0, "kind", "it is one of syslog, webhook and hec"))
        raise SinkFileError(source, tuple(problems))
    values = _values(KEYS[kind], document, problems)
    contents: dict[str, bytes] = {}
    for key in ("ca", "certificate", "key", "secret_file", "token_file"):
        if not values.get(key):
            continue
        try:
            read = files.public if key in ("ca", "certificate") else files.secret
            contents[key] = read(values[key])
        except ValueError as error:
            problems.append(Problem(0, 0, key, str(error)))
    if bool(values.get("certificate")) != bool(values.get("key")):
        problems.append(Problem(0, 0, "certificate", "certificate and key go together"))
    if problems:
        raise SinkFileError(source, tuple(problems))
    try:
        return _target(kind, name, values, contents)
    except ValueError as error:
        raise SinkFileError(source, (Problem(0, 0, "", str(error)),)) from None


def _values(
    keys: Mapping[str, tuple[type, object]], document: Mapping[str, object], problems: list[Problem]
) -> dict[str, Any]:
    for key in document:
        if key not in keys:
            close = difflib.get_close_matches(key, keys, 1)
            hint = f"did you mean {close[0]}?" if close else ""
            problems.append(Problem(0, 0, key[:64], "there is no such key", hint))
    values: dict[str, Any] = {}
    for key, (kind, default) in keys.items():
        value = document.get(key, default)
        if value is _ANY:
            problems.append(Problem(0, 0, key, "it is required"))
        elif type(value) is not kind:
            problems.append(Problem(0, 0, key, f"it is {_WORDS[kind]}"))
        else:
            values[key] = value
    return values


def _target(kind: str, name: str, values: Mapping[str, Any], contents: Mapping[str, bytes]) -> Target:
    tls = TlsFiles(contents.get("ca"), contents.get("certificate", b""), contents.get("key", b""))
    if kind == "syslog":
        form = SyslogFormat(values["facility"], values["app_name"], values["max_octets"])
        return SyslogTarget(name, values["host"], values["port"], form, tls)
    if kind == "webhook":
        return WebhookTarget(name, values["url"], _line(contents["secret_file"]), tls)
    token = _line(contents["token_file"])
    hec = HecFormat(token, values["index"], values["sourcetype"], values["source"])
    return HecTarget(name, values["url"], hec, tls)


def _line(content: bytes) -> str:
    """The one line of a secret's file; what is no ASCII is refused further on, as no secret."""
    return content.decode("ascii", "replace").strip()
