"""What the trail of a real session holds, and what it must never hold."""

from __future__ import annotations

import base64
import json
import secrets
import socket
import ssl
import urllib.parse
from collections import Counter
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.engine.clients import ClientCase, for_every_client, shared_box
from tests.engine.dockerd import DockerCLI, docker_clis
from tests.engine.guarded import BRUCE, Event, Guarded, certificates, of, scratch
from tests.engine.test_cli_streams import tar_of

REGISTRY = "127.0.0.1:1"


@for_every_client("tls", "unix")
class StreamEventTests(ClientCase):
    """Each call gives one result, each stream one end, joined by `corr`."""

    def pair(self, action: str, since: int) -> tuple[Event, Event]:
        """Return the result and the end of the one stream of an action since a mark."""
        began, ended = self.defender.trail.stream(action, since)
        self.assertEqual(began["result"]["status"], 101)
        self.assertGreaterEqual(ended["result"]["ms"], 0)
        self.assertNotIn("error", ended["result"])
        return began, ended

    def test_run(self) -> None:
        before = self.defender.trail.mark()
        self.docker("run", "-i", "--rm", "--network=none", "busybox", "cat", stdin=b"hello\n")
        began, ended = self.pair("container_attach", before)
        # Output without a terminal: one frame, with a head of eight bytes.
        self.assertEqual((ended["result"]["rx"], ended["result"]["tx"]), (6, 14))
        self.defender.trail.wait_for(of("container_wait"), since=before)
        events = [event for event in self.defender.trail.read(before) if event["kind"] == "engine"]
        results = Counter(event["corr"] for event in events if event["phase"] == "result")
        self.assertEqual(set(results.values()), {1})
        actions = {event["req"]["action"] for event in events}
        self.assertLessEqual({"container_create", "container_start"}, actions)
        actor = (
            {"user": "admin", "via": "tls"} if self.transport == "tls" else {"user": "root", "via": "unix"}
        )
        self.assertLessEqual(actor.items(), began["actor"].items())

    def test_exec_and_attach(self) -> None:
        before = self.defender.trail.mark()
        self.docker("exec", self.box, "echo", "from an exec")
        _, ended = self.pair("container_exec_start", before)
        self.assertEqual((ended["result"]["rx"], ended["result"]["tx"]), (0, 21))
        box = self.name("box")
        options = ("-i", "--rm", "--network=none", "--name", box)
        self.docker("create", *options, "busybox", "sh", "-c", "read line; echo got $line")
        self.docker("start", box)
        self.docker("attach", box, stdin=b"a line\n")
        _, ended = self.pair("container_attach", before)
        self.assertEqual((ended["result"]["rx"], ended["result"]["tx"]), (7, 19))

    def test_a_terminal_has_no_frames(self) -> None:
        before = self.defender.trail.mark()
        terminal = self.terminal("exec", "-it", self.box, "echo", "plain")
        self.assertEqual(terminal.wait(), 0)
        _, ended = self.pair("container_exec_start", before)
        self.assertEqual((ended["result"]["rx"], ended["result"]["tx"]), (0, len(b"plain\r\n")))

    def test_who_what_and_why(self) -> None:
        before = self.defender.trail.mark()
        self.docker("inspect", self.box)
        (event,) = self.defender.trail.wait_for(of("container_inspect", target=self.box), since=before)
        rule = "admin_rule" if self.transport == "tls" else "root_rule"
        self.assertEqual((event["decision"]["effect"], event["decision"]["rule"]), ("allow", rule))
        self.assertRegex(event["decision"]["digest"], "^sha256:[0-9a-f]{64}$")
        self.assertEqual(event["decision"]["version"], 1)
        self.assertEqual(
            (event["req"]["method"], event["req"]["path"]), ("GET", f"/containers/{self.box}/json")
        )
        self.assertEqual(event["result"]["status"], 200)
        self.assertGreater(event["result"]["bytes"], 1000)
        self.assertEqual(event["agent"], "e2e")
        if self.transport == "tls":
            self.assertRegex(event["actor"]["src"], r"^127\.0\.0\.1:\d+$")
            self.assertRegex(event["actor"]["serial"], "^[0-9a-f]+$")


class Canaries:
    """Secrets to plant, and the search for them."""

    def __init__(self) -> None:
        self._planted: dict[str, str] = {}

    def __getitem__(self, place: str) -> str:
        """Return the secret for a place; each has its own."""
        return self._planted.setdefault(place, secrets.token_hex(12))

    def found_in(self, folder: Path) -> set[str]:
        """Return where secrets were found: plain, or in base64 at any of its three offsets."""
        found = set()
        for file in folder.rglob("*"):
            if not file.is_file():
                continue
            content = file.read_bytes()
            for place, secret in self._planted.items():
                if any(form in content for form in _forms(secret)):
                    found.add(f"{place} in {file.name}")
        return found


def _forms(secret: str) -> set[bytes]:
    forms = {secret.encode()}
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + secret.encode())
        # The first and last characters depend on what stands beside the secret.
        forms.add(encoded[4 if offset else 0 : -4])
    return forms


