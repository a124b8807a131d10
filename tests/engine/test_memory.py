"""What a defender holds while somebody is slow, and what is left of clients that were killed."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import io
import os
import signal
import socket
import struct
import subprocess
import tarfile
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

from twisted.trial.unittest import SynchronousTestCase

from deploy.docker_api import call, connection
from deploy.processes import wait_until
from tests.engine.clients import remove_container, shared_box
from tests.engine.dockerd import DockerCLI, client_environment, docker_clis, engine
from tests.engine.guarded import Guarded, scratch

MEGABYTE = 1024 * 1024
LARGE = 220 * MEGABYTE
ENOUGH = 64 * MEGABYTE
"""More than the kernel's buffers take between an Engine and a client; an image has the larger size."""

MOST = 4 * MEGABYTE
"""Growth that is allowed; the streams themselves are allowed less than one of them each."""


SETTINGS = {"engine": "pool = 0", "limits": "handshake_timeout = 3\nhead_timeout = 3"}


class Growth:
    """How much more memory a process came to hold, at most, than it did at the start (VmHWM of proc(5))."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        Path(f"/proc/{pid}/clear_refs").write_text("5", "ascii")
        self._begin = self._peak()

    def _peak(self) -> int:
        for line in Path(f"/proc/{self._pid}/status").read_text("ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("the defender is gone")

    @property
    def bytes(self) -> int:
        return self._peak() - self._begin


def settled(count: Callable[[], int], patience: float = 20) -> int:
    """Wait until a count has stayed the same, above 0, ten times in a row, and return it."""
    same, last = 0, -1
    deadline = time.monotonic() + patience
    while same < 10:
        assert time.monotonic() < deadline, f"still changing: {last}"
        time.sleep(0.05)
        now = count()
        same, last = (same + 1 if now == last and now > 0 else 0), now
    return last


def unread(pipe: io.BufferedReader) -> int:
    """Return how many bytes wait in a pipe."""
    return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))[0])


@contextlib.contextmanager
def engine_halted() -> Iterator[None]:
    """Stop the shared Engine in its tracks for a while."""
    process = engine().process()
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


class OwnDefenderCase(SynchronousTestCase):
    """A defender of each class's own, which keeps no idle connection to the Engine."""

    __test__ = False
    defender: ClassVar[Guarded]

    @classmethod
    def setUpClass(cls) -> None:
        cls.defender = Guarded(settings=SETTINGS).start()

    @classmethod
    def tearDownClass(cls) -> None:
        cls.defender.stop()

    @property
    def cli(self) -> DockerCLI:
        return docker_clis()[-1]

    def started(
        self, *arguments: str, environment: dict[str, str] | None = None, stdin: int = subprocess.PIPE
    ) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [str(self.cli.path), *arguments],
            env=environment or self.defender.tls(),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

        def end() -> None:
            child.kill()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
            child.wait(20)

        self.addCleanup(end)
        return child


@functools.cache
def tar_file(size: int) -> Path:
    """Return a tar file with so many random bytes, made once."""
    file = scratch() / f"random-{size}.tar"
    with tarfile.open(file, "w") as archive, open("/dev/urandom", "rb") as source:
        member = tarfile.TarInfo("random")
        member.size = size
        archive.addfile(member, source)
    return file


