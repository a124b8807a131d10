"""The soak finds what it looks for: each check fails on the figures of a defender that is not well."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.soak.crowd import Crowd, RefusedError, connect_unix
from tests.soak.ledger import SHOWN, Ledger
from tests.soak.mixed import Result
from tests.soak.run import held, main
from tests.soak.samples import Sample, descriptors, engine_side, quantiles, slope
from tests.soak.verdict import (
    GROWTH,
    RISE,
    Check,
    audit_checks,
    count_checks,
    descriptor_checks,
    memory_checks,
    table,
    work_checks,
)
from tests.soak.work import GRACE, Books, Weather, Worker, WorkError


def event(seq: int, **changes: Any) -> dict[str, Any]:
    """The result of a read."""
    return {
        "epoch": "1",
        "seq": seq,
        "corr": f"c{seq}",
        "kind": "engine",
        "phase": "result",
        "actor": {"user": "bruce"},
        "req": {"action": "container_list"},
        "decision": {"effect": "allow"},
        "result": {"status": 200},
        **changes,
    }


def attempt(seq: int, corr: str, action: str = "container_create") -> dict[str, Any]:
    found = event(seq, corr=corr, phase="attempt", req={"action": action})
    del found["result"]
    return found


def sample(at: float = 0.0, rss_anon: int = 40_000, **changes: Any) -> Sample:
    """A defender at rest, with two idle Engine connections."""
    made = Sample(
        at=at,
        rss_anon=rss_anon,
        rss=rss_anon + 10_000,
        cpu=1.0,
        descriptors={"file": 4, "listener": 3, "engine": 2},
        engine_side=2,
        engine_files=20,
        status={
            "engine": {"connections": 2, "idle": 2},
            "clients": {"connections": 0, "streams": 0},
            "counters": {"requests": 1, "denied": 0, "streams_ended": 0, "turned_down": 0, "unrecorded": 0},
            "audit": {
                "failed": 0,
                "dropped": 0,
                "reduced": 0,
                "repaired": 0,
                "problem": "",
                "rotated": 5,
                "written": 9,
            },
        },
    )
    return replace(made, **changes)


class LedgerTests(SynchronousTestCase):
    """What is said of a trail of events."""

    def problems(self, *events: dict[str, Any]) -> list[str]:
        ledger = Ledger()
        ledger.enter(events)
        return ledger.close()

    def test_whole_trail(self) -> None:
        result = event(2, corr="a", req={"action": "container_create"}, result={"status": 201})
        stream = event(3, corr="b", req={"action": "container_attach"}, result={"status": 101})
        end = event(5, corr="b", phase="stream_end", req={"action": "container_attach"}, result={"rx": 1})
        new_epoch = {**event(1), "epoch": "2"}
        self.assertEqual(
            self.problems(attempt(1, "a"), result, {**stream, "seq": 4}, end, new_epoch)[:1],
            ["4 follows 2"],
        )
        before = attempt(3, "b", "container_attach")
        self.assertEqual(
            self.problems(attempt(1, "a"), result, before, {**stream, "seq": 4}, end, new_epoch), []
        )

    def test_hole_in_the_sequence(self) -> None:
        self.assertEqual(self.problems(event(1), event(3)), ["3 follows 1"])

    def test_served_without_an_attempt(self) -> None:
        late = event(1, corr="a", req={"action": "container_create"}, result={"status": 201})
        found = self.problems(late, attempt(2, "a"))
        self.assertIn("without an attempt on record", found[0])
        self.assertIn("has no result", found[1])
        refused = event(1, req={"action": "container_create"}, result={"status": 503})
        self.assertEqual(self.problems(refused), [])

    def test_stream_without_an_end_and_end_without_a_stream(self) -> None:
        [found] = self.problems(event(1, req={"action": "container_list"}, result={"status": 101}))
        self.assertIn("has no end", found)
        [found] = self.problems(event(1, phase="stream_end"))
        self.assertIn("had not begun", found)

    def test_aggregates_count_as_often_as_they_say(self) -> None:
        ledger = Ledger()
        ledger.enter(
            [event(1), event(2, result={"status": 403, "count": 41}), event(3, result={"error": "gone"})]
        )
        self.assertEqual(ledger.answered("bruce"), 42)

    def test_many_problems_are_counted(self) -> None:
        found = self.problems(*(event(2 * n) for n in range(SHOWN + 6)))
        self.assertEqual((len(found), found[-1]), (SHOWN + 1, "5 more of these"))


class VerdictTests(SynchronousTestCase):
    """Each check, on figures that are well and on those that are not."""

    def failed(self, checks: list[Any]) -> list[str]:
        return [check.name for check in checks if not check.ok]

    def test_memory(self) -> None:
        rest = sample()
        steady = [sample(n * 5.0) for n in range(100)]
        self.assertEqual(self.failed(memory_checks(rest, steady, sample())), [])
        climbing = [sample(n * 5.0, 40_000 + n * (RISE + 300) * 2 // 100) for n in range(100)]
        self.assertEqual(self.failed(memory_checks(rest, climbing, sample())), ["memory, slope"])
        grown = sample(rss_anon=40_000 + GROWTH + 1)
        self.assertEqual(self.failed(memory_checks(rest, steady, grown)), ["memory, level"])

    def test_descriptors(self) -> None:
        rest = sample()
        self.assertEqual(self.failed(descriptor_checks(rest, rest)), [])
        fewer = {"engine": {"connections": 1, "idle": 1}, "clients": rest.status["clients"]}
        pool = replace(rest, descriptors={"file": 4, "listener": 3, "engine": 1}, engine_side=1, status=fewer)
        self.assertEqual(self.failed(descriptor_checks(rest, pool)), [])
        leaked = replace(rest, descriptors={"file": 4, "listener": 3, "engine": 3})
        self.assertEqual(self.failed(descriptor_checks(rest, leaked)), ["descriptors"])
        self.assertEqual(
            self.failed(descriptor_checks(rest, replace(rest, engine_side=3))), ["Engine connections"]
        )
        there = {**rest.status, "clients": {"connections": 1, "streams": 1}}
        self.assertEqual(self.failed(descriptor_checks(rest, replace(rest, status=there))), ["clients"])

    def test_audit(self) -> None:
        self.assertEqual(self.failed(audit_checks(Ledger(), sample(), rotations=5)), [])
        self.assertEqual(self.failed(audit_checks(Ledger(), sample(), rotations=6)), ["rotation"])
        busy = {**sample().status, "counters": {"turned_down": 1, "unrecorded": 0}}
        self.assertEqual(self.failed(audit_checks(Ledger(), sample(status=busy), rotations=0)), ["shares"])
        ledger = Ledger()
        ledger.enter([attempt(1, "a")])
        lost = {**sample().status, "audit": {**sample().status["audit"], "dropped": 1}}
        self.assertEqual(
            self.failed(audit_checks(ledger, sample(status=lost), rotations=0)), ["record", "audit counters"]
        )

    def test_counts_at_both_ends(self) -> None:
        ledger, books = Ledger(), Books()
        ledger.enter([event(1), event(2)])
        books.answered("bruce", 200)
        self.assertEqual(self.failed(count_checks(ledger, books, ["bruce"])), ["requests counted twice"])
        books.lost("bruce")
        self.assertEqual(self.failed(count_checks(ledger, books, ["bruce"])), [])
        for _ in range(2):
            books.answered("bruce", 200)
        self.assertEqual(self.failed(count_checks(ledger, books, ["bruce"])), ["requests counted twice"])

    def test_work(self) -> None:
        books = Books()
        books.note("ps", "disturbed", "away")
        self.assertEqual(self.failed(work_checks(books)), [])
        books.note("ps", "failed", "no box")
        [check] = work_checks(books)
        self.assertFalse(check.ok)
        self.assertIn("ps: no box", check.found)

    def test_table(self) -> None:
        text = table(sample(), [sample(n, probe={"p50": 1.0, "p99": 2.0}) for n in range(8)], sample())
        self.assertIn("| RssAnon, MiB | 39.1 | 39.1 | 39.1 | 39.1 | 39.1 | 39.1 |", text)
        self.assertEqual({line.count("|") for line in text.splitlines()}, {8})


class SampleTests(SynchronousTestCase):
    """What is seen of a process."""

    def test_descriptors_by_kind(self) -> None:
        directory = Path(tempfile.mkdtemp(prefix="dfs-", dir="/tmp"))
        self.addCleanup(directory.rmdir)
        path = directory / "d.sock"
        self.addCleanup(path.unlink)
        with contextlib.ExitStack() as open_ones:
            local = open_ones.enter_context(socket.socket(socket.AF_UNIX))
            local.bind(str(path))
            local.listen()
            tcp = open_ones.enter_context(socket.create_server(("127.0.0.1", 0)))
            port = tcp.getsockname()[1]

            def found() -> dict[str, int]:
                return descriptors(os.getpid(), port=port, unix=path, control=directory / "no")

            before = found()
            self.assertEqual(before["listener"], 2)
            client = open_ones.enter_context(connect_unix(path))
            accepted = open_ones.enter_context(local.accept()[0])
            there = found()
            self.assertEqual(there["unix"], 1)
            self.assertEqual(there.get("engine", 0), before.get("engine", 0) + 1)
            self.assertEqual(engine_side(path), 1)
            client.close()
            # A socket whose other end is closed is nobody's connection.
            self.assertEqual(engine_side(path), 0)
            accepted.close()

    def test_arithmetic(self) -> None:
        self.assertEqual(slope([(0, 5), (1, 7), (2, 9)]), 2.0)
        self.assertEqual(slope([(1, 5)]), 0.0)
        self.assertEqual(quantiles([]), {})
        self.assertEqual(
            quantiles([float(n) for n in range(1, 101)]),
            {"p50": 51.0, "p99": 100.0, "max": 100.0, "count": 100},
        )


class WorkTests(SynchronousTestCase):
    """Workers, and what excuses their failures."""

    def run_once(self, task: Callable[[], None], weather: Weather) -> Books:
        books = Books()
        ended = threading.Event()

        def once() -> None:
            try:
                task()
            finally:
                worker.stop()
                ended.set()

        worker = Worker("one", {"it": once}, books=books, weather=weather, pause=0)
        worker.start()
        worker.join(20)
        self.assertTrue(ended.is_set())
        return books

    def test_failures_are_excused_by_the_weather_only(self) -> None:
        def fails() -> None:
            raise WorkError("nothing came")

        weather = Weather()
        books = self.run_once(fails, weather)
        self.assertEqual((books.failed.total(), books.disturbed.total()), (1, 0))
        self.assertIn("it: nothing came", books.failures[0])
        with weather.disturbed("unix"):
            self.assertEqual(self.run_once(fails, weather).failed.total(), 1)
        with weather.disturbed("engine"):
            self.assertEqual(self.run_once(fails, weather).disturbed.total(), 1)
        self.assertEqual(self.run_once(lambda: None, weather).done.total(), 1)

    def test_spells_end(self) -> None:
        weather = Weather()
        with weather.disturbed("engine"):
            pass
        [(_, since, until)] = weather._spells
        needs = frozenset({"engine"})
        self.assertTrue(weather.was_bad(needs, since - 5, since + 0.001))
        self.assertTrue(weather.was_bad(needs, until - GRACE / 2, until + 5))
        self.assertFalse(weather.was_bad(needs, until + 0.001, until + 5))
        self.assertFalse(weather.was_bad(needs, since - 5, since - 1))


class CrowdTests(SynchronousTestCase):
    """Idle connections, and how it is seen that they are refused or lost."""

    def test_refused_and_lost(self) -> None:
        ours: list[socket.socket] = []

        def connect(answer: bytes) -> Callable[[], socket.socket]:
            def make() -> socket.socket:
                near, far = socket.socketpair()
                far.sendall(answer)
                if answer:
                    ours.append(far)
                else:
                    far.close()
                return near

            return make

        crowd = Crowd()
        self.addCleanup(crowd.close)
        crowd.open(connect(b"HTTP/1.1 200 OK\r\n\r\n"), 3)
        self.assertEqual((len(crowd), crowd.lost()), (3, 0))
        for refusal in (b"", b"HTTP/1.1 429 Too Many Requests\r\n\r\n"):
            with self.assertRaises(RefusedError):
                Crowd().open(connect(refusal), 1)
        for sock in ours:
            sock.close()
        self.assertEqual(crowd.lost(), 3)


class CommandLineTests(SynchronousTestCase):
    """Mistakes are named before anything starts."""

    def test_bad_options(self) -> None:
        for arguments, words in (
            (["--minutes", "0"], "--minutes must be between"),
            (["--phases", "mixed,all"], "unknown phase: all"),
        ):
            said = io.StringIO()
            with contextlib.redirect_stderr(said), self.assertRaises(SystemExit) as ended:
                main(arguments)
            self.assertEqual(ended.exception.code, 2)
            self.assertIn(words, said.getvalue())

    def test_a_phase_that_cannot_go_on_has_failed(self) -> None:
        """The others have their report all the same."""

        def broken() -> Result:
            raise WorkError("the Engine is gone")

        (check,) = held("mixed", broken).checks
        self.assertEqual((check.name, check.ok), ("mixed: to the end", False))
        self.assertIn("the Engine is gone", check.found)
        good = Result([Check("mixed", True, "")])
        self.assertIs(held("mixed", lambda: good), good)
