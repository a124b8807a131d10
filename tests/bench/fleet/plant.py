"""A real controller in a process of its own: started, asked over its API, measured, ended."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from tests.bench.children import TargetError, cpu_seconds, environment, free_port, stop_process

SETTINGS: Final = """\
[controller]
state = "."
[https]
listen = "127.0.0.1:{https}"
[channel]
listen = "127.0.0.1:{channel}"
"""
"""Everything else is as it comes."""

PATIENCE: Final = 60.0


class Plant:
    """``twistd controller`` over the directory ``state``, which is founded by the first start.

    `channel` is the port that defenders connect to, `token` that of a sign-in. Everything raises TargetError.
    """

    def __init__(self, state: Path) -> None:
        self.state = state
        self.https, self.channel = free_port(), free_port()
        self._log = state.parent / f"{state.name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.token = ""
        state.mkdir(parents=True)
        settings = state / "controller.toml"
        settings.write_text(SETTINGS.format(https=self.https, channel=self.channel))

    def start(self) -> None:
        """Start, and wait until it is ready."""
        program = [str(Path(sys.executable).parent / "twistd"), "-n", "--pidfile=", "controller"]
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [*program, "--state", str(self.state)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(),
            )
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self._process.poll() is None:
            try:
                if self.ask("GET", "/readyz"):
                    return
            except (TargetError, OSError, http.client.HTTPException):
                time.sleep(0.1)
        raise TargetError(f"the controller did not start:\n{self._tail()}")

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it; SIGKILL for an end without a goodbye."""
        if self._process is not None:
            if number == signal.SIGKILL:
                self._process.kill()
            stop_process(self._process)
            self._process = None

    @property
    def pid(self) -> int:
        """The process."""
        if self._process is None or self._process.poll() is not None:
            raise TargetError(f"the controller has ended:\n{self._tail()}")
        return self._process.pid

    def cpu(self) -> float:
        """Seconds of CPU so far."""
        return cpu_seconds(self.pid)

    def anonymous_kib(self) -> int:
        """Memory of its own, in KiB (proc(5), RssAnon)."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1])
        raise TargetError("the controller has ended")

    def sign_in(self) -> None:
        """Sign in as the first admin, for all that follows, with a password of our own."""
        first = (self.state / "first-admin-password").read_text().strip()
        self.token = self.ask("POST", "/api/v1/sessions", {"user": "admin", "password": first})["token"]
        wanted = {"present": first, "wanted": secrets.token_urlsafe(16)}
        self.ask("PUT", "/api/v1/accounts/current/password", wanted)

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> Any:
        """Ask the API; headers with ``_`` for ``-``. Raises for an answer that is none of success."""
        context = ssl.create_default_context(cafile=str(self.state / "pki" / "root.pem"))
        connection = http.client.HTTPSConnection("127.0.0.1", self.https, timeout=PATIENCE, context=context)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.token:
            sent["Authorization"] = f"Bearer {self.token}"
        if body is not None:
            sent["Content-Type"] = "application/json"
        try:
            connection.request(method, path, None if body is None else json.dumps(body), sent)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status // 100 != 2:
            raise TargetError(f"{method} {path}: {answer.status} {text.decode('utf-8', 'replace')[:500]}")
        return json.loads(text) if text else None

    def draft(self, policy: str, text: str) -> str:
        """Save a draft; gives the policy's etag."""
        try:
            known = self.ask("GET", f"/api/v1/policies/{policy}")["etag"]
        except TargetError:
            headers = {"If_None_Match": "*"}
        else:
            headers = {"If_Match": f'"{known}"'}
        saved = self.ask("PUT", f"/api/v1/policies/{policy}/draft", {"text": text}, **headers)
        return str(saved["etag"])

    def publish(self, policy: str, etag: str, *, waves: bool) -> None:
        """Publish a draft."""
        wanted = {"comment": "bench", "waves": waves}
        self.ask("POST", f"/api/v1/policies/{policy}/publish", wanted, If_Match=f'"{etag}"')

    def open_files(self) -> int:
        """How many descriptors the process has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def _tail(self) -> str:
        lines = self._log.read_text("utf-8", "replace").splitlines() if self._log.exists() else []
        return "\n".join(lines[-12:])
