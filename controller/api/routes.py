"""How a route is declared, what its function is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from twisted.web.server import Request

from controller.api.metrics import ApiMetrics
from controller.api.ports import Actor, Expected, PageWish, Ports, Principal
from controller.api.schema import Field, Integer
from controller.api.shapes import CURSOR
from controller.api.stream import Streams

BODY_LIMIT: Final = 1024 * 1024
"""Bytes of a body, if the route says nothing else."""

SIGNED_IN: Final = "self"
"""The permission that every account has: to ask about itself."""

PAGING: Final[Mapping[str, Field]] = {
    "cursor": CURSOR,
    "limit": Integer(1, 1000, "How many at most; 100 if it is not said."),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a route's function gives back. `body` None is an answer without one."""

    body: Mapping[str, Any] | None = None
    status: int = 0
    """0: what the route declares."""
    headers: Mapping[str, str] = field(default_factory=dict)
    etag: str = ""
    text: bytes | None = None
    """A body that is not JSON, of the media type that the route declares."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request that fits its declaration, by somebody who may make it.

    `path` and `query` hold checked values by name; what was not given is not there. `request` is for those
    routes only that write a stream.
    """

    ports: Ports
    actor: Actor
    principal: Principal | None
    path: Mapping[str, Any]
    query: Mapping[str, Any]
    body: Any
    expected: Expected
    request: Request
    streams: Streams
    metrics: ApiMetrics
    token: str = field(default="", repr=False)

    @property
    def page(self) -> PageWish:
        """The part of a list that is asked for."""
        return PageWish(self.query.get("cursor", ""), self.query.get("limit", 100))

    @property
    def permissions(self) -> frozenset[str]:
        """What the caller may do."""
        return self.principal.permissions if self.principal else frozenset()


Handler = Callable[[Call], Awaitable["Answer | None"]]


@dataclass(frozen=True, slots=True)
class Route:
    """One operation of the API, declared once: the route, the checks before it, and what OpenAPI says.

    `path` names its variables in braces. `permission` "" is for everybody, `SIGNED_IN` for every account.
    `early`: also for who must change their password first. `answer` is the shape of a good answer, None where
    there is no body; `media` its media types, of which the first is the one of an answer that is not
    streamed. `conditional`: an If-Match (or If-None-Match: *) is required. `repeatable`: an Idempotency-Key
    is understood. `also`: further good statuses. `streams`: the function writes the answer by itself and
    returns None.
    """

    method: str
    path: str
    operation: str
    summary: str
    permission: str
    handler: Handler
    status: int = 200
    answer: Field | None = None
    body: Field | None = None
    body_limit: int = BODY_LIMIT
    variables: Mapping[str, Field] = field(default_factory=dict)
    query: Mapping[str, Field] = field(default_factory=dict)
    media: tuple[str, ...] = ("application/json",)
    conditional: bool = False
    repeatable: bool = False
    streams: bool = False
    early: bool = False
    also: tuple[int, ...] = ()
    example: Any = None
    answer_example: Any = None

    @property
    def tag(self) -> str:
        """The noun that the operation is about: the first word of its path."""
        return self.path.removeprefix("/api/v1/").split("/")[0].lstrip("/")

    @property
    def writes(self) -> bool:
        """Whether it changes anything."""
        return self.method not in ("GET", "HEAD")
