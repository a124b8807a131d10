"""The listener switch: which sockets accept, and in which order they come and go.

Inputs in, commands out (architecture: "events in, commands out"). The shell performs the commands in order
and answers: every `Bind` with ``bound`` or ``bind_failed``, every `Probe` with ``probed`` or
``probe_failed``, every `Permit` with ``permitted`` or ``permit_failed``, every `Retry` with ``retry`` after
its delay, every `Drain` and `CloseStreams` with ``drained`` once the listener's last connection is gone, and
a `Drain` with a limit with ``drain_expired`` if that comes first. It may answer from inside the command.

Invariants:

* Make before break: while a switch to a mode with addresses is under way, every old listener accepts until
  every new one is bound and has answered its probe. An address that is in both specs is not touched.
* All or nothing: when one new listener fails, the others of the attempt are closed, the old set accepts as
  before, and the report carries every reason. Only the first opening after a start (`start`) is lenient:
  there, an address that fails is retried with a growing delay while the others serve, because nobody is
  there to read a report.
* One attempt at a time. A selection that comes meanwhile waits; of several, the latest wins and the others
  are reported as superseded.
* Every ticket given to `start` or `select` appears in exactly one `Report`.
* Retired listeners never accept again; an address selected again gets a new `Listener`.

States: *closed* (nothing accepts, nothing is wanted), *opening* (lenient attempt), *open* (each address
serves or waits for its retry), *replacing* (strict attempt; the old set accepts). Draining is a property of
each retired listener, not a state: any number of them can drain in every state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from automat import TypeMachineBuilder

from defender.listener.spec import Address, ListenSpec, UnixAddress, clash

FIRST_RETRY: Final = 1.0
LONGEST_RETRY: Final = 60.0


@dataclass(frozen=True, slots=True)
class Listener:
    """One life of one address: a number that is never used twice, and what it listens on."""

    number: int
    address: Address


@dataclass(frozen=True, slots=True)
class Bind:
    """Open the address and accept on it; the mode and group are for a unix socket."""

    listener: Listener
    unix_mode: int
    unix_group: str


@dataclass(frozen=True, slots=True)
class Probe:
    """Connect to the listener as a client would, and see that it accepts."""

    listener: Listener


@dataclass(frozen=True, slots=True)
class Permit:
    """Give an open unix socket another mode and group, as a part of an attempt."""

    listener: Listener
    unix_mode: int
    unix_group: str


@dataclass(frozen=True, slots=True)
class Restore:
    """Give back the mode and group of before a failed attempt; there is no answer to it."""

    listener: Listener
    unix_mode: int
    unix_group: str


@dataclass(frozen=True, slots=True)
class StopAccepting:
    """Close the listening socket now; its connections go on."""

    listener: Listener


@dataclass(frozen=True, slots=True)
class Drain:
    """Close idle connections now and others when they become idle; `limit` seconds, 0 for no limit."""

    listener: Listener
    limit: float


@dataclass(frozen=True, slots=True)
class CloseStreams:
    """Abort every connection of the listener."""

    listener: Listener


@dataclass(frozen=True, slots=True)
class Retry:
    """Give ``retry(address)`` after `delay` seconds; `reason` says why the last attempt failed."""

    address: Address
    delay: float
    reason: str


Outcome = Literal["switched", "unchanged", "partial", "failed", "superseded"]


@dataclass(frozen=True, slots=True)
class Report:
    """How the attempt of a ticket ended.

    "switched" and "unchanged" serve all of `spec`; "partial" (a start only) serves some and retries the
    others; "failed" serves what was served before; "superseded" was never tried. `reason` is for a person
    and empty for the first two.
    """

    ticket: int
    outcome: Outcome
    spec: ListenSpec
    reason: str


Command = Bind | Probe | Permit | Restore | StopAccepting | Drain | CloseStreams | Retry | Report


class ListenerSwitch(Protocol):
    """The inputs; those with a leading underscore are the machine's own."""

    def start(self, ticket: int, spec: ListenSpec) -> list[Command]:
        """Open what the host is configured for, leniently; once, before anything else."""

    def select(self, ticket: int, spec: ListenSpec, drain: float) -> list[Command]:
        """Replace what is served by `spec`; retired listeners drain for at most `drain` s (0: no limit)."""

    def bound(self, listener: Listener) -> list[Command]:
        """The listener is open and accepts."""

    def bind_failed(self, listener: Listener, reason: str) -> list[Command]:
        """The listener could not be opened; nothing of it is left."""

    def probed(self, listener: Listener) -> list[Command]:
        """The listener accepted the probe."""

    def probe_failed(self, listener: Listener, reason: str) -> list[Command]:
        """The listener is open but did not accept the probe."""

    def permitted(self, listener: Listener) -> list[Command]:
        """The socket has the mode and group of the last `Permit`."""

    def permit_failed(self, listener: Listener, reason: str) -> list[Command]:
        """The socket has the mode and group it had before."""

    def retry(self, address: Address) -> list[Command]:
        """The delay of a `Retry` is over."""

    def drained(self, listener: Listener) -> list[Command]:
        """The last connection of a retired listener is gone."""

    def drain_expired(self, listener: Listener) -> list[Command]:
        """The limit of a `Drain` is over and connections are left."""

    def _settled(self) -> None:
        """An attempt ended and addresses are served or retried."""

    def _emptied(self) -> None:
        """An attempt ended and nothing is served or wanted."""

    def _went_on(self) -> None:
        """An attempt ended and a waiting selection began at once."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What somebody asked for."""

    ticket: int
    spec: ListenSpec
    drain: float


