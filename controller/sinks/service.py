"""The sinks that are described: each one's service is made, started, and replaced when its description is."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import Deferred, DeferredLock, maybeDeferred
from twisted.logger import Logger

from controller.peer_tls import ClientIdentity, PeerError, host_endpoint, peer_context
from controller.sinks.answers import judge
from controller.sinks.delivery import Delivery, Passed
from controller.sinks.follower import Cursor, Follower, Receiver, Source
from controller.sinks.hec import judge_hec
from controller.sinks.https import HttpsReceiver
from controller.sinks.jsonl import event_line
from controller.sinks.overview import SinkState
from controller.sinks.syslog_tls import SyslogReceiver
from controller.sinks.targets import HecTarget, SyslogTarget, Target, TlsFiles, WebhookTarget
from controller.sinks.webhook import Signer


def make_sink(
    target: Target,
    reactor: Any,
    source: Source,
    cursor: Cursor,
    *,
    passed: Callable[[str, Passed], None] = lambda name, event: None,
    chance: Callable[[], float] = random.random,
) -> Follower:
    """Return the sink's service, not started; raises PeerError for TLS files that cannot be used.

    `passed` is told the sink's name and each event that its receiver refused for good.
    """
    context = _context(target.tls)
    receiver: Receiver
    if isinstance(target, SyslogTarget):
        kind, encode = "syslog", target.format.encode
        receiver = SyslogReceiver(reactor, host_endpoint(reactor, target.host, target.port, context))
    elif isinstance(target, WebhookTarget):
        kind, encode = "webhook", event_line
        signer = Signer.from_text(target.secret)
        receiver = HttpsReceiver(reactor, target.url, context, signer.post, judge, hidden=(target.secret,))
    else:
        kind, encode = "hec", target.format.encode
        receiver = HttpsReceiver(
            reactor, target.address, context, target.format.post, judge_hec, hidden=(target.format.token,)
        )
    delivery = Delivery(encode, target.limits, chance=chance)
    return Follower(target.name, kind, reactor, source, cursor, receiver, delivery, passed=passed)


class Sinks:
    """The sinks that run, by name.

    `source` and `cursor` give each of them its own, by its name.
    """

    log = Logger()

    def __init__(
        self, reactor: Any, source: Callable[[str], Source], cursor: Callable[[str], Cursor]
    ) -> None:
        self._reactor = reactor
        self._source = source
        self._cursor = cursor
        self._running: dict[str, tuple[Target, Follower]] = {}
        self._lock = DeferredLock()

    def replace(self, targets: Iterable[Target]) -> Deferred[None]:
        """Run these and no others; those that are described as before go on. Fires when that is so."""
        wanted = {target.name: target for target in targets}
        return self._lock.run(lambda: Deferred.fromCoroutine(self._replace(wanted)))

    async def _replace(self, wanted: Mapping[str, Target]) -> None:
        for name, (target, follower) in list(self._running.items()):
            if wanted.get(name) != target:
                del self._running[name]
                await maybeDeferred(follower.stopService)
        for name, target in wanted.items():
            if name in self._running:
                continue
            try:
                follower = make_sink(
                    target, self._reactor, self._source(name), self._cursor(name), passed=self._passed
                )
            except PeerError as error:
                self.log.error("the sink {name} cannot be used: {why}", name=name, why=str(error))
                continue
            self._running[name] = target, follower
            follower.startService()

    def stop(self) -> Deferred[None]:
        """Stop all of them; each keeps how far it is."""
        return self.replace(())

    def states(self) -> list[SinkState]:
        """How they stand, by name."""
        return [follower.state() for _, (_, follower) in sorted(self._running.items())]

    def _passed(self, name: str, event: Passed) -> None:
        self.log.error(
            "the sink {name} refused event {event} for good: {why}",
            name=name,
            event=event.event,
            why=event.reason,
        )


def _context(files: TlsFiles) -> SSL.Context:
    identity = ClientIdentity(files.certificate, files.key) if files.certificate else None
    return peer_context(files.ca, identity=identity)


__all__ = ["HecTarget", "SyslogTarget", "WebhookTarget", "make_sink"]
