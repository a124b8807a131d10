"""One simulated defender: a real session over a real TLS connection, and nothing behind it.

What is pushed is acknowledged without a look at its signature: that is the business of a defender's own
processor, and thousands share one here.
"""

from __future__ import annotations

import json
import random
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL, crypto

from defender.contract.bundle import Position
from defender.contract.defender_session import DefenderSession
from defender.contract.envelope import BUNDLE_TYPE, payload_digest, read_envelope, split_envelopes
from defender.contract.message_fields import Opening
from defender.contract.messages import ALPN, NEWEST, OLDEST, EvAck, Hello, Welcome
from defender.contract.session import Close, Outputs, Pushed, Send, State
from defender.contract.trust import MAX_ROOTS, STREAMS
from tests.bench.fleet.population import Population, Simulated
from tests.bench.fleet.records import Batch, Recorder

READ: Final = 256 * 1024
NOWHERE: Final = Position(0, 0, bytes(32))


def client_context(population: Population) -> SSL.Context:
    """What all of them connect with: TLS 1.3 and no other controller than this fleet's."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_options(SSL.OP_NO_TICKET)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_tls13_ciphersuites(b"TLS_AES_128_GCM_SHA256")
    context.add_extra_chain_cert(population.issuer)
    store = context.get_cert_store()
    assert store is not None
    store.add_cert(crypto.X509.from_cryptography(population.issuer))
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    context.set_alpn_protos([ALPN])
    return context


@dataclass(slots=True)
class News:
    """What the links of one process have been told, with times of the monotonic clock."""

    opened: list[float] = field(default_factory=list)
    acks: dict[str, list[float]] = field(default_factory=dict)
    stored: int = 0
    stored_at: float = 0.0
    closed: int = 0
    why: str = ""
    heard: float = 0.0
    digests: dict[tuple[str, int], Position] = field(default_factory=dict)

    def position_of(self, push: Pushed) -> Position:
        """Where a pushed bundle stands, read once for all links."""
        key = push.stream, push.nonce
        found = self.digests.get(key)
        if found is None:
            envelope = split_envelopes(push.envelope, MAX_ROOTS + 1)[-1]
            said = json.loads(read_envelope(envelope, BUNDLE_TYPE).payload)
            found = Position(said["key_epoch"], said["version"], payload_digest(envelope))
            self.digests[key] = found
        return found


class Link:
    """See the module. `watch` is told whether room for output is waited for."""

    __slots__ = (
        "_batches",
        "_out",
        "_shaking",
        "_through",
        "_watch",
        "address",
        "news",
        "positions",
        "recorder",
        "session",
        "simulated",
        "sock",
        "tls",
    )

    def __init__(self, simulated: Simulated, address: str, news: News, watch: Callable[..., None]) -> None:
        self.simulated = simulated
        self.address = address
        self.news = news
        self.sock: socket.socket | None = None
        self.tls: SSL.Connection | None = None
        self.session: DefenderSession | None = None
        self.positions: dict[str, Position] = dict.fromkeys(STREAMS, NOWHERE)
        self.recorder: Recorder | None = None
        self._batches: deque[Batch] = deque()
        self._out = bytearray()
        self._shaking = False
        self._through = 0
        self._watch = watch

    # -- the connection

    def dial(self, context: SSL.Context, key: ec.EllipticCurvePrivateKey, port: int) -> None:
        """Begin to connect to a port of 127.0.0.1, from an address of our own."""
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.bind((self.address, 0))
        with suppress(BlockingIOError):
            self.sock.connect(("127.0.0.1", port))
        self.tls = SSL.Connection(context, self.sock)
        self.tls.set_connect_state()
        self.tls.use_certificate(self.simulated.certificate)
        self.tls.use_privatekey(key)
        self._shaking = True
        self._out.clear()
        hello = Hello(OLDEST, NEWEST, "0.1.0", self.simulated.name, "boot", (), dict(self.positions), None)
        self.session = DefenderSession(time.monotonic(), hello, jitter=random.uniform(-1, 1))
        self._watch(self, True)

    def ready(self) -> None:
        """The socket can be read or written."""
        try:
            if self._shaking and not self._shake():
                return
            self._flush()
            self._read()
        except (SSL.Error, OSError) as error:
            self.close(f"{type(error).__name__}: {error}")

    def _shake(self) -> bool:
        assert self.tls is not None
        assert self.session is not None
        try:
            self.tls.do_handshake()
        except SSL.WantReadError:
            self._watch(self, False)
            return False
        except SSL.WantWriteError:
            return False
        self._shaking = False
        self._watch(self, False)
        self.session.begin(time.monotonic())
        self.perform(self.session.start())
        return True

    def _read(self) -> None:
        while self.tls is not None and self.session is not None:
            try:
                data = self.tls.recv(READ)
            except SSL.WantReadError:
                return
            except SSL.ZeroReturnError:
                self.close("the controller closed")
                return
            now = time.monotonic()
            self.news.heard = now
            self.perform(self.session.bytes_received(data, now))

    def _flush(self) -> None:
        while self._out and self.tls is not None:
            try:
                del self._out[: self.tls.send(bytes(self._out[:READ]))]
            except SSL.WantWriteError:
                self._watch(self, True)
                return
            if not self._out:
                self._watch(self, False)

    def close(self, why: str) -> None:
        """The connection is over."""
        if self.sock is None:
            return
        self._watch(self, None)
        self.sock.close()
        self.sock = self.tls = self.session = None
        self.news.closed += 1
        self.news.why = why

    @property
    def is_open(self) -> bool:
        """Whether the controller has said WELCOME."""
        return self.session is not None and self.session.state is State.OPEN

    # -- the session

    def perform(self, outputs: Outputs) -> None:
        """Do what the session says."""
        for output in outputs:
            match output:
                case Send(data):
                    self._out += data
                case Close(code, detail):
                    self._flush()
                    self.close(f"{code}: {detail}")
                    return
                case Welcome():
                    self.news.opened.append(time.monotonic())
                case Pushed():
                    self._take(output)
                case EvAck():
                    self._stored(output)
        self._flush()

    def _take(self, push: Pushed) -> None:
        assert self.session is not None
        position = self.positions[push.stream] = self.news.position_of(push)
        answer: Any = self.session.acknowledge(push.stream, push.nonce, position)
        self.news.acks.setdefault(push.stream, []).append(time.monotonic())
        for each in answer:
            if isinstance(each, Send):
                self._out += each.data

    # -- events

    def record(self, batches: list[Batch]) -> None:
        """Send these, as far as the credits go; the others follow."""
        self._batches.extend(batches)
        self.ship()

    def ship(self) -> None:
        """Send what may be sent."""
        session, recorder = self.session, self.recorder
        if session is None or recorder is None:
            return
        while self._batches and session.is_open:
            batch = self._batches[0]
            if batch.count > session.credit_events or len(batch.records) > session.credit_bytes:
                break
            self._batches.popleft()
            opening = Opening(recorder.agent, 0, 0, bytes(32)) if batch.first_seq == 1 else None
            for each in session.send_events(
                recorder.epoch,
                batch.first_seq,
                batch.count,
                batch.previous,
                batch.records,
                batch.chain,
                opening=opening,
            ):
                if isinstance(each, Send):
                    self._out += each.data
        self._flush()

    def _stored(self, acknowledged: EvAck) -> None:
        # Not the credits: of those some may be held back.
        self.news.stored += acknowledged.through - self._through
        self._through = acknowledged.through
        self.news.stored_at = time.monotonic()
        self.ship()
