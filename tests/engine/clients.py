"""One test for every docker CLI and every way in."""

from __future__ import annotations

import functools
import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from twisted.trial.unittest import SynchronousTestCase

from deploy.docker_api import ApiError, call, connection
from tests.engine.dockerd import DockerCLI, client_environment, docker_clis, engine
from tests.engine.guarded import Guarded, guarded
from tests.engine.terminal import Terminal

_numbers = itertools.count(1)


class ClientCase(SynchronousTestCase):
    """Tests of one docker CLI that comes over one transport; `for_every_client` makes the classes.

    Attributes:
        cli: the client program.
        transport: ``tls`` or ``unix``.
    """

    __test__ = False
    cli: ClassVar[DockerCLI]
    transport: ClassVar[str]

    @property
    def defender(self) -> Guarded:
        return guarded()

    @property
    def environment(self) -> dict[str, str]:
        """The environment of an admin's client."""
        return self.defender.tls() if self.transport == "tls" else self.defender.unix()

    def docker(
        self, *arguments: str, stdin: bytes = b"", check: bool = True, timeout: float = 120
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a docker command through the defender to its end."""
        return self.cli.run(
            *arguments, environment=self.environment, stdin=stdin, check=check, timeout=timeout
        )

    def text(self, *arguments: str, stdin: bytes = b"") -> str:
        """Run a docker command, and return its output without the white space around it."""
        return self.docker(*arguments, stdin=stdin).stdout.decode().strip()

    def direct(self, *arguments: str) -> str:
        """Ask the Engine itself, past the defender."""
        environment = client_environment(engine().address)
        return self.cli.run(*arguments, environment=environment).stdout.decode().strip()

    def started(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a docker command, with pipes; it is killed at the end of the test."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        child: subprocess.Popen[bytes] = subprocess.Popen(
            [str(self.cli.path), *arguments], env=self.environment, **{**pipes, **options}
        )
        self.addCleanup(_end, child)
        return child

    def terminal(self, *arguments: str, size: tuple[int, int] = (24, 80)) -> Terminal:
        """Run a docker command under a terminal."""
        terminal = Terminal([str(self.cli.path), *arguments], self.environment, size)
        self.addCleanup(terminal.end)
        return terminal

    def name(self, kind: str = "thing") -> str:
        """Return a name that no other test uses."""
        return f"{kind}-{next(_numbers)}"

    def container(self, *command: str, options: tuple[str, ...] = ()) -> str:
        """Run a container in the background, without a network, and return its name; it is removed later."""
        name = self.name("box")
        self.addCleanup(remove_container, name)
        self.docker("run", "-d", "--network=none", "--name", name, *options, "busybox", *command)
        return name

    def sleeper(self, *options: str) -> str:
        """Run a container that does nothing until it is killed."""
        return self.container("sleep", "1000000", options=options)

    @property
    def box(self) -> str:
        """A running container that all tests share: nothing may be changed in it."""
        return shared_box()


@functools.cache
def shared_box() -> str:
    environment = client_environment(engine().address)
    docker_clis()[0].run(
        *("run", "-d", "--network=none", "--stop-signal=KILL", "--name", "shared"),
        *("busybox", "sleep", "1000000"),
        environment=environment,
    )
    return "shared"


def remove_container(name: str) -> None:
    """Remove a container, running or not, past the defender; it may be gone."""
    try:
        call(connection(engine().address), "DELETE", f"/containers/{name}?force=1&v=1")
    except ApiError:
        pass


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.kill()
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:
                pass
    child.wait(20)


_Case = TypeVar("_Case", bound=type[ClientCase])


def for_every_client(
    *transports: str, versions: Callable[[tuple[int, ...]], bool] = lambda version: True
) -> Callable[[_Case], _Case]:
    """Make one class of tests for each docker CLI here, of these versions, and each of these transports.

    Raises:
        AssertionError: when no CLI here has such a version.
    """
    clis = [cli for cli in docker_clis() if versions(cli.version)]
    assert clis, "no docker client here is of the versions that are to be tested: install docker.io"

    def make(base: _Case) -> _Case:
        module = sys.modules[base.__module__]
        for cli, transport in itertools.product(clis, transports):
            name = f"{base.__name__}_{'_'.join(map(str, cli.version))}_{transport}"
            attributes = {
                "__module__": base.__module__,
                "__qualname__": name,
                "__doc__": base.__doc__,
                "__test__": True,
                "cli": cli,
                "transport": transport,
            }
            setattr(module, name, type(name, (base,), attributes))
        return base

    return make
