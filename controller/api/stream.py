"""Answers that go on: the live events of the fleet, and exports.

A stream pulls. It asks the store for the events after a position, writes them, and asks again when the client
has taken them; so what it holds is one batch, however slow the client is, and nothing is dropped: a client
that was cut off goes on from the last position it has seen. What the store no longer has is told as a gap.

Two forms, by what the client accepts: server-sent events (`text/event-stream`, resumed with Last-Event-ID)
and lines of JSON (`application/x-ndjson`, resumed with `?after=`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.web.server import Request
from zope.interface import implementer

from controller.api.metrics import ApiMetrics
from controller.api.ports import Audit, AuditWish, Exporter, PortError
from controller.api.problems import ProblemError
from controller.sinks import csv_rows
from controller.sinks.jsonl import event_line

BATCH: Final = 200
"""Events that are asked for at a time."""

HEARTBEAT: Final = 15.0
"""Seconds without an event after which a sign of life is written."""

RECHECK: Final = 30.0
"""Seconds after which the client's token is looked at again."""

STALL: Final = 60.0
"""Seconds that a client may read nothing."""

_T = TypeVar("_T")


class StalledError(Exception):
    """The client has read nothing for too long."""


def deferred(waiting: Awaitable[_T]) -> Deferred[_T]:
    """What a port gave back, as a Deferred."""
    if isinstance(waiting, Deferred):
        return waiting

    async def run() -> _T:
        return await waiting

    return Deferred.fromCoroutine(run())


def cut_off(request: Request) -> Deferred[None]:
    """Abort the connection of an answer that has begun. The result never fires: nothing ends the answer."""
    channel = request.channel
    if channel is not None:
        channel.forceAbortClient()
    return Deferred()


@implementer(IPushProducer)
class StreamWriter:
    """Writes an answer piece by piece, at the pace of its client."""

    def __init__(self, request: Request, clock: IReactorTime, stall: float = STALL) -> None:
        self._request = request
        self._clock = clock
        self._stall = stall
        self._paused = False
        self._resumed: Deferred[None] | None = None

    def begin(self, content_type: str) -> None:
        """Write the head; from here on there are no other statuses."""
        self._request.setHeader(b"Content-Type", content_type.encode("ascii"))
        # A proxy that collects an answer before it passes it on would hold a stream for ever.
        self._request.setHeader(b"X-Accel-Buffering", b"no")
        self._request.registerProducer(self, True)
        # A channel that is waiting already, for a client that has not read the answer before this one, does
        # not say so again.
        self._paused = bool(getattr(self._request.channel, "_waitingForTransport", False))
        self._request.write(b"")

    def write(self, data: bytes) -> None:
        """Write; `drained` says when there is room for more."""
        if data:
            self._request.write(data)

    async def drained(self) -> None:
        """Return when the client has taken what was written.

        Raises:
            StalledError: it has taken nothing for `stall` seconds.
        """
        if not self._paused:
            return
        resumed = self._resumed = Deferred()
        try:
            await resumed.addTimeout(self._stall, self._clock)
        except DeferredTimeout:
            raise StalledError from None
        finally:
            self._resumed = None

    def end(self) -> None:
        """Let the request be finished."""
        if self._request.channel is not None and self._request.producer is not None:
            self._request.unregisterProducer()

    async def cut(self) -> None:
        """End the connection without the end of the answer, so that nobody takes it for whole.

        It does not return: whoever waits for the answer is cancelled once the connection is gone.
        """
        self.end()
        await cut_off(self._request)

    def pauseProducing(self) -> None:
        """The client is slower than we are."""
        self._paused = True

    def resumeProducing(self) -> None:
        """It has taken what there was."""
        self._paused = False
        if self._resumed is not None and not self._resumed.called:
            self._resumed.callback(None)

    def stopProducing(self) -> None:
        """It is gone; the request tells whoever writes."""


class Form(Protocol):
    """How a stream is written."""

    content_type: str

    def start(self) -> bytes: ...
    def event(self, position: str, event: Mapping[str, Any]) -> bytes: ...
    def alive(self, position: str) -> bytes: ...
    def gap(self, position: str, text: str) -> bytes: ...
    def end(self, text: str) -> bytes: ...


