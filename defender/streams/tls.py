"""Byte streams under TLS, server side: pyOpenSSL on the real socket, so that half-close is ours to decide.

What TLS says (RFC 8446 section 6.1) and what Twisted, asyncio and uvloop make of it differ: a peer's
close_notify ends its direction only, and ours goes on. `docker run -i` with piped input depends on it.

========================  =================================================
The peer sends            The receiver hears
========================  =================================================
close_notify              ``end_received``; writing goes on (Go does this)
close_notify, then FIN    the same; late output still arrives (Node)
close_notify, then RST    ``end_received``, then ``connection_lost``, unclean
FIN without close_notify  ``connection_lost``, unclean: truncated
RST                       ``connection_lost``, unclean
========================  =================================================
"""

from __future__ import annotations

import os
import socket
from collections import deque
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from OpenSSL import SSL

# SSL_read and SSL_write are called here without pyOpenSSL, which makes a new buffer for each read and raises
# an exception for each that finds nothing. What they return below 1 goes back to pyOpenSSL to be explained.
from OpenSSL._util import ffi, lib
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from defender.streams.descriptor import SocketStream
from defender.streams.interface import Lost
from defender.streams.peer import KeepAlive

RECORD = 16 * 1024
"""The most plaintext that one TLS record carries, and that one SSL_read moves."""

PIECE = 64 * 1024
"""Bytes handed to one SSL_write, which makes records of them and tells only of all or of none."""

READ_BUDGET = 128 * 1024
"""Plaintext read in one turn of the reactor, and delivered at once.

No more than the C library's allocator keeps: it gave larger pieces back to the kernel after each use, and an
eighth of the time of an upload went into page faults.
"""

REFUSED_LINGER = 2.0
"""Seconds in which a refused peer may still read the alert that says why."""

TRUNCATED = "truncated: TCP FIN without close_notify"

_SPACE = ffi.new("char[]", READ_BUDGET)
"""Where SSL_read puts what it decrypts, for all streams: it is copied out before anything else happens."""

_SSL_read = lib.SSL_read
_SSL_write = lib.SSL_write
_bytes_at = ffi.buffer


class HandshakeError(Exception):
    """A TLS handshake failed.

    ``check`` names what failed: a check of the peer's identity (``IdentityError.check``), OpenSSL's words for
    a bad chain ("certificate has expired"), "no client certificate", "protocol", "refused by the peer",
    "disconnected", "timeout" or "cancelled". ``subject`` is the peer's common name as far as it is known, not
    to be believed; ``peer`` its (IP, port).
    """

    def __init__(
        self, detail: str, *, check: str, subject: str = "", peer: tuple[str, int] | None = None
    ) -> None:
        super().__init__(detail, check, subject, peer)
        self.detail = detail
        self.check = check
        self.subject = subject
        self.peer = peer

    def __str__(self) -> str:
        whom = f" for {self.subject!r}" if self.subject else ""
        where = " from {}:{}".format(*self.peer) if self.peer else ""
        return f"TLS handshake{where} failed: {self.check}{whom}: {self.detail}"


@dataclass(slots=True)
class PeerCheck:
    """What a verify callback has to say: of the certificate it refused, or what it found in a good one.

    The stream hangs one on its pyOpenSSL connection (``get_app_data()``). Sessions are never resumed, so the
    callback is asked on each connection and `verified` is of this one.
    """

    check: str = ""
    subject: str = ""
    detail: str = ""
    verified: object = None


