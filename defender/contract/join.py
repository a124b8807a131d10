"""What a host and the controller say to each other so that the host becomes a defender of the fleet.

One connection, one request, one answer, over TLS with the application protocol `ALPN`. Each is one frame: a
msgpack array of a word and a map. Keys that are not known are ignored, keys with a default may be missing;
anything else that is not as it should be is refused whole.

=============  ===========================================================
to controller  `JoinRequest` (a token), `RenewRequest` (an expired certificate and proof of its key)
from there     `Joined`, `Waiting` (an administrator has to agree first), `Refused`
=============  ===========================================================

A signing request (CSR) gives a public key and nothing else: the certificate's names are the controller's
choice. Labels come with the token and never from the host, since policy is chosen by them.

Pure. `check_joined` is what a host verifies before it believes an answer. Times are unix seconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from defender.contract.codec import CodecError, decode, encode
from defender.contract.errors import ContractError, IdentityError, one_line
from defender.contract.groups import check_name
from defender.contract.identity import ROLE_DEFENDER, check_trust_domain, spiffe_uri
from defender.contract.join_token import PIN_SIZE, SECRET_SIZE, JoinTokenError, check_token_id, pin_of

ALPN: Final = b"dfleet-join/1"
BINDING_LABEL: Final = b"EXPORTER-dfleet-join-1"
BINDING_SIZE: Final = 32
"""The TLS exporter (RFC 8446 section 7.5), without context: what ties a proof to one connection."""

MAX_REQUEST: Final = 16 * 1024
MAX_ANSWER: Final = 256 * 1024
"""Bytes of a frame's payload."""
MAX_CSR: Final = 4096
MAX_CERTIFICATE: Final = 16 * 1024
MAX_CHAIN: Final = 8
MAX_HOSTS: Final = 32
MAX_TRUST: Final = 128 * 1024
MAX_WORDS: Final = 1000
MAX_WAIT: Final = 3600
"""The longest time, in seconds, after which a host is told to come again."""

_MAX_ITEMS: Final = 256
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_CODE: Final = re.compile(r"[a-z][a-z0-9-]{0,39}")


class JoinError(ContractError):
    """A request or an answer that is not as it should be. `code` is fit for `Refused.code`."""

    def __init__(self, code: str, detail: str) -> None:
        self.code = code
        self.detail = detail
        super().__init__(code, detail)

    def __str__(self) -> str:
        return self.detail


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """A host that has a token.

    ``csr``: for the key towards the controller; ``server_csr``: for the one towards users, b"" if the host
    needs none. ``name``: what it calls itself. ``hosts``: host names and addresses that users reach it
    under. ``agent``: its version.
    """

    token: str
    secret: bytes = field(repr=False)
    name: str
    csr: bytes = field(repr=False)
    server_csr: bytes = field(default=b"", repr=False)
    hosts: tuple[str, ...] = ()
    agent: str = ""


@dataclass(frozen=True, slots=True)
class RenewRequest:
    """A defender whose certificate has expired. ``proof``: see `defender.contract.renewal`."""

    certificate: bytes = field(repr=False)
    proof: bytes = field(repr=False)
    csr: bytes = field(repr=False)
    server_csr: bytes = field(default=b"", repr=False)
    hosts: tuple[str, ...] = ()
    agent: str = ""


@dataclass(frozen=True, slots=True)
class Joined:
    """The host is a defender of the fleet. Certificates are in DER.

    ``chain``: its certificate towards the controller and the intermediate that signed it; ``server_chain``:
    the same towards users, () if it asked for none. ``roots``: of the fleet; ``fleet``: the intermediates
    that the controller's own certificate may come from. ``trust``: the first document of the bundles' trust,
    opaque here. ``left_out``: names of `JoinRequest.hosts` that the server certificate does not carry.
    """

    defender: str
    name: str
    trust_domain: str
    chain: tuple[bytes, ...] = field(repr=False)
    roots: tuple[bytes, ...] = field(repr=False)
    fleet: tuple[bytes, ...] = field(repr=False)
    server_chain: tuple[bytes, ...] = field(default=(), repr=False)
    trust: bytes = field(default=b"", repr=False)
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Waiting:
    """An administrator has to agree. The host asks again after ``retry_after`` seconds, with the same key."""

    retry_after: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """Not taken in. ``retry_after``: seconds after which it makes sense to ask again, 0: it does not."""

    code: str
    detail: str
    retry_after: int = 0


