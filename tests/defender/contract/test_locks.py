"""Locks: who is shut out, and which texts are locks."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.contract.facts import Subject
from defender.contract.locks import Lock, LockError, LockSet, dump_locks, load_locks, make_lock

BRUCE = Subject(user="bruce", groups=("Dev team",), serial="0a1b", issuer="CN=users")


def locked(*locks: Lock) -> str | None:
    return LockSet(frozenset(locks)).reason(BRUCE)


class MatchingTests(SynchronousTestCase):
    def test_names_are_whole_and_casefolded(self) -> None:
        self.assertEqual(locked(make_lock("user", "BRUCE")), "user bruce is locked")
        self.assertEqual(locked(make_lock("group", "dev TEAM")), "group Dev team is locked")
        self.assertIsNone(
            locked(make_lock("user", "bruc"), make_lock("group", "Dev*"), make_lock("user", "*"))
        )

    def test_serials_in_any_spelling(self) -> None:
        for serial in ("a1b", "0A:1B", "0x0a1b", "00000A1B"):
            self.assertEqual(locked(make_lock("serial", serial)), "certificate 0a1b is locked", serial)

    def test_issuer_narrows_a_serial(self) -> None:
        self.assertIsNone(locked(make_lock("serial", "a1b", "CN=other")))
        self.assertIsNotNone(locked(make_lock("serial", "a1b", "CN=users")))

    def test_serial_locks_do_not_touch_unix_peers(self) -> None:
        locks = LockSet(frozenset((make_lock("serial", "0"),)))
        self.assertIsNone(locks.reason(Subject(user="root", via="unix", uid=0)))


class HostTests(SynchronousTestCase):
    def test_a_locked_defender_lets_nobody_do_anything(self) -> None:
        for value in ("WEB1", "7f3a"):
            locks = LockSet(frozenset((make_lock("defender", value),)), ("web1", "7f3a"))
            self.assertEqual(locks.reason(BRUCE), "defender web1 is locked", value)
            self.assertEqual(locks.reason(Subject(user="root", via="unix", uid=0)), "defender web1 is locked")

    def test_another_defenders_lock_is_of_no_matter(self) -> None:
        other = frozenset((make_lock("defender", "web2"),))
        self.assertIsNone(LockSet(other, ("web1", "7f3a")).reason(BRUCE))
        self.assertIsNone(LockSet(other).reason(BRUCE))
        self.assertIsNone(LockSet(other, ("web1",)).reason(Subject(user="web2", groups=("web2",))))


class TextTests(SynchronousTestCase):
    def test_round_trip(self) -> None:
        locks = frozenset(
            (make_lock("user", "eve"), make_lock("serial", "7f", "CN=users"), make_lock("defender", "w"))
        )
        self.assertEqual(load_locks(dump_locks(locks)).locks, locks)
        self.assertFalse(load_locks(dump_locks(frozenset())))
        self.assertFalse(load_locks(" \n"))

    def test_what_is_not_understood_is_refused(self) -> None:
        """A lock that cannot be read must not be ignored."""
        for locks in (
            {"schema": 2, "locks": []},
            {"schema": 1, "locks": {}},
            {"schema": 1, "locks": [], "more": 1},
            {"schema": 1, "locks": [{"kind": "host", "value": "web1"}]},
            {"schema": 1, "locks": [{"kind": "user", "value": ""}]},
            {"schema": 1, "locks": [{"kind": "user", "value": "eve", "until": "x"}]},
            {"schema": 1, "locks": [{"kind": "user", "value": 7}]},
            {"schema": 1, "locks": [{"kind": "serial", "value": "xyz"}]},
            {"schema": 1, "locks": [{"kind": "user", "value": "eve", "issuer": "CN=users"}]},
            {"schema": 1, "locks": [{"kind": "user", "value": "a\x1bb"}]},
        ):
            self.assertRaises(LockError, load_locks, json.dumps(locks))

    def test_errors_name_the_entry(self) -> None:
        text = '{"schema": 1, "locks": [{"kind": "user", "value": "eve"}, {"kind": "user", "value": ""}]}'
        self.assertIn("lock 2: ", str(self.assertRaises(LockError, load_locks, text)))

    @settings(max_examples=200)
    @given(st.text())
    def test_any_text_is_locks_or_an_error(self, text: str) -> None:
        try:
            load_locks(text)
        except LockError:
            pass
