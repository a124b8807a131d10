"""Passwords: hashed with argon2id, checked apart from the reactor, so many at a time."""

from __future__ import annotations

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from controller.identity.passwords import (
    MAX_PASSWORD,
    THREADS,
    WAITING,
    PasswordError,
    Passwords,
    TooBusyError,
)


class PasswordTests(TestCase):
    def setUp(self) -> None:
        self.passwords = Passwords(reactor, memory_kib=64, passes=1, lanes=1)
        self.passwords.start()
        self.addCleanup(self.passwords.stop)

    async def test_only_the_right_one_matches(self) -> None:
        kept = await self.passwords.hash("correct horse")
        self.assertTrue(kept.startswith("$argon2id$"))
        self.assertNotIn("horse", kept)
        self.assertNotEqual(kept, await self.passwords.hash("correct horse"))
        self.assertTrue(await self.passwords.verify(kept, "correct horse"))
        for wrong in ("", "correct horse ", "Correct horse", "x" * 5000):
            self.assertFalse(await self.passwords.verify(kept, wrong))

    async def test_nobody_has_no_password(self) -> None:
        for tried in ("", "nobody's", "x" * 5000):
            self.assertFalse(await self.passwords.verify("", tried))

    async def test_a_password_is_bounded(self) -> None:
        await self.passwords.hash("ü" * (MAX_PASSWORD // 2))
        await self.assertFailure(self.passwords.hash("ü" * (MAX_PASSWORD // 2 + 1)), ValueError)

    async def test_a_hash_that_cannot_be_read(self) -> None:
        kept = await self.passwords.hash("x")
        for broken in ("plain", kept[:-30], "$argon2id$v=19$m=1$"):
            error = await self.assertFailure(self.passwords.verify(broken, "x"), PasswordError)
            self.assertNotIn(broken, str(error))

    async def test_more_than_the_queue_takes_are_turned_away(self) -> None:
        kept = await self.passwords.hash("x")
        asked: list[Deferred[bool]] = [self.passwords.verify(kept, "x") for _ in range(THREADS + WAITING)]
        await self.assertFailure(self.passwords.verify(kept, "x"), TooBusyError)
        self.assertEqual(await gatherResults(asked), [True] * (THREADS + WAITING))
        self.assertTrue(await self.passwords.verify(kept, "x"))

    async def test_older_parameters_are_told(self) -> None:
        kept = await self.passwords.hash("x")
        self.assertFalse(self.passwords.is_outdated(kept))
        self.assertTrue(Passwords(reactor, memory_kib=128, passes=1, lanes=1).is_outdated(kept))
