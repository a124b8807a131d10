"""Who is at the other end of a unix socket: the subject made of the kernel's word about the peer.

The kernel noted uid, gid, pid and groups of the process that called connect(2) (SO_PEERCRED, SO_PEERGROUPS;
unix(7)). They are turned into names by the system's databases, in threads of their own and for a bounded
time: a directory server that hangs must not stop the reactor. A look-up that fails or takes too long refuses
the peer, because a subject with fewer groups than the real one could escape a rule that denies.

A process in a container (`is_contained`) is `ANONYMOUS`, and so is one whose control group cannot be told.
Two traps are in the telling:

* The kernel notes a pid, not a control group, and a process may end and another get its pid. Linux 6.5 and
  newer hold the very process (SO_PEERPIDFD), which must still run after its file was read. Older kernels
  leave a gap: a peer in a container that ended right after connecting, while another process got its pid
  before the connection was accepted, is taken for that process. The uid and groups are its own all the same.
* Of a process that is ending, or whose first thread has ended, cgroup v1 says ``/``, as if it were on the
  host, while its other threads go on and its process descriptor says that it lives. So the flag PF_EXITING
  is looked at after the file was read.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import select
import socket
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Final

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from defender.contract.facts import ANONYMOUS, Subject
from defender.proxy.origin import is_contained

SO_PEERGROUPS: Final = getattr(socket, "SO_PEERGROUPS", 59)
SO_PEERPIDFD: Final = getattr(socket, "SO_PEERPIDFD", 77)

THREADS: Final = 4
MAX_WAITING: Final = 64
"""Look-ups at one time; more peers are refused."""

LIFETIME: Final = 60.0
"""Seconds for which a name is remembered."""

MAX_NAMES: Final = 4096
_MAX_GROUPS: Final = 65536  # NGROUPS_MAX, setgroups(2)
_SHORT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_PF_EXITING: Final = 0x4  # include/linux/sched.h
_UNMAPPED: Final = 65534  # /proc/sys/kernel/overflowuid: "no such uid in this user namespace"

Key = tuple[str, int]
"""("uid", 1000) or ("gid", 100)."""


class PeerError(Exception):
    """A peer that could not be told; `check` is a short name, the text is for a log."""

    def __init__(self, check: str, detail: str) -> None:
        self.check = check
        self.detail = detail
        super().__init__(f"{check}: {detail}")


def credentials(sock: socket.socket) -> tuple[int, int, int]:
    """Return (pid, uid, gid) of the peer; pid 0 for one outside our pid namespace. Raises PeerError."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("=iII"))
    except OSError as error:
        raise PeerError("peer-credentials", f"SO_PEERCRED: {error.strerror}") from None
    pid, uid, gid = struct.unpack("=iII", raw)
    if uid == 0xFFFFFFFF:
        raise PeerError("peer-credentials", "the socket is not a connected unix socket")
    return pid, uid, gid


def peer_groups(sock: socket.socket, first_size: int = 1024) -> tuple[int, ...] | None:
    """Return the supplementary gids of the peer, None where the kernel cannot tell (before Linux 4.13).

    Raises PeerError. `first_size` is the first buffer's size in bytes; it grows as the kernel asks.
    """
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, first_size)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            return None
        if error.errno != errno.ERANGE:
            raise PeerError("peer-groups", f"SO_PEERGROUPS: {error.strerror}") from None
        raw = _getsockopt_large(sock, SO_PEERGROUPS)
    return struct.unpack(f"={len(raw) // 4}I", raw)


def _getsockopt_large(sock: socket.socket, option: int) -> bytes:
    """Do what `socket.getsockopt` does, for answers of more than the 1024 bytes that it allows."""
    # Rare (more than 256 groups), and ctypes makes an executable page: only loaded when needed.
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(_MAX_GROUPS * 4)
    size = ctypes.c_uint32(len(buffer))
    if libc.getsockopt(sock.fileno(), socket.SOL_SOCKET, option, buffer, ctypes.byref(size)) != 0:
        code = ctypes.get_errno()
        raise PeerError("peer-groups", f"SO_PEERGROUPS: {os.strerror(code)}")
    return buffer.raw[: size.value]


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read(65536)


