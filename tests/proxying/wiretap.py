"""A relay between the defender and the Engine that sees every byte the Engine gets.

It listens on a unix socket, connects to the Engine's, and reads what passes with the tests' own strict reader
(`reading`), so that what reached the Engine is known from the wire, whatever the Engine makes of it.
Half-closes, resets and back-pressure pass through: it holds at most `HELD` bytes a direction.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable

from tests.proxying.reading import (
    Answer,
    BrokenError,
    Kept,
    Reading,
    Request,
    Source,
    read_answer,
    read_request,
)

HELD = 128 * 1024


class Transcript:
    """What passed on one connection to the Engine, read.

    Attributes:
        requests, answers: in order; an answer belongs to the request with the same index, 1xx ones are left
            out.
        upward: bytes of the tunnel towards the Engine. downward: and back, with those behind the answer.
        faults: what must not be: bytes that are not a canonical request, or that came before the answer to
            the one before was over.
        ending: how the defender ended it: "", "half-closed", "closed".
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.requests: list[Request] = []
        self.answers: list[Answer] = []
        self.upward = Kept()
        self.downward = Kept()
        self.faults: list[str] = []
        self.tunnel = False
        self.ending = ""
        self.open = True
        self._asked, self._said = Source(), Source()
        self._request: Reading | None = None
        self._answer: Reading | None = None
        self._deaf = False

    def up(self, data: bytes) -> None:
        """Bytes from the defender."""
        if self.tunnel:
            self.upward.add(data)
            return
        self._asked.buffer += data
        while self._asked.buffer and not self.faults:
            if self._request is None:
                if len(self.answers) < len(self.requests) or not all(a.complete for a in self.answers[-1:]):
                    self.faults.append(f"bytes before the answer: {bytes(self._asked.buffer[:200])!r}")
                    return
                self._request = read_request(self._asked, self.requests)
            if not self._step_request():
                return

    def _step_request(self) -> bool:
        assert self._request is not None
        try:
            next(self._request)
        except StopIteration:
            self._request = None
            return True
        except BrokenError as broken:
            self.faults.append(str(broken))
        return False

    def down(self, data: bytes) -> None:
        """Bytes from the Engine; they may be as wrong as a test wants them."""
        if self.tunnel or self._deaf:
            self.downward.add(data)
            return
        self._said.buffer += data
        self._read_answers()

    def _read_answers(self) -> None:
        while self._said.buffer or self._said.ended:
            if self._answer is None:
                if len(self.answers) >= len(self.requests):
                    return
                self._answer = read_answer(self._said, self.answers, self.requests[len(self.answers)].method)
            try:
                next(self._answer)
                self.answers[:] = [a for a in self.answers if a.status >= 200 or a.status == 101]
                return
            except StopIteration:
                self._answer = None
                self.answers[:] = [a for a in self.answers if a.status >= 200 or a.status == 101]
                if self.answers[-1].hijacked:
                    self.tunnel = True
                    self.downward.add(self._said.take(len(self._said.buffer)))
                    return
            except BrokenError:
                self._deaf = True
                return

    def ended(self, ending: str) -> None:
        """The defender has half-closed or closed."""
        if self._request is not None and all(request.complete for request in self.requests[-1:]):
            self.faults.append("half a request head")
        self.ending = ending

    def answered_to_the_end(self) -> None:
        """The Engine has half-closed or closed."""
        self._said.ended = True
        if not (self.tunnel or self._deaf):
            self._read_answers()


