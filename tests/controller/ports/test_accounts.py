"""Sign-ins, accounts and API tokens: over the API, on a store of its own."""

from __future__ import annotations

from twisted.internet.defer import inlineCallbacks

from controller.api.ports import Actor, RefusedError, TooManyError
from controller.credentials import MAX_SESSIONS, SESSION_IDLE, SESSION_LIFE
from controller.ports.accounts import first_admin
from tests.controller.ports.case import GOOD, PortCase, items, run
from tests.controller.store.trails import Steps

NOBODY = Actor("", "", "", "192.0.2.7", "r1")


class FirstAdmin(PortCase):
    @inlineCallbacks
    def test_is_made_once(self) -> Steps[None]:
        password = yield run(first_admin(self.ledger, self.passwords))
        self.assertGreaterEqual(len(password.replace("-", "")), 24)
        again = yield run(first_admin(self.ledger, self.passwords))
        self.assertEqual(again, "")
        made = yield run(self.accounts.log_in("Admin", password, NOBODY))
        self.assertEqual((made["user"], made["roles"]), ("admin", ["admin"]))
        (event,) = yield self.told("account_create")
        self.assertEqual((event["actor"]["via"], event["after"]["roles"]), ("system", ["admin"]))
        self.assertNotIn(password, repr(event))


