"""A Docker Engine that is not there: what a proxy's tests put in the Engine's place.

`FakeEngine` listens on a unix socket and behaves like Engine 20.10.24 (API 1.41) in what clients and the
request vectors observe: routing, version check, framing, hijacks, streams. Every request is recorded as it
arrived, and any answer can be replaced by a script (`engine_faults`), byte by byte. One thread a connection:
it serves tests on a reactor (the ``next_*`` Deferreds) and tests that block in a child process (``await_``).
"""

from __future__ import annotations

import os
import re
import select
import socket
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Literal

from twisted.internet.defer import Deferred

from tests.fakes import engine_faults as faults
from tests.fakes.engine_exchange import API_VERSION, MIDDLEWARE, SERVER, Exchange, Gate, Tunnel
from tests.fakes.engine_routes import CONTAINER_ID, echo, serve, swallow
from tests.fakes.engine_wire import EngineRequest, GoneError, RefusedError, Wire, parse_head, read_head

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IReactorFromThreads

    Script = Callable[[Exchange], None]

Occasion = Literal["head", "request", "hijack", "stall", "end"]
"""head: a head was read. request: its body too (or the answer was over before). hijack: it became a tunnel.
stall: its answer could not be written for 0.3 s. end: the exchange or tunnel is over."""


