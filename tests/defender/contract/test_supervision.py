"""What the service manager hears: ready once, and that all is well only while every self-check says so."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.contract.supervision import (
    ALL_IS_WELL,
    MAX_STATUS,
    Supervision,
    Watch,
    read_supervision,
    ready,
    status_line,
    stopping,
)

ASKED = {"NOTIFY_SOCKET": "/run/systemd/notify", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "77"}


class EnvironmentTests(SynchronousTestCase):
    """The variables of the manager."""

    def test_a_manager_with_a_watchdog(self) -> None:
        found = read_supervision(ASKED, 77)
        self.assertEqual(found, Supervision("/run/systemd/notify", 30.0))
        self.assertEqual(found.interval, 7.5)

    def test_no_manager(self) -> None:
        self.assertEqual(read_supervision({}, 77), Supervision("", 0.0))
        self.assertEqual(read_supervision({"WATCHDOG_USEC": "30000000"}, 77), Supervision())

    def test_an_abstract_socket(self) -> None:
        self.assertEqual(read_supervision({"NOTIFY_SOCKET": "@manager"}, 1), Supervision("@manager"))

    def test_the_watchdog_of_another_process_is_not_ours(self) -> None:
        self.assertEqual(read_supervision(ASKED, 78), Supervision("/run/systemd/notify"))

    def test_damaged_variables_count_as_not_said(self) -> None:
        for address in ("", "relative", "/", "@", "/" + "x" * 107, "vsock:2:1"):
            self.assertEqual(
                read_supervision({**ASKED, "NOTIFY_SOCKET": address}, 77), Supervision(), address
            )
        for time in ("", "0", "-1", "1e6", "٣", "9" * 13, "86400000001"):
            found = read_supervision({**ASKED, "WATCHDOG_USEC": time}, 77)
            self.assertEqual(found, Supervision("/run/systemd/notify"), time)


class MessageTests(SynchronousTestCase):
    """The datagrams."""

    def test_ready_says_how_it_serves(self) -> None:
        self.assertEqual(ready("listening on unix"), b"READY=1\nSTATUS=listening on unix\n")

    def test_stopping_asks_for_time(self) -> None:
        self.assertEqual(stopping(), b"STOPPING=1\n")
        self.assertEqual(stopping(1.5), b"STOPPING=1\nEXTEND_TIMEOUT_USEC=1500000\n")

    @given(st.text())
    def test_a_status_is_one_assignment_whatever_it_says(self, text: str) -> None:
        """A status that quotes what others wrote must not become WATCHDOG=1 on a line of its own."""
        line = status_line(text)
        self.assertTrue(line.startswith(b"STATUS=") and line.endswith(b"\n"))
        self.assertEqual(line.count(b"\n"), 1)
        self.assertLessEqual(len(line), 4 * MAX_STATUS + 8)


class WatchTests(SynchronousTestCase):
    """The watchdog's food."""

    def setUp(self) -> None:
        self.watch = Watch(["clients", "recorder"], 30.0)

    def well(self, *names: str) -> None:
        for name in names:
            self.watch.answered(name, "")

    def test_nothing_is_said_before_it_serves(self) -> None:
        self.assertEqual(self.watch.look(0.0), [])
        self.assertEqual(self.watch.served("serves", 1.0), [b"READY=1\nSTATUS=serves\n"])
        self.assertEqual(self.watch.look(1.0), [ALL_IS_WELL])

    def test_a_failing_check_starves_the_watchdog(self) -> None:
        self.watch.served("serves", 0.0)
        self.watch.answered("recorder", "the thread has ended")
        self.assertEqual(self.watch.look(7.5), [b"STATUS=not well: recorder: the thread has ended\n"])
        self.assertEqual(self.watch.look(15.0), [], "said once")
        self.watch.answered("recorder", "")
        self.assertEqual(self.watch.look(22.5), [ALL_IS_WELL, b"STATUS=serves\n"])

    def test_a_check_that_does_not_answer_starves_it_too(self) -> None:
        self.watch.served("serves", 0.0)
        self.watch.asked("clients", 7.5)
        self.assertEqual(self.watch.due(), ["recorder"], "it is not asked again meanwhile")
        self.assertEqual(self.watch.look(15.0), [ALL_IS_WELL])
        self.assertEqual(self.watch.look(22.5), [b"STATUS=not well: clients: no answer within 15 s\n"])
        self.well("clients")
        self.assertEqual(self.watch.due(), ["clients", "recorder"])
        self.assertIn(ALL_IS_WELL, self.watch.look(30.0))

    def test_every_problem_is_named(self) -> None:
        self.watch.answered("clients", "a")
        self.watch.answered("recorder", "b")
        self.assertEqual(self.watch.problems(0.0), ["clients: a", "recorder: b"])
        self.assertEqual(self.watch.served("serves", 0.0), [b"READY=1\nSTATUS=serves\n"])
        self.assertEqual(self.watch.look(1.0), [b"STATUS=not well: clients: a; recorder: b\n"])

    def test_a_status_is_sent_when_it_changes(self) -> None:
        self.watch.served("listening on unix", 0.0)
        self.assertEqual(self.watch.served("listening on unix", 1.0), [])
        self.assertEqual(self.watch.served("listening nowhere", 2.0), [b"STATUS=listening nowhere\n"])

    def test_a_manager_without_a_watchdog_hears_of_problems_only(self) -> None:
        watch = Watch(["clients"], 0.0)
        watch.served("serves", 0.0)
        self.assertEqual(watch.look(15.0), [])
        watch.answered("clients", "stuck")
        self.assertEqual(watch.look(30.0), [b"STATUS=not well: clients: stuck\n"])
