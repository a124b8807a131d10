"""The defender's reading of one client connection, without the connection: bytes in, requests out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from defender.contract.actions import Operation
from defender.http1.body import ChunkedDecoder, LengthDecoder
from defender.http1.errors import HTTPError
from defender.http1.head import MAX_HEAD, Framing, RequestHead, find_head_end, parse_request_head
from defender.http1.target import Target
from defender.proxy.inspection import inspect
from tests.vectors import REFUSED, Outcome


@dataclass(slots=True)
class Seen:
    """One request: its reading and the payload of its body so far; `complete` when all of it was there."""

    head: RequestHead
    target: Target
    operation: Operation
    body: bytes = b""
    complete: bool = False


@dataclass(slots=True)
class Connection:
    """Reads what a client sends, piece by piece, as far as a connection goes that carries it.

    `requests` in order; `error` is what ended the reading, if something did. A request whose body is
    refused counts as refused though its head was fine: the Engine never gets the end of it.
    """

    requests: list[Seen] = field(default_factory=list)
    error: HTTPError | None = None
    closed: bool = False
    _buffer: bytearray = field(default_factory=bytearray)
    _scanned: int = 0
    _decoder: LengthDecoder | ChunkedDecoder | None = None

    @property
    def outcome(self) -> Outcome:
        """The actions seen, and `refused` at the end if the last thing read was refused."""
        if self.error is None:
            return tuple(request.operation.action for request in self.requests)
        whole = [request.operation.action for request in self.requests if request.complete]
        return (*whole, REFUSED)

    def feed(self, data: bytes) -> None:
        """Take one piece."""
        if self.closed:
            return
        try:
            while data and not self.closed:
                data = self._feed_body(data) if self._decoder is not None else self._feed_head(data)
        except HTTPError as error:
            self.error = error
            self.closed = True

    def _feed_head(self, data: bytes) -> bytes:
        self._buffer += data
        end = find_head_end(self._buffer, self._scanned)
        if end < 0:
            self._scanned = len(self._buffer)
            if self._scanned > MAX_HEAD:
                raise HTTPError(431, "the head is too long")
            return b""
        head = parse_request_head(bytes(self._buffer[:end]))
        rest = bytes(self._buffer[end:])
        self._buffer.clear()
        self._scanned = 0
        inquiry = inspect(head, discard_limit=1 << 20)
        self.requests.append(Seen(head, inquiry.target, inquiry.operation))
        self._decoder = ChunkedDecoder() if head.framing is Framing.CHUNKED else LengthDecoder(head.length)
        return self._feed_body(rest)

    def _feed_body(self, data: bytes) -> bytes:
        assert self._decoder is not None
        request = self.requests[-1]
        payload, surplus = self._decoder.decode(data)
        request.body += payload
        if self._decoder.finished:
            request.complete = True
            self._decoder = None
            self.closed = not request.head.keep_alive
        return surplus


def read_connection(pieces: Iterable[bytes]) -> Connection:
    """Read everything in `pieces`."""
    connection = Connection()
    for piece in pieces:
        connection.feed(piece)
    return connection
