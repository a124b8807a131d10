"""A fleet in memory for the publisher: hosts that verify what they are pushed as defenders do."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred, succeed

from controller.publisher import Publisher
from defender.contract.bundle import NOWHERE, PART, Position, open_envelope
from defender.contract.canonical import BundleError
from defender.contract.contents import Content, read_content
from defender.contract.envelope import BUNDLE_TYPE, read_envelope, split_envelopes, verify
from defender.contract.framing import Framer
from defender.contract.high_water import HighWater, first_mark
from defender.contract.message_bytes import decode_message
from defender.contract.messages import Push, Snapshot
from defender.contract.snapshot import open_snapshot
from defender.contract.trust import MAX_ROOTS, STREAMS, TRUST, Root, first_root, newer_roots


def ident(name: str) -> str:
    """The id of the host of this name; always the same."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, name))


@dataclass
class Host:
    """One defender: the root and marks it holds, what is in force, what it says no to."""

    name: str
    root: Root
    mark: HighWater | None = None
    held: dict[str, Position] = field(default_factory=dict)
    content: dict[str, Content] = field(default_factory=dict)
    refuses: dict[str, tuple[str, str]] = field(default_factory=dict)
    pushed: list[tuple[str, int, bytes]] = field(default_factory=list)
    signed: dict[str, bytes] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    """Streams of which a new root has ended what was in force."""
    shown: int = 0

    @property
    def id(self) -> str:
        return ident(self.name)

    def positions(self) -> dict[str, Position]:
        return {stream: self.held.get(stream, NOWHERE) for stream in STREAMS}


class FakeDesk:
    """Implements `controller.publisher.Desk`; what is pushed waits in `queue` until `answer`."""

    def __init__(self, chain: bytes) -> None:
        self.publisher: Publisher | None = None
        self.hosts: dict[str, Host] = {}
        self.online: set[str] = set()
        self.queue: list[tuple[Host, str, int, Sequence[bytes]]] = []
        self.frames: list[Sequence[bytes]] = []
        self.silent: set[str] = set()
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.lies: dict[str, Any] = {}
        """What hosts answer in place of the truth."""
        self._first = first_root(split_envelopes(chain, MAX_ROOTS)[0])

    def host(self, name: str) -> Host:
        host = Host(name, self._first)
        self.hosts[host.id] = host
        return host

    def connect(self, host: Host) -> None:
        assert self.publisher is not None
        self.online.add(host.id)
        self.publisher.connected(host.id, host.positions())

    def disconnect(self, host: Host) -> None:
        assert self.publisher is not None
        self.online.discard(host.id)
        self.queue = [each for each in self.queue if each[0] is not host]
        self.publisher.disconnected(host.id)

    # -- `controller.publisher.Desk`

    def push(self, defender: str, stream: str, nonce: int, frames: Sequence[bytes]) -> bool:
        if defender not in self.online:
            return False
        self.frames.append(frames)
        self.queue.append((self.hosts[defender], stream, nonce, frames))
        return True

    def show(self, defender: str, frame: bytes) -> bool:
        if defender not in self.online:
            return False
        host = self.hosts[defender]
        (message,) = read(frame)
        assert isinstance(message, Snapshot)
        host.shown += 1
        try:
            snapshot = open_snapshot(message.envelope, host.root, defender=host.id)
        except BundleError as error:
            if error.code in ("epoch-ahead", "wrong-key"):
                return True  # as at a real host: the roots come first, then it is shown again
            raise
        if host.mark is None:
            host.mark = first_mark(snapshot, host.root, snapshot.time)
        else:
            host.mark = host.mark.take(snapshot, host.root, snapshot.time)
        return True

    def ask(self, defender: str, verb: str, arguments: Mapping[str, Any]) -> Deferred[Mapping[str, Any]]:
        self.asked.append((defender, verb, dict(arguments)))
        data = self.hosts[defender].signed.get(arguments["stream"], b"")
        part = data[arguments["offset"] :][:PART]
        return succeed({"size": len(data), "data": base64.b64encode(part).decode(), **self.lies})

    # -- what hosts answer

    def answer(self) -> int:
        """Let hosts answer what they were pushed so far; gives how many did."""
        queue, self.queue = self.queue, []
        for host, stream, nonce, frames in queue:
            if host.id not in self.silent:
                self._take(host, stream, nonce, frames)
        return len(queue)

    def _take(self, host: Host, stream: str, nonce: int, frames: Sequence[bytes]) -> None:
        assert self.publisher is not None
        data = b"".join(push.chunk for push in read(b"".join(frames)))
        host.pushed.append((stream, nonce, data))
        kept = host.held.get(stream, NOWHERE)
        parts = split_envelopes(data, MAX_ROOTS + 1)
        if stream == TRUST:
            for root, _ in newer_roots(host.root, parts[:-1]):
                for held in [each for each, data in host.signed.items() if not counts(data, root)]:
                    host.lost.append(held)
                    for gone in (host.held, host.content, host.signed):
                        gone.pop(held, None)
                host.root = root
                host.mark = None
        bundle = open_envelope(
            parts[-1], host.root, stream=stream, defender=host.id, agent_version="1.0", now=None
        )
        no = host.refuses.get(stream)
        if no is not None:
            if no[0] == "not-activated" and host.mark is not None:
                # Accepted and on disk, as at a real host; what was in force before still is.
                host.mark = host.mark.accept(stream, bundle.position).activate(stream, kept)
            self.publisher.refused(host.id, stream, nonce, *no, kept)
            return
        if host.mark is not None:
            if not host.mark.judge(stream, bundle.position) and kept == bundle.position:
                raise AssertionError(f"{host.name} was pushed what it has: {stream} {bundle.version}")
            host.mark = host.mark.accept(stream, bundle.position)
        host.held[stream] = bundle.position
        host.signed[stream] = parts[-1]
        host.content[stream] = read_content(stream, bundle.content)
        self.publisher.acked(host.id, stream, nonce, bundle.position)


def counts(data: bytes, root: Root) -> bool:
    """Whether a bundle that was in force still is under a new root."""
    envelope = read_envelope(data, BUNDLE_TYPE)
    try:
        verify(envelope, root.bundle)
    except BundleError:
        return False
    return bool(json.loads(envelope.payload)["key_epoch"] == root.key_epoch)


def read(data: bytes) -> list[Any]:
    """The messages of some frames."""
    messages = [decode_message(payload) for payload in Framer(2**20 + 1024).feed(data)]
    assert all(isinstance(each, Push | Snapshot) for each in messages)
    return messages
