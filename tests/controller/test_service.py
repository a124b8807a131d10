"""A whole controller in this process: its own files, its database, its ports, and a real member at them."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptography import x509
from OpenSSL import SSL
from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.logger import ILogObserver, formatEvent, globalLogPublisher
from twisted.trial.unittest import TestCase
from zope.interface import provider

from controller.cli.client import Client, ClientError
from controller.cli.login import Login
from controller.service import Controller, prepare
from controller.settings import read_settings
from defender.audit.journal import Journal
from defender.bundles.store import BundleStore
from defender.channel.store import MemberStore
from defender.contract.audit import defender_event
from defender.contract.join_token import parse_token
from defender.member import FleetMember
from tests.defender.test_member import Host

reactor: Any = installed

SETTINGS = """\
[controller]
state = "."
names = [{names}]
[https]
listen = "127.0.0.1:{https}"
[channel]
listen = "127.0.0.2:{channel}"
"""
NAMES = '"127.0.0.2"'
CHOSEN = "tall glass of cold water"

POLICY = """\
schema: 1
rules:
  - name: everybody
    users: ["*"]
    effect: allow
"""


@dataclass
class Running:
    """A controller that serves; `password` is what was told of a first admin, "" if nothing was."""

    controller: Controller
    password: str
    gave_up: list[str]


class ControllerCase(TestCase):
    timeout = 120

    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.state = self.folder / "controller"
        self.state.mkdir(0o700)
        self.password = ""
        self.logged: list[str] = []
        self.undo: list[Callable[[], Any]] = []

        @provider(ILogObserver)
        def note(event: Any) -> None:
            self.logged.append(formatEvent(event))

        globalLogPublisher.addObserver(note)
        self.addCleanup(globalLogPublisher.removeObserver, note)
        before = signal.getsignal(signal.SIGHUP)
        self.addCleanup(signal.signal, signal.SIGHUP, before)
        self.addCleanup(self.end)

    async def end(self) -> None:
        while self.undo:
            await self.undo.pop()()

    def write(self, names: str = NAMES, https: int = 0, channel: int = 0, more: str = "") -> Path:
        path = self.state / "controller.toml"
        path.write_text(SETTINGS.format(names=names, https=https, channel=channel) + more)
        return path

    def made(self, path: Path | None = None) -> Running:
        path = path or self.write()
        settings = read_settings(path.read_text(), source=str(path), base=self.state, host_name="hq")
        told: list[str] = []
        gave_up: list[str] = []

        def tell(password: str) -> bool:
            told.append(password)
            return True

        given = prepare(settings, "hq", tell)
        running = Running(Controller(given, reactor, lambda: gave_up.append("gave up")), "", gave_up)
        running.controller.started.addBoth(lambda _: setattr(running, "password", "".join(told)))
        return running

    async def started(self, path: Path | None = None) -> Running:
        running = self.made(path)
        running.controller.startService()
        self.undo.append(running.controller.stopService)
        await running.controller.started
        self.assertEqual(running.gave_up, [], self.logged)
        self.password = running.password or self.password
        return running

    async def stop(self, running: Running) -> None:
        self.undo.remove(running.controller.stopService)
        await running.controller.stopService()

    def client(self, running: Running, token: str = "") -> Client:
        authority = (self.state / "pki" / "root.pem").read_text()
        address = f"https://127.0.0.1:{running.controller.https_port}"
        client = Client(reactor, Login(address, authority, token=token))
        self.undo.append(client.close)
        return client

    async def admin(self, running: Running) -> Client:
        given = {"user": "admin", "password": self.password}
        answer = await self.client(running).ask("POST", "/api/v1/sessions", body=given)
        client = self.client(running, answer.document["token"])
        if answer.document["must_change_password"]:
            body = {"present": self.password, "wanted": CHOSEN}
            await client.ask("PUT", "/api/v1/accounts/current/password", body=body)
            self.password = CHOSEN
        return client

    async def member(self, running: Running, admin: Client, name: str) -> tuple[FleetMember, Host, Journal]:
        made = await admin.ask("POST", "/api/v1/join-tokens", body={"labels": {"site": "vienna"}})
        return await self.member_of(running, name, made.document["token"])

    async def member_of(
        self, running: Running, name: str, token: str | None = None
    ) -> tuple[FleetMember, Host, Journal]:
        state = self.folder / name
        journal = Journal(state / "audit", name, reactor=reactor)
        journal.start()
        host = Host()
        member = FleetMember(
            reactor,
            host,
            journal,
            controller=("127.0.0.2", running.controller.channel_port),
            store=MemberStore(state / "fleet"),
            bundles=BundleStore(state / "bundles"),
            name=name,
            names=(),
            version="1.0",
            token=None if token is None else parse_token(token),
        )
        member.startService()

        async def stop() -> None:
            if member.running:
                await member.stopService()
                await journal.stop()

        self.undo.append(stop)
        await member.joined
        await self.until(lambda: member.link is not None and member.link.connected)
        return member, host, journal

    async def until(self, condition: Callable[[], object]) -> None:
        for _ in range(6000):
            if condition():
                return
            await self.passed()
        self.fail("it never came true:\n" + "\n".join(self.logged[-30:]))

    async def passed(self) -> None:
        passed: Deferred[None] = Deferred()
        reactor.callLater(0.005, passed.callback, None)
        await passed

    async def events(self, admin: Client, **query: Any) -> list[dict[str, Any]]:
        async def read() -> AsyncIterator[dict[str, Any]]:
            async for event in admin.pages("/api/v1/audit/events", query):
                yield event["event"]

        return [event async for event in read()]

    async def actions(self, admin: Client, wanted: str) -> list[str]:
        """The actions of the events so far, once `wanted` is among them: events come a little later."""
        for _ in range(600):
            found = [event["req"]["action"] for event in await self.events(admin)]
            if wanted in found:
                return found
            await self.passed()
        raise AssertionError(f"no event {wanted}: {found}")


class StartTests(ControllerCase):
    async def test_a_first_start_makes_an_admin_and_serves(self) -> None:
        running = await self.started()
        self.assertRegex(self.password, r"\A[a-z2-7]{4}(-[a-z2-7]{4}){5}\Z")
        self.assertNotIn(self.password, "\n".join(self.logged))
        ready = await self.client(running).ask("GET", "/readyz")
        self.assertEqual(
            [(check["name"], check["ok"]) for check in ready.document["checks"]],
            [("store", True), ("events", True), ("publisher", True), ("ports", True)],
        )
        status = await (await self.admin(running)).ask("GET", "/api/v1/status")
        self.assertEqual(status.document["defenders"], {"online": 0, "stale": 0, "offline": 0})

    async def test_another_start_finds_what_was_made(self) -> None:
        first = await self.started()
        before = {path.name: path.read_bytes() for path in (self.state / "pki").iterdir()}
        admin = await self.admin(first)
        await admin.ask("POST", "/api/v1/locks", body={"kind": "user", "value": "bruce", "reason": "lost"})
        await self.stop(first)
        second = await self.started()
        self.assertEqual(second.password, "")
        self.assertEqual({path.name: path.read_bytes() for path in (self.state / "pki").iterdir()}, before)
        admin = await self.admin(second)
        locks = await admin.ask("GET", "/api/v1/locks")
        self.assertEqual([lock["value"] for lock in locks.document["items"]], ["bruce"])
        actions = await self.actions(admin, "controller_stop")
        self.assertEqual(actions.count("controller_start"), 2, actions)
        self.assertIn("lock_add", actions)

    async def test_a_password_that_nobody_can_be_shown_is_left_in_a_private_file(self) -> None:
        path = self.write()
        settings = read_settings(path.read_text(), source=str(path), base=self.state, host_name="hq")
        controller = Controller(prepare(settings, "hq", lambda _: False), reactor, lambda: None)
        controller.startService()
        self.undo.append(controller.stopService)
        await controller.started
        file = self.state / "first-admin-password"
        self.assertEqual(file.stat().st_mode & 0o777, 0o600)
        said = "\n".join(self.logged)
        self.assertIn(str(file), said)
        self.assertNotIn(file.read_text().strip(), said)

    async def test_a_port_that_is_taken_ends_the_start_and_leaves_nothing_open(self) -> None:
        with socket.create_server(("127.0.0.2", 0)) as other:
            running = self.made(self.write(channel=other.getsockname()[1]))
            running.controller.startService()
            self.undo.append(running.controller.stopService)
            await self.until(lambda: running.gave_up)
            said = "\n".join(self.logged)
            self.assertIn("the controller cannot start: cannot listen on 127.0.0.2:", said)
            self.assertIn("Address already in use", said)
            await self.stop(running)
        # The store's lock is free again.
        again = await self.started()
        self.assertEqual(again.gave_up, [])

    async def test_a_store_that_another_controller_has_is_not_touched(self) -> None:
        await self.started()
        second = self.made()
        second.controller.startService()
        self.undo.append(second.controller.stopService)
        await self.until(lambda: second.gave_up)
        said = "\n".join(self.logged)
        self.assertIn("the controller cannot start:", said)
        self.assertIn(str(self.state / "store"), said)

    async def test_it_can_be_stopped_while_it_starts(self) -> None:
        running = self.made()
        running.controller.startService()
        await running.controller.stopService()
        self.assertEqual(running.gave_up, [])
        await self.started()


class FleetTests(ControllerCase):
    async def test_a_host_joins_and_has_what_is_published(self) -> None:
        running = await self.started()
        admin = await self.admin(running)
        _, host, journal = await self.member(running, admin, "web1")
        await self.until(lambda: ("trust", 1) in host.told and ("locks", 0) in host.told)
        draft = {"text": POLICY, "target": {"labels": {"site": "vienna"}}}
        saved = await admin.ask("PUT", "/api/v1/policies/prod/draft", body=draft, absent=True)
        await admin.ask("POST", "/api/v1/policies/prod/publish", body={"comment": "first"}, etag=saved.etag)
        await self.until(lambda: ("policy", ("prod", POLICY)) in host.told)
        await admin.ask("POST", "/api/v1/locks", body={"kind": "user", "value": "bruce", "reason": "lost"})
        await self.until(lambda: ("locks", 1) in host.told)
        await admin.ask("PUT", "/api/v1/defenders/web1/listener", body={"mode": "unix"})
        await self.until(lambda: ("mode", "unix") in host.told)
        journal.record(defender_event("defender_start", version="1.0"))
        actions = await self.actions(admin, "defender_start")
        self.assertLessEqual(
            {"controller_start", "defender_joined", "policy_publish", "lock_add"}, {*actions}, actions
        )
        shown = (await admin.ask("GET", "/api/v1/defenders/web1")).document
        self.assertEqual(
            (shown["state"], shown["labels"], shown["streams"]["policy"]["state"]),
            ("online", {"site": "vienna"}, "acked"),
        )

    async def test_a_member_comes_back_after_a_restart_of_the_controller(self) -> None:
        first = await self.started()
        admin = await self.admin(first)
        member, _, journal = await self.member(first, admin, "web1")
        ports = first.controller.https_port, first.controller.channel_port
        await self.stop(first)
        await self.until(lambda: member.link is not None and not member.link.connected)
        journal.record(defender_event("defender_start", version="while-away"))
        second = await self.started(self.write(https=ports[0], channel=ports[1]))
        assert member.link is not None
        assert member.link._call is not None
        member.link._call.reset(0)
        await self.until(lambda: member.link is not None and member.link.connected)
        admin = await self.admin(second)
        await self.actions(admin, "defender_start")
        shown = (await admin.ask("GET", "/api/v1/defenders/web1")).document
        self.assertEqual(shown["state"], "online")

    async def test_who_is_removed_is_cut_and_not_let_in_again(self) -> None:
        running = await self.started()
        admin = await self.admin(running)
        member, _, _ = await self.member(running, admin, "web1")
        await admin.ask("DELETE", "/api/v1/defenders/web1")
        await self.until(lambda: member.link is not None and not member.link.connected)
        with self.assertRaises(ClientError):
            await admin.ask("GET", "/api/v1/defenders/web1")
        await self.actions(admin, "defender_remove")

    async def test_a_rollout_that_is_refused_is_told_in_the_trail(self) -> None:
        running = await self.started()
        admin = await self.admin(running)
        _, host, _ = await self.member(running, admin, "web1")
        await self.until(lambda: ("trust", 1) in host.told)
        host.refusal = "policy.yaml:1:1: nothing of this is for me"
        saved = await admin.ask(
            "PUT",
            "/api/v1/policies/prod/draft",
            body={"text": POLICY, "target": {"names": ["*"]}},
            absent=True,
        )
        await admin.ask("POST", "/api/v1/policies/prod/publish", body={"comment": "x"}, etag=saved.etag)
        await self.actions(admin, "rollout_halt")
        halted = [event for event in await self.events(admin) if event["req"]["action"] == "rollout_halt"]
        self.assertEqual(halted[0]["actor"]["via"], "system")
        self.assertIn("web1 refused it", str(halted[0]))


class ReloadTests(ControllerCase):
    async def certificate(self, running: Running) -> x509.Certificate:
        def shake() -> x509.Certificate:
            plain = socket.create_connection(("127.0.0.1", running.controller.https_port), timeout=20)
            with plain:
                link = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), plain)
                link.set_connect_state()
                plain.settimeout(None)
                link.do_handshake()
                found = link.get_peer_certificate(as_cryptography=True)
                assert found is not None
                return found

        return await deferToThread(shake)

    async def names(self, running: Running) -> str:
        found = await self.certificate(running)
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return " ".join(str(name.value) for name in names)

    async def test_a_hangup_has_other_names_served_without_a_restart(self) -> None:
        running = await self.started()
        self.assertNotIn("fleet.example.com", await self.names(running))
        self.write(names=f'{NAMES}, "fleet.example.com"', more="[accounts]\nlogins_per_user = 9\n")
        os.kill(os.getpid(), signal.SIGHUP)
        await self.until(lambda: any("were read again" in line for line in self.logged))
        self.assertIn("fleet.example.com", await self.names(running))
        said = next(line for line in self.logged if "were read again" in line)
        self.assertIn("need a restart: accounts.logins_per_user", said)

    async def test_settings_that_cannot_be_used_change_nothing(self) -> None:
        running = await self.started()
        before = await self.certificate(running)
        path = self.write()
        path.write_text(path.read_text() + "[https]\nlisten = 3\n")
        os.kill(os.getpid(), signal.SIGHUP)
        await self.until(lambda: any("the settings stay as they are" in line for line in self.logged))
        self.assertEqual(await self.certificate(running), before)

    async def test_a_sink_that_is_described_anew_is_taken_up(self) -> None:
        running = await self.started()
        admin = await self.admin(running)
        folder = self.state / "sinks"
        folder.mkdir(0o700)
        (folder / "siem.toml").write_text("kind = 3\n")
        os.kill(os.getpid(), signal.SIGHUP)
        await self.until(lambda: any("sinks stay as they are" in line for line in self.logged))
        (folder / "ca.pem").write_bytes((self.state / "pki" / "root.pem").read_bytes())
        (folder / "siem.toml").write_text('kind = "syslog"\nhost = "127.0.0.1"\nport = 1\nca = "ca.pem"\n')
        os.kill(os.getpid(), signal.SIGHUP)
        await self.until(lambda: any("were read again" in line for line in self.logged))
        found = await admin.ask("GET", "/api/v1/audit/sinks")
        self.assertEqual([sink["name"] for sink in found.document["items"]], ["siem"])
