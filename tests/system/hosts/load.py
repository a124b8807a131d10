"""Calls that go on and on, on a few hosts at once, while something happens to the fleet."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from types import TracebackType

from deploy.docker_api import ApiError, call, connection
from tests.system.hosts.fleet import FleetDefender

PAUSE = 0.02


class Load:
    """A context manager; what is asked has to be recorded first, and has an effect on nothing.

    Each call names a container of its own that is not there: ``PREFIX-NUMBER``.

    Attributes:
        answered: the names of which the Engine said, through the defender, that they are not there; by host.
        failed: what was said instead, by host.
    """

    def __init__(self, members: Iterable[FleetDefender], prefix: str) -> None:
        self._members = list(members)
        self.prefix = prefix
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self.answered: dict[str, list[str]] = {member.host.name: [] for member in self._members}
        self.failed: dict[str, list[str]] = {member.host.name: [] for member in self._members}

    def __enter__(self) -> Load:
        for member in self._members:
            thread = threading.Thread(target=self._run, args=(member,))
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def count(self) -> int:
        """How many calls were answered on the host that had the fewest."""
        return min(len(names) for names in self.answered.values())

    def _run(self, member: FleetDefender) -> None:
        host = member.host
        number = 0
        while not self._over.is_set():
            number += 1
            name = f"{self.prefix}-{number}"
            try:
                call(
                    connection(f"unix://{host.seen(member.socket)}", timeout=30),
                    "POST",
                    f"/v1.41/containers/{name}/kill",
                )
            except ApiError as error:
                if f"No such container: {name}" in str(error):
                    self.answered[host.name].append(name)
                else:
                    self.failed[host.name].append(str(error))
            self._over.wait(PAUSE)
