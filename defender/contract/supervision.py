"""What a program and its service manager say to each other: sd_notify(3), and a watchdog fed by self-checks.

The manager passes the address of a datagram socket and the time within which it wants to hear that all is
well. `Watch` decides what is said: that all is well only while every self-check says so, since a timer that
fires proves a loop that turns, and nothing of what hangs on it. A check belongs here only if a restart can
mend what it finds: a controller or an Engine that is away is no reason to end a defender.

Pure: the shells (`service.py` in each program's `supervision`) have the socket and the clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from defender.contract.errors import one_line

MAX_STATUS: Final = 200
"""Characters of a status line; `systemctl status` shows one line."""

_MICRO: Final = 1_000_000
_MAX_ADDRESS: Final = 107
_LONGEST: Final = 86400 * _MICRO
"""The longest watchdog time that is believed, in microseconds: 24 hours."""


@dataclass(frozen=True, slots=True)
class Supervision:
    """What the service manager asked for.

    ``address``: where datagrams go, an absolute path or ``@NAME`` for an abstract socket; "" for nowhere.
    ``watchdog``: seconds within which it wants to hear that all is well; 0.0 if it does not.
    """

    address: str = ""
    watchdog: float = 0.0

    @property
    def interval(self) -> float:
        """Seconds between two looks; a quarter of the watchdog's time, so that one late look does no harm."""
        return self.watchdog / 4 if self.watchdog else 15.0


def read_supervision(environ: Mapping[str, str], pid: int) -> Supervision:
    """Read ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID``; what is damaged or for another process
    counts as not said, as sd_watchdog_enabled(3) has it: a program must also start without a manager.
    """
    address = environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@") or not 2 <= len(address.encode()) <= _MAX_ADDRESS:
        return Supervision()
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return Supervision(address)
    text = environ.get("WATCHDOG_USEC", "")
    if not (text.isascii() and text.isdigit()) or len(text) > 12 or not 0 < int(text) <= _LONGEST:
        return Supervision(address)
    return Supervision(address, int(text) / _MICRO)


def ready(status: str) -> bytes:
    """The program serves, and this is how it does."""
    return b"READY=1\n" + status_line(status)


def status_line(status: str) -> bytes:
    """How the program does, for `systemctl status`: one line, whatever it is made of."""
    return f"STATUS={one_line(status)[:MAX_STATUS]}\n".encode("utf-8", "replace")


def stopping(seconds: float = 0.0) -> bytes:
    """The program ends, and asks for as many seconds; it may ask again before they are over.

    0.0: as long as the unit gives it. Asking never takes time away from it.
    """
    return b"STOPPING=1\n" + (b"EXTEND_TIMEOUT_USEC=%d\n" % int(seconds * _MICRO) if seconds > 0 else b"")


ALL_IS_WELL: Final = b"WATCHDOG=1\n"


@dataclass(slots=True)
class _Check:
    """What is known of one self-check: since when it has been asked without an answer, and the last one."""

    asked: float | None = None
    problem: str = ""


class Watch:
    """Decides what the service manager hears, look by look.

    Args:
        names: of the self-checks.
        watchdog: seconds of `Supervision`; 0.0 for a manager that has no watchdog: it hears of problems in
            the status line only.

    Inputs: `asked`, `answered`, `served`, `look`. Times are seconds of one clock that never goes back.
    """

    def __init__(self, names: Iterable[str], watchdog: float) -> None:
        self._checks = {name: _Check() for name in names}
        self._watchdog = watchdog
        self._patience = watchdog / 2 if watchdog else 30.0
        self._status = ""
        self._said: str | None = None
        self._ready = False

    def due(self) -> list[str]:
        """Names of the checks to ask now: those that have no question open."""
        return [name for name, check in self._checks.items() if check.asked is None]

    def asked(self, name: str, now: float) -> None:
        """A check has been asked."""
        self._checks[name].asked = now

    def answered(self, name: str, problem: str) -> None:
        """A check has answered: "" for well, else what is wrong, for people."""
        check = self._checks[name]
        check.asked, check.problem = None, problem

    def problems(self, now: float) -> list[str]:
        """What is wrong, one sentence for each check that does not say that all is well."""
        found = []
        for name, check in self._checks.items():
            if check.asked is not None and now - check.asked >= self._patience:
                found.append(f"{name}: no answer within {self._patience:g} s")
            elif check.problem:
                found.append(f"{name}: {check.problem}")
        return found

    def served(self, status: str, now: float) -> list[bytes]:
        """The program serves, or does so in another way than before; returns datagrams to send."""
        self._status = status
        if not self._ready:
            self._ready = True
            self._said = status
            return [ready(status)]
        return self._tell(self.problems(now))

    def look(self, now: float) -> list[bytes]:
        """One look; returns datagrams to send, in order. Nothing before the program serves."""
        if not self._ready:
            return []
        problems = self.problems(now)
        well = [ALL_IS_WELL] if self._watchdog and not problems else []
        return well + self._tell(problems)

    def _tell(self, problems: list[str]) -> list[bytes]:
        status = "; ".join(["not well: " + problems[0], *problems[1:]]) if problems else self._status
        if status == self._said:
            return []
        self._said = status
        return [status_line(status)]
