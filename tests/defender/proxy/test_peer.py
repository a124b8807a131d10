"""Subjects of unix peers: what the kernel says, and names from the system's databases."""

from __future__ import annotations

import contextlib
import gc
import grp
import os
import pwd
import resource
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from defender.contract.facts import ANONYMOUS, Subject
from defender.proxy import peer
from defender.proxy.peer import PeerError, PeerNames, credentials, lookup, peer_cgroup, peer_groups

CHILD = """
import os, socket, sys
path, gid, groups = sys.argv[1], int(sys.argv[2]), [int(text) for text in sys.argv[3].split(",") if text]
os.setgroups(groups)
os.setgid(gid)
sock = socket.socket(socket.AF_UNIX)
sock.connect(path)
sock.recv(1)
"""

THREAD = """
import ctypes, os, socket, sys, threading, time
main = threading.get_native_id()

def connect():
    while True:
        with open(f"/proc/{main}/stat") as file:
            if int(file.read().rpartition(")")[2].split()[6]) & 4:
                break
        time.sleep(0.001)
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(sys.argv[1])
    time.sleep(3600)

threading.Thread(target=connect).start()
exit_thread = {"x86_64": 60}.get(os.uname().machine, 93)  # SYS_exit: this thread, not the process
ctypes.CDLL(None).syscall(exit_thread, 0)
"""


