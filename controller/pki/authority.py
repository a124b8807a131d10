"""The fleet's own certificate authority: a root and two intermediates, one for users, one for the fleet.

What holds:

* The user intermediate signs users only, the fleet intermediate controllers and defenders only. Neither is
  ever in the other's trust set, so a defender's certificate opens no Engine and a user's impersonates no
  defender.
* The root signs the intermediates and nothing else; its key may be taken off line once they exist.
* A caller brings a public key. Names come from the arguments, never from a signing request.
* Every certificate has exactly one URI name, exactly one role, and (leaves) exactly one extended key usage.
* A leaf is never valid before or after the intermediate that signed it.

Times are aware datetimes in UTC and arrive as arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv6Address

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controller.pki.custody import Custody, Signer
from controller.pki.names import server_names
from defender.contract.errors import IdentityError
from defender.contract.groups import check_name
from defender.contract.identity import (
    GROUPS_OID,
    ROLE_CONTROLLER,
    ROLE_DEFENDER,
    ROLE_USER,
    check_trust_domain,
    check_user_name,
    encode_groups,
    spiffe_uri,
    stable_id,
    user_id,
)
from defender.contract.renewal import LIFE

ROOT = "root"
USER_CA = "user-ca"
FLEET_CA = "fleet-ca"

ROOT_LIFE = timedelta(days=3653)
INTERMEDIATE_LIFE = timedelta(days=1826)
USER_LIFE = timedelta(hours=8)
USER_LIFE_ADVISED = timedelta(hours=24)
"""Beyond this a certificate outlives what its owner's groups were when it was issued."""
USER_LIFE_MAX = timedelta(days=365)
SERVER_LIFE = timedelta(days=365)
DEFENDER_LIFE = timedelta(seconds=LIFE)
"""Of a defender that a controller keeps: both its certificates are renewed over the channel."""
CONTROLLER_LIFE = timedelta(days=90)
BACKDATING = timedelta(minutes=5)
"""Leaves begin this long ago, for verifiers whose clock is late."""

MAX_COMMON_NAME = 64
"""RFC 5280 appendix A, ub-common-name, counted in bytes of UTF-8 to be safe with every reader.

Longer ones, from authorities that are not ours, are read.
"""


class AuthorityError(Exception):
    """What was asked for cannot be issued, or the authority is unusable. The text is fit for people."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and the intermediate that signed it."""

    leaf: x509.Certificate
    issuer: x509.Certificate

    @property
    def chain_pem(self) -> bytes:
        """The leaf and its intermediate in PEM, in the order that TLS sends them."""
        return certificate_pem(self.leaf) + certificate_pem(self.issuer)

    @property
    def not_after(self) -> datetime:
        """The last moment of the leaf."""
        return self.leaf.not_valid_after_utc


