"""One epoll descriptor for all sockets of the data path, which the reactor sees as a single reader.

Twisted's own dispatch costs more than what it calls: a logging context, a look at the descriptor and a walk
through three containers for every event. `Poll` pays the reactor's price once for a batch of events and calls
``doRead`` and ``doWrite`` in a tight loop. It stands in for the reactor wherever descriptors are added and
removed, and passes time through, so that a stream works with either.

`Poll.lead` goes one step further and turns the nesting around: the reactor waits in this epoll, which holds
the reactor's own as one descriptor among others. A wake-up is one system call then, and the reactor's price
is paid only when one of its own descriptors has something. That matters where connections are few, and so
are the events of a batch.

It keeps the reactor's promises: an exception ends the descriptor that raised it and nothing else, a hang-up
that comes without input is told with ``connectionLost``, and the end of the reactor is passed on. Beyond
them, an event of a descriptor that was closed in the same batch never reaches the one that took its number.
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Callable
from typing import Any

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

EVENTS = 64
"""Events taken from the kernel at once, and so dispatched before the reactor's other work has its turn."""

_IN = select.EPOLLIN
_OUT = select.EPOLLOUT
_LOST = select.EPOLLHUP | select.EPOLLERR
_DONE = Failure(ConnectionDone())
_HUNG_UP = Failure(ConnectionLost())


@implementer(IReadDescriptor)
class Poll:
    """What streams, acceptors and connection attempts take in place of the reactor.

    Unless it leads, it is one of the reactor's readers as long as there is a descriptor in it.

    What ``doRead`` and ``doWrite`` return is not looked at: a descriptor closes itself.

    Attributes:
        callLater, seconds: the reactor's own.
    """

    log = Logger()

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.callLater: Callable[..., Any] = reactor.callLater
        self.seconds: Callable[[], float] = reactor.seconds
        self._epoll = select.epoll()
        self._selectables: dict[int, Any] = {}
        self._interest: dict[int, int] = {}
        self._fresh: set[int] = set()
        self._outer = -1  # the reactor's own epoll, while this one leads

    def lead(self) -> None:
        """Have the reactor wait here. Does nothing if it is not epoll's, or if another `Poll` leads it."""
        outer = getattr(self._reactor, "_poller", None)
        if not isinstance(outer, select.epoll) or "doIteration" in vars(self._reactor):
            return
        if self._selectables:
            self._reactor.removeReader(self)
        self._outer = outer.fileno()
        self._epoll.register(self._outer, _IN)
        self._reactor.doIteration = self._iterate

    def follow(self) -> None:
        """Undo `lead`."""
        if self._outer != -1:
            del self._reactor.doIteration
            self._epoll.unregister(self._outer)
            self._outer = -1
            if self._selectables:
                self._reactor.addReader(self)

    # What takes the place of the reactor.

    def addReader(self, reader: Any) -> None:
        """Call ``reader.doRead`` when there is input, until `removeReader`."""
        self._add(reader, _IN)

    def addWriter(self, writer: Any) -> None:
        """Call ``writer.doWrite`` when there is room for output, until `removeWriter`."""
        self._add(writer, _OUT)

    def removeReader(self, reader: Any) -> None:
        """Stop watching for input."""
        self._remove(reader, _IN)

    def removeWriter(self, writer: Any) -> None:
        """Stop watching for room."""
        self._remove(writer, _OUT)

    def getReaders(self) -> list[Any]:
        """What is watched for input."""
        return [self._selectables[fd] for fd, flags in self._interest.items() if flags & _IN]

    def getWriters(self) -> list[Any]:
        """What is watched for room."""
        return [self._selectables[fd] for fd, flags in self._interest.items() if flags & _OUT]

    def _add(self, selectable: Any, flag: int) -> None:
        fd = selectable.fileno()
        before = self._interest.get(fd, 0)
        if not before:
            self._epoll.register(fd, flag)
            if not self._selectables and self._outer == -1:
                self._reactor.addReader(self)
            self._selectables[fd] = selectable
            self._fresh.add(fd)
        elif not before & flag:
            self._epoll.modify(fd, before | flag)
        self._interest[fd] = before | flag

    def _remove(self, selectable: Any, flag: int) -> None:
        fd = selectable.fileno()
        if self._selectables.get(fd) is not selectable:
            fd = self._number_of(selectable)
            if fd == -1:
                return
        left = self._interest[fd] & ~flag
        if left:
            if left != self._interest[fd]:
                self._epoll.modify(fd, left)
            self._interest[fd] = left
        else:
            self._forget(fd)

    def _number_of(self, selectable: Any) -> int:
        """The number under which a descriptor that was closed meanwhile is kept here, -1 if under none."""
        for fd, known in self._selectables.items():
            if known is selectable:
                return fd
        return -1

    def _forget(self, fd: int) -> None:
        del self._selectables[fd], self._interest[fd]
        with contextlib.suppress(OSError):  # closed already, which took it out
            self._epoll.unregister(fd)
        if not self._selectables and self._outer == -1:
            self._reactor.removeReader(self)

    # What the reactor calls.

    def fileno(self) -> int:
        return self._epoll.fileno()

    def logPrefix(self) -> str:
        return "-"

    def doRead(self) -> None:
        """There is something to be told, and nothing to wait for."""
        self._iterate(0)

    def _iterate(self, timeout: float | None) -> None:
        """Wait ``timeout`` seconds at most, without end if None, and pass on what the kernel has to tell."""
        events = self._epoll.poll(timeout, EVENTS)
        selectables = self._selectables
        fresh = self._fresh
        fresh.clear()
        for fd, event in events:
            selectable: Any = selectables.get(fd)
            # A number that came into use in this batch is not the descriptor that the event is about; if
            # there is an event of its own, the kernel tells it again in the next batch.
            if selectable is None or (fresh and fd in fresh):
                if fd == self._outer:
                    self._reactor.doPoll(0)
                continue
            if event & _LOST and not event & _IN:
                self._hung_up(fd, selectable)
                continue
            try:
                if event & _IN:
                    selectable.doRead()
                    if event & _OUT and fd in selectables and fd not in fresh:
                        selectable.doWrite()
                else:
                    selectable.doWrite()
            except BaseException:  # noqa: BLE001 - a bug in one descriptor must not end the others
                self._failed(selectable)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor is ending: so is everything in here."""
        lost = list(self._selectables.values())
        for fd in list(self._selectables):
            self._forget(fd)
        for selectable in lost:
            try:
                selectable.connectionLost(reason)
            except BaseException:  # noqa: BLE001 - the others must hear it too
                self.log.failure("connectionLost raised")

    def _hung_up(self, fd: int, selectable: Any) -> None:
        """A hang-up without input: told as the reactor tells it, by whether input was waited for."""
        reason = _DONE if self._interest[fd] & _IN else _HUNG_UP
        self._forget(fd)
        try:
            selectable.connectionLost(reason)
        except BaseException:  # noqa: BLE001 - as in doRead
            self.log.failure("connectionLost raised")

    def _failed(self, selectable: Any) -> None:
        """Called in the handler of an exception that a descriptor raised."""
        failure = Failure()
        self.log.failure("a descriptor raised; it is closed", failure)
        fd = self._number_of(selectable)
        if fd != -1:
            self._forget(fd)
        try:
            selectable.connectionLost(failure)
        except BaseException:  # noqa: BLE001 - as in doRead
            self.log.failure("connectionLost raised")