class TLSStream(SocketStream):
    """The server's end of one TLS connection. Use it once `handshake` has fired."""

    __slots__ = (
        "_check",
        "_connection",
        "_deadline",
        "_established",
        "_fin_sent",
        "_handshake",
        "_handshake_timeout",
        "_more",
        "_raw_over",
        "_read_needs_write",
        "_ssl",
        "_write_needs_read",
    )

    def __init__(
        self,
        reactor: Any,
        sock: socket.socket,
        context: SSL.Context,
        *,
        handshake_timeout: float = 10.0,
        linger: float = 5.0,
        flush_timeout: float = 3600.0,
        keepalive: KeepAlive | None = None,
    ) -> None:
        """Take over ``sock``, which was accepted. Times are in seconds; the others as for `SocketStream`."""
        super().__init__(reactor, sock, linger=linger, flush_timeout=flush_timeout, keepalive=keepalive)
        self._check = PeerCheck()
        self._connection: Any = SSL.Connection(context, sock)  # None once the stream is lost
        self._ssl: Any = self._connection._ssl
        # One record a read: with SSL_MODE_AUTO_RETRY, which is OpenSSL's default, it would go on reading for
        # as long as a client sends new keys. epoll tells again of what is still in the kernel.
        # All records of a write: with SSL_MODE_ENABLE_PARTIAL_WRITE, which pyOpenSSL sets, each would be a
        # call of its own.
        lib.SSL_clear_mode(self._ssl, lib.SSL_MODE_AUTO_RETRY | lib.SSL_MODE_ENABLE_PARTIAL_WRITE)
        self._connection.set_app_data(self._check)
        self._connection.set_accept_state()
        self._established = False
        self._handshake: Deferred[TLSStream] | None = None
        self._handshake_timeout = handshake_timeout
        self._deadline: IDelayedCall | None = None
        self._more = False  # the last pass stopped before OpenSSL had given everything
        self._read_needs_write = False
        self._write_needs_read = False
        self._raw_over = False  # FIN seen
        self._fin_sent = False

    def handshake(self) -> Deferred[TLSStream]:
        """Shake hands; to be called once. Fires with this stream, or with a HandshakeError.

        After an error the stream closes itself; a receiver is not needed and hears nothing but the loss.
        """
        self._handshake = Deferred(lambda _: self._cut("cancelled", "cancelled"))
        self._deadline = self._reactor.callLater(self._handshake_timeout, self._timed_out)
        self._start_reading()
        return self._handshake

    @property
    def certificate(self) -> x509.Certificate | None:
        """The peer's own certificate, read anew each time.

        None before the handshake, after the connection's end, and where the context asks for none.
        """
        if not self._established or self._connection is None:
            return None
        found: x509.Certificate | None = self._connection.get_peer_certificate(as_cryptography=True)
        return found

    @property
    def verified(self) -> object:
        """What the context's identity check returned for the certificate, None if it made none."""
        return self._check.verified if self._established else None

    @property
    def version(self) -> str:
        """The protocol in use: ``TLSv1.3`` or ``TLSv1.2``; "" once the connection is lost."""
        return str(self._connection.get_protocol_version_name()) if self._connection is not None else ""

    def half_close(self) -> None:
        if self._established:
            super().half_close()
        else:
            self.abort()

    def close(self) -> None:
        if self._established or self._closing:
            super().close()
        else:
            self.abort()

    # What the reactor calls.

    def doRead(self) -> None:
        if self._closing or self._input_over:
            self._read_raw()
            return
        if not self._established:
            self._step()
            return
        if self._write_needs_read:
            self._write_needs_read = False
            self.doWrite()
        elif not self._paused and self._receiver is not None:
            # As below, without the calls: most reads bring one short record.
            self._more = False
            got = _SSL_read(self._ssl, _SPACE, RECORD)
            if 0 < got < RECORD:
                try:
                    self._receiver.data_received(_bytes_at(_SPACE, got)[:])
                except Exception:  # noqa: BLE001 - as in SocketStream.doRead
                    self._receiver_failed("data_received")
                return
            self._take(*self._pull_much(got))
            if self._more:
                self._watch_input()
            return
        super().doRead()
        if self._more:
            self._watch_input()

    def doWrite(self) -> None:
        if not self._established and not self._closing:
            self._step()
            return
        if self._read_needs_write:
            self._read_needs_write = False
            self._more = True
            self.doRead()
        super().doWrite()

    # The handshake.

    def _step(self) -> None:
        result = lib.SSL_do_handshake(self._ssl)
        if result == 1:
            self._shaken()
            return
        if lib.SSL_get_error(self._ssl, result) == lib.SSL_ERROR_WANT_READ:
            self._stop_writing()
            return
        try:
            self._connection._raise_ssl_error(self._ssl, result)
        except SSL.WantWriteError:
            self._start_writing()
        except SSL.SysCallError as error:
            detail = "the peer closed" if error.args[0] == -1 else os.strerror(error.args[0])
            self._refuse("disconnected", detail)
        except SSL.Error as error:
            self._refuse(*self._why(error))
        except Exception as error:  # noqa: BLE001 - what a callback of the context raised comes out here
            self._refuse("protocol", str(error))

    def _shaken(self) -> None:
        self._stop_writing()
        if self._check.verified is None and self._lacks_certificate():
            self._refuse("no client certificate", "OpenSSL let the peer pass without one")
            return
        self._established = True
        if self._out is not None:
            self._start_writing()
        self._more = self._connection.pending() > 0
        handshake = self._end_handshake()
        if handshake is not None:
            handshake.callback(self)

    def _lacks_certificate(self) -> bool:
        wanted = self._connection.get_context().get_verify_mode() & SSL.VERIFY_FAIL_IF_NO_PEER_CERT
        return bool(wanted) and self._connection.get_peer_certificate() is None

    def _why(self, error: SSL.Error) -> tuple[str, str]:
        reasons = [entry[2] for entry in error.args[0]] if error.args else []
        detail = "; ".join(reasons) or "TLS error"
        if self._check.check:
            return self._check.check, self._check.detail
        if "peer did not return a certificate" in reasons:
            return "no client certificate", "the peer sent no certificate, and one is required"
        if "alert" in detail:
            return "refused by the peer", detail
        return "protocol", detail

    def _refuse(self, check: str, detail: str) -> None:
        """Fail the handshake. OpenSSL has sent an alert: let the peer read it, a reset would destroy it."""
        handshake = self._end_handshake()
        self._linger = min(self._linger, REFUSED_LINGER)
        self._closing = self._ending = True
        self._stop_writing()
        self._end_sent()
        if handshake is not None:
            handshake.errback(self._error(check, detail))

    def _cut(self, check: str, detail: str) -> None:
        handshake = self._end_handshake()
        self._drop(Lost(False, f"TLS handshake: {detail}"))
        if handshake is not None and not handshake.called and check != "cancelled":
            handshake.errback(self._error(check, detail))

    def _timed_out(self) -> None:
        self._deadline = None
        self._cut("timeout", f"not done in {self._handshake_timeout:g} s")

    def _end_handshake(self) -> Deferred[TLSStream] | None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        handshake, self._handshake = self._handshake, None
        return handshake

    def _error(self, check: str, detail: str) -> HandshakeError:
        return HandshakeError(detail, check=check, subject=self._check.subject, peer=self.peer_address)

    # Output. What is handed to OpenSSL again after a WantWriteError begins with the same bytes and is never
    # shorter: a record made of them is already under way.

    def _push(self, data: bytes | memoryview) -> int:
        if not self._established:
            return 0
        size = len(data)
        if size <= PIECE and type(data) is bytes:
            result = _SSL_write(self._ssl, data, size)
            if result == size:
                return size
            if result <= 0:
                self._write_refused(result)
                return 0
        with ffi.from_buffer(data) as start:
            sent = 0
            while sent < size:
                result = _SSL_write(self._ssl, start + sent, min(PIECE, size - sent))
                if result <= 0:
                    self._write_refused(result)
                    break
                sent += result
        return sent

    def _write_refused(self, result: int) -> None:
        try:
            self._connection._raise_ssl_error(self._ssl, result)
        except SSL.WantWriteError:
            pass
        except SSL.WantReadError:
            self._write_needs_read = True
        except SSL.Error as error:
            self._output_failed(error)

    def _push_pending(self) -> None:
        self._moved += 1  # there was room: OpenSSL does not say how much of a piece went through it
        while (out := self._out) is not None:
            if len(out[0]) < RECORD and len(out) > 1:
                self._join_first(out)
            first = out[0]
            sent = self._push(first)
            if self._broken or self._lost is not None:
                return
            self._consume(sent)
            if sent < len(first):
                if self._write_needs_read:
                    self._stop_writing()
                    self._start_reading()
                else:
                    self._start_writing()
                return

    @staticmethod
    def _join_first(out: deque[bytes | memoryview]) -> None:
        """Make one chunk of the first small ones, so that they share a record."""
        parts = [out.popleft()]
        size = len(parts[0])
        while out and size < RECORD:
            size += len(out[0])
            parts.append(out.popleft())
        out.appendleft(b"".join(parts))

    def _send_end(self) -> None:
        try:
            self._connection.shutdown()
        except SSL.WantWriteError:
            self._start_writing()
            return
        except SSL.Error as error:
            self._output_failed(error)
            return
        self._end_sent()

    def _end_sent(self) -> None:
        if (self._closing or self._input_over) and not self._fin_sent:
            self._fin_sent = True
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # the peer is gone
            if self._input_over and not self._raw_over:
                # Most clients have closed by now: this look spares a timer and a turn of the reactor.
                data, end = super()._pull()
                if data:
                    self._discard(data)
                elif end is not None and end.clean:
                    self._raw_over = True
                elif end is not None:
                    self._drop(end)
                    return
        super()._end_sent()

    def _output_failed(self, error: Exception) -> None:
        if isinstance(error, SSL.SysCallError) and error.args[0] > 0:
            error = OSError(error.args[0], os.strerror(error.args[0]))
        if self._closing or self._input_over:
            super()._output_failed(error)
        else:
            # OpenSSL reads no more after a write that failed: bytes that it has not decrypted yet are lost.
            detail = getattr(error, "strerror", None) or str(error)
            unsent = f"; {self._pending} bytes were not sent" if self._pending else ""
            self._drop(Lost(False, detail + unsent))

    def _hung_up(self, was_reading: bool) -> None:
        if self._established or self._closing:
            super()._hung_up(was_reading)
        else:
            self._cut("disconnected", "the peer closed")

    # Input.

    def _pull(self) -> tuple[bytes, Lost | None]:
        self._more = False
        got = _SSL_read(self._ssl, _SPACE, RECORD)
        if 0 < got < RECORD:
            # A short record is probably the last. What there is else lies in the kernel, and it will say so:
            # OpenSSL takes one record at a time (read_ahead is off).
            return _bytes_at(_SPACE, got)[:], None
        return self._pull_much(got)

    def _pull_much(self, got: int) -> tuple[bytes, Lost | None]:
        """Go on after a first SSL_read that gave a whole record, or none."""
        have = 0
        while got > 0:
            have += got
            if have > READ_BUDGET - RECORD:
                break
            got = _SSL_read(self._ssl, _SPACE + have, RECORD)
        # Taken out now: whoever is called below may read another stream.
        data = _bytes_at(_SPACE, have)[:]
        if got > 0:
            self._more = self._connection.pending() > 0
            return data, None
        return data, self._read_refused(got)

    def _read_refused(self, result: int) -> Lost | None:
        """Why SSL_read gave no bytes: None when there are none at the moment."""
        try:
            self._connection._raise_ssl_error(self._ssl, result)
        except SSL.WantReadError:
            pass
        except SSL.WantWriteError:
            self._read_needs_write = True
            self._start_writing()
        except SSL.ZeroReturnError:
            return Lost(True, "closed")
        except SSL.SysCallError as error:
            if error.args[0] == -1:
                return Lost(False, self._failed or TRUNCATED)
            return Lost(False, os.strerror(error.args[0]))
        except SSL.Error as error:
            return Lost(False, "TLS: " + ("; ".join(entry[2] for entry in error.args[0]) or "error"))
        return None

    def _read_raw(self) -> None:
        """After close_notify, and while closing: nothing is wanted but the end of the TCP connection.

        OpenSSL is not asked any more. A FIN is in order; a reset says that nobody reads what we write.
        """
        data, end = super()._pull()
        if data:
            self._discard(data)
        elif end is not None and end.clean:
            self._raw_over = True
            self._stop_reading()
            if self._closing:
                self._input_over = True
                if self._ended:
                    self._end_sent()
        elif end is not None:
            self._drop(end)

    def _has_buffered(self) -> bool:
        return self._more and self._receiver is not None and not (self._closing or self._input_over)

    def _drained(self) -> bool:
        return self._raw_over

    def _release(self) -> None:
        super()._release()
        # OpenSSL holds some 50 kB; a reference to this stream may outlive it by far.
        self._connection = self._ssl = None
        handshake = self._end_handshake()
        if handshake is not None:
            handshake.errback(self._error("cancelled", "the connection was aborted"))
