"""The fleet's events on the command line."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from typing import Any

from twisted.internet.defer import Deferred, succeed

from controller.admin_audit import AdminActor, admin_event
from controller.api.ports import UnavailableError
from tests.controller.api.doubles import EVERYTHING, example
from tests.controller.cli.fleet_server import FleetTestCase
from tests.test_docs import ROOT


def event(seq: int, agent: str = "web1") -> dict[str, Any]:
    """An event with a number."""
    made: dict[str, Any] = example("StoredEvent")["event"]
    return {**made, "seq": seq, "id": f"id-{seq}", "agent": agent}


class AuditTestCase(FleetTestCase):
    """A store whose search finds what is in it."""

    def setUp(self) -> None:
        super().setUp()
        self.audit = self.world.audit
        self.pages: list[Any] = []
        self.on_search: Any = lambda: None
        # What waits between two tries needs no time here.
        self.patch(random, "uniform", lambda low, high: 0.0)
        sample = example("StoredEvent")

        def search(wanted: Any, newest_first: bool, page: Any) -> Any:
            self.audit.wishes.append(wanted)
            self.pages.append((newest_first, page))
            items = [
                {**sample, "position": str(place), "event": each}
                for place, each in enumerate(self.audit.events, 1)
            ]
            if newest_first:
                items.reverse()
            self.on_search()
            return succeed({"items": items[: page.limit], "next": None})

        self.patch(self.audit, "search", search)

    def seqs(self, text: str) -> list[int]:
        """The numbers of the events that are shown."""
        return [json.loads(line)["seq"] for line in text.splitlines() if "seq" in json.loads(line)]


class SearchTests(AuditTestCase):
    """`audit search`."""

    def test_every_condition_reaches_the_controller(self) -> None:
        single = ("group", "via", "source", "serial", "target", "rule", "kind", "phase", "corr")
        words = [word for name in single for word in (f"--{name}", f"{name}-x")]
        words += ["--user", "a", "--user", "b", "--action", "c", "--defender", "web1", "--denied"]
        words += ["--status", "403", "--field", "req.query.fromImage=nginx"]
        words += ["--since", "2026-11-21T00:00:00Z", "--until", "2026-11-22T00:00:00Z"]
        self.good("audit", "search", *words)
        wish: Any = self.audit.wishes[0]
        self.assertEqual((wish.users, wish.actions, wish.defenders), (("a", "b"), ("c",), ("web1",)))
        self.assertEqual(wish.effects, ("deny",))
        self.assertEqual(wish.until - wish.since, 86_400_000_000)
        fields = dict(wish.fields)
        self.assertEqual(fields["decision.rule"], "rule-x")
        self.assertEqual((fields["result.status"], fields["req.query.fromImage"]), ("403", "nginx"))
        self.assertEqual(len(fields), len(single) + 2)

    def test_the_oldest_is_shown_first(self) -> None:
        self.audit.add(*(event(seq) for seq in range(1, 6)))
        lines = self.good("audit", "search", "-n", "3", "--json").splitlines()
        self.assertEqual([json.loads(line)["event"]["seq"] for line in lines], [3, 4, 5])
        lines = self.good("audit", "search", "-n", "3", "--oldest", "--json").splitlines()
        self.assertEqual([json.loads(line)["event"]["seq"] for line in lines], [1, 2, 3])

    def test_the_table_names_the_host_and_fits(self) -> None:
        self.audit.add(event(1, "db7"), event(2, "h" * 60))
        head, *rows = self.good("audit", "search").splitlines()
        self.assertEqual(head.split()[2:4], ["HOST", "USER"])
        self.assertIn("db7", rows[0])
        self.assertIn("deny 403", rows[1])

    def test_what_was_done_at_the_controller_is_not_shown_as_failed(self) -> None:
        boss = AdminActor("boss", "session")
        done = admin_event(boss, "lock_add", "user bruce")
        refused = admin_event(boss, "lock_add", "user admin", refused="not yourself")
        for seq, told in enumerate((done, refused), 1):
            stamped = {**event(seq, "controller"), **told}
            del stamped["result"]
            self.audit.add(stamped)
        _, *rows = self.good("audit", "search").splitlines()
        self.assertEqual(rows[0].split()[-1], "ok")
        self.assertEqual(rows[1].split()[-1], "deny")

    def test_an_event_that_is_none_does_not_end_it(self) -> None:
        self.audit.add({"kind": "odd"}, event(2))
        told = self.good("audit", "search")
        self.assertIn("cannot be shown", told)
        self.assertIn("web1", told)


class ExportTests(AuditTestCase):
    """`audit export`."""

    def setUp(self) -> None:
        super().setUp()
        self.audit.add(*(event(seq) for seq in range(1, 301)))

    def test_to_standard_output(self) -> None:
        result = self.run_command("audit", "export")
        self.assertEqual(self.seqs(result.stdout), list(range(1, 301)))

    def test_to_a_file(self) -> None:
        out = self.folder / "out.csv"
        self.good("audit", "export", "--format", "csv", "--out", str(out))
        self.assertEqual(len(out.read_text().splitlines()), 301)
        self.assertEqual(out.stat().st_mode & 0o777, 0o600)

    def test_what_is_not_whole_is_not_there(self) -> None:
        after = self.audit.after

        def fail_later(position: str, *rest: Any, **more: Any) -> Any:
            if position:
                self.audit.trouble = UnavailableError("the store is away")
            return after(position, *rest, **more)

        self.patch(self.audit, "after", fail_later)
        out = self.folder / "out.jsonl"
        self.assertIn("not whole", self.bad("audit", "export", "--out", str(out)))
        self.assertEqual([path.name for path in self.folder.iterdir()], ["config"])


class TailTests(AuditTestCase):
    """`audit tail` of a fleet."""

    def test_the_last_events(self) -> None:
        self.audit.add(*(event(seq) for seq in range(1, 31)))
        self.assertEqual(self.seqs(self.good("audit", "tail", "--json")), list(range(11, 31)))
        self.assertEqual(self.seqs(self.good("audit", "tail", "--json", "-n", "2")), [29, 30])
        self.assertEqual(len(self.seqs(self.good("audit", "tail", "--json", "--since", "1h"))), 30)

    def test_the_state_of_this_host_stays_what_it_was(self) -> None:
        told = self.bad("audit", "tail", "--state", str(self.folder))
        self.assertIn("there is no spool", told)
        self.assertIn("does not go with", self.bad("audit", "tail", "--fleet", "--spool", "x", code=2))
        self.file.unlink()
        self.assertIn("there is no spool", self.bad("audit", "tail"))
        self.assertIn("not signed in", self.bad("audit", "tail", "--fleet"))

    def follow(self, *arguments: str) -> tuple[list[dict[str, Any]], str]:
        """What a tail shows that ends when the sign-in does; 4 is the last event, and comes after a break."""
        result = self.run_command("audit", "tail", "-f", "--json", *arguments)
        self.assertEqual(result.exit_code, 1, result.output)
        return [json.loads(line) for line in result.stdout.splitlines()], result.stderr

    def end_after(self, seq: int) -> None:
        """End the sign-in once this event has been asked for and sent."""
        after = self.audit.after

        def watched(position: str, *rest: Any, **more: Any) -> Any:
            if position == str(seq):
                self.audit.trouble = UnavailableError("the store is away")
                self.world.accounts.ended.add(EVERYTHING)
            return after(position, *rest, **more)

        self.audit.after = watched  # type: ignore[method-assign]
        wait = self.audit.wait

        def woken(position: str) -> Any:
            return succeed(None) if position == str(seq) else wait(position)

        self.audit.wait = woken  # type: ignore[method-assign]

    def test_what_comes_while_the_past_is_looked_for_is_shown_once(self) -> None:
        self.audit.add(event(1), event(2))

        def meanwhile() -> None:
            # It is in the answer of no search that began before, and in the stream.
            self.on_search = lambda: None
            self.audit.add(event(3), event(4))

        self.on_search = meanwhile
        self.end_after(4)
        lines, told = self.follow()
        self.assertEqual([line["seq"] for line in lines], [1, 2, 3, 4])
        self.assertIn("defenderctl login", told)

    def test_it_goes_on_after_a_break_and_shows_a_gap_as_a_gap(self) -> None:
        self.audit.add(event(1), event(2), event(3))
        cut = threading.Event()
        after = self.audit.after

        def cut_once(position: str, *rest: Any, **more: Any) -> Any:
            if position == "2" and not cut.is_set():
                cut.set()
                self.audit.add(event(4), event(5))
                self.audit.first = 4
                self.server.tracked.cut()
                return Deferred()
            return after(position, *rest, **more)

        self.audit.after = cut_once  # type: ignore[method-assign]
        self.end_after(5)
        lines, told = self.follow("--after", "2")
        self.assertEqual(
            [line.get("seq", line.get("gap")) for line in lines], ["2 events are no longer kept", 5]
        )
        self.assertIn("trying again", told)

    def test_ctrl_c_ends_it_and_says_where_to_go_on(self) -> None:
        self.audit.add(event(1))
        command = [sys.executable, "-m", "controller.cli.main", "audit", "tail", "-f", "--json"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "DEFENDERCTL_CONFIG": str(self.file.parent)}
        environment.pop("FLEET_STATE", None)
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert process.stdout is not None
            # Each line is there at once, though it goes into a pipe.
            self.assertEqual(json.loads(process.stdout.readline())["seq"], 1)
            self.server.soon(self.audit.add, event(2))
            self.assertEqual(json.loads(process.stdout.readline())["seq"], 2)
            process.send_signal(signal.SIGINT)
            _, told = process.communicate()
        self.assertEqual(process.returncode, 130, told)
        self.assertIn("go on with: --after 2", told)
        self.assertNotIn("Traceback", told)

    def test_what_was_stored_after_a_position(self) -> None:
        self.audit.add(*(event(seq) for seq in range(1, 6)))
        self.assertEqual(self.seqs(self.good("audit", "tail", "--json", "--after", "3")), [4, 5])
        self.audit.first = 4
        told = self.good("audit", "tail", "--after", "1")
        self.assertIn("3 events are no longer kept", told)
        self.assertIn("audit_gap", told)


class VerifyTests(AuditTestCase):
    """`defenderctl audit verify` of a fleet."""

    def test_all_is_well(self) -> None:
        told = self.good("audit", "verify", "--fleet")
        self.assertRegex(told, r"2026-11-21 +4711 +ok")
        shown = json.loads(self.good("audit", "verify", "--fleet", "--json"))
        self.assertEqual(shown, {"days": [{"day": "2026-11-21", "events": 4711, "problems": []}], "ok": True})

    def test_what_is_wrong_is_told_and_is_the_exit_code(self) -> None:
        problem = "defender web1, epoch 7f: 1 of the events 4 to 6 are gone"
        self.audit.verified[0]["problems"] = [problem]
        told = self.run_command("audit", "verify", "--fleet")
        self.assertEqual(told.exit_code, 1)
        self.assertRegex(told.stdout, r"2026-11-21 +4711 +1 problems")
        self.assertIn(f"2026-11-21: {problem}\n", told.stdout)

    def test_an_answer_without_its_end_is_no_good_news(self) -> None:
        del self.audit.verified[1]
        self.assertIn("did not get to the end", self.bad("audit", "verify", "--fleet"))

    def test_a_day_that_is_not_kept(self) -> None:
        said = self.bad("audit", "verify", "--day", "1999-12-31")
        self.assertIn("no events of 1999-12-31 are kept", said)
        self.assertIn("does not go with", self.bad("audit", "verify", "--fleet", "--spool", "x", code=2))