class ServerSentEvents:
    """`text/event-stream` (HTML, section 9.2): `event: audit`, `gap` and `end`; the id is the position."""

    content_type = "text/event-stream; charset=utf-8"

    def start(self) -> bytes:
        """How long a client waits before it comes again."""
        return b"retry: 2000\n\n"

    def event(self, position: str, event: Mapping[str, Any]) -> bytes:
        """One event."""
        return b"id: %b\nevent: audit\ndata: %b\n" % (position.encode("ascii"), event_line(event))

    def alive(self, position: str) -> bytes:
        """An id alone: it moves the client's Last-Event-ID on and dispatches nothing."""
        return b"id: %b\n: alive\n\n" % position.encode("ascii") if position else b": alive\n\n"

    def gap(self, position: str, text: str) -> bytes:
        """What is no longer there."""
        return b"id: %b\nevent: gap\ndata: %b\n\n" % (position.encode("ascii"), _json({"gap": text}))

    def end(self, text: str) -> bytes:
        """Why there is nothing more."""
        return b"event: end\ndata: %b\n\n" % _json({"end": text})


class JsonLines:
    """`application/x-ndjson`: objects of `position` and `event`, `gap`, or neither as a sign of life."""

    content_type = "application/x-ndjson"

    def start(self) -> bytes:
        """Nothing."""
        return b""

    def event(self, position: str, event: Mapping[str, Any]) -> bytes:
        """One event."""
        return b'{"position":%b,"event":%b}\n' % (_json(position), event_line(event).rstrip(b"\n"))

    def alive(self, position: str) -> bytes:
        """How far the store was read."""
        return b'{"position":%b}\n' % _json(position)

    def gap(self, position: str, text: str) -> bytes:
        """What is no longer there."""
        return b"%b\n" % _json({"position": position, "gap": text})

    def end(self, text: str) -> bytes:
        """Why there is nothing more."""
        return b"%b\n" % _json({"end": text})


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


class JsonExport:
    """One event a line; what is missing is told by an object of `gap`."""

    content_type = "application/x-ndjson"

    def head(self) -> bytes:
        """Nothing."""
        return b""

    def line(self, event: Mapping[str, Any]) -> bytes:
        """One event."""
        return event_line(event)

    def gap(self, text: str) -> bytes:
        """What is no longer there."""
        return _json({"gap": text}) + b"\n"


class CsvExport:
    """One event a row, safe to be opened in a spreadsheet."""

    content_type = "text/csv; charset=utf-8; header=present"

    def head(self) -> bytes:
        """The names of the columns."""
        return csv_rows.header()

    def line(self, event: Mapping[str, Any]) -> bytes:
        """One event."""
        return csv_rows.row(event)

    def gap(self, text: str) -> bytes:
        """A row of kind gap, whose detail says it."""
        return csv_rows.row({"kind": "gap", "result": {"detail": text}})


EXPORTERS: Final[Mapping[str, Exporter]] = {"jsonl": JsonExport(), "csv": CsvExport()}


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """How many streams there may be, and when they are looked after; seconds."""

    most: int = 256
    each: int = 8
    heartbeat: float = HEARTBEAT
    recheck: float = RECHECK
    stall: float = STALL


