"""The whole defender as a member of a fleet: who gets in, and what they may do, comes from the controller."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import tempfile
import uuid
from datetime import UTC, datetime
from pathlib import Path
from shutil import rmtree
from typing import Any

from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from controller.channel.service import Reception
from controller.channel.tls import channel_context
from controller.pki.signing import SigningKeys
from defender.contract.contents import locks_content, mode_content, policy_content
from defender.contract.join_token import JoinToken
from defender.contract.locks import make_lock
from defender.contract.messages import Ack, Nack, Status
from defender.service import Defender, make_service
from defender.settings import load_settings
from tests.controller.channel.test_service import SETTINGS
from tests.defender.test_member import Controller
from tests.deploy.install_host import verdict
from tests.fakes import join_controller
from tests.fakes.authority import Credentials
from tests.fakes.fleet import controller_of, opened

reactor: Any = installed
ONLY_BRUCE = "schema: 1\nrules:\n  - {name: bruce_rule, users: [bruce], effect: allow}\n"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class FleetModeTests(TestCase):
    timeout = 60

    def setUp(self) -> None:
        self.state = Path(tempfile.mkdtemp(prefix="dfleet-"))
        self.addCleanup(rmtree, self.state)
        before = signal.getsignal(signal.SIGHUP)
        self.addCleanup(signal.signal, signal.SIGHUP, before)
        keys = SigningKeys.create(
            self.state / "signing",
            fleet=str(uuid.uuid4()),
            trust_domain="defender.fleet",
            now=int(datetime.now(UTC).timestamp()) - 60,
        )
        self.patch(join_controller, "TRUST", keys.chain)
        self.controller = Controller(keys)
        self.pki = self.controller.rules.pki
        own = controller_of(self.pki)
        context = channel_context(own.chain, own.key, [self.pki.fleet])
        self.reception = Reception(reactor, SETTINGS, context, self.controller, opened)
        self.reception.startService()
        self.addCleanup(lambda: self.reception.stopService() if self.reception.running else None)
        self.port = free_port()
        (self.state / "d").mkdir()
        (self.state / "d" / "defender.toml").write_text(
            f'[defender]\nname = "web1"\nstate = "{self.state}/d"\n'
            f'[engine]\naddress = "unix://{self.state}/engine.sock"\n'
            f'[listen]\nmode = "tcp"\ntcp = ["127.0.0.1:{self.port}"]\n'
            f'[controller]\naddress = "127.0.0.1:{self.reception.port}"\n'
        )

    def start(self, token: JoinToken | None = None) -> Defender:
        defender = make_service(load_settings(self.state / "d" / "defender.toml"), reactor, token)
        defender.startService()
        self.running: Defender | None = defender
        self.addCleanup(self.stop)
        return defender

    async def stop(self) -> None:
        defender, self.running = self.running, None
        if defender is not None:
            await defender.stopService()

    async def until(self, condition: Any) -> None:
        for _ in range(4000):
            if condition():
                return
            passed: Deferred[None] = Deferred()
            reactor.callLater(0.005, passed.callback, None)
            await passed
        self.fail(f"it never came true: {self.controller.said}")

    def ask(self, user: Credentials) -> tuple[int, str]:
        """Status and message of a ping, over TLS."""
        context = ssl.create_default_context(cadata=self.pem(self.pki.root))
        chain = self.state / "user.pem"
        chain.write_bytes(user.key_pem + user.chain_pem)
        context.load_cert_chain(chain)
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=20) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as stream,
        ):
            stream.sendall(b"GET /v1.41/_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            data = b""
            while chunk := stream.recv(65536):
                data += chunk
        head, _, body = data.partition(b"\r\n\r\n")
        return int(head.split()[1]), str(json.loads(body)["message"])

    def pem(self, certificate: Any) -> str:
        from cryptography.hazmat.primitives.serialization import Encoding

        return str(certificate.public_bytes(Encoding.PEM).decode())

    def status(self, defender: Defender) -> dict[str, Any]:
        return dict(defender._answer_status({}).result)

    async def test_from_joining_to_a_lock_and_a_start_without_the_controller(self) -> None:
        defender = self.start(self.controller.rules.token())
        assert defender.fleet is not None
        await defender.fleet.joined
        await self.until(lambda: self.controller.visits)
        self.controller.push_all()
        await self.until(lambda: len(self.controller.of(Ack)) == 4)
        bruce, eve = self.pki.user("bruce", []), self.pki.user("eve", [])
        # No Engine is there: who is let through hears of that.
        status, message = await deferToThread(self.ask, bruce)
        self.assertEqual(status, 502, message)
        self.assertEqual((await deferToThread(self.ask, eve))[0], 403)

        self.controller.push("policy", policy_content("prod", ONLY_BRUCE))
        self.controller.push("locks", locks_content([]))
        await self.until(lambda: len(self.controller.of(Ack)) == 6)
        status, message = await deferToThread(self.ask, eve)
        self.assertEqual(
            (status, message.split(" denied ")[0]), (403, "[Defender] The command 'docker_ping'")
        )
        self.controller.push("locks", locks_content([make_lock("user", "bruce")]))
        await self.until(lambda: len(self.controller.of(Ack)) == 7)
        status, message = await deferToThread(self.ask, bruce)
        self.assertEqual(status, 403)
        self.assertIn("by rule 'lock'", message)

        seen = self.status(defender)["fleet"]
        self.assertTrue(seen["connected"])
        self.assertEqual(
            {name: each["version"] for name, each in seen["streams"].items()},
            {
                "trust": 1,
                "locks": 3,
                "policy": 2,
                "mode": 1,
            },
        )
        self.assertTrue(self.controller.of(Status))

        await self.stop()
        await self.reception.stopService()
        again = self.start()
        status, message = await deferToThread(self.ask, bruce)
        self.assertIn("by rule 'lock'", message)
        self.assertFalse(self.status(again)["fleet"]["connected"])

    async def test_the_installer_understands_how_a_defender_does(self) -> None:
        settings = self.state / "d" / "defender.toml"
        settings.write_text(settings.read_text().replace('mode = "tcp"', 'mode = "unix"'))
        said = []
        waiting = self.start(self.controller.rules.token(approval=True))
        assert waiting.fleet is not None
        await self.until(lambda: waiting.fleet.problem.startswith("the controller says"))
        said.append(verdict(self.status(waiting)))
        await self.stop()
        refused = self.start()
        assert refused.fleet is not None
        said.append(verdict(self.status(refused)))
        await self.stop()
        joined = self.start(self.controller.rules.token())
        assert joined.fleet is not None
        await joined.fleet.joined
        await self.until(lambda: joined.listener.actual == joined.listener.desired)
        said.append(verdict(self.status(joined)))
        self.assertEqual(said[0], "pending")
        self.assertIn("wait it has not joined the fleet: this host is no defender of a fleet yet", said[1])
        self.assertEqual(said[2], "good")

    async def test_a_locked_defender_denies_everybody_and_stays_in_touch(self) -> None:
        defender = self.start(self.controller.rules.token())
        assert defender.fleet is not None
        await defender.fleet.joined
        await self.until(lambda: self.controller.visits)
        self.controller.push_all()
        await self.until(lambda: len(self.controller.of(Ack)) == 4)
        assert defender.fleet.member is not None
        bruce = self.pki.user("bruce", [])
        pushed = 4
        for value, expected in (
            (defender.fleet.member.defender, 403),
            ("web1", 403),
            ("web2", 502),
        ):
            self.controller.push("locks", locks_content([make_lock("defender", value)]))
            pushed += 1
            await self.until(lambda: len(self.controller.of(Ack)) == pushed)  # noqa: B023 - awaited here
            status, message = await deferToThread(self.ask, bruce)
            self.assertEqual(status, expected, message)
            if expected == 403:
                self.assertIn("by rule 'lock' This host is locked out", message)
        self.assertTrue(self.status(defender)["fleet"]["connected"])
        self.assertEqual(len(self.controller.visits), 1)

    async def test_a_mode_that_cannot_be_is_refused_and_the_old_one_stays(self) -> None:
        defender = self.start(self.controller.rules.token())
        assert defender.fleet is not None
        await defender.fleet.joined
        await self.until(lambda: self.controller.visits)
        self.controller.push_all()
        await self.until(lambda: len(self.controller.of(Ack)) == 4)
        # A directory stands where the socket should be.
        (self.state / "d" / "docker.sock").mkdir()
        self.controller.push("mode", mode_content("unix+tcp"))
        await self.until(lambda: self.controller.of(Nack))
        nack = self.controller.of(Nack)[0]
        self.assertEqual((nack.code, nack.kept.version), ("not-activated", 1))
        self.assertIn("docker.sock", nack.detail)
        self.assertEqual((await deferToThread(self.ask, self.pki.user("bruce", [])))[0], 502)
        (self.state / "d" / "docker.sock").rmdir()
        self.controller.push("mode", mode_content("unix+tcp"))
        await self.until(lambda: len(self.controller.of(Ack)) == 5)
        self.assertTrue((self.state / "d" / "docker.sock").is_socket())

    async def test_a_reload_makes_a_link_that_waits(self) -> None:
        defender = self.start(self.controller.rules.token())
        assert defender.fleet is not None
        await defender.fleet.joined
        link = defender.fleet.link
        assert link is not None
        await self.until(lambda: link.connected)
        self.controller.visits[0].leave("store", "the store is full", 3600)
        await self.until(lambda: not link.connected)
        await defender.reload()
        await self.until(lambda: link.connected)

    async def test_before_anything_came_nobody_is_let_in(self) -> None:
        defender = self.start(self.controller.rules.token())
        assert defender.fleet is not None
        await defender.fleet.joined
        await self.until(lambda: self.controller.visits)
        self.assertIsNone(defender.proxy.locks)
        self.assertIsNone(defender.activation.policy)
        with self.assertRaises(OSError):
            await deferToThread(self.ask, self.pki.user("bruce", []))
