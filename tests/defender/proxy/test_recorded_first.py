"""Calls that change something wait for their record; what happens when there is none."""

from __future__ import annotations

from typing import Any

from tests.defender.proxy.house import CREATE, EMPTY, EXEC, LIST, House, HouseCase, message_of, status_of

START = b"POST /v1.41/containers/abc/start HTTP/1.1\r\nHost: x\r\n\r\n"
DONE = b"HTTP/1.1 204 No Content\r\nApi-Version: 1.41\r\n\r\n"
POLICY = """\
schema: 1
rules:
  - {name: lenient, groups: [lenient], effect: allow, durability: best_effort}
  - {name: quiet, groups: [quiet], effect: allow, durability: strict, audit: denied}
  - {name: all, effect: allow}
"""


class RecordedFirstTests(HouseCase):
    def phases(self) -> list[tuple[str, str]]:
        return [(event["phase"], event["req"]["action"]) for event in self.house.events.kept]

    def hold(self) -> list[Any]:
        waiting: list[Any] = []
        self.house.events.told = waiting
        return waiting

    def test_nothing_is_forwarded_before_the_record(self) -> None:
        waiting = self.hold()
        client = self.house.client()
        client.deliver(START)
        self.assertEqual(self.phases(), [("attempt", "container_start")])
        self.assertEqual(self.house.engine.take(), b"")
        waiting.pop()("")
        self.assertIn(b"/containers/abc/start", self.house.engine.take())
        self.house.engine.deliver(DONE)
        attempt, result = self.house.events.kept
        self.assertEqual((result["phase"], result["corr"]), ("result", attempt["corr"]))
        self.assertEqual(attempt["decision"], result["decision"])
        self.assertNotIn("result", attempt)

    def test_body_waits_and_is_bounded(self) -> None:
        waiting = self.hold()
        client = self.house.client()
        client.deliver(
            b"POST /v1.41/build HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-tar\r\n"
            b"Content-Length: 1000000\r\n\r\n"
        )
        for _ in range(5):
            client.deliver(b"x" * 16384)
        self.assertTrue(client.paused)
        waiting.pop()("")
        self.assertFalse(client.paused)
        self.assertEqual(self.house.engine.take().count(b"x" * 16384), 5)

    def test_reads_wait_for_nothing(self) -> None:
        waiting = self.hold()
        client = self.house.client()
        client.deliver(LIST)
        self.house.engine.deliver(EMPTY)
        self.assertEqual((status_of(client.take()), waiting), (200, []))

    def test_strict_call_without_a_record_is_refused_with_the_reason(self) -> None:
        self.house.events.problem = "the audit spool is full"
        client = self.house.client()
        client.deliver(START)
        answer = client.take()
        self.assertEqual(status_of(answer), 503)
        self.assertIn("the audit spool is full", message_of(answer))
        self.assertEqual(self.house.engine.take(), b"")
        client.deliver(LIST)
        self.house.engine.deliver(EMPTY)
        self.assertEqual(status_of(client.take()), 200)
        self.assertEqual(self.house.proxy.trail.counters.unrecorded, 0)

    def test_policy_is_asked_again_when_it_changes_meanwhile(self) -> None:
        waiting = self.hold()
        client = self.house.client()
        client.deliver(START)
        self.house.activation.offer("schema: 1\nrules: []\n", "policy.yaml")
        self.house.proxy.judge_again()
        self.assertTrue(client.aborted)
        waiting.pop()("")
        self.assertEqual(self.house.engine.take(), b"")

    def test_client_that_went_meanwhile(self) -> None:
        waiting = self.hold()
        client = self.house.client()
        client.deliver(START)
        client.lose()
        waiting.pop()("")
        self.assertEqual(self.house.engine.take(), b"")
        self.assertEqual([event["phase"] for event in self.house.events.kept], ["attempt", "result"])

    def test_recorder_that_never_answers(self) -> None:
        self.hold()
        client = self.house.client()
        client.deliver(EXEC)
        self.house.advance(31)
        answer = client.take()
        self.assertEqual(status_of(answer), 503)
        self.assertIn("does not answer", message_of(answer))


class DurabilityTests(HouseCase):
    def setUp(self) -> None:
        self.house = House("/state", policy=POLICY)
        self.addCleanup(self.house.stop)
        self.house.events.problem = "no space left on device"

    def status(self, group: str) -> int:
        from defender.contract.facts import Subject

        client = self.house.client(Subject(user="bruce", groups=(group,)))
        client.deliver(CREATE + b"Content-Length: 2\r\n\r\n{}")
        answer = client.take()
        if answer:
            return status_of(answer)
        self.house.engine.deliver(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}")
        return status_of(client.take())

    def test_best_effort_of_a_rule_goes_on_and_is_counted(self) -> None:
        self.assertEqual(self.status("lenient"), 201)
        self.assertEqual(self.house.proxy.trail.counters.unrecorded, 1)
        self.assertEqual(self.status("other"), 503)

    def test_recorder_that_answers_after_the_deadline_is_not_listened_to(self) -> None:
        from defender.contract.facts import Subject

        waiting = self.house.events.told = []
        client = self.house.client(Subject(user="bruce", groups=("lenient",)))
        client.deliver(EXEC)
        self.house.advance(31)
        self.assertEqual([engine.take().count(b"POST") for engine in self.house.engines], [1])
        waiting.pop()("")
        self.assertEqual([engine.take() for engine in self.house.engines], [b""])

    def test_strict_of_a_rule_is_above_a_lenient_defender(self) -> None:
        self.house.proxy.strict = False
        self.assertEqual(self.status("other"), 201)
        self.assertEqual(self.status("quiet"), 503)

    def test_attempts_are_recorded_where_results_are_not(self) -> None:
        self.house.events.problem = ""
        self.assertEqual(self.status("quiet"), 201)
        self.assertEqual([event["phase"] for event in self.house.events.kept], ["attempt"])