def _state(pid: int) -> tuple[int, int]:
    """Return the flags of a process's first thread and its start, in clock ticks since boot.

    These are fields 9 and 22 of ``/proc/PID/stat`` (proc(5)). Raises OSError, ValueError or IndexError.
    """
    # The second field is the command in brackets, which may contain anything, brackets too.
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[6]), int(fields[19])


def peer_cgroup(sock: socket.socket, pid: int) -> str:
    """Return the content of the peer's ``/proc/PID/cgroup``; "" if it cannot be read for certain.

    Raises PeerError when this process is short of descriptors or memory: that says nothing of the peer.
    """
    if pid <= 0:
        return ""
    try:
        descriptor = struct.unpack("=i", sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4))[0]
    except OSError as error:
        _check_shortage(error)
        if error.errno != errno.ENOPROTOOPT:
            return ""
        descriptor = -1
    try:
        _, started = _state(pid)
        text = _read(f"/proc/{pid}/cgroup")
        flags, started_now = _state(pid)
        if flags & _PF_EXITING or started != started_now:
            return ""
        return "" if descriptor >= 0 and _has_ended(descriptor) else text
    except OSError as error:
        _check_shortage(error)
        return ""
    except (ValueError, IndexError):
        return ""
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _check_shortage(error: OSError) -> None:
    if error.errno in _SHORT:
        raise PeerError("peer-process", f"its control group cannot be read: {error.strerror}") from None


def _has_ended(descriptor: int) -> bool:
    """Tell whether the process of a process descriptor has ended: then, and only then, it is readable."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def _is_whole_user_namespace() -> bool:
    """Tell whether every uid has a name of its own here, as on a host."""
    try:
        return _read("/proc/self/uid_map").split() == ["0", "0", "4294967295"]
    except OSError:
        return False


def lookup(kind: str, number: int) -> str:
    """Ask the system's databases for a name; ``uid:N`` or ``gid:N`` if there is none. Blocks.

    Raises OSError when the databases cannot be read for want of descriptors, which they tell as "no such
    name": a peer without the names of its groups could escape a rule that denies.
    """
    for _ in range(2):
        try:
            name = pwd.getpwuid(number).pw_name if kind == "uid" else grp.getgrgid(number).gr_name
        except KeyError:
            # Asked again once it is certain that a file can be opened.
            os.close(os.open("/", os.O_PATH | os.O_CLOEXEC))
            continue
        return name or f"{kind}:{number}"
    return f"{kind}:{number}"


def member_groups(uid: int, gid: int) -> tuple[int, ...]:
    """Ask the system's databases for a user's gids, where the kernel does not tell. Blocks."""
    try:
        return tuple(os.getgrouplist(pwd.getpwuid(uid).pw_name, gid))
    except KeyError:
        return ()


class _DaemonThread(threading.Thread):
    """A thread that the process does not wait for at its end."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords, daemon=True)


