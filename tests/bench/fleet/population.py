"""Fills a controller's store with defenders that have their certificates, without letting each one join."""

from __future__ import annotations

import base64
import json
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from controller.founding import STORE
from controller.pki.authority import certificate_pem
from controller.pki.custody import load_private_key, new_private_key, private_key_pem
from controller.pki.kept import keep_certificates
from controller.pki.renewals import Certificates, name_of
from controller.pki.storage import open_authority
from controller.store import defenders
from controller.store.connection import open_writer, transaction
from controller.store.database import FILE
from defender.contract.peer_check import check_defender

KEY = "defenders.key"
CERTIFICATES = "defenders.json"


@dataclass(frozen=True, slots=True)
class Simulated:
    """One defender: what it is called, and the certificate that it shows. All have the same key."""

    id: str
    name: str
    certificate: x509.Certificate


@dataclass(frozen=True, slots=True)
class Population:
    """Defenders, and what they need to find and to trust a controller."""

    defenders: tuple[Simulated, ...]
    issuer: x509.Certificate
    trust_domain: str


def populate(state: Path, directory: Path, count: int) -> None:
    """Put `count` defenders into the store of a controller that does not run; their files into `directory`.

    They are as if each had joined: named, with one certificate in use.
    """
    now = datetime.now(UTC)
    authority = open_authority(state, now)
    key = new_private_key()
    public = key.public_key()
    issuer = certificate_pem(authority.fleet)
    listed = []
    connection = open_writer(state / STORE / FILE)
    try:
        with transaction(connection):
            for number in range(count):
                ident, name = str(uuid.uuid4()), f"host{number:05}"
                issued = authority.issue_defender_client(public, ident, name, now=now)
                used = name_of(check_defender(issued.leaf, authority.trust_domain))
                defenders.add(connection, ident, name, enrolled=time.time(), token="bench")
                chain = certificate_pem(issued.leaf) + issuer
                keep_certificates(
                    connection, ident, Certificates(used), {used.fingerprint: chain}, int(now.timestamp())
                )
                listed.append([ident, name, _text(issued.leaf)])
    finally:
        connection.close()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / KEY).touch(0o600)
    (directory / KEY).write_bytes(private_key_pem(key))
    document = {
        "defenders": listed,
        "issuer": _text(authority.fleet),
        "trust_domain": authority.trust_domain,
    }
    (directory / CERTIFICATES).write_text(json.dumps(document))


def read_population(directory: Path, first: int, count: int) -> Population:
    """The defenders from number `first` on, as `populate` has left them."""
    document = json.loads((directory / CERTIFICATES).read_text())
    chosen = document["defenders"][first : first + count]
    return Population(
        tuple(Simulated(ident, name, _certificate(text)) for ident, name, text in chosen),
        _certificate(document["issuer"]),
        document["trust_domain"],
    )


def read_key(directory: Path) -> object:
    """The key of all of them."""
    return load_private_key(directory / KEY)


def _text(certificate: x509.Certificate) -> str:
    return base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()


def _certificate(text: str) -> x509.Certificate:
    return x509.load_der_x509_certificate(base64.b64decode(text))
