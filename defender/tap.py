"""`twistd defender`: options, and the service they make."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any, ClassVar

from twisted.application.service import IService
from twisted.python import usage

from defender.contract.errors import ContractError
from defender.setting_kinds import controller_address
from defender.settings import Settings, SettingsError, load_settings

DEFAULT_CONFIG = "/etc/defender/defender.toml"

LOG_BYTES = 8 * 1024 * 1024
LOG_FILES = 4


def bounded_log() -> Any:
    """The observer of ``twistd --logger=defender.tap.bounded_log``: the file that DEFENDER_LOG names.

    twistd's own ``--logfile`` keeps every file it has rotated, and whoever can connect can cause lines.
    """
    from twisted.logger import textFileLogObserver
    from twisted.python.logfile import LogFile

    path = os.environ["DEFENDER_LOG"]
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


def _address(value: str) -> str:
    controller_address(value)
    return value


class Options(usage.Options):
    """Options of `twistd defender`.

    After `parseOptions`, `settings` holds the checked settings. A settings file that cannot be used is a
    usage error: twistd prints what is wrong and where, and starts nothing.
    """

    synopsis: ClassVar[str] = (
        "[--config FILE | --state DIR] [--controller HOST:PORT [--join-token-file FILE | --join-token TOKEN]]"
    )
    longdesc: ClassVar[str] = (
        "Guards this host's Docker Engine. --config names the settings file (default: "
        f"{DEFAULT_CONFIG}); --state names a directory that holds one called defender.toml. "
        "--controller makes it a member of a fleet; the first start needs a join token, from "
        "`defenderctl tokens create`."
    )
    optParameters: ClassVar[list[list[object]]] = [
        ["config", "c", None, "The settings file.", _existing("file", os.path.isfile)],
        [
            "state",
            "s",
            None,
            "A state directory; DIR/defender.toml is used.",
            _existing("directory", os.path.isdir),
        ],
        ["controller", None, None, "The fleet's controller; goes before the settings file's.", _address],
        ["join-token", None, None, "A join token, or @FILE with one: what others cannot read."],
        ["join-token-file", None, None, "A file with a join token, which others cannot read."],
    ]
    compData: ClassVar[Any] = usage.Completions(
        optActions={
            "config": usage.CompleteFiles("*.toml"),
            "state": usage.CompleteDirs(),
            "join-token-file": usage.CompleteFiles(),
        }
    )

    settings: Settings
    token: str | None = None

    def postOptions(self) -> None:
        """Load the settings.

        Raises:
            usage.UsageError: for contradicting options, and for settings that cannot be used: one line a
                problem.
        """
        config, state = self["config"], self["state"]
        if config is not None and state is not None:
            raise usage.UsageError(
                "--config and --state exclude each other: --state DIR means DIR/defender.toml"
            )
        path = config or (os.path.join(state, "defender.toml") if state else DEFAULT_CONFIG)
        try:
            self.settings = load_settings(path)
        except SettingsError as error:
            raise usage.UsageError(str(error)) from None
        if self["controller"] is not None:
            controller = replace(self.settings.controller, address=self["controller"])
            self.settings = replace(self.settings, controller=controller)
        self.token = self["join-token"]
        if self["join-token-file"] is not None:
            if self.token is not None:
                raise usage.UsageError("--join-token and --join-token-file exclude each other")
            self.token = f"@{self['join-token-file']}"
        if self.token is not None and not self.settings.controller.address:
            raise usage.UsageError(
                "--join-token needs a controller: --controller HOST:PORT, or controller.address"
            )


def makeService(options: Options, reactor: Any = None) -> IService:
    """Compose the defender from its settings.

    Args:
        options: parsed options.
        reactor: for tests; by default the global one, which twistd has installed by now.

    Raises:
        SystemExit: with one sentence, for a certificate, policy or path that cannot be used.
    """
    from defender.streams.openssl import load_without_tickets

    load_without_tickets()  # now or never: what follows loads OpenSSL
    from defender.enrollment import read_token
    from defender.service import make_service

    if reactor is None:
        from twisted.internet import reactor as installed

        reactor = installed
        # Twisted's timers go by the wall clock: set back by an hour, it would stop every one for an hour.
        reactor.seconds = time.monotonic
    try:
        token = read_token(options.token) if options.token is not None else None
        service: IService = make_service(options.settings, reactor, token)
    except (ContractError, OSError) as error:
        # Before the reactor runs this ends twistd with the sentence alone: no stack trace for bad input.
        raise SystemExit(f"twistd defender: {error}") from None
    return service