class PeerNames:
    """Finds the subject of unix peers (`identify`).

    Args:
        reactor: for time and for results of threads.
        timeout: longest wait for the system's databases, in seconds.
        ask: `lookup`, replaced in tests.
    """

    def __init__(
        self, reactor: Any, *, timeout: float = 2.0, ask: Callable[[str, int], str] = lookup
    ) -> None:
        self._reactor = reactor
        self._timeout = timeout
        self._ask = ask
        self._names: OrderedDict[Key, tuple[float, str]] = OrderedDict()
        self._waiting = 0
        self._pool = ThreadPool(0, THREADS, name="peer names")
        # A thread that hangs in a look-up must not keep the process from ending.
        self._pool.threadFactory = _DaemonThread
        self._all_mapped = _is_whole_user_namespace()
        try:
            self._own = _read("/proc/self/cgroup")
        except OSError:
            self._own = ""

    def start(self) -> None:
        self._pool.start()

    def stop(self) -> None:
        """Let the threads go; one that hangs in a look-up is not waited for."""
        # ThreadPool.stop would join its threads, and with them wait for a directory server that is away.
        self._pool.adjustPoolsize(0, 0)

    def identify(self, sock: socket.socket) -> Deferred[Subject]:
        """Return the subject at the other end of a connected unix socket; fails with PeerError.

        What belongs to the connection is read at once, so the socket may be closed while names are awaited.
        """
        try:
            pid, uid, gid = credentials(sock)
            groups = peer_groups(sock)
            contained = is_contained(peer_cgroup(sock, pid), self._own)
        except PeerError as error:
            return fail(error)
        if contained or (uid == _UNMAPPED and not self._all_mapped):
            return succeed(Subject(ANONYMOUS, (), via="unix", uid=uid, pid=pid))
        return self._named(uid, gid, groups).addCallback(
            lambda names: Subject(names[0], tuple(sorted(set(names[1:]))), via="unix", uid=uid, pid=pid)
        )

    def _named(self, uid: int, gid: int, groups: tuple[int, ...] | None) -> Deferred[list[str]]:
        if groups is not None:
            keys = self._keys(uid, gid, groups)
            known = self._remembered(keys)
            if None not in known:
                return succeed([name for name in known if name is not None])
        if self._waiting >= MAX_WAITING:
            return fail(PeerError("peer-names", f"{MAX_WAITING} look-ups are waiting for the databases"))
        # The threads get what is remembered, and give back names; only the reactor's thread touches the rest.
        fresh = dict(zip(keys, known, strict=True)) if groups is not None else {}
        return self._in_thread(uid, gid, groups, fresh)

    def _in_thread(
        self, uid: int, gid: int, groups: tuple[int, ...] | None, known: dict[Key, str | None]
    ) -> Deferred[list[str]]:
        result: Deferred[list[str]] = Deferred()
        self._waiting += 1

        def work() -> tuple[list[Key], list[str]]:
            gids = member_groups(uid, gid) if groups is None else groups
            keys = self._keys(uid, gid, gids)
            return keys, [known.get(key) or self._ask(*key) for key in keys]

        def done(success: bool, value: Any) -> None:
            self._reactor.callFromThread(arrived, success, value)

        def arrived(success: bool, value: Any) -> None:
            self._waiting -= 1
            if success:
                keys, names = value
                self._remember(zip(keys, names, strict=True))
            if result.called:
                return
            timer.cancel()
            if success:
                result.callback(names)
            else:
                detail = value.getErrorMessage() if isinstance(value, Failure) else str(value)
                result.errback(PeerError("peer-names", f"the look-up of uid {uid} failed: {detail}"))

        def late() -> None:
            detail = f"the look-up of uid {uid} took longer than {self._timeout:g} s"
            result.errback(PeerError("peer-names", detail))

        timer = self._reactor.callLater(self._timeout, late)
        self._pool.callInThreadWithCallback(done, work)
        return result

    @staticmethod
    def _keys(uid: int, gid: int, groups: tuple[int, ...]) -> list[Key]:
        gids = dict.fromkeys((gid, *groups))
        return [("uid", uid), *(("gid", number) for number in gids)]

    def _remembered(self, keys: list[Key]) -> list[str | None]:
        oldest = self._reactor.seconds() - LIFETIME
        names: list[str | None] = []
        for key in keys:
            since, name = self._names.get(key, (oldest - 1, ""))
            names.append(name if since >= oldest else None)
        return names

    def _remember(self, pairs: Iterable[tuple[Key, str]]) -> None:
        now = self._reactor.seconds()
        for key, name in pairs:
            # A name that was remembered keeps its age, or it would never be asked again.
            since, before = self._names.get(key, (now, ""))
            if before != name or now - since > LIFETIME:
                self._names[key] = (now, name)
                self._names.move_to_end(key)
        while len(self._names) > MAX_NAMES:
            self._names.popitem(last=False)
