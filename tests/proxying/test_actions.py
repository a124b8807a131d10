"""Each operation of the Engine passes where a rule names it, and nowhere else.

The table is that of the facts (`tests/data`), not the defender's own catalogue of it.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.proxying.base import OnFake, OnReal, ProxyCase
from tests.proxying.client import Peer
from tests.proxying.running import POLICY

DATA = Path(__file__).resolve().parents[1] / "data"
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "LINK", "get", "Post", "PRI")


@dataclass(frozen=True, slots=True)
class Row:
    """One operation: how it is asked for, by which names a policy knows it."""

    method: str
    template: str
    action: str
    aliases: tuple[str, ...]
    explicit: bool
    hijack: bool
    body: str

    @property
    def path(self) -> str:
        """A path that is this operation's and no other's."""
        return re.sub(r"\{[^}]*\}", "web", self.template)

    @property
    def target(self) -> str:
        """The whole path, with the version that every operation but one has."""
        return self.path if self.path.startswith("/debug/") else f"/v1.41{self.path}"

    def request(self) -> bytes:
        """A request that asks for it, with a body or an Upgrade where it takes one."""
        body, extra = b"", ""
        if self.body.startswith("json"):
            body, extra = b"{}", "Content-Type: application/json\r\n"
        elif self.body.startswith("tar"):
            body, extra = b"\0" * 1024, "Content-Type: application/x-tar\r\n"
        if self.hijack:
            kind = "h2c" if self.action in ("session", "grpc") else "tcp"
            kind = "websocket" if self.template.endswith("/ws") else kind
            extra += f"Connection: Upgrade\r\nUpgrade: {kind}\r\n"
        length = f"Content-Length: {len(body)}\r\n" if self.method in ("POST", "PUT") else ""
        return f"{self.method} {self.target} HTTP/1.1\r\nHost: x\r\n{extra}{length}\r\n".encode() + body


def _rows() -> Iterator[Row]:
    with (DATA / "routes.tsv").open(encoding="utf-8") as file:
        routes = {row["order"]: row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}
    with (DATA / "actions.tsv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            if row["action"].isidentifier() and row["action"] != "unknown":
                route = routes[row["order"]]
                yield Row(
                    row["method"],
                    row["path_template"],
                    row["action"],
                    tuple((row["aliases"] or "").replace(",", " ").split()),
                    row["explicit"] == "y",
                    route["hijack"] == "y",
                    route["body_kind"],
                )


ROWS = tuple(_rows())


def _rule(user: str, pattern: str) -> str:
    return f'  - {{name: "{user}", users: ["{user}"], effect: allow, actions: ["{pattern}"]}}\n'


def _policy() -> str:
    """One user for each name an action has, and for each action one with a glob that begins like it."""
    rules = {}
    for row in ROWS:
        for name in (row.action, *row.aliases):
            rules[f"by-{name}"] = name
        rules[f"glob-{row.action}"] = f"{row.action[:5]}*"
    rules["stars"] = "**"
    rules["nearly"] = "?*"
    return POLICY + "".join(_rule(user, pattern) for user, pattern in rules.items())


def _routes() -> list[tuple[str, re.Pattern[str]]]:
    """Method and pattern of each operation, to tell what is none."""
    patterns = []
    for row in ROWS:
        pattern = re.sub(r"\{\w+:([^}]*)\}", r"(?:\1)", row.template)
        patterns.append((row.method, re.compile(re.sub(r"\{\w+\}", "[^/]+", pattern))))
    return patterns


class Bodies:
    """Run on both Engines below."""

    class Denials(ProxyCase):
        """What no rule allows never reaches the Engine, whatever it is."""

        policy = _policy()

        def denied(self, peer: Peer, raw: bytes) -> str:
            """Send a request that is denied; the action that its denial names."""
            answer = peer.ask(raw)
            self.assertEqual(answer.status, 403, raw)
            if not answer.text:
                self.assertTrue(raw.startswith(b"HEAD "), raw)
                return ""
            message = json.loads(answer.text)["message"]
            found = re.fullmatch(
                r"\[Defender\] The command '(\w+)' denied for user '.*' by rule '.*'", message
            )
            assert found is not None, message
            return found[1]

        def test_a_stranger_may_nothing(self) -> None:
            for number, row in enumerate(ROWS):
                if number % 50 == 0:  # more denials of one user would be counted, not recorded one by one
                    peer = self.client(f"stranger-{number}")
                self.assertIn(
                    self.denied(peer, row.request()), (row.action, "" if row.method == "HEAD" else None)
                )
            self.assertEqual(self.tap.take(), [])
            for row, event in zip(ROWS, self.defender.take_events(len(ROWS)), strict=True):
                self.assertEqual(event["req"]["action"], row.action)
                self.assertEqual((event["result"]["status"], event["decision"]["rule"]), (403, "default"))

        def test_a_reader_may_look_only(self) -> None:
            for row in ROWS:
                if row.action not in ("container_list", "docker_ping"):
                    self.denied(self.client("reader"), row.request())
            self.assertEqual(self.tap.take(), [])

        def test_a_glob_never_reaches_what_is_explicit(self) -> None:
            explicit = [row for row in ROWS if row.explicit]
            self.assertGreater(len(explicit), 20)
            for row in explicit:
                for user in (f"glob-{row.action}", "stars", "nearly"):
                    self.assertEqual(self.denied(self.client(user), row.request()), row.action)
            self.assertEqual(self.tap.take(), [])

        def test_what_is_no_operation_is_unknown_to_all(self) -> None:
            """OPTIONS, other methods of known paths, lower-case ones: denied for who may do everything."""
            routes = _routes()
            peer = self.client("admin")
            count = 0
            for target, path in sorted({(row.target, row.path) for row in ROWS}):
                for method in METHODS:
                    if any(method == other and pattern.fullmatch(path) for other, pattern in routes):
                        continue
                    raw = f"{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
                    self.assertIn(self.denied(peer, raw), ("unknown", "" if method == "HEAD" else None), raw)
                    count += 1
            self.assertGreater(count, 800)
            self.assertEqual(self.tap.take(), [])

        def test_paths_that_are_none(self) -> None:
            peer = self.client("admin")
            for path in (
                *(
                    "/",
                    "/metrics",
                    "/v1.41",
                    "/containers",
                    "/containers/",
                    "/containers/json/",
                    "/Containers/json",
                ),
                *(
                    "/images",
                    "/info/",
                    "/_ping/",
                    "/_pin",
                    "/debug",
                    "/debug/pprof",
                    "/debug/requests",
                    "/swarm/x",
                ),
                *(
                    "/v1.41/v1.41/info",
                    "/plugin",
                    "/Plugin.Activate",
                    "/AuthZPlugin.AuthZReq",
                    "/system",
                    "/exec",
                ),
            ):
                answer = peer.ask(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                if answer.closes:  # a version and nothing else
                    self.assertEqual((answer.status, path), (400, "/v1.41"))
                    peer = self.client("admin")
                else:
                    self.assertEqual(answer.status, 403, path)
            self.assertEqual(self.tap.take(), [])


class FakeDenials(OnFake, Bodies.Denials):
    """On the fake Engine, which is asked for everything as well."""

    def allowed(self, user: str, row: Row) -> None:
        """The operation reaches the Engine for this user."""
        peer = self.defender.tls(user)
        try:
            answer = peer.send(row.request()).head(row.method)
            self.assertNotEqual(answer.status, 403, f"{user}: {row.method} {row.path}")
            requests = self.tap.take()
            self.assertEqual([request.line for request in requests], [f"{row.method} {row.target}"], user)
            self.assert_canonical(requests[0])
        finally:
            peer.close()

    def test_every_name_reaches_its_operation(self) -> None:
        for row in ROWS:
            for name in (row.action, *row.aliases):
                self.allowed(f"by-{name}", row)

    def test_a_name_reaches_no_other_operation(self) -> None:
        named = {row.action: {row.action, *row.aliases} for row in ROWS}
        for row, other in zip(ROWS, (*ROWS[1:], ROWS[0]), strict=True):
            if other.action != row.action and row.action not in named[other.action]:
                self.denied(self.client(f"by-{row.action}"), other.request())
        self.assertEqual(self.tap.take(), [])

    def test_a_glob_reaches_what_is_not_explicit(self) -> None:
        for row in ROWS:
            if not row.explicit:
                self.allowed(f"glob-{row.action}", row)
                self.allowed("stars", row)

    def test_a_star_reaches_everything(self) -> None:
        for row in ROWS:
            self.allowed("admin", row)


class RealDenials(OnReal, Bodies.Denials):
    """On the real Engine."""
