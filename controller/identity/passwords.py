"""Passwords as they are kept: argon2id, computed in threads of their own, so many at a time and no more.

A hash takes a third of a second and 64 MiB on purpose (RFC 9106 section 4, second recommended option, with
four lanes). Whoever may try to sign in could fill the machine with that, so two are computed at a time and a
few wait; the others are told to come back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError, VerificationError, VerifyMismatchError
from twisted.internet.defer import Deferred, fail
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

MEMORY_KIB: Final = 64 * 1024
PASSES: Final = 3
LANES: Final = 4
THREADS: Final = 2
WAITING: Final = 32
"""Computations that wait beside those under way."""

MAX_PASSWORD: Final = 1024
"""Bytes of UTF-8 of a password; longer ones are refused before anything is computed."""

_T = TypeVar("_T")


class TooBusyError(Exception):
    """So many passwords wait to be looked at that one more would wait too long."""


class PasswordError(Exception):
    """A kept hash cannot be used; the text says why, without the hash."""


class Passwords:
    """Makes and checks hashes in a pool of its own; `start` before use, `stop` at the end."""

    def __init__(
        self, reactor: Any, *, memory_kib: int = MEMORY_KIB, passes: int = PASSES, lanes: int = LANES
    ) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(THREADS, THREADS, "passwords")
        self._hasher = PasswordHasher(time_cost=passes, memory_cost=memory_kib, parallelism=lanes)
        self._under_way = 0
        self._nobody = ""

    def start(self) -> None:
        """Start the threads."""
        self._pool.start()

    def stop(self) -> None:
        """End the threads, when what is under way is done."""
        self._pool.stop()

    def hash(self, password: str) -> Deferred[str]:
        """The hash of a new password, with its salt and parameters; fails with TooBusyError or ValueError."""
        if len(password.encode("utf-8", "surrogatepass")) > MAX_PASSWORD:
            return fail(ValueError(f"a password has at most {MAX_PASSWORD} bytes"))
        return self._compute(lambda: self._hasher.hash(password))

    def verify(self, kept: str, password: str) -> Deferred[bool]:
        """Whether a password is the one whose hash is kept.

        `kept` is "" for a user that does not exist or has no password: then the answer is no, and takes as
        long as any other. Fails with TooBusyError, or PasswordError for a hash that cannot be read.
        """
        if len(password.encode("utf-8", "surrogatepass")) > MAX_PASSWORD:
            password = ""
            kept = ""
        return self._compute(lambda: self._matches(kept, password))

    def is_outdated(self, kept: str) -> bool:
        """Whether a hash was made with other parameters than today's and should be made anew at sign-in."""
        try:
            return self._hasher.check_needs_rehash(kept)
        except Argon2Error:
            return True

    def _matches(self, kept: str, password: str) -> bool:
        if not kept and not self._nobody:
            self._nobody = self._hasher.hash("nobody's")
        try:
            self._hasher.verify(kept or self._nobody, password)
        except VerifyMismatchError:
            return False
        except (VerificationError, InvalidHashError) as error:
            raise PasswordError(
                f"a password's hash in the store cannot be used ({type(error).__name__})"
            ) from None
        return bool(kept)

    def _compute(self, function: Callable[[], _T]) -> Deferred[_T]:
        if self._under_way >= THREADS + WAITING:
            return fail(TooBusyError("too many sign-ins at one time; try again in a few seconds"))
        self._under_way += 1

        def done(result: _T) -> _T:
            self._under_way -= 1
            return result

        computing: Deferred[_T] = deferToThreadPool(self._reactor, self._pool, function)
        return computing.addBoth(done)
