"""What the API does with what its ports say, and with clients that repeat themselves or go away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from controller.api.dispatch import EACH, PATIENCE
from controller.api.ports import Check, ConflictError, Principal, Selection, UnavailableError
from controller.api.repeats import LIFE
from tests.controller.api.doubles import EVERYTHING, PASSWORD, example, only
from tests.controller.api.harness import Harness, Reply, read_reply, request_bytes

ACCOUNT = {"user": "bruce", "password": "tall glass of cold water", "roles": ["operator"]}


class AnswersTestCase(SynchronousTestCase):
    """Has a harness."""

    def setUp(self) -> None:
        self.harness = Harness()
        self.world = self.harness.world


class SignInTests(AnswersTestCase):
    """Passwords and tokens."""

    def log_in(self, password: str) -> Reply:
        return self.harness.request(
            "POST", "/api/v1/sessions", {"user": "admin", "password": password}, token=None
        )

    def test_a_sign_in_gives_a_token_and_is_asked_with_the_address(self) -> None:
        reply = self.log_in(PASSWORD)
        self.assertEqual((reply.status, reply.json["token"]), (201, "dfs1.EXAMPLE"))
        actor = self.world.accounts.acts[0][1]
        self.assertEqual((actor.address, actor.request), ("192.0.2.7", reply.headers["x-request-id"]))

    def test_a_wrong_password_is_no_sign_in_and_too_many_must_wait(self) -> None:
        for _ in range(3):
            reply = self.log_in("wrong")
            self.assertEqual((reply.status, reply.json["code"]), (401, "wrong-credentials"))
        reply = self.log_in(PASSWORD)
        self.assertEqual((reply.status, reply.headers["retry-after"]), (429, "42"))

    def test_a_session_knows_itself_and_ends(self) -> None:
        me = self.harness.request("GET", "/api/v1/sessions/current", token=only("locks.read")).json
        self.assertEqual((me["user"], me["permissions"]), ("admin", ["locks.read"]))
        self.assertEqual(me["expires_at"], "2027-01-15T08:00:00.000Z")
        self.assertEqual(self.harness.request("DELETE", "/api/v1/sessions/current").status, 204)
        self.assertEqual(self.world.accounts.acts[-1][0], "log_out")

    def test_a_token_in_the_query_is_none(self) -> None:
        reply = self.harness.request("GET", f"/api/v1/locks?access_token={EVERYTHING}", token=None)
        self.assertEqual(reply.status, 401)

    def test_an_api_token_can_do_no_more_than_its_owner(self) -> None:
        wanted = {"name": "x", "permissions": ["locks.write"], "expires_in": 60}
        reply = self.harness.request("POST", "/api/v1/api-tokens", wanted, token=only("locks.read"))
        self.assertEqual((reply.status, reply.json["errors"][0]["pointer"]), (422, "/permissions"))

    def test_others_tokens_are_for_who_looks_after_accounts(self) -> None:
        for permission in ("locks.read", "accounts.read", "accounts.write"):
            self.harness.request("GET", "/api/v1/api-tokens", token=only(permission))
            self.harness.request("DELETE", "/api/v1/api-tokens/t1", token=only(permission))
        self.assertEqual(self.world.accounts.everybody, [False, False, True, False, False, True])


class PortErrorTests(AnswersTestCase):
    """Each error of a port has its status."""

    def test_errors_of_ports_are_problems(self) -> None:
        for error, status, code in (
            (ConflictError("it is taken"), 409, "conflict"),
            (UnavailableError("the disk of the store is full"), 503, "unavailable"),
        ):
            self.world.fleet.trouble = error
            reply = self.harness.request("GET", "/api/v1/defenders")
            self.assertEqual(
                (reply.status, reply.json["code"], reply.json["detail"]), (status, code, str(error))
            )
        self.assertEqual(reply.headers["retry-after"], "10")
        self.assertEqual(self.harness.request("GET", "/api/v1/defenders/web9").status, 404)
        reply = self.harness.request("DELETE", "/api/v1/accounts/admin")
        self.assertEqual((reply.status, reply.json["detail"]), (403, "this is the last admin"))

    def test_a_fault_of_the_program_is_a_number_and_nothing_else(self) -> None:
        self.world.fleet.trouble = RuntimeError("INSERT INTO secrets")
        reply = self.harness.request("GET", "/api/v1/defenders")
        self.assertEqual((reply.status, reply.json["code"]), (500, "fault"))
        self.assertEqual(reply.json["instance"], f"urn:uuid:{reply.headers['x-request-id']}")
        self.assertNotIn(b"INSERT", reply.body)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_readiness_says_what_is_wrong(self) -> None:
        self.assertEqual(self.harness.request("GET", "/readyz", token=None).status, 200)
        self.world.health.checks = (Check("store", False, "no space left"), Check("authority", True))
        reply = self.harness.request("GET", "/readyz", token=None)
        self.assertEqual((reply.status, reply.json["ready"]), (503, False))
        self.assertEqual(reply.json["checks"][0], {"name": "store", "ok": False, "detail": "no space left"})

    def test_metrics_are_the_controllers_and_the_apis(self) -> None:
        reply = self.harness.request("GET", "/metrics", token=only("metrics.read"))
        self.assertEqual(reply.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8")
        self.assertIn(b"dfleet_defenders 3\n", reply.body)
        self.assertIn(b"dfleet_api_streams 0\n", reply.body)


class PolicyTests(AnswersTestCase):
    """Conditional requests."""

    path = "/api/v1/policies/builders"
    draft: Mapping[str, Any] = {"text": "schema: 1\nrules: []\n"}

    def test_a_change_needs_the_state_that_it_means(self) -> None:
        for method, path, body in (
            ("PUT", f"{self.path}/draft", self.draft),
            ("DELETE", f"{self.path}/draft", None),
            ("POST", f"{self.path}/publish", {}),
            ("POST", f"{self.path}/rollback", {"version": 3}),
            ("DELETE", self.path, None),
        ):
            reply = self.harness.request(method, path, body)
            self.assertEqual((reply.status, reply.json["errors"][0]["pointer"]), (428, "/if-match"), path)
            reply = self.harness.request(method, path, body, headers={"If-Match": '"old"'})
            self.assertEqual((reply.status, reply.headers["etag"]), (412, '"12-8b1f2e6c"'), path)
        self.assertEqual(self.world.policies.published, [])

    def test_of_two_who_save_the_second_is_told(self) -> None:
        etag = self.harness.request("GET", self.path).headers["etag"]
        first = self.harness.request("PUT", f"{self.path}/draft", self.draft, headers={"If-Match": etag})
        self.assertEqual(first.status, 200)
        self.assertNotEqual(first.headers["etag"], etag)
        second = self.harness.request("PUT", f"{self.path}/draft", self.draft, headers={"If-Match": etag})
        self.assertEqual((second.status, second.headers["etag"]), (412, first.headers["etag"]))

    def test_a_new_policy_is_made_where_there_is_none(self) -> None:
        absent = {"If-None-Match": "*"}
        self.assertEqual(
            self.harness.request("PUT", f"{self.path}/draft", self.draft, headers=absent).status, 412
        )
        path = "/api/v1/policies/another/draft"
        self.assertEqual(self.harness.request("PUT", path, self.draft, headers=absent).status, 200)

    def test_what_is_unchanged_is_not_sent_again(self) -> None:
        etag = self.harness.request("GET", self.path).headers["etag"]
        reply = self.harness.request("GET", self.path, headers={"If-None-Match": etag})
        self.assertEqual((reply.status, reply.body, reply.headers["etag"]), (304, b"", etag))
        reply = self.harness.request("GET", self.path, headers={"If-None-Match": '"other"'})
        self.assertEqual(reply.status, 200)

    def test_a_rollout_goes_in_waves_unless_it_is_said(self) -> None:
        for body, waves in (({}, True), ({"waves": False, "comment": "now"}, False)):
            reply = self.harness.request("POST", f"{self.path}/publish", body, headers={"If-Match": "*"})
            self.assertEqual(reply.status, 202)
            self.assertEqual(self.world.policies.published[-1]["waves"], waves)


class SelectionTests(AnswersTestCase):
    """Which defenders are meant."""

    def test_filters_reach_the_port(self) -> None:
        self.harness.request(
            "GET", "/api/v1/defenders?name=web*&label=site=vienna&label=tier=&state=online&limit=7&cursor=c1"
        )
        wanted = Selection((), ("web*",), {"site": "vienna", "tier": ""}, "online")
        self.assertEqual(self.world.fleet.selected, [wanted])
        self.assertEqual((self.world.fleet.pages[0].cursor, self.world.fleet.pages[0].limit), ("c1", 7))

    def test_labels_that_are_none_are_named(self) -> None:
        for query in ("label=site", "label==x", "label=site=a/b", "label=a=1&label=a=2"):
            reply = self.harness.request("GET", f"/api/v1/defenders?{query}")
            self.assertEqual((reply.status, reply.json["errors"][0]["pointer"]), (400, "/label"), query)

    def test_a_change_of_listeners_selects_somebody_by_intent(self) -> None:
        path = "/api/v1/listener-changes"
        nobody: tuple[dict[str, Any], ...] = ({}, {"labels": {}}, {"names": []}, {"ids": []})
        for select in nobody:
            reply = self.harness.request("POST", path, {"select": select, "mode": "none"})
            self.assertEqual(reply.status, 422, select)
            self.assertTrue(reply.json["errors"][0]["pointer"].startswith("/select"))
        self.assertEqual(self.world.fleet.selected, [])
        self.assertEqual(
            self.harness.request("POST", path, {"select": {"names": ["*"]}, "mode": "none"}).status, 202
        )

    def test_the_same_lock_twice_is_one(self) -> None:
        wanted = {"kind": "user", "value": "bruce"}
        self.assertEqual(self.harness.request("POST", "/api/v1/locks", wanted).status, 201)
        self.assertEqual(self.harness.request("POST", "/api/v1/locks", wanted).status, 200)


class RepeatTests(AnswersTestCase):
    """Idempotency-Key."""

    def create(self, key: str = "k1", **changed: Any) -> Reply:
        headers = {"Idempotency-Key": key} if key else {}
        token = changed.pop("token", EVERYTHING)
        return self.harness.request(
            "POST", "/api/v1/accounts", {**ACCOUNT, **changed}, headers=headers, token=token
        )

    def test_a_repeated_request_acts_once(self) -> None:
        first, second = self.create(), self.create()
        self.assertEqual((first.status, first.body), (201, second.body))
        self.assertEqual(self.world.accounts.created, 1)
        self.create("k2")
        self.create("")
        self.assertEqual(self.world.accounts.created, 3)

    def test_a_key_is_for_one_body(self) -> None:
        self.create()
        reply = self.create(user="other")
        self.assertEqual((reply.status, reply.json["errors"][0]["pointer"]), (422, "/idempotency-key"))
        self.assertEqual(self.world.accounts.created, 1)

    def test_a_key_ends(self) -> None:
        self.create()
        self.harness.clock.advance(LIFE + 1)
        self.create()
        self.assertEqual(self.world.accounts.created, 2)

    def test_a_repetition_waits_for_the_first(self) -> None:
        waiting: Deferred[Any] = Deferred()
        self.world.accounts.waiting = waiting
        raw = request_bytes("POST", "/api/v1/accounts", ACCOUNT, headers={"Idempotency-Key": "k1"})
        connections = [self.harness.connect() for _ in range(3)]
        for connection in connections:
            connection.send(raw)
        connections[0].close()  # the one that acts loses its client
        waiting.callback(example("Account"))
        self.assertEqual([read_reply(one.received).status for one in connections[1:]], [201, 201])
        self.assertEqual(self.world.accounts.created, 1)

    def test_what_failed_may_be_tried_again(self) -> None:
        waiting: Deferred[Any] = Deferred()
        self.world.accounts.waiting = waiting
        raw = request_bytes("POST", "/api/v1/accounts", ACCOUNT, headers={"Idempotency-Key": "k1"})
        first, second = self.harness.connect(), self.harness.connect()
        first.send(raw)
        second.send(raw)
        waiting.errback(UnavailableError("the store is away"))
        self.assertEqual(read_reply(first.received).status, 503)
        self.assertEqual(read_reply(second.received).json["code"], "first-failed")
        self.world.accounts.waiting = None
        self.assertEqual(self.create().status, 201)


class GoneTests(AnswersTestCase):
    """Clients that do not wait, and operations that do not end."""

    def begin(self, waiting: Deferred[Any]) -> Any:
        self.world.accounts.waiting = waiting
        connection = self.harness.connect()
        connection.send(request_bytes("POST", "/api/v1/accounts", ACCOUNT))
        return connection

    def test_what_was_begun_is_not_cancelled(self) -> None:
        cancelled: list[object] = []
        waiting: Deferred[Any] = Deferred(cancelled.append)
        self.begin(waiting).close()
        self.assertEqual(cancelled, [])
        waiting.callback(example("Account"))
        self.assertEqual(self.harness.clock.getDelayedCalls(), [])

    def test_what_was_not_begun_is_not_done_for_nobody(self) -> None:
        for method, path, body in (
            ("POST", "/api/v1/accounts", ACCOUNT),
            ("GET", "/api/v1/defenders", None),
            ("GET", "/api/v1/audit/stream", None),
        ):
            looking_up: Deferred[Principal | None] = Deferred()
            self.world.accounts.looking_up = looking_up
            connection = self.harness.connect()
            connection.send(request_bytes(method, path, body))
            connection.close()
            if not looking_up.called:
                permissions = frozenset({"accounts.write", "defenders.read", "audit.read"})
                looking_up.callback(Principal("admin", "session", "s1", ("admin",), permissions, 0.0))
        self.assertEqual((self.world.accounts.created, self.world.fleet.selected), (0, []))
        self.assertEqual(self.world.audit.asked, 0)

    def test_a_fault_without_a_client_is_logged(self) -> None:
        waiting: Deferred[Any] = Deferred()
        self.begin(waiting).close()
        waiting.errback(RuntimeError("late"))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_an_expected_error_without_a_client_is_not(self) -> None:
        waiting: Deferred[Any] = Deferred()
        self.begin(waiting).close()
        waiting.errback(ConflictError("late"))

    def test_an_operation_that_does_not_end_is_told_as_unknown(self) -> None:
        waiting: Deferred[Any] = Deferred()
        connection = self.begin(waiting)
        self.harness.clock.advance(PATIENCE)
        reply = read_reply(connection.received)
        self.assertEqual((reply.status, reply.json["code"]), (503, "too-slow"))
        waiting.callback(example("Account"))

    def test_a_stop_waits_for_what_was_begun(self) -> None:
        waiting: Deferred[Any] = Deferred()
        connection = self.begin(waiting)
        stopped = self.harness.api.stop()
        self.assertNoResult(stopped)
        self.assertEqual(self.harness.request("GET", "/api/v1/locks").json["code"], "stopping")
        self.assertEqual(self.harness.request("GET", "/livez").status, 200)
        waiting.callback(example("Account"))
        self.assertEqual(read_reply(connection.received).status, 201)
        self.successResultOf(stopped)

    def test_one_caller_has_a_bounded_share(self) -> None:
        waiting: list[Deferred[Any]] = [Deferred() for _ in range(EACH + 1)]
        connections = [self.begin(one) for one in waiting]
        self.assertEqual(read_reply(connections[-1].received).json["code"], "too-many-requests")
        for one in waiting:
            one.callback(example("Account"))
        self.assertEqual(self.harness.request("GET", "/api/v1/locks").status, 200)
