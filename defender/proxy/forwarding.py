"""One allowed request on its way to the Engine, and its answer on the way back.

A `Forwarding` lives from the decision to the end of the answer. It sends the request's body as it comes,
passes the answer on as it comes (each side paused while the other is slow), repeats a read once when a kept
Engine connection turns out to be stale, and becomes a tunnel when the Engine says so.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import TYPE_CHECKING

from twisted.python.failure import Failure

from defender.contract.audit import Description
from defender.contract.particulars import (
    MAX_ANSWER_BODY,
    MAX_REQUEST_BODY,
    Particulars,
    answer_particulars,
    request_particulars,
)
from defender.http1.body import ChunkedDecoder, LengthDecoder, encode_chunk, last_chunk
from defender.http1.errors import HTTPError
from defender.http1.head import Framing
from defender.proxy.backend import Backend, EngineError
from defender.proxy.exchange import Answer, Passage
from defender.proxy.inspection import BodyPlan, Inquiry, forwarded_version
from defender.proxy.refusal import body_length, error_response
from defender.proxy.tunnel import Tunnel
from defender.streams.interface import HIGH_WATER

if TYPE_CHECKING:
    from defender.proxy.budget import Refusal
    from defender.proxy.frontend import Frontend
    from defender.proxy.service import Proxy
    from defender.proxy.trail import Noted
    from defender.streams.interface import Stream

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


_RECORD_TIMEOUT = 30.0
"""Seconds that a call waits for its record; the recorder itself gives up long before."""


class Waiting(enum.Enum):
    """What a deadline is for."""

    HEAD = "the request's head"
    NEXT = "the next request"
    BODY = "the request's body"
    RECORD = "the record of the command"
    ENGINE = "the Engine's answer"
    SIGN = "a sign of a client that has half-closed"


# An enum's member is found by two look-ups; these are asked for with every request.
_NO_BODY = BodyPlan.NONE
_BY_LENGTH = Passage.LENGTH
_FOR_ENGINE = Waiting.ENGINE


class Forwarding:
    """One exchange. Implements `AnswerReceiver`; `client` is told how it ended, exactly once."""

    __slots__ = (
        "_answer",
        "_answered",
        "_backend",
        "_began",
        "_body",
        "_client",
        "_closes",
        "_ended",
        "_framed_already",
        "_gathered",
        "_gathering",
        "_half_closed",
        "_holding",
        "_passage",
        "_proxy",
        "_recording",
        "_refusal",
        "_repeated",
        "_sent",
        "_status",
        "_stream",
        "corr",
        "described",
        "inquiry",
        "noted",
        "said",
    )

    def __init__(
        self, proxy: Proxy, client: Frontend, stream: Stream, inquiry: Inquiry, noted: Noted, began: float
    ) -> None:
        self._proxy = proxy
        self._client = client
        self._stream = stream
        self.inquiry = inquiry
        self.noted = noted
        self.corr = b""
        self.described: Description | None = None  # the trail's
        self.said: Particulars | None = None  # by the request's body
        self._refusal: Refusal | None = None
        self._answer: bytearray | None = None  # of an answer's body, for the record
        self._began = began
        self._backend: Backend | None = None
        self._body: LengthDecoder | ChunkedDecoder | None = None
        self._passage: Passage | None = None
        self._answered = False
        self._closes = False
        self._ended = False
        self._framed_already = False
        self._gathered: bytearray | None = None  # of the body, before there is an Engine connection
        self._gathering = False
        self._half_closed = False
        self._holding = False  # one of the subject's calls with the Engine
        self._recording = False  # its attempt is on the way to the disk
        self._repeated = False
        self._sent = 0
        self._status = 0

    def answer_said(self) -> Particulars | None:
        """What the record says of the Engine's answer, None if nothing."""
        if not self._answer:
            return None
        return answer_particulars(self.inquiry.operation.action, self._status, bytes(self._answer))

    @property
    def has_answer(self) -> bool:
        """True once the Engine has begun to answer."""
        return self._answered

    @property
    def is_sent(self) -> bool:
        """True once the whole request was given to an Engine connection."""
        return self._backend is not None and self._body is None

    # -- the client's side

    def start(self) -> None:
        """Go: with what the client has sent of the body already."""
        if self.inquiry.body is not _NO_BODY:
            head = self.inquiry.head
            self._body = ChunkedDecoder() if head.framing is Framing.CHUNKED else LengthDecoder(head.length)
            if head.expect_continue:
                self._stream.write(_CONTINUE)
            self._client.wait(Waiting.BODY, self._proxy.limits.body_timeout)
            if self.inquiry.body is BodyPlan.DISCARD:
                self._drop_body(self._client.take_held())
                return
            if self.inquiry.tells:
                self._gathering = True
                self._gathered = bytearray()
                self._gather(self._client.take_held())
                return
        self._proceed()

    def take(self, data: bytes) -> bool:
        """Take bytes from the client; False when they do not belong to the body or cannot be sent yet."""
        if self._body is None:
            return False
        if self.inquiry.body is BodyPlan.DISCARD:
            self._drop_body(data)
            return True
        if self._gathering:
            self._gather(data)
            return True
        if self._backend is None:
            return False
        self._send_body(data)
        return True

    def client_ended(self) -> None:
        """The client half-closed.

        A whole request is still answered: a half-close is forwarded in a tunnel only, since the Engine
        cancels an ordinary request at its client's end. A unix client that is wholly gone is found by the
        sweep. Over TCP one that closed in good order (Ctrl-C on `docker events`) looks the same as one that
        half-closed until something is sent to it: such an answer ends once it has been silent for a while.
        """
        self._half_closed = True
        if self._body is not None:
            # While there is no connection to the Engine the body waits, perhaps all of it.
            unseen = self._backend is None and not self._gathering
            if not unseen or self.inquiry.body is not BodyPlan.FORWARD:
                self._refuse_half()
            return
        self._wait_for_sign()

    def _refuse_half(self) -> None:
        self.refuse(400, "the request ended before its body did")

    def _wait_for_sign(self) -> None:
        """Bound the silence of an answer to a client of whom nobody knows whether it is still there."""
        operation = self.inquiry.operation
        if self._stream.peer_address is None:
            return
        if self._half_closed and (self._answered or (operation.streaming and not operation.hijack)):
            self._client.wait(Waiting.SIGN, max(self._proxy.limits.linger, 1.0))

    def client_full(self) -> None:
        """The client does not read: neither do we."""
        if self._backend is not None:
            self._backend.stream.pause_reading()

    def client_drained(self) -> None:
        """The client reads again."""
        if self._backend is not None:
            self._backend.stream.resume_reading()

    def abandon(self, reason: str) -> None:
        """The client is gone or cut: tell the Engine and the record."""
        self._note(reason)
        self._end()

    def timed_out(self, waiting: Waiting) -> None:
        """The deadline that this exchange set has passed."""
        if waiting is Waiting.SIGN:
            if self._stream.pending:
                # It reads slowly; or it does not, and then the kernel will say so.
                self._wait_for_sign()
            else:
                self._client.abort("the client ended the connection")
        elif waiting is Waiting.ENGINE:
            self.refuse(504, "The Engine did not answer in time")
        elif waiting is Waiting.RECORD:
            self._recorded("the audit spool does not answer")
        else:
            self.refuse(408, f"timed out waiting for {waiting.value}")

    def refuse(self, status: int, message: str, *, retry_after: int = 0) -> None:
        """End the exchange with an error of ours, or by cutting the client when its answer had begun."""
        if self._ended:
            return
        if self._answered:
            # Half an answer must not look whole: no last chunk, no close_notify.
            self._note(message)
            self._end()
            self._client.exchange_broken()
            return
        head = self.inquiry.head
        close = self._body is not None or self._client.ends_after(head)
        answer = error_response(
            status,
            message,
            engine_headers=self._proxy.pool.facts.headers,
            head_only=head.method == "HEAD",
            close=close,
            retry_after=retry_after,
        )
        self._stream.write(answer)
        self._status = status
        self._sent = body_length(answer)
        self._note(message)
        self._end()
        self._client.exchange_done(close=close)

    # -- towards the Engine

    def _drop_body(self, data: bytes) -> None:
        """Read the body of a route that has none to its end, then forward the request without it."""
        body = self._body
        if body is None:
            return
        try:
            payload, surplus = body.decode(data)
        except HTTPError as error:
            self.refuse(error.status, error.message)
            return
        self._sent += len(payload)
        if self._sent > self._proxy.limits.discard_bytes:
            inquiry = self.inquiry
            self.refuse(400, f"{inquiry.head.method} {inquiry.target.path[:200]} takes no body")
            return
        if body.finished:
            self._body = None
            self._sent = 0
            self._client.hold(surplus)
            self._client.wait(Waiting.BODY, 0)
            self._proceed()

    def _gather(self, data: bytes) -> None:
        """Take a body that the record speaks of to its end, or as far as it is read for that."""
        body, gathered = self._body, self._gathered
        if body is None or gathered is None:
            return
        try:
            payload, surplus = body.decode(data)
        except HTTPError as error:
            self.refuse(error.status, error.message)
            return
        gathered += payload
        if body.finished:
            self._body = None
            self._client.hold(surplus)
            self._client.wait(Waiting.BODY, 0)
        elif len(gathered) <= MAX_REQUEST_BODY:
            # What is held for a slow client is bounded as its calls are: it counts as one already.
            if self._holding or self._enter():
                self._client.wait(Waiting.BODY, self._proxy.limits.body_timeout)
            return
        elif self._must_be_read():
            self.refuse(413, f"The body is longer than the {MAX_REQUEST_BODY} bytes that can be recorded")
            return
        self._gathering = False
        self.said = request_particulars(self.inquiry.operation.action, bytes(gathered))
        self._proceed()

    def _must_be_read(self) -> bool:
        """Nobody may hide a command behind padding. Secrets and configs are large and not recorded anyway."""
        operation = self.inquiry.operation
        data = operation.action.startswith(("secret_", "config_"))
        return operation.record_first and not data and self._proxy.is_strict(self.noted)

    # -- the record that comes first

    def _enter(self) -> bool:
        """Count as one of the subject's calls with the Engine; False, with an answer, if it may not."""
        share = self._client.share
        if not share.take_engine():
            refusal = self._refusal = share.too_busy()
            self.refuse(refusal.status, refusal.reason, retry_after=refusal.retry_after)
            return False
        self._holding = True
        return True

    def _proceed(self) -> None:
        """Forward the request, or have its attempt recorded before that."""
        if not (self._holding or self._enter()):
            return
        if self.inquiry.operation.record_first:
            self._recording = True
            self._client.wait(Waiting.RECORD, _RECORD_TIMEOUT)
            self.corr = self._proxy.trail.attempted(self._client, self, self._recorded)
        else:
            self._forward()

    def _recorded(self, problem: str) -> None:
        """The attempt is on disk, or cannot be brought there."""
        if self._ended or not self._recording:
            # The recorder may still answer when the deadline has: forwarded twice is run twice.
            return
        self._recording = False
        if problem:
            if self._proxy.is_strict(self.noted):
                self.refuse(503, f"The command cannot be recorded, so it was not run: {problem}")
                return
            self._proxy.trail.counters.unrecorded += 1
        self._client.wait(Waiting.BODY, self._proxy.limits.body_timeout if self._body is not None else 0)
        self._forward()

    # -- to an Engine connection

    def _forward(self) -> None:
        """Find an Engine connection; goes on at once or later."""
        inquiry = self.inquiry
        pool = self._proxy.pool
        if not inquiry.target.version and self._version() is None and inquiry.operation.action != "debug":
            self._client.wait(Waiting.ENGINE, self._proxy.engine.response_timeout)
            pool.learn().addCallbacks(self._learned, self._unreachable)
            return
        backend = None if self._repeated else pool.take(repeatable=inquiry.repeatable)
        if backend is not None:
            self._connected(backend)
        else:
            pool.open().addCallbacks(self._connected, self._unreachable)

    def _version(self) -> tuple[int, int] | None:
        """The API version that the request is forwarded with."""
        return forwarded_version(self.inquiry, self._proxy.pool.facts.newest_common)

    def _learned(self, _facts: object) -> None:
        if not self._ended:
            self._client.wait(Waiting.BODY, self._proxy.limits.body_timeout if self._body is not None else 0)
            self._forward()

    def _unreachable(self, failure: Failure) -> None:
        error = failure.value
        if not isinstance(error, EngineError):
            self._proxy.log.failure("connecting to the Engine failed in an unforeseen way", failure)
            error = EngineError(502, "The Engine could not be asked")
        self.refuse(error.status, error.message)

    def _connected(self, backend: Backend) -> None:
        if self._ended:
            backend.cancel()
            return
        self._backend = backend
        inquiry = self.inquiry
        out = inquiry.forwarded(inquiry.target.version or self._version())
        if self._gathered is not None:
            out += self._framed(bytes(self._gathered), finished=self._body is None)
            self._gathered = None
        backend.begin(self, inquiry, out, whole=self._body is None)
        if self._stream.pending > HIGH_WATER:
            # An earlier answer is still on its way out; its edge was crossed before this exchange began.
            backend.stream.pause_reading()
        if self._body is None:
            self._client.wait(_FOR_ENGINE, self._proxy.answer_timeout(inquiry.operation))
            return
        held = self._client.take_held()
        self._stream.resume_reading()
        if held:
            self._send_body(held)
        if self._half_closed and self._body is not None and not self._ended:
            self._refuse_half()

    def _framed(self, payload: bytes, *, finished: bool) -> bytes:
        """A part of the request's body as it is written to the Engine."""
        if self.inquiry.head.framing is not Framing.CHUNKED:
            return payload
        return encode_chunk(payload) + last_chunk(()) if finished else encode_chunk(payload)

    def _send_body(self, data: bytes) -> None:
        body, backend = self._body, self._backend
        if body is None or backend is None:
            return
        try:
            if isinstance(body, ChunkedDecoder) and not self.inquiry.tells:
                payload, _, surplus = body.check(data)
                if body.finished:
                    # Trailers of a request mean nothing to the Engine: they end here.
                    payload += last_chunk(())
            else:
                payload, surplus = body.decode(data)
                payload = self._framed(payload, finished=body.finished)
        except HTTPError as error:
            self.refuse(error.status, error.message)
            return
        finished = body.finished
        if finished:
            self._body = None
            self._client.hold(surplus)
            backend.body_sent()
            self._wait_for_engine()
        else:
            self._client.wait(Waiting.BODY, self._proxy.limits.body_timeout)
        if payload:
            backend.write_body(payload)

    def _wait_for_engine(self) -> None:
        seconds = 0.0 if self._answered else self._proxy.answer_timeout(self.inquiry.operation)
        self._client.wait(Waiting.ENGINE, seconds)

    # -- AnswerReceiver: the Engine's side

    def takes_chunks(self, answer: Answer) -> bool:
        # Chunks that only pass by stay as the Engine made them, which saves two copies of every byte.
        self._framed_already = answer.passage is Passage.CHUNKED and not self._wants_body(answer)
        return self._framed_already

    def _wants_body(self, answer: Answer) -> bool:
        """Does the record say something of the body of this answer?"""
        status = answer.head.status
        return status >= 400 or (self.inquiry.asks and self._proxy.trail.asks(self, status))

    def answer_started(
        self, answer: Answer, data: bytes, count: int, finished: bool, trailers: Sequence[tuple[bytes, bytes]]
    ) -> None:
        self._answered = True
        passage = self._passage = answer.passage
        self._status = answer.head.status
        if self._body is None:
            if not finished:
                self._client.wait(_FOR_ENGINE, 0)
            early = False
        else:
            # An answer that is over before the request is ends both connections and says so (RFC 9112, 9.6).
            early = finished or not answer.head.keep_alive
        if (answer.head.status >= 400 or self.inquiry.asks) and self._wants_body(answer):
            self._answer = bytearray()
        closes = self._closes = early or self._client.ends_after(self.inquiry.head)
        out = answer.ended() if closes else answer.written
        if finished and passage is _BY_LENGTH and self._body is None:
            # The common one: small, and here at once.
            self._sent = count
            self._backend = None
            if self._answer is not None:
                self._answer += data[: MAX_ANSWER_BODY + 1]
            self._stream.write(out + data)
            if not self._ended:
                client = self._client
                self._proxy.trail.answered(client, self, self._status, count, self._began)
                self._ended = True
                self._holding = False
                client.share.give_engine()
                client.exchange_done(close=closes)
            return
        self._pass_on(out, data, count, finished, trailers)

    def answer_data(
        self, data: bytes, count: int, finished: bool, trailers: Sequence[tuple[bytes, bytes]]
    ) -> None:
        self._pass_on(b"", data, count, finished, trailers)

    def _pass_on(
        self, out: bytes, data: bytes, count: int, finished: bool, trailers: Sequence[tuple[bytes, bytes]]
    ) -> None:
        self._sent += count
        if self._answer is not None and len(self._answer) <= MAX_ANSWER_BODY:
            self._answer += data[: MAX_ANSWER_BODY + 1 - len(self._answer)]
        if self._passage is Passage.CHUNKED:
            if not self._framed_already:
                data = encode_chunk(data)
            if finished:
                data += last_chunk(trailers)
        if out:
            data = out + data
        if finished:
            self._backend = None
        if data:
            self._stream.write(data)
        if self._half_closed and not finished:
            self._wait_for_sign()
        if finished and not self._ended:
            self._note("")
            close = (
                self._closes
                or self._body is not None
                or self._passage is Passage.UNTIL_CLOSE
                or self._client.ends_after(self.inquiry.head)
            )
            self._end()
            self._client.exchange_done(close=close)

    def answer_failed(self, error: EngineError, *, repeatable: bool) -> None:
        self._backend = None
        if self._ended:
            return
        if repeatable and self.inquiry.repeatable and not self._repeated:
            self._repeated = True
            self._forward()
            return
        self.refuse(error.status, error.message)

    def tunnel_opened(self, answer: Answer, stream: Stream, early: bytes) -> None:
        self._backend = None
        self._answered = True
        self._status = answer.head.status
        self._stream.write(answer.written)
        self._note("")
        proxy = self._proxy
        self._began = proxy.seconds()
        tunnel = Tunnel(
            self._stream, stream, seconds=proxy.seconds, linger=proxy.limits.linger, done=self._tunnel_done
        )
        self._client.tunnel_started(tunnel)
        tunnel.start(self._client.take_held(), early)

    def _tunnel_done(self, tunnel: Tunnel) -> None:
        self._proxy.pool.tunnel_ended()
        self._proxy.trail.stream_ended(self._client, self, tunnel, self._began)
        self._end()
        self._client.tunnel_ended()

    def backend_full(self) -> None:
        self._stream.pause_reading()
        if self._body is not None:
            # The Engine is the slow one now; it is given the time of its answer.
            self._wait_for_engine()

    def backend_drained(self) -> None:
        self._stream.resume_reading()
        if self._body is not None:
            self._client.wait(Waiting.BODY, self._proxy.limits.body_timeout)

    # -- the end

    def _note(self, error: str) -> None:
        if not self._ended:
            trail = self._proxy.trail
            if self._refusal is not None:
                trail.turned_down(self._client, self.inquiry, self._refusal, self._sent, self._began)
            else:
                trail.ended(self._client, self, self._status, self._sent, self._began, error)

    def _end(self) -> None:
        self._ended = True
        if self._holding:
            self._holding = False
            self._client.share.give_engine()
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.cancel()