class FakeEngine:
    """The fake: `start` it, point the proxy at `path`, `stop` it in the clean-up; knobs may be set anytime.

    Knobs: `missing` container names; `execs` by id; `program` run behind attach and exec (`cat` by default,
    writing `late_output` after the client's half-close); `exit_gate` (None: containers have ended) and
    `exit_code` for wait and ``logs?follow=1``; `log_lines`; `listing` (of ``/containers/json``); `archive`;
    `save_bytes`; `builder_version`; `attach_tty` (set by each create); `silent` (accept and never read).
    """

    def __init__(self, path: str, reactor: IReactorFromThreads | None = None) -> None:
        self.path = path
        self.requests: list[EngineRequest] = []
        self.refusals: list[bytes] = []
        """Raw answers given to heads Go would not have read."""
        self.accepted = 0
        self.missing = {"nonexist"}
        self.execs: dict[str, dict[str, Any]] = {}
        self.late_output = b""
        self.program: Callable[[Tunnel], None] = lambda tunnel: echo(tunnel, self.late_output)
        self.exit_gate: Gate | None = None
        self.exit_code = 0
        self.log_lines: list[bytes] = [b"one\n", b"two\n"]
        self.listing: list[Any] = []
        self.archive = b"\0" * 1024
        self.save_bytes = 1 << 20
        self.builder_version = "1"
        self.attach_tty = False
        self.silent = False
        self._reactor = reactor
        self._lock = threading.Condition()
        self._behaviors: list[tuple[str, re.Pattern[str], Script, list[int]]] = []
        self._happened: dict[str, deque[EngineRequest]] = {}
        self._awaited: dict[str, deque[Deferred[EngineRequest]]] = {}
        self._followers: list[tuple[deque[bytes | None], Gate]] = []
        self._wires: dict[int, Wire] = {}
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self._stopping = False

    # -- life

    def start(self) -> FakeEngine:
        """Listen; returns itself."""
        self._stopping = False
        self.listen()
        return self

    def stop(self) -> None:
        """Stop listening, drop every connection and wait for its thread."""
        self._stopping = True
        self.refuse()
        end = time.monotonic() + 10
        while alive := self._alive():
            if time.monotonic() > end:
                names = [thread.name for thread in alive]
                raise RuntimeError(f"threads of the fake Engine did not end: {names}")
            self.drop_all()  # again: one may have been accepted meanwhile
            alive[0].join(0.2)
        if os.path.exists(self.path):
            os.unlink(self.path)

    def __enter__(self) -> FakeEngine:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def listen(self) -> None:
        """Accept connections (again): the Engine came back."""
        if os.path.exists(self.path):
            os.unlink(self.path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self.path)
        listener.listen(128)
        self._listener = listener
        self._spawn(self._accept, listener)

    def refuse(self) -> None:
        """Refuse new connections; the path stays (ECONNREFUSED), open connections go on."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
            listener.close()

    def drop_all(self) -> None:
        """End every open connection, as a dying Engine does."""
        with self._lock:
            wires = list(self._wires.values())
        for wire in wires:
            wire.wake()

    def restart(self) -> None:
        """Go away with all connections and come back at once."""
        self.refuse()
        self.drop_all()
        self.listen()

    @property
    def open_connections(self) -> int:
        """Connections that are open now."""
        with self._lock:
            return len(self._wires)

    # -- scripts

    def behave(self, method: str, path: str, script: Script, *, times: int | None = 1) -> None:
        """Answer the next `times` requests (None: all) of this method and path by `script`.

        `path` is a regular expression that fully matches the decoded path without its version prefix; method
        "*" is any. The script given last is asked first.
        """
        with self._lock:
            left = [-1 if times is None else times]
            self._behaviors.insert(0, (method, re.compile(path), script, left))

    def _script_for(self, request: EngineRequest) -> Script | None:
        path = re.sub(r"\A/v[0-9.]+(?=/)", "", request.path)
        with self._lock:
            for method, pattern, script, left in self._behaviors:
                if left[0] and method in ("*", request.method) and pattern.fullmatch(path):
                    left[0] -= 1
                    return script
        return None

    def add_exec(self, config: dict[str, Any]) -> str:
        """Remember an exec; returns its id."""
        with self._lock:
            name = f"{len(self.execs) + 1:064x}"
            self.execs[name] = config
            return name

    def emit(self, event: bytes) -> None:
        """Write one chunk (a JSON line) to every open events and stats stream."""
        self._publish(event)

    def end_streams(self) -> None:
        """End every open events and stats stream in order."""
        self._publish(None)

    def _publish(self, item: bytes | None) -> None:
        with self._lock:
            for queue, gate in self._followers:
                queue.append(item)
                gate.release()

    def follow_events(self, exchange: Exchange, begin: Callable[[], None]) -> None:
        """Call `begin`, then copy what `emit` gives until `end_streams` (for stock operations).

        What is emitted once the client can have seen the head is never missed.
        """
        follower: tuple[deque[bytes | None], Gate] = (deque(), Gate())
        with self._lock:
            self._followers.append(follower)
        try:
            begin()
            while True:
                exchange.wait(follower[1])
                if (item := follower[0].popleft()) is None:
                    return
                exchange.chunk(item)
        finally:
            with self._lock:
                self._followers.remove(follower)

    # -- what happened

    def next_head(self) -> Deferred[EngineRequest]:
        """Fire with the next request (in order, none skipped) whose head has arrived."""
        return self.next("head")

    def next_request(self) -> Deferred[EngineRequest]:
        """Fire with the next request that has arrived completely."""
        return self.next("request")

    def next_end(self) -> Deferred[EngineRequest]:
        """Fire with the next request whose exchange or tunnel is over."""
        return self.next("end")

    def next_stall(self) -> Deferred[EngineRequest]:
        """Fire with the next request whose answer the client has stopped taking."""
        return self.next("stall")

    def next(self, occasion: Occasion) -> Deferred[EngineRequest]:
        """Fire in the reactor with the next request this happens to; needs the constructor's reactor."""
        if self._reactor is None:
            raise RuntimeError("FakeEngine(path, reactor) is needed for Deferreds; without one use await_")
        waiting: Deferred[EngineRequest] = Deferred()
        with self._lock:
            happened = self._happened.setdefault(occasion, deque())
            if not happened:
                self._awaited.setdefault(occasion, deque()).append(waiting)
                return waiting
            request = happened.popleft()
        waiting.callback(request)
        return waiting

    def await_(self, occasion: Occasion, timeout: float = 20.0) -> EngineRequest:
        """Block until the next request this happens to; TimeoutError after `timeout` seconds."""
        with self._lock:
            happened = self._happened.setdefault(occasion, deque())
            if not self._lock.wait_for(lambda: bool(happened), timeout):
                raise TimeoutError(f"no {occasion} at the fake Engine in {timeout} s")
            return happened.popleft()

    def _tell(self, occasion: Occasion, request: EngineRequest) -> None:
        with self._lock:
            awaited = self._awaited.get(occasion)
            while awaited:
                waiting = awaited.popleft()
                if not waiting.called:
                    assert self._reactor is not None
                    self._reactor.callFromThread(_fire, waiting, request)
                    return
            self._happened.setdefault(occasion, deque()).append(request)
            self._lock.notify_all()

    # -- threads

    def _spawn(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(
            target=target, args=args, daemon=True, name=f"fake-engine-{target.__name__}"
        )
        with self._lock:
            self._threads = [known for known in self._threads if known.is_alive()]
            self._threads.append(thread)
        thread.start()

    def _alive(self) -> list[threading.Thread]:
        with self._lock:
            return [thread for thread in self._threads if thread.is_alive()]

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                self.accepted += 1
                number = self.accepted
            self._spawn(self._serve, sock, number)

    def _serve(self, sock: socket.socket, number: int) -> None:
        current: list[EngineRequest] = []
        wire = Wire(sock, lambda: self._tell("stall", current[-1]) if current else None)
        with self._lock:
            self._wires[number] = wire
        try:
            if self._stopping:
                return
            while self.silent:  # nothing is read: the client's bytes stay in the kernel
                if self._stopping or _gone(sock):
                    return
            while self._one(wire, number, current):
                pass
        except GoneError:
            pass
        except RefusedError as refusal:
            self.refusals.append(refusal.answer)
            try:
                wire.send(refusal.answer)
            except GoneError:
                pass
        finally:
            wire.half_close()
            with self._lock:
                del self._wires[number]
            wire.close()

    def _one(self, wire: Wire, number: int, current: list[EngineRequest]) -> bool:
        """Serve one request; True when the next one is to be read."""
        if current and current[-1].method == "POST":
            wire.skip_line_ends()
        raw = read_head(wire)
        if raw is None:
            return False
        request = parse_head(raw, number, len(current) + 1)
        if request.version[0] == 2 and not request.headers:
            return False  # the HTTP/2 preface: 20.10 closes without a word
        request.body_complete = request.length == 0
        current.append(request)
        with self._lock:
            self.requests.append(request)
        self._tell("head", request)
        exchange = Exchange(wire, request, lambda: self._stopping)
        exchange.on_hijack = lambda: self._tell("hijack", request)
        exchange.on_body = lambda: self._tell("request", request)
        exchange.note_body()
        script = self._script_for(request)
        try:
            if script is not None:
                script(exchange)
            else:
                serve(self, exchange)
        except GoneError as gone:
            request.error = str(gone) or "gone"
            exchange.keep = False
        except ValueError as bad:
            request.error = str(bad)
            exchange.keep = False
            if not exchange.started:
                exchange.request.body_complete = True  # nothing more can be read
                exchange.error(400, str(bad))
        finally:
            exchange.note_body(ended=True)
            self._tell("end", request)
        return exchange.keep and request.body_complete


def _fire(waiting: Deferred[EngineRequest], request: EngineRequest) -> None:
    if not waiting.called:  # cancelled meanwhile
        waiting.callback(request)


def _gone(sock: socket.socket) -> bool:
    """Wait a little for the peer's end without reading; True when it has ended."""
    poller = select.poll()
    poller.register(sock, select.POLLRDHUP)
    return bool(poller.poll(50))


__all__ = [
    "API_VERSION",
    "CONTAINER_ID",
    "MIDDLEWARE",
    "SERVER",
    "EngineRequest",
    "Exchange",
    "FakeEngine",
    "Gate",
    "Tunnel",
    "echo",
    "faults",
    "swallow",
]
