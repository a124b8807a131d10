"""Which sinks run: those that are described; one that is described anew is another one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import Logger, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from controller.peer_tls import PeerError
from controller.sinks import service
from controller.sinks.delivery import Passed
from controller.sinks.service import Sinks


@dataclass(frozen=True)
class Target:
    """Stands for a described sink."""

    name: str
    host: str = "somewhere"


class Sink:
    """Stands for a follower."""

    def __init__(self, target: Any, ends: Deferred[None] | None) -> None:
        self.target, self.ends, self.running = target, ends, False

    def startService(self) -> None:
        self.running = True

    def stopService(self) -> Deferred[None]:
        self.running = False
        return self.ends or succeed(None)

    def state(self) -> str:
        return str(self.target.name)


class SinksTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.made: list[Sink] = []
        self.passed: list[Any] = []
        self.ends: Deferred[None] | None = None
        self.unusable: set[str] = set()
        self.logged: list[str] = []

        def make(target: Any, reactor: object, source: object, cursor: object, *, passed: Any) -> Sink:
            if target.name in self.unusable:
                raise PeerError("ca.pem holds no certificates in PEM")
            self.assertEqual((source, cursor), (f"source of {target.name}", f"cursor of {target.name}"))
            self.passed.append(passed)
            self.made.append(Sink(target, self.ends))
            return self.made[-1]

        self.patch(service, "make_sink", make)
        observer: Any = lambda event: self.logged.append(str(formatEvent(event)))  # noqa: E731
        self.patch(Sinks, "log", Logger(observer=observer))
        named: Any = lambda kind: lambda name: f"{kind} of {name}"  # noqa: E731
        self.sinks = Sinks(Clock(), named("source"), named("cursor"))

    def replace(self, *targets: Any) -> Deferred[None]:
        return self.sinks.replace(targets)

    def running(self) -> list[Any]:
        return [sink.target for sink in self.made if sink.running]

    def test_one_that_stays_as_it_was_goes_on(self) -> None:
        one, two = Target("one"), Target("two")
        self.successResultOf(self.replace(one, two))
        self.successResultOf(self.replace(Target("one"), replace(two, host="elsewhere")))
        self.assertEqual(self.running(), [one, replace(two, host="elsewhere")])
        self.assertEqual(len(self.made), 3)
        self.assertEqual(self.sinks.states(), ["one", "two"])
        self.successResultOf(self.sinks.stop())
        self.assertEqual((self.running(), self.sinks.states()), ([], []))

    def test_another_one_begins_when_the_old_one_is_over(self) -> None:
        """Else both would move the same cursor."""
        self.ends = Deferred()
        self.successResultOf(self.replace(Target("one")))
        replacing = self.replace(Target("one", "elsewhere"))
        again = self.replace(Target("one", "back"))
        self.assertEqual((len(self.made), self.running()), (1, []))
        ended, self.ends = self.ends, None
        ended.callback(None)
        self.successResultOf(replacing)
        self.successResultOf(again)
        self.assertEqual(self.running(), [Target("one", "back")])

    def test_one_that_cannot_be_used_is_told_and_leaves_the_others(self) -> None:
        self.unusable.add("one")
        self.successResultOf(self.replace(Target("one"), Target("two")))
        self.assertEqual(self.running(), [Target("two")])
        said = "the sink one cannot be used: ca.pem holds no certificates in PEM"
        self.assertEqual(self.logged, [said])

    def test_what_a_receiver_refuses_for_good_is_told(self) -> None:
        self.successResultOf(self.replace(Target("one")))
        self.passed[0]("one", Passed(8, "7-8", "400: no such index"))
        self.assertEqual(self.logged, ["the sink one refused event 7-8 for good: 400: no such index"])
