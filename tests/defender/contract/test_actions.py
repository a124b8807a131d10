"""The catalogue against the tables of facts, and `recognize` against a plain reading of them."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.contract.actions import (
    KNOWN_NAMES,
    NEWEST_API,
    OLDEST_API,
    OPERATIONS,
    UNKNOWN,
    Body,
    Operation,
    names_of,
    recognize,
)

DATA = Path(__file__).parents[2] / "data"


def read_table(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


ACTIONS = read_table("actions.tsv")
ROUTES = read_table("routes.tsv")
BODIES = {"none": Body.NONE, "json": Body.JSON, "tar": Body.TAR, "websocket": Body.WEBSOCKET, "h2c": Body.H2C}


def expected(action: dict[str, str], route: dict[str, str]) -> Operation:
    """The operation that the two rows of one order describe."""
    since = re.search(r"1\.(\d+)", route["since_api"])
    kind = re.match(r"[a-z0-9]+", route["body_kind"])
    assert kind is not None
    until = route["until_or_deprecated"]
    return Operation(
        order=int(action["order"]),
        method=action["method"],
        template=action["path_template"],
        action=action["action"],
        aliases=tuple(action["aliases"].split()),
        record_first={"y": True, "n": False}[action["record_first"]],
        explicit={"y": True, "n": False}[action["explicit"]],
        hijack=route["hijack"].startswith("y"),
        streaming=route["streaming"].startswith("y"),
        body=BODIES[kind[0]],
        since=(1, int(since[1])) if since else (1, 12),
        deprecated="" if until == "-" else until,
    )


def naive(method: str, path: str) -> str:
    """The first row of the table that matches, read one by one: slow and plain."""
    for row in ACTIONS:
        if row["action"] == "-" or row["method"] != method:
            continue
        pattern = ""
        for part in re.split(r"(\{[^{}]*\})", row["path_template"]):
            if not part.startswith("{"):
                pattern += re.escape(part)
            elif ":" in part:
                pattern += part[1:-1].split(":", 1)[1]
            else:
                pattern += "[^/]+"
        if re.fullmatch(pattern, path):
            return row["action"]
    return "unknown"


WORDS = sorted({word for row in ACTIONS for word in row["path_template"].split("/") if "{" not in word})
paths = st.lists(st.sampled_from([*WORDS, "web", "a-1", "v1.41", ".", "x y", "é", "a\nb"]), max_size=6).map(
    lambda parts: "/" + "/".join(parts)
)


class CatalogueTests(SynchronousTestCase):
    """`OPERATIONS` is the two tables, row by row."""

    def test_tables_describe_the_same_routes(self) -> None:
        self.assertEqual(len(ACTIONS), len(ROUTES))
        for action, route in zip(ACTIONS, ROUTES, strict=True):
            for column in ("order", "method", "path_template"):
                self.assertEqual(action[column], route[column])

    def test_every_row_in_order(self) -> None:
        rows = [
            expected(action, route)
            for action, route in zip(ACTIONS, ROUTES, strict=True)
            if action["action"] != "-"
        ]
        for row, operation in zip(rows, OPERATIONS, strict=True):
            self.assertEqual(operation, row)

    def test_every_row_is_reachable(self) -> None:
        """A path made from each template leads to its own row: no earlier row hides it."""
        for operation in OPERATIONS:
            path = re.sub(r"\{[^{}]*\}", "some-name", operation.template)
            self.assertEqual(recognize(operation.method, path)[0], operation, path)

    def test_api_range_covers_every_row(self) -> None:
        self.assertEqual(OLDEST_API, (1, 24))
        self.assertLessEqual(max(operation.since for operation in OPERATIONS), NEWEST_API)

    def test_explicit_actions_are_the_dangerous_ones(self) -> None:
        explicit = {operation.action for operation in OPERATIONS if operation.explicit}
        prefixes = {action.split("_")[0] for action in explicit}
        self.assertEqual(prefixes, {"session", "grpc", "debug", "plugin", "swarm", "checkpoint"})


class NamesTests(SynchronousTestCase):
    """The names that a policy may use."""

    def test_every_documented_name_is_known(self) -> None:
        documented = {row["action"] for row in ACTIONS} | {
            a for row in ACTIONS for a in row["aliases"].split()
        }
        self.assertEqual(KNOWN_NAMES, documented - {"-"})

    def test_alias_shared_by_two_actions(self) -> None:
        self.assertEqual(names_of("image_save"), {"image_save", "images_archive", "image_archive"})
        self.assertEqual(names_of("images_archive"), {"images_archive", "image_archive"})

    def test_names_of_every_operation_hold_its_aliases(self) -> None:
        for operation in OPERATIONS:
            self.assertLessEqual({operation.action, *operation.aliases}, names_of(operation.action))

    def test_unknown_is_no_name_for_a_policy(self) -> None:
        self.assertNotIn("unknown", KNOWN_NAMES)
        self.assertEqual(names_of("unknown"), {"unknown"})

    def test_names_of_an_alias_is_an_error(self) -> None:
        self.assertRaises(KeyError, names_of, "container_remove")


class RecognizeTests(SynchronousTestCase):
    """One request to one operation."""

    def assert_action(self, method: str, path: str, action: str, **variables: str) -> None:
        operation, values = recognize(method, path)
        self.assertEqual((operation.action, values), (action, variables), f"{method} {path}")

    def test_variables(self) -> None:
        self.assert_action("POST", "/containers/web/exec", "container_exec_create", name="web")
        self.assert_action(
            "DELETE", "/containers/web/checkpoints/c1", "checkpoint_delete", name="web", checkpoint="c1"
        )

    def test_names_with_slashes(self) -> None:
        self.assert_action("DELETE", "/containers/a/b/c", "container_delete", name="a/b/c")
        self.assert_action("GET", "/images/a/json/history", "image_history", name="a/json")
        self.assert_action("POST", "/images/registry:5000/a/b/push", "image_push", name="registry:5000/a/b")

    def test_empty_names(self) -> None:
        self.assert_action("GET", "/volumes/", "volume_inspect", name="")
        self.assert_action("GET", "/networks/", "network_list")
        self.assert_action("GET", "/services/", "unknown")
        self.assert_action("GET", "/containers//json", "container_inspect", name="")

    def test_order_decides_overlaps(self) -> None:
        self.assert_action(
            "DELETE", "/containers/a/checkpoints/b", "checkpoint_delete", name="a", checkpoint="b"
        )
        self.assert_action(
            "DELETE", "/containers/a/b/checkpoints/c", "container_delete", name="a/b/checkpoints/c"
        )
        self.assert_action("GET", "/containers/x/attach/ws", "container_attach_websocket", name="x")

    def test_misleading_container_names(self) -> None:
        """The route table of a known plugin took these for other actions."""
        self.assert_action("POST", "/containers/auth1/kill", "container_kill", name="auth1")
        self.assert_action("POST", "/containers/build-1/exec", "container_exec_create", name="build-1")

    def test_methods_are_exact(self) -> None:
        for method in ("get", "Get", "HEAD", "POST", "OPTIONS", "", "GET "):
            self.assertIs(recognize(method, "/containers/json")[0], UNKNOWN)
        self.assert_action("HEAD", "/_ping", "docker_ping")
        self.assert_action("HEAD", "/containers/x/archive", "container_archive_info", name="x")

    def test_paths_without_an_action(self) -> None:
        for method, path in (
            ("OPTIONS", "/containers/json"),
            ("GET", "/metrics"),
            ("GET", "/images/viz"),
            ("GET", "/containers/ps"),
            ("GET", "/plugins/x"),
            ("GET", "/"),
            ("GET", ""),
            ("GET", "*"),
            ("GET", "/v1.41/containers/json"),
            ("POST", "/moby.buildkit.v1.Control/Solve"),
            ("DELETE", "/debug/pprof/heap"),
        ):
            self.assertEqual(recognize(method, path), (UNKNOWN, {}), path)

    def test_whole_path_case_and_newline(self) -> None:
        for path in ("/containers/json\n", "/containers/json/", "/Containers/json", "/containers/a\nb/json"):
            self.assertIs(recognize("GET", path)[0], UNKNOWN, path)

    def test_the_dictionary_is_the_callers(self) -> None:
        recognize("GET", "/containers/json")[1]["name"] = "left behind"
        self.assertEqual(recognize("GET", "/containers/json")[1], {})

    @settings(max_examples=300, deadline=None)
    @given(st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "get"]), paths)
    def test_same_as_reading_the_table_row_by_row(self, method: str, path: str) -> None:
        self.assertEqual(recognize(method, path)[0].action, naive(method, path))
