"""This host as a defender of a fleet: its membership, its bundles and its link, introduced to each other.

The defender itself stays what it is without a controller: what the fleet has to say about policy, locks,
listeners and trust arrives through `Host`, and nothing else does. With a membership on disk everything that
was in force before is in force again before the first connection is made, controller or not.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from typing import Protocol as Typed

from twisted.application.service import MultiService
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Factory
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from defender.audit.journal import Journal
from defender.bundles.commands import Ack, Activate, Frozen, Graded, Nack, Skewed
from defender.bundles.service import BundleService
from defender.bundles.store import BundleStore
from defender.bundles.streams import Streams
from defender.channel.joining import ask
from defender.channel.service import ControllerLink, Uses
from defender.channel.store import Member, MembershipError, MemberStore
from defender.channel.tls import checked_endpoint, client_context
from defender.contract.bundle import PART, BundleError
from defender.contract.contents import LocksContent, ModeContent, PolicyContent, TrustContent
from defender.contract.errors import ContractError
from defender.contract.identity import ROLE_CONTROLLER
from defender.contract.join_token import JoinToken
from defender.contract.locks import LockSet
from defender.contract.message_fields import Cursor, Position
from defender.contract.messages import ALPN, NEWEST, OLDEST, Cmd, Hello, Renewed
from defender.contract.peer_check import fleet_peer
from defender.contract.trust import LOCKS, POLICY, TRUST
from defender.enrollment import Enrollment, EnrollmentError
from defender.host import boot_id

#: Seconds until joining is tried again where the controller does not say.
AGAIN: Final = 30.0
#: Seconds between two looks at whether the certificate is due for renewal.
LOOK: Final = 60.0


class Host(Typed):
    """The defender, as far as its fleet may steer it. What is raised is a ContractError or an OSError."""

    def put_policy(self, name: str, text: str) -> None:
        """Put a policy in force; open streams are judged again."""

    def withdraw_policy(self, reason: str) -> None:
        """Deny everything."""

    def put_locks(self, locks: LockSet | None) -> None:
        """The fleet's locks, beside the local ones; None: they are not known, so nobody is let in."""

    def put_mode(self, listener: str, drain: int | None) -> object:
        """Listen there; may be a Deferred."""

    def freeze(self, reason: str) -> None:
        """Let nothing be changed on this host, for this reason; "": let it be again."""

    def put_trust(self, users: tuple[str, ...]) -> object:
        """The authorities (PEM) of users, none if nobody is to be let in over TLS; may be a Deferred."""

    def state(self) -> Mapping[str, Any]:
        """What the controller shows of this defender, for STATUS."""

    def answer(self, command: Cmd) -> object:
        """Do what the controller asks for, once."""


