"""The few Engine calls that start-up needs, over a unix socket or through a defender.

Standard library only: it runs before there is a virtual environment.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from pathlib import Path
from typing import Any


class UnixConnection(http.client.HTTPConnection):
    """An HTTP connection to a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(self.timeout)
            self.sock.connect(self._path)
        except OSError:
            self.sock.close()
            raise


class ApiError(Exception):
    """The Engine, or a defender before it, did not do what was asked; the text is its own message."""


def connection(
    address: str, certificates: Path | None = None, timeout: float = 30
) -> http.client.HTTPConnection:
    """Open nothing yet: return a connection for ``unix://PATH`` or ``tcp://HOST:PORT``.

    Args:
        address: as in DOCKER_HOST.
        certificates: directory of ca.pem, cert.pem and key.pem; needed for tcp.
        timeout: seconds for each read and write.
    """
    if address.startswith("unix://"):
        return UnixConnection(address.removeprefix("unix://"), timeout)
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    if certificates is None:
        raise ApiError(f"{address} needs client certificates")
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    context.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
    return http.client.HTTPSConnection(host.strip("[]"), int(port), timeout=timeout, context=context)


def call(
    link: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None, **headers: str
) -> Any:
    """Do one call and return its JSON, or its text.

    Raises:
        ApiError: for a status of 400 and above, with the message of the answer, and for a failed connection.
    """
    try:
        link.request(method, path, body, headers)
        response = link.getresponse()
        text = response.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        raise ApiError(str(error) or type(error).__name__) from error
    finally:
        link.close()
    is_json = response.headers.get_content_type() == "application/json"
    if response.status >= 400:
        message = text.strip()
        if is_json:
            try:
                message = json.loads(text)["message"]
            except (ValueError, KeyError, TypeError):
                pass
        raise ApiError(message or f"status {response.status}")
    if is_json and "\n{" not in text.strip():
        return json.loads(text)
    return text


def ping(address: str, certificates: Path | None = None, timeout: float = 5) -> int:
    """Return the status of GET /_ping: 200, or 403 from a defender that denies it.

    Raises:
        OSError, http.client.HTTPException: when nobody answers.
    """
    link = connection(address, certificates, timeout)
    try:
        link.request("GET", "/_ping")
        return link.getresponse().status
    finally:
        link.close()


def answers(address: str, certificates: Path | None = None, timeout: float = 5) -> bool:
    """Tell whether somebody answers GET /_ping, be it with a denial."""
    try:
        return ping(address, certificates, timeout) < 500
    except (OSError, http.client.HTTPException, ApiError):
        return False
