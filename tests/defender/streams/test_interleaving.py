"""Whatever two ends do to each other in whatever order, no byte is lost, doubled or out of place."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Protocol

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.streams.descriptor import SocketStream
from defender.streams.plain import PlainStream
from defender.streams.tls import TLSStream
from tests.defender.streams.harness import (
    DrivenPoll,
    Recorder,
    TLSClient,
    driven_poll,
    fleet,
    tcp_pair,
    turn,
    unix_pair,
)

OPERATIONS = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.sampled_from(["write", "write", "write", "pause", "resume", "turn", "turn", "half_close"]),
        st.sampled_from([1, 5, 1000, 16_383, 16_384, 16_385, 40_000, 131_073, 700_000]),
    ),
    max_size=40,
)


class End(Protocol):
    """One of two ends."""

    sent: bytearray
    ended: bool

    @property
    def received(self) -> bytes: ...
    def write(self, data: bytes) -> None: ...
    def half_close(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def pump(self) -> None: ...
    def is_done(self) -> bool: ...


class StreamEnd:
    """A stream of ours, and what it was told."""

    def __init__(self, stream: SocketStream) -> None:
        self.stream = stream
        self.recorder = Recorder(stream)
        self.sent = bytearray()
        self.ended = False

    @property
    def received(self) -> bytes:
        return bytes(self.recorder.data)

    def write(self, data: bytes) -> None:
        if not self.ended:
            self.sent += data
        self.stream.write(data)

    def half_close(self) -> None:
        self.ended = True
        self.stream.half_close()

    def pause(self) -> None:
        self.stream.pause_reading()

    def resume(self) -> None:
        self.stream.resume_reading()

    def pump(self) -> None:
        """The reactor does it."""

    def is_done(self) -> bool:
        return self.recorder.lost is not None


class ClientEnd:
    """A TLS client that never blocks, on the standard library's TLS."""

    def __init__(self, sock: socket.socket) -> None:
        self.client = TLSClient(sock, fleet().client_context())
        self.socket = sock
        self.socket.setblocking(False)
        self.sent = bytearray()
        self.data = bytearray()
        self.out = bytearray()
        self.ended = self.paused = self.over = self.shaken = False

    @property
    def received(self) -> bytes:
        return bytes(self.data)

    def write(self, data: bytes) -> None:
        if not self.ended:
            self.sent += data
            self.client.tls.write(data)

    def half_close(self) -> None:
        if not self.ended:
            self.ended = True
            with contextlib.suppress(ssl.SSLWantReadError):
                self.client.tls.unwrap()

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def pump(self) -> None:
        if self.socket.fileno() == -1:
            return
        if not self.shaken:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.client.tls.do_handshake()
                self.shaken = True
        self.out += self.client._out.read()
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            del self.out[: self.socket.send(self.out)]
        if self.over and self.ended and not self.out:
            self.socket.close()
        if self.paused or self.over:
            return
        with contextlib.suppress(BlockingIOError):
            self.client._in.write(self.socket.recv(65536))
        try:
            while self.shaken and not self.over:
                data = self.client.tls.read(65536)
                self.data += data
                self.over = not data  # close_notify is told in two ways
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.over = True

    def is_done(self) -> bool:
        return self.socket.fileno() == -1


class InterleavingTests(SynchronousTestCase):
    """Random operations on both ends of a pair."""

    def run_pair(
        self,
        connect: Callable[[DrivenPoll], tuple[End, End]],
        operations: list[tuple[int, str, int]],
    ) -> None:
        with driven_poll() as poll:
            ends = connect(poll)

            def step() -> None:
                for end in ends:
                    end.pump()
                turn(poll)

            counter = 0
            for who, operation, size in operations:
                if operation == "write":
                    counter += 1
                    ends[who].write(bytes([counter % 256]) * size)
                elif operation == "turn":
                    step()
                else:
                    getattr(ends[who], operation)()
            for end in ends:
                end.half_close()
                end.resume()
            for _ in range(5_000):
                if all(end.is_done() for end in ends):
                    break
                step()
            for here, there in (ends, ends[::-1]):
                self.assertEqual(len(there.received), len(here.sent))
                self.assertTrue(there.received == here.sent, "the bytes differ")
            for end in ends:
                if isinstance(end, StreamEnd):
                    self.check(end)
                elif isinstance(end, ClientEnd):
                    end.socket.close()

    def check(self, end: StreamEnd) -> None:
        calls = end.recorder.calls
        assert end.recorder.lost is not None
        self.assertTrue(end.recorder.lost.clean, end.recorder.lost)
        self.assertEqual(calls.count("end_received"), 1)
        self.assertNotIn("data_received", calls[calls.index("end_received") :])
        water = [call for call in calls if call.startswith("write_")]
        self.assertEqual(water, (["write_full", "write_drained"] * len(water))[: len(water)])

    def unix(self, poll: DrivenPoll) -> tuple[End, End]:
        left, right = unix_pair()
        return StreamEnd(PlainStream(poll, left)), StreamEnd(PlainStream(poll, right))

    def tcp(self, poll: DrivenPoll) -> tuple[End, End]:
        left, right = tcp_pair()
        return StreamEnd(PlainStream(poll, left)), StreamEnd(PlainStream(poll, right))

    def tls(self, poll: DrivenPoll) -> tuple[End, End]:
        left, right = tcp_pair()
        client = ClientEnd(left)
        stream = TLSStream(poll, right, fleet().context())
        shaken = stream.handshake()
        while not (shaken.called and client.shaken):
            client.pump()
            turn(poll)
        return client, StreamEnd(stream)

    @settings(max_examples=120, deadline=None)
    @given(OPERATIONS)
    def test_unix(self, operations: list[tuple[int, str, int]]) -> None:
        self.run_pair(self.unix, operations)

    @settings(max_examples=60, deadline=None)
    @given(OPERATIONS)
    def test_tcp(self, operations: list[tuple[int, str, int]]) -> None:
        self.run_pair(self.tcp, operations)

    @settings(max_examples=100, deadline=None)
    @given(OPERATIONS)
    def test_tls(self, operations: list[tuple[int, str, int]]) -> None:
        self.run_pair(self.tls, operations)
