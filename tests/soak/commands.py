"""docker commands: run to their end and looked at, or killed half-way."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from tests.engine.dockerd import DockerCLI
from tests.engine.guarded import scratch
from tests.soak.stage import Stage
from tests.soak.work import WorkError

TIMEOUT = 120.0
MEGABYTE = 1 << 20

_numbers = itertools.count(1)


class Commands:
    """The commands of one client program in one environment."""

    def __init__(
        self, stage: Stage, cli: DockerCLI, environment: Mapping[str, str], dice: random.Random
    ) -> None:
        self._stage = stage
        self._cli = cli
        self._environment = {**environment, "DOCKER_BUILDKIT": "0"}
        self._dice = dice

    def tasks(self) -> dict[str, Callable[[], None]]:
        """Those that end by themselves, by name."""
        tasks = (self.ps, self.run, self.execute, self.follow_logs, self.copy, self.build, self.save_and_load)
        return {f"docker {task.__name__}": task for task in tasks}

    def kills(self) -> dict[str, Callable[[], None]]:
        """Those that are killed half-way, by name."""
        kills = (self.kill_attach, self.kill_exec, self.kill_upload, self.kill_download)
        return {f"docker {task.__name__}": task for task in kills}

    def _name(self, kind: str) -> str:
        return f"{kind}-{next(_numbers)}"

    def docker(self, *arguments: str, stdin: bytes = b"") -> bytes:
        """Run a command to its end; raises `WorkError` with what it said."""
        done = subprocess.run(
            [self._cli.path, *arguments],
            input=stdin,
            capture_output=True,
            env=self._environment,
            timeout=TIMEOUT,
            check=False,
        )
        if done.returncode:
            raise WorkError(f"docker {' '.join(arguments)}: {done.returncode}: {done.stderr.decode()[-500:]}")
        return done.stdout

    @contextmanager
    def started(self, *arguments: str, number: int = signal.SIGKILL) -> Any:
        """Start a command, and end it with a signal."""
        child = subprocess.Popen(
            [self._cli.path, *arguments],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield child
        finally:
            child.send_signal(number)
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait(20)

    # -- to the end

    def ps(self) -> None:
        if b"box" not in self.docker("ps", "--format={{.Names}}"):
            raise WorkError("ps does not list the box")

    def run(self) -> None:
        said = self.docker("run", "--rm", "--network=none", "busybox", "echo", "fine")
        if said != b"fine\n":
            raise WorkError(f"run said {said!r}")

    def execute(self) -> None:
        data = os.urandom(self._dice.choice((10, 1000, 300_000)))
        if self.docker("exec", "-i", "box", "cat", stdin=data) != data:
            raise WorkError("exec gave other bytes back")

    def follow_logs(self) -> None:
        with self.started("logs", "-f", "--tail=2", "talker", number=signal.SIGTERM) as child:
            for _ in range(4):
                if not child.stdout.readline():
                    raise WorkError("the log ended")

    def copy(self) -> None:
        folder = scratch() / self._name("copy")
        folder.mkdir()
        try:
            data = os.urandom(100_000)
            (folder / "there").write_bytes(data)
            place = f"/tmp/{folder.name}"
            self.docker("cp", str(folder / "there"), f"box:{place}")
            self.docker("cp", f"box:{place}", str(folder / "back"))
            self.docker("exec", "box", "rm", place)
            if (folder / "back").read_bytes() != data:
                raise WorkError("cp gave other bytes back")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def build(self) -> None:
        name = self._name("built")
        folder = Path(scratch() / name)
        folder.mkdir()
        try:
            (folder / "Dockerfile").write_text("FROM scratch\nADD file /\nLABEL soak=1\n", "ascii")
            (folder / "file").write_bytes(os.urandom(50_000))
            self.docker("build", "-q", "--force-rm", "-t", name, str(folder))
            self.docker("rmi", "-f", name)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def save_and_load(self) -> None:
        said = self.docker("load", "-q", stdin=self.docker("save", "busybox"))
        if b"busybox" not in said:
            raise WorkError(f"load said {said!r}")

    # -- half-way

    def kill_attach(self) -> None:
        with self.started("attach", "--no-stdin", "talker") as child:
            if not child.stdout.readline():
                raise WorkError("the container said nothing")

    def kill_exec(self) -> None:
        with self.started("exec", "-i", "box", "cat") as child:
            data = os.urandom(50_000)
            feed(child.stdin, data)
            if child.stdout.read(1000) != data[:1000]:
                raise WorkError("exec gave other bytes back")

    def kill_upload(self) -> None:
        with self.started("import", "-", "never") as child:
            with self._stage.large.open("rb") as file:
                feed(child.stdin, file.read(MEGABYTE))
            time.sleep(self._dice.uniform(0, 0.5))

    def kill_download(self) -> None:
        with self.started("save", "large") as child:
            if len(child.stdout.read(MEGABYTE)) < MEGABYTE:
                raise WorkError("the image ended early")

    def converse(self) -> None:
        """Talk with a program in a container for some seconds."""
        with self.started("exec", "-i", "box", "cat", number=signal.SIGTERM) as child:
            for number in range(self._dice.randrange(10, 60)):
                line = b"line %d\n" % number
                feed(child.stdin, line)
                if child.stdout.readline() != line:
                    raise WorkError(f"the conversation ended after {number} lines")
                time.sleep(0.1)


def feed(pipe: IO[bytes] | None, data: bytes) -> None:
    """Write it all; raises `WorkError` when nobody reads any more."""
    assert pipe is not None
    try:
        pipe.write(data)
        pipe.flush()
    except BrokenPipeError as error:
        raise WorkError("the command ended early") from error