Request = JoinRequest | RenewRequest
Answer = Joined | Waiting | Refused


def encode_request(request: Request) -> bytes:
    """Return the payload of the frame; raises JoinError for what no controller would take."""
    fields: dict[str, Any] = {
        "csr": request.csr,
        "server_csr": request.server_csr,
        "hosts": list(request.hosts),
        "agent": request.agent,
    }
    if isinstance(request, JoinRequest):
        word = "join"
        fields |= {"token": request.token, "secret": request.secret, "name": request.name}
    else:
        word = "renew"
        fields |= {"certificate": request.certificate, "proof": request.proof}
    payload = encode([word, fields])
    decode_request(payload)
    return payload


def decode_request(payload: bytes) -> Request:
    """Read a request; raises JoinError (codes ``request``, ``name``, ``csr``). No key is looked at yet."""
    word, got = _opened(payload, MAX_REQUEST)
    common = {
        "csr": got.binary("csr", 1, MAX_CSR),
        "server_csr": got.binary("server_csr", 0, MAX_CSR, b""),
        "hosts": got.texts("hosts", MAX_HOSTS, 255),
        "agent": got.text("agent", 64, ""),
    }
    if word == "join":
        token, name = got.text("token", 64), got.text("name", 256)
        try:
            check_token_id(token)
        except JoinTokenError as error:
            raise JoinError("request", str(error)) from None
        check_defender_name(name)
        return JoinRequest(
            token=token, secret=got.binary("secret", SECRET_SIZE, SECRET_SIZE), name=name, **common
        )
    if word == "renew":
        return RenewRequest(
            certificate=got.binary("certificate", 1, MAX_CERTIFICATE),
            proof=got.binary("proof", 1, 256),
            **common,
        )
    raise JoinError("request", f"{one_line(word[:40])!r} is no request")


def encode_answer(answer: Answer) -> bytes:
    """Return the payload of the frame; raises JoinError for what no host would take."""
    if isinstance(answer, Joined):
        payload = encode(
            [
                "joined",
                {
                    "defender": answer.defender,
                    "name": answer.name,
                    "trust_domain": answer.trust_domain,
                    "chain": list(answer.chain),
                    "roots": list(answer.roots),
                    "fleet": list(answer.fleet),
                    "server_chain": list(answer.server_chain),
                    "trust": answer.trust,
                    "left_out": list(answer.left_out),
                },
            ]
        )
    elif isinstance(answer, Waiting):
        payload = encode(["waiting", {"retry_after": answer.retry_after, "detail": answer.detail}])
    else:
        payload = encode(
            [
                "refused",
                {"code": answer.code, "detail": answer.detail, "retry_after": answer.retry_after},
            ]
        )
    decode_answer(payload)
    return payload


def decode_answer(payload: bytes) -> Answer:
    """Read an answer; raises JoinError (code ``answer``). No certificate is looked at yet: `check_joined`."""
    try:
        word, got = _opened(payload, MAX_ANSWER)
        if word == "waiting":
            return Waiting(got.number("retry_after", 1, MAX_WAIT), got.text("detail", MAX_WORDS, ""))
        if word == "refused":
            code = got.text("code", 40)
            if not _CODE.fullmatch(code):
                raise JoinError("answer", "its code is no code")
            return Refused(code, got.text("detail", MAX_WORDS, ""), got.number("retry_after", 0, MAX_WAIT, 0))
        if word != "joined":
            raise JoinError("answer", f"{one_line(word[:40])!r} is no answer")
        joined = Joined(
            defender=got.text("defender", 36),
            name=got.text("name", 256),
            trust_domain=got.text("trust_domain", 255),
            chain=got.certificates("chain", 2),
            roots=got.certificates("roots", 1),
            fleet=got.certificates("fleet", 1),
            server_chain=got.certificates("server_chain", 0),
            trust=got.binary("trust", 0, MAX_TRUST, b""),
            left_out=got.texts("left_out", MAX_HOSTS, 255),
        )
        if not _UUID.fullmatch(joined.defender):
            raise JoinError("answer", "the defender's id is no UUID")
        check_defender_name(joined.name)
        check_trust_domain(joined.trust_domain)
        return joined
    except IdentityError as error:
        raise JoinError("answer", error.detail) from None
    except JoinError as error:
        raise JoinError("answer", error.detail) from None


