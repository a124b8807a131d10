"""Intermediates that follow each other: made, used for signing, and trusted no more, a step at a time.

``STATE/pki/issuers.json`` names them: of each kind the one that signs, then the other one that is trusted, if
there is one. Without the file there is one of each kind, by the names that they were founded with. Each step
is one change of that file, so that a crash leaves what was before or what is after.

Defenders learn of both with the stream `trust`, so none is ever shown what it does not know, as long as each
step waits for them (`controller.cli.rotation` does).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509

from controller.pki.authority import (
    FLEET_CA,
    ROOT,
    USER_CA,
    AuthorityError,
    certificate_pem,
    sign_intermediate,
)
from controller.pki.custody import FileCustody
from controller.pki.files import write_private

ISSUERS: Final = "issuers.json"
KINDS: Final[Mapping[str, str]] = {USER_CA: "users", FLEET_CA: "fleet"}
"""The kinds of intermediates, and what their certificates are called by."""

_NAME: Final = re.compile(r"(user-ca|fleet-ca)(\.[1-9][0-9]{0,5})?")


def read_issuers(directory: Path) -> dict[str, tuple[str, ...]]:
    """The names of the intermediates in this directory, by kind, the one that signs first.

    Raises AuthorityError for a file that is not one of ours.
    """
    path = directory / ISSUERS
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {kind: (kind,) for kind in KINDS}
    except OSError as error:
        raise AuthorityError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise AuthorityError(f"{path}: not JSON") from error
    named: dict[str, tuple[str, ...]] = {}
    for kind in KINDS:
        names = found.get(kind) if isinstance(found, dict) else None
        if (
            not isinstance(names, list)
            or not 1 <= len(names) <= 2
            or not all(isinstance(each, str) and _is_name(each, kind) for each in names)
        ):
            raise AuthorityError(f"{path}: does not name one or two intermediates as {kind!r}")
        named[kind] = tuple(names)
    return named


def _is_name(text: str, kind: str) -> bool:
    match = _NAME.fullmatch(text)
    return match is not None and match[1] == kind


def make_successor(
    directory: Path, kind: str, trust_domain: str, root: x509.Certificate, now: datetime
) -> x509.Certificate:
    """Make an intermediate that is trusted beside the one that signs, and does not sign yet.

    Raises AuthorityError if there is one, CustodyError if the root's key is not here, OSError.
    """
    issuers = read_issuers(directory)
    if len(issuers[kind]) > 1:
        raise AuthorityError("there is a second one already: switch to it, or retire it")
    custody = FileCustody(directory)
    root_signer = custody.signer(ROOT)
    number = 2
    while any((directory / f"{kind}.{number}.{end}").exists() for end in ("key", "pem")):
        number += 1
    name = f"{kind}.{number}"
    made = sign_intermediate(trust_domain, root, root_signer, custody.create(name), KINDS[kind], now)
    write_private(directory / f"{name}.pem", certificate_pem(made))
    _write(directory, {**issuers, kind: (*issuers[kind], name)})
    return made


def switch(directory: Path, kind: str) -> None:
    """Let the other one sign; a second time takes that back. Raises AuthorityError if there is none."""
    issuers = read_issuers(directory)
    if len(issuers[kind]) == 1:
        raise AuthorityError("there is no second one to switch to: prepare it first")
    _write(directory, {**issuers, kind: issuers[kind][::-1]})


def retire(directory: Path, kind: str) -> None:
    """Trust the one that does not sign no more, and destroy its key; raises AuthorityError if there is none,
    OSError."""
    issuers = read_issuers(directory)
    if len(issuers[kind]) == 1:
        raise AuthorityError("there is no second one to retire")
    signs, other = issuers[kind]
    _write(directory, {**issuers, kind: (signs,)})
    (directory / f"{other}.key").unlink(missing_ok=True)


def _write(directory: Path, issuers: Mapping[str, tuple[str, ...]]) -> None:
    content = {"v": 1, **{kind: list(names) for kind, names in issuers.items()}}
    write_private(directory / ISSUERS, (json.dumps(content) + "\n").encode())
