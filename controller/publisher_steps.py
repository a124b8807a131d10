"""What the publisher does in the store: sign and keep bundles, keep how far they went, read it all back.

Functions take a `sqlite3.Connection` first and run inside one transaction, in the store's thread. A number is
taken, the bundle signed and kept, and its rollout begun in the same transaction: a controller that stops in
between has published the whole of it or nothing.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Final
from uuid import uuid4

from controller.fleet import NO_POLICY, NO_POLICY_TEXT, Mode, Target
from controller.pki.signing import SigningKeys
from controller.publishing import Draft, PolicyState, Version
from controller.releases import AT_ONCE, Held, LineState, Phase, Plan, Position, Refusal, Release
from controller.rollout_documents import dump_state, load_state
from controller.selection import Defender
from controller.store import bundles, defenders, locks, modes, policies, positions
from controller.store.bundles import BundleRow, PositionRow
from controller.store.errors import MissingError
from controller.store.locks import LockRow
from controller.store.policies import PolicyRow, VersionRow
from controller.store.positions import RefusalRow
from defender.contract.bundle import EVERYONE, Bundle, BundleError, sign_bundle
from defender.contract.contents import locks_content, policy_content, trust_content
from defender.contract.envelope import BUNDLE_TYPE, payload_digest, read_envelope, split_envelopes, verify
from defender.contract.locks import Lock, make_lock
from defender.contract.trust import LOCKS, MAX_ROOTS, MODE, POLICY, STREAMS, TRUST, ring_of

ALL: Final = ""
"""The one line of the streams `trust` and `locks`."""

NOBODY: Final = "00000000-0000-0000-0000-000000000000"
"""The audience of a bundle that selects nobody yet: an audience cannot be empty."""

KEPT: Final = 8
"""Bundles of `locks` and `trust` that are kept; those of a policy all are."""

MAX_LINE: Final = 256


@dataclass(frozen=True, slots=True)
class Authorities:
    """The certificates of the fleet's authorities, in PEM; see `contents.TrustContent`."""

    root: tuple[str, ...]
    fleet: tuple[str, ...]
    user: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Issued:
    """A bundle that is signed and kept; `data` is what is pushed: for `trust`, the roots before it too.

    `plan` is how it goes out where it was signed only because an older one is no longer valid.
    """

    stream: str
    line: str
    release: Release
    data: bytes
    plan: Plan = AT_ONCE


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be signed. An `audience` of None is the whole fleet; `origin` is that of content which was
    published before."""

    stream: str
    line: str
    content: Mapping[str, Any]
    audience: frozenset[str] | None = None
    origin: Position | None = None
    author: str = ""
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Kept:
    """What a controller that starts again goes on from; `modes` are those of the orders by their ids, `lines`
    and `held` are by stream, and what a stream's lines may still send is in `bundles`."""

    defenders: tuple[Defender, ...]
    targets: Mapping[str, Target]
    states: Mapping[str, tuple[LineState, ...]]
    follows: Mapping[str, str]
    modes: Mapping[str, Mode]
    held: Mapping[str, Mapping[str, Held]]
    refusals: Mapping[str, tuple[tuple[str, Position, Refusal], ...]]
    bundles: tuple[Issued, ...]
    highest: Mapping[str, Position]


