"""How a host becomes a defender of a fleet, stays one, and comes back after a long absence.

* First start, with a join token: keys are made here, the controller is asked, its answer is verified against
  the root that the token pins, and kept (`defender.channel.store`).
* Every other start needs no token and no network: the membership is read from the disk.
* In time, over the channel: `Enrollment.ask_renewal` gives the signing requests for RENEW, and
  `Enrollment.renewed` puts the new certificates in place; only then is COMMIT said.
* After its certificate has expired, for 30 days: by proof of the old key. Later: with a new token.

A token that is given again at each start is used once: one with the same id as the one that let us in is not
looked at. Another one means that somebody wants the host to join anew (its key was copied, its name has
changed); where that fails, a membership that still holds goes on.

The network is one callable, `Ask`; `defender.channel.joining.ask` is one. No secret is logged.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from hashlib import sha256
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from defender.channel.store import Member, MembershipError, MemberStore, NewKeys, ders_of
from defender.contract.errors import ContractError, one_line
from defender.contract.join import (
    Joined,
    JoinError,
    JoinRequest,
    RenewRequest,
    Waiting,
    check_joined,
    decode_answer,
    encode_request,
)
from defender.contract.join_token import JoinToken, JoinTokenError, parse_token, pin_of
from defender.contract.renewal import GRACE, proof_text

Ask = Callable[[frozenset[bytes], Callable[[bytes], bytes]], Deferred[bytes]]
"""Asks the controller under a root of these pins; the request is made from the connection's binding."""

UNREACHABLE: Final = "unreachable"


class EnrollmentError(ContractError):
    """This host is no defender of a fleet, and why; the text is fit for people.

    ``code``: of `defender.contract.join.Refused`, or ``unreachable``, ``answer``, ``no-token``, ``fleet``,
    ``expired``. ``retry_after``: seconds after which it makes sense to try again, None if it does not.
    """

    def __init__(self, code: str, detail: str, retry_after: float | None = None) -> None:
        self.code = code
        self.detail = detail
        self.retry_after = retry_after
        super().__init__(code, detail)

    def __str__(self) -> str:
        return self.detail


class Step(Enum):
    """What a start has to do."""

    GO_ON = "go on"
    JOIN = "join"
    RENEW = "renew with the old key"


def read_token(option: str) -> JoinToken:
    """Return the token of ``--join-token``: the token itself, or ``@PATH`` of a file that holds it.

    The command line of a process is everybody's to read; a file is not. Raises JoinTokenError, whose message
    holds nothing of the token.
    """
    if not option.startswith("@"):
        return parse_token(option)
    path = option[1:]
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return parse_token(file.read(4096))
    except OSError as error:
        raise JoinTokenError(f"{path}: {error.strerror}") from None


def next_step(member: Member | None, token: JoinToken | None, now: float) -> Step:
    """Say what a start has to do; raises EnrollmentError where nothing can be done. ``now``: unix seconds."""
    if member is None:
        if token is None:
            raise EnrollmentError(
                "no-token",
                "this host is no defender of a fleet yet: start it with --join-token; "
                "`defenderctl tokens create` makes one",
            )
        return Step.JOIN
    if token is not None and token.pin not in member.pins:
        raise EnrollmentError(
            "fleet",
            f"this host is a defender of the fleet {member.trust_domain!r}, and the join token is of another "
            "one; to change fleets, remove its membership first",
        )
    if token is not None and token.id != member.token:
        return Step.JOIN
    if now <= member.not_after:
        return Step.GO_ON
    if now <= member.not_after + GRACE:
        return Step.RENEW
    raise EnrollmentError(
        "expired",
        f"this host was away for more than {GRACE // 86_400} days after its certificate had expired: "
        "start it with a new --join-token; `defenderctl tokens create --name` makes one for its name",
    )


