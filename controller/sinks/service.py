"""Makes the service of a sink from what is said of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from OpenSSL import SSL

from controller.peer_tls import ClientIdentity, host_endpoint, peer_context
from controller.sinks.answers import judge
from controller.sinks.delivery import Delivery, Passed
from controller.sinks.follower import Cursor, Follower, Receiver, Source
from controller.sinks.hec import judge_hec
from controller.sinks.https import HttpsReceiver
from controller.sinks.jsonl import event_line
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


def _context(files: TlsFiles) -> SSL.Context:
    identity = ClientIdentity(files.certificate, files.key) if files.certificate else None
    return peer_context(files.ca, identity=identity)


__all__ = ["HecTarget", "SyslogTarget", "WebhookTarget", "make_sink"]
