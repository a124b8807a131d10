"""A short run of the bench of a fleet measures every case, on a real controller."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.bench.fleet.cases import GROUPS, QUICK, policy_text
from tests.bench.fleet.goals import fleet_goals
from tests.bench.fleet.run import main
from tests.bench.fleet.session import FleetRun, medians_table
from tests.bench.goals import goals_table

SHORT = replace(QUICK, defenders=6, processes=2, followers=12, senders=3, batches=2, guards=1, marks=5)


class ShortRuns(SynchronousTestCase):
    def test_every_case_has_its_goal(self) -> None:
        run = FleetRun(SHORT, tuple(GROUPS))
        with (
            tempfile.TemporaryDirectory(prefix="b", dir="/tmp") as name,
            contextlib.redirect_stderr(io.StringIO()),
        ):
            run.do(Path(name))
        self.assertEqual(run.problems, {})
        medians = run.medians()
        self.assertLessEqual(set(GROUPS), set(medians))
        self.assertEqual(medians["ingest"]["events"], 3 * 2 * 200)
        goals = fleet_goals(medians)
        self.assertEqual(len(goals), len(GROUPS))
        table = goals_table(goals)
        for case in GROUPS:
            self.assertGreater(len(medians_table({case: medians[case]}).splitlines()), 3)
        self.assertIn(">= 20000", table)


class Options(SynchronousTestCase):
    def test_unknown_cases_are_refused(self) -> None:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            self.assertRaises(SystemExit, main, ["--cases", "idle,nothing"])
        self.assertIn("unknown case: nothing", said.getvalue())

    def test_a_run_writes_its_figures(self) -> None:
        with tempfile.TemporaryDirectory(prefix="b", dir="/tmp") as name:
            file = Path(name) / "figures.json"
            words = ["--quick", "--defenders", "3", "--cases", "back", "--directory", name]
            with (
                contextlib.redirect_stdout(io.StringIO()) as said,
                contextlib.redirect_stderr(io.StringIO()),
            ):
                self.assertEqual(main([*words, "--json", str(file)]), 0)
            written = json.loads(file.read_text())
        self.assertEqual(written["problems"], {})
        self.assertIn("everybody back after a restart", said.getvalue())


class PolicyTexts(SynchronousTestCase):
    def test_a_text_has_the_size_that_is_asked_for(self) -> None:
        size = len(policy_text(1, 100 * 1024))
        self.assertTrue(100 * 1024 <= size < 101 * 1024, size)
