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
from dataclasses import dataclass

from defender.contract.actions import Body, Operation, recognize
from defender.http1.errors import HTTPError
from defender.http1.head import Framing, RequestHead, write_request_head
from defender.http1.target import Target, read_target, write_target


class BodyPlan(enum.Enum):
    """What happens to the request's body."""

    NONE = "none"
    """There is none."""
    FORWARD = "forward"
    """It is streamed to the Engine, framed anew."""
    DISCARD = "discard"
    """The route has no body: what came is read to its end and dropped before the request is forwarded."""


@dataclass(slots=True)
class Inquiry:
    """One request as it is judged: the only reading of it there is.

    `upgrade` is the value to send in the ``Upgrade`` header, or None when the request may not become a tunnel
    by 101.
    """

    head: RequestHead
    target: Target
    operation: Operation
    names: dict[str, str]
    body: BodyPlan
    upgrade: bytes | None

    @property
    def repeatable(self) -> bool:
        """True if the request may be sent a second time: GET or HEAD, nothing sent along, no tunnel asked
        for.
        """
        return (
            self.head.method in ("GET", "HEAD") and self.body is not BodyPlan.FORWARD and self.upgrade is None
        )


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
    headers: list[tuple[bytes, bytes]] = [(b"Host", b"docker")]
    seen: set[bytes] = set()
    for name, value in head.headers:
        if name in _PASSED or name.startswith(_PASSED_PREFIXES):
            if name in seen and name not in _REPEATED:
                continue
            seen.add(name)
            headers.append((name, value))
    if inquiry.body is BodyPlan.FORWARD:
        if inquiry.operation.body is Body.JSON:
            headers.append((b"Content-Type", b"application/json"))
        else:
            headers.append((b"Content-Type", b"application/x-tar"))
        if head.framing is Framing.CHUNKED:
            headers.append((b"Transfer-Encoding", b"chunked"))
        else:
            headers.append((b"Content-Length", b"%d" % head.length))
    elif head.method in ("POST", "PUT"):
        headers.append((b"Content-Length", b"0"))
    if inquiry.upgrade is not None:
        headers.append((b"Connection", b"Upgrade"))
        headers.append((b"Upgrade", inquiry.upgrade))
    return write_request_head(head.method, write_target(inquiry.target, version), headers)
