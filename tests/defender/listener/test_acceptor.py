"""Listening sockets: how they are opened, given back, inherited, and accepted from."""

from __future__ import annotations

import errno
import os
import socket
import stat
from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogEvent, Logger
from twisted.trial.unittest import SynchronousTestCase

from defender.listener import acceptor
from defender.listener.acceptor import (
    Acceptor,
    BindError,
    InheritedSockets,
    Knock,
    ListeningSocket,
    group_id,
    open_address,
    open_tcp,
    open_unix,
)
from defender.listener.spec import Inherited, TCPAddress, UnixAddress


class Sockets(SynchronousTestCase):
    def setUp(self) -> None:
        os.mkdir(folder := self.mktemp())
        self.path = os.path.abspath(os.path.join(folder, "s"))

    def opened(self, listening: ListeningSocket) -> ListeningSocket:
        self.addCleanup(listening.close)
        return listening

    def unix(self, mode: int = 0o600, group: str = "") -> ListeningSocket:
        return self.opened(open_unix(self.path, mode, group))

    def mode(self) -> int:
        return stat.S_IMODE(os.lstat(self.path).st_mode)

    def connects(self) -> int:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(self.path)


class TCP(Sockets):
    def test_it_listens_where_it_says(self) -> None:
        listening = self.opened(open_tcp(TCPAddress("127.0.0.1", 0)))
        port = listening.sock.getsockname()[1]
        self.assertEqual(listening.name, f"tcp://127.0.0.1:{port}")
        self.assertEqual(listening.kind, "tcp")
        self.assertFalse(listening.sock.get_inheritable())
        self.assertFalse(listening.sock.getblocking())

    def test_an_occupied_port(self) -> None:
        first = self.opened(open_tcp(TCPAddress("127.0.0.1", 0)))
        address = TCPAddress("127.0.0.1", first.sock.getsockname()[1])
        self.assertIn("in use", str(self.assertRaises(BindError, open_tcp, address)))

    def test_an_address_of_another_host(self) -> None:
        error = self.assertRaises(BindError, open_tcp, TCPAddress("192.0.2.1", 0))
        self.assertEqual(str(error), "this host has no such address")

    def test_ipv6_takes_no_ipv4(self) -> None:
        problems: list[BindError] = []
        for _ in range(20):
            listening = self.opened(open_tcp(TCPAddress("::", 0)))
            self.assertEqual(listening.sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY), 1)
            try:
                self.opened(open_tcp(TCPAddress("0.0.0.0", listening.sock.getsockname()[1])))
            except BindError as error:
                # Another program may use just that port over IPv4; twenty of them in a row do not.
                problems.append(error)
            else:
                return
        self.fail(f"no port is free for IPv4 beside IPv6: {problems[-1]}")


