"""The side facing Docker clients: one connection, one exchange at a time.

A head is read, judged and denied or forwarded before the next one is looked at, so pipelined requests are
answered in order (and a tunnel's first bytes are never taken for a request). What waits is bounded: a head by
the settings, bytes behind an unanswered request by `_HELD`, everything else by pausing the side that sends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from defender.contract.audit import actor_of
from defender.contract.fragments import packed
from defender.http1.body import LengthDecoder
from defender.http1.errors import HTTPError
from defender.http1.head import Framing, RequestHead, find_head_end
from defender.proxy.forwarding import Forwarding, Waiting
from defender.proxy.inspection import Inquiry
from defender.proxy.refusal import body_length, denial_message, error_response

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from defender.contract.facts import Subject
    from defender.contract.policy import Decision, PolicyTable
    from defender.proxy.service import Proxy
    from defender.proxy.trail import Noted
    from defender.proxy.tunnel import Tunnel
    from defender.streams.interface import Lost, Stream

_HELD = 64 * 1024
"""Bytes held behind a request that is not answered yet; then reading pauses."""

_FOR_NEXT = Waiting.NEXT

_TURN = 32
"""Requests of one connection that are answered in one turn of the reactor; then others have theirs."""


class Frontend:
    """One client connection. Implements `defender.streams.interface.Receiver`.

    `closed(frontend)` is called once, when the connection and every tunnel on it are gone.
    """

    __slots__ = (
        "_buffer",
        "_client_ended",
        "_closed",
        "_closing",
        "_crowded",
        "_deadline",
        "_exchange",
        "_full",
        "_last_exchange",
        "_parsing",
        "_proxy",
        "_scanned",
        "_skip",
        "_stalled",
        "_stream",
        "_waiting",
        "actor",
        "answers",
        "share",
        "subject",
        "table",
        "tunnel",
    )

    def __init__(
        self, proxy: Proxy, stream: Stream, subject: Subject, closed: Callable[[Frontend], None]
    ) -> None:
        self._proxy = proxy
        self._stream = stream
        self.subject = subject
        self.actor = packed(actor_of(subject))
        # The proxy's: the policy's decisions about the subject, and the table that they come from.
        self.table: PolicyTable | None = None
        self.answers: Mapping[str, Decision] = {}
        self.share = proxy.budgets.enter(subject.user, subject.via)
        self._crowded = self.share.is_crowded
        self._closed = closed
        self._buffer = bytearray()
        self._scanned = 0
        self._parsing = False
        self._exchange: Forwarding | None = None
        self._skip: LengthDecoder | None = None
        self._full = False
        self._stalled = False  # buffered requests wait for another turn, a reader, or their subject's share
        self._client_ended = False
        self._closing = False
        self._last_exchange = False
        self.tunnel: Tunnel | None = None
        self._waiting = Waiting.HEAD
        self._deadline: float | None = proxy.seconds() + proxy.limits.head_timeout
        stream.set_receiver(self)

    # -- what the listener and the proxy ask of a connection

    def abort(self, reason: str = "aborted") -> None:
        """Cut the connection now, whatever it carries."""
        if self.tunnel is not None:
            self.tunnel.abort(reason)
            return
        self._abandon(reason)
        self._closing = True
        self._stream.abort()

    def close_when_idle(self) -> None:
        """Close now if no exchange is under way, else after it."""
        self._last_exchange = True
        if self._exchange is None and self._skip is None and not self._buffer and not self._closing:
            self._close()

    @property
    def under_way(self) -> Forwarding | None:
        """The exchange that is being served, None between requests."""
        return self._exchange

    def sweep(self, now: float) -> None:
        """Called every second or so with the same clock as `Proxy.seconds`."""
        if self.tunnel is not None:
            self.tunnel.sweep(now)
        elif self._exchange is not None and self._stream.is_gone():
            # Nothing else tells of a client that half-closed, or that is not being read, and then vanished.
            self.abort("the client disconnected")
        elif self._deadline is not None and now >= self._deadline and not self._closing:
            self._timed_out()
        elif self._stalled:
            self._go_on()

    # -- Receiver: the client's side

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        exchange = self._exchange
        if exchange is None:
            if self._skip is not None:
                self._skip_body(data)
            elif not self._buffer and (inquiry := self._proxy.readings.known(data)) is not None:
                now = self._proxy.seconds()
                if not (self._parsing or self._stalled or self._full or now < self.share.flooded_until):
                    # What most clients send most of the time needs no buffer.
                    self._serve(inquiry, now)
                    return
                self._buffer += data
            else:
                self._buffer += data
            self._parse()
        elif self._buffer or not exchange.take(data):
            self._buffer += data
            if len(self._buffer) > _HELD:
                self._stream.pause_reading()

    def end_received(self) -> None:
        self._client_ended = True
        if self._closing:
            return
        if self._exchange is None:
            if not self._stalled:
                self._close()
        elif self._stream.is_gone():
            # A unix socket tells a closed peer from a half-closed one at once.
            self.abort("the client disconnected")
        else:
            self._exchange.client_ended()

    def write_full(self) -> None:
        self._full = True
        if self._exchange is not None:
            self._exchange.client_full()

    def write_drained(self) -> None:
        self._full = False
        if self._exchange is not None:
            self._exchange.client_drained()
        elif self._stalled:
            self._go_on()

    def connection_lost(self, reason: Lost) -> None:
        self._closing = True
        self._abandon(
            "the client disconnected" if reason.clean else f"the client disconnected: {reason.detail}"
        )
        self._forget()

    # -- one request

    def _parse(self) -> None:
        """Start on as many buffered requests as can be answered at once, in order."""
        if self._parsing or self._stalled:
            return
        self._parsing = True
        left = _TURN
        try:
            while self._exchange is None and self._skip is None and not self._closing and self._buffer:
                now = self._proxy.seconds()
                if left == 0 or self._full or now < self.share.flooded_until:
                    self._stall(soon=left == 0)
                    break
                left -= 1
                if not self._parse_one(now):
                    break
        finally:
            self._parsing = False
        if self._client_ended and self._exchange is None and not (self._stalled or self._closing):
            # Nothing whole is left to be answered, and nothing more will come.
            self._close()

    def _stall(self, *, soon: bool) -> None:
        """Leave the next requests for the next turn if `soon`, else until the client reads or a sweep."""
        self._stalled = True
        self._stream.pause_reading()
        if soon:
            self._proxy.soon(self._go_on)

    def _go_on(self) -> None:
        if self._stalled and not self._closing:
            self._stalled = False
            self._stream.resume_reading()
            self._parse()

    def _parse_one(self, now: float) -> bool:
        """Start on the first buffered request; False when there is none yet, or none that can be read."""
        buffer = self._buffer
        limits = self._proxy.limits
        end = find_head_end(buffer, self._scanned)
        if end < 0 and len(buffer) <= limits.head_bytes:
            self._scanned = len(buffer)
            if self._waiting is not Waiting.HEAD:
                # One deadline for the whole head, however slowly its bytes drip in.
                self.wait(Waiting.HEAD, limits.head_timeout)
            return False
        proxy = self._proxy
        if end < 0 or end > limits.head_bytes:
            self._refuse_unread(431, f"the request's head is longer than {limits.head_bytes} bytes", None)
            return False
        if end == len(buffer):
            raw = bytes(buffer)
            buffer.clear()
        else:
            raw = bytes(buffer[:end])
            del buffer[:end]
        self._scanned = 0
        try:
            inquiry = proxy.readings.read(raw)
        except HTTPError as error:
            self._refuse_unread(error.status, error.message, proxy.readings.head_of(raw))
            return False
        self._serve(inquiry, now)
        return True

    def _serve(self, inquiry: Inquiry, now: float) -> None:
        """Judge one request and begin to answer it."""
        proxy = self._proxy
        if not self.share.request(now) or self._crowded:
            self._turn_down(inquiry, now)
            return
        noted = proxy.judge(self, inquiry.operation)
        if noted.decision.effect != "allow":
            self._deny(inquiry, noted, now)
            return
        self._deadline = None
        exchange = self._exchange = Forwarding(proxy, self, self._stream, inquiry, noted, now)
        exchange.start()
        if self._client_ended and self._exchange is exchange:
            exchange.client_ended()

    def _deny(self, inquiry: Inquiry, noted: Noted, now: float) -> None:
        proxy = self._proxy
        message = denial_message(proxy.prefix, inquiry.operation.action, self.subject.user, noted.decision)
        sent, close = self._answer(inquiry, 403, message)
        proxy.trail.denied(self, inquiry, noted, sent, now)
        self._after_answer(inquiry, close)

    def _turn_down(self, inquiry: Inquiry, now: float) -> None:
        """Answer that the subject asks for more than its share."""
        share, proxy = self.share, self._proxy
        refusal = share.too_crowded() if self._crowded else share.too_fast(now)
        # Left open, it would take one of all users' connections for as long as it asks now and then.
        self._last_exchange |= self._crowded
        message = f"{proxy.prefix} {refusal.reason}" if proxy.prefix else refusal.reason
        sent, close = self._answer(inquiry, refusal.status, message, refusal.retry_after)
        proxy.trail.turned_down(self, inquiry, refusal, sent, now)
        self._after_answer(inquiry, close)

    def _answer(self, inquiry: Inquiry, status: int, message: str, retry_after: int = 0) -> tuple[int, bool]:
        """Answer a request that is not forwarded: bytes of the body, and whether to close after it."""
        proxy = self._proxy
        head = inquiry.head
        body_follows = head.framing is Framing.CHUNKED or head.length > 0
        # A short announced body is read and dropped so that the connection can go on; a longer or unannounced
        # one, or one that waits for a 100 that will not come, ends it.
        skippable = head.framing is Framing.LENGTH and head.length <= proxy.limits.discard_bytes
        close = self.ends_after(head) or (body_follows and (not skippable or head.expect_continue))
        answer = error_response(
            status,
            message,
            engine_headers=proxy.pool.facts.headers,
            head_only=head.method == "HEAD",
            close=close,
            retry_after=retry_after,
        )
        self._stream.write(answer)
        return body_length(answer), close

    def _after_answer(self, inquiry: Inquiry, close: bool) -> None:
        if close:
            self._close()
            return
        self.wait(Waiting.NEXT, self._proxy.limits.idle_timeout)
        if inquiry.head.length > 0:
            self._skip = LengthDecoder(inquiry.head.length)
            self.wait(Waiting.BODY, self._proxy.limits.body_timeout)
            self._skip_body(self.take_held())

    def _skip_body(self, data: bytes) -> None:
        skip = self._skip
        if skip is None:
            return
        _, surplus = skip.decode(data)
        if skip.finished:
            self._skip = None
            self._buffer += surplus
            self.wait(Waiting.NEXT, self._proxy.limits.idle_timeout)

    def _refuse_unread(self, status: int, message: str, head: RequestHead | None) -> None:
        """Answer a request that cannot be read, and close: what follows it cannot be told apart from it."""
        answer = error_response(
            status,
            message,
            engine_headers=self._proxy.pool.facts.headers,
            head_only=head is not None and head.method == "HEAD",
            close=True,
        )
        self._stream.write(answer)
        self._proxy.trail.unreadable(self, head, status, message, body_length(answer))
        self._close()

    # -- what an exchange says of itself

    def hold(self, data: bytes) -> None:
        """Bytes behind the exchange's body."""
        self._buffer += data

    def take_held(self) -> bytes:
        """The bytes that came early; they are the caller's now."""
        held = bytes(self._buffer)
        self._buffer.clear()
        return held

    def wait(self, what: Waiting, seconds: float) -> None:
        """The deadline from now on; 0 means none."""
        self._waiting = what
        self._deadline = self._proxy.seconds() + seconds if seconds else None

    def ends_after(self, head: RequestHead) -> bool:
        """True if this connection closes after the current answer; an HTTP/1.0 client gets only one.

        A client that has ended still gets the answers to what it sent before.
        """
        if self._client_ended and not self._buffer:
            return True
        return self._last_exchange or not head.keep_alive or head.version < (1, 1)

    def exchange_done(self, *, close: bool) -> None:
        """The answer was given whole."""
        self._exchange = None
        if close:
            # Input that still comes is drained for a bounded time: a reset could destroy the answer under
            # way.
            self._close()
            return
        self._waiting = _FOR_NEXT
        self._deadline = self._proxy.seconds() + self._proxy.limits.idle_timeout
        self._stream.resume_reading()
        if self._buffer:
            self._parse()

    def exchange_broken(self) -> None:
        """The answer stopped half-way: the client must see that."""
        self._exchange = None
        self._closing = True
        self._stream.abort(reset=True)

    def tunnel_started(self, tunnel: Tunnel) -> None:
        """The exchange became a stream; the tunnel is the receiver from here on."""
        self._deadline = None
        self.tunnel = tunnel
        if self._client_ended:
            tunnel.client_has_ended()

    def tunnel_ended(self) -> None:
        """Both streams of the tunnel are closed."""
        self._exchange = None
        self._closing = True
        self._forget()

    # -- ends

    def _abandon(self, reason: str) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.abandon(reason)

    def _close(self) -> None:
        self._closing = True
        self._deadline = None
        self._buffer.clear()
        self._stream.close()

    def _forget(self) -> None:
        closed, self._closed = self._closed, _nothing
        closed(self)

    def _timed_out(self) -> None:
        waiting = self._waiting
        if self._exchange is not None:
            self._exchange.timed_out(waiting)
        elif waiting is Waiting.HEAD and self._buffer and not self._stalled:
            self._refuse_unread(408, f"timed out waiting for {waiting.value}", None)
        else:
            # Nothing was asked, so nothing is answered: a stray 408 could be taken for the next request's
            # answer.
            self._close()


def _nothing(_frontend: Frontend) -> None:
    """Takes the place of a callback that has been called."""