@dataclass(slots=True)
class Attempt:
    """What is being opened: `waiting` has not answered yet, `ready` has, `failures` are texts."""

    selection: Selection
    waiting: set[Listener] = field(default_factory=set)
    ready: list[Listener] = field(default_factory=list)
    permitted: list[Listener] = field(default_factory=list)
    failures: list[tuple[Address, str]] = field(default_factory=list)


@dataclass(slots=True)
class SwitchState:
    """The machine's data, for the status page too.

    `spec` is what is served or being retried, `serving` its listeners that accept, `missing` the number of
    failures of each address that waits for a retry.
    """

    spec: ListenSpec = field(default_factory=lambda: ListenSpec("none"))
    serving: dict[Address, Listener] = field(default_factory=dict)
    missing: dict[Address, int] = field(default_factory=dict)
    draining: set[Listener] = field(default_factory=set)
    attempt: Attempt | None = None
    queued: Selection | None = None
    issued: int = 0

    def issue(self, address: Address) -> Listener:
        """Return a listener with a fresh number."""
        self.issued += 1
        return Listener(self.issued, address)


def _attempt(state: SwitchState, listener: Listener) -> Attempt:
    """Return the attempt that waits for `listener`; another answer is a bug of the shell, and loud."""
    if state.attempt is None or listener not in state.attempt.waiting:
        raise ValueError(f"nothing is awaited of {listener}")
    return state.attempt


def _retire(state: SwitchState, listeners: list[Listener], drain: float | None) -> list[Command]:
    """Stop listeners from accepting; drain them, or close their streams at once when `drain` is None."""
    state.draining.update(listeners)
    commands: list[Command] = [StopAccepting(listener) for listener in listeners]
    for listener in listeners:
        commands.append(CloseStreams(listener) if drain is None else Drain(listener, drain))
    return commands


def _begin(state: SwitchState, selection: Selection) -> list[Command]:
    """Begin a strict attempt; `state.attempt` is set afterwards."""
    spec = selection.spec
    state.attempt = attempt = Attempt(selection)
    wanted = [address for address in spec.addresses if address not in state.serving]
    for address in wanted:
        for old in state.serving:
            if clash(address, old):
                # The kernel would say "address in use" without a word about who uses it.
                attempt.failures.append(
                    (address, f"overlaps {old}, which is served now; switch to mode none first")
                )
    if attempt.failures:
        return []
    commands: list[Command] = []
    if spec.access != state.spec.access:
        for address in spec.addresses:
            if isinstance(address, UnixAddress) and address in state.serving:
                listener = state.serving[address]
                attempt.waiting.add(listener)
                commands.append(Permit(listener, *spec.access))
    for address in wanted:
        listener = state.issue(address)
        attempt.waiting.add(listener)
        commands.append(Bind(listener, *spec.access))
    return commands


def _reasons(failures: list[tuple[Address, str]]) -> str:
    return "; ".join(f"{address}: {reason}" for address, reason in failures)


