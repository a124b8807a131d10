"""From a request to an answer: who asks, may they, does it fit, do it, write it down.

What holds for every route, so that none has to care:

* Whatever comes, the answer is what the route declares or a problem+json; a fault of the program is a 500
  with a number that the log repeats, and nothing of what went wrong inside.
* Nothing but who asks is looked at before it is known that they may ask.
* An operation that changes something is not stopped when its client goes away.
* No token, password or body reaches the log.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Awaitable, Mapping
from typing import Any, Final
from uuid import uuid4

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import Request

from controller.api import ports
from controller.api.conditions import (
    REALM,
    bearer,
    check_body_type,
    expectation,
    is_unchanged,
    read_path,
    read_query,
    repeat_key,
)
from controller.api.metrics import ApiMetrics
from controller.api.ports import Actor, Ports, Principal
from controller.api.problems import PROBLEM_TYPE, ProblemError, invalid, read_json
from controller.api.repeats import Repeats
from controller.api.routes import SIGNED_IN, Answer, Call, Route
from controller.api.schema import Fault, Faults
from controller.api.stream import StreamLimits, Streams, cut_off, deferred

PATIENCE: Final = 60.0
"""Seconds for an operation; after them the client is told that nobody knows."""

EACH: Final = 32
"""Requests of one token that are worked on at a time."""

_log = Logger()


class Dispatcher:
    """Serves every route.

    Args:
        ports: what the API stands on.
        clock: the reactor.
        check_answers: hold every answer to its declaration and fail if it does not fit; for tests.
        limits: of streams.
    """

    def __init__(
        self, ports: Ports, clock: IReactorTime, *, check_answers: bool = False, limits: StreamLimits
    ) -> None:
        self.metrics = ApiMetrics()
        self._ports = ports
        self._clock = clock
        self._check_answers = check_answers
        self._streams = Streams(clock, self.metrics, limits)
        self._repeats = Repeats(clock)
        self._busy: Counter[str] = Counter()
        self._running = 0
        self._idle: list[Deferred[None]] = []
        self._stopping = False

    async def stop(self) -> None:
        """Take nothing new, end the streams, and return when what was begun is at its end."""
        self._stopping = True
        self._streams.stop()
        if self._running:
            idle: Deferred[None] = Deferred()
            self._idle.append(idle)
            await idle

    def serve(self, route: Route, request: Request, variables: Mapping[str, str]) -> Deferred[bytes | None]:
        """Answer one request; fires with the body to write, None if it is written already. Never fails."""
        actor = Actor("", "", "", _address(request), str(uuid4()))
        request.setHeader(b"X-Request-Id", actor.request.encode("ascii"))
        began = self._clock.seconds()
        assert request.content is not None
        # Now: it is closed when the client goes.
        data = request.content.read()
        working = Deferred.fromCoroutine(self._work(route, request, variables, data, actor))
        if route.writes:
            self._running += 1
            # A client that goes away cancels what this gives back, and must not stop what was begun.
            begun, working = working, _shield(working)
            begun.addBoth(self._ended)
        working.addErrback(self._problem, request, route, actor)

        def count(body: bytes | None) -> bytes | None:
            if not route.streams:
                self.metrics.called(route.operation, request.code, self._clock.seconds() - began)
            return body

        return working.addCallback(count)

    def _ended(self, _: object) -> None:
        self._running -= 1
        if not self._running:
            idle, self._idle = self._idle, []
            for waiting in idle:
                waiting.callback(None)

    async def _work(
        self, route: Route, request: Request, variables: Mapping[str, str], data: bytes, actor: Actor
    ) -> bytes | None:
        if self._stopping and route.operation not in ("live", "ready"):
            told = "the controller is stopping; try again in a moment"
            raise ProblemError(503, "stopping", told, headers={"Retry-After": "5"})
        token, principal = "", None
        if route.permission:
            token = bearer(_headers(request, "authorization"))
            principal = await self._sign_in(token, actor)
            actor = Actor(principal.user, principal.via, principal.credential, actor.address, actor.request)
            await self._permit(route, request, actor, principal)
            if request._disconnected:
                # Nothing was begun, and nobody waits for it.
                raise CancelledError
        who = actor.credential or actor.address
        with_place = _Place(self._busy, "" if route.streams else who)
        with with_place:
            body = self._body(route, request, data)
            call = Call(
                ports=self._ports,
                actor=actor,
                principal=principal,
                path=read_path(variables, route.variables),
                query=read_query(request.uri.partition(b"?")[2], route.query),
                body=body,
                expected=expectation(
                    _headers(request, "if-match"), _headers(request, "if-none-match"), route.conditional
                ),
                request=request,
                streams=self._streams,
                metrics=self.metrics,
                token=token,
            )
            if route.streams:
                if request.method == b"HEAD":
                    request.setHeader(b"Content-Type", route.media[0].encode("ascii"))
                    return b""
                await route.handler(call)
                return None
            answer = await self._answer(route, call, data)
            return self._write(route, request, answer)

    async def _sign_in(self, token: str, actor: Actor) -> Principal:
        found = await self._ports.accounts.authenticate(token, actor.address)
        if found is None:
            told = "this sign-in is not known or has ended; sign in again"
            raise ProblemError(401, "not-signed-in", told, headers={"WWW-Authenticate": REALM})
        return found

    async def _permit(self, route: Route, request: Request, actor: Actor, principal: Principal) -> None:
        code, reason = "not-allowed", f"{principal.user} lacks the permission {route.permission}"
        if principal.must_change and not route.early:
            code = "password-change-required"
            reason = "this password was set by somebody else: change it before anything else"
        elif route.permission == SIGNED_IN or route.permission in principal.permissions:
            return
        target = request.path.decode("ascii", "replace")[:256]
        await self._ports.acts.refused(actor, route.operation, target, reason)
        raise ProblemError(403, code, reason)

    def _body(self, route: Route, request: Request, data: bytes) -> Any:
        if route.body is None:
            if data:
                raise ProblemError(
                    400,
                    "no-body-wanted",
                    f"{route.method} {route.path} takes no body",
                    faults=[Fault("", "must not be there")],
                )
            return None
        check_body_type(request.getHeader("content-type"), request.getHeader("content-encoding"))
        if len(data) > route.body_limit:
            raise too_large(route.body_limit)
        faults = Faults()
        checked = route.body.check(read_json(data), "", faults)
        if faults.found:
            raise invalid(faults.found)
        return checked

    async def _answer(self, route: Route, call: Call, data: bytes) -> Answer:
        async def act() -> Answer:
            given = await route.handler(call)
            assert given is not None
            return given

        key = repeat_key(_headers(call.request, "idempotency-key")) if route.repeatable else ""
        if not key:
            return await self._in_time(act())
        what = f"{route.operation} {sorted(call.path.items())}"
        return await self._in_time(self._repeats.once(call.actor.credential, what, key, data, act))

    async def _in_time(self, working: Awaitable[Answer]) -> Answer:
        running = _shield(deferred(working))
        try:
            return await running.addTimeout(PATIENCE, self._clock)
        except DeferredTimeout:
            told = f"this took more than {PATIENCE:g} s; it may still be done: look before you repeat it"
            raise ProblemError(503, "too-slow", told, headers={"Retry-After": "10"}) from None

    def _write(self, route: Route, request: Request, answer: Answer) -> bytes:
        request.setResponseCode(answer.status or route.status)
        for name, value in answer.headers.items():
            request.setHeader(name, value)
        if answer.etag:
            request.setHeader("ETag", f'"{answer.etag}"')
            unchanged = _headers(request, "if-none-match")
            if not route.writes and unchanged and is_unchanged(unchanged, answer.etag):
                request.setResponseCode(304)
                return b""
        if answer.text is not None:
            return _sent(request, route.media[0], answer.text)
        if answer.body is None:
            if route.status != 204:
                raise TypeError(f"{route.operation} gave no body")
            return b""
        if self._check_answers and route.answer is not None:
            faults = Faults()
            route.answer.check(answer.body, "", faults)
            if faults.found:
                raise TypeError(f"{route.operation} does not give what it declares: {faults.found}")
        return _sent(request, route.media[0], to_json(answer.body))

    def _problem(
        self, failure: Failure, request: Request, route: Route, actor: Actor
    ) -> bytes | Deferred[None] | None:
        if request._disconnected:
            # Nobody is there to be told; a fault of ours is still one.
            if not failure.check(CancelledError, ProblemError, ports.PortError):
                _log.failure(
                    "{operation} failed after its client was gone", failure, operation=route.operation
                )
            return None
        if request.startedWriting:
            _log.failure("{operation} failed within its answer", failure, operation=route.operation)
            return cut_off(request)
        error = problem_of(failure.value)
        if error is None:
            _log.failure(
                "{operation} failed; request {request}",
                failure,
                operation=route.operation,
                request=actor.request,
            )
            told = "a fault of the controller; its log says more under the number of this request"
            error = ProblemError(500, "fault", told)
        return write_problem(request, error, actor.request)


class _Place:
    """One of the places of a caller."""

    def __init__(self, busy: Counter[str], who: str) -> None:
        self._busy = busy
        self._who = who

    def __enter__(self) -> None:
        if not self._who:
            return
        if self._busy[self._who] >= EACH:
            told = f"{EACH} requests of yours are being worked on; wait for one of them"
            raise ProblemError(429, "too-many-requests", told, headers={"Retry-After": "1"})
        self._busy[self._who] += 1

    def __exit__(self, *_: object) -> None:
        if self._who:
            self._busy[self._who] -= 1
            if self._busy[self._who] <= 0:
                del self._busy[self._who]


def _shield(working: Deferred[Any]) -> Deferred[Any]:
    """A Deferred that fires with the other, and whose cancellation does not reach it."""
    told: Deferred[Any] = Deferred()

    def tell(result: Any) -> None:
        if told.called and isinstance(result, Failure):
            if not result.check(CancelledError, ProblemError, ports.PortError):
                _log.failure("an operation failed after its client was gone", result)
            return
        told.callback(result)

    working.addBoth(tell)
    return told


def problem_of(error: BaseException | None) -> ProblemError | None:
    """The problem that an error is for the caller, None for a fault of the program."""
    if isinstance(error, ProblemError):
        return error
    if not isinstance(error, ports.PortError):
        return None
    if isinstance(error, ports.InvalidError):
        return invalid(error.faults, error.where, 422 if error.where == "body" else 400)
    headers = {}
    if isinstance(error, ports.TooManyError):
        headers = {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
    elif isinstance(error, ports.UnavailableError):
        headers = {"Retry-After": "10"}
    elif isinstance(error, ports.ChangedError) and error.etag:
        headers = {"ETag": f'"{error.etag}"'}
    for kind, (status, code) in _STATUSES.items():
        if isinstance(error, kind):
            return ProblemError(status, code, str(error), headers=headers)
    return None


_STATUSES: Final[Mapping[type[ports.PortError], tuple[int, str]]] = {
    ports.NotFoundError: (404, "not-found"),
    ports.ConflictError: (409, "conflict"),
    ports.ChangedError: (412, "changed"),
    ports.RefusedError: (403, "refused"),
    ports.TooManyError: (429, "too-often"),
    ports.UnavailableError: (503, "unavailable"),
}


def too_large(limit: int) -> ProblemError:
    """A body beyond its limit."""
    return ProblemError(
        413,
        "too-large",
        f"the body is larger than {limit} bytes",
        faults=[Fault("", f"must be at most {limit} bytes")],
    )


def write_problem(request: Request, error: ProblemError, number: str = "") -> bytes:
    """Set status and header of a problem, and return its body."""
    request.setResponseCode(error.status)
    for name, value in error.headers.items():
        request.setHeader(name, value)
    return _sent(request, PROBLEM_TYPE, to_json(error.document(f"urn:uuid:{number}" if number else "")))


def to_json(document: Mapping[str, Any]) -> bytes:
    """JSON in ASCII, which no terminal and no old reader stumbles over."""
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def _sent(request: Request, kind: str, body: bytes) -> bytes:
    request.setHeader(b"Content-Type", kind.encode("ascii"))
    request.setHeader(b"Content-Length", b"%d" % len(body))
    return body


def _headers(request: Request, name: str) -> list[str]:
    """The values of a header field, as text of any bytes."""
    found = request.requestHeaders.getRawHeaders(name.encode("ascii"), [])
    return [value.decode("latin-1") for value in found]


def _address(request: Request) -> str:
    peer = request.getClientAddress()
    return peer.host if isinstance(peer, IPv4Address | IPv6Address) else ""
