"""From a parsed request head to what is judged, and from what was judged to what is forwarded. Pure.

Two parsers must never see two requests. So a head is read once into an `Inquiry`, the policy judges the
inquiry, and `forwarded_head` writes a new head from it: canonical target, headers from an allow-list, one
framing. Nothing the client sent reaches the Engine as raw bytes. The rules are those of the Engine's own
reading (API v1.24 and later): which bodies are JSON, which routes become tunnels, which content types the
Engine would merge into the query.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from defender.contract.actions import Body, Operation, recognize
from defender.contract.audit import Description, describe, described_further
from defender.contract.fragments import request_fragment
from defender.contract.particulars import wants_answer, wants_request
from defender.http1.errors import HTTPError
from defender.http1.head import Framing, RequestHead, parse_request_head, write_request_head
from defender.http1.target import Target, read_target, write_target


class BodyPlan(enum.Enum):
    """What happens to the request's body."""

    NONE = "none"
    """There is none."""
    FORWARD = "forward"
    """It is streamed to the Engine, framed anew."""
    DISCARD = "discard"
    """The route has no body: what came is read to its end and dropped before the request is forwarded."""


_ABOUT = ("container_", "checkpoint_")


@dataclass(slots=True)
class Inquiry:
    """One request as it is judged: the only reading of it there is.

    `upgrade` is the value to send in the ``Upgrade`` header, or None when the request may not become a tunnel
    by 101. One reading may serve many requests with the same head, so nobody changes it.
    """

    head: RequestHead
    target: Target
    operation: Operation
    names: dict[str, str]
    body: BodyPlan
    upgrade: bytes | None
    repeatable: bool = field(init=False)
    """The request may be sent a second time: GET or HEAD, nothing sent along, no tunnel asked for."""
    ordinary: bool = field(init=False)
    """The answer to it is framed as the Engine framed it, and is never a stream."""
    tells: bool = field(init=False)
    """The record says something of its body."""
    about: bool = field(init=False)
    """It is about a container or a command that an earlier call may have told of."""
    asks: bool = field(init=False)
    """The record says something of the body of a good answer."""
    plain: bool = field(init=False)
    """None of the three: a good answer's event is known but for its size and time."""
    _written: tuple[tuple[int, int] | None, bytes] | None = field(init=False, default=None)
    _described: Description | None = field(init=False, default=None)
    _fragment: tuple[bytes, bytes] | None = field(init=False, default=None)
    _with: tuple[Mapping[str, str], Description, tuple[bytes, bytes]] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.repeatable = (
            self.head.method in ("GET", "HEAD") and self.body is not BodyPlan.FORWARD and self.upgrade is None
        )
        self.about = bool(self.names) and self.operation.action.startswith(_ABOUT)
        self.asks = wants_answer(self.operation.action, 200)
        self.tells = self.body is BodyPlan.FORWARD and wants_request(self.operation.action)
        self.plain = not (self.about or self.asks or self.tells)
        self.ordinary = (
            not self.operation.hijack and self.head.method != "HEAD" and self.head.version >= (1, 1)
        )

    def forwarded(self, version: tuple[int, int] | None) -> bytes:
        """`forwarded_head`, written once."""
        written = self._written
        if written is None or written[0] != version:
            written = self._written = version, forwarded_head(self, version)
        return written[1]

    @property
    def described(self) -> Description:
        """The request as its events show it."""
        if self._described is None:
            target = self.target
            self._described = describe(
                self.operation.action,
                self.head.method,
                target.path,
                target.query,
                self.names,
                target.version,
            )
        return self._described

    @property
    def fragment(self) -> tuple[bytes, bytes]:
        """`described`, packed."""
        if self._fragment is None:
            described = self.described
            self._fragment = request_fragment(described.fields, described.redacted)
        return self._fragment

    def described_with(self, container: Mapping[str, str]) -> Description:
        """`described`, and the container it is about; the last one is kept."""
        kept = self._with
        if kept is None or kept[0] is not container:
            described = described_further(self.described, body={}, container=container)
            fragment = request_fragment(described.fields, described.redacted)
            kept = self._with = container, described, fragment
        return kept[1]

    def fragment_of(self, described: Description) -> tuple[bytes, bytes]:
        """`described` packed, if it may be what `described_with` gave last."""
        kept = self._with
        if kept is not None and kept[1] is described:
            return kept[2]
        return request_fragment(described.fields, described.redacted)


