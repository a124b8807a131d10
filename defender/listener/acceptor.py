"""Listening sockets: opening them safely, accepting from them, and giving them back.

Twisted's own ports are not used because of three measured facts: a unix port unlinks whatever lies at its
path when it closes, its new socket is world-writable for a moment (and an adopted one for good), and nothing
ends the busy loop of a port that runs out of file descriptors but its own emergency close.
"""

from __future__ import annotations

import errno
import grp
import os
import socket
import stat
from collections.abc import Callable, MutableMapping
from typing import Any, Final

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from defender.contract.errors import ContractError
from defender.listener.spec import Address, Inherited, Kind, TCPAddress, UnixAddress

BACKLOG: Final = 1024
ACCEPTS_PER_PASS: Final = 64
"""Other descriptors of the reactor get their turn after so many connections."""

PAUSE: Final = 1.0
KNOCK_TIMEOUT: Final = 5.0
_FIRST_INHERITED: Final = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)
_GONE: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENONET,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EPROTO,
        errno.ETIMEDOUT,
    }
)
"""Errors of accept() that are about one connection which is gone already (accept(2), "Error handling")."""


class BindError(ContractError):
    """An address that cannot be listened on; the text is for a person."""


def reason_of(error: OSError) -> str:
    """Say in words why the kernel refused."""
    match error.errno:
        case errno.EADDRINUSE:
            return "the address is in use by another socket"
        case errno.EADDRNOTAVAIL:
            return "this host has no such address"
        case errno.EACCES | errno.EPERM:
            return f"permission denied ({error.strerror})"
        case _:
            return error.strerror or str(error)


class ListeningSocket:
    """One open listening socket. `sock` is non-blocking and closed on exec."""

    def __init__(self, sock: socket.socket, *, path: str | None = None, inherited: bool = False) -> None:
        self.sock = sock
        self.inherited = inherited
        self._path = path
        self._file = _identity(path) if path is not None else None

    @property
    def kind(self) -> Kind:
        return "unix" if self.sock.family == socket.AF_UNIX else "tcp"

    @property
    def name(self) -> str:
        """Where it really listens, as an address text: with the port that the kernel chose, if it did."""
        return _name_of(self.sock)

    def permit(self, mode: int, group: str) -> None:
        """Give the socket file another mode and group; raises BindError and then leaves it as it was."""
        if self._path is None or self.inherited:
            return
        gid = group_id(group)
        try:
            before = os.lstat(self._path)
            if _identity(self._path) != self._file:
                raise BindError("the socket file was replaced by another one")
            _set_access(self._path, mode, gid, before)
        except OSError as error:
            raise BindError(f"cannot set mode {mode:04o} and group {group!r}: {reason_of(error)}") from None

    def close(self) -> None:
        """Close the socket and remove its file, unless another file has taken the path.

        An inherited socket stays open: its owner, the service manager, has it open anyway.
        """
        if self.inherited:
            return
        # The open socket pins its inode, so as long as it is open no other file can have the same number.
        if self._path is not None and self._file is not None and _identity(self._path) == self._file:
            try:
                os.unlink(self._path)
            except OSError as error:
                Logger().warn("cannot remove {path}: {reason}", path=self._path, reason=reason_of(error))
        self.sock.close()


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _name_of(sock: socket.socket) -> str:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        text = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name
        return f"unix://{text.replace(chr(0), '@')}"
    return str(TCPAddress(name[0], name[1]))


def group_id(group: str) -> int:
    """Return a group's number, -1 ("leave it") for an empty name; raises BindError.

    Asks the system's databases and may wait for them: for names in settings only, which are few.
    """
    if not group:
        return -1
    if group.isascii() and group.isdigit():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise BindError(f"this host has no group {group!r} for the socket; see listen.unix_group") from None


def _set_access(path: str, mode: int, gid: int, before: os.stat_result) -> None:
    """Change group and mode; in between nobody has more than both the old and the new access give."""
    os.chmod(path, mode & stat.S_IMODE(before.st_mode))
    try:
        os.chown(path, -1, gid, follow_symlinks=False)
    except OSError:
        os.chmod(path, stat.S_IMODE(before.st_mode))
        raise
    os.chmod(path, mode)


def open_tcp(address: TCPAddress) -> ListeningSocket:
    """Listen on an IP address; raises BindError.

    An IPv6 socket takes IPv6 only, so that ``[::]`` never stands for IPv4 as well and addresses of clients
    are never IPv4-mapped.
    """
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise BindError(reason_of(error)) from None
    try:
        # On Linux this takes over ports in TIME_WAIT, never one that somebody listens on.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.is_ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address.host, address.port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise BindError(reason_of(error)) from None
    return ListeningSocket(sock)


