"""The test network of hosts does what tests of a fleet rely on, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from twisted.trial.unittest import SynchronousTestCase

from deploy.docker_api import ApiError, call, connection
from deploy.engine import OwnEngine, system_tool
from deploy.processes import wait_until
from tests.engine.dockerd import client_environment, docker_clis
from tests.engine.guarded import ROOT, Event, of, program_environment
from tests.spool import now
from tests.system.hosts.host import PORT, Host, HostDefender
from tests.system.hosts.hosts import Hosts, clear_stale
from tests.system.hosts.network import BRIDGE, address, port_of
from tests.system.hosts.node import Node, must
from tests.system.hosts.remains import Remains

PATIENCE = 30.0
SETTINGS = {"audit": "segment_bytes = 65536"}
DAY = 86400
NOT_THERE = "No such container: none"


class HostsTests(SynchronousTestCase):
    """Three hosts with standalone defenders, one of which has its own clock and one a small disk."""

    hosts: ClassVar[Hosts]
    one: ClassVar[Host]
    late: ClassVar[Host]
    small: ClassVar[Host]
    client: ClassVar[Node]

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.hosts = Hosts(3, clocks=("host2",), disks={"host3": "1m"}, settings=SETTINGS).start()
        cls.one, cls.late, cls.small = cls.hosts.hosts
        cls.client = cls.hosts.client

    @classmethod
    def tearDownClass(cls) -> None:
        cls.hosts.stop()  # fails when anything is left
        super().tearDownClass()

    def defender(self, host: Host) -> HostDefender:
        return self.hosts.defender(host)

    def docker(self, host: Host, *arguments: str, check: bool = True) -> tuple[int, str]:
        """Run a docker command of the admin's on the client, against a host."""
        return self.client.docker(*arguments, environment=self.hosts.tls(host), check=check)

    def name_of(self, host: Host) -> str:
        """Ask a host's Engine over the network what the machine is called that it runs on."""
        return self.docker(host, "info", "--format", "{{.Name}}")[1]

    def sleeper(self, host: Host, name: str) -> None:
        """Run a container that does nothing, and remove it at the end of the test."""
        self.addCleanup(host.direct, "rm", "-f", name)
        host.direct(
            *("run", "-d", "--network=none", "--stop-signal=KILL", "--name", name, "busybox"),
            *("sleep", "1000000"),
        )

    def reachable(self) -> list[str]:
        """The names of the hosts that the client reaches."""
        return [host.name for host in self.hosts.hosts if self.client.reaches(host.address, PORT)]

    # -- as it should be

    def test_every_client_reaches_every_host_over_tls(self) -> None:
        for host in self.hosts.hosts:
            trail, before = self.defender(host).trail(), now()
            for cli in docker_clis():
                environment = self.hosts.tls(host)
                name = self.client.docker("info", "--format", "{{.Name}}", environment=environment, cli=cli)
                self.assertEqual(name, (0, host.name))
            events = trail.wait_for(of("docker_info"), since=before, count=len(docker_clis()))
            seen = {(each["agent"], each["actor"]["user"], each["actor"]["via"]) for each in events}
            self.assertEqual(seen, {(host.name, "admin", "tls")})
            self.assertEqual(
                {each["actor"]["src"].rpartition(":")[0] for each in events}, {self.client.address}
            )

    def test_each_host_has_an_engine_and_a_policy_of_its_own(self) -> None:
        self.sleeper(self.one, "only-here")
        listing = ("ps", "--format", "{{.Names}}")
        self.assertEqual([self.docker(host, *listing)[1] for host in self.hosts.hosts], ["only-here", "", ""])
        bruce = self.hosts.tls(self.one, "bruce@example.com", "Dev team")
        self.assertEqual(self.client.docker(*listing, environment=bruce), (0, "only-here"))
        code, said = self.client.docker("rm", "-f", "only-here", environment=bruce, check=False)
        self.assertEqual(code, 1)
        self.assertIn("denied for user 'bruce@example.com'", said)
        run = ("run", "--rm", "--network=none", "busybox", "echo", "ran")
        self.assertEqual(self.docker(self.late, *run), (0, "ran"))

    def test_hosts_are_known_by_name_and_none_is_on_the_machines_network(self) -> None:
        self.assertEqual(self.one.run("hostname").stdout, b"host1\n")
        self.assertEqual(self.client.run("busybox", "hostname").stdout, b"client\n")
        self.assertIn(f"{address(2)} host2", self.client.run("cat", "/etc/hosts").stdout.decode())
        self.assertNotIn("host2", Path("/etc/hosts").read_text("utf-8"))
        self.assertNotEqual(os.uname().nodename, "host1")
        for kind in ("address", "route"):
            self.assertNotIn(address(1).rpartition(".")[0], system_tool("ip", "-o", kind, "show").stdout)
        names = {name for _, name in socket.if_nameindex()}
        self.assertFalse({BRIDGE, *(port_of(node) for node in self.hosts.nodes)} & names)

    # -- the network

    def test_a_host_that_is_cut_off_and_joined_again(self) -> None:
        host, defender, network = self.one, self.defender(self.one), self.hosts.network
        trail, before = defender.trail(), now()
        self.addCleanup(network.join, host)
        self.assertEqual(self.reachable(), ["host1", "host2", "host3"])
        network.cut(host)
        self.assertFalse(network.has_carrier(host))
        self.assertEqual(self.reachable(), ["host2", "host3"])
        self.assertEqual(self.name_of(self.late), "host2")
        # It goes on by itself: it decides, and keeps what it decided.
        for _ in range(3):
            self.assertEqual(host.docker("ps", "-q", environment=defender.unix()), (0, ""))
        bruce = self.hosts.tls(host, "bruce@example.com", "Dev team")
        code, said = host.docker("volume", "prune", "-f", environment=bruce, check=False)
        self.assertEqual(code, 1)
        self.assertIn("denied for user 'bruce@example.com'", said)
        network.join(host)
        self.assertTrue(wait_until(lambda: network.has_carrier(host), PATIENCE))
        self.assertTrue(wait_until(lambda: "host1" in self.reachable(), PATIENCE))
        self.assertEqual(self.name_of(host), "host1")
        trail.wait_for(of("docker_info"), since=before)
        events = trail.read(before)
        done = [each["req"]["action"] for each in events if each["phase"] == "result"]
        self.assertEqual(done.count("container_list"), 3)
        self.assertLess(done.index("volume_prune"), done.index("docker_info"))
        numbers = [each["seq"] for each in defender.events()]
        self.assertEqual(numbers, list(range(numbers[0], numbers[-1] + 1)))

    def test_a_link_that_is_half_open(self) -> None:
        host, defender, network = self.one, self.defender(self.one), self.hosts.network
        self.sleeper(host, "held")
        trail, before = defender.trail(), now()
        terminal = self.client.terminal("exec", "-it", "held", "sh", environment=self.hosts.tls(host))
        mend = [lambda: network.mend(self.client, host)]
        try:
            terminal.expect(rb"# ")
            terminal.ask(b"echo $((40 + 2))", rb"\n42")
            network.part(self.client, host)
            self.addCleanup(lambda: [each() for each in mend])
            terminal.send(b"touch /arrived\n")
            # Both ends have a carrier, what is sent arrives nowhere, and who goes is not missed.
            self.assertTrue(network.has_carrier(host))
            self.assertTrue(network.has_carrier(self.client))
            self.assertFalse(self.client.reaches(host.address, PORT))
        finally:
            terminal.end()
        self.assertNotIn("arrived", host.direct("exec", "held", "ls", "/"))
        self.assertEqual([each for each in trail.read(before) if each["phase"] == "stream_end"], [])
        # Others reach the host meanwhile, and the client reaches others.
        self.assertTrue(self.late.reaches(host.address, PORT))
        self.assertEqual(self.name_of(self.late), "host2")
        mend.pop()()
        _, ended = trail.stream("container_exec_start", before)
        self.assertEqual(ended["actor"]["user"], "admin")
        self.assertIn("arrived", host.direct("exec", "held", "ls", "/"))

    def test_packets_are_lost_in_one_direction_alone(self) -> None:
        network = self.hosts.network
        with self.one.entered():
            here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with self.client.entered():
            there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with here, there:
            here.bind((self.one.address, 5000))
            there.bind((self.client.address, 5000))
            here.settimeout(PATIENCE)
            network.lose(self.one, self.client)
            here.sendto(b"lost", there.getsockname())
            there.sendto(b"asked", here.getsockname())
            self.assertEqual(here.recv(100), b"asked")
            network.deliver(self.one, self.client)
            here.sendto(b"answered", there.getsockname())
            there.settimeout(PATIENCE)
            self.assertEqual(there.recv(100), b"answered")  # and what was lost did not come before it
        with self.assertRaisesRegex(AssertionError, "iptables"):
            network.deliver(self.one, self.client)

    # -- clock, disk and process

    def test_a_clock_that_is_off(self) -> None:
        clock, trail, before = self.hosts.clocks["host2"], self.defender(self.late).trail(), now()
        self.addCleanup(clock.set, 0)
        self.assertEqual(self.name_of(self.late), "host2")
        clock.set(DAY // 2)
        # For this host the clients' certificates have expired; the others have the right time.
        code, said = self.docker(self.late, "ps", check=False)
        self.assertEqual(code, 1)
        self.assertRegex(said, "certificate|tls")
        (event, *_) = trail.wait_for(lambda each: each["kind"] == "identity", since=before)
        self.assertIn("expired", event["decision"]["reason"])
        self.assertLess(abs(moment(event) - time.time() - DAY / 2), 60)
        self.assertEqual(self.name_of(self.one), "host1")
        clock.set(0)
        self.assertEqual(self.name_of(self.late), "host2")
        (step, *_) = trail.wait_for(lambda each: each["req"]["action"] == "audit_clock", since=before)
        self.assertEqual(step["agent"], "host2")

    def test_a_disk_that_is_full(self) -> None:
        defender = self.defender(self.small)
        with self.small.full(defender.state):
            # What the defender had allocated before is used first.
            while "No space left on device" not in (said := self.change(defender)):
                self.assertIn(NOT_THERE, said)
            code, said = self.docker(self.small, "create", "busybox", check=False)
            self.assertEqual(code, 1)
            self.assertRegex(said, "cannot be recorded.*No space left on device")
            self.assertEqual(self.docker(self.small, "ps", "-q"), (0, ""))
            self.assertIn(NOT_THERE, self.change(self.defender(self.one)))
        self.assertTrue(wait_until(lambda: not defender.status()["audit"]["problem"], PATIENCE))
        self.assertIn(NOT_THERE, self.change(defender))
        self.assertFalse((defender.state / "audit").exists(), "the disk is the host's alone")
        defender.events()

    def change(self, defender: HostDefender) -> str:
        """Ask for something that has to be recorded first, and return what is wrong with it."""
        link = connection(f"unix://{defender.host.seen(defender.socket)}")
        with self.assertRaises(ApiError) as caught:
            call(link, "POST", "/v1.41/containers/none/kill")
        return str(caught.exception)

    def test_a_sync_that_fails(self) -> None:
        defender = self.defender(self.one)
        self.assertIn(NOT_THERE, self.change(defender))
        with defender.failing("fdatasync", "error=EIO"):
            self.assertIn("Input/output error", self.change(defender))
            self.assertIn("Input/output error", defender.status()["audit"]["problem"])
        self.assertTrue(wait_until(lambda: not defender.status()["audit"]["problem"], PATIENCE))
        self.assertIn(NOT_THERE, self.change(defender))
        defender.events()

    def test_a_defender_that_is_killed(self) -> None:
        defender = self.defender(self.one)
        trail, before = defender.trail(), now()
        self.assertIn(NOT_THERE, self.change(defender))
        defender.kill()
        self.assertFalse(defender.serves())
        self.assertFalse(self.client.reaches(self.one.address, PORT))
        self.assertTrue(self.client.reaches(self.late.address, PORT))
        defender.start()
        self.assertEqual(self.name_of(self.one), "host1")
        trail.wait_for(lambda each: each["req"]["action"] == "audit_unclosed", since=before)
        # What was recorded before the Engine was asked is there; the answer's event may be or not.
        trail.wait_for(of("container_kill", "attempt"), since=before)
        defender.events()

    def test_an_engine_that_is_killed(self) -> None:
        host = self.one
        self.sleeper(host, "orphan")
        dockerd = host.engine.process()
        assert dockerd is not None
        os.kill(dockerd.pid, signal.SIGKILL)
        self.assertTrue(wait_until(lambda: not dockerd.alive, PATIENCE))
        code, said = self.docker(host, "ps", check=False)
        self.assertEqual(code, 1)
        self.assertIn(f"Cannot connect to the Engine at {host.engine.address}", said)
        self.assertEqual(self.name_of(self.late), "host2")
        host.engine.start()
        self.assertFalse(Path(f"/proc/{dockerd.pid}").exists(), "nobody asked for its exit status")
        self.assertEqual(self.name_of(host), "host1")
        listing = ("ps", "--all", "--filter=name=orphan", "--format", "{{.Names}} {{.State}}")
        self.assertEqual(self.docker(host, *listing)[1], "orphan exited")


def moment(event: Event) -> float:
    """When an event was, by the clock of its defender, in unix seconds."""
    return datetime.fromisoformat(event["ts_wall"]).timestamp()


class EmptyTests(SynchronousTestCase):
    """A network without hosts."""

    def test_what_is_left_is_found(self) -> None:
        hosts = Hosts(0).start()
        namespace = f"/proc/{hosts.client.pid}/ns/net"
        point = hosts.directory / "mounted"
        point.touch()
        self.addCleanup(shutil.rmtree, hosts.directory)
        must("mount", "--bind", namespace, str(point))
        self.addCleanup(must, "umount", "-l", str(point))
        with open(namespace, "rb"), hosts.remains() as remains:
            found = "\n".join(remains.found())
            self.assertRegex(found, r"process \d+: cat")
            self.assertIn(f"namespace held by /proc/{os.getpid()}/fd/", found)
            self.assertIn(f"mount at {point}", found)
            self.assertRegex(found, rf"namespace net:\[\d+\] mounted at {point}")
            with self.assertRaisesRegex(AssertionError, "(?s)left behind.*held by.*mounted at.*directory"):
                hosts.stop(0)
        with Remains(hosts.directory / "none", [], [], ["lo", "switch"]) as remains:
            self.assertEqual(remains.found(), ["network interface lo"])

    def test_a_start_that_fails_leaves_nothing(self) -> None:
        hosts = Hosts(0, others=("client", "controller"), disks={"controller": "nonsense"})
        with self.assertRaisesRegex(AssertionError, "mount .*size=nonsense"):
            hosts.start()
        self.assertFalse(hosts.directory.exists())
        self.assertFalse(hosts.client.started)


class LeavingTests(SynchronousTestCase):
    """What becomes of a network that nobody could stop; one host, on which a container runs."""

    def setUp(self) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-m", "tests.system.hosts", "1"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=program_environment(),
        )
        self.addCleanup(self.end)
        pids = self.pids_of_nodes()
        self.directory = Path(os.readlink(f"/proc/{pids['host1']}/cwd")).parent
        self.engine = OwnEngine(self.directory / "host1" / "engine", isolated=True)
        run = ("run", "-d", "--network=none", "--stop-signal=KILL", "busybox", "sleep", "1000000")
        environment = client_environment(self.engine.address)
        container = docker_clis()[-1].run(*run, environment=environment).stdout.decode().strip()
        names = (BRIDGE, *(f"port-{name}" for name in pids))
        self.remains = Remains(self.directory, pids.values(), [container], names)
        self.addCleanup(self.remains.__exit__)
        found = "\n".join(self.remains.found())
        for word in ("dockerd", "containerd-shim", "twistd", "of a container: sleep 1000000", "cat"):
            self.assertIn(word, found)

    def pids_of_nodes(self) -> dict[str, int]:
        assert self.child.stdout is not None
        pids = {}
        while (line := self.child.stdout.readline()) != b"ready\n":
            assert line, "it did not start"
            found = re.match(rb"(\w+) [0-9.]*: .* -t (\d+) ", line)
            if found is not None:
                pids[found[1].decode()] = int(found[2])
        self.assertEqual(set(pids), {"host1", "client", "switch"})
        return pids

    def end(self) -> None:
        self.child.kill()
        self.child.communicate(timeout=PATIENCE)
        clear_stale()

    def test_its_process_is_killed(self) -> None:
        self.child.kill()
        self.assertEqual(self.remains.wait(60), [])
        self.assertTrue(self.directory.exists())
        clear_stale()
        self.assertFalse(self.directory.exists())

    def test_its_process_and_its_engine_are_killed(self) -> None:
        """Then the container runs on, until the next network is started."""
        dockerd = self.engine.process()
        assert dockerd is not None
        os.kill(dockerd.pid, signal.SIGKILL)
        self.child.kill()
        self.assertTrue(wait_until(lambda: "twistd" not in "\n".join(self.remains.found()), PATIENCE))
        self.assertIn("of a container: sleep 1000000", "\n".join(self.remains.found()))
        self.child.wait(PATIENCE)
        clear_stale()
        self.assertEqual(self.remains.wait(), [])
        self.assertFalse(self.directory.exists())
