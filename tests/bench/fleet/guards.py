"""Real defenders of a controller's fleet, each in a process of its own, with one live stream through each."""

from __future__ import annotations

import select
import shutil
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec

from controller.pki.authority import certificate_pem
from controller.pki.custody import private_key_pem
from controller.pki.storage import open_authority
from tests.bench.children import TargetError, environment, free_port, stop_process
from tests.bench.fleet.plant import Plant

USER: Final = "streams@example.com"
PATIENCE: Final = 60.0

SETTINGS: Final = """\
[defender]
name = "{name}"
state = "{state}"
[engine]
address = "unix://{engine}"
[listen]
mode = "tcp"
tcp = ["127.0.0.1:{port}"]
"""

REQUEST: Final = b"GET /v1.41/events HTTP/1.1\r\nHost: bench\r\n\r\n"
ANSWER: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n"
)


class _Engine(socketserver.BaseRequestHandler):
    """Answers every request with a stream that says one thing and then nothing."""

    def handle(self) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            more = self.request.recv(65536)
            if not more:
                return
            data += more
        self.request.sendall(ANSWER)
        # Until the defender ends it.
        self.request.recv(1)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 256


class Guards:
    """`count` defenders that have joined; `open` gives each one its stream. Everything raises TargetError."""

    def __init__(self, plant: Plant, count: int) -> None:
        self._plant = plant
        self._home = plant.state.parent / "guards"
        self._home.mkdir()
        self._engine = _Server(str(self._home / "engine"), _Engine)
        threading.Thread(target=self._engine.serve_forever, daemon=True).start()
        self._context = self._user()
        self._ports = [free_port() for _ in range(count)]
        self._streams: list[ssl.SSLSocket] = []
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Guards:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
        for process in self._processes:
            stop_process(process)
        self._engine.shutdown()
        self._engine.server_close()
        shutil.rmtree(self._home, ignore_errors=True)

    def start(self) -> None:
        """Start them; each joins with a token."""
        made = self._plant.ask("POST", "/api/v1/join-tokens", {"uses": len(self._ports)})
        token = self._home / "token"
        token.touch(0o600)
        token.write_text(made["token"] + "\n")
        program = [str(Path(sys.executable).parent / "twistd"), "-n", "--pidfile=", "defender"]
        where = ["--controller", f"127.0.0.1:{self._plant.channel}", "--join-token-file", str(token)]
        for number, port in enumerate(self._ports):
            state = self._home / f"guard{number:02}"
            state.mkdir()
            values = {"name": state.name, "state": state, "engine": self._home / "engine", "port": port}
            (state / "defender.toml").write_text(SETTINGS.format(**values))
            with (self._home / f"{state.name}.log").open("wb") as log:
                self._processes.append(
                    subprocess.Popen(
                        [*program, "--state", str(state), *where],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=environment(),
                    )
                )

    def open(self) -> None:
        """Open a stream through each one, as soon as it lets the user in."""
        end = time.monotonic() + PATIENCE
        for number, port in enumerate(self._ports):
            said = b""
            while True:
                if time.monotonic() > end:
                    raise TargetError(f"guard {number} lets nobody in: {said.decode('utf-8', 'replace')}")
                try:
                    plain = socket.create_connection(("127.0.0.1", port), timeout=10)
                    stream = self._context.wrap_socket(plain, server_hostname="localhost")
                    stream.sendall(REQUEST)
                    said = stream.recv(65536)
                    while said.startswith(b"HTTP/1.1 200") and b"{}" not in said:
                        said += stream.recv(65536)
                except OSError as error:
                    said = str(error).encode()
                else:
                    if said.startswith(b"HTTP/1.1 200"):
                        self._streams.append(stream)
                        break
                    stream.close()
                time.sleep(0.1)

    def cut(self) -> list[float]:
        """Wait until every stream has ended; gives when each did, by the monotonic clock."""
        left = {stream.fileno(): stream for stream in self._streams}
        times: list[float] = []
        while left:
            ready, _, _ = select.select(list(left), [], [], PATIENCE)
            if not ready:
                raise TargetError(f"{len(left)} streams were not cut within {PATIENCE:.0f} s")
            for descriptor in ready:
                try:
                    over = not left[descriptor].recv(65536)
                except OSError:
                    over = True
                if over:
                    times.append(time.monotonic())
                    del left[descriptor]
        self.close()
        return sorted(times)

    def close(self) -> None:
        """Close the streams."""
        for stream in self._streams:
            stream.close()
        self._streams.clear()

    def lock(self) -> str:
        """Lock the user; gives the lock's id."""
        return str(self._plant.ask("POST", "/api/v1/locks", {"kind": "user", "value": USER})["id"])

    def unlock(self, lock: str) -> None:
        """Take the lock away."""
        self._plant.ask("DELETE", f"/api/v1/locks/{lock}")

    def _user(self) -> Any:
        """A client's TLS with the user's certificate."""
        now = datetime.now(UTC)
        authority = open_authority(self._plant.state, now)
        key = ec.generate_private_key(ec.SECP256R1())
        issued = authority.issue_user(key.public_key(), USER, ["Dev team"], now=now)
        file = self._home / "user.pem"
        file.touch(0o600)
        file.write_bytes(private_key_pem(key) + certificate_pem(issued.leaf) + certificate_pem(issued.issuer))
        context = ssl.create_default_context(cafile=str(self._plant.state / "pki" / "root.pem"))
        context.load_cert_chain(file)
        return context
