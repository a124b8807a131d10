"""Which certificates of a defender count: renewal in two phases, and what betrays a copied key.

A defender has one certificate in use. Asked for a new one, the controller issues it and *offers* it: the old
one stays in use until the new one is used, so that a lost answer strands nobody. From then on the old one is
superseded. The defender itself never shows it again, since it put the new one in its place before it used
it. Whoever does show it has a copy of the defender's state: a clone, or the host itself brought back from a
backup or a snapshot. Neither can be told from the other, so both are shut out (that one defender only), an
administrator is told, and a new join token for that name settles it.

A certificate that is not known but younger than the one in use was issued by this fleet all the same (its
chain says so): the controller itself was restored from a backup. It is taken over.

Pure functions over `Certificates`, the row that the store keeps for a defender; asked inside its write
transaction. Chain, time and role of a certificate were checked before; here it is only named. Times are unix
seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from defender.contract.peer_check import PeerIdentity
from defender.contract.renewal import GRACE

CROSSING: Final = 15
"""Seconds after the first use of a new certificate in which the old one is refused without an alarm.

A handshake may have begun before: the limit of one is 10 s.
"""
MAX_SUPERSEDED: Final = 64
"""Superseded certificates of one defender that are remembered, the latest; each is kept until `GRACE`."""


@dataclass(frozen=True, slots=True)
class CertificateName:
    """One certificate of a defender: SHA-256 of its DER, of its key (SubjectPublicKeyInfo), and its times."""

    fingerprint: bytes
    key: bytes
    not_before: int
    not_after: int


@dataclass(frozen=True, slots=True)
class Superseded:
    """A certificate that must not be seen again; ``since``: when another took its place."""

    certificate: CertificateName
    since: int


@dataclass(frozen=True, slots=True)
class Certificates:
    """The certificates of one defender.

    ``offered``: issued, and not used yet. ``lock``: why the defender is shut out, "" if it is not.
    """

    used: CertificateName
    offered: CertificateName | None = None
    superseded: tuple[Superseded, ...] = ()
    lock: str = field(default="")


@dataclass(frozen=True, slots=True)
class Welcome:
    """The certificate counts. ``changed``: keep `certificates`. ``how``: ``used`` (as before), ``promoted``
    (an offered one, for the first time) or ``restored`` (younger than what is known here)."""

    certificates: Certificates
    how: Literal["used", "promoted", "restored"] = "used"

    @property
    def changed(self) -> bool:
        """Whether there is something to keep."""
        return self.how != "used"


@dataclass(frozen=True, slots=True)
class Cloned:
    """A superseded certificate was shown: keep `certificates`, which are locked now, and tell everybody.

    Open sessions of this defender are cut. ``new`` is False if it was locked before.
    """

    certificates: Certificates
    detail: str
    new: bool


@dataclass(frozen=True, slots=True)
class Turned:
    """The certificate does not count; nothing changes. `code` and `detail` are fit for the peer."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Offer:
    """A certificate may be issued: then keep `offered` of it."""


@dataclass(frozen=True, slots=True)
class OfferAgain:
    """The certificate that was issued for this key before is to be sent again: its answer was lost."""

    certificate: CertificateName


def name_of(peer: PeerIdentity) -> CertificateName:
    """Return the name of a certificate that was checked."""
    return CertificateName(peer.fingerprint, peer.key, peer.not_before, peer.not_after)


def seen(known: Certificates, shown: CertificateName, now: int) -> Welcome | Cloned | Turned:
    """Say what it means that a defender has shown a certificate, in a handshake or by a proof of its key.

    A COMMIT on the channel counts as showing the one that was offered, if it names its serial number.
    """
    stale = _find(known, shown)
    if stale is not None:
        if now - stale.since < CROSSING:
            return Turned("superseded", "this certificate was replaced just now; use the new one")
        detail = (
            f"a certificate was used that was replaced {_ago(now - stale.since)} ago: "
            "this defender's key is in use twice, or its host was brought back from a backup"
        )
        return Cloned(replace(known, lock=known.lock or detail), detail, new=not known.lock)
    if known.lock:
        return Turned("locked", "this defender is locked; an administrator has to look at it")
    if shown == known.used:
        return Welcome(known)
    if shown == known.offered:
        return Welcome(_promoted(known, shown, now), "promoted")
    if shown.not_before > known.used.not_before:
        return Welcome(_promoted(known, shown, now), "restored")
    return Turned("unknown-certificate", "this certificate is none that this controller counts on")


def asked(known: Certificates, shown: CertificateName, key: bytes) -> Offer | OfferAgain | Turned:
    """Say whether a defender, on a channel that it opened with ``shown``, gets a certificate for ``key``."""
    if known.lock:
        return Turned("locked", "this defender is locked; an administrator has to look at it")
    if shown != known.used:
        return Turned("superseded", "this certificate was replaced; renew with the new one")
    if key == known.used.key:
        return Turned("key", "a new certificate needs a new key")
    if known.offered is not None and known.offered.key == key:
        return OfferAgain(known.offered)
    return Offer()


def offered(known: Certificates, new: CertificateName, now: int) -> Certificates:
    """Return the certificates with a new one on offer.

    One that was on offer and never used counts as superseded from now on: a defender keeps one new key until
    it is settled, so that two keys asked for mean two defenders.
    """
    if known.offered is not None and known.offered != new:
        known = replace(known, superseded=_with(known.superseded, known.offered, now))
    return replace(known, offered=new)


def expired(known: Certificates, shown: CertificateName, now: int) -> Welcome | Cloned | Turned:
    """Say whether a defender that has proven to have the key of an expired certificate gets a new one.

    Its new certificate is on offer then (`offered`), as with any renewal.
    """
    if now > shown.not_after + GRACE:
        return Turned(
            "too-late",
            f"this certificate ended more than {GRACE // 86_400} days ago; join again, with a new token",
        )
    return seen(known, shown, now)


def rejoined(known: Certificates, new: CertificateName, now: int) -> Certificates:
    """Return the certificates after a new token let the defender in again: a lock for a clone is settled.

    Everything from before is superseded.
    """
    superseded = known.superseded
    for old in (known.used, known.offered):
        if old is not None:
            superseded = _with(superseded, old, now)
    return Certificates(new, None, superseded, "")


def _promoted(known: Certificates, shown: CertificateName, now: int) -> Certificates:
    superseded = _with(known.superseded, known.used, now)
    if known.offered is not None and known.offered != shown:
        superseded = _with(superseded, known.offered, now)
    return Certificates(shown, None, superseded, known.lock)


def _with(superseded: Iterable[Superseded], old: CertificateName, now: int) -> tuple[Superseded, ...]:
    kept = [each for each in superseded if now <= each.certificate.not_after + GRACE]
    kept.append(Superseded(old, now))
    return tuple(kept[-MAX_SUPERSEDED:])


def _find(known: Certificates, shown: CertificateName) -> Superseded | None:
    for each in known.superseded:
        if each.certificate == shown:
            return each
    return None


def _ago(seconds: int) -> str:
    for size, word in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds // size} {word}"
    return f"{seconds} seconds"
