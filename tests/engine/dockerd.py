"""A real Engine and the real docker CLIs, for tests that mean it.

One Engine serves the whole test process. It starts when first asked for, in a network namespace of its
own and below a directory of its own, and ends with the process; the next run clears what a killed one left.
Nothing here skips: where no Engine can be had, the test fails and says what is missing.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.engine import SYSTEM_PATH, OwnEngine
from deploy.processes import Process

_PREFIX = "dfleet-test-engine-"
_HOME = Path("/tmp")


@functools.cache
def engine() -> OwnEngine:
    """Return this process's Engine, which answers and has the images ``busybox`` and ``defender/hello``.

    Raises:
        deploy.engine.EngineError: saying why there can be none.
    """
    clear_stale()
    myself = Process.of(os.getpid())
    assert myself is not None
    own = OwnEngine(_HOME / f"{_PREFIX}{myself.pid}-{myself.started}", isolated=True, ends_with_parent=True)
    atexit.register(_end, own)
    own.start()
    return own


def clear_stale() -> None:
    """End the Engines whose test process is gone, and remove their directories."""
    for directory in _HOME.glob(_PREFIX + "*"):
        owner = re.fullmatch(r"(\d+)-(\d+)", directory.name.removeprefix(_PREFIX))
        if owner is not None and not Process(int(owner[1]), int(owner[2])).alive:
            _end(OwnEngine(directory, isolated=True))


def _end(own: OwnEngine) -> None:
    own.stop()
    shutil.rmtree(own.root, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class DockerCLI:
    """One docker client program.

    Attributes:
        path: of the program.
        version: ``(20, 10, 24)``.
    """

    path: Path
    version: tuple[int, ...]

    def run(
        self,
        *arguments: str,
        environment: Mapping[str, str],
        stdin: bytes = b"",
        check: bool = True,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run it to its end and return what it wrote.

        Args:
            arguments: after ``docker``.
            environment: see `client_environment`.
            stdin: what it reads, followed by the end of input.
            check: fail, with what it wrote, when the exit code is not 0.
            timeout: seconds until it is killed and the test fails.
        """
        done = subprocess.run(
            [self.path, *arguments],
            input=stdin,
            capture_output=True,
            timeout=timeout,
            env=environment,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(
                f"docker {' '.join(arguments)} ended with {done.returncode}\n"
                f"{done.stdout.decode('utf-8', 'replace')}{done.stderr.decode('utf-8', 'replace')}"
            )
        return done


@functools.cache
def docker_clis() -> tuple[DockerCLI, ...]:
    """Return the different docker clients of this host, oldest first.

    Raises:
        AssertionError: when there is none.
    """
    found: dict[tuple[int, ...], DockerCLI] = {}
    for directory in dict.fromkeys([*os.environ.get("PATH", "").split(":"), *SYSTEM_PATH.split(":")]):
        path = Path(directory) / "docker"
        if directory and os.access(path, os.X_OK) and path.is_file():
            text = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
            number = re.match(r"Docker version (\d+(?:\.\d+)*)", text)
            if number is not None:
                version = tuple(map(int, number[1].split(".")))
                found.setdefault(version, DockerCLI(path, version))
    assert found, "there is no docker client here: on Debian or Ubuntu, apt-get install docker.io"
    return tuple(found[version] for version in sorted(found))


@functools.cache
def _empty_home() -> str:
    home = tempfile.mkdtemp(prefix="dfleet-home-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return home


def client_environment(address: str, certificates: Path | None = None) -> dict[str, str]:
    """Return the environment of a client that speaks with this address, and nothing else of ours.

    Args:
        address: ``unix://PATH`` or ``tcp://HOST:PORT``, for DOCKER_HOST.
        certificates: directory of ca.pem, cert.pem and key.pem for tcp.
    """
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "LANG", "TERM", "TMPDIR"}}
    environment = {**kept, "HOME": _empty_home(), "DOCKER_HOST": address}
    if certificates is not None:
        environment |= {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(certificates)}
    return environment
