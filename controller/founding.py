"""What a controller has on its disk, made at the first start and found again at every other.

    pki/       the authority: root, users', fleet's (`controller.pki.storage`)
    signing/   the keys of bundles, apart from those, and the root documents (`controller.pki.signing`)
    tls/       the controller's own certificate, for HTTPS and the channel
    store/     the database, and a file of events for each day

Each part is whole or not there. A part that is there and cannot be used ends the start with its name and what
to do; nothing that is there is ever made anew but the controller's certificate, in time.
"""

from __future__ import annotations

import secrets
import sqlite3
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from controller.pki.authority import Authority, AuthorityError
from controller.pki.credentials import ensure_controller_files
from controller.pki.custody import CustodyError, load_private_key
from controller.pki.files import make_private_directory
from controller.pki.signing import CHAIN, SigningKeys
from controller.pki.storage import MissingAuthorityError, create_authority, open_authority
from controller.settings import Settings
from controller.store import facts
from controller.store.database import Database
from controller.store.errors import StoreError

SIGNING: Final = "signing"
TLS: Final = "tls"
STORE: Final = "store"

_NOTES: Final = "events.notes_epoch"

#: Names that the certificate always carries, besides the short host name.
LOCAL: Final = ("localhost", "127.0.0.1", "::1")


class FoundingError(Exception):
    """The controller cannot start with what is on its disk; the text is fit for people."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The controller's certificate towards everybody: the chain up to the root, and its key.

    `names` are the host names and addresses that it carries.
    """

    chain: tuple[x509.Certificate, ...]
    key: ec.EllipticCurvePrivateKey
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Founded:
    """What a controller works with; `fresh` if its authority was made just now."""

    authority: Authority
    keys: SigningKeys
    identity: Identity
    fresh: bool


def found(settings: Settings, host_name: str, now: datetime) -> Founded:
    """Find or make authority, signing keys and certificate below the state directory; blocks.

    Raises FoundingError.
    """
    state = settings.controller.state
    try:
        make_private_directory(state)
        try:
            authority, fresh = open_authority(state, now), False
        except MissingAuthorityError:
            authority, _ = create_authority(state, settings.controller.trust_domain, now)
            fresh = True
        if authority.trust_domain != settings.controller.trust_domain:
            raise FoundingError(
                f"{settings.source}: controller.trust_domain: {settings.controller.trust_domain!r} is not "
                f"that of the authority in {state / 'pki'}, {authority.trust_domain!r}; it cannot be changed"
            )
        keys = _signing_keys(state / SIGNING, authority, now)
        identity = renew_identity(settings, authority, host_name, now)
    except (AuthorityError, CustodyError) as error:
        raise FoundingError(str(error)) from error
    except OSError as error:
        raise FoundingError(f"{error.filename or state}: {error.strerror or error}") from error
    return Founded(authority, keys, identity, fresh)


def renew_identity(settings: Settings, authority: Authority, host_name: str, now: datetime) -> Identity:
    """The controller's certificate, issued anew when its names ask for that or its time is nearly over.

    Raises AuthorityError, CustodyError, OSError.
    """
    directory = settings.controller.state / TLS
    names = tuple(dict.fromkeys((*settings.controller.names, host_name, *LOCAL)))
    ensure_controller_files(authority, directory, "controller", names, now=now)
    chain = tuple(x509.load_pem_x509_certificates((directory / "controller.pem").read_bytes()))
    return Identity(chain, load_private_key(directory / "controller.key"), names)


def open_database(state: Path, reactor: Any) -> Database:
    """The opened database; blocks. Raises FoundingError."""
    database = Database(state / STORE, reactor)
    try:
        make_private_directory(state / STORE)
        database.start()
    except StoreError as error:
        raise FoundingError(str(error)) from error
    except OSError as error:
        raise FoundingError(f"{error.filename or state}: {error.strerror or error}") from error
    return database


def notes_epoch(connection: sqlite3.Connection) -> int:
    """The number under which the event store keeps its own notes, made once with the store.

    For `Database.write`.
    """
    kept = facts.keep_first(connection, _NOTES, random_epoch().to_bytes(8, "big"))
    assert isinstance(kept, bytes)
    return int.from_bytes(kept, "big")


def life_left(identity: Identity, now: datetime) -> timedelta:
    """How long the controller's certificate still holds."""
    return identity.chain[0].not_valid_after_utc - now


def _signing_keys(directory: Path, authority: Authority, now: datetime) -> SigningKeys:
    if (directory / CHAIN).exists() or any(directory.glob("*.key")):
        return SigningKeys.load(directory)
    return SigningKeys.create(
        directory,
        fleet=str(uuid.uuid4()),
        trust_domain=authority.trust_domain,
        now=int(now.astimezone(UTC).timestamp()),
    )


def random_epoch() -> int:
    """A number from 1 to 2**64 - 1 that nobody had before."""
    return secrets.randbits(64) or 1
