"""The side facing the Engine: one connection, and the pool that keeps connections for reuse.

A `Backend` carries one exchange at a time. It reads the answer strictly, tells its `AnswerReceiver`, and goes
back to the pool only when nothing of this exchange can be left on the wire: the whole request was sent, the
framed answer was read to its end, neither side asked to close, and no surplus byte came (RFC 9112 section 9.3
and 9.6).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from defender.http1.body import ChunkedDecoder, LengthDecoder, UntilCloseDecoder
from defender.http1.errors import HTTPError
from defender.http1.head import MAX_HEAD, Framing, ResponseHead, find_head_end, parse_request_head
from defender.proxy.exchange import Answer, EngineFacts, Passage, facts_of, read_answer
from defender.proxy.inspection import Inquiry, inspect
from defender.streams.interface import Lost, Stream


class EngineError(Exception):
    """The Engine could not be asked or did not answer properly: `status` (502, 503, 504) and a sentence for
    people.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class AnswerReceiver(Protocol):
    """Who asked. Calls come in this order: started or tunnel, then data until `finished`; failed ends it any
    time.
    """

    def takes_chunks(self, answer: Answer) -> bool:
        """Asked first of an answer in chunks. True: hand them on as they came, framing and all, but for the
        last one. False: hand on the payload.
        """

    def answer_started(
        self, answer: Answer, data: bytes, count: int, finished: bool, trailers: Sequence[tuple[bytes, bytes]]
    ) -> None:
        """The head, and what came with it: payload or chunks, with `count` bytes of payload."""

    def answer_data(
        self, data: bytes, count: int, finished: bool, trailers: Sequence[tuple[bytes, bytes]]
    ) -> None:
        """More of the body."""

    def answer_failed(self, error: EngineError, *, repeatable: bool) -> None:
        """`repeatable`: not one byte of an answer came on a connection that had been used before (it was
        stale).
        """

    def tunnel_opened(self, answer: Answer, stream: Stream, early: bytes) -> None:
        """The Engine's connection is the caller's now; `early` came behind the head."""

    def backend_full(self) -> None: ...

    def backend_drained(self) -> None: ...


class _State(enum.Enum):
    IDLE = 1
    HEAD = 2
    BODY = 3
    GONE = 4


# An enum's member is found by two look-ups; these are asked for with every answer.
_IDLE, _HEAD, _BODY, _GONE = _State


