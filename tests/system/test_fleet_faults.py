"""A link, a process, a clock or a disk of a fleet fails: nothing that was recorded is lost or doubled."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

from tests.engine.guarded import POLICY
from tests.spool import now
from tests.system.hosts.fleet import FleetDefender
from tests.system.hosts.fleet_case import BUILDER, FleetCase
from tests.system.hosts.host import Host
from tests.system.hosts.load import Load

ENOUGH = 20
HOUR = 3600
NEWER = POLICY.replace("builders_rule", "newer_rule").replace('"image_*", ', "")


class FaultTests(FleetCase):
    """One host has its own clock, one a small disk, and so has the controller."""

    options: ClassVar[Mapping[str, Any]] = {
        "clocks": ("host2",),
        "disks": {"host3": "8m", "controller": "48m"},
        "settings": {"audit": "segment_bytes = 65536"},
    }

    def setUp(self) -> None:
        self.one, self.late, self.small = self.hosts.hosts

    # -- what the controller has

    def has(self, member: FleetDefender, target: str) -> bool:
        """Whether the controller has the event of a load's call on a host, and so all before it."""
        member.hurry()
        query = {"defender": member.host.name, "phase": "attempt", "target": target, "limit": "1"}
        return bool(self.controller.get("/audit/events", **query)["items"])

    def assert_delivered(self, load: Load) -> None:
        """Every call that was answered is stored, once, and in the order in which they were."""
        for name, answered in load.answered.items():
            there = functools.partial(self.has, self.hosts.members[name], answered[-1])
            self.await_true(f"what {name} recorded is stored", there, 0.3)
        stored: dict[str, list[str]] = {name: [] for name in load.answered}
        for event in self.controller.export("--action", "container_kill"):
            if event["phase"] == "attempt" and event["req"]["target"].startswith(f"{load.prefix}-"):
                stored[event["agent"]].append(event["req"]["target"])
        for name, answered in load.answered.items():
            known = set(answered)
            self.assertEqual([target for target in stored[name] if target in known], answered)

    def assert_unharmed(self, load: Load) -> None:
        """No call failed."""
        self.assertEqual(load.failed, {name: [] for name in load.failed})

    # -- a link that is half-open, and a process that is killed

    def test_a_host_is_cut_off_and_the_defender_of_another_is_killed(self) -> None:
        host, member, killed = self.one, self.member(self.one), self.member(self.small)
        self.addCleanup(self.controller.publish, "fleet", POLICY)
        terminal = self.shell(host)
        network, center = self.hosts.network, self.controller.node
        network.part(host, center)
        mend = [lambda: network.mend(host, center)]
        self.addCleanup(lambda: [each() for each in mend])
        trail, before = member.trail(), now()
        # A policy that comes meanwhile: the others have it, this one goes by what it has.
        change = self.controller.ask(
            *("policy", "publish", self.file("fleet.yaml", NEWER), "--at-once", "--yes", "--no-wait")
        )
        self.assertEqual(change["counts"]["total"], 3)
        for other in (self.late, self.small):
            self.await_rule(other, "newer_rule")
        self.assertEqual(self.rule_of(host), "builders_rule")
        with Load(self.hosts.members.values(), "cut-off") as load:
            self.await_true("load", lambda: load.count() > ENOUGH)
            killed.kill()
            self.kills[self.small.name] += 1
            self.await_true("it is missed", lambda: bool(load.failed[self.small.name]))
            killed.start()
            self.await_more(load)
        load.failed[self.small.name].clear()
        self.assert_unharmed(load)
        self.assertEqual(self.rule_of(self.small), "newer_rule")
        terminal.ask(b"echo $((40 + 2))", rb"\n42")
        # That nothing comes from there is noticed on both sides.
        self.await_defenders(lambda seen: seen["host1"]["state"] == "stale", "host1 is shown to be stale")
        status = self.controller.ask("policy", "status", "fleet")
        self.assertEqual((status["counts"]["acked"], status["counts"]["offline"]), (2, 1))
        self.await_true("host1 knows it too", lambda: not member.linked())
        spooled = [event["id"] for event in trail.read(before)]
        self.assertLess(self.newest(host), spooled[0])
        self.assertEqual(self.rule_of(host), "builders_rule")
        mend.pop()()
        self.await_linked(host)
        self.await_rule(host, "newer_rule")
        self.await_defenders(lambda seen: seen["host1"]["state"] == "online", "host1 is back")
        self.assertEqual(self.controller.ask("policy", "status", "fleet")["counts"]["acked"], 3)
        terminal.ask(b"echo $((40 + 3))", rb"\n43")
        # What it spooled is delivered, in order, before what came later.
        self.assert_delivered(load)
        stored = [event["id"] for event in self.controller.export("--defender", host.name)]
        self.assertEqual([each for each in stored if each in set(spooled)], spooled)

    def newest(self, host: Host) -> str:
        """The id of the last event of a host that the controller has."""
        (newest,) = self.controller.get("/audit/events", defender=host.name, limit="1")["items"]
        return str(newest["event"]["id"])

    def file(self, name: str, text: str) -> str:
        path = self.client.directory / name
        path.write_text(text, "utf-8")
        return str(path)

    def await_rule(self, host: Host, rule: str) -> None:
        self.await_true(f"{host.name} denies by {rule}", lambda: self.rule_of(host) == rule)

    def rule_of(self, host: Host) -> str:
        """The rule that denies an image to Builders, or would: the name of their rule."""
        code, said = self.docker(host, "rmi", "none", who=BUILDER, check=False)
        self.assertEqual(code, 1)
        return "newer_rule" if "by rule 'newer_rule'" in said else "builders_rule"

    # -- a clock that is off

    def test_a_clock_that_is_off(self) -> None:
        host, member, clock = self.late, self.member(self.late), self.hosts.clocks["host2"]
        self.addCleanup(clock.set, 0)
        trail, before = member.trail(), now()
        # Ahead: that is told, and everything goes on.
        self.start_with_clock(host, HOUR)
        self.await_linked(host)
        (skew, *_) = trail.wait_for(lambda each: each["req"]["action"] == "clock_skew", since=before)
        self.assertRegex(skew["result"]["problems"][0], r"this host's clock is 3[56]\d\d seconds ahead of")
        self.controller.publish("fleet", NEWER)
        self.assertEqual(self.rule_of(host), "newer_rule")
        # Behind, under an open link: what is signed later than its now counts, for it knows a later time.
        clock.set(-HOUR)
        self.controller.publish("fleet", POLICY)
        with Load([member], "clock-behind") as load:
            self.await_true("load", lambda: load.count() > ENOUGH)
        self.assert_unharmed(load)
        self.assert_delivered(load)
        # Started again, it has no link, for no certificate is valid yet: it goes by what it has and says why.
        self.start_with_clock(host, -HOUR)
        with Load([member], "clock-unlinked") as load:
            self.await_true("load", lambda: load.count() > ENOUGH)
        self.await_true("it says why", lambda: "not yet valid" in member.fleet()["link"])
        self.assertEqual(member.fleet()["streams"]["policy"]["grade"], "fresh")
        clock.set(0)
        self.assertEqual(self.rule_of(host), "builders_rule")
        self.await_linked(host)
        self.assert_unharmed(load)
        self.assert_delivered(load)

    def start_with_clock(self, host: Host, offset: int) -> None:
        """Start a host's defender again with another clock."""
        member = self.member(host)
        member.stop()
        self.hosts.clocks[host.name].set(offset)
        member.mode = "unix+tcp" if offset >= 0 else "unix"  # where a user's certificate is not valid yet
        member.start()
        member.mode = "unix+tcp"

    # -- a controller that is killed

    def test_the_controller_is_killed_under_load(self) -> None:
        with Load(self.hosts.members.values(), "controller-killed") as load:
            self.await_true("load", lambda: load.count() > ENOUGH)
            self.controller.kill()
            self.await_more(load)
            self.controller.start()
            self.await_linked(*self.hosts.hosts)
            self.await_more(load)
        self.assert_unharmed(load)
        self.assert_delivered(load)

    def await_more(self, load: Load) -> None:
        """Wait until more calls were answered on every host."""
        seen = load.count()
        self.await_true("load goes on", lambda: load.count() > seen + ENOUGH)

    # -- disks

    def test_a_defenders_disk_is_full(self) -> None:
        member = self.member(self.small)
        self.drops.add(self.small.name)  # of what is served without a record the number is told
        with self.small.full(member.state):
            # What it had allocated before is used first.
            with Load([member], "defender-full") as load:
                self.await_true("it is full", lambda: bool(load.failed[self.small.name]))
            self.assertRegex(load.failed[self.small.name][0], "cannot be recorded.*No space left on device")
            code, said = self.docker(self.small, "create", "busybox", check=False)
            self.assertEqual(code, 1)
            self.assertRegex(said, "cannot be recorded.*No space left on device")
            self.assertEqual(self.docker(self.small, "ps", "-q"), (0, ""))
            # A policy that cannot be kept is refused with the reason; the others have it.
            self.addCleanup(self.controller.publish, "fleet", POLICY)
            said = self.controller.publish("fleet", NEWER, code=1)
            self.assertRegex(said, "host3: refused: .*No space left on device")
            self.assertEqual(self.rule_of(self.small), "builders_rule")
            self.assertEqual(self.rule_of(self.one), "newer_rule")
        self.await_true("it records again", lambda: not member.status()["audit"]["problem"])
        self.controller.publish("fleet", NEWER, "--comment", "again", "--rank", "1")
        self.assertEqual(self.rule_of(self.small), "newer_rule")
        self.assert_delivered(load)

    def test_a_defenders_disk_fails(self) -> None:
        member = self.member(self.one)
        with Load([member], "defender-failing") as load:
            self.await_true("load", lambda: load.count() > ENOUGH)
            with member.failing("fsync,fdatasync", "error=EIO"):
                self.await_true("it says so", lambda: bool(load.failed[self.one.name]))
                self.assertIn("Input/output error", member.status()["audit"]["problem"])
            self.await_true("it records again", lambda: not member.status()["audit"]["problem"])
            self.await_more(load)
        self.assertRegex(load.failed[self.one.name][0], "cannot be recorded.*Input/output error")
        self.assert_delivered(load)

    def test_the_controllers_disk_is_full(self) -> None:
        with Load(self.hosts.members.values(), "controller-full") as load:
            with self.controller.node.full(self.controller.state):
                self.await_true("it says so", lambda: not self.controller.ready()[0])
                self.assertIn("full", self.controller.ready()[1])
                self.assertIn("full", self.controller.ctl("lock", "add", "--user", BUILDER[0], code=1))
                self.assertIn("NOT OK", self.controller.ctl("status", code=1))
                self.await_more(load)
            self.await_true("it is ready again", lambda: self.controller.ready()[0])
        self.assert_unharmed(load)
        self.assert_delivered(load)
        self.assertEqual(self.controller.ask("lock", "list"), [])

    def test_the_controllers_disk_fails(self) -> None:
        with Load(self.hosts.members.values(), "controller-failing") as load:
            with self.controller.failing("fsync,fdatasync", "error=EIO"):
                self.await_true("it says so", lambda: not self.controller.ready()[0])
                self.await_more(load)
            self.await_true("it is ready again", lambda: self.controller.ready()[0])
        self.assert_unharmed(load)
        self.assert_delivered(load)
