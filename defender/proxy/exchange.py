"""What the Engine's answer means for both connections. Pure.

The request side is `inspection`; here is the answer's side: is it a tunnel, may it be passed on, how is it
framed for this client, what did the Engine tell of itself, and may the Engine's connection be used again.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from defender.contract.actions import NEWEST_API, OLDEST_API
from defender.http1.errors import HTTPError
from defender.http1.head import Framing, ResponseHead, parse_response_head, write_response_head
from defender.proxy.inspection import Inquiry

_API_VERSION = re.compile(rb"1\.(0|[1-9][0-9]{0,5})")
# Of these the Engine's own error answers carry the first four; the rest of a ping's headers mean nothing on a
# refusal.
_FACT_HEADERS = {
    b"api-version": b"Api-Version",
    b"docker-experimental": b"Docker-Experimental",
    b"ostype": b"Ostype",
    b"server": b"Server",
}
# RFC 9110 section 7.6.1 and the framing, which is ours to write; Location could only lead a client elsewhere.
_NOT_PASSED = frozenset(
    (
        b"connection",
        b"content-length",
        b"keep-alive",
        b"location",
        b"proxy-authenticate",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
_RAW_STREAMS = (b"application/vnd.docker.raw-stream", b"application/vnd.docker.multiplexed-stream")


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the Engine last said of itself: its API version, and the headers our own answers repeat."""

    api_version: tuple[int, int] | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def newest_common(self) -> tuple[int, int] | None:
        """The newest API version both sides know, None while the Engine has not been heard."""
        if self.api_version is None:
            return None
        return min(self.api_version, NEWEST_API)


def facts_of(head: ResponseHead) -> EngineFacts | None:
    """The facts in an answer's headers, None if it has no readable ``Api-Version``."""
    stated = head.get(b"api-version")
    if stated is None:
        return None
    found = _API_VERSION.fullmatch(stated)
    if found is None:
        return None
    api = (1, int(found.group(1)))
    if api < OLDEST_API:
        return None
    kept = []
    for name, spelled in _FACT_HEADERS.items():
        value = head.get(name)
        if value is not None:
            kept.append((spelled, _version_value(api) if name == b"api-version" else value))
    return EngineFacts(api, tuple(kept))


def _version_value(api: tuple[int, int]) -> bytes:
    """The version a client may negotiate to: never newer than the newest one whose requests are understood
    here.
    """
    newest = min(api, NEWEST_API)
    return b"%d.%d" % newest


_SPELLINGS: dict[bytes, bytes] = {}


def _spelled(name: bytes) -> bytes:
    """`name` as the Engine spells it (Go's canonical form): scripts that grep headers see no difference."""
    spelled = _SPELLINGS.get(name)
    if spelled is None:
        spelled = name.title()
        if len(_SPELLINGS) < 256:
            _SPELLINGS[name] = spelled
    return spelled


class Passage(enum.Enum):
    """How an answer goes to the client."""

    INTERIM = "interim"
    """A 1xx that is not for the client: dropped, the real answer follows."""
    TUNNEL = "tunnel"
    """Both connections become one stream."""
    LENGTH = "length"
    CHUNKED = "chunked"
    UNTIL_CLOSE = "until close"


def classify(inquiry: Inquiry, head: ResponseHead) -> Passage:
    """How `head`, the Engine's answer to `inquiry`, is passed on; raises HTTPError(502) for one it may not
    give.

    A tunnel begins only with an asked-for 101, or with 200, a raw-stream type and no framing on attach or
    exec start (the Engine's answer to a client that sent no Upgrade). A request never makes a tunnel by
    itself.
    """
    status = head.status
    if status == 101:
        if inquiry.upgrade is None:
            raise HTTPError(502, "the Engine switched protocols though nobody asked it to")
        return Passage.TUNNEL
    if status < 200:
        return Passage.INTERIM
    if head.framing is Framing.NONE:
        return Passage.LENGTH
    if head.framing is Framing.LENGTH:
        return Passage.LENGTH
    if head.framing is Framing.CHUNKED:
        return Passage.CHUNKED if inquiry.head.version >= (1, 1) else Passage.UNTIL_CLOSE
    if (
        status == 200
        and inquiry.operation.hijack
        and (head.get(b"content-type") or b"").startswith(_RAW_STREAMS)
    ):
        return Passage.TUNNEL
    return Passage.UNTIL_CLOSE


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer, read: how it is passed on, and the head the client gets for it."""

    head: ResponseHead
    passage: Passage
    written: bytes
    api: bytes | None = None
    """What the Engine says that its version is."""

    def ended(self) -> bytes:
        """`written` for a connection that closes after this answer (RFC 9112 section 9.6)."""
        if self.passage is Passage.UNTIL_CLOSE:
            return self.written
        return self.written[:-2] + b"Connection: close\r\n\r\n"


def read_answer(inquiry: Inquiry, raw: bytes) -> Answer:
    """Read the Engine's answer to `inquiry`; raises HTTPError(502) for one that cannot be read or may not be.

    Engines answer the same call with the same head for as long as its Date does not change, so answers to
    ordinary requests are kept for the next time.
    """
    if inquiry.ordinary and len(raw) < _KEPT_HEAD:
        answer = _ANSWERS.get(raw)
        if answer is None:
            answer = _read_answer(inquiry, raw)
            if answer.passage in (Passage.LENGTH, Passage.CHUNKED):
                if len(_ANSWERS) >= _KEPT_HEADS:
                    _ANSWERS.clear()
                _ANSWERS[raw] = answer
        return answer
    return _read_answer(inquiry, raw)


_KEPT_HEAD = 1024
_KEPT_HEADS = 256
_ANSWERS: dict[bytes, Answer] = {}


def _read_answer(inquiry: Inquiry, raw: bytes) -> Answer:
    head = parse_response_head(raw, request_method=inquiry.head.method)
    passage = classify(inquiry, head)
    written = b"" if passage is Passage.INTERIM else answer_head(inquiry, head, passage)
    return Answer(head, passage, written, head.get(b"api-version"))


def answer_head(inquiry: Inquiry, head: ResponseHead, passage: Passage) -> bytes:
    """The head the client gets for the Engine's `head`: same status and headers, our framing."""
    headers = [(_spelled(name), value) for name, value in head.headers if name not in _NOT_PASSED]
    for index, (name, value) in enumerate(headers):
        if name == b"Api-Version":
            found = _API_VERSION.fullmatch(value)
            if found is not None:
                headers[index] = (name, _version_value((1, int(found.group(1)))))
    if passage is Passage.TUNNEL:
        if head.status == 101:
            headers.append((b"Connection", b"Upgrade"))
            headers.append((b"Upgrade", head.get(b"upgrade") or inquiry.upgrade or b"tcp"))
        return write_response_head(head.status, head.reason, headers)
    if passage is Passage.CHUNKED:
        headers.append((b"Transfer-Encoding", b"chunked"))
    elif passage is Passage.LENGTH:
        # An answer to HEAD and a 304 may state the length of the body that a GET would bring (RFC 9110
        # section 8.6).
        stated = head.get(b"content-length")
        if head.framing is Framing.LENGTH:
            headers.append((b"Content-Length", b"%d" % head.length))
        elif stated is not None and stated.isdigit() and head.status != 204:
            headers.append((b"Content-Length", stated))
    if passage is Passage.UNTIL_CLOSE:
        headers.append((b"Connection", b"close"))
    return write_response_head(head.status, head.reason, headers)
