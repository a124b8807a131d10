"""`twistd controller`: options, and the service they make."""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import Any, ClassVar

from twisted.application.service import IService
from twisted.python import usage

from controller.settings import Settings, SettingsError, load_settings
from defender.contract.errors import ContractError

DEFAULT_CONFIG = "/etc/defender-controller/controller.toml"

LOG_BYTES = 8 * 1024 * 1024
LOG_FILES = 4


def bounded_log() -> Any:
    """The observer of ``twistd --logger=controller.tap.bounded_log``: the file that CONTROLLER_LOG names.

    twistd's own ``--logfile`` keeps every file it has rotated, and whoever can connect can cause lines.
    """
    from twisted.logger import textFileLogObserver
    from twisted.python.logfile import LogFile

    path = os.environ["CONTROLLER_LOG"]
    file = LogFile.fromFullPath(path, rotateLength=LOG_BYTES, maxRotatedFiles=LOG_FILES, defaultMode=0o600)
    return textFileLogObserver(file)


def _existing(kind: str, test: Any) -> Any:
    """Return a coercion to an absolute path that `test` accepts; twistd changes directory later."""

    def coerce(value: str) -> str:
        path = os.path.abspath(os.path.expanduser(value))
        if not test(path):
            raise ValueError(f"there is no {kind} {path}")
        return path

    return coerce


class Options(usage.Options):
    """Options of `twistd controller`.

    After `parseOptions`, `settings` holds the checked settings and `host_name` the short host name. A
    settings file that cannot be used is a usage error: twistd prints what is wrong and where, and starts
    nothing.
    """

    synopsis: ClassVar[str] = "[--config FILE | --state DIR]"
    longdesc: ClassVar[str] = (
        "The center of a fleet of defenders: policies, locks, listener modes, audit. --config names the "
        f"settings file (default: {DEFAULT_CONFIG}); --state names a directory that holds one called "
        "controller.toml. The first start makes the fleet's authority, its signing keys and the account "
        "`admin`, whose password is printed once. Example: twistd -n controller --state /srv/fleet"
    )
    optParameters: ClassVar[list[list[object]]] = [
        ["config", "c", None, "The settings file.", _existing("file", os.path.isfile)],
        [
            "state",
            "s",
            None,
            "A state directory; DIR/controller.toml is used.",
            _existing("directory", os.path.isdir),
        ],
    ]
    compData: ClassVar[Any] = usage.Completions(
        optActions={"config": usage.CompleteFiles("*.toml"), "state": usage.CompleteDirs()}
    )

    settings: Settings
    host_name: str

    def postOptions(self) -> None:
        """Load the settings.

        Raises:
            usage.UsageError: for contradicting options, and for settings that cannot be used: one line a
                problem.
        """
        config, state = self["config"], self["state"]
        if config is not None and state is not None:
            raise usage.UsageError(
                "--config and --state exclude each other: --state DIR means DIR/controller.toml"
            )
        path = config or (os.path.join(state, "controller.toml") if state else DEFAULT_CONFIG)
        self.host_name = socket.gethostname().partition(".")[0]
        try:
            self.settings = load_settings(path, self.host_name)
        except SettingsError as error:
            raise usage.UsageError(str(error)) from None


def makeService(options: Options, reactor: Any = None) -> IService:
    """Compose the controller from its settings.

    Args:
        options: parsed options.
        reactor: for tests; by default the global one, which twistd has installed by now.

    Raises:
        SystemExit: with one sentence, for what is on the disk and cannot be used.
    """
    from controller.founding import FoundingError
    from controller.service import Controller, prepare
    from controller.sinks.description import SinkFileError

    if reactor is None:
        from twisted.internet import reactor as installed

        reactor = installed
        # Twisted's timers go by the wall clock: set back by an hour, it would stop every one for an hour.
        reactor.seconds = time.monotonic

    def give_up() -> None:
        # twistd ends in order, and with the exit status of a signal: not that of success.
        reactor.callWhenRunning(os.kill, os.getpid(), signal.SIGTERM)

    try:
        service: IService = Controller(prepare(options.settings, options.host_name), reactor, give_up)
    except (ContractError, FoundingError, SinkFileError) as error:
        # Before the reactor runs this ends twistd with the sentence alone: no stack trace for bad input.
        raise SystemExit(f"twistd controller: {error}") from None
    return service