class Issuer:
    """Signs with the keys of the moment; `wall` gives unix seconds."""

    def __init__(self, keys: SigningKeys, wall: Callable[[], float]) -> None:
        self.keys = keys
        self.wall = wall

    def issue(self, connection: sqlite3.Connection, wanted: Wanted, number: int | None = None) -> Issued:
        """Sign a content and keep the bundle, under the next number of its stream or one taken before.

        Raises BundleError for what no defender would read.
        """
        stream, root = wanted.stream, self.keys.root
        version = bundles.next_version(connection, stream) if number is None else number
        before = bundles.newest(connection, stream)
        everybody = wanted.audience is None
        envelope = sign_bundle(
            Bundle(
                fleet=root.fleet,
                trust_domain=root.trust_domain,
                stream=stream,
                key_epoch=root.key_epoch,
                version=version,
                issued_at=int(self.wall()),
                content=wanted.content,
                audience=EVERYONE if everybody else tuple(sorted(wanted.audience or ())) or (NOBODY,),
                prev_digest=b"" if before is None else before.digest,
                author=_line(wanted.author),
                change_ref=_line(wanted.comment),
            ),
            [self.keys.bundle],
        )
        data = self.keys.chain + envelope if stream == TRUST else envelope
        position = Position(root.key_epoch, version)
        release = Release(position, payload_digest(envelope), wanted.origin or position, wanted.audience)
        bundles.add(
            connection,
            BundleRow(
                stream,
                PositionRow(*position),
                wanted.line,
                PositionRow(*release.origin),
                release.digest,
                None if wanted.audience is None else tuple(sorted(wanted.audience)),
                self.wall(),
                data,
            ),
        )
        if stream in (LOCKS, TRUST):
            bundles.forget(connection, stream, KEPT)
        return Issued(stream, wanted.line, release, data)

    def begin(
        self,
        connection: sqlite3.Connection,
        wanted: Wanted,
        plan: Plan,
        base: Release | None,
        number: int | None = None,
    ) -> Issued:
        """Sign a content and begin its rollout; `base` is what its line falls back on."""
        issued = self.issue(connection, wanted, number)
        state = LineState(wanted.line, issued.release, base, plan, Phase.RUNNING)
        keep_state(connection, wanted.stream, wanted.line, state, self.wall())
        return issued

    def again(
        self,
        connection: sqlite3.Connection,
        stream: str,
        line: str,
        origin: Position,
        audience: frozenset[str] | None,
    ) -> Issued:
        """Sign the content of a position again; MissingError if it is not kept."""
        row = bundles.find(connection, stream, PositionRow(*origin))
        if row is None:
            raise MissingError(f"the bundle {origin.version} of {stream} is not in the store")
        wanted = Wanted(stream, line, content_of(row.envelope), audience, Position(*row.origin))
        return self.issue(connection, wanted)

    def vouches_for(self, data: bytes) -> bool:
        """Whether the present key signed a bundle, in the present epoch: whoever holds the newest root takes
        it, and still does when an old key that is still listed is retired."""
        try:
            envelope = read_envelope(split_envelopes(data, MAX_ROOTS + 1)[-1], BUNDLE_TYPE)
            verify(envelope, ring_of([self.keys.bundle]))
            return bool(json.loads(envelope.payload)["key_epoch"] == self.keys.root.key_epoch)
        except BundleError:
            return False


# What must be published before anybody is served


def prepare(connection: sqlite3.Connection, issuer: Issuer, authorities: Authorities) -> list[Issued]:
    """Publish what is not published, or not signed by the keys of today; gives what was, `trust` first.

    That is: the authorities, the locks, the denial for defenders without a policy, and whatever an older key
    has signed. A rollout that is not settled falls back on what settled last where its signature is over.
    """
    documents = [sha256(each).digest() for each in split_envelopes(issuer.keys.chain, MAX_ROOTS)]
    trust = trust_content(documents, root=authorities.root, fleet=authorities.fleet, user=authorities.user)
    always = {
        (TRUST, ALL): trust,
        (LOCKS, ALL): all_locks(connection),
        (POLICY, NO_POLICY): policy_content("no policy", NO_POLICY_TEXT),
    }
    found: list[Issued] = []
    for stream in STREAMS:
        kept = read_states(connection, stream)
        for line in sorted({*kept, *(line for its, line in always if its == stream)}):
            issued = _renew(connection, issuer, stream, line, kept.get(line), always.get((stream, line)))
            if issued is not None:
                found.append(issued)
    return found


def _renew(
    connection: sqlite3.Connection,
    issuer: Issuer,
    stream: str,
    line: str,
    state: LineState | None,
    content: Mapping[str, Any] | None,
) -> Issued | None:
    """Publish a line again if what is kept of it is not valid, or not `content`."""
    row = None if state is None else bundles.find(connection, stream, PositionRow(*state.release.position))
    if row is not None and issuer.vouches_for(row.envelope):
        if content is None or content_of(row.envelope) == content:
            return None
        assert state is not None
        return issuer.begin(connection, Wanted(stream, line, content), AT_ONCE, state.base)
    if content is not None:
        return issuer.begin(connection, Wanted(stream, line, content), AT_ONCE, None)
    assert state is not None
    source, plan = state.release, AT_ONCE
    if state.phase is not Phase.SETTLED:
        if state.base is not None:
            source = state.base
        elif state.phase is Phase.RUNNING:
            plan = state.plan
        else:
            return None  # stopped, and nothing before it: who had it denies until something is published
    issued = replace(issuer.again(connection, stream, line, source.origin, source.audience), plan=plan)
    new = LineState(line, issued.release, None, plan, Phase.RUNNING)
    keep_state(connection, stream, line, new, issuer.wall())
    return issued


