"""What is left of a test network: looked for on the machine itself, not in our own books."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from deploy.engine import control_groups, mounts_below
from deploy.processes import command_line, processes_naming, wait_until
from tests.system.hosts.node import namespaces_of, processes_in

PATIENCE = 20.0


class Remains:
    """Knows what belongs to a test network, to look for it once that is gone; a context manager.

    It keeps the namespaces meanwhile: the kernel gives the number of one that is gone to the next.

    Args:
        directory: of all its files.
        pids: of the processes that hold its nodes' namespaces.
        containers: full ids of all containers that its Engines had.
        interfaces: names of the bridge and its ports.
    """

    def __init__(
        self, directory: Path, pids: Iterable[int], containers: Iterable[str], interfaces: Iterable[str]
    ) -> None:
        self._directory = directory
        self._containers = frozenset(containers)
        self._interfaces = frozenset(interfaces)
        self._kept = {
            name: os.open(f"/proc/{pid}/ns/{name.partition(':')[0]}", os.O_RDONLY)
            for pid in pids
            for name in namespaces_of(pid) - namespaces_of(os.getpid())
        }

    def __enter__(self) -> Remains:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._kept.values():
            os.close(descriptor)

    def wait(self, patience: float = PATIENCE) -> list[str]:
        """Wait until nothing is left, the directory apart; return what is, after `patience` seconds."""
        wait_until(lambda: not self.found(), patience)
        return self.found()

    def found(self) -> list[str]:
        """Return what is there now, in words, its directory apart."""
        return [*self._processes(), *self._held(), *self._mounts(), *self._links()]

    def _processes(self) -> Iterator[str]:
        for process in {*processes_in(frozenset(self._kept)), *processes_naming(self._directory)}:
            yield f"process {process.pid}: {' '.join(command_line(process.pid))}"
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                groups = control_groups(int(entry.name))
                if any(container in groups for container in self._containers):
                    yield f"process {entry.name} of a container: {' '.join(command_line(int(entry.name)))}"

    def _held(self) -> Iterator[str]:
        """Yield the descriptors by which somebody keeps one of the namespaces."""
        own = {f"/proc/{os.getpid()}/fd/{descriptor}" for descriptor in self._kept.values()}
        for folder in Path("/proc").glob("[0-9]*/fd"):
            try:
                for descriptor in folder.iterdir():
                    if os.readlink(descriptor) in self._kept and str(descriptor) not in own:
                        yield f"namespace held by {descriptor}"
            except OSError:  # the process or the descriptor is gone
                continue

    def _mounts(self) -> Iterator[str]:
        for point in mounts_below(self._directory):
            yield f"mount at {point}"
        for line in Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
            fields = line.split(" ")
            if fields[3] in self._kept:
                yield f"namespace {fields[3]} mounted at {fields[4]}"

    def _links(self) -> Iterator[str]:
        for name in sorted(self._interfaces):
            if Path("/sys/class/net", name).exists():
                yield f"network interface {name}"