@contextlib.contextmanager
def _no_descriptor() -> Iterator[None]:
    """Have this process find no free descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # What other tests left to the collector must not come free meanwhile.
    gc.collect()
    gc.disable()
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        gc.enable()


class Sockets(TestCase):
    """Cases with connected unix sockets."""

    def pair(self) -> socket.socket:
        near, far = socket.socketpair()
        self.addCleanup(near.close)
        self.addCleanup(far.close)
        return near

    def from_child(self, gid: int, groups: list[int]) -> tuple[socket.socket, subprocess.Popen[bytes]]:
        """Return the accepted socket of a child process with these groups (as root)."""
        path = self.mktemp()
        server = socket.socket(socket.AF_UNIX)
        self.addCleanup(server.close)
        server.bind(path)
        server.listen()
        texts = [str(gid), ",".join(map(str, groups))]
        child = subprocess.Popen([sys.executable, "-c", CHILD, path, *texts])
        sock, _ = server.accept()

        def end() -> None:
            sock.close()
            child.wait()

        self.addCleanup(end)
        return sock, child


class Kernel(Sockets):
    def test_credentials_of_this_process(self) -> None:
        self.assertEqual(credentials(self.pair()), (os.getpid(), os.getuid(), os.getgid()))

    def test_a_tcp_socket_has_none(self) -> None:
        with socket.socket(socket.AF_INET) as sock:
            self.assertEqual(self.assertRaises(PeerError, credentials, sock).check, "peer-credentials")

    def test_groups_of_this_process(self) -> None:
        found = peer_groups(self.pair())
        assert found is not None
        self.assertEqual(sorted(found), sorted(os.getgroups()))

    def test_more_groups_than_the_first_buffer_holds(self) -> None:
        if os.getuid() == 0:
            groups = list(range(3000, 3400))
            sock, _ = self.from_child(100, groups)
        else:  # nobody else may have so many: make the buffer small instead
            groups = sorted(os.getgroups())
            sock = self.pair()
        self.assertEqual(sorted(peer_groups(sock, 4) or ()), groups)

    def test_the_control_group_of_a_living_peer(self) -> None:
        with open("/proc/self/cgroup") as file:
            self.assertEqual(peer_cgroup(self.pair(), os.getpid()), file.read())

    def test_without_process_descriptors(self) -> None:
        self.patch(peer, "SO_PEERPIDFD", 9999)
        with open("/proc/self/cgroup") as file:
            self.assertEqual(peer_cgroup(self.pair(), os.getpid()), file.read())
        self.assertEqual(peer_cgroup(self.pair(), 2**22 + 1), "")

    def test_a_peer_that_has_ended_is_not_read(self) -> None:
        sock, child = self.from_child(os.getgid(), [])
        child.terminate()
        select.select([sock], [], [])
        # It is not waited for yet: it keeps its pid, and its files in /proc.
        self.assertEqual(peer_cgroup(sock, child.pid), "")
        child.wait()
        self.assertEqual(peer_cgroup(sock, child.pid), "")

    def test_a_process_without_its_first_thread_is_not_read(self) -> None:
        # On cgroup v1 the file of such a process says "/", wherever the process is.
        path = self.mktemp()
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen()
            child = subprocess.Popen([sys.executable, "-c", THREAD, path])
            self.addCleanup(child.wait)
            self.addCleanup(child.kill)
            sock, _ = server.accept()
        self.addCleanup(sock.close)
        self.assertEqual(credentials(sock)[0], child.pid)
        for option in (peer.SO_PEERPIDFD, 9999):
            self.patch(peer, "SO_PEERPIDFD", option)
            self.assertEqual(peer_cgroup(sock, child.pid), "")
        self.assertIs(child.poll(), None)

    def test_without_a_free_descriptor_nothing_is_said_of_the_peer(self) -> None:
        """Not that it is in a container, nor that it has no name: it is refused, and may come again."""
        for option in (peer.SO_PEERPIDFD, 9999):
            self.patch(peer, "SO_PEERPIDFD", option)
            sock = self.pair()
            with _no_descriptor():
                self.assertRaises(PeerError, peer_cgroup, sock, os.getpid())
                failed = self.failureResultOf(PeerNames(reactor).identify(sock))
            self.assertIn("Too many open files", failed.getErrorMessage())
        with _no_descriptor():
            # Not number 0: some databases know root without a file.
            self.assertRaises(OSError, lookup, "uid", 1)
            self.assertRaises(OSError, lookup, "gid", 1)

    def test_a_peer_outside_our_pid_namespace_is_not_read(self) -> None:
        self.assertEqual(peer_cgroup(self.pair(), 0), "")


class Databases(SynchronousTestCase):
    def test_names(self) -> None:
        self.assertEqual(lookup("uid", 0), pwd.getpwuid(0).pw_name)
        self.assertEqual(lookup("gid", 0), grp.getgrgid(0).gr_name)

    def test_numbers_without_a_name(self) -> None:
        self.assertEqual(lookup("uid", 3999999), "uid:3999999")
        self.assertEqual(lookup("gid", 3999999), "gid:3999999")


class Names(Sockets):
    def names(self, ask: Callable[[str, int], str] = lookup, timeout: float = 30.0) -> PeerNames:
        names = PeerNames(reactor, timeout=timeout, ask=ask)
        names._own = names._own or "0::/"
        names.start()
        self.addCleanup(names.stop)
        return names

    async def refusal(self, result: Deferred[Subject]) -> PeerError:
        """Return the error that a look-up ends with."""
        try:
            subject = await result
        except PeerError as error:
            return error
        self.fail(f"{subject} was let in")

    async def test_subject_of_this_process(self) -> None:
        subject = await self.names().identify(self.pair())
        gids = {os.getgid(), *os.getgroups()}
        self.assertEqual(
            subject,
            Subject(
                lookup("uid", os.getuid()),
                tuple(sorted({lookup("gid", gid) for gid in gids})),
                via="unix",
                uid=os.getuid(),
                pid=os.getpid(),
            ),
        )

    async def test_names_are_remembered_for_a_while(self) -> None:
        asked: list[tuple[str, int]] = []

        def ask(kind: str, number: int) -> str:
            asked.append((kind, number))
            return f"{kind}-{number}"

        names = self.names(ask)
        first = await names.identify(self.pair())
        count = len(asked)
        self.assertEqual(len(set(asked)), count)
        again = self.successResultOf(names.identify(self.pair()))
        self.assertEqual(first, again)
        self.assertEqual(len(asked), count)
        self.patch(peer, "LIFETIME", -1.0)
        await names.identify(self.pair())
        self.assertEqual(len(asked), 2 * count)

    async def test_the_memory_is_bounded(self) -> None:
        self.patch(peer, "MAX_NAMES", 1)
        names = self.names()
        await names.identify(self.pair())
        self.assertEqual(len(names._names), 1)

    async def test_a_look_up_that_hangs_refuses_the_peer(self) -> None:
        free = threading.Event()
        self.addCleanup(free.set)

        def ask(kind: str, number: int) -> str:
            free.wait()
            return "late"

        names = self.names(ask, timeout=0.05)
        error = await self.refusal(names.identify(self.pair()))
        self.assertEqual(error.check, "peer-names")
        self.assertIn("longer than 0.05 s", error.detail)

    async def test_a_look_up_that_fails_refuses_the_peer(self) -> None:
        def ask(kind: str, number: int) -> str:
            raise OSError("the directory is away")

        error = await self.refusal(self.names(ask).identify(self.pair()))
        self.assertIn("the directory is away", error.detail)

    def test_waiting_look_ups_are_bounded(self) -> None:
        self.patch(peer, "MAX_WAITING", 0)
        error = self.failureResultOf(self.names().identify(self.pair()), PeerError).value
        self.assertIn("waiting", error.detail)

    def test_a_peer_in_a_container_is_nobody(self) -> None:
        self.patch(peer, "peer_cgroup", lambda sock, pid: f"0::/docker/{'3f' * 32}\n")
        subject = self.successResultOf(self.names().identify(self.pair()))
        expected = Subject(ANONYMOUS, (), via="unix", uid=os.getuid(), pid=os.getpid())
        self.assertEqual(subject, expected)

    def test_a_peer_whose_control_group_cannot_be_told_is_nobody(self) -> None:
        self.patch(peer, "peer_cgroup", lambda sock, pid: "")
        subject = self.successResultOf(self.names().identify(self.pair()))
        self.assertEqual((subject.user, subject.groups), (ANONYMOUS, ()))

    def test_a_uid_that_is_not_of_our_user_namespace_is_nobody(self) -> None:
        self.patch(peer, "credentials", lambda sock: (os.getpid(), 65534, 65534))
        names = self.names()
        names._all_mapped = False
        self.assertEqual(self.successResultOf(names.identify(self.pair())).user, ANONYMOUS)

    async def test_a_kernel_without_peer_groups_asks_the_databases(self) -> None:
        # A level-1 option that Linux does not have.
        self.patch(peer, "SO_PEERGROUPS", 9999)
        self.patch(peer, "member_groups", lambda uid, gid: (gid, 0))
        subject = await self.names().identify(self.pair())
        self.assertEqual(subject.groups, tuple(sorted({lookup("gid", os.getgid()), lookup("gid", 0)})))

    def test_a_socket_that_is_none_of_ours_is_refused(self) -> None:
        with socket.socket(socket.AF_INET) as sock:
            self.failureResultOf(self.names().identify(sock), PeerError)

    def test_credentials_have_the_kernels_shape(self) -> None:
        # pid_t is signed, uid_t and gid_t are not: 4294967294 is a possible uid.
        self.assertEqual(struct.calcsize("=iII"), 12)
