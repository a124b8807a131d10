"""The controller, put together: every part is made here and introduced to those it works with.

Nothing here decides anything. The parts are started in an order in which each finds what it stands on, and
are stopped in the reverse: whoever may come is let in last and asked to leave first.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from controller import __version__
from controller.announcements import Announcements
from controller.api.ports import Check
from controller.channel.service import Reception
from controller.channel.tls import channel_context
from controller.chores import Chores
from controller.desk import Desk
from controller.founding import (
    STORE,
    Founded,
    FoundingError,
    Identity,
    found,
    notes_epoch,
    open_database,
    random_epoch,
    renew_identity,
)
from controller.front import Front, https_context
from controller.identity.passwords import Passwords
from controller.login_throttle import LoginThrottle
from controller.pki.authority import AuthorityError, certificate_pem
from controller.pki.custody import CustodyError
from controller.pki.enrollment import Enrollment
from controller.pki.files import write_private
from controller.pki.registry import Office
from controller.ports.accounts import FIRST, first_admin
from controller.ports.assembly import Parts, make_ports
from controller.ports.housekeeping import tidy
from controller.ports.ledger import Ledger
from controller.ports.notices import notices
from controller.publisher import Publisher
from controller.publisher_orders import Orders
from controller.publisher_steps import Authorities
from controller.releases import Plan, Wave
from controller.settings import Settings, SettingsError, changed, load_settings
from controller.sinks.description import SinkFileError
from controller.sinks.folder import read_sinks
from controller.sinks.service import Sinks
from controller.sinks.targets import Target
from controller.store.database import Database
from controller.store.errors import StoreError
from controller.store.events import EventStore
from controller.store.feed import EventFeed, ForwardingCursor
from controller.store.trail import TrailMover
from controller.supervision.service import SupervisionService, adopt_supervision
from controller.supervision.sockets import PassedSockets
from defender.contract.errors import ContractError

#: Seconds between two times that what was written to the trail is brought to the event store.
MOVE_EVERY: Final = 2.0
#: Seconds between two looks at what is over, old or nearly over.
TIDY_EVERY: Final = 3600.0

FIRST_PASSWORD: Final = "first-admin-password"  # noqa: S105 - the name of a file
"""Where the first password lies until somebody removes it, if there was no terminal to print it on."""

SINKS: Final = "sinks"


@dataclass(frozen=True, slots=True)
class Given:
    """What a controller is made of. `told` prints the first admin's password, and says whether it could."""

    settings: Settings
    host_name: str
    founded: Founded
    sinks: tuple[Target, ...]
    told: Callable[[str], bool]


def prepare(settings: Settings, host_name: str, told: Callable[[str], bool] | None = None) -> Given:
    """Find or make what the controller has on its disk; blocks. Raises FoundingError or SinkFileError."""
    founded = found(settings, host_name, datetime.now(UTC))
    sinks = tuple(read_sinks(settings.controller.state / SINKS))
    return Given(settings, host_name, founded, sinks, told or _print_on_terminal)


