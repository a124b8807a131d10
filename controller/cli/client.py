"""Speaks with a controller: HTTPS to exactly that controller, and errors as one line.

The connection is checked before the first byte (`controller.peer_tls`): the chain leads to the fleet's own
authority and nowhere else, and the name is that of the address. treq's own TLS is not used.

Every error is a `ClientError` whose text is one line for people. No text holds the token.
"""

from __future__ import annotations

import json
import random
import signal
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, TypeVar
from urllib.parse import urlencode, urlsplit

from OpenSSL import SSL
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.interfaces import IConsumer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone, ResponseFailed
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from controller.cli.login import Login
from controller.peer_tls import PeerAgentEndpoints, PeerError, peer_context
from defender.contract.errors import ContractError, one_line

PATIENCE: Final = 90.0
"""Seconds for an answer; the controller gives up after 60 and says so."""

SILENCE: Final = 45.0
"""Seconds without a byte after which a stream is taken for dead; the controller shows life every 15."""

MAX_ANSWER: Final = 64 * 1024 * 1024
MAX_LINE: Final = 8 * 1024 * 1024

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

_T = TypeVar("_T")


class ClientError(Exception):
    """What was asked was not done; the text is one line. `status` is 0 if there was no answer.

    `code` is the problem's, for programs; `document` the whole problem.
    """

    def __init__(
        self, text: str, status: int = 0, code: str = "", document: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(one_line(text))
        self.status = status
        self.code = code
        self.document = dict(document or {})


class LinkError(ClientError):
    """There was no answer, or not all of it."""


class UnreachedError(LinkError):
    """There is no connection: nobody is there, or not who should be. Nothing was sent."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A good answer. `document` is None where there is no body."""

    status: int
    document: Any = None
    etag: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@implementer(IBodyProducer)
class _Bytes:
    """A body that is there already. treq's own producers wait on the global reactor."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length = len(data)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:  # noqa: N802
        consumer.write(self._data)
        return succeed(None)

    def stopProducing(self) -> None:
        pass

    def pauseProducing(self) -> None:
        pass

    def resumeProducing(self) -> None:
        pass


class _Body(Protocol):
    """Hands over the pieces of a body; `done` fires at its end and fails if it is not whole."""

    def __init__(self, reactor: Any, silence: float, take: Callable[[bytes], None]) -> None:
        self.done: Deferred[None] = Deferred(lambda _: self._abort())
        self._reactor = reactor
        self._silence = silence
        self._take = take
        self._over = False
        self._timer: Any = None

    def connectionMade(self) -> None:
        """The body begins."""
        self._timer = self._reactor.callLater(self._silence, self._silent)

    def dataReceived(self, data: bytes) -> None:
        """A piece."""
        if self._over:
            return
        self._timer.reset(self._silence)
        try:
            self._take(data)
        except Exception:  # noqa: BLE001 - whoever waits for the body gets it
            self._finish(Failure())
            self._abort()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The end."""
        whole = reason.check(ResponseDone) is not None
        self._finish(None if whole else Failure(LinkError("the answer ended before it was whole")))

    def _silent(self) -> None:
        self._finish(Failure(LinkError(f"the controller was silent for {self._silence:g} s")))
        self._abort()

    def _finish(self, outcome: Failure | None) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if not self._over:
            self._over = True
            if not self.done.called:
                self.done.callback(None) if outcome is None else self.done.errback(outcome)

    def _abort(self) -> None:
        self._over = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        transport: Any = self.transport
        if transport is not None:
            transport.abortConnection()


class Client:
    """A controller, as somebody is signed in there.

    Args:
        reactor: the reactor of `run`, or any other with TCP, time and names.
        login: where, and as whom.
        context: of TLS, if it is not made of the login's authority.

    Raises:
        ClientError: the login's authority holds no certificates.
    """

    def __init__(self, reactor: Any, login: Login, *, context: SSL.Context | None = None) -> None:
        self.login = login
        self.host = urlsplit(login.controller).netloc
        self._reactor = reactor
        if context is None:
            try:
                context = peer_context(login.authority.encode(), minimum="1.3")
            except PeerError as error:
                raise ClientError(f"the authority of {self.host}: {error}") from None
        self._pool = HTTPConnectionPool(reactor, persistent=True)
        agent = Agent.usingEndpointFactory(reactor, PeerAgentEndpoints(reactor, context), self._pool)
        self._http = HTTPClient(agent, data_to_body_producer=_Bytes)

    def close(self) -> Deferred[None]:
        """Close what is open."""
        closing: Deferred[None] = self._pool.closeCachedConnections()
        return closing

    def seconds(self) -> float:
        """The reactor's clock."""
        now: float = self._reactor.seconds()
        return now

    async def pause(self, seconds: float) -> None:
        """Wait, while what is open is served."""
        await deferLater(self._reactor, seconds, lambda: None)

    async def ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        etag: str = "",
        absent: bool = False,
    ) -> Reply:
        """Ask, and return the answer.

        `path` begins with `/`; its parts are escaped (`quote`). Values of `query` are text, numbers, truth
        values or lists; None is left out. `etag` goes into If-Match (`*` for any), `absent` asks that there
        is nothing yet. A POST carries an Idempotency-Key and, like a GET, is sent once more if its answer
        was lost.

        Raises:
            ClientError: the controller refused, with its own words.
            LinkError: there is no answer.
        """
        headers = {"Accept": "application/json"}
        if etag:
            headers["If-Match"] = etag if etag == "*" else f'"{etag}"'
        if absent:
            headers["If-None-Match"] = "*"
        if method == "POST":
            headers["Idempotency-Key"] = str(uuid.uuid4())
        tries = 2 if method in ("GET", "POST") else 1
        while True:
            tries -= 1
            try:
                return await self._once(method, path, query, body, headers)
            except LinkError as error:
                if not tries or isinstance(error, UnreachedError):
                    raise

    async def _once(
        self, method: str, path: str, query: Mapping[str, Any] | None, body: Any, headers: dict[str, str]
    ) -> Reply:
        response = await self._request(method, path, query, body, headers)
        data = bytearray()

        def take(piece: bytes) -> None:
            data.extend(piece)
            if len(data) > MAX_ANSWER:
                raise ClientError(f"{self.host}: the answer is larger than {MAX_ANSWER} bytes")

        await self._body(response, take)
        self._check(response, bytes(data))
        found = {
            name.decode("latin-1").lower(): values[-1].decode("latin-1")
            for name, values in response.headers.getAllRawHeaders()
        }
        document = None
        if data:
            try:
                document = json.loads(bytes(data))
            except ValueError:
                raise ClientError(f"{self.host}: the answer is not JSON", response.code) from None
        etag = found.get("etag", "").removeprefix("W/").strip('"')
        return Reply(response.code, document, etag, found)

    async def pages(self, path: str, query: Mapping[str, Any] | None = None) -> AsyncIterator[Any]:
        """Yield every item of a list, part after part."""
        cursor: str | None = None
        while True:
            wanted = {**(query or {}), **({"cursor": cursor} if cursor else {})}
            page = (await self.ask("GET", path, query=wanted)).document
            for item in page["items"]:
                yield item
            if not page["next"] or page["next"] == cursor:
                return
            cursor = page["next"]

    async def download(
        self, path: str, query: Mapping[str, Any] | None, write: Callable[[bytes], None]
    ) -> None:
        """Hand over a body of any size piece by piece; LinkError if it is not whole."""
        response = await self._request("GET", path, query, None, {"Accept": "*/*"})
        if response.code != 200:
            await self._refused(response)
        await self._body(response, write)

    async def lines(
        self, path: str, query: Mapping[str, Any] | None, take: Callable[[dict[str, Any]], None]
    ) -> None:
        """Hand over the objects of a stream of JSON lines until it ends; LinkError if it is cut off."""
        response = await self._request("GET", path, query, None, {"Accept": "application/x-ndjson"})
        if response.code != 200:
            await self._refused(response)
        rest = bytearray()

        def split(piece: bytes) -> None:
            rest.extend(piece)
            *whole, left = bytes(rest).split(b"\n") if b"\n" in piece else [bytes(rest)]
            if len(left) > MAX_LINE:
                raise ClientError(f"{self.host}: a line of the stream is longer than {MAX_LINE} bytes")
            if whole:
                rest[:] = left
            for line in whole:
                if line:
                    take(self._object(line))

        await self._body(response, split)

    def _object(self, line: bytes) -> dict[str, Any]:
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ClientError(f"{self.host}: a line of the stream is no JSON object")
        return found

    async def follow(
        self,
        path: str,
        query: Mapping[str, Any] | None,
        take: Callable[[dict[str, Any]], None],
        interrupted: Callable[[str], None],
        moved: Callable[[str], None] = lambda position: None,
    ) -> str:
        """Follow a stream through interruptions, from position to position; returns why it ended for good.

        `interrupted` is told each time the link is lost, before it is tried again: after 0 to 2 seconds, then
        to twice as many, at most 30. `moved` is told each position, before what is at it is taken. Nothing is
        missed: what the controller no longer has comes as an object with `gap`.

        Raises:
            ClientError: the controller refuses to go on, or cannot be reached the first time.
        """
        position, delay = str((query or {}).get("after", "")), 2.0
        ended, reached = "", False

        def look(line: dict[str, Any]) -> None:
            nonlocal position, delay, ended, reached
            delay, reached = 2.0, True
            position = str(line.get("position", position))
            ended = str(line.get("end", ""))
            moved(position)
            if "event" in line or "gap" in line:
                take(line)

        while True:
            wanted = {**(query or {}), **({"after": position} if position else {})}
            try:
                await self.lines(path, wanted, look)
                reason, reached = ended or "the controller ended the stream", True
            except ClientError as error:
                passing = isinstance(error, LinkError) or error.status in (429, 503)
                if not passing or (isinstance(error, UnreachedError) and not reached):
                    raise
                reason = str(error)
            if ended.startswith("the sign-in"):
                return ended
            interrupted(one_line(reason))
            await self.pause(random.uniform(0, delay))  # noqa: S311
            delay = min(delay * 2, 30.0)

    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None,
        body: Any,
        headers: Mapping[str, str],
    ) -> Any:
        sent: dict[bytes | str, bytes | str] = dict(headers.items())
        if self.login.token:
            sent["Authorization"] = f"Bearer {self.login.token}"
        data = None
        if body is not None:
            data = json.dumps(body, separators=(",", ":")).encode("ascii")
            sent["Content-Type"] = "application/json"
        url = self.login.controller + path + _query(query or {})
        try:
            return await self._http.request(
                method,
                url,
                headers=sent,
                data=data,
                allow_redirects=False,
                unbuffered=True,
                reactor=self._reactor,
                timeout=PATIENCE,
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, it means no answer
            self._lost(error)

    def _lost(self, error: Exception) -> NoReturn:
        """Why there is no answer, in one line."""
        if isinstance(error, PeerError):
            raise UnreachedError(str(error)) from None
        if isinstance(error, ContractError):
            raise ClientError(f"{self.host}: {error}") from None
        if isinstance(error, CancelledError):
            raise LinkError(f"{self.host}: no answer within {PATIENCE:g} s") from None
        if isinstance(error, ResponseFailed):
            reason = error.reasons[0].getErrorMessage() if error.reasons else "nobody says why"
            raise LinkError(f"{self.host}: the connection was lost: {reason}") from None
        raise LinkError(f"{self.host}: {error or type(error).__name__}") from None

    async def _body(self, response: Any, take: Callable[[bytes], None]) -> None:
        body = _Body(self._reactor, SILENCE, take)
        response.deliverBody(body)
        try:
            await body.done
        except LinkError as error:
            raise LinkError(f"{self.host}: {error}") from None

    async def _refused(self, response: Any) -> None:
        data = bytearray()

        def take(piece: bytes) -> None:
            if len(data) < MAX_LINE:
                data.extend(piece)

        await self._body(response, take)
        self._check(response, bytes(data))
        raise ClientError(f"{self.host}: an answer of status {response.code} is not expected", response.code)

    def _check(self, response: Any, data: bytes) -> None:
        """Raise the problem that an answer is."""
        if response.code < 300:
            return
        kind = (response.headers.getRawHeaders("content-type") or [""])[0].partition(";")[0]
        document: Any = None
        if kind in ("application/problem+json", "application/json"):
            try:
                document = json.loads(data)
            except ValueError:
                document = None
        raise problem_error(self.host, response.code, document)


def problem_error(host: str, status: int, document: Any) -> ClientError:
    """What a person is told of a problem: who said it, what is wrong where, and what to do."""
    if not isinstance(document, dict) or not isinstance(document.get("detail"), str):
        return ClientError(f"{host}: refused with status {status} and no reason", status)
    told = document["detail"]
    errors = document.get("errors")
    if document.get("code") == "invalid" and isinstance(errors, list):
        told = "; ".join(
            f"{item.get('pointer') or 'the whole'} {item.get('message')}"
            for item in errors
            if isinstance(item, dict)
        )
    if document.get("code") == "not-signed-in":
        told += " (defenderctl login)"
    elif status >= 500 and isinstance(document.get("instance"), str):
        told += f" ({document['instance']})"
    return ClientError(f"{host}: {told}", status, str(document.get("code", "")), document)


def _query(query: Mapping[str, Any]) -> str:
    pairs: list[tuple[str, str]] = []
    for name, value in query.items():
        for each in value if isinstance(value, list | tuple) else (value,):
            if isinstance(each, bool):
                pairs.append((name, "true" if each else "false"))
            elif each is not None:
                pairs.append((name, str(each)))
    return "?" + urlencode(pairs) if pairs else ""


def run(login: Login, main: Callable[[Client], Awaitable[_T]]) -> _T:
    """Run a coroutine function with a client, on a reactor of its own, and return its result.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        ClientError: and whatever else `main` raises.
    """
    # Its own: the global reactor runs once in a process, and belongs to twistd. Nothing here waits on it.
    reactor = EPollReactor()
    outcome: list[Any] = []

    async def work() -> _T:
        client = Client(reactor, login)
        try:
            return await main(client)
        finally:
            await client.close()

    def keep(result: Any) -> None:
        outcome.append(result)
        if reactor.running:
            reactor.stop()

    def begin() -> None:
        coroutine: Coroutine[Any, Any, _T] = work()
        Deferred.fromCoroutine(coroutine).addBoth(keep)

    reactor.callWhenRunning(begin)
    # The reactor leaves its own behind: Ctrl-C at a question that follows would go to nobody.
    kept = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        reactor.run()
    finally:
        for number, action in kept.items():
            signal.signal(number, action)
        reactor.disconnectAll()
    if not outcome:
        raise KeyboardInterrupt
    if isinstance(outcome[0], Failure):
        outcome[0].raiseException()
    result: _T = outcome[0]
    return result