class Authority:
    """A root and its two intermediates, with the custody of their keys.

    Built by `create`, or from what was stored; `check` says whether the parts fit together. `keys` are the
    names of the users' and the fleet's key in the custody; `more_users` and `more_fleet` are intermediates
    that do not sign and are trusted all the same (`controller.pki.succession`).
    """

    def __init__(
        self,
        trust_domain: str,
        *,
        root: x509.Certificate,
        users: x509.Certificate,
        fleet: x509.Certificate,
        custody: Custody,
        keys: tuple[str, str] = (USER_CA, FLEET_CA),
        more_users: Sequence[x509.Certificate] = (),
        more_fleet: Sequence[x509.Certificate] = (),
    ) -> None:
        self.trust_domain = trust_domain
        self.root = root
        self.users = users
        self.fleet = fleet
        self.all_users = (users, *more_users)
        """The intermediates whose users are let in: the one that signs, and one that did or will."""
        self.all_fleet = (fleet, *more_fleet)
        """The same of controllers and defenders."""
        self._custody = custody
        self._users_key, self._fleet_key = keys

    @classmethod
    def create(cls, trust_domain: str, custody: Custody, now: datetime) -> Authority:
        """Make a new authority; raises AuthorityError for a bad trust domain, CustodyError for taken keys."""
        try:
            check_trust_domain(trust_domain)
        except IdentityError as error:
            raise AuthorityError(error.detail) from error
        root_signer = custody.create(ROOT)
        root_name = _authority_name("root", root_signer)
        builder = _authority_builder(trust_domain, root_name, root_name, root_signer.public_key, 1)
        root = root_signer.sign(_valid(builder, now - BACKDATING, now + ROOT_LIFE))
        intermediates = []
        for key, words in ((USER_CA, "users"), (FLEET_CA, "fleet")):
            signer = custody.create(key)
            intermediates.append(sign_intermediate(trust_domain, root, root_signer, signer, words, now))
        return cls(trust_domain, root=root, users=intermediates[0], fleet=intermediates[1], custody=custody)

    def check(self, now: datetime) -> None:
        """Raise AuthorityError for the first thing that is wrong with the authority, CustodyError for keys.

        The root's key may be missing: it is needed for new intermediates only.
        """
        home = f"spiffe://{self.trust_domain}"
        for words, certificate, issuer, key in (
            ("root", self.root, self.root, ROOT),
            ("user", self.users, self.root, self._users_key),
            ("fleet", self.fleet, self.root, self._fleet_key),
            *(("other user", each, self.root, "") for each in self.all_users[1:]),
            *(("other fleet", each, self.root, "") for each in self.all_fleet[1:]),
        ):
            try:
                certificate.verify_directly_issued_by(issuer)
                constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
                names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound) as error:
                raise AuthorityError(f"the {words} certificate was not signed by the root") from error
            if not constraints.ca:
                raise AuthorityError(f"the {words} certificate is not an authority's")
            if names.get_values_for_type(x509.UniformResourceIdentifier) != [home]:
                raise AuthorityError(
                    f"the {words} certificate is not of the trust domain {self.trust_domain!r}"
                )
            _check_current(words, certificate, now)
            if (
                key
                and (key != ROOT or self._custody.holds(ROOT))
                and (_spki(self._custody.signer(key).public_key) != _spki(certificate.public_key()))
            ):
                raise AuthorityError(f"the {words} key does not belong to the {words} certificate")

    def issue_user(
        self,
        public_key: ec.EllipticCurvePublicKey,
        user: str,
        groups: Iterable[str],
        *,
        now: datetime,
        life: timedelta = USER_LIFE,
        idp: str = "",
        sid: str = "",
        mfa: bool = False,
        orig_exp: int | None = None,
    ) -> Issued:
        """Return a client certificate for a user; raises AuthorityError for names that it cannot carry.

        A life beyond the intermediate's end is cut to it: read `Issued.not_after`. The group extension is
        left out when it would say nothing.
        """
        try:
            check_user_name(user)
            identity = spiffe_uri(self.trust_domain, ROLE_USER, user_id(self.trust_domain, user))
            groups = tuple(groups)
            claims = encode_groups(groups, idp=idp, sid=sid, mfa=mfa, orig_exp=orig_exp)
        except IdentityError as error:
            raise AuthorityError(error.detail) from error
        builder = self._leaf(self.users, public_key, user, [x509.UniformResourceIdentifier(identity)])
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        if groups or idp or sid or mfa or orig_exp is not None:
            extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(GROUPS_OID), claims)
            builder = builder.add_extension(extension, critical=False)
        return self._sign(self._users_key, "user", self.users, builder, now, life)

    def issue_server(
        self,
        public_key: ec.EllipticCurvePublicKey,
        defender: str,
        names: Iterable[str],
        *,
        now: datetime,
        life: timedelta = SERVER_LIFE,
        identifier: str | None = None,
    ) -> Issued:
        """Return a defender's certificate towards users, for these host names and IP addresses.

        ``identifier``: the defender's id in its fleet; a defender without a controller has the stable one of
        its name. Raises AuthorityError for names that it cannot carry and for none.
        """
        return self._issue_server(public_key, ROLE_DEFENDER, identifier, defender, names, now, life)

    def issue_controller(
        self,
        public_key: ec.EllipticCurvePublicKey,
        controller: str,
        names: Iterable[str],
        *,
        now: datetime,
        life: timedelta = CONTROLLER_LIFE,
        identifier: str | None = None,
    ) -> Issued:
        """Return a controller's certificate, for its channel and its HTTPS port, as `issue_server` does."""
        return self._issue_server(public_key, ROLE_CONTROLLER, identifier, controller, names, now, life)

    def issue_defender_client(
        self,
        public_key: ec.EllipticCurvePublicKey,
        identifier: str,
        name: str,
        *,
        now: datetime,
        life: timedelta = DEFENDER_LIFE,
    ) -> Issued:
        """Return a defender's certificate towards its controller; it opens no Engine and serves no user.

        ``identifier``: the defender's id in its fleet. Raises AuthorityError for a name or id that it cannot
        carry.
        """
        identity = self._identity(ROLE_DEFENDER, identifier, name)
        builder = self._leaf(self.fleet, public_key, name, [x509.UniformResourceIdentifier(identity)])
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        return self._sign(self._fleet_key, "fleet", self.fleet, builder, now, life)

    def _issue_server(
        self,
        public_key: ec.EllipticCurvePublicKey,
        role: str,
        identifier: str | None,
        name: str,
        names: Iterable[str],
        now: datetime,
        life: timedelta,
    ) -> Issued:
        identity = self._identity(role, identifier, name)
        try:
            hosts = server_names(names)
        except ValueError as error:
            raise AuthorityError(str(error)) from error
        if not hosts:
            raise AuthorityError("a server certificate needs at least one host name or IP address")
        alternatives: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity)]
        for host in hosts:
            if isinstance(host, (IPv4Address, IPv6Address)):
                alternatives.append(x509.IPAddress(host))
            else:
                alternatives.append(x509.DNSName(host))
        builder = self._leaf(self.fleet, public_key, name, alternatives)
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        return self._sign(self._fleet_key, "fleet", self.fleet, builder, now, life)

    def _identity(self, role: str, identifier: str | None, name: str) -> str:
        try:
            check_name(name, "cn", f"{role}'s name")
            if identifier is None:
                identifier = stable_id(self.trust_domain, role, name)
            return spiffe_uri(self.trust_domain, role, identifier)
        except IdentityError as error:
            raise AuthorityError(error.detail) from error

    def _leaf(
        self,
        issuer: x509.Certificate,
        public_key: ec.EllipticCurvePublicKey,
        common_name: str,
        alternatives: list[x509.GeneralName],
    ) -> x509.CertificateBuilder:
        size = len(common_name.encode("utf-8"))
        if size > MAX_COMMON_NAME:
            raise AuthorityError(
                f"the name {common_name[:20] + '...'!r} takes {size} bytes of UTF-8; "
                f"a certificate's common name holds at most {MAX_COMMON_NAME}"
            )
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
            .issuer_name(issuer.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(_issuer_key(issuer), critical=False)
        )

    def _sign(
        self,
        key: str,
        words: str,
        issuer: x509.Certificate,
        builder: x509.CertificateBuilder,
        now: datetime,
        life: timedelta,
    ) -> Issued:
        _check_current(words, issuer, now)
        if life <= timedelta(0):
            raise AuthorityError("a certificate must live longer than no time")
        begin = max(now - BACKDATING, issuer.not_valid_before_utc)
        end = min(now + life, issuer.not_valid_after_utc)
        return Issued(self._custody.signer(key).sign(_valid(builder, begin, end)), issuer)