class _Pipe:
    """One direction: what was read here and not yet written there."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source, self.target = source, target
        self.held = bytearray()
        self.over = False
        self.passed = False  # the end was passed on
        self.gone = False  # the source takes nothing any more either

    @property
    def wants_input(self) -> bool:
        return not self.over and len(self.held) < HELD

    def write(self) -> None:
        """Raises OSError."""
        if self.held:
            try:
                sent = self.target.send(memoryview(self.held)[:65536], socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            del self.held[:sent]
        if self.over and not self.held and not self.passed:
            self.passed = True
            self.target.shutdown(socket.SHUT_WR)


class Wiretap:
    """The relay: `start` it, point the defender at `path`."""

    def __init__(self, path: str, engine: str) -> None:
        self.path = path
        self.engine = engine
        self.transcripts: list[Transcript] = []
        self._lock = threading.Condition()
        self._order: list[tuple[Transcript, Request]] = []
        self._listener: socket.socket | None = None
        self._stopping = False
        self._threads: list[threading.Thread] = []

    def start(self) -> Wiretap:
        self.listen()
        return self

    def listen(self) -> None:
        """Accept connections, again after `refuse`."""
        if self._listener is None:
            if os.path.exists(self.path):
                os.unlink(self.path)
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(self.path)
            self._listener.listen(128)
            self._spawn(self._accept, self._listener)

    def refuse(self) -> None:
        """Refuse new connections; open ones go on."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def stop(self) -> None:
        self._stopping = True
        self.refuse()
        for thread in list(self._threads):
            thread.join(10)
        if os.path.exists(self.path):
            os.unlink(self.path)

    # -- what is asked of it

    @property
    def open_connections(self) -> int:
        with self._lock:
            return sum(1 for transcript in self.transcripts if transcript.open)

    def take(self) -> list[Request]:
        """Return the requests that reached the Engine since the last call, in the order of their heads."""
        with self._lock:
            taken, self._order = self._order, []
        return [request for _, request in taken]

    def take_transcripts(self) -> list[Transcript]:
        """Return the connections that carried a request since the last call of `take` or of this."""
        with self._lock:
            taken, self._order = self._order, []
        return list(dict.fromkeys(transcript for transcript, _ in taken))

    @property
    def faults(self) -> list[str]:
        """What passed and must not have, on all connections."""
        with self._lock:
            return [fault for transcript in self.transcripts for fault in transcript.faults]

    def wait(self, condition: Callable[[], bool], what: str, timeout: float = 20.0) -> None:
        """Block until `condition` holds; it is asked again whenever something passed."""
        end = time.monotonic() + timeout
        with self._lock:
            while not condition():
                if time.monotonic() > end:
                    raise AssertionError(f"not in {timeout} s: {what}")
                self._lock.wait(0.2)

    def wait_for_requests(self, count: int) -> None:
        """Block until that many requests wait to be taken."""
        self.wait(lambda: len(self._order) >= count, f"{count} requests at the Engine")

    # -- threads

    def _spawn(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(
            target=target, args=arguments, daemon=True, name=f"wiretap-{target.__name__}"
        )
        self._threads = [known for known in self._threads if known.is_alive()]
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            try:
                far.connect(self.engine)
            except OSError:
                far.close()
                near.close()
                continue
            with self._lock:
                transcript = Transcript(len(self.transcripts) + 1)
                self.transcripts.append(transcript)
            self._spawn(self._relay, transcript, near, far)

    def _relay(self, transcript: Transcript, near: socket.socket, far: socket.socket) -> None:
        near.setblocking(False)
        far.setblocking(False)
        up, down = _Pipe(near, far), _Pipe(far, near)
        try:
            while not (self._stopping or (up.passed and down.passed)) and self._turn(transcript, up, down):
                pass
        finally:
            far.close()
            near.close()
            with self._lock:
                transcript.ending = transcript.ending or "cut"
                transcript.open = False
                self._lock.notify_all()

    def _turn(self, transcript: Transcript, up: _Pipe, down: _Pipe) -> bool:
        """Wait for something and pass it on; False when the connection is over."""
        poll = select.poll()
        for mine, other in ((up, down), (down, up)):
            wanted = (select.POLLIN if mine.wants_input else 0) | (select.POLLOUT if other.held else 0)
            if wanted or mine.over:  # one that is over is asked for its hang-up only
                poll.register(mine.source, wanted)
        ready = dict(poll.poll(200))
        for mine, other in ((up, down), (down, up)):
            events = ready.get(mine.source.fileno(), 0)
            hung_up = bool(events & (select.POLLHUP | select.POLLERR))
            if (events & select.POLLIN or hung_up) and mine.wants_input:
                self._read(transcript, mine, mine is up)
            if hung_up and mine.over:
                mine.gone = True
                other.held.clear()
                if mine is up:
                    with self._lock:
                        transcript.ended("closed")
        for mine, other in ((up, down), (down, up)):
            try:
                if not other.gone:
                    mine.write()
            except OSError:
                # Nobody reads there any more: the next turn finds the hang-up.
                mine.held.clear()
        return not any(mine.gone and not mine.held for mine in (up, down))

    def _read(self, transcript: Transcript, pipe: _Pipe, is_up: bool) -> None:
        try:
            data = pipe.source.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        with self._lock:
            before = len(transcript.requests)
            if not data:
                pipe.over = True
                if is_up:
                    transcript.ended("half-closed")
                else:
                    transcript.answered_to_the_end()
            elif is_up:
                transcript.up(data)
            else:
                transcript.down(data)
            self._order += [(transcript, request) for request in transcript.requests[before:]]
            self._lock.notify_all()
        pipe.held += data