class Unix(Sockets):
    def test_mode_and_group(self) -> None:
        umask = os.umask(0)
        self.addCleanup(os.umask, umask)
        self.unix(0o660, str(os.getgid()))
        self.assertEqual(self.mode(), 0o660)
        self.assertEqual(os.lstat(self.path).st_gid, os.getgid())
        self.assertEqual(os.umask(0), 0)
        self.assertEqual(self.connects(), 0)

    def test_it_never_has_a_wider_mode(self) -> None:
        seen: list[int] = []
        chown = os.chown

        def spy(*args: Any, **keywords: Any) -> None:
            seen.append(self.mode())
            chown(*args, **keywords)

        self.patch(os, "chown", spy)
        umask = os.umask(0)
        self.addCleanup(os.umask, umask)
        self.unix(0o666)
        self.assertEqual(seen, [0o600])

    def test_what_other_threads_make_meanwhile_has_its_own_mode(self) -> None:
        """A umask changed for the socket's sake would take the right to enter from a new directory."""
        changed: list[int] = []
        self.patch(os, "umask", changed.append)
        self.unix(0o660)
        self.assertEqual((changed, self.mode()), ([], 0o660))

    def test_a_stale_socket_is_replaced(self) -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(self.path)
            dead.listen()
        self.unix()
        self.assertEqual(self.connects(), 0)

    def test_a_living_socket_is_not(self) -> None:
        with socket.socket(socket.AF_UNIX) as living:
            living.bind(self.path)
            living.listen()
            before = os.lstat(self.path)
            self.assertIn("another process", str(self.assertRaises(BindError, open_unix, self.path)))
            self.assertEqual(os.lstat(self.path).st_ino, before.st_ino)

    def test_a_living_socket_whose_backlog_is_full_is_not(self) -> None:
        with socket.socket(socket.AF_UNIX) as living, socket.socket(socket.AF_UNIX) as client:
            living.bind(self.path)
            living.listen(0)
            client.connect(self.path)
            self.assertIn("another process", str(self.assertRaises(BindError, open_unix, self.path)))

    def test_another_file_is_left_alone(self) -> None:
        for make in (lambda: open(self.path, "w").close(), lambda: os.symlink("/nowhere", self.path)):
            make()
            self.assertIn("not a socket", str(self.assertRaises(BindError, open_unix, self.path)))
            self.assertTrue(os.path.lexists(self.path))
            os.unlink(self.path)

    def test_a_missing_directory(self) -> None:
        error = self.assertRaises(BindError, open_unix, "/nowhere/at/all/s")
        self.assertIn("the directory /nowhere/at/all does not exist", str(error))

    def test_an_unknown_group_leaves_nothing(self) -> None:
        error = self.assertRaises(BindError, open_unix, self.path, 0o660, "no-such-group")
        self.assertIn("no group 'no-such-group'", str(error))
        self.assertFalse(os.path.lexists(self.path))

    def test_a_group_that_may_not_be_given_leaves_nothing(self) -> None:
        def refuse(*args: Any, **keywords: Any) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        self.patch(os, "chown", refuse)
        error = self.assertRaises(BindError, open_unix, self.path, 0o660, "0")
        self.assertIn("cannot give it to group '0': permission denied", str(error))
        self.assertFalse(os.path.lexists(self.path))

    def test_group_numbers_and_names(self) -> None:
        self.assertEqual(group_id(""), -1)
        self.assertEqual(group_id("77"), 77)
        self.assertEqual(group_id("root"), 0)

    def test_closing_removes_the_file(self) -> None:
        open_unix(self.path).close()
        self.assertFalse(os.path.lexists(self.path))

    def test_closing_never_removes_what_took_its_place(self) -> None:
        old = open_unix(self.path)
        os.unlink(self.path)
        self.unix()
        old.close()
        self.assertEqual(self.connects(), 0)

    def test_permissions_change_in_place(self) -> None:
        listening = self.unix(0o660)
        listening.permit(0o606, "")
        self.assertEqual(self.mode(), 0o606)

    def test_permissions_that_cannot_be_given_stay(self) -> None:
        listening = self.unix(0o660)

        def refuse(*args: Any, **keywords: Any) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        self.patch(os, "chown", refuse)
        self.assertIn("cannot set mode 0600", str(self.assertRaises(BindError, listening.permit, 0o600, "0")))
        self.assertEqual(self.mode(), 0o660)

    def test_permissions_of_another_file_are_not_changed(self) -> None:
        listening = self.unix(0o660)
        os.unlink(self.path)
        self.unix(0o600)
        self.assertIn("replaced", str(self.assertRaises(BindError, listening.permit, 0o666, "")))
        self.assertEqual(self.mode(), 0o600)


