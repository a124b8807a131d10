"""All ports of a controller, made of its store, its publisher and its desk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cryptography import x509

from controller.api.ports import Check, Ports
from controller.identity.passwords import Passwords
from controller.login_throttle import LoginThrottle
from controller.pki.registry import Office
from controller.pki.tokens import LIFE
from controller.ports.accounts import Accounts
from controller.ports.acts import Acts
from controller.ports.audit import Audit
from controller.ports.defenders import Defenders
from controller.ports.health import Health, Names
from controller.ports.join_tokens import JoinTokens
from controller.ports.ledger import Ledger
from controller.ports.links import Desk, Links
from controller.ports.listeners import Listeners
from controller.ports.locks import Locks
from controller.ports.orders import Orders, Publisher
from controller.ports.policies import Policies
from controller.releases import GRADUAL, Plan
from controller.sinks.overview import SinkState
from controller.store.events import EventStore
from defender.contract.join_token import pin_of


@dataclass(frozen=True, slots=True)
class Parts:
    """What the ports stand on. `controller` is the host that the API is reached at, `program` its version.

    `channel_port` says at which of its ports defenders are served, once they are.
    `turned_away` counts the connections that were not taken there, by reason.
    `sinks` says how events are forwarded; `checks` are further conditions of being ready. The publisher's
    own, that what it decided can be kept, is among them without being named. `token_life` (seconds) and
    `approval` are those of join tokens, `gradual` is how policies go out.
    """

    ledger: Ledger
    events: EventStore
    passwords: Passwords
    publisher: Publisher
    orders: Orders
    desk: Desk
    office: Office
    root: x509.Certificate
    trust_domain: str
    controller: str
    program: str
    channel_port: Callable[[], int]
    sinks: Callable[[], Iterable[SinkState]] = tuple
    checks: Sequence[Callable[[], Check]] = ()
    turned_away: Callable[[], Mapping[str, int]] = dict
    throttle: LoginThrottle = field(default_factory=LoginThrottle)
    token_life: int = LIFE
    approval: bool = False
    gradual: Plan = GRADUAL


def make_ports(parts: Parts) -> Ports:
    """The ports, for `controller.api.app.Api`."""
    ledger, links = parts.ledger, Links(parts.desk)
    names = Names(parts.controller, parts.program, parts.trust_domain, pin_of(parts.root).hex())

    def channel() -> str:
        host = f"[{parts.controller}]" if ":" in parts.controller else parts.controller
        return f"{host}:{parts.channel_port()}"

    def publishing() -> Check:
        return Check("publisher", not parts.publisher.problem, parts.publisher.problem)

    return Ports(
        accounts=Accounts(ledger, parts.passwords, parts.throttle),
        defenders=Defenders(ledger, parts.publisher, parts.orders, links, parts.office),
        listeners=Listeners(ledger, parts.orders),
        policies=Policies(ledger, parts.orders, parts.gradual),
        locks=Locks(ledger, parts.orders),
        join_tokens=JoinTokens(ledger, parts.root, channel, life=parts.token_life, approval=parts.approval),
        audit=Audit(ledger, parts.events, parts.sinks),
        health=Health(
            ledger,
            parts.events,
            links,
            names,
            checks=(publishing, *parts.checks),
            sinks=parts.sinks,
            turned_away=parts.turned_away,
            nacks=lambda: parts.publisher.nacks,
            channel=channel,
        ),
        acts=Acts(ledger),
    )
