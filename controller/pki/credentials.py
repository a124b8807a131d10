"""Certificates with their keys, put where clients and the defender look for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import quote

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import NameOID

from controller.pki.authority import CONTROLLER_LIFE, Authority, AuthorityError, Issued, certificate_pem
from controller.pki.custody import CustodyError, load_private_key, new_private_key, private_key_pem
from controller.pki.files import make_private_directory, write_all_private
from controller.pki.names import server_names
from controller.pki.storage import read_certificate


class ForeignCredentialsError(Exception):
    """A directory holds somebody else's credentials. The text is fit for people."""


@dataclass(frozen=True, slots=True)
class ServerOutcome:
    """What became of a defender's certificate: `reason` says why it was issued, "" if the old one is kept."""

    certificate: x509.Certificate
    reason: str


def user_directory(state: Path, user: str) -> Path:
    """Return where a user's credentials are put by default: one directory, whatever the name holds."""
    name = quote(user, safe="@+ ")
    return state / "certs" / (name if name.strip(".") else name.replace(".", "%2E"))


def issue_user_files(
    authority: Authority,
    directory: Path,
    user: str,
    groups: Sequence[str],
    *,
    now: datetime,
    life: timedelta,
    force: bool = False,
) -> Issued:
    """Make a key and a certificate, as ``ca.pem cert.pem key.pem`` (0600) in the directory.

    The names are those that Docker's clients read from DOCKER_CERT_PATH. Raises ForeignCredentialsError
    rather than overwrite what another authority issued, unless `force`; AuthorityError; OSError.
    """
    if not force:
        refuse_foreign(directory, authority)
    key = new_private_key()
    issued = authority.issue_user(key.public_key(), user, groups, now=now, life=life)
    make_private_directory(directory)
    write_all_private(
        [
            (directory / "ca.pem", certificate_pem(authority.root)),
            (directory / "key.pem", private_key_pem(key)),
            (directory / "cert.pem", issued.chain_pem),
        ]
    )
    return issued


def refuse_foreign(directory: Path, authority: Authority) -> None:
    """Raise ForeignCredentialsError if the directory holds credentials that this authority did not issue."""
    present = [name for name in ("ca.pem", "cert.pem", "key.pem") if _exists(directory / name)]
    if not present:
        return
    try:
        if "cert.pem" in present:
            ours = _is_issued_by(read_certificate(directory / "cert.pem"), authority.users)
        elif "ca.pem" in present:
            ours = read_certificate(directory / "ca.pem") == authority.root
        else:
            ours = False
    except AuthorityError:
        ours = False
    if not ours:
        raise ForeignCredentialsError(
            f"{directory} holds credentials of another authority ({', '.join(present)}); "
            "use another directory, or --force to overwrite them"
        )


def ensure_server_files(
    authority: Authority,
    directory: Path,
    defender: str,
    names: Sequence[str],
    *,
    exact: bool,
    now: datetime,
    life: timedelta,
) -> ServerOutcome:
    """Keep the defender's ``server.pem server.key client-ca.pem`` in the directory, issued anew when needed.

    Needed means: missing or damaged, of another authority or another defender, a third of its life or less
    left, or not for these names. With `exact` the names must be the very ones, else it is enough that all
    are covered, so that an address that went away does not make a new certificate. Raises AuthorityError,
    OSError.
    """
    chain, key_file = directory / "server.pem", directory / "server.key"
    clients = (directory / "client-ca.pem", certificate_pem(authority.users))
    reason = _reason_to_issue(authority, chain, key_file, defender, names, exact=exact, now=now)
    if not reason:
        if not _holds(*clients):
            write_all_private([clients])
        return ServerOutcome(read_certificate(chain), "")
    key = new_private_key()
    issued = authority.issue_server(key.public_key(), defender, names, now=now, life=life)
    make_private_directory(directory)
    write_all_private([(key_file, private_key_pem(key)), (chain, issued.chain_pem), clients])
    return ServerOutcome(issued.leaf, reason)


def ensure_controller_files(
    authority: Authority,
    directory: Path,
    controller: str,
    names: Sequence[str],
    *,
    now: datetime,
    life: timedelta = CONTROLLER_LIFE,
) -> ServerOutcome:
    """Keep the controller's ``controller.pem controller.key`` in the directory, issued anew when needed.

    Needed as for `ensure_server_files`; it is enough that all names are covered. The chain goes up to the
    root: a host that joins knows the fleet by the root's key. Raises AuthorityError, OSError.
    """
    chain, key_file = directory / "controller.pem", directory / "controller.key"
    reason = _reason_to_issue(authority, chain, key_file, controller, names, exact=False, now=now)
    if not reason:
        return ServerOutcome(read_certificate(chain), "")
    key = new_private_key()
    issued = authority.issue_controller(key.public_key(), controller, names, now=now, life=life)
    make_private_directory(directory)
    whole = issued.chain_pem + certificate_pem(authority.root)
    write_all_private([(key_file, private_key_pem(key)), (chain, whole)])
    return ServerOutcome(issued.leaf, reason)


def certificate_hosts(certificate: x509.Certificate) -> tuple[str, ...]:
    """Return the host names and addresses that a certificate carries; none if they cannot be read."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return ()
    hosts = names.get_values_for_type(x509.DNSName)
    return (*hosts, *(str(address) for address in names.get_values_for_type(x509.IPAddress)))


def _reason_to_issue(
    authority: Authority,
    chain: Path,
    key_file: Path,
    defender: str,
    names: Sequence[str],
    *,
    exact: bool,
    now: datetime,
) -> str:
    if not _exists(chain) and not _exists(key_file):
        return "there was none"
    try:
        certificate = read_certificate(chain)
        matching = certificate.public_key() == load_private_key(key_file).public_key()
    except (AuthorityError, CustodyError) as error:
        return str(error)
    except (ValueError, UnsupportedAlgorithm):
        return f"{chain}: its key is of an unknown kind"
    if not matching:
        return "key and certificate did not belong together"
    if not _is_issued_by(certificate, authority.fleet):
        return "it was of another authority"
    common_names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if [attribute.value for attribute in common_names] != [defender]:
        return "its name changed"
    try:
        wanted = {str(host) for host in server_names(names)}
    except ValueError as error:
        raise AuthorityError(str(error)) from error
    held = set(certificate_hosts(certificate))
    if not (wanted == held if exact else wanted <= held):
        return "the names changed"
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if end - now <= (end - begin) / 3:
        return "it expired" if now >= end else "less than a third of its life was left"
    return ""


def _is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _exists(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False
