"""Clients in Python: kept and new connections, denied calls, slow readers, long answers, strangers."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import ssl
import struct
import time
from collections.abc import Callable

from deploy.docker_api import connection
from tests.engine.guarded import certificates
from tests.soak.stage import LARGE, LOCKED, STRANGER, Stage
from tests.soak.work import WorkError

PATHS = (
    "/_ping",
    "/_ping",
    "/v1.41/version",
    "/v1.41/info",
    "/v1.41/containers/json?all=1",
    "/v1.41/containers/box/json",
    "/v1.41/images/json",
)
TIMEOUT = 60.0
BURST = 150
READ_STEP = 32 * 1024


class Caller:
    """One user's connection, made when there is none; every answer is counted for the user."""

    def __init__(self, stage: Stage, user: str, *, kept: bool = True) -> None:
        self._stage = stage
        self.user = user
        self._kept = kept
        self._link: http.client.HTTPConnection | None = None

    def call(self, method: str, path: str) -> int:
        """Do one call and return its status; raises `WorkError` when there is no whole answer."""
        books = self._stage.books
        if self._link is None:
            self._link = connection(self._stage.defender.tcp_address, certificates(self.user), TIMEOUT)
            try:
                self._link.connect()
            except OSError as error:
                self.close()
                raise WorkError(f"no connection: {error}") from error
        try:
            self._link.request(method, path)
            response = self._link.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            books.lost(self.user)
            self.close()
            raise WorkError(f"{method} {path} has no answer: {error!r}") from error
        books.answered(self.user, response.status)
        if not self._kept or response.will_close:
            self.close()
        return response.status

    def close(self) -> None:
        """Leave."""
        link, self._link = self._link, None
        if link is not None:
            link.close()


def reads(caller: Caller, dice: random.Random) -> Callable[[], None]:
    """Something that everybody may read."""

    def task() -> None:
        path = dice.choice(PATHS)
        status = caller.call("GET", path)
        if status != 200 and not (caller.user == LOCKED and status == 403):
            raise WorkError(f"GET {path} was answered with {status}")

    return task


def probe(caller: Caller, stage: Stage) -> Callable[[], None]:
    """The fixed request whose round trip is measured."""

    def task() -> None:
        began = time.perf_counter()
        status = caller.call("GET", "/_ping")
        if status != 200:
            raise WorkError(f"GET /_ping was answered with {status}")
        stage.books.round_trip((time.perf_counter() - began) * 1000)

    return task


def denied(caller: Caller, dice: random.Random) -> Callable[[], None]:
    """A call that is denied, and now and then a burst of them."""

    def task() -> None:
        for _ in range(BURST if dice.random() < 0.02 else 1):
            status = caller.call("DELETE", "/v1.41/containers/box")
            if status != 403:
                raise WorkError(f"{STRANGER} got {status}")

    return task


def slow_download(stage: Stage, dice: random.Random, *, tls: bool) -> Callable[[], None]:
    """Read an image slowly, and then to its end or not."""
    defender = stage.defender

    def task() -> None:
        address = defender.tcp_address if tls else defender.unix_address
        link = connection(address, certificates("admin") if tls else None, TIMEOUT)
        with contextlib.closing(link):
            link.request("GET", "/v1.41/images/large/get")
            response = link.getresponse()
            if response.status != 200:
                raise WorkError(f"image_get was answered with {response.status}")
            size = 0
            until = time.monotonic() + dice.uniform(1, 6)
            while time.monotonic() < until and (data := response.read(READ_STEP)):
                size += len(data)
                time.sleep(0.05)
            if dice.random() < 0.5:
                return
            while data := response.read(1 << 20):
                size += len(data)
            if size < LARGE:
                raise WorkError(f"the image had {size} bytes")

    return task


def leave_events(stage: Stage) -> Callable[[], None]:
    """Follow the Engine's events for a moment and go without a word."""

    def task() -> None:
        link = connection(stage.defender.tcp_address, certificates("admin"), TIMEOUT)
        with contextlib.closing(link):
            link.request("GET", "/v1.41/events")
            if link.getresponse().status != 200:
                raise WorkError("no events")
            time.sleep(1)

    return task


def reset_upload(stage: Stage) -> Callable[[], None]:
    """Announce an upload, send half of it, and reset the connection."""

    def task() -> None:
        link = connection(stage.defender.tcp_address, certificates("admin"), TIMEOUT)
        link.putrequest("POST", "/v1.41/images/create?fromSrc=-&repo=half")
        link.putheader("Content-Length", str(LARGE))
        link.endheaders()
        with stage.large.open("rb") as file:
            link.send(file.read(LARGE // 4))
        assert isinstance(link.sock, ssl.SSLSocket)
        with socket.socket(fileno=link.sock.detach()) as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return task


def stranger(stage: Stage, dice: random.Random) -> Callable[[], None]:
    """Come without a certificate, with no TLS, with half a handshake, or with nothing to say."""

    def task() -> None:
        with socket.create_connection(("127.0.0.1", stage.defender.port), TIMEOUT) as sock:
            kind = dice.choice(("plain", "half", "silent", "nameless"))
            if kind == "plain":
                sock.sendall(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
                sock.recv(100)
            elif kind == "half":
                sock.sendall(b"\x16\x03\x01\x02\x00\x01")
            elif kind == "nameless":
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
                with contextlib.suppress(OSError), context.wrap_socket(sock) as tls:
                    if tls.recv(100):
                        raise WorkError("somebody without a certificate was answered")

    return task


def garble(stage: Stage) -> Callable[[], None]:
    """Send what is no request on a good connection."""

    def task() -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(TIMEOUT)
            sock.connect(str(stage.defender.socket))
            sock.sendall(b"no request\r\n\r\n")
            if not sock.recv(100).startswith(b"HTTP/1.1 400 "):
                raise WorkError("nonsense was not answered with 400")

    return task