def all_locks(connection: sqlite3.Connection) -> dict[str, Any]:
    """The content of the stream `locks` as the store has them."""
    return locks_content(Lock(row.kind, row.value, row.issuer) for row in locks.every(connection))


def locks_in(bundle: Bundle) -> list[Lock]:
    """The locks that a bundle of theirs carries, in its order."""
    return [make_lock(each["kind"], each["value"], each["issuer"]) for each in bundle.content["locks"]]


def take_back_locks(connection: sqlite3.Connection, bundle: Bundle, author: str, now: float) -> list[Lock]:
    """Lock whom a bundle locks; gives the locks that are new, in its order. For `Database.write`."""
    reason = f"taken back from the locks of version {bundle.version}"
    return [
        lock
        for lock in locks_in(bundle)
        if locks.add(
            connection, LockRow(str(uuid4()), lock.kind, lock.value, lock.issuer, reason, author, now)
        )[1]
    ]


def content_of(data: bytes) -> dict[str, Any]:
    """The content of a bundle of our own, from what is pushed."""
    payload = read_envelope(split_envelopes(data, MAX_ROOTS + 1)[-1], BUNDLE_TYPE).payload
    content: dict[str, Any] = json.loads(payload)["content"]
    return content


# How far it went


def keep_state(
    connection: sqlite3.Connection, stream: str, line: str, state: LineState | None, now: float
) -> None:
    """Keep how far a line went; None if it is no more."""
    if state is None:
        positions.forget_line(connection, stream, line)
    else:
        positions.keep_line(connection, stream, line, json.loads(dump_state(state)), now)


def keep_answers(
    connection: sqlite3.Connection,
    held: Iterable[tuple[str, str, Held]],
    refused: Iterable[tuple[str, str, Position, Refusal]],
    now: float,
) -> None:
    """Keep what defenders hold and refused: defender, stream, and which."""
    for who, stream, at in held:
        positions.hold(connection, who, stream, PositionRow(*at.position), at.digest, now)
    for who, stream, origin, why in refused:
        row = RefusalRow(who, stream, PositionRow(*origin), why.code, why.detail, now)
        positions.refuse(connection, row)


def read_states(connection: sqlite3.Connection, stream: str) -> dict[str, LineState]:
    """The lines of a stream; raises DocumentError."""
    found = positions.lines(connection, stream)
    return {line: load_state(json.dumps(document)) for line, document in found.items()}


def read_kept(connection: sqlite3.Connection) -> Kept:
    """Everything, after `prepare`. Raises DocumentError, or MissingError for a release that is not there."""
    everybody = tuple(Defender(row.id, row.name, row.labels) for row in defenders.every(connection))
    targets = {}
    for row in policies.every(connection):
        state = read_policy(connection, row.name)
        if state.published is not None:
            targets[row.name] = state.published.target
    held: dict[str, dict[str, Held]] = {stream: {} for stream in STREAMS}
    follows: dict[str, str] = {}
    for at in positions.held(connection):
        if at.stream not in held:
            continue
        if at.position is not None and at.digest is not None:
            held[at.stream][at.defender] = Held(Position(*at.position), at.digest)
        if at.stream == MODE and at.line is not None:
            follows[at.defender] = at.line
    issued: list[Issued] = []
    states = {stream: _read_stream(connection, stream, issued) for stream in STREAMS}
    refusals = {
        stream: tuple(
            (each.defender, Position(*each.origin), Refusal(each.code, each.detail))
            for each in positions.refusals(connection, stream)
        )
        for stream in STREAMS
    }
    newest = {stream: bundles.newest(connection, stream) for stream in STREAMS}
    return Kept(
        everybody,
        targets,
        states,
        {who: line for who, line in follows.items() if any(line == each.line for each in states[MODE])},
        {state.line: _mode_of(connection, state) for state in states[MODE]},
        held,
        refusals,
        tuple(issued),
        {stream: Position(*row.position) for stream, row in newest.items() if row is not None},
    )


