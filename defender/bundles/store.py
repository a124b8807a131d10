"""Bundles, roots and the high-water file on disk: ``STATE/bundles``.

============================  ===================================================================
``roots``                     the root envelopes, oldest first, one behind the other
``high-water``                what was accepted last (`defender.contract.high_water`)
``STREAM/POSITION.bundle``    the last three envelopes of each stream, and the one in force
``STREAM/incoming``           an envelope that is being accepted
============================  ===================================================================

What is read here is bytes: nothing of it is believed before `streams` has verified it again. Everything is
written beside its place, synced, put in its place and synced there. A bundle is written in an order that a
crash may interrupt anywhere: the envelope as `incoming`, then the high-water file that names it, then its own
name. An `incoming` that the high-water file names was accepted; any other is as good as not there. So a
bundle above the mark never comes of a crash, but of a high-water file that was put back.

Everything here may block.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from defender.bundles.commands import PersistBundle, PersistMark, PersistRoots
from defender.bundles.restoring import Stored
from defender.contract.bundle import BundleError, Position
from defender.contract.envelope import MAX_ENVELOPE, payload_digest
from defender.contract.high_water import HighWater, decode_high_water
from defender.contract.trust import MAX_ROOT, MAX_ROOTS, STREAMS, load_chain

KEPT: Final = 3
_MAX_MARK: Final = 64 * 1024
_NAME: Final = re.compile(r"([0-9]{20})-([0-9]{20})-([0-9a-f]{64})\.bundle")
_ROOTS: Final = "roots"
_MARK: Final = "high-water"
_INCOMING: Final = "incoming"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was read, and a sentence about each file that could not be."""

    stored: Stored
    problems: tuple[str, ...]


def bundle_name(position: Position) -> str:
    """The file name of a bundle; names sort by position."""
    return f"{position.key_epoch:020d}-{position.version:020d}-{position.digest.hex()}.bundle"


class BundleStore:
    """The files below `directory`, which is made with mode 0700; the files have 0600."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def adopt(self, chain: bytes) -> None:
        """Keep the roots that an enrolment brought, unless newer ones of the same fleet are here.

        Raises BundleError if they are no chain, or `foreign-fleet` if this defender belongs to another fleet;
        OSError.
        """
        root = load_chain(chain)
        held = self._read(self.directory / _ROOTS, MAX_ROOT * MAX_ROOTS, [])
        if held is not None:
            try:
                present = load_chain(held)
            except BundleError:
                pass  # damaged: the enrolment mends it
            else:
                if present.fleet != root.fleet:
                    raise BundleError(
                        "foreign-fleet",
                        f"this defender belongs to fleet {present.fleet}; remove {self.directory} to change "
                        "fleets",
                    )
                if present.version >= root.version:
                    return
        self._make(self.directory)
        self._replace(self.directory / _ROOTS, chain)

    def load(self) -> Loaded:
        """Everything on disk; what cannot be read counts as not there, and is told."""
        problems: list[str] = []
        roots = self._read(self.directory / _ROOTS, MAX_ROOT * MAX_ROOTS, problems)
        mark = self._read(self.directory / _MARK, _MAX_MARK, problems)
        water: HighWater | None = None
        if mark is not None:
            with contextlib.suppress(BundleError):  # told by the machine, which reads it again
                water = decode_high_water(mark)
        bundles = {}
        for stream in STREAMS:
            active = water.mark(stream).active if water else None
            bundles[stream] = self._load_stream(self.directory / stream, active, problems)
        return Loaded(Stored(roots, mark, bundles), tuple(problems))

    def envelope(self, stream: str, position: Position) -> bytes | None:
        """The envelope of a bundle that is kept, as it came: for a controller that was restored from a backup
        and takes back what is newer than it knows. None if it is not there; verifies nothing."""
        if stream not in STREAMS:
            return None
        return self._read(self.directory / stream / bundle_name(position), MAX_ENVELOPE, [])

    def perform(self, command: PersistRoots | PersistBundle | PersistMark) -> None:
        """Do it so that it survives a crash once this has returned; raises OSError, and then nothing that
        was there before is lost."""
        self._make(self.directory)
        match command:
            case PersistRoots(_, chain, high_water):
                self._replace(self.directory / _ROOTS, chain)
                if high_water is not None:
                    self._replace(self.directory / _MARK, high_water)
            case PersistBundle(_, stream, position, envelope, high_water, keep):
                folder = self.directory / stream
                self._make(folder)
                self._write(folder / _INCOMING, envelope)
                self._sync(folder)
                self._replace(self.directory / _MARK, high_water)
                self._settle(folder, position)
                self._prune(folder, {bundle_name(position), bundle_name(keep)})
            case PersistMark(_, high_water):
                self._replace(self.directory / _MARK, high_water)

    def _load_stream(self, folder: Path, active: Position | None, problems: list[str]) -> tuple[bytes, ...]:
        """The envelopes of a stream, newest first, the one in force among them."""
        incoming = self._read(folder / _INCOMING, MAX_ENVELOPE, problems)
        if incoming is not None and active is not None and payload_digest(incoming) == active.digest:
            # The crash came after it was accepted: finish what was begun.
            try:
                self._settle(folder, active)
            except OSError as error:
                problems.append(f"{folder / _INCOMING}: {error.strerror}")
                return (incoming, *self._load_names(folder, active, problems))
        return tuple(self._load_names(folder, active, problems))

    def _load_names(self, folder: Path, active: Position | None, problems: list[str]) -> list[bytes]:
        names = self._names(folder)
        chosen = names[:KEPT]
        if active is not None and (name := bundle_name(active)) in names[KEPT:]:
            chosen.append(name)
        read = (self._read(folder / name, MAX_ENVELOPE, problems) for name in chosen)
        return [data for data in read if data is not None]

    @staticmethod
    def _names(folder: Path) -> list[str]:
        """The names of bundles, newest first."""
        try:
            return sorted((name for name in os.listdir(folder) if _NAME.fullmatch(name)), reverse=True)
        except OSError:
            return []

    def _settle(self, folder: Path, position: Position) -> None:
        os.replace(folder / _INCOMING, folder / bundle_name(position))
        self._sync(folder)

    def _prune(self, folder: Path, keep: Iterable[str]) -> None:
        """Remove all but the newest and those of `keep`. What cannot be removed does no harm."""
        for name in self._names(folder)[KEPT:]:
            if name not in keep:
                with contextlib.suppress(OSError):
                    (folder / name).unlink()

    @staticmethod
    def _read(path: Path, limit: int, problems: list[str]) -> bytes | None:
        """A regular file's bytes; None if it is not there, cannot be read or is larger than `limit`."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    problems.append(f"{path}: is not a regular file")
                    return None
                data = file.read(limit + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            problems.append(f"{path}: cannot be read: {error.strerror}")
            return None
        if len(data) > limit:
            problems.append(f"{path}: is larger than {limit} bytes")
            return None
        return data

    def _make(self, folder: Path) -> None:
        if not folder.is_dir():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._sync(folder.parent)

    def _replace(self, path: Path, data: bytes) -> None:
        new = path.with_name(path.name + ".new")
        self._write(new, data)
        os.replace(new, path)
        self._sync(path.parent)

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        descriptor = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)

    @staticmethod
    def _sync(folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