def sign_intermediate(
    trust_domain: str, root: x509.Certificate, root_signer: Signer, signer: Signer, words: str, now: datetime
) -> x509.Certificate:
    """Return an intermediate's certificate for the key of `signer`; `words` name it to people."""
    name = _authority_name(words, signer)
    builder = _authority_builder(trust_domain, name, root.subject, signer.public_key, 0)
    builder = builder.add_extension(_issuer_key(root), critical=False)
    end = min(now + INTERMEDIATE_LIFE, root.not_valid_after_utc)
    return root_signer.sign(_valid(builder, now - BACKDATING, end))


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Return the certificate in PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def _authority_name(words: str, signer: Signer) -> x509.Name:
    # The digest keeps the names of two installations apart: locks name an issuer and a serial number, and
    # clients choose their certificate by the issuer's name.
    digest = x509.SubjectKeyIdentifier.from_public_key(signer.public_key).digest.hex()[:8]
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Defender Fleet"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Defender Fleet {words} {digest}"),
        ]
    )


def _authority_builder(
    trust_domain: str,
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    path_length: int,
) -> x509.CertificateBuilder:
    home = x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectAlternativeName([home]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _issuer_key(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _valid(builder: x509.CertificateBuilder, begin: datetime, end: datetime) -> x509.CertificateBuilder:
    # Certificates count whole seconds.
    return builder.not_valid_before(begin.replace(microsecond=0)).not_valid_after(end.replace(microsecond=0))


def _check_current(words: str, certificate: x509.Certificate, now: datetime) -> None:
    if now < certificate.not_valid_before_utc:
        raise AuthorityError(
            f"the {words} certificate begins on {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC: "
            "is this host's clock right?"
        )
    if now >= certificate.not_valid_after_utc:
        raise AuthorityError(
            f"the {words} certificate ended on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        )


def _spki(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise AuthorityError("an authority's key is not an elliptic curve key")
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
