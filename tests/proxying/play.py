"""One connection's worth of raw bytes, played through the defender and compared with what they mean.

What they mean is said by the pure readers (`tests.defender.http1.reading`): each request's operation and
canonical target. What happened is seen on the wiretap and in the answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from defender.contract.actions import Body
from defender.http1.target import write_target
from tests.defender.http1.reading import Connection, Seen, read_connection
from tests.proxying.base import ProxyCase
from tests.proxying.client import Peer
from tests.proxying.reading import Answer, Request
from tests.vectors import REFUSED, Outcome

REFUSALS = frozenset((400, 417, 431, 501, 505))
ENGINE_API = (1, 41)
SENTINEL = "/v1.41/_ping?sentinel=1"
_SENTINEL = f"GET {SENTINEL} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


@dataclass(slots=True)
class Step:
    """One answer: what was asked as the readers see it (None: they refuse it), what reached the Engine."""

    seen: Seen | None
    answer: Answer
    forwarded: list[Request]


@dataclass(slots=True)
class Played:
    """What became of the bytes."""

    steps: list[Step] = field(default_factory=list)
    outcome: Outcome = ()


def canonical_line(seen: Seen) -> str:
    """The one spelling of method and target that may reach the Engine."""
    version = seen.target.version or (None if seen.operation.action == "debug" else ENGINE_API)
    return f"{seen.head.method} {write_target(seen.target, version)}"


class Player:
    """Plays raw bytes for a test; `readable` are the actions that `user` may do, None for all."""

    def __init__(self, case: ProxyCase, user: str = "admin", readable: Collection[str] | None = None) -> None:
        self._case = case
        self._user = user
        self._readable = readable
        self.connect: Callable[[], Peer] = lambda: case.defender.tls(user)

    def play(self, raw: bytes, what: str) -> Played:
        """Send `raw` on a connection of its own and check every answer; `what` names it in failures."""
        model = read_connection([raw])
        peer = self.connect()
        played = Played()
        try:
            self._case.tap.take()
            peer.send(raw)
            if model.requests and not model.requests[-1].complete and model.error is None:
                peer.end()  # half a body: nothing more will come
            self._read(peer, model, raw, played, what)
        except AssertionError as failure:
            raise AssertionError(f"{what}: {failure}\n{raw[:400]!r}") from None
        finally:
            peer.close()
        return played

    def _read(self, peer: Peer, model: Connection, raw: bytes, played: Played, what: str) -> None:
        case = self._case
        expected: list[Seen | None] = [*model.requests]
        if model.error is not None and all(seen.complete for seen in model.requests):
            expected.append(None)
        outcome: list[str] = []
        reached: list[Request] = []  # and not yet assigned: a pipelined request may be there at once
        for seen in expected:
            if seen is None:
                answers = [_last_word(peer)]
            elif seen.operation.action == "docker_events" and self._may(seen):
                answers = [peer.head()]
            else:
                answers = peer.answers(seen.head.method)
            if self._is_streamed(seen, model):
                case.tap.wait_for_requests(1)
            reached += case.tap.take()
            step = Step(seen, answers[-1], [])
            if seen is not None and reached and reached[0].line == canonical_line(seen):
                step.forwarded.append(reached.pop(0))
            played.steps.append(step)
            continues = seen is not None and seen.head.expect_continue and self._may(seen)
            case.assertEqual([answer.status for answer in answers[:-1]], [100] * continues, what)
            outcome.append(self._judge(step, what))
            played.outcome = tuple(outcome)
            if step.answer.hijacked or not step.answer.complete:
                break
            if step.answer.closes:
                rest = peer.rest()
                # One who still sends megabytes is cut in the end, long after the answer.
                cut = "reset" if peer.unsent else ""
                case.assertEqual((rest, peer.cut), (b"", cut), f"{what}: something behind a closing answer")
                break
        else:
            answer = peer.ask(_SENTINEL)
            case.assertEqual(answer.status, 200, f"{what}: what follows is not read as a request")
            reached += case.tap.take()
            case.assertEqual(reached.pop().line, f"GET {SENTINEL}", what)
        reached += case.tap.take()
        lines = [request.line for request in reached]
        case.assertEqual(lines, [], f"{what}: reached the Engine and must not")

    def _is_streamed(self, seen: Seen | None, model: Connection) -> bool:
        """The body turns out to be wrong when the request is already on its way."""
        if seen is None or seen.complete or model.error is None or not self._may(seen):
            return False
        return seen.operation.body in (Body.JSON, Body.TAR)

    def _may(self, seen: Seen) -> bool:
        action = seen.operation.action
        return action != "unknown" and (self._readable is None or action in self._readable)

    def _judge(self, step: Step, what: str) -> str:
        """Check one step; the name of what became of the request."""
        case, seen, answer = self._case, step.seen, step.answer
        if step.forwarded:
            assert seen is not None, f"{what}: a request that cannot be read reached the Engine"
            case.assertTrue(self._may(seen), f"{what}: {seen.operation.action} reached the Engine")
            request = step.forwarded[0]
            case.assert_canonical(request)
            if seen.complete:
                takes_body = seen.operation.body in (Body.JSON, Body.TAR)
                case.assertEqual(bytes(request.body.data), seen.body if takes_body else b"", what)
                return seen.operation.action
            case.assertFalse(request.complete, f"{what}: a broken body was made whole")
        message = _message(answer, head=seen is None or seen.head.method == "HEAD")
        if answer.status == 403:
            assert seen is not None, f"{what}: denied though it cannot be read"
            case.assertFalse(self._may(seen), f"{what}: {seen.operation.action} was denied")
            action = seen.operation.action
            text = rf"\[Defender\] The command '{action}' denied for user '{self._user}' by rule '\w+'"
            case.assertTrue(message is None or re.fullmatch(text, message), f"{what}: {message}")
            return action
        case.assertIn(answer.status, REFUSALS, what)
        case.assertTrue(answer.closes, f"{what}: refused, but the connection goes on")
        return REFUSED


def _last_word(peer: Peer) -> Answer:
    """Read an answer to what cannot be read, up to the end; a HEAD among it may leave the body out."""
    answer = peer.head()
    body = peer.rest()
    if body and len(body) != answer.length:
        raise AssertionError(f"{len(body)} bytes behind {answer.raw_head!r}")
    answer.body.add(body)
    answer.complete = True
    return answer


def _message(answer: Answer, *, head: bool) -> str | None:
    """The sentence of an error of ours; None where the body is left out."""
    if not answer.text:
        assert head, f"an error without a body: {answer.raw_head!r}"
        return None
    assert answer.get("content-type") == "application/json", answer.raw_head
    parsed = json.loads(answer.text)
    assert set(parsed) == {"message"}, answer.text
    return str(parsed["message"])
