"""A certificate as a defender would see it, for people who wonder why it is refused."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from controller.pki.authority import USER_CA, AuthorityError
from controller.pki.credentials import certificate_hosts
from controller.pki.storage import pki_directory, read_certificate, read_trust_domain
from defender.contract.identity import TRUST_DOMAIN_DEFAULT, Examination, examine_certificate


@dataclass(frozen=True, slots=True)
class FailedCheck:
    """A check by its name in `IdentityError.check` (also ``validity`` and ``issuer``), and what is wrong."""

    check: str
    detail: str


@dataclass(frozen=True, slots=True)
class CertificateView:
    """What was read and what was checked. `issuer_checked` is False where no authority was at hand."""

    examination: Examination
    hosts: tuple[str, ...]
    trust_domain: str
    issuer_checked: bool
    failed: tuple[FailedCheck, ...]

    def to_json(self) -> dict[str, object]:
        """Return the view as one JSON object; what could not be read is null."""
        seen = self.examination
        return {
            "accepted": not self.failed,
            "user": seen.user,
            "groups": list(seen.claims.groups) if seen.claims else None,
            "identity": seen.identity,
            "serial": seen.serial,
            "issuer": seen.issuer,
            "issuer_checked": self.issuer_checked,
            "not_before": iso_time(seen.not_before),
            "not_after": iso_time(seen.not_after),
            "hosts": list(self.hosts),
            "trust_domain": self.trust_domain,
            "failed": [{"check": failed.check, "detail": failed.detail} for failed in self.failed],
        }


def view_certificate(
    leaf: x509.Certificate, state: Path, trust_domain: str | None, now: datetime
) -> CertificateView:
    """Look at a certificate with what the state directory knows, which may be nothing.

    Without a trust domain that of the state counts, else the certificate's own, of which only the form is
    checked.
    """
    issuer, home = _known_authority(state)
    domain = trust_domain or home or _own_trust_domain(leaf)
    seen = examine_certificate(leaf, domain)
    failed = [FailedCheck(problem.check, problem.detail) for problem in seen.problems]
    if seen.not_before is not None and now.timestamp() < seen.not_before:
        failed.append(FailedCheck("validity", "it is not valid yet"))
    if seen.not_after is not None and now.timestamp() > seen.not_after:
        failed.append(FailedCheck("validity", "it has expired"))
    if issuer is not None:
        try:
            leaf.verify_directly_issued_by(issuer)
        except Exception:  # noqa: BLE001 - whatever is wrong with it, it is not ours
            failed.append(FailedCheck("issuer", "it was not issued by this state's user authority"))
    return CertificateView(seen, certificate_hosts(leaf), domain, issuer is not None, tuple(failed))


def iso_time(seconds: float | None) -> str | None:
    """Return unix seconds as ``2026-11-21T22:13:03Z``."""
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _known_authority(state: Path) -> tuple[x509.Certificate | None, str | None]:
    # A person who looks at a certificate may not be one who may read the authority.
    try:
        return read_certificate(pki_directory(state) / f"{USER_CA}.pem"), read_trust_domain(state)
    except AuthorityError:
        return None, None


def _own_trust_domain(leaf: x509.Certificate) -> str:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except Exception:  # noqa: BLE001 - examine_certificate says what is wrong
        return TRUST_DOMAIN_DEFAULT
    parts = uris[0].split("/") if uris else []
    return parts[2] if len(parts) > 3 and parts[0] == "spiffe:" and parts[2] else TRUST_DOMAIN_DEFAULT
