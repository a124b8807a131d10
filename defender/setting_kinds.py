"""Kinds of settings that only the defender has: the addresses of its listeners and of its Engine."""

from __future__ import annotations

import re
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


def _controller_value(value: object, base: PurePath) -> str:
    text = text_value(value)
    if text:
        controller_address(text)
    return text


def controller_address(text: str) -> tuple[str, int]:
    """``HOST:PORT`` or ``[IPv6]:PORT``; ValueError says what is wrong with anything else."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is not HOST:PORT, such as controller.example.com:8084")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: an IPv6 address stands in brackets, such as [2001:db8::1]:8084")
    if _HOST.fullmatch(host) is None:
        raise ValueError(f"{text!r} is not HOST:PORT, such as controller.example.com:8084")
    return host, int(port)


_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.:_-]{0,251}[A-Za-z0-9.])?|[0-9A-Fa-f:.]{2,45}")

CONTROLLER: Final = Kind("`HOST:PORT`, or empty", _controller_value)
NAMES: Final = list_of(lambda value, base: text_value(value), "host names and IP addresses")
TCP: Final = list_of(_tcp_value, "`IP:PORT` or `fd://NAME`")
UNIX: Final = list_of(_unix_value, "paths or `fd://NAME`")
ENGINE: Final = Kind("`unix://` and an absolute path", _engine_value)
