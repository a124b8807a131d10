"""Every route does what it declares, and OpenAPI says the same."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from controller.accounts import PERMISSIONS
from controller.api.app import SECURITY_HEADERS
from controller.api.catalog import all_routes
from controller.api.openapi import possible_problems
from controller.api.routes import SIGNED_IN, Route
from tests.controller.api.doubles import PASSWORD, only
from tests.controller.api.harness import Harness, Reply
from tests.controller.api.test_schema import JSON

ROUTES = all_routes("0.0")
WITH_BODY = [route for route in ROUTES if route.body is not None]
VALUES: Mapping[str, str] = {"user": "bruce", "defender": "web1", "policy": "builders", "version": "3"}


def path_of(route: Route) -> str:
    """A path that leads to something."""
    return re.sub(r"\{(\w+)\}", lambda found: VALUES.get(found[1], "k7c3q"), route.path)


def body_of(route: Route) -> Any:
    """The route's own example; a sign-in needs the right password."""
    return {"user": "admin", "password": PASSWORD} if route.operation == "log_in" else route.example


def conditions_of(route: Route) -> dict[str, str]:
    """The header fields that a good request has."""
    return {"If-Match": "*"} if route.conditional else {}


class EveryRouteTests(SynchronousTestCase):
    """What holds for all of them."""

    def setUp(self) -> None:
        self.harness = Harness()

    def ask(self, route: Route, **more: Any) -> Reply:
        wanted: dict[str, Any] = {"headers": conditions_of(route), "body": body_of(route), **more}
        body = wanted.pop("body")
        if route.streams:
            # A stream goes on; its head is enough here.
            return self.harness.request("HEAD", path_of(route), body, **wanted)
        return self.harness.request(route.method, path_of(route), body, **wanted)

    def test_each_answers_its_own_example(self) -> None:
        for route in ROUTES:
            reply = self.ask(route)
            self.assertEqual(reply.status, 200 if route.streams else route.status, (route.operation, reply))
            if reply.status != 204:
                self.assertEqual(reply.headers["content-type"], route.media[0], route.operation)

    def test_each_is_described(self) -> None:
        described = self.harness.request("GET", "/api/v1/openapi.json", token=None).json
        self.assertEqual(described["openapi"], "3.1.0")
        found = {
            (method.upper(), path): operation
            for path, methods in described["paths"].items()
            for method, operation in methods.items()
        }
        self.assertEqual(set(found), {(route.method, route.path) for route in ROUTES})
        names = [operation["operationId"] for operation in found.values()]
        self.assertEqual(len(names), len(set(names)))
        for route in ROUTES:
            operation = found[route.method, route.path]
            self.assertEqual(operation.get("x-permission", ""), route.permission)
            self.assertIn(str(route.status), operation["responses"])
            listed = {item["name"] for item in operation["parameters"] if item["in"] == "path"}
            self.assertEqual(listed, set(re.findall(r"\{(\w+)\}", route.path)), route.path)
            self.assertEqual("requestBody" in operation, route.body is not None)

    def test_every_reference_of_the_description_leads_somewhere(self) -> None:
        described = self.harness.request("GET", "/api/v1/openapi.json").json
        for reference in re.findall(r'"\$ref": "([^"]+)"', json.dumps(described)):
            place = described
            for part in reference.removeprefix("#/").split("/"):
                place = place[part]
        self.assertEqual(self.ask(ROUTES[0]).status, 201)

    def test_none_is_open_by_accident(self) -> None:
        everybody = {route.operation for route in ROUTES if not route.permission}
        self.assertEqual(everybody, {"log_in", "live", "ready", "openapi", "download_installer"})

    def test_what_is_posted_may_be_repeated(self) -> None:
        posted = {route.operation for route in ROUTES if route.method == "POST" and not route.repeatable}
        # These change nothing, and a second sign-in harms nobody.
        self.assertEqual(posted, {"log_in", "check_policy", "explain_policy"})

    def test_the_permissions_are_those_of_the_roles(self) -> None:
        asked = {route.permission for route in ROUTES} - {"", SIGNED_IN}
        self.assertEqual(asked, set(PERMISSIONS))

    def test_without_a_sign_in_nothing_else_is_looked_at(self) -> None:
        for route in ROUTES:
            if not route.permission:
                continue
            for token in (None, "unknown"):
                reply = self.ask(route, token=token, body={"wrong": 1} if route.body else None)
                self.assertEqual(reply.status, 401, route.operation)
                self.assertEqual(reply.headers["www-authenticate"], 'Bearer realm="defender-fleet"')

    def test_without_its_permission_each_refuses_and_the_refusal_is_recorded(self) -> None:
        for route in ROUTES:
            if route.permission in ("", SIGNED_IN):
                continue
            others = {one.permission for one in ROUTES} - {route.permission, ""}
            reply = self.ask(route, token=only(*sorted(others)), body={"wrong": 1} if route.body else None)
            self.assertEqual(reply.status, 403, route.operation)
            actor, operation, target, reason = self.harness.world.acts.refusals[-1]
            self.assertEqual((operation, target), (route.operation, path_of(route)))
            self.assertEqual((actor.user, actor.address), ("admin", "192.0.2.7"))
            self.assertIn(route.permission, reason)

    def test_each_permission_alone_suffices(self) -> None:
        for route in ROUTES:
            if route.permission and route.operation != "create_api_token":
                reply = self.ask(route, token=only(route.permission))
                self.assertLess(reply.status, 300, route.operation)

    def test_other_methods_are_refused_with_those_that_are_allowed(self) -> None:
        by_path: dict[str, set[str]] = {}
        for route in ROUTES:
            by_path.setdefault(path_of(route), set()).add(route.method)
        for path, methods in by_path.items():
            allowed = methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())
            for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "BREW"} - allowed:
                reply = self.harness.request(method, path)
                self.assertEqual(reply.status, 405, (method, path))
                self.assertEqual(set(reply.headers["allow"].split(", ")), allowed, (method, path))
            asked = self.harness.request("OPTIONS", path, token=None)
            self.assertEqual((asked.status, asked.body), (204, b""))
            self.assertEqual(set(asked.headers["allow"].split(", ")), allowed)

    def test_head_has_the_head_of_get_and_no_body(self) -> None:
        for route in ROUTES:
            if route.method == "GET" and not route.streams and route.operation != "metrics":
                get, head = self.ask(route), self.harness.request("HEAD", path_of(route))
                self.assertEqual((head.status, head.body), (get.status, b""), route.operation)
                for name in ("content-type", "content-length"):
                    self.assertEqual(head.headers[name], get.headers[name], route.operation)

    def test_every_answer_has_the_security_headers(self) -> None:
        for reply in (
            self.harness.request("GET", "/livez", token=None),
            self.harness.request("GET", "/api/v1/locks", token=None),
            self.harness.request("GET", "/nowhere"),
            self.harness.request("GET", "/%ff"),
            self.harness.request("PUT", "/livez"),
            self.harness.request("OPTIONS", "/livez"),
        ):
            for name, value in SECURITY_HEADERS:
                self.assertEqual(reply.headers[name.decode().lower()], value.decode())

    def test_queries_and_paths_are_held_to_their_declaration(self) -> None:
        for route in ROUTES:
            path = path_of(route)
            reply = self.harness.request(
                route.method, f"{path}?nonsense=1", body_of(route), headers=conditions_of(route)
            )
            self.assertEqual((reply.status, reply.json["errors"][0]["pointer"]), (400, "/nonsense"), path)
        for path, pointer in (
            ("/api/v1/policies/UPPER", "/policy"),
            ("/api/v1/policies/builders/versions/zero", "/version"),
            ("/api/v1/policies/builders/versions/0", "/version"),
            ("/api/v1/defenders/a%20b", "/defender"),
            ("/api/v1/defenders?limit=0", "/limit"),
            ("/api/v1/defenders?cursor=%0a", "/cursor"),
        ):
            reply = self.harness.request("GET", path)
            self.assertEqual((reply.status, reply.json["errors"][0]["pointer"]), (400, pointer), path)

    def test_what_takes_no_body_gets_none(self) -> None:
        for route in ROUTES:
            if route.body is None and not route.streams:
                reply = self.ask(route, body={"a": 1})
                self.assertEqual(reply.status, 400, route.operation)


