"""The state directory of a controller, from outside of it: copied while it runs, changed while it does not.

What changes something needs the store's lock, so that no controller has it, and writes an audit event in the
same transaction; the next start brings that to the event store. A start signs again what the newest root
document does not vouch for, so that keys can be replaced here.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from controller.admin_audit import AdminActor, admin_event, compare
from controller.fleet import NO_POLICY_TEXT, Target
from controller.pki.files import PRIVATE_DIRECTORY, PRIVATE_FILE
from controller.pki.signing import BUNDLE, SigningKeys
from controller.publisher_steps import (
    ALL,
    Issuer,
    keep_policy,
    locks_in,
    read_policy,
    read_states,
    take_back_locks,
)
from controller.publishing import Draft, PublishError, save_draft
from controller.releases import Phase
from controller.selection import Selection
from controller.store import bundles, facts, locks, trail
from controller.store.bundles import BundleRow, PositionRow
from controller.store.connection import copy_to, open_reader, open_writer, transaction
from controller.store.database import FILE, LOCK
from controller.store.events import FOLDER
from controller.store.migrations import migrations_of, version_of
from defender.contract.bundle import EVERYONE, Bundle, BundleError, open_envelope
from defender.contract.envelope import BUNDLE_TYPE, MAX_ENVELOPE, read_envelope, split_envelopes, verify
from defender.contract.locks import make_lock
from defender.contract.trust import (
    LOCKS,
    MAX_ROOTS,
    MODE,
    POLICY,
    STREAMS,
    TRUST,
    Root,
    first_root,
    next_root,
)

STORE: Final = "store"
SIGNING: Final = "signing"
PARTS: Final = ("controller.toml", "pki", "signing", "tls", "sinks")
"""What a backup has beside the store, as far as it is there."""

_NEWEST_AGENT: Final = "65535.65535.65535"


class AtRestError(Exception):
    """It cannot be done; the text is one sentence for people."""


@dataclass(frozen=True, slots=True)
class TakenBack:
    """What became of one bundle: `news` says it to people, a line each."""

    stream: str
    version: int
    news: tuple[str, ...]


# Copying


def back_up(state: Path, out: Path) -> list[str]:
    """Copy all of a controller's state to the new directory `out`, while it runs or not; gives what is in it.

    The store comes first and the keys last: keys that are newer than the store do no harm, older ones do.
    Raises AtRestError, sqlite3.Error and OSError; then `out` is not there.
    """
    source = state / STORE
    if not (source / FILE).is_file():
        raise AtRestError(f"{source / FILE}: there is no store of a controller")
    staging = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    if out.exists():
        raise AtRestError(f"{out} is there already")
    staging.mkdir(mode=PRIVATE_DIRECTORY)
    try:
        (staging / STORE).mkdir(mode=PRIVATE_DIRECTORY)
        _copy_database(source / FILE, staging / STORE / FILE)
        if (source / FOLDER).is_dir():
            (staging / STORE / FOLDER).mkdir(mode=PRIVATE_DIRECTORY)
            # The newest first: it has the cursors of all defenders.
            for day in sorted((source / FOLDER).glob("[0-9]*.db"), reverse=True):
                _copy_database(day, staging / STORE / FOLDER / day.name)
        for name in PARTS:
            _copy_files(state / name, staging / name)
        staging.rename(out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


def _copy_database(source: Path, target: Path) -> None:
    with closing(open_reader(source)) as connection:
        copy_to(connection, target)


def _copy_files(source: Path, target: Path) -> None:
    """A file, or a directory without what is no file of its own."""
    if source.is_symlink():
        raise AtRestError(f"{source} is a link: copy what it leads to yourself")
    if source.is_dir():
        target.mkdir(mode=PRIVATE_DIRECTORY)
        for each in sorted(source.iterdir()):
            if not each.name.startswith("."):
                _copy_files(each, target / each.name)
    elif source.is_file():
        data = source.read_bytes()
        with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


# Changing


@contextmanager
def stopped(state: Path) -> Iterator[sqlite3.Connection]:
    """The store of a controller that does not run, in one transaction that is committed at the end.

    Raises AtRestError if it runs, if these are somebody else's files, or if it was never started.
    """
    directory = state / STORE
    if not (directory / FILE).is_file():
        raise AtRestError(f"{directory / FILE}: there is no store of a controller")
    owner = directory.stat().st_uid
    if owner != os.geteuid():
        raise AtRestError(
            f"{state} belongs to uid {owner}: do this as that user, or it cannot read the result"
        )
    lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            process = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
            raise AtRestError(f"the controller of {state} runs (process {process or '?'}): stop it") from None
        with closing(open_writer(directory / FILE)) as connection:
            steps = migrations_of("control")
            if version_of(connection, directory / FILE, steps) != len(steps):
                raise AtRestError(f"{directory / FILE} is of another version: start the controller once")
            if not isinstance(facts.find(connection, "epoch of the trail"), bytes):
                raise AtRestError(f"the controller of {state} was never started")
            with transaction(connection):
                yield connection
    finally:
        os.close(lock)


def replace_key(
    state: Path, role: str, user: str, *, stolen: bool = False, even_now: bool = False, keep_old: bool = False
) -> int:
    """Make a new key for a role of `SigningKeys`; gives the version of the root document that names it.

    For `bundle` alone: `stolen` raises the epoch as well, with `keep_old` both keys count until `retire_key`.
    Raises AtRestError and CustodyError.
    """
    with stopped(state) as connection:
        keys = SigningKeys.load(state / SIGNING)
        unsettled = sorted(
            line
            for line, each in read_states(connection, POLICY).items()
            if line and each.phase in (Phase.RUNNING, Phase.HALTED)
        )
        if role == BUNDLE and unsettled and not (stolen or even_now):
            raise AtRestError(
                f"the rollout of {', '.join(unsettled)} is not over: with another key it would begin anew, "
                "or fall back. Let it settle, or abort it"
            )
        now = int(time.time())
        before = {"root": keys.root.version, "epoch": keys.root.key_epoch}
        root = keys.raise_epoch(now) if stolen else keys.replace_key(role, now, keep_old=keep_old)
        after = {"root": root.version, "epoch": root.key_epoch}
        record_change(connection, user, "key_replace", role, before, after)
        return root.version


def retire_key(state: Path, user: str) -> int:
    """Let the `bundle` key before the present one count no more; gives the version of the root document.

    Raises AtRestError, if something in force is signed by it, and CustodyError.
    """
    with stopped(state) as connection:
        keys = SigningKeys.load(state / SIGNING)
        issuer = Issuer(keys, time.time)
        for stream in STREAMS:
            for line in read_states(connection, stream).values():
                row = bundles.find(connection, stream, PositionRow(*line.release.position))
                if row is not None and not issuer.vouches_for(row.envelope):
                    raise AtRestError(
                        f"{stream} {row.position.version} is signed by the old key: start the controller, "
                        "and wait until all defenders have what the new one signs"
                    )
        before = keys.root.version
        root = keys.retire_old(BUNDLE, int(time.time()))
        record_change(connection, user, "key_retire", BUNDLE, {"root": before}, {"root": root.version})
        return root.version


def take_back(state: Path, files: Sequence[Path], user: str) -> list[TakenBack]:
    """Have a store that was restored from a backup know the bundles that defenders hold and it forgot.

    Each is verified like a defender verifies it. Whoever is locked in the newest bundle of `locks` is locked
    again; the text of a newer policy becomes its draft, and its hosts keep it until something is published.
    No number up to theirs is given again. All of the files count, or none. Raises AtRestError, CustodyError.
    """
    with stopped(state) as connection:
        keys = SigningKeys.load(state / SIGNING)
        found: list[tuple[Bundle, bytes]] = []
        told: list[TakenBack] = []
        for path in files:
            data = _read(path)
            try:
                found.append((_opened(data, keys.root), data))
            except BundleError as error:
                if not _is_over(data, keys):
                    raise AtRestError(f"{path}: {error.code}: {error}{_hint(error)}") from None
                told.append(TakenBack(path.name, 0, ("it is over: its key was replaced",)))
        found.sort(key=lambda each: each[0].position, reverse=True)
        seen: set[tuple[str, str]] = set()
        for bundle, data in found:
            line = bundle.stream, str(bundle.content["name"]) if bundle.stream == POLICY else ""
            if line in seen and bundle.stream != MODE:
                told.append(TakenBack(bundle.stream, bundle.version, ("there is a newer one among these",)))
                continue
            seen.add(line)
            told.append(_take(connection, bundle, data, user))
        numbers: dict[str, int] = {}
        for bundle, _ in found:
            numbers.setdefault(bundle.stream, bundle.version)
        record_change(connection, user, "bundle_take_back", "", None, numbers)
        return told


def _opened(data: bytes, root: Root) -> Bundle:
    """A bundle of whatever stream and for whomever; raises BundleError."""
    envelope = read_envelope(data, BUNDLE_TYPE)
    verify(envelope, root.bundle)
    payload = json.loads(envelope.payload)
    audience = payload["audience"]
    return open_envelope(
        data,
        root,
        stream=payload["stream"],
        defender="" if audience == EVERYONE else audience[0],
        agent_version=_NEWEST_AGENT,
        now=None,
    )


def _is_over(data: bytes, keys: SigningKeys) -> bool:
    """Whether a bundle is signed by a key that this fleet had before: no defender has it in force."""
    frames = split_envelopes(keys.chain, MAX_ROOTS)
    root = first_root(frames[0])
    for frame in frames[1:]:
        try:
            verify(read_envelope(data, BUNDLE_TYPE), root.bundle)
        except BundleError:
            root = next_root(root, frame)
        else:
            return root.bundle != keys.root.bundle
    return False


def _take(connection: sqlite3.Connection, bundle: Bundle, data: bytes, user: str) -> TakenBack:
    stream, version = bundle.stream, bundle.version
    position = PositionRow(bundle.key_epoch, version)
    known = bundles.find(connection, stream, position)
    if known is not None and known.digest != bundle.digest:
        raise AtRestError(
            f"{stream}: there is another bundle {version} in the store: since it was restored this "
            "controller has published. Restore it again, and take bundles back before it is started"
        )
    newest = bundles.newest(connection, stream)
    if newest is not None and newest.position >= position:
        return TakenBack(stream, version, ("the store knows it, or a newer one",))
    bundles.raise_version(connection, stream, version)
    if stream in (LOCKS, TRUST):
        # Its number counts as issued: what this controller has is signed again, above it.
        row = BundleRow(stream, position, ALL, position, bundle.digest, None, time.time(), data)
        bundles.add(connection, row)
    if stream == LOCKS:
        return TakenBack(stream, version, _lock_again(connection, bundle, user))
    if stream == POLICY:
        return TakenBack(stream, version, (_draft(connection, bundle, user),))
    if stream == MODE:
        listener = bundle.content["listener"]
        return TakenBack(stream, version, (f"its hosts keep the mode {listener} until another is set",))
    return TakenBack(stream, version, ("it is signed again at the next start",))


def _lock_again(connection: sqlite3.Connection, bundle: Bundle, user: str) -> tuple[str, ...]:
    held = {make_lock(row.kind, row.value, row.issuer) for row in locks.every(connection)}
    found = take_back_locks(connection, bundle, bundle.author or user, time.time())
    news = [f"locked again: {lock.describe()}" for lock in found]
    news += [
        f"still locked, but lifted in this version: {lock.describe()}"
        for lock in sorted(held.difference(locks_in(bundle)))
    ]
    return tuple(news) or ("the same locks",)


def _draft(connection: sqlite3.Connection, bundle: Bundle, user: str) -> str:
    name, text = bundle.content["name"], bundle.content["text"]
    if text == NO_POLICY_TEXT:
        return "the denial for hosts without a policy"
    state = read_policy(connection, name)
    if state.published is not None and state.published.text == text:
        return f"policy {name}: the text that is published; publish it again to renew its number"
    target = state.published.target if state.published is not None else Target(Selection())
    try:
        after = save_draft(
            replace(state, draft=None), Draft(text, target, bundle.author or user, time.time())
        )
    except PublishError as error:
        return f"policy {name}: cannot be a draft: {error}"
    keep_policy(connection, after)
    return f"policy {name}: its text is the draft now; its hosts keep it until you publish"


def _hint(error: BundleError) -> str:
    if error.code in ("wrong-key", "epoch-ahead"):
        return ". The signing keys of this backup are older than the bundle: restore newer ones"
    return ""


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_ENVELOPE + 1)
    if len(data) > MAX_ENVELOPE:
        raise AtRestError(f"{path} is larger than any bundle")
    return data


def record_change(
    connection: sqlite3.Connection,
    user: str,
    action: str,
    target: str,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any],
) -> None:
    """Write the audit event of a change."""
    micros = time.time_ns() // 1000
    identity = bytearray((micros // 1000).to_bytes(6) + os.urandom(10))  # UUIDv7, RFC 9562 section 5.7
    identity[6] = 0x70 | identity[6] & 0x0F
    identity[8] = 0x80 | identity[8] & 0x3F
    event = admin_event(AdminActor(user, "system"), action, target, changed=compare(before, after))
    trail.append(connection, event, identity=bytes(identity), micros=micros, mono=time.monotonic_ns() // 1000)
