"""Two spellings of one name: no rule that denies and no lock may be escaped by the other one."""

from __future__ import annotations

import unicodedata

from twisted.trial.unittest import SynchronousTestCase

from defender.contract.errors import IdentityError, PolicyError
from defender.contract.facts import Subject
from defender.contract.groups import encode_groups
from defender.contract.identity import check_user_name
from defender.contract.locks import LockSet, make_lock, same
from defender.contract.policy import load_policy

COMPOSED = "jos\u00e9"
APART = unicodedata.normalize("NFD", COMPOSED)
POLICY = 'schema: 1\nrules:\n  - {{name: a, users: ["{name}"], groups: ["{name}"], effect: deny}}\n'


class SpellingTests(SynchronousTestCase):
    """Names look the same and are not: an accent may be a character of its own (Unicode NFC and NFD)."""

    def test_certificates_carry_the_composed_form_only(self) -> None:
        check_user_name(COMPOSED)
        encode_groups([COMPOSED])
        self.assertIn("NFC", str(self.assertRaises(IdentityError, check_user_name, APART)))
        self.assertIn("NFC", str(self.assertRaises(IdentityError, encode_groups, [APART])))

    def test_so_do_policies(self) -> None:
        load_policy(POLICY.format(name=COMPOSED), "p")
        error = self.assertRaises(PolicyError, load_policy, POLICY.format(name=APART), "p")
        self.assertEqual(
            [problem.key for problem in error.problems], ["rules[0].users[0]", "rules[0].groups[0]"]
        )
        self.assertIn("NFC", str(error))

    def test_locks_hold_for_both(self) -> None:
        for locked in (COMPOSED, APART, COMPOSED.upper(), APART.upper()):
            for name in (COMPOSED, APART, COMPOSED.upper()):
                users = LockSet(frozenset({make_lock("user", locked)}))
                groups = LockSet(frozenset({make_lock("group", locked)}))
                self.assertIsNotNone(users.reason(Subject(name)))
                self.assertIsNotNone(groups.reason(Subject("x", (name,))))
                self.assertTrue(same(make_lock("user", locked), make_lock("user", name)))

    def test_names_of_unix_peers_cannot_be_had_by_certificate(self) -> None:
        for name in (
            "anonymous",
            "ANONYMOUS",
            "Anonymou\u017f",
            "uid:0",
            "UID:0",
            "u\u0131d:0".replace("\u0131", "i"),
        ):
            self.assertRaises(IdentityError, check_user_name, name)