class Backend:
    """One connection to the Engine. Implements `defender.streams.interface.Receiver`."""

    __slots__ = (
        "_buffer",
        "_chunks",
        "_decoder",
        "_head",
        "_inquiry",
        "_pool",
        "_receiver",
        "_request_sent",
        "_state",
        "_used",
        "stream",
    )

    def __init__(self, pool: BackendPool, stream: Stream) -> None:
        self._pool = pool
        self.stream = stream
        self._state = _IDLE
        self._receiver: AnswerReceiver | None = None
        self._inquiry: Inquiry | None = None
        self._head: ResponseHead | None = None
        self._decoder: LengthDecoder | ChunkedDecoder | UntilCloseDecoder | None = None
        self._buffer = b""  # of an answer's head
        self._chunks = False  # the receiver takes the body's chunks as they come
        self._request_sent = False
        self._used = False

    # -- the asking side

    def begin(self, receiver: AnswerReceiver, inquiry: Inquiry, head: bytes, *, whole: bool) -> None:
        """Send `head`; `whole` says that no body follows. One exchange at a time."""
        if self._state is not _IDLE:
            raise RuntimeError("an exchange is already under way on this Engine connection")
        self._state = _HEAD
        self._receiver = receiver
        self._inquiry = inquiry
        self._request_sent = whole
        self.stream.write(head)

    def write_body(self, data: bytes) -> None:
        """Send framed body bytes."""
        self.stream.write(data)

    def body_sent(self) -> None:
        """The whole request has been given to the connection."""
        self._request_sent = True

    def cancel(self) -> None:
        """Nobody waits for the answer any more: the Engine sees its client go, which cancels the request
        there.
        """
        self._receiver = None
        self._discard()

    # -- Receiver

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state is _HEAD:
            if self._buffer:
                data = self._buffer + data
                self._buffer = b""
            self._read_head(data)
        elif state is _BODY:
            self._deliver(data, None)
        elif state is _IDLE:
            # Bytes nobody asked for would be taken for the next answer.
            self._discard()

    def end_received(self) -> None:
        if self._state is _BODY and isinstance(self._decoder, UntilCloseDecoder):
            receiver, self._receiver = self._receiver, None
            self._discard()
            if receiver is not None:
                receiver.answer_data(b"", 0, True, ())
            return
        self._ended("closed the connection")

    def connection_lost(self, reason: Lost) -> None:
        self._ended(
            f"the connection was lost ({reason.detail})" if reason.detail else "the connection was lost"
        )

    def write_full(self) -> None:
        if self._receiver is not None:
            self._receiver.backend_full()

    def write_drained(self) -> None:
        if self._receiver is not None:
            self._receiver.backend_drained()

    # -- reading the answer

    def _read_head(self, data: bytes) -> None:
        inquiry = self._inquiry
        if inquiry is None:  # pragma: no cover - begin() sets it
            return
        while True:
            end = data.find(b"\r\n\r\n") + 4
            if end < 4 and (end := find_head_end(data, 0)) < 0:
                self._buffer = data
                if len(data) > MAX_HEAD:
                    self._fail(EngineError(502, "The Engine's answer has a head that does not end"))
                return
            try:
                answer = read_answer(inquiry, data[:end])
            except HTTPError as error:
                self._fail(EngineError(502, f"The Engine's answer cannot be read: {error.message}"))
                return
            data = data[end:]
            if answer.passage is not Passage.INTERIM:
                break
            self._used = False  # the Engine has this request: what comes now is no sign of a stale connection
        head = self._head = answer.head
        if answer.api != self._pool.last_version:
            self._pool.heard(answer)
        if head.framing is Framing.LENGTH:
            if len(data) == head.length:
                # All of it came at once, as small answers do.
                receiver, self._receiver = self._receiver, None
                self._finish(b"")
                if receiver is not None:
                    receiver.answer_started(answer, data, len(data), True, ())
                return
            self._decoder = LengthDecoder(head.length)
        elif answer.passage is Passage.TUNNEL:
            self._open_tunnel(answer, data)
            return
        elif head.framing is Framing.CHUNKED:
            self._decoder = ChunkedDecoder(status=502)
            self._chunks = self._receiver is not None and self._receiver.takes_chunks(answer)
        elif head.framing is Framing.UNTIL_CLOSE:
            self._decoder = UntilCloseDecoder()
        else:
            self._decoder = LengthDecoder(0)
        self._state = _BODY
        self._deliver(data, answer)

    def _deliver(self, data: bytes, answer: Answer | None) -> None:
        """Decode `data` and hand it on; at the end the connection is given back before the receiver hears of
        it.
        """
        decoder = self._decoder
        if decoder is None:  # pragma: no cover - set with the state BODY
            return
        try:
            if self._chunks and isinstance(decoder, ChunkedDecoder):
                data, count, surplus = decoder.check(data)
            else:
                data, surplus = decoder.decode(data)
                count = len(data)
        except HTTPError as error:
            self._fail(EngineError(502, f"The Engine's answer cannot be read: {error.message}"))
            return
        receiver = self._receiver
        finished = decoder.finished
        trailers: Sequence[tuple[bytes, bytes]] = ()
        if finished:
            if isinstance(decoder, ChunkedDecoder):
                trailers = decoder.trailers
            self._receiver = None
            self._finish(surplus)
        if receiver is None:
            return
        if answer is not None:
            receiver.answer_started(answer, data, count, finished, trailers)
        elif data or finished:
            receiver.answer_data(data, count, finished, trailers)

    def _finish(self, surplus: bytes) -> None:
        head = self._head
        self._decoder = self._head = self._inquiry = None
        self._chunks = False
        left = surplus or self.stream.pending
        if left or not self._request_sent or head is None or not head.keep_alive:
            self._discard()
            return
        self._state = _IDLE
        self._used = True
        self.stream.resume_reading()
        self._pool.release(self)

    def _open_tunnel(self, answer: Answer, early: bytes) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is None:  # pragma: no cover - cancel() discards the connection
            self._discard()
            return
        self._state = _GONE
        self._pool.handed_over(self)
        receiver.tunnel_opened(answer, self.stream, early)

    def _ended(self, what: str) -> None:
        state, receiver = self._state, self._receiver
        untouched = state is _HEAD and not self._buffer and self._used
        self._receiver = None
        self._discard()
        if receiver is None:
            return
        if state is _HEAD:
            receiver.answer_failed(
                EngineError(502, f"The Engine gave no answer: {what}"), repeatable=untouched
            )
        elif state is _BODY:
            receiver.answer_failed(
                EngineError(502, f"The Engine's answer ended early: {what}"), repeatable=False
            )

    def _fail(self, error: EngineError) -> None:
        receiver, self._receiver = self._receiver, None
        self._discard()
        if receiver is not None:
            receiver.answer_failed(error, repeatable=False)

    def _discard(self) -> None:
        if self._state is not _GONE:
            self._state = _GONE
            self._pool.forget(self)
            self.stream.abort()


