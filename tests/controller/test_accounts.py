"""What accounts and tokens may do, and what is never done to them."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from controller.accounts import (
    ADMIN,
    AUDITOR,
    LONGEST_TOKEN_LIFE,
    OPERATOR,
    PERMISSIONS,
    ROLES,
    USER,
    Account,
    AccountError,
    ApiToken,
    check_account,
    check_change,
    check_token,
    expand_scope,
    permissions_of,
    token_permissions,
)

ANN = Account("ann", frozenset({ADMIN}))
BOB = Account("bob", frozenset({OPERATOR, AUDITOR}))


class Roles(SynchronousTestCase):
    def test_what_each_may_do(self) -> None:
        self.assertEqual(permissions_of([ADMIN]), set(PERMISSIONS))
        self.assertEqual(permissions_of([USER]), set())
        self.assertTrue(all(name.endswith(".read") for name in permissions_of([AUDITOR])))
        self.assertIn("audit.read", permissions_of([AUDITOR]))
        self.assertEqual(set(PERMISSIONS) - permissions_of([OPERATOR]), {"accounts.read", "accounts.write"})
        self.assertEqual(permissions_of([USER, AUDITOR, "invented"]), ROLES[AUDITOR])

    def test_only_an_admin_changes_accounts(self) -> None:
        self.assertEqual([role for role in ROLES if "accounts.write" in ROLES[role]], [ADMIN])

    def test_a_disabled_account_may_do_nothing(self) -> None:
        self.assertEqual(Account("ann", frozenset({ADMIN}), disabled=True).permissions, set())

    def test_accounts_that_cannot_be(self) -> None:
        self.assertEqual(check_account("ann@example.com", [ADMIN, USER]), {ADMIN, USER})
        for user, roles, text in (
            ("", [ADMIN], "name"),
            ("a/b", [ADMIN], "holds a /"),
            ("anonymous", [ADMIN], "reserved"),
            ("uid:0", [ADMIN], "reserved"),
            ("ann", [], "at least one role"),
            ("ann", ["root"], "unknown role 'root'"),
        ):
            with self.assertRaisesRegex(AccountError, text):
                check_account(user, roles)


class Changes(SynchronousTestCase):
    def refused(self, text: str, actor: str, user: str, after: Account | None) -> None:
        with self.assertRaisesRegex(AccountError, text):
            check_change([ANN, BOB], actor, user, after)

    def test_the_last_admin_stays(self) -> None:
        self.refused("'ann' is the last admin", "bob", "ann", None)
        self.refused("'ann' is the last admin", "ann", "ANN", Account("ann", frozenset({USER})))
        self.refused("is the last admin", "bob", "ann", Account("ann", frozenset({ADMIN}), disabled=True))
        other = Account("eve", frozenset({ADMIN}))
        check_change([ANN, BOB, other], "eve", "ann", None)
        asleep = Account("eve", frozenset({ADMIN}), disabled=True)
        with self.assertRaisesRegex(AccountError, "last admin"):
            check_change([ANN, BOB, asleep], "bob", "ann", None)

    def test_nobody_shuts_themselves_out(self) -> None:
        self.refused("their own account", "Bob", "bob", None)
        self.refused("their own account", "bob", "bob", Account("bob", frozenset({USER}), disabled=True))
        check_change([ANN, BOB], "bob", "bob", Account("bob", frozenset({USER})))

    def test_one_that_there_is_not(self) -> None:
        self.refused("there is no account 'eve'", "ann", "eve", None)


class Tokens(SynchronousTestCase):
    def test_a_noun_stands_for_all_of_it(self) -> None:
        self.assertEqual(
            expand_scope(["policies", "audit.read"]),
            {"policies.read", "policies.write", "policies.publish", "audit.read"},
        )
        for scope, text in (([], "at least one"), (["policy"], "unknown permission 'policy'"), (["*"], "un")):
            with self.assertRaisesRegex(AccountError, text):
                expand_scope(scope)

    def test_never_more_than_its_owner(self) -> None:
        self.assertEqual(check_token(["audit.read"], BOB.permissions, 3600), {"audit.read"})
        with self.assertRaisesRegex(AccountError, "who lacks accounts.write"):
            check_token(["accounts.write", "audit.read"], BOB.permissions, 3600)
        for life in (59, LONGEST_TOKEN_LIFE + 1, float("inf"), float("nan")):
            with self.assertRaisesRegex(AccountError, "between a minute and a year"):
                check_token(["audit.read"], BOB.permissions, life)

    def test_what_a_token_may_do_now(self) -> None:
        token = ApiToken("Bob", frozenset({"audit.read", "policies.publish"}), expires=100.0)
        self.assertEqual(token_permissions(token, BOB, 99.9), token.permissions)
        # It shrinks with its owner's roles.
        auditor = Account("bob", frozenset({AUDITOR}))
        self.assertEqual(token_permissions(token, auditor, 99.9), {"audit.read"})
        self.assertIsNone(token_permissions(token, BOB, 100.0))
        self.assertIsNone(token_permissions(token, None, 0.0))
        self.assertIsNone(token_permissions(token, ANN, 0.0))
        self.assertIsNone(token_permissions(token, Account("bob", BOB.roles, disabled=True), 0.0))
        revoked = ApiToken("bob", token.permissions, expires=100.0, revoked=1.0)
        self.assertIsNone(token_permissions(revoked, BOB, 2.0))
