"""Simulated defenders in one process: reads commands as lines of JSON, answers each with one.

    python -m tests.bench.fleet.swarm DIRECTORY FIRST COUNT

Commands, by their ``do``:

* ``connect`` {port, count, at_once}: connect the first `count` that are not connected, so many at a time.
* ``await`` {what, stream, count, timeout}: wait until `count` are connected (``open``), have acknowledged a
  stream since ``forget`` (``acks``), or until so many events are stored (``stored``).
* ``quiet`` {seconds, timeout}: wait until nothing was heard for so long.
* ``forget``: forget what was heard so far.
* ``record`` {count, each}: make `each` batches of events for the first `count`; ``ship`` sends them.
* ``drip`` {count, rate}: let the first `count` record so many events a second each; rate 0 ends it.
* ``mark``: let the first one record one event that is looked for; answers with the time.
"""

from __future__ import annotations

import json
import os
import resource
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from tests.bench.fleet.link import Link, News, client_context
from tests.bench.fleet.population import read_key, read_population
from tests.bench.fleet.records import MARKED, Recorder

#: Seconds between two batches of a defender that records all the time.
DRIP = 0.25
TURN = 0.02


class Swarm:
    """See the module."""

    def __init__(self, directory: Path, first: int, count: int) -> None:
        population = read_population(directory, first, count)
        key = read_key(directory)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self.news = News()
        self._key = key
        self._context = client_context(population)
        self._epoll = select.epoll()
        self._by_descriptor: dict[int, Link] = {}
        self._links = [
            Link(each, _address(first + number), self.news, self._watch)
            for number, each in enumerate(population.defenders)
        ]
        self._batches: dict[Link, list[Any]] = {}
        self._dripping: list[Link] = []
        self._drop = 0
        self._next_drip = 0.0
        self._input = b""

    def run(self) -> None:
        """Serve commands until the input ends."""
        os.set_blocking(0, False)
        self._epoll.register(0, select.EPOLLIN)
        pending: Iterator[dict[str, Any] | None] | None = None
        while True:
            commands = self._turn()
            if commands is None:
                return
            for command in commands:
                pending = self._do(command)
            if pending is not None:
                answer = next(pending)
                if answer is not None:
                    print(json.dumps(answer), flush=True)
                    pending = None

    def _turn(self) -> list[dict[str, Any]] | None:
        """Serve what is ready; gives commands that came, None at the end of the input."""
        commands: list[dict[str, Any]] = []
        for descriptor, _ in self._epoll.poll(TURN, 512):
            if descriptor == 0:
                data = b""
                with suppress(BlockingIOError):
                    data = os.read(0, 65536)
                if not data:
                    return None
                *lines, self._input = (self._input + data).split(b"\n")
                commands += [json.loads(line) for line in lines]
            elif link := self._by_descriptor.get(descriptor):
                link.ready()
        if self._dripping and time.monotonic() >= self._next_drip:
            self._next_drip = max(self._next_drip + DRIP, time.monotonic())
            for link in self._dripping:
                assert link.recorder is not None
                link.record([link.recorder.batch(self._drop)])
        return commands

    def _watch(self, link: Link, output: bool | None) -> None:
        """Look at a link's socket; None: not any more."""
        assert link.sock is not None
        descriptor = link.sock.fileno()
        if output is None:
            if self._by_descriptor.pop(descriptor, None) is not None:
                self._epoll.unregister(descriptor)
            return
        events = select.EPOLLIN | (select.EPOLLOUT if output else 0)
        if descriptor in self._by_descriptor:
            self._epoll.modify(descriptor, events)
        else:
            self._by_descriptor[descriptor] = link
            self._epoll.register(descriptor, events)

    # -- commands: each gives None until it is done, then its answer

    def _do(self, command: dict[str, Any]) -> Iterator[dict[str, Any] | None]:
        name = command.pop("do")
        doing: Callable[..., Iterator[dict[str, Any] | None]] = getattr(self, f"do_{name}")
        return doing(**command)

    def do_connect(
        self, port: int, count: int, at_once: int = 256, timeout: float = 300
    ) -> Iterator[dict[str, Any] | None]:
        """Connect; those that fail are tried again."""
        end = time.monotonic() + timeout
        began = time.monotonic()
        chosen = self._links[:count]
        while time.monotonic() < end:
            waiting = [link for link in chosen if not link.is_open]
            if not waiting:
                break
            under_way = sum(link.sock is not None for link in waiting)
            for link in waiting:
                if under_way >= at_once:
                    break
                if link.sock is None:
                    link.dial(self._context, self._key, port)
                    under_way += 1
            yield None
        yield {
            "open": sum(link.is_open for link in chosen),
            "seconds": time.monotonic() - began,
            "why": self.news.why,
        }

    def do_await(
        self, what: str, count: int, stream: str = "", timeout: float = 120
    ) -> Iterator[dict[str, Any] | None]:
        """Wait for what is counted."""
        news, end = self.news, time.monotonic() + timeout
        counted: dict[str, Callable[[], int]] = {
            "acks": lambda: len(news.acks.get(stream, ())),
            "stored": lambda: news.stored,
            "closed": lambda: news.closed,
        }
        while counted[what]() < count and time.monotonic() < end:
            yield None
        yield {
            "count": counted[what](),
            "times": news.acks.get(stream, []),
            "stored_at": news.stored_at,
            "why": news.why,
        }

    def do_quiet(self, seconds: float, timeout: float = 60) -> Iterator[dict[str, Any] | None]:
        """Wait until nobody hears anything."""
        end = time.monotonic() + timeout
        while time.monotonic() < min(self.news.heard + seconds, end):
            yield None
        yield {"heard": self.news.heard, "open": sum(link.is_open for link in self._links)}

    def do_forget(self) -> Iterator[dict[str, Any] | None]:
        """Forget."""
        digests = self.news.digests
        self.news.__init__(digests=digests)  # type: ignore[misc]
        yield {}

    def do_record(self, count: int, each: int) -> Iterator[dict[str, Any] | None]:
        """Make events."""
        made = size = 0
        self._batches.clear()
        for link in self._links[:count]:
            recorder = self._recorder(link)
            self._batches[link] = [recorder.batch() for _ in range(each)]
            made += sum(batch.count for batch in self._batches[link])
            size += sum(len(batch.records) for batch in self._batches[link])
            yield None
        yield {"events": made, "bytes": size}

    def do_ship(self) -> Iterator[dict[str, Any] | None]:
        """Send them."""
        began = time.monotonic()
        for link, batches in self._batches.items():
            link.record(batches)
        self._batches.clear()
        yield {"began": began}

    def do_drip(self, count: int, rate: float) -> Iterator[dict[str, Any] | None]:
        """Record all the time."""
        self._drop = max(1, round(rate * DRIP))
        self._dripping = self._links[:count] if rate else []
        for link in self._dripping:
            self._recorder(link)
        self._next_drip = time.monotonic()
        yield {}

    def do_mark(self) -> Iterator[dict[str, Any] | None]:
        """Record one event that somebody waits for."""
        link = self._links[0]
        link.record([self._recorder(link).batch(1, MARKED)])
        yield {"at": time.monotonic()}

    def _recorder(self, link: Link) -> Recorder:
        if link.recorder is None:
            link.recorder = Recorder(link.simulated.name)
        return link.recorder


def _address(number: int) -> str:
    """An address on loopback for each: connections that are not proven are counted by address."""
    number += 1
    return f"127.{1 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def main() -> None:
    """Run as the module says."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    Swarm(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])).run()


if __name__ == "__main__":
    main()