class Controller(Service):
    """The center of a fleet.

    `started` fires once everybody is let in, and fails with what stands in the way; then `give_up` is called,
    after the reason is in the log. `https_port` and `channel_port` are the ports that were opened.
    """

    log = Logger()

    def __init__(self, given: Given, reactor: Any, give_up: Callable[[], None]) -> None:
        self.setName("controller")
        self.settings = given.settings
        self.started: Deferred[None] = Deferred()
        self.https_port = 0
        self.channel_port = 0
        self._given = given
        self._reactor = reactor
        self._give_up = give_up
        self._identity = given.founded.identity
        self._authority = given.founded.authority
        self._keys = given.founded.keys
        self._office: Office | None = None
        self._undo: list[Callable[[], Any]] = []
        self._booting: Deferred[None] = succeed(None)
        self._problem: Callable[[], str] = lambda: ""
        self._front: Front | None = None
        self._reception: Reception | None = None
        self._sinks: Sinks | None = None
        self._sockets = PassedSockets.adopt(os.environ, os.getpid())
        self._supervision = SupervisionService(
            reactor, adopt_supervision(os.environ, os.getpid()), {"controller": lambda: self._problem()}
        )

    # -- service

    def startService(self) -> None:
        """Begin; `started` tells of the end."""
        super().startService()
        self._supervision.startService()
        self._booting = Deferred.fromCoroutine(self._boot())
        self._booting.addCallbacks(lambda _: self.started.callback(None), self._failed)
        signal.signal(signal.SIGHUP, self._hang_up)

    def stopService(self) -> Deferred[None]:
        """Let nobody in, keep what is not kept yet, close the stores."""
        super().stopService()
        booted: Deferred[None] = Deferred()
        # Who hears of the start may ask for the end in the same breath: `_booting` cannot be waited for.
        self._booting.addBoth(lambda _: booted.callback(None))
        return booted.addCallback(lambda _: Deferred.fromCoroutine(self._stop()))

    def _failed(self, failure: Failure) -> None:
        """Say why, as people need it, and end."""
        known = (FoundingError, StoreError, ContractError, AuthorityError, CustodyError, OSError)
        if failure.check(*known):
            self.log.critical("the controller cannot start: {why}", why=failure.getErrorMessage())
        else:
            self.log.failure("the controller cannot start", failure)
        self.started.addErrback(lambda _: None)  # whoever waits for it has been called before
        self.started.errback(failure)
        self._give_up()

    async def _stop(self) -> None:
        self._problem = lambda: ""
        while self._undo:
            step = self._undo.pop()
            try:
                await maybeDeferred(step)
            except Exception:  # noqa: BLE001 - whatever is the matter with one part, the next is stopped too
                self.log.failure("a part could not be stopped")
        self._supervision.stopService()

    # -- the start

    async def _boot(self) -> None:
        given, reactor, settings, undo = self._given, self._reactor, self.settings, self._undo
        state = settings.controller.state
        passwords = Passwords(reactor)
        passwords.start()
        undo.append(passwords.stop)
        database = open_database(state, reactor)
        undo.append(database.stop)
        events = EventStore(state / STORE, reactor, await database.write(notes_epoch))
        for text in events.start():
            self.log.error("the event store: {text}", text=text)
        undo.append(events.stop)
        mover = TrailMover(database, events, random_epoch)
        await mover.start()
        ledger = Ledger(database, mover.move)
        announcements = Announcements(ledger, given.host_name)
        undo.append(announcements.stopped)
        desk, publisher = await self._publishing(database, events, ledger, announcements)
        self._sinks = Sinks(
            reactor, lambda name: EventFeed(events), lambda name: ForwardingCursor(database, name, time.time)
        )
        await self._sinks.replace(given.sinks)
        undo.append(self._sinks.stop)
        chores = Chores(reactor)
        undo.append(chores.stop)
        self._problem = lambda: database.problem or events.problem or self._unserved()
        await self._serve(desk, publisher, ledger, events, passwords)
        await announcements.started()
        chores.every(MOVE_EVERY, "bring audit events to the event store", mover.move)
        chores.every(TIDY_EVERY, "forget what is over", lambda: tidy(ledger))
        chores.every(TIDY_EVERY, "renew the certificate", self._renew)
        chores.every(
            TIDY_EVERY,
            "remove old events",
            lambda: events.retain(self.settings.audit.retention_days),
            now=True,
        )
        self._supervision.serving(f"serving, {len(desk.connected())} defenders connected")

    async def _publishing(
        self, database: Database, events: EventStore, ledger: Ledger, announcements: Announcements
    ) -> tuple[Desk, Publisher]:
        """Who decides what defenders should have, and the desk that they come to."""
        authority, keys = self._authority, self._keys
        record = notices(ledger)
        self._office = Office(authority, record, keys.chain, self._identity.names)

        def office() -> Office:
            assert self._office is not None
            return self._office

        desk = Desk(
            self._reactor,
            database,
            events,
            Enrollment(database, office),
            office,
            trust_domain=authority.trust_domain,
            version=__version__,
        )
        authorities = Authorities(
            *(
                tuple(certificate_pem(each).decode() for each in those)
                for those in ((authority.root,), authority.all_fleet, authority.all_users)
            )
        )
        publisher = Publisher(
            self._reactor, database, keys, authorities, desk, wall=time.time, tell=announcements.command
        )
        announcements.publisher = publisher
        await publisher.start()
        self._undo.append(publisher.stop)
        desk.publisher = publisher
        desk.startService()
        self._undo.append(desk.stopService)
        return desk, publisher

    async def _serve(
        self, desk: Desk, publisher: Publisher, ledger: Ledger, events: EventStore, passwords: Passwords
    ) -> None:
        """Make what people ask, and open both ports."""
        # Klein imports the global reactor, so it is imported when there is one for sure.
        from controller.api.app import Api
        from controller.api.site import ApiSite

        settings, reactor, undo = self.settings, self._reactor, self._undo
        sinks = self._sinks
        assert sinks is not None
        assert self._office is not None
        password = await first_admin(ledger, passwords)
        if password:
            self._hand_over(password)
        ports = make_ports(
            Parts(
                ledger,
                events,
                passwords,
                publisher,
                Orders(publisher),
                desk,
                self._office,
                self._authority.root,
                self._authority.trust_domain,
                next(iter(settings.controller.names), self._given.host_name),
                __version__,
                lambda: self.channel_port,
                sinks=sinks.states,
                checks=(lambda: Check("ports", not self._unserved(), self._unserved()),),
                turned_away=lambda: self._reception.refused if self._reception is not None else {},
                throttle=LoginThrottle(
                    per_user=settings.accounts.logins_per_user,
                    per_address=settings.accounts.logins_per_address,
                ),
                token_life=int(settings.enrollment.token_life),
                approval=settings.enrollment.approval == "queue",
                gradual=_gradual(settings),
            )
        )
        api = Api(ports, reactor, version=__version__)
        undo.append(api.stop)
        site = ApiSite(api.resource(), reactor, api.dispatcher.metrics, body_limit=settings.https.body_bytes)
        self._front = Front(reactor, settings.https.listen, self._https_context(), site, self._listen)
        self._front.startService()
        undo.append(self._front.stopService)
        self._reception = Reception(reactor, settings.channel, self._channel_context(), desk, self._listen)
        self._reception.startService()
        undo.append(self._reception.stopService)
        self.https_port, self.channel_port = self._front.port, self._reception.port
        self.log.info(
            "serving HTTPS on port {https} and defenders on port {channel}",
            https=self.https_port,
            channel=self.channel_port,
        )

    def _listen(self, address: str, factory: Any, backlog: int) -> Any:
        return self._sockets.listen(self._reactor, address, factory, backlog)

    def _unserved(self) -> str:
        """Why not everybody is let in."""
        if self._front is None or not self._front.port:
            return "HTTPS is not served"
        if self._reception is None or not self._reception.port:
            return "defenders are not served"
        return ""

    def _hand_over(self, password: str) -> None:
        """Give the first admin's password to whoever started this, and to nobody else: it is in no log."""
        if self._given.told(password):
            return
        path: Path = self.settings.controller.state / FIRST_PASSWORD
        write_private(path, f"{password}\n".encode())
        self.log.warn(
            "the password of the account {user!r} is in {path}: sign in with it, change it, remove the file",
            user=FIRST,
            path=str(path),
        )

    # -- certificates and settings

    def _https_context(self) -> Any:
        return https_context(self._identity.chain, self._identity.key)

    def _channel_context(self) -> Any:
        return channel_context(self._identity.chain, self._identity.key, self._authority.all_fleet)

    async def _renew(self) -> None:
        """Have a certificate that holds and has all names; connections that come are served with it."""
        identity: Identity = renew_identity(
            self.settings, self._authority, self._given.host_name, datetime.now(UTC)
        )
        if identity.chain == self._identity.chain:
            return
        self._identity = identity
        assert self._office is not None
        self._office = Office(self._authority, self._office.record, self._keys.chain, identity.names)
        if self._front is not None and self._reception is not None:
            self._front.context = self._https_context()
            self._reception.context = self._channel_context()
        self.log.info("another certificate is in use, for {names}", names=", ".join(identity.names))

    def _hang_up(self, _number: int, _frame: Any) -> None:
        self._reactor.callFromThread(self._reload)

    def _reload(self) -> None:
        """Read the settings and the sinks again, and use what can be used without a restart."""
        reloading = Deferred.fromCoroutine(self._read_again())
        reloading.addErrback(lambda failure: self.log.error("reload: {why}", why=failure.getErrorMessage()))

    async def _read_again(self) -> None:
        if self._sinks is None:
            return
        old = self.settings
        try:
            new = load_settings(old.source, self._given.host_name)
        except SettingsError as error:
            self.log.error("the settings stay as they are:\n{why}", why=str(error))
            return
        try:
            targets = read_sinks(old.controller.state / SINKS)
        except SinkFileError as error:
            self.log.error("settings and sinks stay as they are:\n{why}", why=str(error))
            return
        later = changed(old, new).fixed
        named = replace(old.controller, names=new.controller.names)
        self.settings = replace(old, controller=named, audit=new.audit)
        await self._renew()
        await self._sinks.replace(targets)
        self.log.info(
            "settings and sinks were read again{later}",
            later=f"; these need a restart: {', '.join(later)}" if later else "",
        )


def _gradual(settings: Settings) -> Plan:
    rollout = settings.rollout
    waves = (Wave(rollout.first), Wave(rollout.first, rollout.second_percent))
    return Plan(waves, halts=True, patience=rollout.patience)


def _print_on_terminal(password: str) -> bool:
    """Print it where no log goes; twistd turns `sys.stdout` into its log."""
    terminal = sys.__stdout__
    if terminal is None or not terminal.isatty():
        return False
    with suppress(OSError):
        terminal.write(f"\nThe account {FIRST!r} has this password, shown once: {password}\n\n")
        terminal.flush()
        return True
    return False
