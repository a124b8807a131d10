"""Speaks with the service manager for the controller: ready, status, stopping, and the watchdog's food.

The twin of the defender's `supervision.service`, since neither program imports the other's shells; what is
said and when is one module of the contract. Without a manager it does the same looks and sends nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from defender.contract.supervision import Supervision, Watch, read_supervision, stopping

Check = Callable[[], "str | Deferred[str]"]
"""A self-check: "" when all is well, else what is wrong. It may take its time: no answer is an answer."""

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


def adopt_supervision(environ: MutableMapping[str, str], pid: int) -> Supervision:
    """Read what the service manager passed and remove it, so that no child speaks for us."""
    found = read_supervision(environ, pid)
    for name in _VARIABLES:
        environ.pop(name, None)
    return found


def send_datagram(address: str, message: bytes) -> None:
    """Send one datagram to the manager's socket without waiting. Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
        sender.sendto(message, "\0" + address[1:] if address.startswith("@") else address)


class SupervisionService(Service):
    """Runs the self-checks and tells the service manager.

    Args:
        reactor: its clock must never go back.
        supervision: what the manager asked for.
        checks: the self-checks by name.
        send: takes address and message; may raise OSError, which is logged and no reason to end.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        supervision: Supervision,
        checks: Mapping[str, Check],
        send: Callable[[str, bytes], None] = send_datagram,
    ) -> None:
        self.setName("supervision")
        self._reactor = reactor
        self._supervision = supervision
        self._checks = checks
        self._send = send
        self._watch = Watch(checks, supervision.watchdog)
        self._call: Any = None
        self._unheard = False
        self._told: list[str] = []

    def startService(self) -> None:
        """Begin to look."""
        super().startService()
        self._look()

    def stopService(self) -> None:
        """Look no more. That the program ends has been said by `ending`, or is said now."""
        super().stopService()
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._say(stopping())

    def serving(self, status: str) -> None:
        """The program serves; `status` is for people. May be called again with another status."""
        for message in self._watch.served(status, self._reactor.seconds()):
            self._say(message)

    def ending(self, seconds: float) -> None:
        """The program ends and needs as many seconds, to drain; to be called again while it needs more."""
        self._say(stopping(seconds))

    @property
    def problems(self) -> list[str]:
        """What the self-checks have found."""
        return self._watch.problems(self._reactor.seconds())

    def _look(self) -> None:
        now = self._reactor.seconds()
        for name in self._watch.due():
            self._watch.asked(name, now)
            asking: Deferred[Any] = maybeDeferred(self._checks[name])
            asking.addErrback(self._broke, name)
            asking.addCallback(self._answered, name)
        for message in self._watch.look(now):
            self._say(message)
        problems = self._watch.problems(now)
        if problems != self._told:
            if problems:
                self.log.error("self-check: {problems}", problems="; ".join(problems))
            else:
                self.log.info("self-check: all is well again")
            self._told = problems
        self._call = self._reactor.callLater(self._supervision.interval, self._look)

    def _answered(self, problem: str, name: str) -> None:
        self._watch.answered(name, problem)

    def _broke(self, failure: Failure, name: str) -> str:
        self.log.failure("the self-check {name} failed", failure, name=name)
        return f"the check itself failed: {type(failure.value).__name__}"

    def _say(self, message: bytes) -> None:
        if not self._supervision.address:
            return
        try:
            self._send(self._supervision.address, message)
        except OSError as error:
            if not self._unheard:
                self.log.error(
                    "the service manager cannot be told at {address}: {why}",
                    address=self._supervision.address,
                    why=error.strerror or error,
                )
            self._unheard = True
        else:
            self._unheard = False