# Client headers that mean something to the Engine (API reference and the docker CLI's own requests). All
# others are dropped: hop-by-hop ones because they are ours to say, unknown ones because we could not judge
# them.
_PASSED = frozenset(
    (
        b"accept",
        b"accept-encoding",
        b"baggage",
        b"origin",
        b"sec-websocket-extensions",
        b"sec-websocket-key",
        b"sec-websocket-protocol",
        b"sec-websocket-version",
        b"traceparent",
        b"tracestate",
        b"user-agent",
        b"x-registry-auth",
        b"x-registry-config",
    )
)
_PASSED_PREFIXES = (b"x-meta-", b"x-docker-")
# The gRPC methods a BuildKit session offers are one header each; of every other header the Engine reads the
# first.
_REPEATED = frozenset((b"x-docker-expose-session-grpc-method",))

# RFC 9110 section 8.3.1: type "/" subtype *( OWS ";" OWS token "=" ( token / quoted-string ) )
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_MEDIA_TYPE = re.compile(
    rb"(" + _TOKEN + rb"/" + _TOKEN + rb")"
    rb"(?:[ \t]*;[ \t]*"
    + _TOKEN
    + rb"=(?:"
    + _TOKEN
    + rb'|"(?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[\x09\x20-\x7e])*"))*[ \t]*'
)


def media_type(value: bytes | None) -> str:
    """The media type of a Content-Type value in lower case, "" for None; HTTPError(400) when it is malformed.

    The Engine parses it with Go's mime.ParseMediaType and refuses bad parameters; a form type with bad
    parameters would still be read as a form, so a malformed value is refused here on every route.
    """
    if value is None:
        return ""
    found = _MEDIA_TYPE.fullmatch(value)
    if found is None:
        raise HTTPError(400, "the Content-Type header is malformed")
    return found.group(1).decode("ascii").lower()


_KEPT_HEAD = 1024
_KEPT_HEADS = 512
"""Heads whose reading is kept: shorter than so many bytes, and so many of them."""


class Readings:
    """Heads and what they say, for the clients that ask the same again and again.

    The same bytes have the same meaning under the same limits, so a head is read once and then looked up.
    Heads with credentials are not kept, nor those whose target holds what events hide.
    """

    __slots__ = ("_discard_limit", "_kept", "_max_head", "_max_headers")

    def __init__(self, *, max_headers: int, max_head: int, discard_limit: int) -> None:
        self._max_headers = max_headers
        self._max_head = max_head
        self._discard_limit = discard_limit
        self._kept: dict[bytes, Inquiry] = {}

    def known(self, data: bytes) -> Inquiry | None:
        """The inquiry of `data` if that is one whole head, nothing more, and was read before."""
        return self._kept.get(data)

    def read(self, raw: bytes) -> Inquiry:
        """The inquiry of one whole head; raises HTTPError as `parse_request_head` and `inspect` do."""
        inquiry = self._kept.get(raw)
        if inquiry is None:
            head = parse_request_head(raw, max_headers=self._max_headers, max_head=self._max_head)
            inquiry = inspect(head, discard_limit=self._discard_limit)
            if head.brief and len(raw) < _KEPT_HEAD and not inquiry.described.redacted:
                if len(self._kept) >= _KEPT_HEADS:
                    # Emptied rather than kept in order: whoever sends ever new heads costs others time only.
                    self._kept.clear()
                self._kept[raw] = inquiry
        return inquiry

    def head_of(self, raw: bytes) -> RequestHead | None:
        """The head of a request that `read` refused, None when it is the head that cannot be read."""
        try:
            return parse_request_head(raw, max_headers=self._max_headers, max_head=self._max_head)
        except HTTPError:
            return None


