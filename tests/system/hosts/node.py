"""One machine of a test network: namespaces of its own for network, mounts and host name.

The namespaces have no name anywhere. They live as long as a process in them, first of all the one that holds
them, and nothing has to be removed from the machine when the last one is gone, however it ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import select
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from deploy.engine import SYSTEM_PATH, system_tool
from deploy.processes import Process
from tests.engine.dockerd import DockerCLI, docker_clis
from tests.engine.terminal import Terminal

PATIENCE = 30.0
KINDS = ("net", "mnt", "uts")
"""The namespaces of a node, as /proc/PID/ns calls them."""

_CLONE_NEWNET = 0x40000000  # sched.h
_HOLD = """\
echo "$1" > /proc/sys/kernel/hostname && mount --bind "$2" /etc/hosts && ip link set lo up && echo ready &&
exec cat
"""


@functools.cache
def tool(name: str) -> str:
    """Return the path of a system's program; a command's own environment may have another PATH.

    Raises:
        AssertionError: when it is not installed.
    """
    path = shutil.which(name, path=SYSTEM_PATH)
    assert path is not None, f"{name} is not installed"
    return path


def until_death(signal_name: str, *command: str) -> list[str]:
    """Return a command to which a signal comes by itself when the process that started it is gone."""
    return [tool("setpriv"), f"--pdeathsig={signal_name}", "--", *command]


class Node:
    """A machine without an Engine; `start` before all else.

    Args:
        name: its host name; one word of at most ten letters and digits.
        address: its IPv4 address in the test network.
        directory: where its files are; the one in which its programs are started.
    """

    def __init__(self, name: str, address: str, directory: Path) -> None:
        self.name = name
        self.address = address
        self.directory = directory
        self._holder: subprocess.Popen[bytes] | None = None

    # -- its namespaces

    @property
    def pid(self) -> int:
        """Of the process that holds the namespaces."""
        assert self._holder is not None, f"{self.name} was not started"
        return self._holder.pid

    @property
    def started(self) -> bool:
        return self._holder is not None

    def start(self, hosts_file: Path) -> None:
        """Make the namespaces, with the loopback up.

        Args:
            hosts_file: what programs of this node find at /etc/hosts.

        Raises:
            AssertionError: when the kernel refuses.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        unshare = [tool("unshare"), "--net", "--uts", "--mount", "--propagation", "private", "--"]
        self._holder = subprocess.Popen(
            until_death("KILL", *unshare, tool("sh"), "-c", _HOLD, "sh", self.name, str(hosts_file)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=self.directory,
            env={"PATH": SYSTEM_PATH},
            start_new_session=True,
        )
        assert self._holder.stdout is not None
        came = select.select([self._holder.stdout], [], [], PATIENCE)[0] and self._holder.stdout.readline()
        assert came == b"ready\n", f"{self.name} has no namespaces: it needs root, unshare and iproute2"

    def stop(self) -> None:
        """End every process that is left in the namespaces, each by its pid, and with the last one them."""
        holder, self._holder = self._holder, None
        if holder is None:
            return
        for process in processes_in(namespaces_of(holder.pid)):
            if process.pid != holder.pid:
                process.end(2)
        holder.kill()
        holder.wait(PATIENCE)
        for pipe in (holder.stdin, holder.stdout):
            assert pipe is not None
            pipe.close()

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Have this thread's new sockets in the node's network; they stay there when it has left again."""
        with (
            open("/proc/thread-self/ns/net", "rb") as home,
            open(f"/proc/{self.pid}/ns/net", "rb") as there,
        ):
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def seen(self, path: Path) -> Path:
        """Return a path that leads where `path` leads on the node, which may have mounts of its own."""
        return Path(f"/proc/{self.pid}/root{path}")

    # -- its programs

    def command(self, *command: str) -> list[str]:
        """Return the command that runs a command here: it becomes that program, with the same pid."""
        return [tool("nsenter"), "-t", str(self.pid), "-n", "-m", "-u", "-w", "--", *command]

    def run(
        self,
        *command: str,
        environment: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        check: bool = True,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program here to its end and return what it wrote.

        Args:
            command: program and arguments.
            environment: all of it; by default nothing but a PATH.
            stdin: what it reads, followed by the end of input.
            check: fail, with what it wrote, when the exit code is not 0.
            timeout: seconds until it is killed and the test fails.
        """
        done = subprocess.run(
            until_death("KILL", *self.command(*command)),
            input=stdin,
            capture_output=True,
            timeout=timeout,
            env=environment or {"PATH": SYSTEM_PATH, "LC_ALL": "C"},
            check=False,
        )
        assert not (check and done.returncode), (
            f"{' '.join(command)} on {self.name} ended with {done.returncode}\n"
            f"{done.stdout.decode('utf-8', 'replace')}{done.stderr.decode('utf-8', 'replace')}"
        )
        return done

    def docker(
        self,
        *arguments: str,
        environment: Mapping[str, str],
        cli: DockerCLI | None = None,
        check: bool = True,
    ) -> tuple[int, str]:
        """Run a docker command here; return its exit code and all that it said, without outer white space.

        Args:
            arguments: after ``docker``.
            environment: see `tests.engine.dockerd.client_environment`.
            cli: the newest one by default.
            check: fail, with what it said, when the exit code is not 0.
        """
        cli = cli or docker_clis()[-1]
        done = self.run(str(cli.path), *arguments, environment=environment, check=check)
        return done.returncode, (done.stdout + done.stderr).decode().strip()

    def terminal(self, *arguments: str, environment: Mapping[str, str]) -> Terminal:
        """Run a docker command here under a terminal; whoever asks has to `end` it."""
        command = self.command(str(docker_clis()[-1].path), *arguments)
        return Terminal(until_death("KILL", *command), environment)

    def reaches(self, address: str, port: int, patience: float = 1.0) -> bool:
        """Tell whether a TCP connection from here comes about within `patience` seconds."""
        try:
            with self.entered(), socket.create_connection((address, port), timeout=patience):
                return True
        except OSError:
            return False

    # -- its disks

    def mount_small_disk(self, directory: Path, size: str) -> None:
        """Mount a small empty file system, such as one of ``1m``, that only this node sees."""
        directory.mkdir(parents=True, exist_ok=True)
        options = f"size={size},mode=0700"
        must(*self.command(tool("mount"), "-t", "tmpfs", "-o", options, "tmpfs", str(directory)))

    @contextlib.contextmanager
    def full(self, directory: Path) -> Iterator[None]:
        """Take all the room that is left on a small disk meanwhile, as somebody else's files would."""
        ballast = self.seen(directory) / "ballast"
        try:
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:  # until ENOSPC
                while True:
                    file.write(bytes(4096))
            yield
        finally:
            ballast.unlink()


def must(*command: str) -> str:
    """Run a system's tool, and return what it wrote.

    Raises:
        AssertionError: with its words, when it fails.
    """
    done = system_tool(*command)
    assert not done.returncode, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout


def processes_in(namespaces: frozenset[str]) -> Iterator[Process]:
    """Yield the processes that are in any of these namespaces, those of this process left out."""
    namespaces -= namespaces_of(os.getpid())  # the whole machine is in them
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            process = Process.of(int(entry.name))
            if process is not None and namespaces & namespaces_of(process.pid):
                yield process


def namespaces_of(pid: int) -> frozenset[str]:
    """Return the namespaces of a process, such as ``net:[4026532212]``; none when it is gone."""
    names = set()
    for kind in KINDS:
        with contextlib.suppress(OSError):  # it is gone
            names.add(os.readlink(f"/proc/{pid}/ns/{kind}"))
    return frozenset(names)


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")
