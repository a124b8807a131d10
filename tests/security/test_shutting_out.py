"""Locks that must hold: over a restart with a damaged file, and when the file cannot be read or written."""

from __future__ import annotations

import errno
import os
from shutil import rmtree
from typing import Any
from unittest import mock

from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.internet.task import deferLater

from defender.contract.actions import recognize
from defender.contract.errors import ContractError
from defender.contract.facts import Subject
from tests.security.running import DefenderCase

CLOCK: Any = reactor
LOCK = {"kind": "user", "value": "bruce"}


class DamagedFileTests(DefenderCase):
    def effect(self) -> str:
        operation, _ = recognize("GET", "/info")
        overruled = self.defender.proxy._overruling(Subject("bruce"), operation)
        decision = overruled or self.defender.activation.table.decide(Subject("bruce"), operation)
        return decision.effect

    @inlineCallbacks
    def test_nobody_comes_in_while_the_locks_were_never_read(self) -> Any:
        """A defender that restarts cannot know whom the file shuts out: everybody, until it is mended."""
        file = self.state / "locks.json"
        bruce = '{"kind": "user", "value": "bruce"}'
        for damage in (
            '{"schema": 1, "locks": [' + bruce + ",]}",
            '{"schema": 1, "locks": [' + bruce + '], "locks": []}',
            '{"schema": 2}',
            "\0",
        ):
            file.write_text(damage)
            defender = self.start()
            self.assertEqual(self.effect(), "deny", damage)
            self.assertEqual(
                [e["result"]["ok"] for e in self.events() if e["kind"] == "policy"], [True, False]
            )
            yield defender.stopService()
            rmtree(self.state / "audit")
        file.write_text('{"schema": 1, "locks": []}')
        self.start()
        self.assertEqual(self.effect(), "allow")

    @inlineCallbacks
    def test_mended_file_lets_them_in(self) -> Any:
        (self.state / "locks.json").write_text("{")
        self.start()
        self.assertEqual(self.effect(), "deny")
        (self.state / "locks.json").write_text('{"schema": 1, "locks": []}')
        while self.effect() == "deny":
            yield deferLater(CLOCK, 0.02)

    def test_file_that_may_not_be_opened(self) -> None:
        (self.state / "locks.json").mkdir()
        self.start()
        self.assertEqual(self.effect(), "deny")


class AddTests(DefenderCase):
    """Who adds a lock is told that it holds only when it does."""

    def test_lock_that_cannot_be_written(self) -> None:
        defender = self.start()
        (self.state / "locks.json.new").mkdir()
        self.assertRaises(ContractError, defender._add_lock, LOCK)

    def test_lock_that_cannot_be_read_back(self) -> None:
        defender = self.start()
        opened = os.open

        def full(path: Any, flags: int, *rest: Any, **more: Any) -> int:
            if str(path).endswith("locks.json") and not flags & os.O_WRONLY:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return opened(path, flags, *rest, **more)

        with mock.patch("defender.bundles.watch.os.open", full):
            self.assertRaises(ContractError, defender._add_lock, LOCK)