class BodyTests(SynchronousTestCase):
    """Whatever a body holds, the answer is a good one or names the field."""

    def setUp(self) -> None:
        self.harness = Harness()

    def judge(self, route: Route, reply: Reply) -> None:
        if reply.status in (route.status, *route.also):
            return
        self.assertIn(reply.status, possible_problems(route), (route.operation, reply))
        self.assertEqual(reply.headers["content-type"], "application/problem+json")
        self.assertEqual(reply.json["status"], reply.status)
        if reply.status in (400, 415, 422):
            for fault in reply.json["errors"]:
                self.assertTrue(fault["message"])
                self.assertTrue(fault["pointer"] == "" or fault["pointer"].startswith("/"), fault)
            self.assertTrue(reply.json["errors"], reply)

    def ask(self, route: Route, raw: bytes) -> Reply:
        # Each time anew: sign-ins are counted, and what is created is kept.
        harness = self.harness
        harness.world.accounts.wrong = 0
        return harness.request(route.method, path_of(route), raw=raw, headers=conditions_of(route))

    @given(st.data())
    @settings(max_examples=400, deadline=None)
    def test_any_json(self, data: st.DataObject) -> None:
        route = data.draw(st.sampled_from(WITH_BODY))
        self.judge(route, self.ask(route, json.dumps(data.draw(JSON)).encode()))

    @given(st.data())
    @settings(max_examples=400, deadline=None)
    def test_an_example_with_one_value_replaced(self, data: st.DataObject) -> None:
        route = data.draw(st.sampled_from(WITH_BODY))
        body = json.loads(json.dumps(body_of(route)))
        known = [*getattr(route.body, "required", ()), *getattr(route.body, "optional", ())]
        place = data.draw(st.sampled_from(known) | st.text(max_size=6))
        body[place] = data.draw(JSON)
        self.judge(route, self.ask(route, json.dumps(body).encode()))

    @given(st.data())
    @settings(max_examples=200, deadline=None)
    def test_any_bytes(self, data: st.DataObject) -> None:
        route = data.draw(st.sampled_from(WITH_BODY))
        self.judge(route, self.ask(route, data.draw(st.binary(max_size=80))))

    def test_bodies_say_that_they_are_json(self) -> None:
        for route in WITH_BODY:
            reply = self.harness.request(
                route.method,
                path_of(route),
                body_of(route),
                headers={**conditions_of(route), "Content-Type": "text/plain"},
            )
            self.assertEqual(reply.status, 415, route.operation)

    def test_no_body_is_told(self) -> None:
        for route in WITH_BODY:
            reply = self.ask(route, b"")
            self.assertEqual((reply.status, reply.json["code"]), (400, "not-json"), route.operation)

    def test_a_body_beyond_the_limit_of_its_route_is_refused(self) -> None:
        raw = b'{"labels": {"a": "' + b"x" * (1024 * 1024) + b'"}}'
        reply = self.harness.request("PATCH", "/api/v1/defenders/web1", raw=raw)
        self.assertEqual((reply.status, reply.json["code"]), (413, "too-large"))
        text = json.dumps({"text": "#" * (1024 * 1024)})
        reply = self.harness.request("POST", "/api/v1/policy-checks", raw=text.encode())
        self.assertEqual(reply.status, 200)
