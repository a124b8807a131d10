"""Short runs of the bench give figures, and name what cannot be had."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from tests.bench import targets
from tests.bench.cases import QUICK, cases
from tests.bench.children import TargetError
from tests.bench.durable import added
from tests.bench.findings import findings
from tests.bench.real_engine import engine_cases
from tests.bench.report import tables
from tests.bench.run import main
from tests.bench.session import Run
from tests.bench.stage import scene_of

SHORT = replace(QUICK, seconds=0.2, bulk_mib=16, echo_mib=4, idle=20)


def short_run(targets: Sequence[str], *groups: str) -> Run:
    """Measure a moment of each case."""
    run = Run(SHORT, targets, groups)
    with (
        tempfile.TemporaryDirectory(prefix="b", dir="/tmp") as name,
        contextlib.redirect_stderr(io.StringIO()),
    ):
        run.do(Path(name))
    return run


class ShortRuns(SynchronousTestCase):
    def test_every_case_has_figures_of_every_target(self) -> None:
        names = ("defender", "haproxy", "web")
        run = short_run(names, "keep", "distinct", "new", "get", "put", "echo", "rtt", "idle")
        with tempfile.TemporaryDirectory(prefix="b", dir="/tmp") as name:
            wanted = cases(SHORT, scene_of(Path(name), Path(name) / "engine.sock", None))
        self.assertEqual(run.problems, {})
        medians = run.medians()
        self.assertEqual(list(medians), [case.name for case in wanted])
        for case in wanted:
            self.assertEqual(set(medians[case.name]), set(names) - case.without)
        for name, key in (("keep 8", "rps"), ("get", "mb_s"), ("put", "cpu_gb"), ("rtt", "p50_us")):
            self.assertGreater(medians[name]["defender"][key], 0, name)
        self.assertIn("memory by idle connection", tables(medians))

    def test_calls_that_wait_for_the_disk_sync_and_reads_do_not(self) -> None:
        run = short_run(["defender"], "durable")
        self.assertEqual(run.problems, {})
        self.assertEqual(set(added(run.found["durable"])), {"p50_1", "p99_1", "p50_64", "p99_64"})
        syncs = run.found["syncs"]
        self.assertGreaterEqual(syncs["record_first"]["syncs"], syncs["record_first"]["requests"])
        self.assertLess(syncs["reads"]["syncs"], syncs["reads"]["requests"] / 10)
        self.assertIn("64 at a time, added", findings(run.found))

    def test_a_real_engine_s_own_listener_and_a_proxy_are_measured_alike(self) -> None:
        run = short_run(["haproxy"], "engine")
        self.assertEqual(run.problems, {})
        medians = run.medians()
        self.assertEqual(list(medians), [case.name for case in engine_cases(SHORT)])
        for by_name in medians.values():
            self.assertEqual(set(by_name), {"dockerd", "haproxy"})

    def test_a_target_that_does_not_start_is_named_and_the_others_are_measured(self) -> None:
        output, complaints = io.StringIO(), io.StringIO()
        with (
            mock.patch.object(targets, "go_program", side_effect=TargetError("Go is not installed")),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(complaints),
        ):
            code = main(["--quick", "--seconds", "0.2", "--targets", "haproxy,go", "--cases", "new"])
        self.assertEqual(code, 1)
        self.assertIn("not measured: go: Go is not installed", complaints.getvalue())
        self.assertIn("new connections, 4  haproxy", output.getvalue())