def _read_stream(connection: sqlite3.Connection, stream: str, issued: list[Issued]) -> tuple[LineState, ...]:
    """A stream's lines, without the bundles that are no longer kept; what is kept goes to `issued`."""
    found = []
    for line, state in read_states(connection, stream).items():

        def has(release: Release, line: str = line) -> bool:
            row = bundles.find(connection, stream, PositionRow(*release.position))
            if row is None or row.digest != release.digest:
                return False
            issued.append(Issued(stream, line, release, row.envelope))
            return True

        if not has(state.release):
            number = state.release.position.version
            raise MissingError(f"the bundle {number} of {stream}, which is in force, is not in the store")
        base = state.base
        if base is not None and base.position != state.release.position and not has(base):
            base = None
        found.append(replace(state, base=base, reissues=tuple(filter(has, state.reissues))))
    return tuple(found)


def _mode_of(connection: sqlite3.Connection, state: LineState) -> Mode:
    """What an order said, from its own bundle."""
    row = bundles.find(connection, MODE, PositionRow(*state.release.position))
    assert row is not None, state
    content = content_of(row.envelope)
    return Mode(content["listener"], content["drain"])


# Policies


def read_policy(connection: sqlite3.Connection, name: str) -> PolicyState:
    """A policy as it is now."""
    row = policies.find(connection, name)
    if row is None:
        return PolicyState(name)
    published = None
    if row.published is not None:
        published = read_version(connection, name, row.published)
    draft = None
    if row.draft is not None:
        draft = Draft(
            row.draft["text"],
            Target.from_document(row.draft["target"]),
            row.draft["author"],
            row.draft["saved_at"],
        )
    return PolicyState(name, published, draft)


def read_version(connection: sqlite3.Connection, name: str, number: int) -> Version | None:
    """A version of a policy."""
    row = policies.find_version(connection, name, number)
    if row is None:
        return None
    return Version(
        row.policy,
        row.number,
        row.text,
        Target.from_document(row.target),
        row.digest,
        row.author,
        row.published,
        row.comment,
        row.rolled_back_to,
    )


def keep_policy(connection: sqlite3.Connection, state: PolicyState) -> None:
    """Keep a policy, whose version in force is kept already; one without version and draft is no more."""
    draft = state.draft
    document = None
    if draft is not None:
        document = {
            "text": draft.text,
            "target": draft.target.as_document(),
            "author": draft.author,
            "saved_at": draft.saved_at,
        }
    number = state.published.number if state.published else None
    if not state.exists:
        policies.remove(connection, state.name)
        return
    policies.keep(connection, PolicyRow(state.name, number, document))


def keep_version(connection: sqlite3.Connection, version: Version) -> None:
    """Keep a new version for good."""
    policies.add_version(
        connection,
        VersionRow(
            version.policy,
            version.number,
            version.text,
            version.target.as_document(),
            version.digest,
            version.author,
            version.published_at,
            version.comment,
            version.rolled_back_to,
        ),
    )


def order(
    connection: sqlite3.Connection,
    issuer: Issuer,
    wanted: Wanted,
    mode: Mode,
) -> tuple[Issued, frozenset[str]]:
    """Keep an order of a listener mode, sign it, and let its defenders follow it; gives who they are."""
    drain = None if mode.drain is None else float(mode.drain)
    change = modes.order(
        connection,
        wanted.line,
        sorted(wanted.audience or ()),
        listener=mode.listener,
        drain=drain,
        author=wanted.author,
        now=issuer.wall(),
    )
    there = frozenset(change.serials)
    if not there:
        raise MissingError("none of these defenders is in the fleet any more")
    issued = issuer.begin(connection, replace(wanted, audience=there), AT_ONCE, None)
    positions.follow(connection, MODE, [(who, wanted.line) for who in sorted(there)])
    return issued, there


def _line(text: str) -> str:
    """A text for people as a bundle holds it: one line that prints."""
    return "".join(each if each.isprintable() else " " for each in text)[:MAX_LINE]
