"""A byte stream on a socket, as a descriptor of the reactor: what streams in the clear and under TLS share.

A stream owns its socket and is a descriptor of the reactor itself (`IReadWriteDescriptor`), not a Twisted
transport with a protocol on top. The reasons are in docs/decisions: half-close under TLS, no loss when the
peer closes while reading is paused, one send per write.

The reactor is never given a reason to disconnect a stream: `SocketStream.doRead` and `SocketStream.doWrite`
always return None and deal with every error themselves. It can still call `SocketStream.connectionLost`:
epoll reports a hang-up that nobody asked about. That is an event here and not the end: input that is still
unread is delivered when reading is resumed.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import deque
from typing import Any

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IDelayedCall, IReadWriteDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from defender.streams.interface import HIGH_WATER, LOW_WATER, Lost, Receiver
from defender.streams.peer import KeepAlive, address_of, has_unread, is_hung_up, is_silent, tune_tcp

READ_SIZE = 64 * 1024
READ_SIZE_BUSY = 128 * 1024
"""Bytes asked of the kernel at once: small at first, large once a whole small one came. More than this the C
library's allocator gives back to the kernel after each use, and page faults eat what is saved.
"""

DISCARD_LIMIT = 1024 * 1024
"""Bytes thrown away after `close`; then reading stops until linger is over, so that a flood costs no time."""

WRITE_BATCH = 64
"""Chunks handed to the kernel in one system call; far below IOV_MAX."""

WRITE_BURST = 4 * HIGH_WATER
"""Bytes sent in one turn of the reactor to a peer that takes everything."""

_KEEPALIVE = KeepAlive()


@implementer(IReadWriteDescriptor)
class SocketStream:
    """What streams in the clear and under TLS have in common: `defender.streams.interface.Stream`.

    A subclass says how bytes go through the socket: `_pull`, `_push`, `_push_pending`, `_send_end`.
    """

    __slots__ = (
        "_broken",
        "_closing",
        "_discarded",
        "_ended",
        "_ending",
        "_failed",
        "_flush_timeout",
        "_full",
        "_held_end",
        "_input_over",
        "_keepalive",
        "_linger",
        "_lost",
        "_moved",
        "_out",
        "_pass",
        "_paused",
        "_peer_address",
        "_pending",
        "_reactor",
        "_read_size",
        "_reading",
        "_receiver",
        "_socket",
        "_timer",
        "_told",
        "_unix",
        "_writing",
    )

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        sock: socket.socket,
        *,
        linger: float = 5.0,
        flush_timeout: float = 3600.0,
        keepalive: KeepAlive | None = None,
    ) -> None:
        """Take over ``sock``, which is connected.

        ``linger``: seconds that input is drained after `close`. ``flush_timeout``: seconds after `close` in
        which the peer must take at least one of the pending bytes. ``keepalive``: for TCP, by default
        `KeepAlive()`.
        """
        sock.setblocking(False)
        self._reactor = reactor
        self._socket = sock
        self._unix = sock.family == socket.AF_UNIX
        self._keepalive = keepalive or _KEEPALIVE
        if not self._unix:
            tune_tcp(sock, self._keepalive)
        self._peer_address = address_of(sock)
        self._linger = linger
        self._flush_timeout = flush_timeout
        self._receiver: Receiver | None = None
        self._out: deque[bytes | memoryview] | None = None  # None while nothing is pending
        self._pending = 0
        self._moved = 0  # grows whenever the peer takes something of what is pending
        self._read_size = READ_SIZE
        self._discarded = 0
        # The reactor calls doRead / doWrite. Kept here since asking it is slow.
        self._reading = False
        self._writing = False
        self._paused = False
        self._full = False
        self._ending = False  # no more writes are taken
        self._ended = False  # our end mark was sent, or output is being thrown away
        self._broken = ""  # why output is thrown away
        self._failed = ""  # a reset seen by a send: the kernel shows it once and pretends an end after that
        self._input_over = False
        self._held_end: Lost | None = None  # the peer's clean end, found while reading was paused
        self._closing = False
        self._timer: IDelayedCall | None = None
        self._pass: IDelayedCall | None = None
        self._lost: Lost | None = None
        self._told = False

    # What a user calls.

    def set_receiver(self, receiver: Receiver) -> None:
        self._receiver = receiver
        if self._lost is not None:
            self._reactor.callLater(0, self._tell_lost)
        else:
            self._watch_input()

    def write(self, data: bytes) -> None:
        if self._ending or not data:
            return
        rest: bytes | memoryview = data
        out = self._out
        if out is None:
            sent = self._push(data)
            if sent == len(data) or self._broken or self._lost is not None:
                return
            if sent:
                rest = memoryview(data)[sent:]
            out = self._out = deque()
            self._start_writing()
        out.append(rest)
        self._pending += len(rest)
        if self._pending > HIGH_WATER and not self._full:
            self._full = True
            self._tell("write_full")

    def half_close(self) -> None:
        if self._ending:
            return
        self._ending = True
        if self._out is None:
            self._send_end()

    def close(self) -> None:
        if self._closing or self._lost is not None:
            return
        self._closing = True
        self._paused = False
        if self._held_end is not None:
            self._held_end = None
            self._input_over = True
        if not self._ending:
            self._ending = True
            if self._out is None:
                self._send_end()
        elif self._ended:
            self._end_sent()
        if self._lost is None:
            if self._timer is None:
                self._timer = self._reactor.callLater(self._flush_timeout, self._flush_stalled, self._moved)
            self._watch_input()

    def abort(self, *, reset: bool = False) -> None:
        if reset or self._pending:
            self._reset_on_close()
        self._drop(Lost(False, "aborted by this side"))

    def pause_reading(self) -> None:
        # The descriptor stays registered until the next event: a pause that ends before costs no system call.
        if not self._closing:
            self._paused = True

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self._watch_input()

    def is_gone(self) -> bool:
        if self._lost is not None:
            return True
        if is_hung_up(self._socket):
            # A unix peer may have closed after its last byte, and the kernel keeps that byte for us.
            return not self._unix or self._input_over or not has_unread(self._socket)
        return not self._unix and is_silent(self._socket, self._keepalive)

    @property
    def pending(self) -> int:
        return self._pending

    @property
    def peer_address(self) -> tuple[str, int] | None:
        return self._peer_address

    # What the reactor calls.

    def fileno(self) -> int:
        return self._socket.fileno()

    def logPrefix(self) -> str:
        return "-"

    def doRead(self) -> None:
        if (self._paused or self._input_over or self._receiver is None) and not self._closing:
            self._stop_reading()
            return
        self._take(*self._pull())

    def _take(self, data: bytes, end: Lost | None) -> None:
        """Pass on what one read gave."""
        if data:
            if self._closing:
                self._discard(data)
            else:
                try:
                    self._receiver.data_received(data)  # type: ignore[union-attr]
                except Exception:  # noqa: BLE001 - whatever a receiver does wrong must not end the process
                    self._receiver_failed("data_received")
        if end is not None:
            self._input_ended(end)

    def doWrite(self) -> None:
        if self._out is not None:
            try:
                self._push_pending()
            except OSError as error:
                self._output_failed(error)
                return
        if self._out is None:
            self._stop_writing()
            if self._ending and not self._ended:
                self._send_end()
        if self._full and self._pending < LOW_WATER:
            self._full = False
            if not self._closing:
                self._tell("write_drained")

    def connectionLost(self, reason: Failure) -> None:
        """The reactor has let go of the descriptor: hang-up without input, its own end, or a bug of ours.

        Twisted: `_PollLikeMixin._doReadOrWrite` and `ReactorBase.disconnectAll`.
        """
        was_reading = self._reading
        self._reading = self._writing = False
        if self._lost is not None:
            return
        if not reason.check(ConnectionDone, ConnectionLost):
            self._drop(Lost(False, f"internal error: {reason.getErrorMessage()}"))
        elif not is_hung_up(self._socket):
            # Nothing is wrong with the socket, so the reactor itself is ending: no later turn will come.
            self._drop(Lost(False, "the process is ending"))
            self._tell_lost()
        else:
            self._hung_up(was_reading)

    # Output.

    def _push(self, data: bytes | memoryview) -> int:
        """Give what the kernel takes of ``data`` at once; how many bytes. Errors are dealt with here."""
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._output_failed(error)
            return 0
        return sent

    def _push_pending(self) -> None:
        """Give the kernel what it takes of the pending chunks. Raises OSError."""
        burst = WRITE_BURST
        while (out := self._out) is not None and burst > 0:
            try:
                if len(out) == 1:
                    sent = self._socket.send(out[0])
                else:
                    sent = self._socket.sendmsg([out[i] for i in range(min(len(out), WRITE_BATCH))])
            except BlockingIOError:
                return
            burst -= sent
            self._consume(sent)

    def _consume(self, sent: int) -> None:
        """Forget the first ``sent`` pending bytes."""
        out = self._out
        assert out is not None
        self._pending -= sent
        self._moved += sent
        while sent:
            first = out[0]
            if sent < len(first):
                out[0] = memoryview(first)[sent:]
                return
            sent -= len(first)
            out.popleft()
        if not out:
            self._out = None

    def _send_end(self) -> None:
        """Everything is sent: send our end mark, then call `_end_sent`."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._output_failed(error)
            return
        self._end_sent()

    def _end_sent(self) -> None:
        self._ended = True
        if self._input_over and self._drained():
            self._drop(Lost(True, self._broken or "closed"))
        elif self._closing or self._input_over:
            self._closing = True
            self._watch_input()
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._reactor.callLater(self._linger, self._linger_over)

    def _output_failed(self, error: Exception) -> None:
        """The peer takes no more bytes: throw output away, but go on reading what it has sent before."""
        code = error.errno if isinstance(error, OSError) else None
        if code == errno.EPIPE or self._unix:
            self._break_output("the peer closed")
        else:
            self._failed = getattr(error, "strerror", None) or str(error)
            self._break_output(self._failed)

    def _break_output(self, why: str) -> None:
        if self._broken:
            return
        self._broken = f"{why}; {self._pending} bytes were not sent" if self._pending else why
        self._ending = self._ended = True
        self._out = None
        self._pending = 0
        self._stop_writing()
        if self._input_over:
            self._drop(Lost(not self._failed, self._broken))
            return
        if self._closing:
            self._end_sent()
        if self._full:
            self._full = False
            if not self._closing:
                self._tell("write_drained")

    # Input.

    def _pull(self) -> tuple[bytes, Lost | None]:
        """Read once: bytes (perhaps none), and the end when it was found: clean or not."""
        size = self._read_size
        try:
            data = self._socket.recv(size)
        except BlockingIOError:
            return b"", None
        except OSError as error:
            if self._unix and error.errno == errno.ECONNRESET:
                # The peer closed and left some of our output unread. Its own bytes were all read before this.
                self._break_output("the peer closed without reading everything")
                return b"", Lost(True, self._broken)
            return b"", Lost(False, error.strerror or str(error))
        if not data:
            return b"", Lost(False, self._failed) if self._failed else Lost(True, self._broken or "closed")
        if len(data) == size:
            self._read_size = READ_SIZE_BUSY
        elif len(data) < READ_SIZE:
            self._read_size = READ_SIZE
        return data, None

    def _input_ended(self, end: Lost) -> None:
        if self._lost is not None:
            return
        if not end.clean:
            self._drop(end)
        elif self._paused:
            self._held_end = end
            self._stop_reading()
        else:
            self._input_over = True
            if not self._closing:
                self._tell("end_received")
            if self._gone():
                return
            if self._ended:
                self._end_sent()
            elif self._drained():
                self._stop_reading()

    def _discard(self, data: bytes) -> None:
        self._discarded += len(data)
        if self._discarded > DISCARD_LIMIT:
            self._stop_reading()

    def _watch_input(self) -> None:
        """Have the reactor call doRead, if input is wanted and can still come."""
        if self._lost is not None or self._paused:
            return
        if self._held_end is not None or self._has_buffered():
            if self._pass is None:
                self._pass = self._reactor.callLater(0, self._read_pass)
        elif not self._drained() and (
            self._discarded <= DISCARD_LIMIT if self._closing else self._receiver is not None
        ):
            self._start_reading()

    def _has_buffered(self) -> bool:
        """Is there input that the kernel no longer has, so that no event will tell of it?"""
        return False

    def _drained(self) -> bool:
        """The peer's direction is over: has the socket nothing more to read?"""
        return self._input_over

    def _read_pass(self) -> None:
        """Deliver what no event will tell of."""
        self._pass = None
        if self._lost is not None or self._paused:
            return
        if self._held_end is not None:
            end, self._held_end = self._held_end, None
            self._input_ended(end)
        else:
            self.doRead()
        self._watch_input()

    def _hung_up(self, was_reading: bool) -> None:
        """The reactor saw a hang-up and no input it had been asked to tell of."""
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._output_failed(OSError(code or errno.EPIPE, os.strerror(code or errno.EPIPE)))
        if was_reading and self._lost is None:
            self.doRead()
            unread = self._gone() or has_unread(self._socket)
            if not unread and not self._input_over and not self._paused:
                # Neither bytes nor an end after a hang-up: nothing more will come.
                self._drop(Lost(False, self._failed or "hung up"))
        self._watch_input()

    # The end.

    def _gone(self) -> bool:
        """Has a receiver ended the stream, in the call just made?"""
        return self._lost is not None

    def _linger_over(self) -> None:
        self._timer = None
        self._drop(Lost(True, "closed"))

    def _flush_stalled(self, moved_before: int) -> None:
        self._timer = None
        if self._moved == moved_before:
            self._reset_on_close()
            waited = f"{self._flush_timeout:g} s"
            self._drop(Lost(False, f"the peer took none of {self._pending} bytes in {waited}"))
        else:
            self._timer = self._reactor.callLater(self._flush_timeout, self._flush_stalled, self._moved)

    def _reset_on_close(self) -> None:
        if not self._unix and self._lost is None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _drop(self, lost: Lost) -> None:
        """Close the descriptor and tell the receiver in a later turn. The only way a stream ends."""
        if self._lost is not None:
            return
        self._lost = lost
        self._ending = self._ended = self._input_over = True
        self._stop_reading()
        self._stop_writing()
        for delayed in (self._timer, self._pass):
            if delayed is not None:
                delayed.cancel()
        self._timer = self._pass = self._held_end = None
        self._out = None
        self._pending = 0
        self._release()
        self._reactor.callLater(0, self._tell_lost)

    def _release(self) -> None:
        self._socket.close()

    def _tell_lost(self) -> None:
        if self._receiver is None or self._told or self._lost is None:
            return
        self._told = True
        # Stream and receiver refer to each other: without the one reference both are free at once.
        receiver, self._receiver = self._receiver, None
        try:
            receiver.connection_lost(self._lost)
        except Exception:  # noqa: BLE001 - as in doRead
            self._receiver_failed("connection_lost")

    def _tell(self, method: str) -> None:
        if self._receiver is None:
            return
        try:
            getattr(self._receiver, method)()
        except Exception:  # noqa: BLE001 - as in doRead
            self._receiver_failed(method)

    def _receiver_failed(self, method: str) -> None:
        """Called in the handler of an exception that a receiver raised."""
        self.log.failure("{method} raised; the connection is cut", method=method)
        self.abort()

    def _start_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self._reactor.addReader(self)

    def _start_writing(self) -> None:
        if not self._writing:
            self._writing = True
            self._reactor.addWriter(self)

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._reactor.removeReader(self)

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            self._reactor.removeWriter(self)
