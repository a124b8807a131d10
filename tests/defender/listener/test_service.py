"""The listeners on real sockets: opening, switching, draining, and who is let in."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from OpenSSL import SSL
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.logger import LogEvent, Logger, formatEvent
from twisted.trial.unittest import TestCase

from defender.contract.facts import Subject
from defender.contract.identity import TRUST_DOMAIN_DEFAULT
from defender.listener import frontend, switch
from defender.listener.acceptor import InheritedSockets
from defender.listener.connection import Refusal
from defender.listener.frontend import Reception, Terms
from defender.listener.service import ListenerService
from defender.listener.spec import DesiredMode, ListenSpec, read_spec
from defender.listener.store import ModeStore
from defender.listener.switch import Report
from defender.listener.tls import TLSFiles, server_context
from defender.streams.interface import Lost, Stream
from tests.fakes.authority import TestAuthority

T = TypeVar("T")
reactor: Any = global_reactor
PKI = TestAuthority()
WAIT = 20.0


class Served:
    """The proxy's stand-in: greets, answers lines, is idle until it hears "hold"."""

    def __init__(self, stream: Stream, subject: Subject, closed: Callable[[], None]) -> None:
        self.stream = stream
        self.closed = closed
        self.busy = False
        self.leaving = False
        stream.set_receiver(self)
        stream.write(f"{subject.user} {','.join(subject.groups)} {subject.via}\n".encode())

    def data_received(self, data: bytes) -> None:
        self.busy = data == b"hold\n"
        self.stream.write(b"ok\n")
        if self.leaving and not self.busy:
            self.stream.close()

    def end_received(self) -> None:
        self.stream.close()

    def write_full(self) -> None: ...

    def write_drained(self) -> None: ...

    def connection_lost(self, reason: Lost) -> None:
        self.closed()
        self.closed()

    def close_when_idle(self) -> None:
        self.leaving = True
        if not self.busy:
            self.stream.close()

    def abort(self, reason: str = "aborted") -> None:
        self.stream.abort()