def _commit(state: SwitchState, attempt: Attempt) -> list[Command]:
    """Every new listener of a strict attempt accepts: let the old ones go."""
    selection = attempt.selection
    keep = set(selection.spec.addresses)
    retired = [listener for address, listener in state.serving.items() if address not in keep]
    changed = bool(retired or attempt.ready or attempt.permitted)
    for listener in retired:
        del state.serving[listener.address]
    for listener in attempt.ready:
        state.serving[listener.address] = listener
    state.spec = selection.spec
    state.missing.clear()
    commands = _retire(state, retired, selection.drain)
    outcome: Outcome = "switched" if changed else "unchanged"
    return [*commands, Report(selection.ticket, outcome, selection.spec, "")]


def _roll_back(state: SwitchState, attempt: Attempt) -> list[Command]:
    """One new listener of a strict attempt failed: close the others, keep the old ones."""
    commands = _retire(state, attempt.ready, None)
    commands.extend(Restore(listener, *state.spec.access) for listener in attempt.permitted)
    selection = attempt.selection
    report = Report(selection.ticket, "failed", selection.spec, _reasons(attempt.failures))
    return [*commands, report]


def _finish(switch: ListenerSwitch, state: SwitchState) -> list[Command]:
    """End the attempts that await nothing; begin the selection that waited."""
    commands: list[Command] = []
    while (attempt := state.attempt) is not None and not attempt.waiting:
        state.attempt = None
        commands += _roll_back(state, attempt) if attempt.failures else _commit(state, attempt)
        if state.queued is not None:
            queued, state.queued = state.queued, None
            commands += _begin(state, queued)
    _move(switch, state)
    return commands


def _move(switch: ListenerSwitch, state: SwitchState) -> None:
    """Enter the state that fits the data. Automat runs these inputs when the present one has ended."""
    if state.attempt is not None:
        switch._went_on()
    elif state.serving or state.missing:
        switch._settled()
    else:
        switch._emptied()


def _finish_lenient(switch: ListenerSwitch, state: SwitchState) -> list[Command]:
    """The same for an opening: what failed is retried."""
    attempt = state.attempt
    if attempt is None or attempt.waiting:
        return []
    state.attempt = None
    commands: list[Command] = []
    for listener in attempt.ready:
        state.serving[listener.address] = listener
        state.missing.pop(listener.address, None)
    for address, reason in attempt.failures:
        failures = state.missing.get(address, 0)
        state.missing[address] = failures + 1
        delay = min(LONGEST_RETRY, FIRST_RETRY * 2.0 ** min(failures, 10))
        commands.append(Retry(address, delay, reason))
    selection = attempt.selection
    if selection.ticket:
        outcome: Outcome = "partial" if attempt.failures else "switched"
        commands.append(Report(selection.ticket, outcome, selection.spec, _reasons(attempt.failures)))
    if state.queued is not None:
        queued, state.queued = state.queued, None
        commands += _begin(state, queued)
        return commands + _finish(switch, state)
    _move(switch, state)
    return commands