class SignIns(PortCase):
    @inlineCallbacks
    def test_a_session_over_the_api(self) -> Steps[None]:
        password = yield run(first_admin(self.ledger, self.passwords))
        wrong = yield self.ask("POST", "/api/v1/sessions", {"user": "admin", "password": "not this one"})
        self.assertEqual((wrong.status, wrong.json["code"]), (401, "wrong-credentials"))
        unknown = yield self.ask("POST", "/api/v1/sessions", {"user": "eve", "password": "not this one"})
        self.assertEqual((unknown.status, unknown.json["detail"]), (401, wrong.json["detail"]))
        reply = yield self.ask("POST", "/api/v1/sessions", {"user": "admin", "password": password})
        self.assertEqual(reply.status, 201, reply.body)
        token = reply.json["token"]
        who = yield self.ask("GET", "/api/v1/sessions/current", token=token)
        self.assertEqual((who.status, who.json["credential"]), (200, reply.json["session"]))
        gone = yield self.ask("DELETE", "/api/v1/sessions/current", token=token)
        self.assertEqual(gone.status, 204)
        late = yield self.ask("GET", "/api/v1/sessions/current", token=token)
        self.assertEqual(late.status, 401)
        begun = yield self.told("session_begin", "session_end")
        self.assertEqual(
            [(each["req"]["action"], each["req"]["target"], each["decision"]["effect"]) for each in begun],
            [
                ("session_begin", "admin", "deny"),
                ("session_begin", "(no such account)", "deny"),
                ("session_begin", "admin", "allow"),
                ("session_end", "admin", "allow"),
            ],
        )
        self.assertEqual(begun[2]["actor"]["credential"], reply.json["session"])
        for secret in (password, token, "not this one"):
            self.assertNotIn(secret, repr(begun))

    @inlineCallbacks
    def test_too_many_tries(self) -> Steps[None]:
        yield run(first_admin(self.ledger, self.passwords))
        for _ in range(5):
            yield self.assertFailure(run(self.accounts.log_in("admin", "x", NOBODY)), RefusedError)
        error = yield self.assertFailure(run(self.accounts.log_in("admin", "x", NOBODY)), TooManyError)
        self.assertGreater(error.retry_after, 0)

    @inlineCallbacks
    def test_idle_and_old_sessions_are_over(self) -> Steps[None]:
        token = yield self.admin()
        for _ in range(int(SESSION_LIFE // SESSION_IDLE) + 1):
            found = yield run(self.accounts.authenticate(token, ""))
            self.assertIsNotNone(found)
            yield self.database.write(lambda connection: None)
            self.now += SESSION_IDLE * 0.9
        self.now += SESSION_IDLE
        found = yield run(self.accounts.authenticate(token, ""))
        self.assertIsNone(found)
        token = yield self._again()
        self.now += SESSION_IDLE
        found = yield run(self.accounts.authenticate(token, ""))
        self.assertIsNone(found)

    @inlineCallbacks
    def _again(self) -> Steps[str]:
        bob = {"user": "bob", "roles": ["user"], "password": GOOD}
        yield run(self.accounts.create_account(NOBODY, bob, frozenset()))
        made = yield run(self.accounts.log_in("bob", GOOD, NOBODY))
        return str(made["token"])

    @inlineCallbacks
    def test_the_oldest_session_makes_room(self) -> Steps[None]:
        first = yield self._again()
        for _ in range(MAX_SESSIONS):
            self.now += 60
            made = yield run(self.accounts.log_in("bob", GOOD, NOBODY))
        found = yield run(self.accounts.authenticate(first, ""))
        self.assertIsNone(found)
        found = yield run(self.accounts.authenticate(made["token"], ""))
        self.assertEqual(found.user, "bob")

    @inlineCallbacks
    def test_a_password_is_changed(self) -> Steps[None]:
        one = yield self._again()
        other = (yield run(self.accounts.log_in("bob", GOOD, NOBODY)))["token"]
        path = "/api/v1/accounts/current/password"
        reply = yield self.ask("PUT", path, {"present": "wrong", "wanted": GOOD + "!"}, token=one)
        self.assertEqual(reply.status, 403)
        reply = yield self.ask("PUT", path, {"present": GOOD, "wanted": "short"}, token=one)
        self.assertEqual((reply.status, reply.json["errors"][0]["pointer"]), (422, "/wanted"))
        reply = yield self.ask("PUT", path, {"present": GOOD, "wanted": GOOD + "!"}, token=one)
        self.assertEqual(reply.status, 204, reply.body)
        self.assertIsNotNone((yield run(self.accounts.authenticate(one, ""))))
        self.assertIsNone((yield run(self.accounts.authenticate(other, ""))))
        yield self.assertFailure(run(self.accounts.log_in("bob", GOOD, NOBODY)), RefusedError)
        yield run(self.accounts.log_in("bob", GOOD + "!", NOBODY))

    @inlineCallbacks
    def test_a_password_that_somebody_else_knows_is_changed_first(self) -> Steps[None]:
        password = yield run(first_admin(self.ledger, self.passwords))
        made = yield self.ask("POST", "/api/v1/sessions", {"user": "admin", "password": password})
        self.assertTrue(made.json["must_change_password"])
        token = made.json["token"]
        for method, path, body in (
            ("GET", "/api/v1/accounts", None),
            ("GET", "/api/v1/api-tokens", None),
            ("POST", "/api/v1/api-tokens", {"name": "x", "permissions": ["status"], "expires_in": 60}),
            ("PATCH", "/api/v1/accounts/admin", {"password": GOOD}),
        ):
            reply = yield self.ask(method, path, body, token=token)
            self.assertEqual((reply.status, reply.json["code"]), (403, "password-change-required"), path)
        who = yield self.ask("GET", "/api/v1/sessions/current", token=token)
        self.assertTrue(who.json["must_change_password"])
        path = "/api/v1/accounts/current/password"
        same = yield self.ask("PUT", path, {"present": password, "wanted": password}, token=token)
        self.assertEqual((same.status, same.json["errors"][0]["pointer"]), (422, "/wanted"))
        done = yield self.ask("PUT", path, {"present": password, "wanted": GOOD}, token=token)
        self.assertEqual(done.status, 204, done.body)
        shown = yield self.ask("GET", "/api/v1/accounts/admin", token=token)
        self.assertEqual((shown.status, shown.json["must_change_password"]), (200, False))

    @inlineCallbacks
    def test_a_password_that_was_reset_is_changed_first(self) -> Steps[None]:
        admin = yield self.admin()
        bob = yield self.person(admin, "bob", "operator")
        wanted = {"name": "ci", "permissions": ["status"], "expires_in": 60}
        token = (yield self.ask("POST", "/api/v1/api-tokens", wanted, token=bob)).json["token"]
        reply = yield self.ask("PATCH", "/api/v1/accounts/bob", {"password": GOOD}, token=admin)
        self.assertTrue(reply.json["must_change_password"])
        made = yield run(self.accounts.log_in("bob", GOOD, NOBODY))
        denied = yield self.ask("GET", "/api/v1/status", token=made["token"])
        self.assertEqual((denied.status, denied.json["code"]), (403, "password-change-required"))
        # Programs have no password.
        reply = yield self.ask("GET", "/api/v1/status", token=token)
        self.assertEqual(reply.status, 200, reply.body)
        own = {"password": GOOD + "!"}
        reply = yield self.ask("PATCH", "/api/v1/accounts/admin", own, token=admin)
        self.assertFalse(reply.json["must_change_password"])

    @inlineCallbacks
    def test_what_is_no_token(self) -> Steps[None]:
        for text in ("", "dfs1_", "dfs1_" + "A" * 43, "dfa1_" + "A" * 43, "\udc80"):
            found = yield run(self.accounts.authenticate(text, ""))
            self.assertIsNone(found, text)


class People(PortCase):
    @inlineCallbacks
    def test_an_account_from_beginning_to_end(self) -> Steps[None]:
        token = yield self.admin()
        bob = {"user": "bob", "password": GOOD, "roles": ["operator"]}
        reply = yield self.ask("POST", "/api/v1/accounts", bob, token=token)
        self.assertEqual(reply.status, 201, reply.body)
        reply = yield self.ask("POST", "/api/v1/accounts", {**bob, "user": "BOB"}, token=token)
        self.assertEqual(reply.status, 409)
        reply = yield self.ask("GET", "/api/v1/accounts?limit=1", token=token)
        self.assertEqual([each["user"] for each in items(reply)], ["admin"])
        rest = yield self.ask("GET", f"/api/v1/accounts?limit=1&cursor={reply.json['next']}", token=token)
        self.assertEqual(([each["user"] for each in items(rest)], rest.json["next"]), (["bob"], None))
        session = (yield run(self.accounts.log_in("bob", GOOD, NOBODY)))["token"]
        denied = yield self.ask("GET", "/api/v1/accounts", token=session)
        self.assertEqual((denied.status, denied.json["code"]), (403, "password-change-required"))
        reply = yield self.ask(
            "PATCH", "/api/v1/accounts/bob", {"roles": ["auditor"], "disabled": True}, token=token
        )
        self.assertEqual((reply.json["roles"], reply.json["disabled"]), (["auditor"], True))
        self.assertIsNone((yield run(self.accounts.authenticate(session, ""))))
        yield self.assertFailure(run(self.accounts.log_in("bob", GOOD, NOBODY)), RefusedError)
        reply = yield self.ask("DELETE", "/api/v1/accounts/bob", token=token)
        self.assertEqual(reply.status, 204)
        reply = yield self.ask("GET", "/api/v1/accounts/bob", token=token)
        self.assertEqual(reply.status, 404)
        (change,) = yield self.told("account_change")
        self.assertEqual(change["before"], {"disabled": False, "roles": ["operator"]})
        self.assertEqual(change["after"], {"disabled": True, "roles": ["auditor"]})
        (refusal,) = yield self.told("list_accounts")
        self.assertEqual((refusal["actor"]["user"], refusal["decision"]["effect"]), ("bob", "deny"))

    @inlineCallbacks
    def test_the_last_admin_stays(self) -> Steps[None]:
        token = yield self.admin()
        for method, body in (("DELETE", None), ("PATCH", {"roles": ["user"]}), ("PATCH", {"disabled": True})):
            reply = yield self.ask(method, "/api/v1/accounts/admin", body, token=token)
            self.assertEqual((reply.status, reply.json["code"]), (403, "refused"))
        reply = yield self.ask("GET", "/api/v1/accounts/admin", token=token)
        self.assertEqual((reply.json["roles"], reply.json["disabled"]), (["admin"], False))
        self.assertEqual((yield self.told("account_change", "account_remove")), [])

    @inlineCallbacks
    def test_nobody_makes_what_can_do_more_than_they(self) -> Steps[None]:
        """Whoever may give a role, or set a password, can act as that account."""
        admin = yield self.admin()
        yield self.person(admin, "eve", "auditor")
        wanted = {"name": "hr", "permissions": ["accounts", "status"], "expires_in": 3600}
        token = (yield self.ask("POST", "/api/v1/api-tokens", wanted, token=admin)).json["token"]
        new = {"user": "bob", "password": GOOD}
        for method, path, body in (
            ("POST", "accounts", {**new, "roles": ["admin"]}),
            ("POST", "accounts", {**new, "roles": ["user", "operator"]}),
            ("PATCH", "accounts/admin", {"password": GOOD}),
            ("PATCH", "accounts/eve", {"roles": ["user"]}),
            ("DELETE", "accounts/eve", None),
        ):
            reply = yield self.ask(method, f"/api/v1/{path}", body, token=token)
            self.assertEqual((reply.status, reply.json["code"]), (403, "refused"), (method, path))
            self.assertIn("can do more than you", reply.json["detail"])
        told = yield self.told("account_create", "account_change", "account_remove")
        self.assertEqual([each["decision"]["effect"] for each in told[-5:]], ["deny"] * 5)
        reply = yield self.ask("POST", "/api/v1/accounts", {**new, "roles": ["user"]}, token=token)
        self.assertEqual(reply.status, 201, reply.body)
        reply = yield self.ask("PATCH", "/api/v1/accounts/bob", {"roles": ["auditor"]}, token=token)
        self.assertEqual(reply.status, 403, reply.body)
        reply = yield self.ask("PATCH", "/api/v1/accounts/bob", {"password": GOOD + "!"}, token=token)
        self.assertEqual(reply.status, 200, reply.body)
        reply = yield self.ask("DELETE", "/api/v1/accounts/bob", token=token)
        self.assertEqual(reply.status, 204, reply.body)

    @inlineCallbacks
    def test_fields_that_cannot_be_used(self) -> Steps[None]:
        token = yield self.admin()
        bob = {"user": "bob", "password": GOOD, "roles": ["operator"]}
        for change, pointer in (({"user": " bob"}, "/user"), ({"password": "bobbobbobbob"}, "/password")):
            reply = yield self.ask("POST", "/api/v1/accounts", {**bob, **change}, token=token)
            self.assertEqual((reply.status, reply.json["errors"][0]["pointer"]), (422, pointer))
        reply = yield self.ask("GET", "/api/v1/accounts?cursor=%7E", token=token)
        self.assertEqual(reply.status, 400)


class ApiTokens(PortCase):
    @inlineCallbacks
    def make(self, token: str, **changes: object) -> Steps[object]:
        wanted = {"name": "ci", "permissions": ["audit.read", "metrics.read"], "expires_in": 3600, **changes}
        return (yield self.ask("POST", "/api/v1/api-tokens", wanted, token=token))

    @inlineCallbacks
    def test_from_beginning_to_end(self) -> Steps[None]:
        session = yield self.admin()
        reply = yield self.make(session)
        self.assertEqual(reply.status, 201, reply.body)
        token, ident = reply.json["token"], reply.json["id"]
        who = yield self.ask("GET", "/api/v1/sessions/current", token=token)
        self.assertEqual(
            (who.json["via"], who.json["permissions"]), ("token", ["audit.read", "metrics.read"])
        )
        yield self.database.write(lambda connection: None)
        shown = yield self.ask("GET", "/api/v1/api-tokens", token=session)
        (row,) = items(shown)
        self.assertEqual(row["id"], ident)
        self.assertIsNotNone(row["last_used_at"])
        self.assertNotIn(token, repr(shown.body))
        gone = yield self.ask("DELETE", f"/api/v1/api-tokens/{ident}", token=session)
        self.assertEqual(gone.status, 204)
        self.assertIsNone((yield run(self.accounts.authenticate(token, ""))))
        shown = yield self.ask("GET", "/api/v1/api-tokens", token=session)
        self.assertEqual(items(shown), [])
        told = yield self.told("api_token_*")
        self.assertEqual([each["req"]["action"] for each in told], ["api_token_create", "api_token_revoke"])
        self.assertNotIn(token, repr(told))

    @inlineCallbacks
    def test_a_token_makes_none_that_is_wider_or_longer(self) -> Steps[None]:
        session = yield self.admin()
        token = (yield self.make(session)).json["token"]
        wider = yield self.make(token, permissions=["accounts.write"])
        self.assertEqual((wider.status, wider.json["errors"][0]["pointer"]), (422, "/permissions"))
        longer = yield self.make(token, expires_in=7200)
        self.assertEqual((longer.status, longer.json["errors"][0]["pointer"]), (422, "/expires_in"))
        self.now += 10
        same = yield self.make(token, expires_in=3500)
        self.assertEqual(same.status, 201, same.body)

    @inlineCallbacks
    def test_it_ends_with_its_time_and_shrinks_with_its_owner(self) -> Steps[None]:
        session = yield self.admin()
        own = yield self.person(session, "bob", "operator", "auditor")
        reply = yield self.make(own, permissions=["locks"])
        token = reply.json["token"]
        found = yield run(self.accounts.authenticate(token, ""))
        self.assertEqual(found.permissions, frozenset({"locks.read", "locks.write"}))
        yield self.ask("PATCH", "/api/v1/accounts/bob", {"roles": ["auditor"]}, token=session)
        found = yield run(self.accounts.authenticate(token, ""))
        self.assertEqual(found.permissions, frozenset({"locks.read"}))
        self.now += 3600
        self.assertIsNone((yield run(self.accounts.authenticate(token, ""))))

    @inlineCallbacks
    def test_of_somebody_else(self) -> Steps[None]:
        session = yield self.admin()
        ident = (yield self.make(session)).json["id"]
        own = yield self.person(session, "bob", "operator")
        shown = yield self.ask("GET", "/api/v1/api-tokens", token=own)
        self.assertEqual(items(shown), [])
        gone = yield self.ask("DELETE", f"/api/v1/api-tokens/{ident}", token=own)
        self.assertEqual(gone.status, 404)
