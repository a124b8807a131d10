"""Receivers on real loopback sockets with real TLS, a store and a cursor in memory, for the sinks' tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL, crypto
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred, succeed
from twisted.internet.interfaces import IHandshakeListener, IOpenSSLServerConnectionCreator
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site
from zope.interface import implementer

from controller.sinks.delivery import Position, Row
from tests.fakes.authority import Credentials, OddLeaf, TestAuthority

reactor: Any = _reactor


def event(number: int, **parts: Any) -> dict[str, Any]:
    """An event as the store gives it, named by its number."""
    return {
        "v": 1,
        "id": f"0193{number:04x}-0000-7000-8000-{number:012x}",
        "agent": "web1",
        "epoch": "9f3c0a6d51e8b274",
        "seq": number,
        "ts_wall": "2026-11-21T22:13:03.402Z",
        "ts_mono": number,
        "kind": "engine",
        "phase": "result",
        "corr": f"0193{number:04x}-0000-7000-8000-{number:012x}",
        "actor": {"user": "bruce@example.com", "groups": ["Dev team"], "via": "tls", "src": "10.1.2.3:51234"},
        "req": {"action": "image_create", "method": "POST", "path": "/images/create", "target": "nginx"},
        "decision": {"effect": "deny", "rule": "devs_rule", "version": 12, "reason": "action not listed"},
        "result": {"status": 403, "bytes": 118, "ms": 0.4},
        **parts,
    }


class MemoryStore:
    """A `Source`: positions count from 1. `reads` notes every reading."""

    def __init__(self, count: int = 0) -> None:
        self.events: list[dict[str, Any]] = [event(number) for number in range(1, count + 1)]
        self.reads: list[tuple[Position | None, int]] = []
        self.failures: list[Exception] = []
        self._waiting: list[Deferred[object]] = []

    def add(self, *events: dict[str, Any]) -> None:
        self.events.extend(events)
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)

    def after(self, position: Position | None, limit: int) -> Deferred[list[Row]]:
        self.reads.append((position, limit))
        if self.failures:
            raise self.failures.pop(0)
        first = int(position or 0)
        return succeed(list(enumerate(self.events[first : first + limit], first + 1)))

    def wait(self) -> Deferred[object]:
        waiting: Deferred[object] = Deferred(lambda _: self._waiting.remove(waiting))
        self._waiting.append(waiting)
        return waiting

    def behind(self, position: Position | None) -> Deferred[int]:
        return succeed(len(self.events) - int(position or 0))


class MemoryCursor:
    """A `Cursor`: `saved` is everything that was ever saved; `failures` are raised first, one each."""

    def __init__(self, position: Position | None = None) -> None:
        self.saved: list[Position] = [] if position is None else [position]
        self.failures: list[Exception] = []
        self._waiting: list[tuple[Position, Deferred[None]]] = []

    def load(self) -> Deferred[Position | None]:
        if self.failures:
            raise self.failures.pop(0)
        return succeed(self.saved[-1] if self.saved else None)

    def save(self, position: Position) -> Deferred[object]:
        if self.failures:
            raise self.failures.pop(0)
        self.saved.append(position)
        for wanted in [each for each in self._waiting if each[0] == position]:
            self._waiting.remove(wanted)
            wanted[1].callback(None)
        return succeed(None)

    def until(self, position: Position) -> Deferred[None]:
        """Fires once this position is saved."""
        done: Deferred[None] = Deferred()
        if position in self.saved:
            done.callback(None)
        else:
            self._waiting.append((position, done))
        return done


class Certificates:
    """Receivers' certificates: a proper one, and ones that OpenSSL accepts and we must not."""

    def __init__(self) -> None:
        self.pki = TestAuthority()

    @property
    def anchors(self) -> bytes:
        return self.pki.root.public_bytes(serialization.Encoding.PEM)

    def proper(self) -> Credentials:
        return self.pki.server()

    def odd(self, alternatives: Sequence[x509.GeneralName] | None) -> Credentials:
        """A server's certificate of the fleet's authority with these names, None for no such extension."""
        server = self.pki.server()
        leaf = OddLeaf(self.pki, server.key)
        leaf.issuer = self.pki.fleet
        leaf.signer = self.pki.custody.signer("fleet-ca")
        leaf.names = ["localhost"]
        leaf.alternatives = None if alternatives is None else list(alternatives)
        leaf.usages = [x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]
        leaf.groups = None
        return Credentials(leaf.sign(), server.key)


@implementer(IOpenSSLServerConnectionCreator)
class _Server:
    """Listens with TLS on a port of its own and knows its connections."""

    def __init__(self, credentials: Credentials, client_ca: bytes = b"") -> None:
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.use_certificate(credentials.chain[0])
        for each in credentials.chain[1:]:
            context.add_extra_chain_cert(each)
        context.use_privatekey(credentials.key)
        if client_ca:
            store = context.get_cert_store()
            assert store is not None
            for each in x509.load_pem_x509_certificates(client_ca):
                store.add_cert(crypto.X509.from_cryptography(each))
            context.set_verify(
                SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *args: bool(args[-1])
            )
        self._context = context
        self._port: Any = None
        self.port = 0
        self.connections: set[Any] = set()
        self.connected = 0
        self._gone: dict[Any, Deferred[None]] = {}

    def serverConnectionForTLS(self, protocol: object) -> SSL.Connection:  # noqa: N802
        connection = SSL.Connection(self._context, None)
        connection.set_accept_state()
        return connection

    def listen(self, factory: Factory) -> None:
        self._port = reactor.listenTCP(self.port, _Counted(self, factory), interface="127.0.0.1")
        self.port = self._port.getHost().port

    def came(self, connection: Any) -> None:
        if connection in self.connections:
            return  # Twisted's TLS says so twice
        self.connected += 1
        self.connections.add(connection)
        self._gone[connection] = Deferred()

    def left(self, connection: Any) -> None:
        self.connections.discard(connection)
        self._gone.pop(connection).callback(None)

    def stop(self) -> Deferred[Any]:
        """Listen no more, end every connection; fires once they are gone."""
        waiting: list[Deferred[Any]] = list(self._gone.values())
        port, self._port = self._port, None
        if port is not None:
            waiting.append(maybeDeferred(port.stopListening))
        for connection in list(self.connections):
            connection.abortConnection()
        return DeferredList(waiting)