class SecretTests(SynchronousTestCase):
    """Credentials in every place where clients put them: none is ever written."""

    def setUp(self) -> None:
        self.defender = Guarded(mode="tcp").start()
        self.addCleanup(self.defender.stop)
        self.canaries = Canaries()

    def test_no_secret_is_written(self) -> None:
        for cli in docker_clis():
            for environment in (self.defender.tls(), self.defender.tls(BRUCE, "Dev team")):
                self.plant(cli, environment)
        self.plant_by_hand()
        self.defender.stop()
        actions = {event["req"]["action"] for event in self.defender.trail.read(running=False)}
        self.assertLessEqual(
            {
                "container_create",
                "container_exec_create",
                "image_build",
                "image_create",
                "image_push",
                "docker_auth",
                "secret_create",
                "config_create",
                "service_create",
                "container_commit",
                "swarm_join",
                "unknown",
            },
            actions,
        )
        self.assertEqual(self.canaries.found_in(self.defender.state), set())
        # The search would find them.
        for form in _forms(self.canaries["output"]):
            (self.defender.state / "audit" / "control").write_bytes(b"x" + form + b"y")
            self.assertEqual(self.canaries.found_in(self.defender.state), {"output in control"})

    def plant(self, cli: DockerCLI, environment: dict[str, str]) -> None:
        """Use every secret in a command, allowed or denied; how the command ends does not matter."""
        canary, box = self.canaries, shared_box()

        def docker(*arguments: str, stdin: bytes = b"", home: Path | None = None, buildkit: int = 0) -> None:
            extra = {"DOCKER_BUILDKIT": str(buildkit), **({"DOCKER_CONFIG": str(home)} if home else {})}
            cli.run(*arguments, environment={**environment, **extra}, stdin=stdin, check=False)

        folder = scratch() / f"planted-{secrets.token_hex(4)}"
        folder.mkdir()
        (folder / "Dockerfile").write_text("FROM busybox\nARG TOKEN\nRUN true\n", "ascii")
        login = base64.b64encode(f"user:{canary['configured login']}".encode()).decode()
        auths = {"auths": {REGISTRY: {"auth": login}, "https://index.docker.io/v1/": {"auth": login}}}
        (folder / "config.json").write_text(json.dumps(auths), "ascii")
        quick = ("run", "--rm", "--network=none")
        docker(*quick, "-e", f"SECRET={canary['run -e']}", "busybox", "true")
        docker("exec", "-e", f"SECRET={canary['exec -e']}", box, "true")
        docker("exec", "-i", box, "cat", stdin=canary["standard input"].encode())
        docker("exec", "-i", box, "cat", stdin=canary["output"].encode())
        docker("exec", box, "mysql", f"-p{canary['short flag']}", f"--token={canary['long flag']}")
        docker("exec", box, "sh", "-c", f"PGPASSWORD={canary['assignment']} psql -c 'select 1'")
        built = ("build", "--build-arg", f"TOKEN={canary['build-arg']}", "--label", "a=b", str(folder))
        docker(*built, home=folder)
        docker(*built, home=folder, buildkit=1)
        docker("pull", f"{REGISTRY}/private", home=folder)
        docker("tag", "busybox", f"{REGISTRY}/private")
        docker("push", f"{REGISTRY}/private", home=folder)
        docker("rmi", f"{REGISTRY}/private")
        docker("search", "nothing", home=folder)
        docker("login", "-u", "someone", "-p", canary["login -p"], REGISTRY)
        docker("commit", "-c", f"ENV SECRET={canary['commit -c']}", box, "planted")
        docker("import", "-c", f"ENV SECRET={canary['import -c']}", "-", "planted", stdin=tar_of(a=b"b"))
        docker("import", f"http://someone:{canary['import URL']}@{REGISTRY}/file.tar")
        docker("rmi", "-f", "planted")
        docker("swarm", "join", "--token", f"SWMTKN-1-{canary['swarm join']}", REGISTRY)
        docker("swarm", "init", "--advertise-addr=127.0.0.1")
        for kind in ("secret", "config"):
            docker(kind, "create", f"planted-{kind}", "-", stdin=canary[f"{kind} create"].encode())
        secret = f"SECRET={canary['service -e']}"
        docker("service", "create", "-d", "--replicas=0", "-e", secret, "busybox", "true")
        docker("swarm", "leave", "--force")

    def plant_by_hand(self) -> None:
        """Send what no docker client would: requests that cannot be read, or name nothing that is known."""
        folder = certificates("admin")
        context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        arguments = urllib.parse.quote(json.dumps({"TOKEN": self.canaries["odd build-arg"]}))
        header = f"X-Registry-Auth: {self.canaries['odd header']}\r\n"
        for line in (
            f"POST /v1.41/build?buildargs={arguments}&bad=%zz HTTP/1.1",
            f"POST /v1.41/build?BuildArgs={arguments}&buildargs={arguments} HTTP/1.1",
            f"GET /v1.41/no/such/thing?token={self.canaries['unknown query']} HTTP/1.1",
            f"GET http://someone:{self.canaries['absolute form']}@docker/info HTTP/1.1",
            f"GET /v1.41/images/json?password={self.canaries['odd query']} HTTP/1.1",
            f"POST /v1.41/plugins/pull?remote={REGISTRY}/x HTTP/1.1",
            f"POST /v1.41/images/create?fromSrc=https://u:{self.canaries['fromSrc']}@{REGISTRY}/x HTTP/1.1",
        ):
            with (
                socket.create_connection(("127.0.0.1", self.defender.port), timeout=20) as plain,
                context.wrap_socket(plain, server_hostname="127.0.0.1") as link,
            ):
                link.sendall(f"{line}\r\nHost: docker\r\n{header}Connection: close\r\n\r\n".encode())
                self.assertTrue(link.recv(65536).startswith(b"HTTP/1.1 "))