class _Ping:
    """The pool's own question: an unversioned ping, for the headers of its answer."""

    def __init__(self, done: Callable[[EngineError | None], None]) -> None:
        self._done = done

    def takes_chunks(self, answer: Answer) -> bool:
        return False

    def answer_started(
        self, answer: Answer, data: bytes, count: int, finished: bool, trailers: Sequence[tuple[bytes, bytes]]
    ) -> None:
        if finished:
            self._done(None)

    def answer_data(
        self, data: bytes, count: int, finished: bool, trailers: Sequence[tuple[bytes, bytes]]
    ) -> None:
        if finished:
            self._done(None)

    def answer_failed(self, error: EngineError, *, repeatable: bool) -> None:
        self._done(error)

    def tunnel_opened(self, answer: Answer, stream: Stream, early: bytes) -> None:
        stream.abort()
        self._done(EngineError(502, "The Engine answered a ping with a stream"))

    def backend_full(self) -> None: ...

    def backend_drained(self) -> None: ...


class BackendPool:
    """The connections to one Engine.

    `last_version` is the API version that `facts` are of, as the Engine spelled it.

    `connect` opens a `Stream` to it; its failure is an OSError or TimeoutError. `limit` bounds the
    connections in use, tunnels and idle ones together; `idle_limit` bounds the idle ones kept.
    """

    log = Logger()

    def __init__(
        self, connect: Callable[[], Deferred[Any]], *, address: str, limit: int, idle_limit: int
    ) -> None:
        self._connect = connect
        self._address = address
        self._limit = limit
        self._idle_limit = idle_limit
        self._idle: list[Backend] = []
        self._all: set[Backend] = set()
        self._opening = 0
        self._tunnels = 0
        self._learning: list[Deferred[EngineFacts]] = []
        self._question: Backend | None = None
        self._asked: float | None = None
        self.last_version: bytes | None = None
        self.facts = EngineFacts()

    @property
    def connections(self) -> int:
        """Connections open or being opened, tunnels included."""
        return len(self._all) + self._opening + self._tunnels

    @property
    def idle(self) -> int:
        """Connections kept for reuse."""
        return len(self._idle)

    def take(self, *, repeatable: bool) -> Backend | None:
        """An idle connection, the most recently used first; None when there is none.

        An Engine that has gone is noticed with the next turn of the reactor. Only for a request that may not
        be sent twice is the connection looked at now.
        """
        while self._idle:
            backend = self._idle.pop()
            if repeatable or not backend.stream.is_gone():
                return backend
            backend.cancel()
        return None

    def open(self) -> Deferred[Backend]:
        """A new connection; fails with EngineError 502 (not there), 503 (at the limit) or 504 (no room in
        time).
        """
        result: Deferred[Backend] = Deferred()
        if self.connections >= self._limit:
            result.errback(EngineError(503, f"All {self._limit} connections to the Engine are in use"))
            return result
        self._opening += 1

        def connected(stream: Stream) -> None:
            self._opening -= 1
            backend = Backend(self, stream)
            self._all.add(backend)
            stream.set_receiver(backend)
            result.callback(backend)

        def failed(failure: Failure) -> None:
            self._opening -= 1
            result.errback(_unreachable(failure, self._address))

        self._connect().addCallbacks(connected, failed)
        return result

    def release(self, backend: Backend) -> None:
        """Keep `backend` for the next exchange, or close it when enough are kept."""
        if len(self._idle) < self._idle_limit:
            self._idle.append(backend)
        else:
            backend.cancel()

    def forget(self, backend: Backend) -> None:
        """`backend` is closed, or is not the pool's any more."""
        self._all.discard(backend)
        if backend in self._idle:
            self._idle.remove(backend)

    def resize(self, *, limit: int, idle_limit: int) -> None:
        """Other bounds from now on; connections in use stay, idle ones beyond the bound are closed."""
        self._limit = limit
        self._idle_limit = idle_limit
        while len(self._idle) > idle_limit:
            self._idle[0].cancel()

    def handed_over(self, backend: Backend) -> None:
        """`backend` is a tunnel now; it counts until `tunnel_ended`."""
        self.forget(backend)
        self._tunnels += 1

    def tunnel_ended(self) -> None:
        """A tunnel's Engine connection is closed."""
        self._tunnels -= 1

    def heard(self, answer: Answer) -> None:
        """Learn from an answer's headers."""
        facts = facts_of(answer.head)
        if facts is not None:
            self.last_version = answer.api
            self.facts = facts

    def learn(self) -> Deferred[EngineFacts]:
        """Ask the Engine for its version; callers share one question. Fails with EngineError."""
        waiting: Deferred[EngineFacts] = Deferred()
        self._learning.append(waiting)
        if len(self._learning) == 1:
            self.open().addCallbacks(self._ping, lambda failure: self._learned(failure.value))
        return waiting

    def _ping(self, backend: Backend) -> None:
        inquiry = inspect(parse_request_head(b"GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n"), discard_limit=0)
        self._question = backend
        backend.begin(_Ping(self._learned), inquiry, inquiry.forwarded(None), whole=True)

    def sweep(self, now: float, patience: float) -> None:
        """Give the question up that the Engine leaves unanswered for `patience` seconds (0: never)."""
        if self._question is None:
            return
        if self._asked is None:
            self._asked = now
        elif patience and now - self._asked >= patience:
            self._question.cancel()
            self._learned(EngineError(504, "The Engine did not answer in time"))

    def _learned(self, error: EngineError | None) -> None:
        waiting, self._learning = self._learning, []
        self._question = self._asked = None
        if error is None and self.facts.api_version is None:
            error = EngineError(502, "The Engine's ping names no API version that is supported here")
        for deferred in waiting:
            if error is None:
                deferred.callback(self.facts)
            else:
                deferred.errback(error)

    def close(self) -> None:
        """Close every connection that no tunnel owns."""
        for backend in list(self._all):
            backend.cancel()


def _unreachable(failure: Failure, address: str) -> EngineError:
    """What a failed connection attempt means to a client."""
    error = failure.value
    if isinstance(error, EngineError):
        return error
    if isinstance(error, TimeoutError):
        return EngineError(504, f"The Engine at {address} did not accept a connection in time")
    why = (
        error.strerror
        if isinstance(error, OSError) and error.strerror
        else str(error) or type(error).__name__
    )
    hint = " Is it running?" if isinstance(error, (FileNotFoundError, ConnectionRefusedError)) else ""
    return EngineError(502, f"Cannot connect to the Engine at {address}: {why}.{hint}")