def check_defender_name(name: str) -> None:
    """Raise JoinError (code ``name``) unless the text can be a defender's name.

    It is a common name, and no pattern: selections and locks name defenders.
    """
    try:
        check_name(name, "cn", "defender's name")
    except IdentityError as error:
        raise JoinError("name", error.detail) from None
    if set(name) & {"*", "?"} or name.startswith("-"):
        raise JoinError("name", "a defender's name has no '*' and no '?' and does not begin with '-'")
    if len(name.encode()) > 64:
        raise JoinError("name", "a defender's name takes at most 64 bytes of UTF-8; set a shorter `name`")


def read_csr(csr: bytes) -> ec.EllipticCurvePublicKey:
    """Return the P-256 key of a signing request that its key has signed; raises JoinError (code ``csr``).

    Whatever else the request says is not looked at.
    """
    if len(csr) > MAX_CSR:
        raise JoinError("csr", f"a signing request has at most {MAX_CSR} bytes")
    try:
        request = x509.load_der_x509_csr(csr)
        key = request.public_key()
        signed = request.is_signature_valid
    except Exception as error:  # noqa: BLE001 - ValueError, UnsupportedAlgorithm and types of OpenSSL's
        raise JoinError("csr", f"the signing request cannot be read: {one_line(str(error))[:200]}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise JoinError("csr", "the key of the signing request is not a P-256 key")
    if not signed:
        raise JoinError("csr", "the signing request is not signed with its own key")
    return key


def check_joined(
    answer: Joined,
    *,
    key: ec.EllipticCurvePublicKey,
    server_key: ec.EllipticCurvePublicKey | None,
    pins: frozenset[bytes],
    now: float | None,
) -> None:
    """Raise JoinError (code ``answer``) unless a host may believe this answer.

    What holds then: one of the roots has a public key of ``pins`` (see `join_token.pin_of`) and is of that
    trust domain, each fleet intermediate and both chains come from it, both leaves are for our own keys and
    say that we are the defender of that id in that trust domain, and all of them are in time. Without
    ``now``, for what was checked and stored before, time is left out.
    """
    try:
        roots = _loaded(answer.roots)
        anchors = [root for root in roots if pin_of(root) in pins]
        if not anchors or any(len(pin) != PIN_SIZE for pin in pins):
            raise JoinError("answer", "none of its roots is the one that this host was told to trust")
        for anchor in anchors:
            _check_issued(anchor, anchor, now)
            if _uris(anchor) != [f"spiffe://{answer.trust_domain}"]:
                raise JoinError("answer", f"its root is not of the trust domain {answer.trust_domain!r}")
        for fleet in _loaded(answer.fleet):
            _check_issued_by_any(fleet, anchors, now)
        identity = spiffe_uri(answer.trust_domain, ROLE_DEFENDER, answer.defender)
        _check_chain(answer.chain, anchors, key, identity, now)
        if server_key is not None:
            if not answer.server_chain:
                raise JoinError("answer", "it has no certificate towards users")
            _check_chain(answer.server_chain, anchors, server_key, identity, now)
    except JoinError:
        raise
    except IdentityError as error:
        raise JoinError("answer", error.detail) from None
    except Exception as error:  # noqa: BLE001 - cryptography raises types of its own for what it cannot read
        detail = one_line(str(error))[:200] or type(error).__name__
        raise JoinError("answer", f"its certificates cannot be used: {detail}") from None


def _check_chain(
    chain: Sequence[bytes],
    anchors: Sequence[x509.Certificate],
    key: ec.EllipticCurvePublicKey,
    identity: str,
    now: float | None,
) -> None:
    leaf, *issuers = _loaded(chain)
    if leaf.public_key() != key:
        raise JoinError("answer", "its certificate is not for this host's key")
    if _uris(leaf) != [identity]:
        raise JoinError("answer", f"its certificate is not for {identity}")
    below = leaf
    for issuer in issuers:
        _check_issued(below, issuer, now)
        below = issuer
    _check_issued_by_any(below, anchors, now)


def _check_issued_by_any(
    certificate: x509.Certificate, anchors: Sequence[x509.Certificate], now: float | None
) -> None:
    for anchor in anchors:
        if certificate.issuer == anchor.subject:
            _check_issued(certificate, anchor, now)
            return
    raise JoinError("answer", "one of its certificates does not come from the root")


def _check_issued(certificate: x509.Certificate, issuer: x509.Certificate, now: float | None) -> None:
    try:
        certificate.verify_directly_issued_by(issuer)
    except Exception:  # noqa: BLE001 - ValueError, TypeError, InvalidSignature
        raise JoinError("answer", "one of its certificates does not come from the next one") from None
    constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
    if not constraints.ca:
        raise JoinError("answer", "one of its certificates was signed by no authority")
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now is not None and not begin.timestamp() <= now <= end.timestamp():
        raise JoinError(
            "answer",
            f"one of its certificates is valid from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC: "
            "is this host's clock right?",
        )


def _uris(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _loaded(certificates: Sequence[bytes]) -> list[x509.Certificate]:
    return [x509.load_der_x509_certificate(each) for each in certificates]


# Reading a map whose every field is checked.


def _opened(payload: bytes, limit: int) -> tuple[str, _Fields]:
    if len(payload) > limit:
        raise JoinError("request", f"it has {len(payload)} bytes; at most {limit} are taken")
    try:
        value = decode(payload, max_items=_MAX_ITEMS, max_depth=8)
    except CodecError as error:
        raise JoinError("request", f"it cannot be read: {error}") from None
    if not isinstance(value, list) or len(value) != 2:
        raise JoinError("request", "it is no array of a word and a map")
    word, fields = value
    if not isinstance(word, str) or not isinstance(fields, dict):
        raise JoinError("request", "it is no array of a word and a map")
    return word, _Fields(fields)


class _Fields:
    """A map whose values are taken out one by one, each of the right kind and size."""

    def __init__(self, fields: Mapping[str, object]) -> None:
        self._fields = fields

    def binary(self, key: str, least: int, most: int, default: bytes | None = None) -> Any:
        value = self._get(key, default)
        if type(value) is not bytes or not (least <= len(value) <= most or value == default):
            raise JoinError("request", f"`{key}` must be {least} to {most} bytes")
        return value

    def text(self, key: str, most: int, default: str | None = None) -> str:
        value = self._get(key, default)
        if type(value) is not str or len(value) > most or not (value or default == ""):
            raise JoinError("request", f"`{key}` must be a text of at most {most} characters")
        if not value.isprintable():
            raise JoinError("request", f"`{key}` has characters that do not print")
        return value

    def texts(self, key: str, most: int, length: int) -> Any:
        value = self._get(key, [])
        if type(value) is not list or len(value) > most:
            raise JoinError("request", f"`{key}` must be a list of at most {most} texts")
        return tuple(_Fields({key: each}).text(key, length) for each in value)

    def number(self, key: str, least: int, most: int, default: int | None = None) -> int:
        value = self._get(key, default)
        if type(value) is not int or not least <= value <= most:
            raise JoinError("request", f"`{key}` must be a number from {least} to {most}")
        return value

    def certificates(self, key: str, least: int) -> tuple[bytes, ...]:
        value = self._get(key, None if least else [])
        if type(value) is not list or not least <= len(value) <= MAX_CHAIN:
            raise JoinError("answer", f"`{key}` must be a list of {least} to {MAX_CHAIN} certificates")
        return tuple(_Fields({key: each}).binary(key, 1, MAX_CERTIFICATE) for each in value)

    def _get(self, key: str, default: object) -> object:
        value = self._fields.get(key, default)
        if value is None:
            raise JoinError("request", f"`{key}` is missing")
        return value