def inspect(head: RequestHead, *, discard_limit: int) -> Inquiry:
    """Read `head` into the inquiry that is judged and forwarded; raises HTTPError(400) for what cannot be
    read.

    `discard_limit` bounds, in bytes, an announced body on a route that has none.
    """
    target = read_target(head.target)
    operation, names = recognize(head.method, target.path)
    content_type = media_type(head.content_type)
    if content_type == "application/x-www-form-urlencoded" or content_type.startswith("multipart/"):
        # The Engine would merge such a body into the query (POST and PUT), in front of what we judged.
        raise HTTPError(
            400, f"bodies of type {content_type} are refused: the Engine would read them as parameters"
        )
    has_body = head.framing is not Framing.NONE and not (head.framing is Framing.LENGTH and head.length == 0)
    plan = BodyPlan.NONE
    if has_body:
        if operation.body is Body.JSON:
            if content_type != "application/json":
                raise HTTPError(400, f"Content-Type specified ({content_type}) must be 'application/json'")
            plan = BodyPlan.FORWARD
        elif operation.body is Body.TAR:
            plan = BodyPlan.FORWARD
        else:
            plan = BodyPlan.DISCARD
            if head.framing is Framing.LENGTH and head.length > discard_limit:
                raise HTTPError(
                    400,
                    f"{head.method} {target.path[:200]} takes no body; {head.length} bytes were announced",
                )
    return Inquiry(head, target, operation, names, plan, _upgrade_for(operation, head.upgrade))


def _upgrade_for(operation: Operation, asked: bytes | None) -> bytes | None:
    """The Upgrade value to forward, canonical for the route; None when the route or the client wants no
    tunnel.
    """
    if asked is None or not operation.hijack:
        return None
    if operation.body is Body.WEBSOCKET:
        return b"websocket" if asked.lower() == b"websocket" else None
    if operation.body is Body.H2C:
        # /session and /grpc are hijacked for exactly "h2c"; for anything else the Engine answers an ordinary
        # error.
        return b"h2c" if asked == b"h2c" else None
    # attach and exec start: the presence of the header, whatever its value, selects 101 (API v1.24 and
    # later).
    return b"tcp"


def forwarded_version(inquiry: Inquiry, newest_common: tuple[int, int] | None) -> tuple[int, int] | None:
    """The API version to write into the forwarded path: the client's, else the newest that both sides know.

    /debug is the exception: Engines up to 27 serve it without a version only.
    """
    if inquiry.target.version is not None:
        return inquiry.target.version
    if inquiry.operation.action == "debug":
        return None
    return newest_common


def forwarded_head(inquiry: Inquiry, version: tuple[int, int] | None) -> bytes:
    """The request head for the Engine, written from `inquiry` alone."""
    head = inquiry.head
    target = write_target(inquiry.target, version)
    framing: list[tuple[bytes, bytes]] = []
    if inquiry.body is BodyPlan.FORWARD:
        if inquiry.operation.body is Body.JSON:
            framing.append((b"Content-Type", b"application/json"))
        else:
            framing.append((b"Content-Type", b"application/x-tar"))
        if head.framing is Framing.CHUNKED:
            framing.append((b"Transfer-Encoding", b"chunked"))
        else:
            framing.append((b"Content-Length", b"%d" % head.length))
    elif head.method in ("POST", "PUT"):
        framing.append((b"Content-Length", b"0"))
    if inquiry.upgrade is not None:
        framing.append((b"Connection", b"Upgrade"))
        framing.append((b"Upgrade", inquiry.upgrade))
    if framing or not head.brief:
        return write_request_head(head.method, target, _passed_headers(head) + framing)
    rest = _REST.get(head.block)
    if rest is None:
        whole = write_request_head("GET", "/", _passed_headers(head))
        rest = whole[whole.index(b"\r\n") :]
        if len(_REST) >= _KEPT_HEADS:
            _REST.clear()
        _REST[head.block] = rest
    return f"{head.method} {target} HTTP/1.1".encode("ascii") + rest


_REST: dict[bytes, bytes] = {}
"""Header blocks of clients, and what follows the request line that is written for them."""


def _passed_headers(head: RequestHead) -> list[tuple[bytes, bytes]]:
    """The headers of a request that the Engine gets too."""
    headers: list[tuple[bytes, bytes]] = [(b"Host", b"docker")]
    seen: set[bytes] = set()
    for name, value in head.headers:
        if name in _PASSED or name.startswith(_PASSED_PREFIXES):
            if name in seen and name not in _REPEATED:
                continue
            seen.add(name)
            headers.append((name, value))
    return headers