class FleetMember(MultiService):
    """See the module. `member` is who we are, None until this host has joined.

    `joined` fires when there is a membership.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        host: Host,
        journal: Journal,
        *,
        controller: tuple[str, int],
        store: MemberStore,
        bundles: BundleStore,
        name: str,
        names: tuple[str, ...],
        version: str,
        token: JoinToken | None = None,
        silence: float = 0.0,
        wall: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self.setName("fleet")
        self.member: Member | None = None
        self._problem = "this host has not joined yet"
        self.joined: Deferred[None] = Deferred()
        self.link: ControllerLink | None = None
        self.bundles: BundleService | None = None
        self._reactor = reactor
        self._host = host
        self._journal = journal
        self._controller = controller
        self._store = store
        self._bundle_store = bundles
        self._name = name
        self._version = version
        self._token = token
        self._silence = silence
        self._wall = wall
        self._enrollment = Enrollment(
            store,
            reactor,
            lambda pins, build: ask(reactor, *controller, pins, build),
            name=name,
            hosts=names,
            agent=version,
            clock=wall,
        )
        self._joining: Deferred[Any] | None = None
        self._call: IDelayedCall | None = None

    # -- service

    def startService(self) -> None:
        super().startService()
        self._join()

    def stopService(self) -> Deferred[Any]:
        """End the link, and an attempt to join."""
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None
        if self._joining is not None:
            self._joining.cancel()
        stopping: Deferred[Any] = super().stopService()
        return stopping

    @property
    def problem(self) -> str:
        """Why this host has not joined, "" if it has."""
        if self.member is None and self._enrollment.waiting:
            return f"the controller says: {self._enrollment.waiting}"
        return self._problem

    @property
    def enrollment(self) -> str:
        """How far this host is: ``enrolled``, ``pending`` (an operator has to agree), ``joining`` (it goes on
        asking) or ``refused`` (somebody has to do something here first)."""
        if self.member is not None:
            return "enrolled"
        if self._enrollment.waiting:
            return "pending"
        return "joining" if self._joining is not None or self._call is not None else "refused"

    def status(self) -> dict[str, object]:
        """What an operator wants to know: of ``defenderctl local status``."""
        member, link, bundles = self.member, self.link, self.bundles
        return {
            "controller": "{}:{}".format(*self._controller),
            "defender": member.defender if member is not None else "",
            "enrollment": self.enrollment,
            "problem": self.problem,
            "connected": link is not None and link.connected,
            "link": link.problem if link is not None else "",
            "shipped": link.shipped if link is not None else 0,
            "frozen": bundles.streams.frozen if bundles is not None else "",
            "streams": {
                stream: {
                    "version": each.position.version,
                    "grade": each.grade,
                    "refusal": each.refusal,
                }
                for stream, each in (bundles.streams.status() if bundles is not None else {}).items()
            },
        }

    # -- membership

    @property
    def server_file(self) -> Path:
        """The key and the chain towards users, there once this host has joined."""
        return self._store.server_file

    def _join(self) -> None:
        self._call = None
        self._joining = joining = self._enrollment.begin(self._token)
        joining.addCallbacks(self._has_joined, self._has_not_joined)
        joining.addErrback(lambda failure: self.log.failure("joining is at a standstill", failure))

    def _has_joined(self, member: Member) -> None:
        self._joining = None
        self.member, self._problem = member, ""
        try:
            if member.answer.trust:
                self._bundle_store.adopt(member.answer.trust)
        except (BundleError, OSError) as error:
            # What is on disk goes on; without any the streams say that there is no root.
            self.log.error("the fleet's root document cannot be kept: {error}", error=error)
        self.bundles = bundles = BundleService(
            self._reactor,
            Streams(
                trust_domain=member.trust_domain,
                defender=member.defender,
                agent_version=self._version,
                silence=self._silence,
            ),
            self._bundle_store,
            activate=self._activate,
            withdraw=self._withdraw,
            answer=self._answer,
            record=self._journal.record,
            told=self._told,
            run=self._in_thread,
            wall=self._wall,
        )
        self.link = link = ControllerLink(
            self._reactor,
            self._journal,
            Uses(
                connect=self._connect,
                hello=self._hello,
                pushed=bundles.offered,
                snapshot=bundles.snapshot,
                answer=self._answer_command,
                renewed=self._renewed,
                state=self._host.state,
                changed=lambda: None,
            ),
        )
        # First what is on disk, then whoever may bring something newer.
        bundles.setServiceParent(self)
        link.setServiceParent(self)
        self._look_at_the_certificate()
        self.joined.callback(None)

    def _has_not_joined(self, failure: Failure) -> None:
        self._joining = None
        if failure.check(CancelledError) or not self.running:
            return
        error = failure.value
        retry = error.retry_after if isinstance(error, EnrollmentError) else None
        self._problem = str(error) or type(error).__name__
        if failure.check(EnrollmentError, MembershipError) is None:
            self.log.failure("joining the fleet failed in an unforeseen way", failure)
            retry = AGAIN
        if retry is None:
            # Somebody has to do something first; a restart tries again.
            self.log.error("this host is no defender of the fleet: {problem}", problem=self.problem)
            return
        self.log.warn(
            "this host is no defender of the fleet yet: {problem}; trying again in {seconds:.0f} s",
            problem=self.problem,
            seconds=retry,
        )
        self._call = self._reactor.callLater(retry, self._join)

    # -- the certificate

    def _look_at_the_certificate(self) -> None:
        """Ask for another one when it is due, over the channel."""
        self._call = self._reactor.callLater(LOOK, self._look_at_the_certificate)
        member, link = self.member, self.link
        if member is None or link is None or not link.connected or self._wall() < member.renewal:
            return
        try:
            keys = self._enrollment.ask_renewal()
        except MembershipError as error:
            self.log.error("new keys cannot be kept, so the certificate is not renewed: {error}", error=error)
            return
        link.renew(keys.csr, keys.server_csr)

    def _renewed(self, answer: Renewed) -> None:
        member, link = self.member, self.link
        if member is None or link is None:
            return
        if not answer.chain:
            self.log.error(
                "the controller renews no certificate: {code}: {detail}",
                code=answer.code,
                detail=answer.detail,
            )
            return
        try:
            self.member = self._enrollment.renewed(member, answer.chain, answer.server_chain)
        except ContractError as error:
            self.log.error("the renewed certificate cannot be used: {error}", error=error)
            return
        link.commit(self.member.serial)
        # From now on with the new one; the old one stays good until that was seen.
        link.redial()

    # -- the link

    def _connect(self, factory: Factory[Any]) -> Deferred[Any]:
        member = self.member
        assert member is not None
        context = client_context(anchors=member.anchors, credentials=member.credentials, alpn=ALPN)
        expected = fleet_peer(member.trust_domain, ROLE_CONTROLLER)
        endpoint = checked_endpoint(self._reactor, *self._controller, context, expected, alpn=ALPN)
        return endpoint.connect(factory)

    def _hello(self) -> Hello:
        newest = self._journal.newest
        assert self.bundles is not None
        return Hello(
            oldest=OLDEST,
            newest=NEWEST,
            version=self._version,
            name=self._name,
            boot=boot_id(),
            capabilities=(),
            positions={
                stream: Position(*position) for stream, position in self.bundles.streams.positions().items()
            },
            spool=Cursor(*newest) if newest[0] else None,
        )

    def _answer(self, answer: Ack | Nack) -> None:
        if self.link is None:
            return
        match answer:
            case Ack(stream, nonce, position):
                self.link.acknowledge(stream, nonce, Position(*position))
            case Nack(stream, nonce, code, detail, kept):
                self.link.refuse(stream, nonce, code, detail, Position(*kept))
        self.link.report()

    # -- what is put in force

    def _activate(self, command: Activate) -> object:
        match command.content:
            case PolicyContent(name, text):
                self._host.put_policy(name, text)
            case LocksContent(locks):
                self._host.put_locks(locks)
            case ModeContent(listener, drain):
                return self._host.put_mode(listener, drain)
            case TrustContent(fleet=fleet, user=users):
                assert self.member is not None
                # Of use with the next connection: the one that brought it is checked already. What was on the
                # disk may be older than the answer to a host that has joined anew.
                stored = self.link is None or not self.link.running
                self.member = self._enrollment.trusted(self.member, fleet, beside=stored)
                return self._host.put_trust(users)
        return None

    def _withdraw(self, stream: str, reason: str) -> None:
        if stream == POLICY:
            self._host.withdraw_policy(reason)
        elif stream == LOCKS:
            self._host.put_locks(None)
        elif stream == TRUST:
            self._host.put_trust(())

    def _told(self, news: Graded | Frozen | Skewed) -> None:
        match news:
            case Graded(stream, grade, _):
                self.log.warn("the {stream} of the fleet is {grade}", stream=stream, grade=grade)
            case Frozen(reason):
                self._host.freeze(reason)
            case Skewed(seconds):
                self.log.warn("this host's clock is off by {seconds:.0f} s", seconds=seconds)
        if self.link is not None:
            self.link.report()

    def _answer_command(self, command: Cmd) -> object:
        return self._own_locks(command.arguments) if command.verb == "bundle" else self._host.answer(command)

    def _own_locks(self, wanted: Mapping[str, Any]) -> object:
        """A part of the bundle of locks in force: a controller that was restored may not know it any more."""
        stream, offset = wanted.get("stream"), wanted.get("offset")
        if stream != LOCKS or isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
            raise ContractError("only bundles of locks can be asked for, from an offset on")
        assert self.bundles is not None
        position = self.bundles.streams.status()[LOCKS].position

        def read() -> Mapping[str, Any]:
            data = self._bundle_store.envelope(LOCKS, position)
            if data is None:
                raise ContractError("no locks are in force here")
            part = data[offset : offset + PART]
            return {"size": len(data), "data": base64.b64encode(part).decode("ascii")}

        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), read)

    def _in_thread(self, work: Callable[[], None]) -> Deferred[None]:
        """The disk may be slow: what is being served does not wait for it."""
        if self.link is None or not self.link.running:
            # At the start, before anything is served: in order, and at once.
            work()
            return succeed(None)
        done: Deferred[None] = deferToThreadPool(self._reactor, self._reactor.getThreadPool(), work)
        return done
