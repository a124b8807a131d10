"""What the controller does by itself, told in its log and in the audit trail: starts, stops, halts."""

from __future__ import annotations

from typing import Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from controller.admin_audit import Changed
from controller.api.ports import Actor
from controller.ports.ledger import Ledger, Told
from controller.publisher import Publisher
from controller.releases import Aborted, Ahead, Command, Conflict, Halted, Resumed, Settled
from controller.rollout_view import describe_halt

_SYSTEM: Final = Actor("", "system", "", "", "")


class Announcements:
    """Tells of them. `publisher` knows the names of defenders; it is set before the first command comes."""

    log = Logger()

    def __init__(self, ledger: Ledger, host: str) -> None:
        self.publisher: Publisher | None = None
        self._ledger = ledger
        self._host = host

    async def started(self) -> None:
        """The controller serves."""
        await self._ledger.tell(_SYSTEM, Told("controller_start", self._host))

    def stopped(self) -> Deferred[None]:
        """The controller ends; fires when that is stored with all that was told before."""

        async def tell() -> None:
            await self._ledger.tell(_SYSTEM, Told("controller_stop", self._host))
            await self._ledger.moved()

        return Deferred.fromCoroutine(tell())

    def command(self, stream: str, command: Command) -> None:
        """A command of a distribution."""
        match command:
            case Halted():
                why = describe_halt(command, self._name, self._patience(stream, command.line))
                self._tell(stream, command.line, "halted", why, command.position.version)
            case Resumed() | Aborted() | Settled():
                # Who resumed or aborted it has an event of the order.
                self.log.info(
                    "{stream} {line}: version {version} is {what}",
                    stream=stream,
                    line=command.line or "-",
                    version=command.position.version,
                    what=type(command).__name__.lower(),
                )
            case Ahead() | Conflict():
                name, version = self._name(command.defender), command.held.position.version
                why = (
                    f"it holds version {version} of {stream}, which nobody here published"
                    if isinstance(command, Ahead)
                    else f"it holds another content as version {version} of {stream} than was published here"
                )
                self.log.error("defender {name}: {why}", name=name, why=why)
                self._event(Told("defender_foreign_bundle", name, refused=why))

    def _tell(self, stream: str, line: str, what: str, why: str, version: int) -> None:
        self.log.error(
            "{stream} {line}: the rollout of version {version} is {what}: {why}",
            stream=stream,
            line=line or "-",
            version=version,
            what=what,
            why=why,
        )
        told = Changed({}, {"stream": stream, "version": version, "state": what})
        self._event(Told("rollout_halt", line or stream, told, comment=why))

    def _event(self, told: Told) -> None:
        telling = Deferred.fromCoroutine(self._ledger.tell(_SYSTEM, told))
        telling.addErrback(
            lambda failure: self.log.error(
                "an audit event could not be written: {why}", why=failure.getErrorMessage()
            )
        )

    def _name(self, defender: str) -> str:
        publisher = self.publisher
        found = None if publisher is None else publisher.policies.fleet.find(defender)
        return defender if found is None else found.name

    def _patience(self, stream: str, line: str) -> float:
        publisher = self.publisher
        return 0.0 if publisher is None else publisher.streams[stream].state(line).plan.patience