class SlownessTests(OwnDefenderCase):
    """One side does not read while the other has more to say than anybody should hold."""

    __test__ = True

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        direct = client_environment(engine().address)
        docker_clis()[-1].run("import", str(tar_file(LARGE)), "large", environment=direct)
        # What Python, OpenSSL and the allocator take once is taken now.
        for environment in (cls.defender.tls(), cls.defender.unix()):
            for arguments in (("save", "busybox"), ("exec", "-i", shared_box(), "cat")):
                docker_clis()[-1].run(*arguments, environment=environment, stdin=b"x" * MEGABYTE)

    @classmethod
    def tearDownClass(cls) -> None:
        call(connection(engine().address), "DELETE", "/images/large")
        super().tearDownClass()

    def assert_bounded(self, growth: Growth, what: str) -> None:
        self.assertLess(growth.bytes, MOST, f"{what}: grew by {growth.bytes / MEGABYTE:.1f} MiB")

    def test_a_slow_reader_of_an_image(self) -> None:
        for name, environment in (("tls", self.defender.tls()), ("unix", self.defender.unix())):
            growth = Growth(self.defender.pid)
            saving = self.started("save", "large", environment=environment)
            assert saving.stdout is not None
            digest, size = hashlib.sha256(), 0
            settled(lambda pipe=saving.stdout: unread(pipe))  # type: ignore[misc]
            self.assert_bounded(growth, f"{name}, nothing is read")
            while part := saving.stdout.read(MEGABYTE):
                size += len(part)
                digest.update(part)
                if size in (20 * MEGABYTE, 60 * MEGABYTE):
                    settled(lambda pipe=saving.stdout: unread(pipe))  # type: ignore[misc]
            self.assertEqual(saving.wait(20), 0)
            self.assertGreater(size, LARGE)
            self.assert_bounded(growth, f"{name}, all was read")

    def test_a_slow_reader_of_a_stream(self) -> None:
        for name, environment in (("tls", self.defender.tls()), ("unix", self.defender.unix())):
            growth = Growth(self.defender.pid)
            reading = self.started(
                "exec", shared_box(), "head", "-c", str(ENOUGH), "/dev/zero", environment=environment
            )
            assert reading.stdout is not None
            settled(lambda pipe=reading.stdout: unread(pipe))  # type: ignore[misc]
            self.assert_bounded(growth, f"{name}, nothing is read")
            size = 0
            while part := reading.stdout.read(MEGABYTE):
                size += len(part)
            self.assertEqual(size, ENOUGH)
            self.assert_bounded(growth, f"{name}, all was read")

    def test_an_engine_that_does_not_read_an_upload(self) -> None:
        for name, environment in (("tls", self.defender.tls()), ("unix", self.defender.unix())):
            growth = Growth(self.defender.pid)
            with tar_file(ENOUGH).open("rb") as file:
                loading = self.started(
                    "import", "-", f"loaded-{name}", environment=environment, stdin=file.fileno()
                )
                settled_at = self.position(loading.pid, 5 * MEGABYTE)
                with engine_halted():
                    settled(settled_at)
                    self.assert_bounded(growth, f"{name}, the Engine is stopped")
                self.assertEqual(loading.wait(60), 0)
            self.assert_bounded(growth, f"{name}, all was sent")
            call(connection(engine().address), "DELETE", f"/images/loaded-{name}")

    def test_an_engine_that_does_not_read_a_stream(self) -> None:
        for name, environment in (("tls", self.defender.tls()), ("unix", self.defender.unix())):
            growth = Growth(self.defender.pid)
            with tar_file(ENOUGH).open("rb") as file:
                arguments = ("exec", "-i", shared_box(), "sha256sum")
                sending = self.started(*arguments, environment=environment, stdin=file.fileno())
                settled_at = self.position(sending.pid, 5 * MEGABYTE)
                with engine_halted():
                    settled(settled_at)
                    self.assert_bounded(growth, f"{name}, the Engine is stopped")
                assert sending.stdout is not None
                self.assertEqual(sending.stdout.read().split()[0].decode(), self.digest())
                self.assertEqual(sending.wait(60), 0)
            self.assert_bounded(growth, f"{name}, all was sent")

    def position(self, pid: int, begin: int) -> Callable[[], int]:
        """Wait until a process has read so much of its standard input, and return how to ask for more."""

        def read() -> int:
            text = Path(f"/proc/{pid}/fdinfo/0").read_text("ascii")
            return int(text.split("pos:")[1].split()[0])

        self.assertTrue(wait_until(lambda: read() > begin, 20, 0.001))
        return read

    def digest(self) -> str:
        with tar_file(ENOUGH).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


class KilledClientTests(OwnDefenderCase):
    """Clients that end without a word, wherever they are."""

    __test__ = True

    def test_no_descriptor_is_left(self) -> None:
        direct = client_environment(engine().address)
        run = ("run", "-d", "--network=none", "--name=killed", "busybox", "sleep", "1000000")
        self.addCleanup(remove_container, box := "killed")
        self.cli.run(*run, environment=direct)
        for environment in (self.defender.tls(), self.defender.unix()):
            self.cli.run("ps", environment=environment)
        self.assertTrue(wait_until(lambda: self.clients()["connections"] == 0, 20))
        baseline = settled(self.defender.descriptors)
        with tar_file(ENOUGH).open("rb") as file:
            beginning = file.read(MEGABYTE)
        clients = []
        for environment in (self.defender.tls(), self.defender.unix()):
            # In the middle of an upload, of an answer that nobody reads, of a stream both ways, of a stream
            # whose input has ended and that is silent, and of a request that waits.
            upload = self.started("import", "-", "never", environment=environment)
            answer = self.started("export", box, environment=environment)
            stream = self.started("exec", "-i", box, "cat", environment=environment)
            script = "cat; echo end; until [ -e /go ]; do usleep 20000; done; echo late; exec sleep 1000000"
            silent = self.started("exec", "-i", box, "sh", "-c", script, environment=environment)
            waiting = self.started("wait", box, environment=environment)
            for child in (upload, stream):
                assert child.stdin is not None
                child.stdin.write(beginning)
                child.stdin.flush()
            for child in (answer, stream):
                assert child.stdout is not None
                child.stdout.read(1000)
            assert silent.stdin is not None
            assert silent.stdout is not None
            silent.stdin.close()
            self.assertEqual(silent.stdout.readline(), b"end\n")
            clients += [upload, answer, stream, silent, waiting]
        # Before a handshake, in the middle of one, and in the middle of a request's head.
        for hello in (b"", b"\x16\x03\x01\x02\x00\x01"):
            link = socket.create_connection(("127.0.0.1", self.defender.port))
            link.sendall(hello)
            self.addCleanup(link.close)
        half = socket.socket(socket.AF_UNIX)
        half.connect(str(self.defender.socket))
        half.sendall(b"GET /v1.41/info HTT")
        self.addCleanup(half.close)
        self.assertTrue(wait_until(lambda: self.clients()["streams"] == 4, 20))
        for child in clients:
            child.kill()
        # A client that had ended its input and was killed is found over TCP when there is something to say to
        # it, or by a probe, a minute later, when its kernel has forgotten it.
        self.cli.run("exec", box, "touch", "/go", environment=direct)
        ended = wait_until(lambda: self.clients() == {"connections": 0, "streams": 0}, 40)
        self.assertTrue(ended, self.defender.status())
        self.assertEqual(self.defender.status()["engine"]["connections"], 0)
        self.assertEqual(settled(self.defender.descriptors), baseline)

    def clients(self) -> dict[str, int]:
        return dict(self.defender.status()["clients"])