class Streams:
    """All streams that are open."""

    def __init__(self, clock: IReactorTime, metrics: ApiMetrics, limits: StreamLimits) -> None:
        self.clock = clock
        self.limits = limits
        self._metrics = metrics
        self._open: Counter[str] = Counter()
        self._waiting: set[Deferred[None]] = set()
        self._stopping = False

    def stop(self) -> None:
        """End every stream, saying why; an export is cut."""
        self._stopping = True
        for waiting in list(self._waiting):
            waiting.cancel()

    @contextmanager
    def place(self, user: str) -> Iterator[None]:
        """A place for one more stream of a user.

        Raises:
            ProblemError: 429 for the user's own share, 503 if all places are taken.
        """
        retry = {"Retry-After": "10"}
        if self._open[user] >= self.limits.each:
            told = f"{user} has {self.limits.each} streams open, which is the most; close one"
            raise ProblemError(429, "too-many-streams", told, headers=retry)
        if self._open.total() >= self.limits.most:
            told = f"{self.limits.most} streams are open, which is the most; try again later"
            raise ProblemError(503, "too-many-streams", told, headers=retry)
        self._open[user] += 1
        self._metrics.streams += 1
        try:
            yield
        finally:
            self._metrics.streams -= 1
            self._open[user] -= 1
            if not self._open[user]:
                del self._open[user]

    async def follow(
        self,
        request: Request,
        form: Form,
        audit: Audit,
        wanted: AuditWish,
        position: str,
        still_allowed: Callable[[], Awaitable[str]],
    ) -> None:
        """Write the events after a position until the client goes, or `still_allowed` gives a reason to end.

        The first look at the store comes before the head of the answer: a position that was made up is still
        answered as a problem.
        """
        clock, limits = self.clock, self.limits
        batch = await audit.after(position, BATCH, wanted)
        writer = StreamWriter(request, clock, limits.stall)
        writer.begin(form.content_type)
        writer.write(form.start())
        if not batch.items and not batch.lost:
            # Where it begins: whoever loses the link before the first event goes on from here.
            writer.write(form.alive(batch.position))
        checked = spoken = clock.seconds()
        try:
            while True:
                if batch.lost:
                    writer.write(form.gap(batch.position or position, batch.lost))
                if batch.items:
                    writer.write(b"".join(form.event(place, event) for place, event in batch.items))
                if batch.items or batch.lost:
                    spoken = clock.seconds()
                position = batch.position
                await self._until(writer.drained())
                if len(batch.items) < BATCH and not self._stopping:
                    await self._more(audit, position, spoken)
                if self._stopping:
                    writer.write(form.end("the controller is stopping"))
                    return
                now = clock.seconds()
                if now - checked >= limits.recheck:
                    checked = now
                    reason = await still_allowed()
                    if reason:
                        writer.write(form.end(reason))
                        return
                if now - spoken >= limits.heartbeat:
                    spoken = now
                    writer.write(form.alive(position))
                batch = await audit.after(position, BATCH, wanted)
        except StalledError:
            await writer.cut()
        except PortError as error:
            writer.write(form.end(str(error)))
        finally:
            writer.end()

    async def _more(self, audit: Audit, position: str, spoken: float) -> None:
        """Wait for an event, or until it is time for a sign of life."""
        left = max(0.0, spoken + self.limits.heartbeat - self.clock.seconds())
        waiting = maybeDeferred(lambda: deferred(audit.wait(position)))
        try:
            await self._until(waiting.addTimeout(left, self.clock))
        except DeferredTimeout:
            pass

    async def _until(self, event: Awaitable[Any]) -> None:
        """Wait for something, or for the end of all streams."""
        waiting = deferred(event)
        self._waiting.add(waiting)
        try:
            await waiting
        except CancelledError:
            if not self._stopping:
                raise
        finally:
            self._waiting.discard(waiting)

    async def export(
        self, request: Request, exporter: Exporter, audit: Audit, wanted: AuditWish, *, after: str, stop: str
    ) -> None:
        """Write the events between two positions, and end; on trouble the connection is cut instead."""
        batch = await audit.after(after, BATCH, wanted, stop)
        writer = StreamWriter(request, self.clock, self.limits.stall)
        writer.begin(exporter.content_type)
        writer.write(exporter.head())
        try:
            while True:
                if batch.lost:
                    writer.write(exporter.gap(batch.lost))
                writer.write(b"".join(exporter.line(event) for _, event in batch.items))
                await self._until(writer.drained())
                if self._stopping:
                    raise StalledError
                position = batch.position
                if position == stop:
                    break
                batch = await audit.after(position, BATCH, wanted, stop)
                if batch.position == position and not batch.items:
                    break
        except (StalledError, PortError):
            # Nothing in the body could say so in every form; a body without its end does.
            await writer.cut()
        finally:
            writer.end()

    async def lines(self, request: Request, documents: AsyncGenerator[Mapping[str, Any], None]) -> None:
        """Write objects as lines of JSON, and end; on trouble the connection is cut instead.

        What goes wrong before the first of them is still answered as a problem.
        """
        async with aclosing(documents) as found:
            document = await anext(found, None)
            writer = StreamWriter(request, self.clock, self.limits.stall)
            writer.begin("application/x-ndjson")
            try:
                while document is not None:
                    writer.write(_json(document) + b"\n")
                    await self._until(writer.drained())
                    if self._stopping:
                        raise StalledError
                    document = await anext(found, None)
            except (StalledError, PortError):
                await writer.cut()
            finally:
                writer.end()
