"""What of the bench can be wrong without a run: its policy, its settings, its table."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from twisted.trial.unittest import SynchronousTestCase

from defender.contract.actions import recognize
from defender.contract.facts import Subject
from defender.contract.policy import PolicyTable
from defender.contract.policy_schema import load_policy
from defender.settings import read_settings
from tests.bench import real_engine
from tests.bench.cases import ATTACH, DISTINCT_TARGETS, FULL, GROUPS, TARGET_PATH, cases
from tests.bench.children import ROOT
from tests.bench.decisions import RULES, USERS, policy_cost, policy_text, subjects
from tests.bench.durable import OTHER, RECORD_FIRST
from tests.bench.flame import WIDTH, flame_graph, shares
from tests.bench.goals import Goal, goals
from tests.bench.profiling import PROFILED, serving_stacks, thread_seconds
from tests.bench.report import KINDS, comparison
from tests.bench.run import chosen, options_parser
from tests.bench.spool import spool_cost
from tests.bench.stage import cores, scene_of
from tests.bench.targets import CLOSING, POLICY, SECTIONS, TARGETS, TUNED, defender_settings, haproxy_config

MEASURED = (
    ("GET", TARGET_PATH),
    ("GET", DISTINCT_TARGETS[0]),
    ("GET", "/v1.41/images/get?names=1"),
    ("POST", "/v1.41/images/load"),
    ("POST", ATTACH),
    ("GET", "/_ping"),
    ("GET", "/v1.41/info"),
    ("POST", f"/v1.41/containers/web/{RECORD_FIRST}"),
    ("POST", f"/v1.41/containers/web/{OTHER}"),
)
"""Every kind of request that the bench makes; the last two of the defender alone."""


class Configuration(SynchronousTestCase):
    def test_policy_allows_each_measured_request_by_its_second_rule(self) -> None:
        table = PolicyTable(load_policy(POLICY, "bench"), "bench")
        for method, target in MEASURED:
            operation, _ = recognize(method, target.removeprefix("/v1.41").partition("?")[0])
            decision = table.decide(Subject("bench@example.com", ("Dev team",)), operation)
            self.assertEqual((decision.effect, decision.rule), ("allow", "developers"), target)

    def test_what_waits_for_the_disk_and_what_does_not_are_what_they_should_be(self) -> None:
        for verb, first in ((RECORD_FIRST, True), (OTHER, False)):
            operation, _ = recognize("POST", f"/containers/web/{verb}")
            self.assertEqual(operation.record_first, first)

    def test_settings_are_what_the_defender_reads(self) -> None:
        directory = Path("/srv/bench")
        scene = scene_of(directory, directory / "engine.sock", 0)
        text = defender_settings(scene, directory, 9998)
        settings = read_settings(text, source="bench", base=directory, host_name="bench")
        self.assertEqual(settings.listen.tcp, ("127.0.0.1:9998",))
        self.assertEqual(settings.engine.socket, str(directory / "engine.sock"))
        self.assertEqual(settings.tls.client_ca, directory / "users.pem")

    def test_haproxy_rules_allow_what_its_cases_ask_for(self) -> None:
        for _, target in MEASURED[:-2]:
            path = target.partition("?")[0]
            verdicts = [allowed for section, allowed in SECTIONS if re.match(rf"(/v[\d.]+)?/{section}", path)]
            self.assertEqual(verdicts[:1], [True], target)

    def test_the_two_haproxies_differ_in_what_they_do_with_connections_to_the_engine(self) -> None:
        scene = scene_of(Path("/srv/bench"), Path("/srv/bench/engine.sock"), 0)
        tuned, closing = (
            haproxy_config(scene, 9998, Path("/srv/bench/haproxy.pem"), kind).splitlines()
            for kind in (TUNED, CLOSING)
        )
        self.assertEqual(
            {line.strip() for line in set(tuned) ^ set(closing)},
            {
                "option http-keep-alive",
                "http-reuse always",
                "option http-server-close",
                "server engine unix@/srv/bench/engine.sock pool-max-conn -1",
                "server engine unix@/srv/bench/engine.sock",
            },
        )


class Table(SynchronousTestCase):
    def test_rows_are_sorted_by_speed_and_carry_the_ratios(self) -> None:
        def figures(rps: float) -> dict[str, float]:
            return {"rps": rps, "p50_us": 123456, "p99_us": 1234567, "cpu_us": 99, "load": 50}

        text = comparison(
            KINDS[0],
            {"keep 8": {"web": figures(2500), "defender": figures(12500), "haproxy": figures(25000)}},
        )
        rows = [row.split() for row in text.splitlines()[4:]]
        self.assertEqual([row[-10] for row in rows], ["haproxy", "defender", "web"])
        self.assertEqual(
            rows[1], ["defender", "12500", "123456", "1234567", "99", "50", "0.50", "-", "-", "5.00"]
        )

    def test_what_costs_less_comes_first_where_less_is_better(self) -> None:
        kind = next(kind for kind in KINDS if "idle" in kind.groups)
        text = comparison(kind, {"idle": {"go": {"kib": 46.0}, "defender": {"kib": 23.0}}})
        self.assertEqual([row.split()[-6] for row in text.splitlines()[4:]], ["defender", "go"])

    def test_cases_of_other_kinds_are_left_out(self) -> None:
        self.assertEqual(comparison(KINDS[0], {"idle": {"go": {"kib": 46.0}}}), "")

    def test_fits_into_a_hundred_and_ten_columns(self) -> None:
        figures = {"rps": 123456.0, "p50_us": 12345678, "p99_us": 12345678, "cpu_us": 9999, "load": 100}
        names = ("defender", "haproxy", "haproxy-close", "go", "web")
        text = comparison(KINDS[0], {"distinct 64": dict.fromkeys(names, figures)})
        self.assertLessEqual(max(map(len, text.splitlines())), 110)


class Targets(SynchronousTestCase):
    def test_a_bound_is_met_by_the_value_as_it_is_printed(self) -> None:
        for value, rising, verdict in (
            (1.154, True, "yes"),
            (1.144, True, "NO"),
            (1.154, False, "yes"),
            (1.156, False, "NO"),
        ):
            self.assertEqual(Goal("it", value, 1.15, None, rising).verdict, verdict)

    def test_the_aim_is_told_apart(self) -> None:
        self.assertEqual(Goal("it", 0.59, 0.8, 0.6).verdict, "aim")
        self.assertEqual(Goal("it", 0.61, 0.8, 0.6).verdict, "yes")

    def test_every_measure_of_the_defender_is_taken_relative_to_its_target(self) -> None:
        medians = {
            "keep 1": {
                "defender": {"rps": 120.0, "p50_us": 140.0},
                "go": {"rps": 100.0},
                "haproxy": {"p50_us": 100.0},
            },
            "idle": {"defender": {"kib": 30.04}},
            "/info 1": {"defender": {"p50_us": 116.0}, "dockerd": {"p50_us": 100.0}},
            "/info 8": {"defender": {"rps": 90.0}, "dockerd": {"rps": 100.0}},
        }
        self.assertEqual(
            [(round(goal.value, 2), goal.verdict) for goal in goals(medians)],
            [(1.2, "yes"), (1.4, "yes"), (1.16, "NO"), (0.9, "yes"), (30.04, "yes")],
        )

    def test_durable_calls_are_held_against_the_disk(self) -> None:
        durable = {"p50_1": 900.0, "p99_1": 4000.0, "p50_64": 1.0, "p99_64": 5200.0}
        found = goals({}, durable=durable, disk={"paced_p50_us": 1000.0})
        self.assertEqual([goal.verdict for goal in found], ["yes", "yes", "NO"])

    def test_reads_that_sync_are_seen(self) -> None:
        reads = {"requests": 1000.0, "syncs": 1000.0, "seconds": 1.0}
        self.assertEqual([goal.verdict for goal in goals({}, syncs={"reads": reads})], ["NO"])


class Options(SynchronousTestCase):
    def test_a_subset_keeps_the_order_of_the_table(self) -> None:
        self.assertEqual(chosen("new,keep", GROUPS, "case", options_parser()), ["keep", "new"])


class Decisions(SynchronousTestCase):
    def test_every_decision_of_the_measured_policies_is_made_by_a_rule(self) -> None:
        for rules in RULES:
            table = PolicyTable(load_policy(policy_text(rules), "bench"), "bench")
            last = subjects(rules)[-1]
            operation, _ = recognize("GET", "/info")
            self.assertEqual(table.decide(last, operation).rule, f"team-{(USERS - 1) % rules}")

    def test_both_sizes_are_timed(self) -> None:
        figures = policy_cost(100)
        self.assertGreater(figures["us_10"], 0)
        self.assertGreater(figures["us_1000"], 0)


class Spool(SynchronousTestCase):
    def test_a_short_run_tells_rates_and_times_and_loses_nothing(self) -> None:
        with tempfile.TemporaryDirectory(prefix="b", dir="/tmp") as name:
            figures = spool_cost(Path(name), 200, cores()[0])
        self.assertEqual(figures["dropped"], 0)
        for key in ("events_s", "cpu_us", "append_us", "bytes", "commit_p50_1_us", "commit_p99_64_us"):
            self.assertGreater(figures[key], 0, key)


class Profile(SynchronousTestCase):
    def test_shares_count_a_function_once_in_each_stack(self) -> None:
        stacks = ["main;loop;send 3", "main;loop;loop;parse 1", "py-spy> Sampling", ""]
        self.assertEqual(
            shares(stacks),
            [("send", 75.0, 75.0), ("parse", 25.0, 25.0), ("loop", 0.0, 100.0), ("main", 0.0, 100.0)],
        )

    def test_a_frame_is_as_wide_as_its_share_and_stands_on_its_caller(self) -> None:
        picture = ElementTree.fromstring(flame_graph("a <title>", ["main;loop;send 3", "main;loop;parse 1"]))
        place = {"s": "http://www.w3.org/2000/svg"}
        frames = {}
        for group in picture.findall("s:g", place):
            rect = group.find("s:rect", place)
            assert rect is not None
            name = (group.findtext("s:title", "", place)).partition(":")[0]
            frames[name] = tuple(float(rect.get(key, "")) for key in ("x", "width", "y"))
        self.assertEqual(frames["send"][:2], (WIDTH / 4, WIDTH * 3 / 4))
        self.assertEqual(frames["parse"][:2], (0, WIDTH / 4))
        self.assertLess(frames["send"][2], frames["loop"][2])

    def test_threads_of_python_are_left_out(self) -> None:
        stacks = ["run;doPoll 3", "Thread._bootstrap (threading.py:988);DiskThread._run (disk.py:47) 5"]
        self.assertEqual(serving_stacks(stacks), stacks[:1])

    def test_the_first_thread_s_time_is_part_of_the_whole(self) -> None:
        main, whole = thread_seconds(os.getpid())
        self.assertTrue(0 < main <= whole + 0.02, (main, whole))

    def test_every_profiled_case_is_one_of_the_bench(self) -> None:
        with tempfile.TemporaryDirectory(prefix="b", dir="/tmp") as name:
            known = {
                case.name for case in cases(FULL, scene_of(Path(name), Path(name) / "engine.sock", None))
            }
        self.assertLessEqual(set(PROFILED.values()), known)


class Page(SynchronousTestCase):
    def test_names_every_target_and_every_group_of_cases(self) -> None:
        text = (ROOT / "docs/explanation/performance.md").read_text("utf-8")
        table = re.findall(r"^\| (`.+?) \|", text, re.MULTILINE)
        named = {name for cell in table for name in re.findall(r"`([a-z-]+)`", cell)}
        self.assertEqual(named, {*TARGETS, *real_engine.TARGET_NAMES, *GROUPS})
