"""The publisher: brings to each defender what it should have, signed, and remembers it over a restart.

What each should have is decided by pure code (`policy_stream`, `mode_stream`, `distribution`); here its
commands are performed. Locks, modes and trust go out at once, policies in waves.

* What was decided is on disk before anything is offered by it: an `Offer` waits for the transaction that
  keeps the lines it came from. While the store cannot be written nothing new is offered, and `problem` says
  so; it is tried again.
* A bundle's frames are made once and shared by all defenders; so many pushes are unanswered at a time
  (`push_window`).
* A defender is shown a signed snapshot when it connects, when it has taken new trust, and every five minutes.

What people ask for is `publisher_orders`'s part.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from typing import Protocol as Typed

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from controller.distribution import Distribution
from controller.mode_stream import ModeStream
from controller.pki.signing import SigningKeys
from controller.policy_stream import PolicyStream
from controller.publisher_recall import lock_again, recall
from controller.publisher_snapshots import HOST_CODES, Snapshots
from controller.publisher_steps import (
    ALL,
    Authorities,
    Issued,
    Issuer,
    Kept,
    keep_answers,
    keep_state,
    prepare,
    read_kept,
)
from controller.push_window import Push, PushWindow
from controller.releases import (
    Aborted,
    Ahead,
    Command,
    Conflict,
    Halted,
    Held,
    LineState,
    Offer,
    Position,
    Refusal,
    Reissue,
    Release,
    Resumed,
    Standing,
    Wake,
)
from controller.selection import Defender
from controller.store.database import Database
from defender.contract import bundle as contract
from defender.contract.message_bytes import push_frames
from defender.contract.trust import LOCKS, MODE, POLICY, STREAMS, TRUST

#: Seconds between two snapshots for a defender.
SHOW_EVERY: Final = 300.0
#: Seconds between two looks at what is due.
SWEEP: Final = 1.0
#: Bytes of a bundle's digest: SHA-256.
DIGEST_SIZE: Final = 32


class Desk(Typed):
    """Where defenders are reached."""

    def push(self, defender: str, stream: str, nonce: int, frames: Sequence[bytes]) -> bool:
        """Push an envelope; False if the defender is not there, or does not know the stream."""

    def show(self, defender: str, frame: bytes) -> bool:
        """Send a snapshot; False if the defender is not there."""

    def ask(self, defender: str, verb: str, arguments: Mapping[str, Any]) -> Deferred[Mapping[str, Any]]:
        """Have a defender do something; gives its answer."""


@dataclass(frozen=True, slots=True)
class _Bundle:
    """A bundle that may be pushed; its frames are the same for everybody."""

    frames: tuple[bytes, ...]
    size: int


class Publisher:
    """See the module. Everything but `start` and `stop` is called between the two, in the reactor's thread.

    `wall` gives unix seconds; `tell` hears of each command that people may want to know of, with its stream.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        database: Database,
        keys: SigningKeys,
        authorities: Authorities,
        desk: Desk,
        *,
        wall: Callable[[], float],
        tell: Callable[[str, Command], None] = lambda stream, command: None,
        window: PushWindow | None = None,
    ) -> None:
        self.database = database
        self.issuer = Issuer(keys, wall)
        self.authorities = authorities
        self.policies = PolicyStream()
        self.modes = ModeStream()
        self.window = window or PushWindow()
        self.problem = ""
        """Why nothing new is offered, for people; "" if all is well."""
        self.nacks: Counter[str] = Counter()
        """How many bundles were refused since the start, by stream."""
        self.lock = DeferredLock()
        """Held while something is signed and kept: numbers are published in their order."""
        self._reactor = reactor
        self._desk = desk
        self._tell = tell
        self.streams: dict[str, Distribution] = {
            TRUST: Distribution(),
            LOCKS: Distribution(),
            POLICY: self.policies.stream,
            MODE: self.modes.stream,
        }
        self._snapshots = Snapshots(self.streams, keys, wall)
        self._known: dict[tuple[str, str], Held] = {}
        self._barred: set[tuple[str, Position]] = set()
        self._bundles: dict[str, dict[Position, _Bundle]] = {stream: {} for stream in STREAMS}
        self._dirty: dict[tuple[str, str], None] = {}
        self._held: dict[tuple[str, str], Held] = {}
        self._refused: dict[tuple[str, str, Position], Refusal] = {}
        self._offers: list[tuple[str, Offer]] = []
        self._keeping = False
        self._idle: list[Deferred[None]] = []
        self._due: dict[str, float] = {}
        self._sweeper = LoopingCall(self.sweep)
        self._sweeper.clock = reactor

    # -- service

    async def start(self) -> None:
        """Publish what must be there, take up what was on its way, and begin to look after it.

        Fails with what `publisher_steps.read_kept` raises, BundleError, or an error of the store.
        """
        await self.database.write(prepare, self.issuer, self.authorities)
        self._restore(await self.database.read(read_kept))
        self._sweeper.start(SWEEP, now=False).addErrback(
            lambda failure: self.log.failure("what is due is no longer looked at", failure)
        )

    async def stop(self) -> None:
        """Keep what is not kept yet."""
        if self._sweeper.running:
            self._sweeper.stop()
        await self.lock.acquire()
        self.lock.release()
        await self.kept()

    def kept(self) -> Deferred[None]:
        """Fires when all that was decided so far is on disk, or could not be written (`problem`)."""
        done: Deferred[None] = Deferred()
        self._idle.append(done)
        self._keep()
        return done

    def _restore(self, kept: Kept) -> None:
        now = self.now()
        for each in kept.bundles:
            self._make(each)
        for stream, held in kept.held.items():
            self._known.update({(who, stream): at for who, at in held.items()})
        for stream, position in kept.highest.items():
            self.streams[stream].verified(position, now)
        self.policies.restore(
            kept.defenders,
            kept.targets,
            kept.held[POLICY],
            kept.states[POLICY],
            kept.refusals[POLICY],
            now,
        )
        self.modes.restore_orders(kept.modes)
        for who in kept.defenders:
            for stream in (TRUST, LOCKS):
                self.streams[stream].restore_defender(who.id, ALL, kept.held[stream].get(who.id))
            line = kept.follows.get(who.id)
            self.modes.stream.restore_defender(who.id, line, kept.held[MODE].get(who.id))
        for stream in (TRUST, LOCKS, MODE):
            for state in kept.states[stream]:
                self.streams[stream].restore(state, now)
            for refusal in kept.refusals[stream]:
                self.streams[stream].restore_refusal(*refusal)

    def now(self) -> float:
        """The clock of rollouts: seconds that never go back."""
        return float(self._reactor.seconds())

    # -- from the desk

    def connected(self, defender: str, positions: Mapping[str, contract.Position]) -> None:
        """A defender is there, and this is what it has in force, of the streams that it takes."""
        now = self.now()
        self._leave(defender)
        found: list[tuple[str, list[Command]]] = []
        for stream, distribution in self.streams.items():
            at = positions.get(stream)
            if at is None:
                found.append((stream, distribution.disconnected(defender, now)))
                continue
            held = _held(at)
            self._snapshots.stands(defender, stream, held)
            if held is not None:
                self._note(defender, stream, held)
            found.append((stream, distribution.connected(defender, held, now)))
        self._show(defender)
        for stream, commands in found:
            self.take(stream, commands)
        for stream in (TRUST, LOCKS):
            self._ask_again(defender, stream)

    def _ask_again(self, defender: str, stream: str) -> None:
        """A host whose disk was full when it refused locks or trust is asked again when it returns."""
        distribution = self.streams[stream]
        if distribution.line_of(defender) is None:
            return
        standing, refusal = distribution.standing(defender)
        if standing is Standing.REFUSED and refusal is not None and refusal.code in HOST_CODES:
            release = distribution.state(ALL).release
            if release.is_for(defender):
                self._offers.append((stream, Offer(release.position, (defender,))))
                self._keep()

    def acked(self, defender: str, stream: str, nonce: int, position: contract.Position) -> None:
        """What was pushed is in force."""
        if stream not in self.streams:
            return
        self.window.answered(defender, stream)
        held = _held(position)
        if held is None:
            return  # it took nothing that could have been sent
        self._snapshots.stands(defender, stream, held)
        self._note(defender, stream, held)
        self.take(stream, self.streams[stream].acked(defender, held, self.now()))
        if stream == TRUST:
            self._show(defender)
        self._pump()

    def refused(
        self, defender: str, stream: str, nonce: int, code: str, detail: str, kept: contract.Position
    ) -> None:
        """What was pushed was refused; the stream still stands at `kept`."""
        if stream not in self.streams:
            return
        self.window.answered(defender, stream)
        position = next((at for at in self._bundles[stream] if at.version == nonce), None)
        if position is None:
            return  # what it refuses is no longer offered to anybody
        self.nacks[stream] += 1
        refusal = Refusal(code, detail)
        distribution = self.streams[stream]
        self._refused[defender, stream, distribution.origin_of(position)] = refusal
        self.take(stream, distribution.refused(defender, position, refusal, self.now()))
        self._pump()

    def disconnected(self, defender: str) -> None:
        """A defender is not there any more."""
        self._leave(defender)
        for stream, distribution in self.streams.items():
            self.take(stream, distribution.disconnected(defender, self.now()))

    def _note(self, defender: str, stream: str, held: Held) -> None:
        """Keep what a defender holds, unless that is kept, or was never issued."""
        if held.position > self.streams[stream].highest:
            return
        if self._known.get((defender, stream)) != held:
            self._known[defender, stream] = self._held[defender, stream] = held

    def _leave(self, defender: str) -> None:
        """A session is over, or another one takes its place."""
        self.window.gone(defender)
        self._due.pop(defender, None)
        self._snapshots.left(defender)

    def enrolled(self, defender: Defender) -> None:
        """A defender is in the fleet, or has another name or other labels; raises SelectionError."""
        if self.policies.fleet.knows(defender):
            return
        now = self.now()
        self.take(POLICY, self.policies.enrolled(defender, now))
        for stream in (TRUST, LOCKS):
            self.take(stream, self.streams[stream].assign(defender.id, ALL, now))

    def removed(self, defender: str) -> None:
        """A defender left the fleet, and the store."""
        now = self.now()
        self._leave(defender)
        for stream in STREAMS:
            self._known.pop((defender, stream), None)
        with self.dropping(MODE):
            commands = self.modes.removed(defender, now)
        self.take(MODE, commands)
        self.take(POLICY, self.policies.removed(defender, now))
        for stream in (TRUST, LOCKS):
            self.take(stream, self.streams[stream].remove(defender, now))

    # -- what is decided

    def published(self, issued: Issued, publish: Callable[[Release], list[Command]]) -> None:
        """A bundle is signed and kept, with the beginning of its rollout: offer it."""
        self._make(issued)
        with self.dropping(issued.stream):
            commands = publish(issued.release)
        self._dirty[issued.stream, issued.line] = None
        self.take(issued.stream, commands)
        self._prune(issued.stream)

    def renewed(self, found: Iterable[Issued]) -> None:
        """Lines were signed again: other locks, other keys or authorities."""
        for issued in found:

            def publish(release: Release, issued: Issued = issued) -> list[Command]:
                stream = self.streams[issued.stream]
                return stream.publish(issued.line, release, issued.plan, self.now())

            self.published(issued, publish)

    def dropping(self, stream: str) -> _Dropping:
        """While this lasts, lines of the stream may end; that is kept too."""
        return _Dropping(self, stream)

    def forget(self, stream: str, line: str) -> None:
        """A line is no more."""
        self._dirty[stream, line] = None

    def take(self, stream: str, commands: Iterable[Command]) -> None:
        """Perform commands: keep what has changed, then offer."""
        for command in commands:
            match command:
                case Offer():
                    self._offers.append((stream, command))
                case Wake():
                    pass  # `sweep` looks every second
                case Reissue():
                    self.spawn(self._reissue(stream, command))
                case Ahead() | Conflict():
                    self.log.error(
                        "{stream}: defender {who} holds version {version}, which is not from here",
                        stream=stream,
                        who=command.defender,
                        version=command.held.position.version,
                    )
                    self._tell(stream, command)
                    if stream == LOCKS:
                        self.spawn(self._take_back(command.defender, command.held))
                case _:
                    self._dirty[stream, command.line] = None
                    self._bar(stream, command)
                    self._tell(stream, command)
        self._keep()

    def _bar(self, stream: str, command: Command) -> None:
        """A release that is halted or given up is sent to nobody, those that wait for their turn included."""
        if isinstance(command, Halted | Aborted):
            self._barred.add((stream, self.streams[stream].origin_of(command.position)))
        elif isinstance(command, Resumed):
            self._barred.discard((stream, self.streams[stream].origin_of(command.position)))
            self.window.unbar(stream)

    def _may_push(self, stream: str, position: Position) -> bool:
        return (stream, self.streams[stream].origin_of(position)) not in self._barred

    async def _reissue(self, stream: str, asked: Reissue) -> None:
        distribution = self.streams[stream]
        await self.lock.acquire()
        try:
            issued = await self.database.write(
                self.issuer.again, stream, asked.line, asked.origin, frozenset(asked.defenders)
            )
        except Exception:  # noqa: BLE001 - whatever it is, the defenders wait for no answer
            self.log.failure("a bundle of {stream} could not be signed again", stream=stream)
            self.take(stream, distribution.reissue_failed(asked.line, asked.origin, asked.defenders))
        else:
            self._make(issued)
            if asked.line in distribution.lines():
                self._dirty[stream, asked.line] = None
            self.take(stream, distribution.reissued(asked.line, issued.release, self.now()))
        finally:
            # Last: who waits for the lock goes on inside of this.
            self.lock.release()

    async def _take_back(self, who: str, held: Held) -> None:
        """Have locks that this store forgot in force again (`publisher_recall`)."""
        try:
            bundle, data = await recall(self._desk, who, held, self.issuer.keys.root)
        except Exception as error:  # noqa: BLE001 - whatever it is: what is not proved changes nothing
            self.log.error("locks: defender {who} does not prove its own: {why}", who=who, why=str(error))
            return
        await self.lock.acquire()
        try:
            stream = self.streams[LOCKS]
            base = stream.state(ALL).base if ALL in stream.lines() else None
            found = await self.database.write(lock_again, self.issuer, bundle, data, base)
            if found is not None:
                self.log.warn(
                    "locks: version {version}, forgotten here, is taken back from defender {who}: {locks}",
                    version=bundle.version,
                    who=who,
                    locks=", ".join(found[0]) or "nobody else is locked in it",
                )
                self.renewed([found[1]])
        finally:
            self.lock.release()

    def spawn(self, work: Awaitable[None]) -> None:
        """Let something go on by itself; what goes wrong in it is logged."""
        going: Deferred[None] = Deferred.fromCoroutine(work)  # type: ignore[arg-type]
        going.addErrback(lambda failure: self.log.failure("publishing went wrong", failure))

    # -- keeping

    def _keep(self) -> None:
        """Write what has changed, then offer; one write at a time, with all that came meanwhile."""
        if self._keeping:
            return
        if not (self._dirty or self._held or self._refused):
            self._offer_all()
            return
        lines = {key: self._state(*key) for key in self._dirty}
        held, refused, offers = self._held, self._refused, self._offers
        self._dirty, self._held, self._refused, self._offers = {}, {}, {}, []
        self._keeping = True

        def written(_: object) -> None:
            self._keeping = False
            self.problem = ""
            self._offers[:0] = offers
            if self._dirty or self._refused:
                # What came meanwhile may have halted what is to be offered here; it is kept first.
                self._keep()
                return
            self._offer_all(also=not self._held)
            if self._held:
                self._keep()

        def failed(failure: Failure) -> None:
            self._keeping = False
            self.problem = f"what was decided cannot be kept: {failure.getErrorMessage()}"
            self._dirty = {**dict.fromkeys(lines), **self._dirty}
            self._held = {**held, **self._held}
            self._refused = {**refused, **self._refused}
            self._offers[:0] = offers
            self._tell_idle()  # `sweep` tries again

        writing = self.database.write(
            _keep,
            lines,
            [(who, stream, at) for (who, stream), at in held.items()],
            [(who, stream, origin, why) for (who, stream, origin), why in refused.items()],
            self.issuer.wall(),
        )
        writing.addCallbacks(written, failed)
        writing.addErrback(lambda failure: self.log.failure("what is kept is in doubt", failure))

    def _state(self, stream: str, line: str) -> LineState | None:
        distribution = self.streams[stream]
        return distribution.state(line) if line in distribution.lines() else None

    def _offer_all(self, also: bool = True) -> None:
        offers, self._offers = self._offers, []
        for stream, offer in offers:
            bundle = self._bundles[stream].get(offer.position)
            if bundle is None:
                continue  # a newer one has taken its place
            for who in offer.defenders:
                self.window.ask(Push(who, stream, offer.position), bundle.size)
        self._pump()
        if also:
            self._tell_idle()

    def _tell_idle(self) -> None:
        idle, self._idle = self._idle, []
        for each in idle:
            each.callback(None)

    def _pump(self) -> None:
        for who, stream, position in self.window.next(self.now(), self._may_push):
            bundle = self._bundles[stream].get(position)
            if bundle is None or not self._desk.push(who, stream, position.version, bundle.frames):
                self.window.answered(who, stream)

    # -- time

    def sweep(self) -> None:
        """Every second: waves that were silent too long, pushes that may go on, snapshots that are due."""
        now = self.now()
        for stream, distribution in self.streams.items():
            self.take(stream, distribution.tick(now))
        for who in [who for who, due in self._due.items() if due <= now]:
            self._show(who)

    def _show(self, defender: str) -> None:
        """Say what is current for a defender, signed."""
        now = self.now()
        self._due[defender] = now + SHOW_EVERY
        self._desk.show(defender, self._snapshots.frame(defender, now))

    # -- small

    def _make(self, issued: Issued) -> None:
        position = issued.release.position
        frames = push_frames(issued.stream, position.version, issued.data)
        self._bundles[issued.stream][position] = _Bundle(frames, len(issued.data))

    def _prune(self, stream: str) -> None:
        """Forget bundles that are offered to nobody any more."""
        live: set[Position] = set()
        origins: set[tuple[str, Position]] = set()
        for line in self.streams[stream].lines():
            state = self.streams[stream].state(line)
            for each in (state.release, state.base, *state.reissues):
                if each is not None:
                    live.add(each.position)
                    origins.add((stream, each.origin))
        kept = {at: bundle for at, bundle in self._bundles[stream].items() if at in live}
        self._bundles[stream] = kept
        self._barred = {each for each in self._barred if each[0] != stream or each in origins}


class _Dropping:
    """See `Publisher.dropping`."""

    def __init__(self, publisher: Publisher, stream: str) -> None:
        self._publisher = publisher
        self._stream = stream
        self._before: tuple[str, ...] = ()

    def __enter__(self) -> None:
        self._before = self._publisher.streams[self._stream].lines()

    def __exit__(self, *_: object) -> None:
        left = set(self._before) - set(self._publisher.streams[self._stream].lines())
        for line in sorted(left):
            self._publisher.forget(self._stream, line)


def _held(at: contract.Position) -> Held | None:
    """What a defender says it holds; None for nothing, and for what no bundle can be."""
    if at.key_epoch < 1 or at.version < 1 or len(at.digest) != DIGEST_SIZE:
        return None
    return Held(Position(*at.number), at.digest)


def _keep(
    connection: sqlite3.Connection,
    lines: Mapping[tuple[str, str], LineState | None],
    held: Iterable[tuple[str, str, Held]],
    refused: Iterable[tuple[str, str, Position, Refusal]],
    now: float,
) -> None:
    for (stream, line), state in lines.items():
        keep_state(connection, stream, line, state, now)
    keep_answers(connection, held, refused, now)
