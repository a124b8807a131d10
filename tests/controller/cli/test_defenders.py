"""The fleet's defenders on the command line."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed

from controller.api.ports import ConflictError
from controller.cli import progress
from tests.controller.api.doubles import example
from tests.controller.cli.fleet_server import FleetTestCase


def change(state: str, detail: str = "", **counts: int) -> dict[str, Any]:
    """A change with one defender in this state."""
    made = example("Change")
    made["defenders"][0] |= {"state": state, "detail": detail}
    made["counts"] = {"acked": 0, "refused": 0, "waiting": 0, "offline": 0, "total": 1, state: 1, **counts}
    return made


class ListTests(FleetTestCase):
    """`defenders list` and `show`."""

    def test_conditions_reach_the_controller(self) -> None:
        told = self.good("defenders", "list", "--name", "web*", "--label", "site=vienna", "--state", "online")
        self.assertIn("web1", told)
        wanted = self.world.fleet.selected[-1]
        self.assertEqual(
            (wanted.names, wanted.labels, wanted.state), (("web*",), {"site": "vienna"}, "online")
        )
        self.assertEqual(json.loads(self.good("defenders", "list", "--json")), [example("Defender")])

    def test_what_is_not_as_it_should_be_is_shown(self) -> None:
        page = example("DefenderPage")
        page["items"][0]["listener"] = {"desired": "tcp", "actual": "unix", "drain": None, "detail": "taken"}
        page["items"][0]["streams"]["policy"] |= {"active": 11, "state": "refused"}
        self.patch(self.world.fleet, "defenders", lambda wanted, part: succeed(page))
        told = self.good("defenders", "list")
        for text in ("unix -> tcp", "11 -> 12", "policy refused"):
            self.assertIn(text, told)

    def test_none(self) -> None:
        empty: dict[str, Any] = {"items": [], "next": None}
        self.patch(self.world.fleet, "defenders", lambda wanted, part: succeed(empty))
        self.assertIn("no such defender", self.good("defenders", "list"))

    def test_one(self) -> None:
        told = self.good("defenders", "show", "web1")
        for text in ("10.1.2.3", "site=vienna", "STREAM", "trust"):
            self.assertIn(text, told)
        self.assertEqual(json.loads(self.good("defenders", "show", "web1", "--json")), example("Defender"))
        self.assertIn("there is no defender web9", self.bad("defenders", "show", "web9"))

    def test_a_label_that_is_none(self) -> None:
        self.assertIn("is not K=V", self.bad("defenders", "list", "--label", "site", code=2))


class ChangeTests(FleetTestCase):
    """Labels, removal, approval."""

    def test_labels(self) -> None:
        seen: list[Any] = []

        def relabel(actor: Any, ref: str, labels: Any) -> Any:
            seen.append((ref, labels))
            return succeed(example("Defender"))

        self.patch(self.world.fleet, "relabel", relabel)
        self.assertIn("web1: site=vienna", self.good("defenders", "label", "web1", "site=vienna", "rack-"))
        self.assertEqual(seen, [("web1", {"site": "vienna", "rack": None})])
        self.assertIn("neither K=V nor K-", self.bad("defenders", "label", "web1", "rack", code=2))

    def test_removal_wants_a_yes(self) -> None:
        self.assertIn("--yes", self.bad("defenders", "remove", "web1", code=2))
        self.assertIn("Removed web1", self.good("defenders", "remove", "web1", "--yes"))

    def test_approval(self) -> None:
        self.assertIn("web2", self.good("defenders", "waiting"))
        self.assertIn("approved", self.good("defenders", "approve", "x1"))
        self.assertIn("rejected", self.good("defenders", "reject", "x1"))


class ListenerTests(FleetTestCase):
    """`defenders set-listener`."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(progress, "POLL", 0.01)
        self.asked: list[Any] = []
        self.answers: list[dict[str, Any]] = [change("waiting"), change("waiting"), change("acked")]

        def set_listener(actor: Any, wanted: Any, mode: str, drain: float | None) -> Deferred[Any]:
            self.asked.append((wanted, mode, drain))
            return succeed(self.answers.pop(0))

        def look(ref: str) -> Deferred[Any]:
            return succeed(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])

        self.patch(self.world.fleet, "set_listener", set_listener)
        self.patch(self.world.fleet, "change", look)

    def test_it_is_watched_until_it_is_done(self) -> None:
        told = self.good("defenders", "set-listener", "web1", "unix+tcp", "--drain", "10m").splitlines()
        self.assertEqual(
            told,
            [
                "listener unix+tcp: 0 of 1 defender done, 0 refused, 1 waiting, 0 offline",
                "listener unix+tcp: 1 of 1 defender done, 0 refused, 0 offline.",
            ],
        )
        wanted, mode, drain = self.asked[0]
        self.assertEqual((wanted.ids, mode, drain), (("web1",), "unix+tcp", 600))

    def test_a_refusal_is_told_with_its_reason(self) -> None:
        self.answers = [change("waiting"), change("refused", "port 9998 is in use")]
        result = self.run_command("defenders", "set-listener", "web1", "tcp")
        self.assertEqual(result.exit_code, 1)
        self.assertIn("web1: refused: port 9998 is in use", result.stdout)

    def test_who_is_offline_follows(self) -> None:
        self.answers = [change("offline")]
        told = self.good("defenders", "set-listener", "web1", "none")
        self.assertIn("1 defender offline: it follows", told)

    def test_it_is_not_watched_for_ever(self) -> None:
        self.answers = [change("waiting")] * 2
        self.assertIn(
            "goes on without you", self.bad("defenders", "set-listener", "web1", "tcp", "--timeout", "0s")
        )

    def test_by_label_and_by_pattern(self) -> None:
        self.answers = [change("waiting"), change("acked")]
        document = json.loads(self.good("defenders", "set-listener", "--label", "a=b", "unix", "--json"))
        self.assertEqual(document["counts"]["acked"], 1)
        self.good("defenders", "set-listener", "web*", "unix", "--no-wait")
        self.assertEqual([dict(each[0].labels) for each in self.asked], [{"a": "b"}, {}])
        self.assertEqual(self.asked[1][0].names, ("web*",))

    def test_wrong_usage(self) -> None:
        for words, told in (
            (("web1",), "is no mode"),
            (("tcp",), "say which"),
            (("web1", "db*", "tcp"), "either names or patterns"),
            (("web1", "tcp", "--drain", "long"), "no span of time"),
            (("web1", "tcp", "--drain", "8d"), "longer than 7 days"),
        ):
            self.assertIn(told, self.bad("defenders", "set-listener", *words, code=2))

    def test_what_the_controller_refuses_is_one_line(self) -> None:
        trouble = fail(ConflictError("web1 is being removed"))
        self.patch(self.world.fleet, "set_listener", lambda *args: trouble)
        told = self.bad("defenders", "set-listener", "web1", "tcp").splitlines()
        self.assertEqual(told[1], f"{self.server.host}: web1 is being removed")