def open_unix(path: str, mode: int = 0o600, group: str = "") -> ListeningSocket:
    """Listen on a unix socket that never has a wider mode than `mode`; raises BindError.

    A socket file that nobody answers on is left over from a killed process and is replaced. Nothing else is:
    no other kind of file, no socket that answers, none that may not be asked.
    """
    gid = group_id(group)
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    bound = False
    try:
        # bind() gives the file the socket's own mode (unix(7), Linux), before anybody can connect. Not by the
        # umask: it is the whole process's, and the thread of the audit trail makes its directory meanwhile.
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(path)
        bound = True
        os.chown(path, -1, gid, follow_symlinks=False)
        os.chmod(path, mode)
        sock.listen(BACKLOG)
    except OSError as error:
        if bound:
            ListeningSocket(sock, path=path).close()
        sock.close()
        if error.errno == errno.ENOENT:
            raise BindError(f"the directory {os.path.dirname(path)} does not exist") from None
        what = f"cannot give it to group {group!r}: " if bound and gid != -1 else ""
        raise BindError(what + reason_of(error)) from None
    return ListeningSocket(sock, path=path)


def _remove_stale(path: str) -> None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise BindError(reason_of(error)) from None
    if not stat.S_ISSOCK(status.st_mode):
        raise BindError("the path exists and is not a socket; it is left alone")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as client:
        code = client.connect_ex(path)
    if code == errno.ECONNREFUSED:
        # Between the question and the removal another process may have taken the path: look once more.
        if _identity(path) == (status.st_dev, status.st_ino):
            try:
                os.unlink(path)
            except OSError as error:
                raise BindError(f"cannot remove the dead socket there: {reason_of(error)}") from None
        return
    if code in (0, errno.EAGAIN, errno.EINPROGRESS):
        raise BindError("another process is listening on this socket")
    raise BindError(f"cannot tell whether the socket there is in use: {os.strerror(code)}")


class InheritedSockets:
    """Listening sockets passed by systemd (sd_listen_fds(3)), by their names.

    They are never closed here and their files never removed or changed: that is their owner's business.
    """

    def __init__(self, sockets: list[tuple[str, socket.socket]] | None = None) -> None:
        self.sockets = [(name, ListeningSocket(sock, inherited=True)) for name, sock in sockets or []]

    @classmethod
    def adopt(
        cls, environ: MutableMapping[str, str], pid: int, first: int = _FIRST_INHERITED
    ) -> InheritedSockets:
        """Take over what the variables ``LISTEN_*`` name, and remove them so that no child does it again.

        Raises:
            BindError: a variable is damaged, or a descriptor is not a listening stream socket.
        """
        texts = [environ.pop(f"LISTEN_{key}", "") for key in ("PID", "FDS", "FDNAMES")]
        if not texts[0] or texts[0] != str(pid):
            return cls()
        if not (texts[1].isascii() and texts[1].isdigit()) or int(texts[1]) > 1024:
            raise BindError(f"LISTEN_FDS={texts[1]!r} is not a number of sockets")
        count = int(texts[1])
        names = texts[2].split(":") if texts[2] else []
        # sd_listen_fds_with_names(3) calls sockets without a name "unknown".
        names = (names + ["unknown"] * count)[:count]
        found = []
        for number, name in enumerate(names, start=first):
            try:
                os.set_inheritable(number, False)
                sock = socket.socket(fileno=number)
                listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            except OSError as error:
                reason = reason_of(error)
                raise BindError(f"inherited descriptor {number} ({name}) is no socket: {reason}") from None
            families = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
            if sock.type != socket.SOCK_STREAM or sock.family not in families or not listening:
                sock.detach()  # it is its owner's to close, not the garbage collector's
                raise BindError(f"inherited descriptor {number} ({name}) is not a listening stream socket")
            sock.setblocking(False)
            found.append((name, sock))
        return cls(found)

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kind of the sockets of each name; of a name with both, the first socket's."""
        kinds: dict[str, Kind] = {}
        for name, listening in self.sockets:
            kinds.setdefault(name, listening.kind)
        return kinds

    def matching(self, address: Address) -> list[ListeningSocket]:
        """Return the sockets for an address: by name for ``fd://NAME``, else those bound to it already.

        Raises:
            BindError: no socket of that name was passed, or one is of the other kind.
        """
        if not isinstance(address, Inherited):
            return [listening for _, listening in self.sockets if listening.name == str(address)]
        named = [listening for name, listening in self.sockets if name == address.name]
        if not named:
            raise BindError("no socket of that name was passed by systemd")
        if any(listening.kind != address.kind for listening in named):
            raise BindError(f"the socket passed under that name is not a {address.kind} socket")
        return named


def open_address(
    address: Address, mode: int, group: str, inherited: InheritedSockets
) -> list[ListeningSocket]:
    """Open an address, or find the inherited sockets for it; raises BindError."""
    found = inherited.matching(address)
    if found:
        return found
    if isinstance(address, TCPAddress):
        return [open_tcp(address)]
    if isinstance(address, UnixAddress):
        return [open_unix(address.path, mode, group)]
    raise BindError("no socket of that name was passed by systemd")