class _Counted(TLSMemoryBIOFactory):
    noisy = False

    def __init__(self, server: _Server, factory: Factory) -> None:
        super().__init__(server, False, factory)
        self._server = server

    def registerProtocol(self, protocol: Any) -> None:  # noqa: N802
        super().registerProtocol(protocol)
        self._server.came(protocol)

    def unregisterProtocol(self, protocol: Any) -> None:  # noqa: N802
        super().unregisterProtocol(protocol)
        self._server.left(protocol)


class SyslogServer(_Server):
    """Reads counted frames. `until(n)` fires once n are there; `reading` False takes nothing."""

    def __init__(self, credentials: Credentials, client_ca: bytes = b"", *, reading: bool = True) -> None:
        super().__init__(credentials, client_ca)
        self.frames: list[bytes] = []
        self.octets = 0
        self.reading = reading
        self.on_frame: Callable[[_Frames], None] = lambda frames: None
        self.on_connection: Callable[[_Frames], None] = lambda frames: None
        self._waiting: list[tuple[int, Deferred[None]]] = []
        outer = self

        class Frames(Factory):
            noisy = False

            def buildProtocol(self, address: object) -> _Frames:
                return _Frames(outer)

        self._frames = Frames()
        self.listen(self._frames)

    def again(self) -> None:
        """Listen on the same port once more."""
        self.listen(self._frames)

    @property
    def numbers(self) -> list[int]:
        """The events' sequence numbers, as they came."""
        return [json.loads(frame[frame.index(b"] {") + 2 :])["seq"] for frame in self.frames]

    def until(self, count: int) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        self._waiting.append((count, done))
        self.look()
        return done

    def look(self) -> None:
        for each in [each for each in self._waiting if len(self.frames) >= each[0]]:
            self._waiting.remove(each)
            each[1].callback(None)


@implementer(IHandshakeListener)
class _Frames(Protocol):
    def __init__(self, server: SyslogServer) -> None:
        self.server = server
        self.buffer = b""

    def handshakeCompleted(self) -> None:  # noqa: N802
        if not self.server.reading:
            self.transport.pauseProducing()  # type: ignore[union-attr]
        self.server.on_connection(self)

    def dataReceived(self, data: bytes) -> None:
        self.server.octets += len(data)
        self.buffer += data
        while b" " in self.buffer[:10]:
            count, _, rest = self.buffer.partition(b" ")
            if len(rest) < int(count):
                return
            self.server.frames.append(rest[: int(count)])
            self.buffer = rest[int(count) :]
            self.server.on_frame(self)
            self.server.look()


class Asked:
    """One request: its header fields and its body."""

    def __init__(self, fields: dict[str, str], body: bytes) -> None:
        self.fields = fields
        self.body = body


Reply = tuple[int, dict[str, str], bytes]


class HttpServer(_Server):
    """Answers POSTs as `reply` says; a Deferred that it gives is waited for. `asked` is every request."""

    def __init__(
        self,
        credentials: Credentials,
        reply: Callable[[Asked], Reply | Deferred[Reply]] = lambda asked: (200, {}, b""),
        client_ca: bytes = b"",
    ) -> None:
        super().__init__(credentials, client_ca)
        self.reply = reply
        self.asked: list[Asked] = []
        self._waiting: list[tuple[int, Deferred[None]]] = []
        outer = self

        class Leaf(Resource):
            isLeaf = True  # noqa: N815

            def render_POST(self, request: Any) -> int:  # noqa: N802
                fields = {
                    name.decode().lower(): values[0].decode()
                    for name, values in request.requestHeaders.getAllRawHeaders()
                }
                fields[":path"] = request.uri.decode()
                asked = Asked(fields, request.content.read())
                outer.asked.append(asked)
                answer = outer.reply(asked)
                if not isinstance(answer, Deferred):
                    answer = succeed(answer)
                gone = request.notifyFinish()
                gone.addErrback(lambda _: None)

                def write(reply: Reply) -> None:
                    status, more, body = reply
                    if request._disconnected:
                        return
                    request.setResponseCode(status)
                    for name, value in more.items():
                        request.setHeader(name, value)
                    request.write(body)
                    request.finish()
                    outer.look()

                answer.addCallback(write)
                outer.look()
                return NOT_DONE_YET

        site = Site(Leaf())
        site.noisy = False
        self._site = site
        self.listen(site)  # type: ignore[arg-type]

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}/events"

    def until(self, count: int) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        self._waiting.append((count, done))
        self.look()
        return done

    def look(self) -> None:
        for each in [each for each in self._waiting if len(self.asked) >= each[0]]:
            self._waiting.remove(each)
            each[1].callback(None)
