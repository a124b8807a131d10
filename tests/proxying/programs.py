"""Programs behind exec and attach, on both Engines: what a stream's tests run."""

from __future__ import annotations

import hashlib
import json
from typing import ClassVar

from deploy.docker_api import call, connection
from tests.fakes.engine import CONTAINER_ID, Tunnel, swallow
from tests.fakes.engine import echo as fake_echo
from tests.proxying.base import OnFake, OnReal, ProxyCase

CAT, LATE, DIGEST = "cat", "late", "digest"
"""Says what it hears; says "late" when it has heard everything; says the SHA-256 of what it heard."""

COMMANDS = {
    CAT: ["cat"],
    LATE: ["sh", "-c", "cat > /dev/null; echo late"],
    DIGEST: ["sha256sum"],
}
UPGRADE = "Connection: Upgrade\r\nUpgrade: tcp\r\n"


def unframe(data: bytes) -> bytes:
    """Return the standard output in a raw stream without terminal: frames of 8 bytes of head and data."""
    output = bytearray()
    position = 0
    while position < len(data):
        kind, size = data[position], int.from_bytes(data[position + 4 : position + 8], "big")
        assert kind == 1, f"not a frame of output: {data[position : position + 20]!r}"
        assert position + 8 + size <= len(data), "the last frame is not whole"
        output += data[position + 8 : position + 8 + size]
        position += 8 + size
    return bytes(output)


def late(tunnel: Tunnel) -> None:
    """The fake's LATE."""
    while tunnel.read():
        pass
    tunnel.write(b"late\n")


class Programs(ProxyCase):
    """Gives the requests that start a program."""

    def new_exec(self, program: str) -> str:
        """Make an exec of it; its id."""
        raise NotImplementedError

    def new_container(self, program: str) -> str:
        """Make a container of it that is to be attached to; its id."""
        raise NotImplementedError

    def run_container(self, name: str) -> None:
        """Start what `new_container` made."""
        raise NotImplementedError

    def exec_request(self, program: str = CAT, *, upgrade: str = UPGRADE, version: str = "HTTP/1.1") -> bytes:
        """The request that starts a new exec, whole."""
        head = f"POST /v1.41/exec/{self.new_exec(program)}/start {version}\r\nHost: x\r\n{upgrade}"
        return f"{head}Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}".encode()

    def attach_request(self, name: str, *, upgrade: str = UPGRADE) -> bytes:
        """The request that attaches to a new container's program."""
        query = "stream=1&stdin=1&stdout=1&stderr=1"
        head = f"POST /v1.41/containers/{name}/attach?{query} HTTP/1.1\r\nHost: x\r\n{upgrade}"
        return f"{head}Content-Length: 0\r\n\r\n".encode()


class FakePrograms(OnFake, Programs):
    """On the fake Engine."""

    def _choose(self, program: str) -> None:
        self.engine.program = {CAT: fake_echo, LATE: late, DIGEST: swallow}[program]

    def new_exec(self, program: str) -> str:
        self._choose(program)
        return self.engine.add_exec({"AttachStdin": True})

    def new_container(self, program: str) -> str:
        self._choose(program)
        return CONTAINER_ID

    def run_container(self, name: str) -> None:
        """It runs when it is attached to."""


class RealPrograms(OnReal, Programs):
    """On the real Engine; execs run in one container."""

    container: ClassVar[str]

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.container = cls.engine_call("POST", "/containers/create", Image="busybox", Cmd=["sleep", "99999"])
        cls.addClassCleanup(cls.engine_call, "DELETE", f"/containers/{cls.container}?force=1")
        cls.engine_call("POST", f"/containers/{cls.container}/start")

    @classmethod
    def engine_call(cls, method: str, path: str, **body: object) -> str:
        """Ask the Engine itself; the id in its answer."""
        link = connection(f"unix://{cls.engine_path}")
        if not body:
            call(link, method, path)
            return ""
        answer = call(link, method, path, json.dumps(body).encode(), **{"Content-Type": "application/json"})
        return str(answer["Id"])

    def new_exec(self, program: str) -> str:
        return self.engine_call(
            "POST",
            f"/containers/{self.container}/exec",
            Cmd=COMMANDS[program],
            AttachStdin=True,
            AttachStdout=True,
            AttachStderr=True,
        )

    def new_container(self, program: str) -> str:
        name = self.engine_call(
            "POST",
            "/containers/create",
            Image="busybox",
            Cmd=COMMANDS[program],
            OpenStdin=True,
            StdinOnce=True,
            AttachStdin=True,
        )
        self.addCleanup(self.engine_call, "DELETE", f"/containers/{name}?force=1")
        return name

    def run_container(self, name: str) -> None:
        self.engine_call("POST", f"/containers/{name}/start")


def digest(data: bytes) -> bytes:
    """What DIGEST says of `data`."""
    return hashlib.sha256(data).hexdigest().encode() + b"  -\n"