def build() -> Callable[[SwitchState], ListenerSwitch]:
    """Build the machine; call the result with a fresh `SwitchState`."""
    builder = TypeMachineBuilder(ListenerSwitch, SwitchState)
    closed = builder.state("closed")
    opening = builder.state("opening")
    open_ = builder.state("open")
    replacing = builder.state("replacing")

    @closed.upon(ListenerSwitch.start).to(opening)
    def start(switch: ListenerSwitch, state: SwitchState, ticket: int, spec: ListenSpec) -> list[Command]:
        state.spec = spec
        state.attempt = Attempt(Selection(ticket, spec, 0.0))
        commands: list[Command] = []
        for address in spec.addresses:
            listener = state.issue(address)
            state.attempt.waiting.add(listener)
            commands.append(Bind(listener, *spec.access))
        return commands + _finish_lenient(switch, state)

    @open_.upon(ListenerSwitch.retry).to(opening)
    def retry(switch: ListenerSwitch, state: SwitchState, address: Address) -> list[Command]:
        state.attempt = Attempt(Selection(0, state.spec, 0.0))
        commands: list[Command] = []
        if address in state.missing:
            listener = state.issue(address)
            state.attempt.waiting.add(listener)
            commands.append(Bind(listener, *state.spec.access))
        return commands + _finish_lenient(switch, state)

    def replace(
        switch: ListenerSwitch, state: SwitchState, ticket: int, spec: ListenSpec, drain: float
    ) -> list[Command]:
        commands = _begin(state, Selection(ticket, spec, drain))
        return commands + _finish(switch, state)

    closed.upon(ListenerSwitch.select).to(replacing)(replace)
    open_.upon(ListenerSwitch.select).to(replacing)(replace)

    def queue(
        switch: ListenerSwitch, state: SwitchState, ticket: int, spec: ListenSpec, drain: float
    ) -> list[Command]:
        earlier, state.queued = state.queued, Selection(ticket, spec, drain)
        if earlier is None:
            return []
        reason = "another selection came before this one began"
        return [Report(earlier.ticket, "superseded", earlier.spec, reason)]

    # What a lenient opening is told. It does not probe: there is no older listener to keep instead.

    @opening.upon(ListenerSwitch.bound).loop()
    def opened(switch: ListenerSwitch, state: SwitchState, listener: Listener) -> list[Command]:
        attempt = _attempt(state, listener)
        attempt.waiting.remove(listener)
        attempt.ready.append(listener)
        return _finish_lenient(switch, state)

    @opening.upon(ListenerSwitch.bind_failed).loop()
    def not_opened(
        switch: ListenerSwitch, state: SwitchState, listener: Listener, reason: str
    ) -> list[Command]:
        attempt = _attempt(state, listener)
        attempt.waiting.remove(listener)
        attempt.failures.append((listener.address, reason))
        return _finish_lenient(switch, state)

    # What a strict attempt is told.

    @replacing.upon(ListenerSwitch.bound).loop()
    def bound(switch: ListenerSwitch, state: SwitchState, listener: Listener) -> list[Command]:
        attempt = _attempt(state, listener)
        if not attempt.failures:
            return [Probe(listener)]
        attempt.waiting.remove(listener)
        attempt.ready.append(listener)
        return _finish(switch, state)

    @replacing.upon(ListenerSwitch.probed).loop()
    def probed(switch: ListenerSwitch, state: SwitchState, listener: Listener) -> list[Command]:
        attempt = _attempt(state, listener)
        attempt.waiting.remove(listener)
        attempt.ready.append(listener)
        return _finish(switch, state)

    @replacing.upon(ListenerSwitch.permitted).loop()
    def permitted(switch: ListenerSwitch, state: SwitchState, listener: Listener) -> list[Command]:
        attempt = _attempt(state, listener)
        attempt.waiting.remove(listener)
        attempt.permitted.append(listener)
        return _finish(switch, state)

    @replacing.upon(ListenerSwitch.probe_failed).loop()
    def probe_failed(
        switch: ListenerSwitch, state: SwitchState, listener: Listener, reason: str
    ) -> list[Command]:
        attempt = _attempt(state, listener)
        attempt.waiting.remove(listener)
        attempt.ready.append(listener)
        attempt.failures.append((listener.address, reason))
        return _finish(switch, state)

    def failed(switch: ListenerSwitch, state: SwitchState, listener: Listener, reason: str) -> list[Command]:
        attempt = _attempt(state, listener)
        attempt.waiting.remove(listener)
        attempt.failures.append((listener.address, reason))
        return _finish(switch, state)

    replacing.upon(ListenerSwitch.bind_failed).loop()(failed)

    replacing.upon(ListenerSwitch.permit_failed).loop()(failed)

    @replacing.upon(ListenerSwitch.retry).loop()
    def postpone(switch: ListenerSwitch, state: SwitchState, address: Address) -> list[Command]:
        if address not in state.missing:
            return []
        return [Retry(address, FIRST_RETRY, "a switch is under way")]

    opening.upon(ListenerSwitch.retry).loop()(postpone)

    def drained(switch: ListenerSwitch, state: SwitchState, listener: Listener) -> list[Command]:
        state.draining.remove(listener)
        return []

    def drain_expired(switch: ListenerSwitch, state: SwitchState, listener: Listener) -> list[Command]:
        return [CloseStreams(listener)] if listener in state.draining else []

    def late_retry(switch: ListenerSwitch, state: SwitchState, address: Address) -> list[Command]:
        return []

    closed.upon(ListenerSwitch.retry).loop()(late_retry)
    for state_ in (opening, replacing):
        state_.upon(ListenerSwitch.select).loop()(queue)
        state_.upon(ListenerSwitch._settled).to(open_).returns(None)
        state_.upon(ListenerSwitch._emptied).to(closed).returns(None)
        state_.upon(ListenerSwitch._went_on).to(replacing).returns(None)
    for state_ in (closed, opening, open_, replacing):
        state_.upon(ListenerSwitch.drained).loop()(drained)
        state_.upon(ListenerSwitch.drain_expired).loop()(drain_expired)
    return builder.build()
