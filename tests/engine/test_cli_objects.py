"""Networks, volumes, the swarm, and the whole of it counted and pruned."""

from __future__ import annotations

import json

from tests.engine.clients import ClientCase, for_every_client
from tests.engine.guarded import of


@for_every_client("tls")
class NetworkTests(ClientCase):
    """docker network."""

    def test_create_connect_inspect_disconnect_remove(self) -> None:
        network, box = self.name("net"), self.name("box")
        self.addCleanup(self.docker, "network", "rm", network, check=False)
        self.docker("network", "create", "--subnet=10.99.7.0/24", "--label=a=b", network)
        self.addCleanup(self.docker, "rm", "-f", box)
        self.docker("run", "-d", "--name", box, "--network", network, "busybox", "sleep", "1000000")
        self.docker("network", "connect", "bridge", box)
        inside = json.loads(self.text("inspect", "--format={{json .NetworkSettings.Networks}}", box))
        self.assertEqual(set(inside), {network, "bridge"})
        self.docker("network", "disconnect", network, box)
        (described,) = json.loads(self.text("network", "inspect", network))
        self.assertEqual((described["Labels"], described["Containers"]), ({"a": "b"}, {}))
        self.assertIn(network, self.text("network", "ls", "--format={{.Name}}").splitlines())
        self.assertEqual(self.text("network", "rm", network), network)
        missing = self.docker("network", "inspect", network, check=False)
        self.assertRegex(missing.stderr.decode(), f"No such network: {network}|network {network} not found")


@for_every_client("tls")
class VolumeTests(ClientCase):
    """docker volume."""

    def test_create_use_inspect_remove(self) -> None:
        volume = self.name("vol")
        self.addCleanup(self.docker, "volume", "rm", volume, check=False)
        self.assertEqual(self.text("volume", "create", "--label=a=b", volume), volume)
        mount = f"--volume={volume}:/kept"
        run = ("run", "--rm", "--network=none", mount, "busybox", "sh", "-c")
        self.docker(*run, "echo kept > /kept/file")
        self.assertEqual(self.text(*run, "cat /kept/file"), "kept")
        (described,) = json.loads(self.text("volume", "inspect", volume))
        self.assertEqual((described["Labels"], described["Driver"]), ({"a": "b"}, "local"))
        self.assertIn(volume, self.text("volume", "ls", "-q").splitlines())
        self.assertEqual(self.text("volume", "rm", volume), volume)
        missing = self.docker("volume", "inspect", volume, check=False).stderr.decode().lower()
        self.assertRegex(missing, f"no such volume: {volume}|{volume}: no such volume")


@for_every_client("tls")
class SystemTests(ClientCase):
    """What concerns the whole Engine."""

    def test_disk_usage(self) -> None:
        self.assertIn("busybox", self.text("system", "df", "-v"))
        kinds = self.text("system", "df", "--format={{.Type}}").splitlines()
        self.assertEqual(kinds, ["Images", "Containers", "Local Volumes", "Build Cache"])

    def test_prunes(self) -> None:
        box, volume, network = self.name("box"), self.name("vol"), self.name("net")
        identifier = self.text("create", "--label=prune", "--name", box, "busybox")
        self.assertIn(identifier, self.text("container", "prune", "-f", "--filter=label=prune"))
        self.docker("volume", "create", "--label=prune", volume)
        self.assertIn("Total reclaimed", self.text("volume", "prune", "-f", "--filter=label=prune"))
        self.docker("network", "create", "--label=prune", network)
        self.assertIn(network, self.text("network", "prune", "-f", "--filter=label=prune"))
        self.assertIn("Total reclaimed", self.text("image", "prune", "-f"))
        self.assertIn("Total", self.text("builder", "prune", "-f"))
        self.docker("create", "--label=prune", "--name", box, "busybox")
        self.assertIn("Total reclaimed", self.text("system", "prune", "-f", "--filter=label=prune"))
        self.assertNotEqual(self.docker("inspect", box, check=False).returncode, 0)

    def test_version_and_info(self) -> None:
        form = "--format={{json .Server}}"
        self.assertEqual(json.loads(self.text("version", form)), json.loads(self.direct("version", form)))
        ours, theirs = (json.loads(ask("info", "--format={{json .}}")) for ask in (self.text, self.direct))
        for counted in ("SystemTime", "NFd", "NGoroutines", "NEventsListener", "ClientInfo"):
            ours.pop(counted, None)
            theirs.pop(counted, None)
        self.assertEqual(ours, theirs)


@for_every_client("tls")
class SwarmTests(ClientCase):
    """docker swarm, service, node, secret and config: the calls, not the traffic between machines."""

    def setUp(self) -> None:
        self.addCleanup(self.docker, "swarm", "leave", "--force", check=False)
        self.docker("swarm", "init", "--advertise-addr=127.0.0.1")

    def test_the_swarm_itself(self) -> None:
        before = self.defender.trail.mark()
        self.docker("swarm", "update", "--task-history-limit=3")
        self.assertIn("docker swarm join --token SWMTKN-", self.text("swarm", "join-token", "worker"))
        (node,) = self.text("node", "ls", "--format={{.ID}}").splitlines()
        self.docker("node", "update", "--label-add=a=b", node)
        self.assertEqual(self.text("node", "inspect", "--format={{json .Spec.Labels}}", node), '{"a":"b"}')
        info = json.loads(self.text("info", "--format={{json .Swarm}}"))
        self.assertEqual((info["LocalNodeState"], info["ControlAvailable"]), ("active", True))
        trail = self.defender.trail
        for action in ("swarm_update", "swarm_inspect", "node_update", "node_inspect"):
            trail.wait_for(of(action), since=before)
        self.assertIn("left the swarm", self.text("swarm", "leave", "--force"))
        self.assertIn(b"not a swarm manager", self.docker("node", "ls", check=False).stderr)

    def test_a_service(self) -> None:
        name = self.name("service")
        # No replica runs: the kernel may lack what a service's network needs.
        created = self.text(
            "service", "create", "-d", "--name", name, "--replicas=0", "--label=a=b", "busybox", "sleep", "9"
        )
        self.assertIn(name, self.text("service", "ls", "--format={{.Name}}"))
        (described,) = json.loads(self.text("service", "inspect", name))
        self.assertEqual((described["ID"], described["Spec"]["Labels"]), (created, {"a": "b"}))
        self.docker("service", "update", "-d", "--label-add=c=d", name)
        labels = self.text("service", "inspect", "--format={{json .Spec.Labels}}", name)
        self.assertEqual(json.loads(labels), {"a": "b", "c": "d"})
        self.assertEqual(self.text("service", "ps", "-q", name), "")
        self.assertEqual(self.text("service", "logs", name), "")
        self.assertEqual(self.text("service", "rm", name), name)
        self.assertEqual(self.text("service", "ls", "-q"), "")

    def test_a_secret_and_a_configuration(self) -> None:
        for kind in ("secret", "config"):
            name = self.name(kind)
            identifier = self.text(kind, "create", "--label=a=b", name, "-", stdin=b"content\n")
            self.assertIn(name, self.text(kind, "ls", "--format={{.Name}}"))
            (described,) = json.loads(self.text(kind, "inspect", name))
            self.assertEqual((described["ID"], described["Spec"]["Labels"]), (identifier, {"a": "b"}))
            self.assertEqual(self.text(kind, "rm", name), name)