class Line:
    """A client's end: blocking calls, to be made in a thread."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(WAIT)

    def ask(self, text: bytes) -> bytes:
        self.sock.sendall(text)
        return self.sock.recv(100)

    def hear(self) -> bytes:
        """The next bytes; b"" at the end, however it comes."""
        try:
            return self.sock.recv(100)
        except ConnectionResetError:
            return b""


def threaded(call: Callable[[], T]) -> Deferred[T]:
    pool = reactor.getThreadPool()
    return deferToThreadPool(reactor, pool, call)


def a_moment() -> Deferred[None]:
    turn: Deferred[None] = Deferred()
    reactor.callLater(0.01, turn.callback, None)
    return turn


class Hall(TestCase):
    """A listener service, and clients for it."""

    def setUp(self) -> None:
        # trial's own directories are deeper than the path of a socket may be long.
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.path = str(self.folder / "d.sock")
        self.files = PKI.write_server(self.folder / "tls")
        self.store = ModeStore(self.folder / "listener.json")
        self.refusals: list[Refusal] = []
        self.lines: list[LogEvent] = []
        self.identify: Callable[[socket.socket], Deferred[Subject]] = lambda sock: succeed(
            Subject("root", ("wheel",), via="unix", uid=0, pid=1)
        )
        self.accept: Any = Served
        self.limit = 100
        observer: Any = self.lines.append
        for each in (Reception, ListenerService):
            self.patch(each, "log", Logger(observer=observer))

    def context(self) -> SSL.Context:
        paths = (self.files.certificate_chain, self.files.private_key, self.files.client_ca)
        files = TLSFiles(*map(str, paths))
        return server_context(files, trust_domain=TRUST_DOMAIN_DEFAULT)

    def spec(self, mode: str, port: int = 0, **more: Any) -> ListenSpec:
        return read_spec(mode, [f"127.0.0.1:{port}"], [self.path], **more)

    def make(self, spec: ListenSpec, inherited: InheritedSockets | None = None) -> ListenerService:
        terms = Terms(
            connections=self.limit,
            handshake_timeout=WAIT,
            linger=0.1,
            load_context=self.context,
            identify=lambda sock: self.identify(sock),
            accept=lambda *args: self.accept(*args),
            refused=self.refusals.append,
        )
        service = ListenerService(reactor, spec, terms, drain=0.0, store=self.store, inherited=inherited)

        def stop() -> Deferred[None] | None:
            return service.stopService() if service.running else None

        self.addCleanup(stop)
        return service

    async def serve(self, spec: ListenSpec) -> ListenerService:
        service = self.make(spec)
        service.startService()
        await service.started
        return service

    def port(self, service: ListenerService) -> int:
        """The port that the kernel chose for the TCP listener that accepts."""
        listeners: Any = service.status()["listeners"]
        [name] = [
            entry["bound"][0]
            for entry in listeners
            if entry["address"].startswith("tcp") and entry["state"] == "accepting"
        ]
        return int(name.rpartition(":")[2])

    def keep(self, sock: socket.socket) -> Line:
        self.addCleanup(sock.close)
        return Line(sock)

    async def over_tls(self, port: int, user: Any = None) -> Line:
        paths = PKI.write_user(self.folder / "user", user)
        context = ssl.create_default_context(cafile=str(paths.ca))
        context.load_cert_chain(paths.certificate_chain, paths.private_key)

        def connect() -> socket.socket:
            raw = socket.create_connection(("127.0.0.1", port), WAIT)
            return context.wrap_socket(raw, server_hostname="localhost")

        return self.keep(await threaded(connect))

    async def over_unix(self) -> Line:
        sock = socket.socket(socket.AF_UNIX)
        line = self.keep(sock)
        await threaded(lambda: sock.connect(self.path))
        return line

    def exists(self) -> bool:
        return os.path.lexists(self.path)

    def refuses(self, port: int) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) != 0

    async def gone(self, service: ListenerService, count: int = 0) -> None:
        """Wait until no more than `count` connections are inside."""
        while service.reception.inside > count:
            await a_moment()

    def texts(self) -> list[str]:
        return [formatEvent(line) for line in self.lines]


class Opening(Hall):
    async def test_both_kinds_serve_with_their_subjects(self) -> None:
        service = await self.serve(self.spec("unix+tcp"))
        self.assertEqual((service.desired, service.actual), ("unix+tcp", "unix+tcp"))
        tls = await self.over_tls(self.port(service))
        self.assertEqual(await threaded(tls.hear), b"bruce@example.com Dev team tls\n")
        unix = await self.over_unix()
        self.assertEqual(await threaded(unix.hear), b"root wheel unix\n")
        self.assertEqual(service.status()["connections"], 2)
        for line in (tls, unix):
            line.sock.close()
        await self.gone(service)
        self.assertEqual(self.refusals, [])

    async def test_an_occupied_port_is_retried_while_the_rest_serves(self) -> None:
        blocker = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(blocker.close)
        port = blocker.getsockname()[1]
        self.patch(switch, "FIRST_RETRY", 0.01)
        service = self.make(self.spec("unix+tcp", port))
        service.startService()
        report: Report = await service.started
        self.assertEqual((report.outcome, service.actual), ("partial", "unix"))
        self.assertIn("in use", str(service.status()["last_error"]))
        unix = await self.over_unix()
        self.assertEqual(await threaded(unix.hear), b"root wheel unix\n")
        blocker.close()
        while service.actual != "unix+tcp":
            await a_moment()
        await self.over_tls(port)
        self.assertEqual(service.status()["last_error"], "")

    async def test_missing_certificates_are_said_and_do_not_stop_the_unix_socket(self) -> None:
        self.files.private_key.unlink()
        service = self.make(self.spec("unix+tcp"))
        service.startService()
        report: Report = await service.started
        self.assertIn("server.key", report.reason)
        self.assertEqual(service.actual, "unix")

    async def test_a_stop_leaves_nothing(self) -> None:
        service = await self.serve(self.spec("unix+tcp"))
        port = self.port(service)
        tls, unix = await self.over_tls(port), await self.over_unix()
        await threaded(tls.hear)
        await threaded(unix.hear)
        stopped = service.stopService()
        assert stopped is not None
        await stopped
        self.assertEqual(service.reception.inside, 0)
        self.assertFalse(self.exists())
        self.assertTrue(self.refuses(port))
        self.assertEqual(await threaded(unix.hear), b"")


class Retiring(Hall):
    async def test_what_is_open_has_its_time_and_nobody_new_is_let_in(self) -> None:
        service = await self.serve(self.spec("unix+tcp"))
        port = self.port(service)
        busy, idle = await self.over_tls(port), await self.over_unix()
        for line in (busy, idle):
            await threaded(line.hear)
        self.assertEqual(await threaded(lambda: busy.ask(b"hold\n")), b"ok\n")
        retired = service.retire(60)
        self.assertEqual(await threaded(idle.hear), b"")
        self.assertTrue(self.refuses(port))
        self.assertFalse(self.exists())
        report: Report = await service.set_mode("none")
        report = await service.set_mode("tcp")
        self.assertEqual(
            (report.outcome, report.reason), ("failed", "tcp://127.0.0.1:0: the defender is stopping")
        )
        self.assertNoResult(retired)
        self.assertEqual(await threaded(lambda: busy.ask(b"free\n")), b"ok\n")
        self.assertEqual(await threaded(busy.hear), b"")
        await retired
        self.assertIs(service.stopService(), None)

    async def test_its_time_has_an_end(self) -> None:
        service = await self.serve(self.spec("unix"))
        line = await self.over_unix()
        await threaded(line.hear)
        await threaded(lambda: line.ask(b"hold\n"))
        await service.retire(0.05)
        self.assertEqual(service.reception.inside, 1)
        stopped = service.stopService()
        assert stopped is not None
        await stopped
        self.assertEqual(await threaded(line.hear), b"")

    async def test_nothing_open_is_nothing_to_wait_for(self) -> None:
        service = await self.serve(self.spec("unix"))
        self.successResultOf(service.retire(60))


class Switching(Hall):
    async def test_tcp_to_unix_to_tcp_with_a_stream_open(self) -> None:
        service = await self.serve(self.spec("tcp"))
        port = self.port(service)
        busy, idle = await self.over_tls(port), await self.over_tls(port)
        for line in (busy, idle):
            await threaded(line.hear)
        self.assertEqual(await threaded(lambda: busy.ask(b"hold\n")), b"ok\n")

        report: Report = await service.set_mode("unix")
        self.assertEqual((report.outcome, service.actual), ("switched", "unix"))
        self.assertTrue(self.refuses(port))
        self.assertEqual(await threaded(idle.hear), b"")
        unix = await self.over_unix()
        self.assertEqual(await threaded(unix.hear), b"root wheel unix\n")
        self.assertEqual(await threaded(lambda: busy.ask(b"hold\n")), b"ok\n")
        listeners: Any = service.status()["listeners"]
        states = [entry["state"] for entry in listeners]
        self.assertEqual(states, ["draining", "accepting"])

        report = await service.set_mode("tcp")
        self.assertEqual((report.outcome, service.actual), ("switched", "tcp"))
        self.assertFalse(self.exists())
        again = await self.over_tls(self.port(service))
        self.assertEqual(await threaded(again.hear), b"bruce@example.com Dev team tls\n")
        # The stream of the first listener has lived through both.
        self.assertEqual(await threaded(lambda: busy.ask(b"free\n")), b"ok\n")
        self.assertEqual(await threaded(busy.hear), b"")
        await self.gone(service, 1)
        listeners = service.status()["listeners"]
        self.assertEqual(len(listeners), 1)
        self.assertEqual(self.refusals, [])

    async def test_an_occupied_port_leaves_the_old_listener_and_says_why(self) -> None:
        blocker = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(blocker.close)
        service = await self.serve(self.spec("unix", blocker.getsockname()[1]))
        inode = os.lstat(self.path).st_ino
        report: Report = await service.set_mode("tcp")
        self.assertEqual(report.outcome, "failed")
        self.assertIn("in use", report.reason)
        self.assertEqual((service.desired, service.actual), ("unix", "unix"))
        self.assertIs(self.store.load(), None)
        self.assertEqual(os.lstat(self.path).st_ino, inode)
        await threaded((await self.over_unix()).hear)

    async def test_the_drain_limit_cuts_what_is_left(self) -> None:
        service = await self.serve(self.spec("tcp"))
        line = await self.over_tls(self.port(service))
        await threaded(line.hear)
        await threaded(lambda: line.ask(b"hold\n"))
        await service.set_mode("none", 0.05)
        self.assertEqual(await threaded(line.hear), b"")
        await self.gone(service)
        self.assertEqual(service.status()["listeners"], [])

    async def test_a_probe_is_no_peer(self) -> None:
        service = await self.serve(self.spec("none"))
        await service.set_mode("unix+tcp")
        self.assertEqual((self.refusals, service.reception.inside), ([], 0))

    async def test_a_mode_without_addresses_is_an_error(self) -> None:
        service = await self.serve(read_spec("unix", [], [self.path]))
        error = self.failureResultOf(service.set_mode("tcp")).value
        self.assertIn("needs a TCP address", str(error))
        self.assertEqual(service.actual, "unix")

    async def test_permissions_of_the_socket_change_in_place(self) -> None:
        service = await self.serve(self.spec("unix"))
        report: Report = await service.reload(self.spec("unix", unix_mode=0o600), 0.0)
        self.assertEqual(report.outcome, "switched")
        self.assertEqual(stat.S_IMODE(os.lstat(self.path).st_mode), 0o600)
        report = await service.reload(self.spec("unix", unix_group="no-such-group"), 0.0)
        self.assertIn("no group", report.reason)
        self.assertEqual(stat.S_IMODE(os.lstat(self.path).st_mode), 0o600)


class Remembering(Hall):
    async def test_a_mode_chosen_at_run_time_outlives_a_restart(self) -> None:
        service = await self.serve(self.spec("none"))
        await service.set_mode("unix")
        self.assertEqual(self.store.load(), DesiredMode("unix", over="none"))
        service.stopService()
        service = await self.serve(self.spec("none"))
        self.assertEqual((service.desired, service.actual), ("unix", "unix"))

    async def test_another_mode_in_the_settings_is_the_later_wish(self) -> None:
        self.store.save(DesiredMode("none", over="unix"))
        service = await self.serve(self.spec("unix"))
        self.assertEqual(service.actual, "none")
        # The same settings again change nothing.
        await service.reload(self.spec("unix"), 0.0)
        self.assertEqual(service.actual, "none")
        await service.reload(self.spec("unix+tcp"), 0.0)
        self.assertEqual(service.actual, "unix+tcp")
        self.assertIs(self.store.load(), None)

    async def test_removing_the_note_and_reloading_ends_the_override(self) -> None:
        service = await self.serve(self.spec("none"))
        await service.set_mode("unix")
        self.store.path.unlink()
        await service.reload(self.spec("none"), 0.0)
        self.assertEqual((service.desired, service.actual), ("none", "none"))

    async def test_the_mode_of_the_settings_needs_no_note(self) -> None:
        self.store.save(DesiredMode("none", over="unix"))
        service = await self.serve(self.spec("unix"))
        await service.set_mode("unix")
        self.assertIs(self.store.load(), None)

    async def test_a_chosen_mode_whose_address_is_gone_is_dropped(self) -> None:
        self.store.save(DesiredMode("tcp", over="unix"))
        service = await self.serve(read_spec("unix", [], [self.path]))
        self.assertEqual(service.actual, "unix")
        self.assertIs(self.store.load(), None)

    async def test_a_mode_that_cannot_be_kept_is_reported(self) -> None:
        service = await self.serve(self.spec("none"))

        def full(desired: DesiredMode) -> None:
            raise OSError(28, "No space left on device")

        self.patch(self.store, "save", full)
        report: Report = await service.set_mode("unix")
        self.assertEqual((report.outcome, service.actual), ("partial", "unix"))
        self.assertIn("not kept over a restart", report.reason)


class Certificates(Hall):
    async def test_a_reload_takes_new_ones_for_new_connections(self) -> None:
        service = await self.serve(self.spec("tcp"))
        before = await self.over_tls(self.port(service))
        first: Any = before.sock
        PKI.write_server(self.folder / "tls", PKI.server())
        await service.reload(self.spec("tcp"), 0.0)
        after: Any = (await self.over_tls(self.port(service))).sock
        self.assertNotEqual(first.getpeercert(True), after.getpeercert(True))
        await threaded(before.hear)

    async def test_broken_ones_are_reported_and_not_taken(self) -> None:
        service = await self.serve(self.spec("tcp"))
        self.files.certificate_chain.write_text("nonsense")
        report: Report = await service.reload(self.spec("tcp"), 0.0)
        self.assertEqual(report.outcome, "partial")
        self.assertIn("stay in use", report.reason)
        await threaded((await self.over_tls(self.port(service))).hear)


class LettingIn(Hall):
    async def refused(self, port: int, user: Any) -> None:
        try:
            line = await self.over_tls(port, user)
            data = await threaded(line.hear)  # with TLS 1.3 the client hears it here
        except OSError:
            return
        self.assertEqual(data, b"")

    async def test_a_bad_certificate_is_named_in_one_line(self) -> None:
        service = await self.serve(self.spec("tcp"))
        await self.refused(self.port(service), PKI.odd("defender-role"))
        await self.gone(service)
        [refusal] = self.refusals
        self.assertEqual((refusal.via, refusal.check), ("tls", "spiffe-role"))
        self.assertEqual((refusal.subject, refusal.address), ("bruce@example.com", "127.0.0.1"))
        [line] = [text for text in self.texts() if "refused" in text]
        self.assertIn("check=spiffe-role subject=bruce@example.com peer=127.0.0.1 port", line)
        self.assertEqual(service.status()["refused"], 1)

    async def test_a_peer_that_says_nothing_useful(self) -> None:
        service = await self.serve(self.spec("tcp"))
        with socket.create_connection(("127.0.0.1", self.port(service))) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            await threaded(Line(client).hear)
        await self.gone(service)
        self.assertEqual(len(self.refusals), 1)

    async def test_a_unix_peer_that_cannot_be_told(self) -> None:
        class UnknownError(Exception):
            check = "peer-names"
            detail = "the look-up took longer\nthan 2 s"

        self.identify = lambda sock: fail(UnknownError())
        service = await self.serve(self.spec("unix"))
        self.assertEqual(await threaded((await self.over_unix()).hear), b"")
        self.assertEqual(self.refusals, [Refusal("unix", "peer-names", UnknownError.detail)])
        [line] = [text for text in self.texts() if "refused" in text]
        self.assertIn("peer=unix socket: the look-up took longer\\nthan 2 s", line)
        self.assertEqual(service.reception.inside, 0)

    async def test_over_the_limit_connections_are_closed_at_once(self) -> None:
        self.limit = 2
        service = await self.serve(self.spec("unix"))
        lines = [await self.over_unix() for _ in range(3)]
        heard = [await threaded(line.hear) for line in lines]
        self.assertEqual(heard, [b"root wheel unix\n"] * 2 + [b""])
        self.assertEqual(service.status()["over_limit"], 1)
        lines[0].sock.close()
        await self.gone(service, 1)
        self.assertEqual(await threaded((await self.over_unix()).hear), b"root wheel unix\n")

    async def test_a_handshake_counts_against_the_limit(self) -> None:
        self.limit = 1
        service = await self.serve(self.spec("tcp"))
        port = self.port(service)
        with (
            socket.create_connection(("127.0.0.1", port)) as first,
            socket.create_connection(("127.0.0.1", port)),
        ):
            self.assertEqual(await threaded(Line(first).hear), b"")
            self.assertEqual(service.status()["over_limit"], 1)
        await self.gone(service)

    async def test_a_switch_ends_those_who_are_not_in_yet(self) -> None:
        service = await self.serve(self.spec("unix+tcp"))
        waiting: Deferred[Subject] = Deferred()
        self.identify = lambda sock: waiting
        unix = await self.over_unix()
        tcp = Line(socket.create_connection(("127.0.0.1", self.port(service))))
        self.addCleanup(tcp.sock.close)
        while service.reception.inside < 2:
            await a_moment()
        await service.set_mode("none")
        self.assertEqual(await threaded(unix.hear), b"")
        self.assertEqual(await threaded(tcp.hear), b"")
        await self.gone(service)
        waiting.callback(Subject("late"))
        self.assertEqual((self.refusals, service.status()["listeners"]), ([], []))

    async def test_a_fault_of_the_proxy_ends_one_connection(self) -> None:
        def broken(*args: object) -> Served:
            raise RuntimeError("a bug")

        self.accept = broken
        service = await self.serve(self.spec("unix"))
        self.assertEqual(await threaded((await self.over_unix()).hear), b"")
        await self.gone(service)
        self.assertIn("a connection could not be let in", "".join(self.texts()))
        self.accept = Served
        self.assertEqual(await threaded((await self.over_unix()).hear), b"root wheel unix\n")

    async def test_a_flood_of_refusals_does_not_fill_the_log(self) -> None:
        self.patch(frontend, "LINES_PER_SECOND", 1)
        service = await self.serve(self.spec("none"))
        now = [100.0]
        self.patch(service.reception, "_reactor", type("Clock", (), {"seconds": lambda self: now[0]})())
        for second in (100.0, 100.5, 100.9, 101.0):
            now[0] = second
            service.reception._refuse(Refusal("tls", "x", "y"))
        texts = [text for text in self.texts() if "refused" in text]
        self.assertEqual(len(texts), 3)
        self.assertEqual(texts[1], "2 more peers were refused and not logged")
        self.assertEqual(len(self.refusals), 4)


class Inherited(Hall):
    async def test_a_passed_socket_serves_and_when_unused_closes_at_once(self) -> None:
        passed = socket.socket(socket.AF_UNIX)
        self.addCleanup(passed.close)
        passed.bind(self.path)
        passed.listen()
        passed.setblocking(False)
        service = self.make(read_spec("none", [], ["fd://docker"]), InheritedSockets([("docker", passed)]))
        service.startService()
        await service.started
        self.assertEqual(await threaded((await self.over_unix()).hear), b"")
        for _ in range(2):
            report: Report = await service.set_mode("unix")
            self.assertEqual(report.outcome, "switched")
            self.assertEqual(await threaded((await self.over_unix()).hear), b"root wheel unix\n")
            await service.set_mode("none")
            self.assertEqual(await threaded((await self.over_unix()).hear), b"")
        self.assertTrue(self.exists())
