"""What a bundle of each stream holds: built by the controller, read and checked by the defender.

Every stream carries its full state, so a content stands for itself and replaces the one before it. A content
that is read here can be put in force without another look at it: policies load, locks are locks, modes are
modes, authorities are certificates of authorities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cryptography import x509

from defender.contract.canonical import BundleError, Fields, digest_of
from defender.contract.errors import PolicyError
from defender.contract.local import LONGEST_DRAIN, MODES
from defender.contract.locks import Lock, LockError, LockSet, make_lock
from defender.contract.policy import load_policy
from defender.contract.trust import LOCKS, MAX_ROOTS, MODE, POLICY, TRUST

MAX_LOCKS: Final = 100_000
#: Most authorities of one kind, and characters of one's PEM.
MAX_AUTHORITIES: Final = 64
MAX_PEM: Final = 16 * 1024
#: Most characters of a policy's name and of its text; the reader of policies has a limit in bytes.
MAX_NAME: Final = 255
MAX_POLICY: Final = 1024 * 1024

_KINDS: Final = ("fleet", "root", "user")
_LOCK: Final = frozenset({"issuer", "kind", "value"})


@dataclass(frozen=True, slots=True)
class PolicyContent:
    """A policy's name in the fleet, and its YAML text, which loads."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class LocksContent:
    """All locks in force, in look-up form."""

    locks: LockSet


@dataclass(frozen=True, slots=True)
class ModeContent:
    """Where a defender shall listen: one of `MODES`.

    `drain` is the limit in seconds for what runs on the listeners that go, 0 for none, None for the
    defender's own setting.
    """

    listener: str
    drain: int | None = None


@dataclass(frozen=True, slots=True)
class TrustContent:
    """The authorities of the fleet as PEM texts, and the SHA-256 of each root envelope that goes with them.

    `root` are the roots of certificates, `fleet` and `user` the intermediates that issue certificates of
    defenders and controllers, and of users. None is in another's list.
    """

    documents: tuple[bytes, ...]
    root: tuple[str, ...]
    fleet: tuple[str, ...]
    user: tuple[str, ...]


Content = PolicyContent | LocksContent | ModeContent | TrustContent


def policy_content(name: str, text: str) -> dict[str, Any]:
    """The content of a policy bundle."""
    return {"name": name, "text": text}


def locks_content(locks: Iterable[Lock]) -> dict[str, Any]:
    """The content of a locks bundle: all of them, sorted."""
    return {
        "locks": [
            {"kind": lock.kind, "value": lock.value, "issuer": lock.issuer} for lock in sorted(set(locks))
        ]
    }


def mode_content(listener: str, drain: int | None = None) -> dict[str, Any]:
    """The content of a mode bundle; `drain` as in `ModeContent`."""
    return {"listener": listener, "drain": drain}


def trust_content(
    documents: Sequence[bytes], *, root: Sequence[str], fleet: Sequence[str], user: Sequence[str]
) -> dict[str, Any]:
    """The content of a trust bundle; `documents` are the SHA-256 of the root envelopes sent before it."""
    return {
        "documents": [digest.hex() for digest in documents],
        "authorities": {"root": list(root), "fleet": list(fleet), "user": list(user)},
    }


def read_content(stream: str, value: Mapping[str, Any]) -> Content:
    """Check a content and return what it says.

    Raises BundleError `content-refused`; the detail holds what a person needs to repair it.
    """
    try:
        return _READERS[stream](value)
    except BundleError as error:
        raise BundleError("content-refused", error.detail) from None


def _policy(value: Mapping[str, Any]) -> PolicyContent:
    fields = Fields(value, "the policy", ("name", "text"))
    name, text = fields.line("name", MAX_NAME, 1), fields.text("text", MAX_POLICY, 1)
    try:
        load_policy(text, name)
    except PolicyError as error:
        raise BundleError("content-refused", "; ".join(str(error).splitlines())) from None
    return PolicyContent(name, text)


def _locks(value: Mapping[str, Any]) -> LocksContent:
    fields = Fields(value, "the locks", ("locks",))
    listed = fields.raw("locks")
    if not isinstance(listed, list) or len(listed) > MAX_LOCKS:
        raise fields.error("locks", f"is not a list of at most {MAX_LOCKS} items")
    locks: set[Lock] = set()
    for number, entry in enumerate(listed):
        # Without `Fields`, which would make 100,000 objects and names for nothing.
        if not isinstance(entry, dict) or entry.keys() != _LOCK or not all(map(_is_text, entry.values())):
            raise fields.error(f"locks[{number}]", "is not an object of the texts kind, value and issuer")
        try:
            locks.add(make_lock(entry["kind"], entry["value"], entry["issuer"]))
        except LockError as error:
            raise fields.error(f"locks[{number}]", f"is none: {error}") from None
    return LocksContent(LockSet(frozenset(locks)))


def _is_text(value: object) -> bool:
    return type(value) is str


def _mode(value: Mapping[str, Any]) -> ModeContent:
    fields = Fields(value, "the mode", ("drain", "listener"))
    listener = fields.text("listener", 16)
    if listener not in MODES:
        raise fields.error("listener", f"is not one of {', '.join(MODES)}")
    return ModeContent(listener, fields.number_or_none("drain", 0, int(LONGEST_DRAIN)))


def _trust(value: Mapping[str, Any]) -> TrustContent:
    fields = Fields(value, "the trust", ("authorities", "documents"))
    kinds = Fields(fields.raw("authorities"), "the trust: authorities", _KINDS)
    found = {kind: kinds.items(kind, MAX_AUTHORITIES, _authority, least=1) for kind in _KINDS}
    listed = [der for kind in _KINDS for _, der in found[kind]]
    if len(set(listed)) != len(listed):
        raise BundleError("content-refused", "the trust: a certificate is listed twice")
    return TrustContent(
        fields.items("documents", MAX_ROOTS, digest_of),
        **{kind: tuple(pem for pem, _ in found[kind]) for kind in _KINDS},
    )


def _authority(value: Any, what: str) -> tuple[str, bytes]:
    """One certificate of an authority: its PEM, and its DER to compare by."""
    if not isinstance(value, str) or len(value) > MAX_PEM:
        raise BundleError("content-refused", f"{what} is not text of at most {MAX_PEM} characters")
    try:
        (certificate,) = x509.load_pem_x509_certificates(value.encode("ascii"))
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        is_authority = constraints.ca
    except Exception:  # noqa: BLE001 - cryptography raises ValueError, TypeError and types of its own
        raise BundleError(
            "content-refused", f"{what} is not the PEM of one authority's certificate"
        ) from None
    if not is_authority:
        raise BundleError("content-refused", f"{what} is a certificate, but not an authority's")
    return value, certificate.tbs_certificate_bytes


_READERS: Final[Mapping[str, Callable[[Mapping[str, Any]], Content]]] = {
    TRUST: _trust,
    POLICY: _policy,
    LOCKS: _locks,
    MODE: _mode,
}