Took = Callable[[socket.socket, Any], None]
"""Given a connected non-blocking socket and its peer's address as `socket.accept` returns it."""


@implementer(IReadDescriptor)
class Acceptor:
    """Accepts connections of one listening socket in the reactor's turns.

    When the process or the system is out of descriptors or memory, accepting pauses for `PAUSE` seconds
    instead of spinning: the pending connections wait in the kernel. It is logged once per shortage.
    """

    log = Logger()

    def __init__(self, reactor: Any, sock: socket.socket, took: Took, label: str) -> None:
        self._reactor = reactor
        self._sock = sock
        self._took = took
        self._label = label
        self._delayed: Any = None
        self._short = False
        self._stopped = False
        reactor.addReader(self)

    def fileno(self) -> int:
        return self._sock.fileno()

    def logPrefix(self) -> str:
        return f"acceptor {self._label}"

    def doRead(self) -> None:
        for _ in range(ACCEPTS_PER_PASS):
            try:
                sock, address = self._sock.accept()
            except BlockingIOError:
                self._short = False
                return
            except OSError as error:
                if error.errno in _GONE:
                    continue
                self._pause(error)
                return
            try:
                sock.setblocking(False)
                self._took(sock, address)
            except Exception:  # noqa: BLE001 - the reactor would take the listening socket for broken
                self.log.failure("{label}: a connection could not be taken", label=self._label)
                sock.close()
            if self._stopped:
                return

    def _pause(self, error: OSError) -> None:
        if not self._short:
            self._short = True
            self.log.error(
                "{label}: cannot accept: {reason}; new connections wait (check LimitNOFILE and "
                "limits.connections)",
                label=self._label,
                reason=reason_of(error),
            )
        self._reactor.removeReader(self)
        self._delayed = self._reactor.callLater(PAUSE, self._resume)

    def _resume(self) -> None:
        self._delayed = None
        self._reactor.addReader(self)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor found the descriptor broken, which only a bug can do."""
        self.log.error("{label}: the listening socket is lost: {reason}", label=self._label, reason=reason)
        self.stop()

    def stop(self) -> None:
        """Accept no more; the socket stays open and is the caller's to close."""
        self._stopped = True
        if self._delayed is not None:
            self._delayed.cancel()
            self._delayed = None
        self._reactor.removeReader(self)


def listen_privately(reactor: Any, path: str, took: Took) -> Callable[[], None]:
    """Accept connections of this process's own user at a unix socket; return what ends it.

    Raises BindError.
    """
    listening = open_unix(path, 0o600)
    acceptor = Acceptor(reactor, listening.sock, took, listening.name)

    def close() -> None:
        acceptor.stop()
        listening.close()

    return close


def source_of(address: Any) -> Any:
    """Return what tells a peer's address from all others: IP and port, or the name of a unix socket."""
    return address[:2] if isinstance(address, tuple) else address


class Knock:
    """One connection to each of our own sockets; their acceptors tell that it came (`heard`).

    A knock is recognized by its source: a port of ours, or the name that the kernel made up for a unix
    socket. No other socket of the network namespace has that while the knock's is open.

    Args:
        sockets: where to knock.
        waiting: every knock that waits, by source; kept by this class, read by the acceptors' callback.
        done: called once, in a later turn or (for a failure) at once: with "" or what is wrong.
    """

    def __init__(
        self,
        reactor: Any,
        sockets: list[ListeningSocket],
        waiting: dict[Any, Knock],
        done: Callable[[str], None],
    ) -> None:
        self._waiting = waiting
        self._done = done
        self._clients: dict[Any, socket.socket] = {}
        self._timer: Any = None
        try:
            for listening in sockets:
                self._connect(listening.sock)
        except OSError as error:
            self.end()
            done(f"it does not answer: {reason_of(error)}")
            return
        self._timer = reactor.callLater(KNOCK_TIMEOUT, self._late)

    def _connect(self, target: socket.socket) -> None:
        client = socket.socket(target.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            name = target.getsockname()
            if target.family == socket.AF_UNIX:
                client.bind("")  # autobind, unix(7): a unique name in the abstract namespace
            elif TCPAddress(name[0], name[1]).is_wildcard:
                name = ("127.0.0.1" if target.family == socket.AF_INET else "::1", name[1])
            code = client.connect_ex(name)
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
            source = source_of(client.getsockname())
        except OSError:
            client.close()
            raise
        self._clients[source] = client
        self._waiting[source] = self

    def heard(self, source: Any) -> None:
        """A connection from `source` was accepted."""
        self._forget(source)
        if not self._clients:
            self.end()
            self._done("")

    def _late(self) -> None:
        self._timer = None
        self.end()
        self._done(f"it did not accept a connection within {KNOCK_TIMEOUT:g} s")

    def _forget(self, source: Any) -> None:
        self._clients.pop(source).close()
        del self._waiting[source]

    def end(self) -> None:
        """Wait no longer; `done` is not called."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for source in list(self._clients):
            self._forget(source)
