"""An authority kept under a state directory: ``STATE/pki``.

    root.pem root.key           the root; the key may be taken off line
    user-ca.pem user-ca.key     signs users
    fleet-ca.pem fleet-ca.key   signs defenders
    trust.json                  {"trust_domain": ..., "v": 1}
    issuers.json                which intermediates there are, once there were others (`succession`)

The directory is made under another name and renamed, so that it is whole or not there, and of two that make
it at once one wins and the other one is told.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import stat
from datetime import datetime
from pathlib import Path

from cryptography import x509

from controller.pki.authority import FLEET_CA, ROOT, USER_CA, Authority, AuthorityError, certificate_pem
from controller.pki.custody import FileCustody
from controller.pki.files import PRIVATE_DIRECTORY, sync_directory, write_private
from controller.pki.succession import read_issuers

TRUST_FILE = "trust.json"


class MissingAuthorityError(Exception):
    """There is no authority in this directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        super().__init__(f"there is no authority in {directory}")


def pki_directory(state: Path) -> Path:
    """Return where the authority of this state lies."""
    return state / "pki"


def create_authority(
    state: Path, trust_domain: str, now: datetime, *, replace: bool = False
) -> tuple[Authority, Path | None]:
    """Make an authority and keep it; with `replace`, what was there is moved aside and its new path returned.

    Raises FileExistsError if there is one and `replace` was not said, AuthorityError for a bad trust domain,
    OSError when it cannot be kept.
    """
    final = pki_directory(state)
    # The state directory itself is not closed: a defender may keep a socket for others in it.
    state.mkdir(parents=True, exist_ok=True)
    staging = state / f".pki.{secrets.token_hex(8)}"
    staging.mkdir(mode=PRIVATE_DIRECTORY)
    try:
        authority = Authority.create(trust_domain, FileCustody(staging), now)
        for name, certificate in (
            (ROOT, authority.root),
            (USER_CA, authority.users),
            (FLEET_CA, authority.fleet),
        ):
            write_private(staging / f"{name}.pem", certificate_pem(certificate))
        trust = json.dumps({"trust_domain": trust_domain, "v": 1}) + "\n"
        write_private(staging / TRUST_FILE, trust.encode())
        aside = None
        if replace and final.exists():
            aside = state / f"pki.replaced-{now:%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
            final.rename(aside)
        try:
            staging.rename(final)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise FileExistsError(errno.EEXIST, "there is one already", str(final)) from error
            raise
        sync_directory(state)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return open_authority(state, now), aside


def open_authority(state: Path, now: datetime) -> Authority:
    """Return the authority under this state, checked.

    Raises MissingAuthorityError if there is none, AuthorityError or CustodyError (fit for people) if it is
    incomplete, damaged, expired or open to others.
    """
    directory = pki_directory(state)
    if not directory.exists() or (directory.is_dir() and not os.listdir(directory)):
        raise MissingAuthorityError(directory)
    if not directory.is_dir():
        raise AuthorityError(f"{directory} is not a directory")
    mode = stat.S_IMODE(directory.stat().st_mode)
    if mode & 0o077:
        raise AuthorityError(f"{directory} has mode {mode:04o}: others can enter it; chmod it 700")
    issuers = read_issuers(directory)
    users, fleet = (
        [read_certificate(directory / f"{name}.pem") for name in issuers[kind]]
        for kind in (USER_CA, FLEET_CA)
    )
    authority = Authority(
        read_trust_domain(state),
        root=read_certificate(directory / f"{ROOT}.pem"),
        users=users[0],
        fleet=fleet[0],
        custody=FileCustody(directory),
        keys=(issuers[USER_CA][0], issuers[FLEET_CA][0]),
        more_users=users[1:],
        more_fleet=fleet[1:],
    )
    authority.check(now)
    return authority


def read_trust_domain(state: Path) -> str:
    """Return the trust domain of the authority under this state; raises AuthorityError."""
    path = pki_directory(state) / TRUST_FILE
    try:
        document = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise AuthorityError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise AuthorityError(f"{path}: not JSON") from error
    trust_domain = document.get("trust_domain") if isinstance(document, dict) else None
    if not isinstance(trust_domain, str):
        raise AuthorityError(f"{path}: it does not say `trust_domain`")
    return trust_domain


def read_certificate(path: Path) -> x509.Certificate:
    """Return the first certificate in this file, PEM or DER; raises AuthorityError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AuthorityError(f"{path}: {error.strerror}") from error
    try:
        if b"-----BEGIN CERTIFICATE-----" in content:
            return x509.load_pem_x509_certificate(content)
        return x509.load_der_x509_certificate(content)
    except Exception as error:
        raise AuthorityError(f"{path}: not a certificate in PEM or DER") from error