class Inheriting(Sockets):
    """A stand-in for systemd: descriptors from `FIRST` on, as if they were from 3 on."""

    FIRST = 900  # above all that a long run of tests has open, and below the usual limit

    def pass_on(self, *names: str) -> tuple[dict[str, str], list[socket.socket]]:
        sockets = []
        for number, name in enumerate(names, start=self.FIRST):
            sock = socket.socket(socket.AF_UNIX if "unix" in name else socket.AF_INET)
            sock.bind(self.path if "unix" in name else ("127.0.0.1", 0))
            sock.listen()
            os.dup2(sock.fileno(), number, inheritable=True)
            sockets.append(sock)
            self.addCleanup(sock.close)
        environ = {
            "LISTEN_PID": "7",
            "LISTEN_FDS": str(len(names)),
            "LISTEN_FDNAMES": ":".join(names),
            "X": "1",
        }
        return environ, sockets

    def adopt(self, environ: dict[str, str]) -> InheritedSockets:
        inherited = InheritedSockets.adopt(environ, 7, first=self.FIRST)
        for _, listening in inherited.sockets:
            self.addCleanup(listening.sock.close)
        return inherited

    def test_sockets_by_name(self) -> None:
        environ, _ = self.pass_on("tls", "unix")
        inherited = self.adopt(environ)
        self.assertEqual(environ, {"X": "1"})
        self.assertEqual(inherited.kinds, {"tls": "tcp", "unix": "unix"})
        [found] = inherited.matching(Inherited("unix", "unix"))
        self.assertFalse(found.sock.get_inheritable())
        self.assertFalse(found.sock.getblocking())

    def test_sockets_by_address(self) -> None:
        environ, sockets = self.pass_on("tls", "unix")
        inherited = self.adopt(environ)
        port = sockets[0].getsockname()[1]
        self.assertEqual(
            open_address(TCPAddress("127.0.0.1", port), 0, "", inherited), [inherited.sockets[0][1]]
        )
        self.assertEqual(open_address(UnixAddress(self.path), 0, "", inherited), [inherited.sockets[1][1]])
        self.assertEqual(inherited.matching(TCPAddress("127.0.0.2", port)), [])

    def test_they_are_neither_closed_nor_changed(self) -> None:
        environ, _ = self.pass_on("unix")
        [found] = self.adopt(environ).matching(Inherited("unix", "unix"))
        before = self.mode()
        found.permit(0o600, "")
        found.close()
        self.assertEqual(self.mode(), before)
        self.assertEqual(self.connects(), 0)

    def test_variables_for_another_process_are_not_ours(self) -> None:
        self.assertEqual(InheritedSockets.adopt({"LISTEN_PID": "8", "LISTEN_FDS": "1"}, 7).sockets, [])
        self.assertEqual(InheritedSockets.adopt({}, 7).sockets, [])

    def test_sockets_without_names_are_unknown(self) -> None:
        environ, _ = self.pass_on("tls")
        del environ["LISTEN_FDNAMES"]
        self.assertEqual(self.adopt(environ).kinds, {"unknown": "tcp"})

    def test_a_wrong_name_or_kind_is_said(self) -> None:
        environ, _ = self.pass_on("tls")
        inherited = self.adopt(environ)
        for address, words in [
            (Inherited("x", "tcp"), "no socket of that name"),
            (Inherited("tls", "unix"), "not a unix socket"),
        ]:
            self.assertIn(words, str(self.assertRaises(BindError, inherited.matching, address)))

    def test_damaged_variables(self) -> None:
        for count in ("x", "-1", "99999"):
            environ = {"LISTEN_PID": "7", "LISTEN_FDS": count}
            self.assertRaises(BindError, InheritedSockets.adopt, environ, 7)

    def test_a_descriptor_that_does_not_listen(self) -> None:
        near, far = socket.socketpair()
        self.addCleanup(far.close)
        os.dup2(near.fileno(), self.FIRST)
        near.close()
        environ = {"LISTEN_PID": "7", "LISTEN_FDS": "1"}
        error = self.assertRaises(BindError, InheritedSockets.adopt, environ, 7, first=self.FIRST)
        self.assertIn("not a listening stream socket", str(error))
        environ = {"LISTEN_PID": "7", "LISTEN_FDS": "1"}
        error = self.assertRaises(BindError, InheritedSockets.adopt, environ, 7, first=999)
        self.assertIn("is no socket", str(error))


class Script:
    """A listening socket that gives what a list says."""

    def __init__(self, *results: Any) -> None:
        self.results = list(results)
        self.accepts = 0

    def fileno(self) -> int:
        return 9

    def accept(self) -> tuple[Any, Any]:
        self.accepts += 1
        result = self.results.pop(0) if self.results else BlockingIOError()
        if isinstance(result, Exception):
            raise result
        return result, "peer"


