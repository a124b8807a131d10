"""The join protocol's controller: one request, one answer, whoever asks and whatever comes.

What costs something happens in this order: a rate by address, reading, the checks of keys and proofs, and
one transaction of the store (`controller.pki.registry`).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from controller.pki import registry
from controller.pki.admission import read_keys, refusal
from controller.pki.authority import AuthorityError
from controller.pki.custody import CustodyError
from controller.pki.join_rates import JoinRates
from controller.pki.registry import Office
from controller.store.database import Database
from controller.store.errors import OverloadedStoreError, UnwritableStoreError
from defender.contract.errors import IdentityError
from defender.contract.join import (
    Answer,
    JoinError,
    JoinRequest,
    Refused,
    RenewRequest,
    decode_request,
    encode_answer,
)
from defender.contract.peer_check import PeerIdentity, check_defender
from defender.contract.renewal import check_proof

AGAIN: Final = 30
"""Seconds after which a host asks again when the controller itself is at fault."""


class Enrollment:
    """Answers requests to join and to renew with an old key."""

    log = Logger()

    def __init__(
        self,
        database: Database,
        office: Callable[[], Office],
        *,
        clock: Callable[[], float] = time.time,
        seconds: Callable[[], float] = time.monotonic,
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        """``office``: asked for each request, so that it may change. ``clock``: unix seconds; ``seconds``: of
        a clock that never goes back.
        """
        self._database = database
        self._office = office
        self._clock = clock
        self._seconds = seconds
        self._new_id = new_id
        self._rates = JoinRates()

    def joins(self, request: bytes, source: str, binding: bytes) -> Deferred[bytes]:
        """Fire with the answer's payload to a request's payload. Never fails.

        ``source``: the peer's IP address; ``binding``: the connection's exporter (`join.BINDING_LABEL`).
        """
        answering = self._answer(request, source, binding)
        answering.addErrback(self._failed)
        return answering.addCallback(encode_answer)

    def _answer(self, payload: bytes, source: str, binding: bytes) -> Deferred[Answer]:
        try:
            address = ip_address(source)
            if not self._rates.admit(address, self._seconds()):
                return succeed(Refused("rate", "too many requests to join; ask again in some seconds", 5))
            request = decode_request(payload)
            now = int(self._clock())
            office = self._office()
            if isinstance(request, JoinRequest):
                return self._database.write(
                    registry.join,
                    office,
                    request,
                    read_keys(request),
                    source=address,
                    new_id=self._new_id(),
                    now=now,
                )
            peer = self._proven(request, binding, office)
            keys = read_keys(request)
            return self._database.write(
                registry.renew_expired, office, request, peer, keys, source=address, now=now
            )
        except JoinError as error:
            return succeed(refusal(error))
        except Exception:  # noqa: BLE001 - whatever a peer sends, it gets an answer
            return self._broken(Failure())

    def _proven(self, request: RenewRequest, binding: bytes, office: Office) -> PeerIdentity:
        """Say whose certificate a request proves to have the key of; raises JoinError."""
        certificate = check_proof(request, binding)
        try:
            issuers = [each for each in office.authority.all_fleet if each.subject == certificate.issuer]
            certificate.verify_directly_issued_by(issuers[0] if issuers else office.authority.fleet)
            return check_defender(certificate, office.authority.trust_domain)
        except (ValueError, TypeError, InvalidSignature):
            raise JoinError("certificate", "the old certificate is not of this fleet") from None
        except IdentityError as error:
            raise JoinError("certificate", f"the old certificate is no defender's: {error.detail}") from None

    def _failed(self, failure: Failure) -> Answer:
        if failure.check(AuthorityError, CustodyError):
            self.log.error("the authority cannot sign: {error}", error=str(failure.value))
            return Refused("authority", "the controller cannot sign certificates at present", AGAIN)
        if failure.check(UnwritableStoreError, OverloadedStoreError):
            return Refused(
                "unavailable", f"the controller cannot take anybody in now: {failure.value}", AGAIN
            )
        self.log.failure("a request to join could not be answered", failure)
        return Refused("unavailable", "the controller has failed; its log says why", AGAIN)

    @staticmethod
    def _broken(failure: Failure) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        done.errback(failure)
        return done
