"""What of the bench can be wrong without a run: its policy, its settings, its table."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from defender.contract.actions import recognize
from defender.contract.facts import Subject
from defender.contract.policy import PolicyTable
from defender.contract.policy_schema import load_policy
from defender.settings import read_settings
from tests.bench.children import Scene
from tests.bench.report import WIDTHS, table
from tests.bench.run import TARGET_PATH
from tests.bench.targets import POLICY, SECTIONS, defender_settings


class Configuration(SynchronousTestCase):
    def test_policy_allows_the_measured_request_by_its_second_rule(self) -> None:
        operation, _ = recognize("GET", TARGET_PATH.removeprefix("/v1.41").partition("?")[0])
        decision = PolicyTable(load_policy(POLICY, "bench"), "bench").decide(
            Subject("bench@example.com", ("Dev team",)), operation
        )
        self.assertEqual(
            (operation.action, decision.effect, decision.rule), ("container_list", "allow", "developers")
        )

    def test_settings_are_what_the_defender_reads(self) -> None:
        directory = Path("/srv/bench")
        chain, key, clients = (directory / name for name in ("server.pem", "server.key", "clients.pem"))
        scene = Scene(directory, directory / "engine.sock", chain, key, clients, 0)
        text = defender_settings(scene, directory, 9998)
        settings = read_settings(text, source="bench", base=directory, host_name="bench")
        self.assertEqual(settings.listen.tcp, ("127.0.0.1:9998",))
        self.assertEqual(settings.engine.socket, str(directory / "engine.sock"))
        self.assertEqual(settings.tls.client_ca, directory / "users.pem")

    def test_haproxy_rules_decide_the_measured_request_alike(self) -> None:
        path = TARGET_PATH.partition("?")[0]
        verdicts = [allowed for section, allowed in SECTIONS if re.match(rf"(/v[\d.]+)?/{section}", path)]
        self.assertEqual(verdicts[:1], [True])


class Table(SynchronousTestCase):
    def test_rows_are_sorted_by_speed_and_carry_the_ratios(self) -> None:
        def figures(rps: float) -> dict[str, float]:
            return {"rps": rps, "p50_us": 123456, "p99_us": 1234567, "cpu_us": 99, "load": 50}

        text = table(
            {"keep 8": {"web": figures(2500), "defender": figures(12500), "haproxy": figures(25000)}}
        )
        rows = [row.split() for row in text.splitlines()[2:]]
        self.assertEqual([row[-10] for row in rows], ["haproxy", "defender", "web"])
        self.assertEqual(
            rows[1], ["defender", "12500", "123456", "1234567", "99", "50", "0.50", "-", "-", "5.00"]
        )

    def test_absent_target_leaves_a_dash(self) -> None:
        text = table({"new 4": {"defender": {"rps": 10.0, "p50_us": 1, "p99_us": 2, "cpu_us": 3, "load": 4}}})
        self.assertEqual(text.splitlines()[-1].split()[-4:], ["-"] * 4)

    def test_fits_into_a_hundred_and_ten_columns(self) -> None:
        self.assertLessEqual(sum(WIDTHS), 110)