class Connected:
    def __init__(self) -> None:
        self.blocking = True

    def setblocking(self, blocking: bool) -> None:
        self.blocking = blocking


class Accepting(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.took: list[Any] = []

    def make(self, *results: Any) -> Acceptor:
        self.script = Script(*results)
        sock: Any = self.script
        return Acceptor(self.reactor, sock, lambda sock, address: self.took.append(sock), "tcp://x:1")

    def test_all_that_wait_are_taken_unblocking(self) -> None:
        waiting = [Connected(), Connected(), Connected()]
        self.make(*waiting).doRead()
        self.assertEqual(self.took, waiting)
        self.assertFalse(any(sock.blocking for sock in waiting))

    def test_a_pass_is_bounded(self) -> None:
        self.make(*[Connected() for _ in range(200)]).doRead()
        self.assertEqual(len(self.took), 64)

    def test_a_connection_that_is_gone_is_passed_over(self) -> None:
        alive = Connected()
        self.make(OSError(errno.ECONNABORTED, ""), OSError(errno.EPROTO, ""), alive).doRead()
        self.assertEqual(self.took, [alive])

    def test_without_descriptors_it_pauses_for_a_second_and_logs_once(self) -> None:
        exhausted = [OSError(code, os.strerror(code)) for code in (errno.EMFILE, errno.ENFILE, errno.EMFILE)]
        alive = Connected()
        lines: list[LogEvent] = []
        observer: Any = lines.append
        self.patch(Acceptor, "log", Logger(observer=observer))
        taker = self.make(*exhausted, alive)
        for _ in exhausted:
            self.assertEqual(self.reactor.getReaders(), [taker])
            taker.doRead()
            self.assertEqual(self.reactor.getReaders(), [])
            self.reactor.advance(0.9)
            self.assertEqual(self.reactor.getReaders(), [])
            self.reactor.advance(0.1)
        taker.doRead()
        self.assertEqual((self.took, len(lines)), ([alive], 1))
        self.script.results.append(OSError(errno.EMFILE, "Too many open files"))
        taker.doRead()
        self.assertEqual(len(lines), 2)
        taker.stop()

    def test_an_unknown_error_does_not_spin(self) -> None:
        taker = self.make(*[OSError(errno.EINVAL, "Invalid argument")] * 64)
        taker.doRead()
        self.assertEqual(self.script.accepts, 1)
        self.assertEqual(self.reactor.getReaders(), [])
        taker.stop()
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_a_stop_from_the_callback_ends_the_pass(self) -> None:
        taker = self.make(Connected(), Connected())
        taker._took = lambda sock, address: taker.stop()
        taker.doRead()
        self.assertEqual(self.script.accepts, 1)
        self.assertEqual(self.reactor.getReaders(), [])


class Knocking(Sockets):
    def knock(self, *sockets: ListeningSocket) -> None:
        self.reactor = MemoryReactorClock()
        self.results: list[str] = []
        self.waiting: dict[Any, Knock] = {}
        Knock(self.reactor, list(sockets), self.waiting, self.results.append)

    def test_each_socket_is_knocked_at(self) -> None:
        tcp = self.opened(open_tcp(TCPAddress("0.0.0.0", 0)))
        unix = self.unix()
        self.knock(tcp, unix)
        for listening in (tcp, unix):
            self.assertEqual(self.results, [])
            sock, address = listening.sock.accept()
            sock.close()
            source = acceptor.source_of(address)
            self.waiting[source].heard(source)
        self.assertEqual(self.results, [""])
        self.assertEqual(self.waiting, {})
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_no_accept_in_time(self) -> None:
        self.knock(self.unix())
        self.reactor.advance(5)
        self.assertEqual(self.results, ["it did not accept a connection within 5 s"])
        self.assertEqual(self.waiting, {})

    def test_no_connection(self) -> None:
        listening = self.unix()
        os.unlink(self.path)
        self.knock(listening)
        self.assertEqual(self.results, ["it does not answer: No such file or directory"])
        self.assertEqual(self.waiting, {})