class Enrollment:
    """Makes this host a member and keeps it one."""

    log = Logger()

    def __init__(
        self,
        store: MemberStore,
        reactor: Any,
        ask: Ask,
        *,
        name: str,
        hosts: tuple[str, ...] = (),
        agent: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``name``: what this host calls itself. ``hosts``: names and addresses that users reach it under.
        ``agent``: our version. ``clock``: unix seconds.
        """
        self._store = store
        self._reactor = reactor
        self._ask = ask
        self._name = name
        self._hosts = hosts
        self._agent = agent
        self._clock = clock
        self.waiting = ""  # the controller's words while somebody there has to agree

    def begin(self, token: JoinToken | None = None) -> Deferred[Member]:
        """Fire with our membership: the stored one, or one that is asked for now.

        Where an administrator has to agree it asks again until one did. Fails with EnrollmentError,
        MembershipError, or CancelledError.
        """
        return Deferred.fromCoroutine(self._begin(token))

    def ask_renewal(self) -> NewKeys:
        """Return the keys whose signing requests RENEW carries, the same ones until they are settled.

        Raises MembershipError.
        """
        return self._store.new_keys()

    def renewed(self, member: Member, chain: tuple[bytes, ...], server_chain: tuple[bytes, ...]) -> Member:
        """Verify what RENEWED brought, put it in place and return it: then COMMIT may be said.

        Raises EnrollmentError if it is not right, MembershipError if it cannot be kept: then the old
        certificate goes on.
        """
        answer = replace(member.answer, chain=chain, server_chain=server_chain or member.answer.server_chain)
        keys = self._store.new_keys()
        if not server_chain:
            keys = NewKeys(keys.key, member.keys.server_key)
        return self._take(answer, keys, member.pins, member.token)

    def trusted(self, member: Member, fleet: tuple[str, ...], *, beside: bool = False) -> Member:
        """Have the controller's certificate come from these fleet intermediates (PEM), from now on and after
        a restart; returns the membership with them. `beside`: and from those that it could come from before.

        Raises EnrollmentError if one does not come from the root that this host was told to trust,
        MembershipError if it cannot be kept: then the ones before go on.
        """
        try:
            found = ders_of(fleet)
        except ValueError:
            raise EnrollmentError("answer", "an authority of the fleet is no certificate in PEM") from None
        if beside:
            found = tuple(dict.fromkeys((*member.answer.fleet, *found)))
        if set(found) == set(member.answer.fleet):
            return member
        answer = replace(member.answer, fleet=found)
        try:
            # Whoever has the key of bundles alone makes no controller.
            check_joined(
                answer, key=member.keys.key.public_key(), server_key=None, pins=member.pins, now=None
            )
        except JoinError as error:
            raise EnrollmentError(
                "answer", f"the fleet's authorities cannot be trusted: {error.detail}"
            ) from None
        member = replace(member, answer=answer)
        self._store.save(member)
        self.log.info("the fleet's authorities are {count} now", count=len(found))
        return member

    async def _begin(self, token: JoinToken | None) -> Member:
        member = self._store.load()
        step = next_step(member, token, self._clock())
        if step is Step.RENEW and member is not None:
            return await self._renew_expired(member)
        if step is Step.JOIN and token is not None:
            try:
                return await self._join(token, member)
            except EnrollmentError as error:
                if member is None or self._clock() > member.not_after:
                    raise
                self.log.warn(
                    "did not join anew: {reason}; going on as {name} of {fleet}",
                    reason=str(error),
                    name=member.name,
                    fleet=member.trust_domain,
                )
        assert member is not None, "no step is left without one"
        self.log.info(
            "defender {name} ({defender}) of the fleet {fleet}",
            name=member.name,
            defender=member.defender,
            fleet=member.trust_domain,
        )
        return member

    async def _join(self, token: JoinToken, member: Member | None) -> Member:
        keys = self._store.new_keys()
        request = JoinRequest(
            token=token.id,
            secret=token.secret,
            name=self._name,
            csr=keys.csr,
            server_csr=keys.server_csr,
            hosts=self._hosts,
            agent=self._agent,
        )
        spki = keys.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.log.info(
            "asking to join as {name}, with the token {token} and the key {key}",
            name=self._name,
            token=token.id,
            key=sha256(spki).hexdigest(),  # whoever approves this host compares it
        )
        pins = frozenset({token.pin})
        patient = member is None or self._clock() > member.not_after
        answer = await self._asked(pins, lambda binding: encode_request(request), patient=patient)
        return self._take(answer, keys, pins, token.id)

    async def _renew_expired(self, member: Member) -> Member:
        keys = self._store.new_keys()
        csr, server_csr, old = keys.csr, keys.server_csr, member.answer.chain[0]

        def build(binding: bytes) -> bytes:
            text = proof_text(binding, old, csr, server_csr)
            return encode_request(
                RenewRequest(
                    certificate=old,
                    proof=member.keys.key.sign(text, ec.ECDSA(hashes.SHA256())),
                    csr=csr,
                    server_csr=server_csr,
                    hosts=self._hosts,
                    agent=self._agent,
                )
            )

        self.log.info("the certificate of {name} has expired: proving its old key", name=member.name)
        answer = await self._asked(member.pins, build)
        if answer.defender != member.defender:
            raise EnrollmentError("answer", "the controller answered with another defender's certificate")
        return self._take(answer, keys, member.pins, member.token)

    async def _asked(
        self, pins: frozenset[bytes], build: Callable[[bytes], bytes], *, patient: bool = True
    ) -> Joined:
        """Ask until there is an answer that is no waiting; who is not `patient` does not wait."""
        while True:
            try:
                answer = decode_answer(await self._ask(pins, build))
            except CancelledError:
                raise
            except JoinError as error:
                raise EnrollmentError(
                    "answer" if error.code == "answer" else error.code,
                    f"joining the fleet failed: {error.detail}",
                ) from None
            except Exception as error:
                raise EnrollmentError(
                    UNREACHABLE,
                    f"the controller could not be asked: {one_line(str(error)) or type(error).__name__}",
                    retry_after=5.0,
                ) from error
            finally:
                self.waiting = ""
            if isinstance(answer, Joined):
                return answer
            if not isinstance(answer, Waiting):
                raise EnrollmentError(
                    answer.code,
                    f"the controller refused this host: {answer.detail}",
                    float(answer.retry_after) or None,
                )
            if not patient:
                raise EnrollmentError(
                    "waiting", f"the controller says: {answer.detail}", float(answer.retry_after)
                )
            self.log.info(
                "the controller says: {detail}; asking again in {seconds} s",
                detail=answer.detail,
                seconds=answer.retry_after,
            )
            self.waiting = answer.detail
            await deferLater(self._reactor, answer.retry_after)

    def _take(self, answer: Joined, keys: NewKeys, pins: frozenset[bytes], token: str) -> Member:
        """Verify an answer and keep it."""
        try:
            check_joined(
                answer,
                key=keys.key.public_key(),
                server_key=keys.server_key.public_key() if answer.server_chain else None,
                pins=pins,
                now=self._clock(),
            )
        except JoinError as error:
            raise EnrollmentError("answer", f"the controller's answer is not right: {error.detail}") from None
        believed = tuple(
            root for root in answer.roots if pin_of(x509.load_der_x509_certificate(root)) in pins
        )
        member = Member(replace(answer, roots=believed), keys, token)
        self._store.save(member)
        if answer.left_out:
            self.log.warn(
                "the certificate towards users does not carry {names}: the join token allows no such names",
                names=", ".join(answer.left_out),
            )
        self.log.info(
            "joined the fleet {fleet} as {name} ({defender})",
            fleet=answer.trust_domain,
            name=answer.name,
            defender=answer.defender,
        )
        return member


__all__ = ["Ask", "Enrollment", "EnrollmentError", "MembershipError", "Step", "next_step", "read_token"]
