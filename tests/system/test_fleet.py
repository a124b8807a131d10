"""A fleet of three hosts and a controller, driven with the docker CLI and defenderctl as people do."""

from __future__ import annotations

import functools
import json
import socket
from collections.abc import Mapping

from tests.engine.guarded import POLICY
from tests.engine.terminal import Terminal
from tests.spool import now
from tests.system.hosts.fleet import Json
from tests.system.hosts.fleet_case import BUILDER, FleetCase
from tests.system.hosts.host import PORT, Host

NOBODY = ("--label", "rack=none")


def policy(rule: str, actions: str = "container_list") -> str:
    """The usual policy, in which Builders have these actions alone, by a rule of this name."""
    return POLICY.replace("builders_rule", rule).replace('"image_*", "container_*", "docker_*"', actions)


def listening(shown: Mapping[str, Json]) -> dict[str, str]:
    """Where each defender is shown to listen."""
    return {name: each["listener"]["actual"] for name, each in shown.items()}


class FleetTests(FleetCase):
    """One class, since a fleet takes a quarter of a minute to come up."""

    def setUp(self) -> None:
        self.one, self.two, self.three = self.hosts.hosts

    # -- enrollment

    def test_hosts_have_joined_and_a_second_start_needs_no_token(self) -> None:
        shown = self.controller.ask("defenders", "list")
        self.assertEqual({each["name"]: each["labels"] for each in shown}, {
            "host1": {"rack": "1"}, "host2": {"rack": "2"}, "host3": {"rack": "3"},
        })  # fmt: skip
        states = [each["state"] for each in self.controller.ask("tokens", "list")]
        self.assertEqual(states, ["used"] * 3)
        member = self.member(self.one)
        before = member.fleet()["defender"]
        (self.one.directory / "join-token").unlink()
        member.stop()
        member.start()
        self.assertNotIn("--join-token", member.command)
        self.assertEqual(member.fleet()["defender"], before)
        self.await_linked(self.one)
        self.assertEqual(self.name_of(self.one), "host1")

    # -- policy

    def denied_by(self, host: Host, rule: str) -> bool:
        """Whether a command that Builders lack is denied by this rule, in the words that users see."""
        code, said = self.docker(host, "rm", "-f", "none", who=BUILDER, check=False)
        wanted = f"[Defender] The command 'container_delete' denied for user '{BUILDER[0]}' by rule '{rule}'"
        return code == 1 and wanted in said

    def test_a_policy_reaches_all(self) -> None:
        self.addCleanup(self.controller.publish, "fleet", POLICY)
        self.assertFalse(self.denied_by(self.one, "builders_rule"))
        self.controller.publish("fleet", policy("first_rule"), "--comment", "fewer rights")
        for host in self.hosts.hosts:
            self.assertTrue(self.denied_by(host, "first_rule"), host.name)
        status = self.controller.ask("policy", "status", "fleet")
        self.assertEqual(status["state"], "done")
        self.assertEqual({step["name"]: step["state"] for step in status["defenders"]}, {
            "host1": "acked", "host2": "acked", "host3": "acked",
        })  # fmt: skip
        # In waves as well, and back.
        self.controller.ctl("policy", "rollback", "fleet", "--yes")
        for host in self.hosts.hosts:
            self.assertFalse(self.denied_by(host, "first_rule"), host.name)

    def test_policies_for_some_hosts(self) -> None:
        for name in ("by-label", "by-name"):
            self.addCleanup(self.controller.publish, name, POLICY, *NOBODY)
        self.controller.publish("by-label", policy("label_rule"), "--label", "rack=2")
        said = self.controller.publish("by-name", policy("name_rule"), "--host", "*3")
        self.assertIn("host3 would get it", said)
        rules = {host: self.rule_of(host) for host in self.hosts.hosts}
        self.assertEqual(rules, {self.one: "", self.two: "label_rule", self.three: "name_rule"})
        # Who is labeled so follows at once.
        self.addCleanup(self.controller.ctl, "defenders", "label", "host1", "rack=1")
        self.controller.ctl("defenders", "label", "host1", "rack=2")
        self.await_true("host1 follows its label", lambda: self.rule_of(self.one) == "label_rule")
        self.assertEqual(self.controller.ask("policy", "status", "by-label")["counts"]["acked"], 2)

    def rule_of(self, host: Host) -> str:
        return next((rule for rule in ("label_rule", "name_rule") if self.denied_by(host, rule)), "")

    # -- listeners

    def set_listener(self, *words: str, code: int = 0) -> Json:
        found: Json = self.controller.ask("defenders", "set-listener", *words, code=code)
        return found

    def everywhere(self) -> None:
        """All listen as they did in the beginning."""
        self.set_listener("*", "unix+tcp")
        for member in self.hosts.members.values():
            member.mode = "unix+tcp"

    def opened(self) -> dict[Host, Terminal]:
        """A terminal on each host, with a word that only its shell knows."""
        terminals = {host: self.shell(host) for host in self.hosts.hosts}
        for host, terminal in terminals.items():
            terminal.ask(b"word=%s; echo on $word" % host.name.encode(), rb"\non host")
        return terminals

    def assert_goes_on(self, terminals: Mapping[Host, Terminal], step: int) -> None:
        for host, terminal in terminals.items():
            terminal.ask(b"echo %d-$word" % step, rb"\n%d-%s" % (step, host.name.encode()))

    def test_listeners_are_switched_under_open_terminals(self) -> None:
        self.addCleanup(self.everywhere)
        terminals = self.opened()
        # By name, by label, by pattern: to unix, to TCP, to nothing.
        self.set_listener("host1", "unix")
        self.set_listener("--label", "rack=2", "tcp")
        self.assertEqual(self.set_listener("*3", "none")["counts"]["acked"], 1)
        self.assert_goes_on(terminals, 1)
        self.assertEqual(
            {host.name: self.ways(host) for host in self.hosts.hosts},
            {"host1": "unix", "host2": "tcp", "host3": ""},
        )
        shown = self.controller.defenders()
        self.assertEqual(listening(shown), {"host1": "unix", "host2": "tcp", "host3": "none"})
        # The controller goes and comes back: nobody notices, and everything is as it was ordered.
        self.controller.stop()
        self.assert_goes_on(terminals, 2)
        self.controller.start()
        self.await_online()
        self.assertEqual(
            {name: each["listener"]["desired"] for name, each in self.controller.defenders().items()},
            {"host1": "unix", "host2": "tcp", "host3": "none"},
        )
        self.assert_goes_on(terminals, 3)
        # All at once, back to TCP: for new clients too.
        self.set_listener("*", "unix+tcp")
        self.assert_goes_on(terminals, 4)
        self.assertEqual([self.ways(host) for host in self.hosts.hosts], ["unix+tcp"] * 3)
        for host, terminal in terminals.items():
            terminal.send(b"exit 7\n")
            self.assertEqual(terminal.wait(), 7, host.name)

    def ways(self, host: Host) -> str:
        """How a host's defender answers, tried from outside and on the host."""
        tcp = self.client.reaches(host.address, PORT)
        unix = host.docker("version", environment=self.member(host).unix(), check=False)[0] == 0
        return "+".join(name for name, there in (("unix", unix), ("tcp", tcp)) if there)

    def await_online(self) -> None:
        self.await_linked(*self.hosts.hosts)
        self.await_defenders(
            lambda seen: all(each["state"] == "online" for each in seen.values()), "all online"
        )

    def test_a_mode_outlives_a_restart_of_the_defender(self) -> None:
        self.addCleanup(self.everywhere)
        self.set_listener("host1", "unix")
        member = self.member(self.one)
        member.stop()
        member.mode = "unix"  # its settings still say unix+tcp
        member.start()
        self.assertEqual(self.ways(self.one), "unix")
        self.await_defenders(
            lambda seen: seen["host1"]["state"] == "online" and listening(seen)["host1"] == "unix",
            "host1 is shown to listen on unix",
        )

    def test_a_mode_ordered_while_a_defender_is_away_is_taken_up_later(self) -> None:
        self.addCleanup(self.everywhere)
        member = self.member(self.two)
        member.stop()
        ordered = self.set_listener("host2", "unix")
        self.assertEqual(ordered["counts"]["offline"], 1)
        member.launch()
        member.mode = "unix"
        self.await_true("host2 follows", lambda: member.serves() and self.ways(self.two) == "unix")

    def test_the_drain_limit_ends_what_is_open(self) -> None:
        self.addCleanup(self.everywhere)
        terminals = self.opened()
        cut = terminals.pop(self.two)
        trail, before = self.member(self.two).trail(), now()
        self.set_listener("host2", "unix", "--drain", "1s")
        self.assertNotEqual(cut.wait(), 0)
        (ended,) = trail.wait_for(lambda event: event["phase"] == "stream_end", since=before)
        self.assertEqual(ended["actor"]["user"], "admin")
        self.assert_goes_on(terminals, 1)

    def test_a_port_that_is_taken_is_told_with_the_reason(self) -> None:
        self.addCleanup(self.everywhere)
        self.set_listener("host3", "unix")
        with self.three.entered():
            taken = socket.socket()
        with taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind((self.three.address, PORT))
            taken.listen()
            change = self.set_listener("host3", "tcp", code=1)
            (step,) = change["defenders"]
            self.assertEqual(step["state"], "refused")
            self.assertRegex(step["detail"], f"{self.three.address}:{PORT}.*in use")
            listener = self.controller.defenders()["host3"]["listener"]
            self.assertEqual((listener["desired"], listener["actual"]), ("tcp", "unix"))
            self.assertIn("in use", listener["detail"])
            self.assertIn("in use", self.controller.ctl("defenders", "show", "host3"))
            said = self.controller.ctl("defenders", "set-listener", "host3", "tcp", code=1)
            self.assertRegex(said, "host3: refused: .*in use")
            self.assertEqual(self.ways(self.three), "unix+tcp")  # the TCP of somebody else
        self.set_listener("host3", "tcp")
        self.assertEqual(self.name_of(self.three), "host3")

    # -- locks

    def test_a_lock_cuts_a_users_streams_on_every_host(self) -> None:
        locked = ("remove", "--user", BUILDER[0])
        theirs = {host: self.shell(host, BUILDER) for host in self.hosts.hosts}
        admins = self.opened()
        marks = {host: (self.member(host).trail(), now()) for host in self.hosts.hosts}
        added = self.controller.ask("lock", "add", "--user", BUILDER[0], "--reason", "laptop lost")
        self.addCleanup(self.controller.run_ctl, "lock", *locked)
        self.assertEqual(added["counts"]["total"], 3)
        for host, terminal in theirs.items():
            self.assertNotEqual(terminal.wait(), 0, host.name)
            trail, before = marks[host]
            (ended,) = trail.wait_for(lambda event: event["phase"] == "stream_end", since=before)
            self.assertEqual(ended["actor"]["user"], BUILDER[0])
            self.assertIn("lock", json.dumps(ended))
            code, said = self.docker(host, "ps", who=BUILDER, check=False)
            self.assertEqual(code, 1)
            self.assertIn("by rule 'lock'", said)
        self.assert_goes_on(admins, 1)
        self.assertEqual([each["value"] for each in self.controller.ask("lock", "list")], [BUILDER[0]])
        self.controller.ctl("lock", *locked)
        for host in self.hosts.hosts:
            self.await_true(f"{host.name} lets them in again", functools.partial(self.lets_in, host))

    def lets_in(self, host: Host) -> bool:
        return self.docker(host, "ps", who=BUILDER, check=False)[0] == 0

    def test_a_lock_holds_through_restarts_of_both_sides(self) -> None:
        self.controller.ctl("lock", "add", "--user", BUILDER[0])
        self.addCleanup(self.controller.run_ctl, "lock", "remove", "--user", BUILDER[0])
        self.controller.stop()
        member = self.member(self.one)
        member.stop()
        member.start()
        # There is nobody to ask, and it is locked.
        self.assertIn("by rule 'lock'", self.docker(self.one, "ps", who=BUILDER, check=False)[1])
        self.assertEqual(self.name_of(self.one), "host1")
        self.controller.start()
        self.await_online()
        for host in self.hosts.hosts:
            self.assertIn("by rule 'lock'", self.docker(host, "ps", who=BUILDER, check=False)[1])
