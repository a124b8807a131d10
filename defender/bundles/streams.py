"""The streams of one defender: what is offered, what is accepted, what is in force. Pure.

Inputs in, commands out. The shell performs the commands in order and answers each `PersistRoots`,
`PersistBundle` and `PersistMark` with ``persisted`` or ``persist_failed``, each `Activate` with ``activated``
or ``activation_failed``; it may answer from inside the command. Times are unix seconds of this host's clock.

Invariants:

* Nothing is put in force whose signatures were not checked in this process, under the root that holds now:
  what comes from disk goes the same way as what comes from the controller.
* Verify, check the content, persist, put in force, acknowledge: in this order, one bundle at a time. When a
  step fails, what was in force stays, and a `Nack` says why.
* What is in force does not depend on whether the defender was started again: a newer root that no longer
  vouches for a bundle withdraws it at once, as a start would.
* While the defender cannot know where its streams stand, offers wait for a snapshot: at a first start, where
  the high-water file is missing or damaged, or older than the bundles beside it. They are not refused, since
  a version that was refused is not sent again. One offer a stream waits, the newest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Literal

from defender.bundles.commands import (
    MARK,
    ROOT,
    SNAPSHOT,
    Accepted,
    Ack,
    Activate,
    Command,
    Frozen,
    Grade,
    Graded,
    Nack,
    PersistBundle,
    PersistMark,
    PersistRoots,
    Refused,
    Rooted,
    Skewed,
    Withdraw,
)
from defender.bundles.restoring import (
    Open,
    Stored,
    highest_allowed,
    in_force_before,
    objection,
    reaches,
    stream_above,
)
from defender.contract.audit import timestamp
from defender.contract.bundle import NOWHERE, SKEW, Bundle, BundleError, Position, open_envelope
from defender.contract.contents import Content, TrustContent, read_content
from defender.contract.envelope import split_envelopes
from defender.contract.high_water import HighWater, decode_high_water, first_mark
from defender.contract.snapshot import Snapshot, open_snapshot
from defender.contract.trust import MAX_ROOTS, STREAMS, TRUST, Root, load_chain, newer_roots

#: How many roots are kept; a chain that is read from disk begins with the oldest of them.
KEPT_ROOTS: Final = 16

_Obstacle = Literal["", "no-root", "older-root", "no-mark"]
_OBSTACLES: Final[Mapping[_Obstacle, str]] = {
    "": "",
    "no-root": "there is no root document: enroll this defender",
    "older-root": "the root document on disk is older than the one that was accepted last; waiting for it",
    "no-mark": "what was accepted last is not known; waiting for a snapshot from the controller",
}


@dataclass(slots=True)
class _Offer:
    stream: str
    nonce: int
    data: bytes
    rooted: bool = False


@dataclass(frozen=True, slots=True)
class _Taking:
    data: bytes


@dataclass(frozen=True, slots=True)
class _Restore:
    bundle: Bundle
    content: Content


_Job = _Offer | _Taking | _Restore


@dataclass(frozen=True, slots=True)
class _Work:
    """What is under way: `step` awaits the answer to `ticket`; the rest is what follows it."""

    ticket: int
    step: Literal["roots", "bundle", "snapshot", "mark", "active", "undo"]
    job: _Job
    water: HighWater | None = None
    roots: tuple[Root, bytes] | None = None
    bundle: Bundle | None = None
    content: Content | None = None
    snapshot: Snapshot | None = None
    failure: str = ""


@dataclass(slots=True)
class _Active:
    """What is in force in one stream, without its content."""

    position: Position
    signers: tuple[bytes, ...]
    issued_at: int
    stale_after: int
    expires_at: int | None
    grade: Grade = "fresh"


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """One stream, for people: `behind` is what the last snapshot had as current, if that is another."""

    position: Position
    grade: Grade | Literal["none"]
    behind: Position | None
    refusal: str


class Streams:
    """The machine. `defender` is this defender's id, `agent_version` the version of the program.

    `silence` is how old the last snapshot may become, in seconds, before nothing may be changed any more; 0
    for as old as it likes. `frozen` is why nothing may be changed, "" if it may.
    """

    def __init__(self, *, trust_domain: str, defender: str, agent_version: str, silence: float = 0.0) -> None:
        self._trust_domain = trust_domain
        self._defender = defender
        self._agent_version = agent_version
        self._silence = silence
        self.frozen = ""
        self.root: Root | None = None
        self.high_water: HighWater | None = None
        self._chain: list[bytes] = []
        self._obstacle: _Obstacle = "no-root"
        self._stored: Mapping[str, Sequence[bytes]] = {}
        self._active: dict[str, _Active] = {}
        self._refusals: dict[str, str] = {}
        self._snapshot: Snapshot | None = None
        self._skewed = False
        self._jobs: list[_Job] = []
        self._work: _Work | None = None
        self._tickets = 0

    # -- what others ask

    @property
    def waiting(self) -> str:
        """Why nothing can be accepted yet, in words; "" if it can."""
        return _OBSTACLES[self._obstacle]

    def positions(self) -> dict[str, Position]:
        """What is in force, for the controller: `NOWHERE` for a stream that has nothing."""
        return {
            stream: active.position if (active := self._active.get(stream)) else NOWHERE for stream in STREAMS
        }

    def status(self) -> dict[str, StreamStatus]:
        """Every stream, for people."""
        current = self._snapshot.positions if self._snapshot else {}
        found = {}
        for stream, position in self.positions().items():
            active = self._active.get(stream)
            at = current.get(stream, position)
            found[stream] = StreamStatus(
                position,
                active.grade if active else "none",
                at if at != position else None,
                self._refusals.get(stream, ""),
            )
        return found

    def clock(self, now: float) -> float:
        """The time to go by: never earlier than the controller has vouched for."""
        if self.high_water is not None:
            return self.high_water.clock(now)
        return max(now, self.root.issued_at) if self.root else now

    # -- inputs

    def start(self, stored: Stored, now: float) -> list[Command]:
        """Begin with what is on disk; once, before anything else."""
        commands: list[Command] = []
        try:
            if stored.roots is not None:
                self._load_roots(stored.roots)
        except BundleError as error:
            return [self._refused(ROOT, error)]
        if self.root is None:
            return []
        try:
            if stored.high_water is not None:
                self.high_water = decode_high_water(stored.high_water)
        except BundleError as error:
            commands.append(self._refused(MARK, error))
        self._stored = {stream: stored.bundles.get(stream, ()) for stream in STREAMS}
        return commands + self._look() + self._run(now)

    def offered(self, stream: str, nonce: int, data: bytes, now: float) -> list[Command]:
        """The controller sent this for a stream; an earlier offer of it that still waits is dropped."""
        if stream not in STREAMS:
            error = BundleError("wrong-stream", f"{stream[:64]!r} is no stream of this version")
            return [Nack(stream, nonce, error.code, error.detail, NOWHERE)]
        self._jobs = [job for job in self._jobs if not (isinstance(job, _Offer) and job.stream == stream)]
        self._jobs.append(_Offer(stream, nonce, data))
        return self._run(now)

    def snapshot(self, data: bytes, now: float) -> list[Command]:
        """The controller sent a snapshot; an earlier one that still waits is dropped."""
        self._jobs = [job for job in self._jobs if not isinstance(job, _Taking)]
        self._jobs.append(_Taking(data))
        return self._run(now)

    def persisted(self, ticket: int, now: float) -> list[Command]:
        """What the ticket stands for is on disk."""
        work = self._answered(ticket)
        if work.water is not None:
            self.high_water = work.water
        commands: list[Command] = []
        if work.step == "roots" and work.roots is not None:
            commands = self._rooted(*work.roots)
            if not any(isinstance(job, _Offer) and job.stream == TRUST for job in self._jobs):
                # Its bundle is looked at now that the roots before it are in force.
                self._jobs.append(work.job)
        elif work.step == "snapshot":
            self._snapshot = work.snapshot
            commands = self._skew(now) + self.tick(now)
            if self._obstacle == "no-mark":
                self._obstacle = ""
                commands += self._restore(highest_allowed)
        elif work.step == "undo":
            commands = self._refuse(work.job, BundleError("not-activated", work.failure))
        elif work.bundle is not None and work.content is not None:
            commands = [self._activate(work.job, work.bundle, work.content)]
        return commands + self._run(now)

    def persist_failed(self, ticket: int, reason: str, now: float) -> list[Command]:
        """The disk did not take it: everything stays as it was."""
        work = self._answered(ticket)
        if work.step == "undo":
            return self._refuse(work.job, BundleError("not-activated", work.failure)) + self._run(now)
        return self._refuse(work.job, BundleError("storage", reason)) + self._run(now)

    def activated(self, ticket: int, now: float) -> list[Command]:
        """The content of an `Activate` is in force."""
        work = self._answered(ticket, active=True)
        if work.bundle is None or self.high_water is None:
            raise ValueError(f"nothing was to be put in force by {ticket}")
        bundle = work.bundle
        stream = bundle.stream
        self._active[stream] = _Active(
            bundle.position, bundle.signers, bundle.issued_at, bundle.stale_after, bundle.expires_at
        )
        self._refusals.pop(stream, None)
        last = self._snapshot
        if last is not None and last.positions.get(stream) == bundle.position:
            # On disk with the next write; until then a start would only think the bundle older than it is.
            self.high_water = self.high_water.activate(stream, bundle.position, last.time_ms)
        commands: list[Command] = [Accepted(bundle, isinstance(work.job, _Restore))]
        if isinstance(work.job, _Offer):
            commands.append(Ack(stream, work.job.nonce, bundle.position))
        return commands + self.tick(now) + self._run(now)

    def activation_failed(self, ticket: int, reason: str, now: float) -> list[Command]:
        """The content of an `Activate` could not be put in force; what was there before still is."""
        work = self._answered(ticket, active=True)
        if work.bundle is None or self.high_water is None:
            raise ValueError(f"nothing was to be put in force by {ticket}")
        if isinstance(work.job, _Restore):
            # Stays marked as in force: what failed may be the moment's, a port that is taken.
            return self._refuse(work.job, BundleError("not-activated", reason)) + self._run(now)
        stream = work.bundle.stream
        # The mark stays where it is, but the next start takes what is in force now.
        water = self.high_water.activate(stream, self.positions()[stream])
        undo = _Work(self._ticket(), "undo", work.job, water=water, failure=reason)
        self._work = undo
        return [PersistMark(undo.ticket, water.encode())]

    def tick(self, now: float) -> list[Command]:
        """Some seconds have passed: say which streams have become stale, expired or fresh, and whether things
        may still be changed."""
        if self.high_water is None:
            return []
        commands: list[Command] = []
        clock = self.high_water.clock(now)
        for stream, active in self._active.items():
            known = max(active.issued_at, self.high_water.mark(stream).confirmed_ms / 1000)
            grade: Grade = "fresh"
            since = known
            if active.expires_at is not None and clock >= active.expires_at:
                grade, since = "expired", active.expires_at
            elif clock >= known + active.stale_after:
                grade, since = "stale", known + active.stale_after
            if grade != active.grade:
                active.grade = grade
                commands.append(Graded(stream, grade, since))
        frozen = self._too_old(self.high_water.snapshot_ms / 1000, clock)
        if frozen != self.frozen:
            self.frozen = frozen
            commands.append(Frozen(frozen))
        return commands

    def _too_old(self, heard: float, clock: float) -> str:
        """Why nothing may be changed, "" if it may; `heard` is the time of the last snapshot."""
        for stream, active in self._active.items():
            if active.grade == "expired" and active.expires_at is not None:
                return f"the {stream} of the fleet expired at {timestamp(active.expires_at)}"
        if self._silence and clock >= heard + self._silence:
            since = f"since {timestamp(heard)}" if heard else "yet"
            return f"the controller has not been heard of {since}"
        return ""

    # -- the jobs, one at a time

    def _run(self, now: float) -> list[Command]:
        commands: list[Command] = []
        while self._work is None and (job := self._next()) is not None:
            if isinstance(job, _Restore):
                commands += self._begin_restore(job)
            elif isinstance(job, _Taking):
                commands += self._begin_snapshot(job, now)
            else:
                commands += self._begin_offer(job, now)
        return commands

    def _next(self) -> _Job | None:
        for number, job in enumerate(self._jobs):
            if self._obstacle in ("", "no-root"):
                ready = True
            elif isinstance(job, _Offer):
                # Roots are taken at once: the keys of the snapshot may be listed in a new one.
                ready = job.stream == TRUST and not job.rooted
            else:
                ready = self._obstacle == "no-mark"
            if ready:
                return self._jobs.pop(number)
        return None

    def _begin_offer(self, offer: _Offer, now: float) -> list[Command]:
        stream = offer.stream
        try:
            root = self._root()
            frames = split_envelopes(offer.data, MAX_ROOTS + 1 if stream == TRUST else 1)
            documents = frames[:-1]
            if not offer.rooted and (roots := newer_roots(root, documents)):
                return [self._persist_roots(offer, roots)]
            offer.rooted = True
            if self._obstacle or self.high_water is None:
                self._jobs.append(offer)
                return []
            bundle = self._open(stream, frames[-1], self.clock(now))
            content = read_content(stream, bundle.content)
            if isinstance(content, TrustContent):
                _check_documents(content, documents)
            fresh = self.high_water.judge(stream, bundle.position)
        except BundleError as error:
            return self._refuse(offer, error)
        active = self.positions()[stream]
        if not fresh and active == bundle.position:
            return [Ack(stream, offer.nonce, active)]
        water = self.high_water.accept(stream, bundle.position)
        work = _Work(self._ticket(), "bundle", offer, water=water, bundle=bundle, content=content)
        self._work = work
        return [PersistBundle(work.ticket, stream, bundle.position, frames[-1], water.encode(), keep=active)]

    def _begin_snapshot(self, job: _Taking, now: float) -> list[Command]:
        try:
            root = self._root()
            snapshot = open_snapshot(job.data, root, defender=self._defender)
            if self.high_water is None:
                water = first_mark(snapshot, root, now)
            else:
                water = self.high_water.take(snapshot, root, now)
        except BundleError as error:
            return self._refuse(job, error)
        work = _Work(self._ticket(), "snapshot", job, water=water, snapshot=snapshot)
        self._work = work
        return [PersistMark(work.ticket, water.encode())]

    def _begin_restore(self, job: _Restore) -> list[Command]:
        water = self.high_water
        if water is None:
            return []
        bundle = job.bundle
        if water.mark(bundle.stream).active == bundle.position:
            return [self._activate(job, bundle, job.content)]
        water = water.accept(bundle.stream, bundle.position)
        work = _Work(self._ticket(), "mark", job, water=water, bundle=bundle, content=job.content)
        self._work = work
        return [PersistMark(work.ticket, water.encode())]

    def _activate(self, job: _Job, bundle: Bundle, content: Content) -> Command:
        work = _Work(self._ticket(), "active", job, bundle=bundle)
        self._work = work
        return Activate(work.ticket, bundle, content)

    def _refuse(self, job: _Job, error: BundleError) -> list[Command]:
        if isinstance(job, _Taking):
            return [self._refused(SNAPSHOT, error)]
        stream = job.stream if isinstance(job, _Offer) else job.bundle.stream
        commands: list[Command] = [self._refused(stream, error)]
        if isinstance(job, _Offer):
            kept = self.positions()[stream]
            commands.append(Nack(stream, job.nonce, error.code, error.detail, kept))
        return commands

    def _refused(self, what: str, error: BundleError) -> Refused:
        self._refusals[what] = str(error)
        return Refused(what, error.code, error.detail, self.positions().get(what, NOWHERE))

    def _ticket(self) -> int:
        self._tickets += 1
        return self._tickets

    def _answered(self, ticket: int, *, active: bool = False) -> _Work:
        """End the step that `ticket` stands for; another answer is a bug of the shell, and loud."""
        work = self._work
        if work is None or work.ticket != ticket or (work.step == "active") is not active:
            raise ValueError(f"nothing is awaited of {ticket}")
        self._work = None
        return work

    # -- roots

    def _root(self) -> Root:
        if self.root is None:
            raise BundleError("no-root", _OBSTACLES["no-root"])
        return self.root

    def _load_roots(self, chain: bytes) -> None:
        root = load_chain(chain)
        if root.trust_domain != self._trust_domain:
            raise BundleError(
                "foreign-fleet", f"the root is of {root.trust_domain}, this defender of {self._trust_domain}"
            )
        self.root = root
        self._chain = split_envelopes(chain, MAX_ROOTS)

    def _persist_roots(self, offer: _Offer, roots: list[tuple[Root, bytes]]) -> Command:
        held, (root, _) = self._root(), roots[-1]
        chain = [*self._chain, *(frame for _, frame in roots)][-KEPT_ROOTS:]
        water = self.high_water
        if water is not None:
            if not reaches(root, water):
                raise BundleError("older-version", f"root {root.version}; {self.waiting}")
            water = water.adopt(root)
            if root.key_epoch > held.key_epoch:
                water = water.restart_clock(root)
            for stream, _ in self._without(root):
                water = water.activate(stream, NOWHERE)
        data = b"".join(chain)
        work = _Work(self._ticket(), "roots", offer, water=water, roots=(root, data))
        self._work = work
        return PersistRoots(work.ticket, data, water.encode() if water else None)

    def _without(self, root: Root) -> list[tuple[str, str]]:
        """The streams whose bundle in force a root does not vouch for, and why."""
        found = (
            (stream, objection(root, stream, active.position, active.signers))
            for stream, active in self._active.items()
        )
        return [(stream, reason) for stream, reason in found if reason]

    def _rooted(self, root: Root, chain: bytes) -> list[Command]:
        commands: list[Command] = [Rooted(root.version, root.key_epoch, root.digest)]
        for stream, reason in self._without(root):
            del self._active[stream]
            commands.append(Withdraw(stream, reason))
        self.root, self._chain = root, split_envelopes(chain, MAX_ROOTS)
        self._refusals.pop(ROOT, None)
        if self._obstacle == "older-root":
            commands += self._look()
        return commands

    # -- what is on disk

    def _look(self) -> list[Command]:
        """Judge root, marks and bundles that were read from disk against each other, and restore."""
        root, water = self._root(), self.high_water
        commands: list[Command] = []
        self._obstacle = "no-mark"
        if water is not None and not reaches(root, water):
            self._obstacle = "older-root"
            return [self._refused(ROOT, BundleError("older-version", self.waiting))]
        if water is not None and (stream := stream_above(self._stored, water, self._open_stored)):
            self.high_water = None
            detail = f"the high-water file is older than the bundle of {stream} beside it"
            commands.append(self._refused(MARK, BundleError("older-version", detail)))
        if self.high_water is not None:
            self._obstacle = ""
            commands += self._restore(in_force_before)
        return commands

    def _restore(
        self, choose: Callable[[str, Sequence[bytes], HighWater, Open], Bundle | None]
    ) -> list[Command]:
        """Put the jobs first that put in force what is on disk; once."""
        commands: list[Command] = []
        jobs: list[_Job] = []
        for stream in STREAMS:
            if self.high_water is None:
                break
            try:
                bundle = choose(stream, self._stored.get(stream, ()), self.high_water, self._open_stored)
                if bundle is not None:
                    jobs.append(_Restore(bundle, read_content(stream, bundle.content)))
            except BundleError as error:
                commands.append(self._refused(stream, error))
        self._stored = {}
        self._jobs[:0] = jobs
        return commands

    def _open(self, stream: str, data: bytes, now: float | None) -> Bundle:
        return open_envelope(
            data,
            self._root(),
            stream=stream,
            defender=self._defender,
            agent_version=self._agent_version,
            now=now,
        )

    def _open_stored(self, stream: str, data: bytes) -> Bundle:
        return self._open(stream, data, None)

    def _skew(self, now: float) -> list[Command]:
        """Say when this host's clock begins or ceases to be off from the controller's."""
        behind = self._snapshot.time - now if self._snapshot is not None else 0.0
        skewed, self._skewed = self._skewed, abs(behind) > SKEW
        return [Skewed(behind if self._skewed else 0.0)] if self._skewed != skewed else []


def _check_documents(content: TrustContent, documents: Sequence[bytes]) -> None:
    """Raise BundleError unless the trust names exactly the root envelopes that came before it."""
    if content.documents != tuple(sha256(document).digest() for document in documents):
        raise BundleError("content-mismatch", "the root documents are not those that the bundle names")
