"""Kinds of settings that only the defender has: the addresses of its listeners and of its Engine."""

from __future__ import annotations

from pathlib import PurePath
from typing import Final

from defender.contract.setting_kinds import Kind, list_of, path_value, text_value
from defender.listener.spec import MAX_PATH_BYTES, parse_tcp, parse_unix

#: Longest path of a unix socket.
MAX_SOCKET_PATH: Final = MAX_PATH_BYTES


def _tcp_value(value: object, base: PurePath) -> str:
    text = text_value(value)
    parse_tcp(text)
    return text


def _unix_value(value: object, base: PurePath) -> str:
    """``fd://NAME`` as it is; of a path, or ``unix://`` and a path, the absolute path."""
    text = text_value(value)
    if not text.startswith(("fd://", "tcp://")):
        text = str(path_value(text.removeprefix("unix://"), base))
    parse_unix(text)
    return text


def _engine_value(value: object, base: PurePath) -> str:
    text = text_value(value)
    if text.startswith("unix:///") and len(text) > len("unix:///"):
        if len(text.removeprefix("unix://").encode()) > MAX_SOCKET_PATH:
            raise ValueError(f"the socket's path is longer than {MAX_SOCKET_PATH} bytes")
        return text
    if text.startswith(("tcp://", "http://", "https://", "ssh://", "npipe://")):
        raise ValueError(
            f"{text!r}: only an Engine on a unix socket is supported, such as unix:///var/run/docker.sock"
        )
    raise ValueError(f"{text!r} is not unix:// and an absolute path, such as unix:///var/run/docker.sock")


TCP: Final = list_of(_tcp_value, "`IP:PORT` or `fd://NAME`")
UNIX: Final = list_of(_unix_value, "paths or `fd://NAME`")
ENGINE: Final = Kind("`unix://` and an absolute path", _engine_value)
