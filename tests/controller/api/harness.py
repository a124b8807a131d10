"""Speaks HTTP with the API's site over a transport in memory, byte for byte."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPResponse
from io import BytesIO
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from controller.api.app import Api
from controller.api.catalog import ROUTES
from controller.api.site import ApiSite
from controller.api.stream import StreamLimits
from tests.controller.api.doubles import EVERYTHING, World

CLIENT = IPv4Address("TCP", "192.0.2.7", 40001)
SERVER = IPv4Address("TCP", "192.0.2.1", 8083)


@dataclass(frozen=True)
class Reply:
    """An answer, read by Python's own client."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


class _Sock:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_: object) -> BytesIO:
        return BytesIO(self._data)


def read_reply(data: bytes, method: str = "GET") -> Reply:
    """The first answer in `data`."""
    response = HTTPResponse(_Sock(data), method=method)  # type: ignore[arg-type]
    response.begin()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Reply(response.status, headers, response.read())


class MemoryTransport(StringTransport):
    """A transport that closes when it is told to, and holds back when the test says so."""

    def __init__(self) -> None:
        super().__init__(hostAddress=SERVER, peerAddress=CLIENT)
        self.aborted = False

    def abortConnection(self) -> None:
        """Note it."""
        self.aborted = True
        self.loseConnection()


class Connection:
    """One connection to the site."""

    def __init__(self, site: ApiSite) -> None:
        self.transport = MemoryTransport()
        self.protocol = site.buildProtocol(CLIENT)
        self.protocol.makeConnection(self.transport)

    def send(self, data: bytes) -> None:
        """From the client."""
        self.protocol.dataReceived(data)

    @property
    def received(self) -> bytes:
        """All that came back."""
        found: bytes = self.transport.value()
        return found

    def pause(self) -> None:
        """The client reads no more."""
        producer: Any = self.transport.producer
        producer.pauseProducing()

    def resume(self) -> None:
        """It reads again."""
        producer: Any = self.transport.producer
        producer.resumeProducing()

    def close(self) -> None:
        """The client is gone."""
        self.protocol.connectionLost(Failure(ConnectionDone()))


class Harness:
    """The API on its doubles, with a clock that the test turns."""

    def __init__(self, limits: StreamLimits | None = None) -> None:
        self.clock = Clock()
        self.world = World(ROUTES)
        self.api = Api(self.world.ports(), self.clock, version="0.0", check_answers=True, limits=limits)
        self.site = ApiSite(self.api.resource(), self.clock, self.api.dispatcher.metrics)

    def connect(self) -> Connection:
        """A connection."""
        return Connection(self.site)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = EVERYTHING,
        headers: Mapping[str, str] | None = None,
        raw: bytes | None = None,
    ) -> Reply:
        """Ask on a connection of its own; `body` is JSON, `raw` is bytes."""
        connection = self.connect()
        try:
            connection.send(request_bytes(method, path, body, token=token, headers=headers, raw=raw))
            return read_reply(connection.received, method)
        finally:
            connection.close()


def request_bytes(
    method: str,
    path: str,
    body: Any = None,
    *,
    token: str | None = EVERYTHING,
    headers: Mapping[str, str] | None = None,
    raw: bytes | None = None,
) -> bytes:
    """A request as it is sent."""
    fields = {"Host": "controller.example.com:8083"}
    data = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
    if token is not None:
        fields["Authorization"] = f"Bearer {token}"
    if data or raw is not None:
        fields |= {"Content-Type": "application/json", "Content-Length": str(len(data))}
    fields |= headers or {}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + data
