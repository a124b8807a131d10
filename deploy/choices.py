"""The variables of `make up`, read and checked before anything is done."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

DEFAULT_ENGINE = "unix:///var/run/docker.sock"
FLEET, STANDALONE = "fleet", "standalone"
MODES = ("tcp", "unix", "unix+tcp", "none")


class SetupError(Exception):
    """Start-up cannot go on; the text says what is wrong and what to do, in one or two sentences."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What the person who runs `make up` chose.

    Attributes:
        state: absolute path of the state directory.
        engine: address of the Engine, or None when the variable is not set.
        name: of this defender in policies; None means the short host name.
        port: of the TLS listener.
        listen: listener mode, one of `MODES`.
        policy: absolute path of the policy to use, or None for the start policy.
        mode: `FLEET` or `STANDALONE`.
        controller_port: of the controller's HTTPS.
        channel_port: of the controller's channel.
    """

    state: Path
    engine: str | None = None
    name: str | None = None
    port: int = 9998
    listen: str = "tcp"
    policy: Path | None = None
    mode: str = FLEET
    controller_port: int = 8083
    channel_port: int = 8084

    @property
    def listens_on_tcp(self) -> bool:
        return "tcp" in self.listen

    @property
    def listens_on_unix(self) -> bool:
        return "unix" in self.listen

    @property
    def config(self) -> Path:
        return self.state / "defender.toml"

    @property
    def pidfile(self) -> Path:
        return self.state / "defender.pid"

    @property
    def log(self) -> Path:
        return self.state / "defender.log"

    @property
    def socket(self) -> Path:
        """Path of the defender's own unix socket."""
        return self.state / "docker.sock"

    @property
    def certificates(self) -> Path:
        """Directory of the admin's ca.pem, cert.pem and key.pem."""
        return self.state / "certs" / "admin"

    @property
    def sign_in(self) -> Path:
        """Directory of defenderctl's sign-in at the controller."""
        return self.state / "defenderctl"

    @property
    def tcp_address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    @property
    def unix_address(self) -> str:
        return f"unix://{self.socket}"


def read_choices(variables: Mapping[str, str], directory: Path) -> Choices:
    """Read the variables; an empty one counts as not set.

    Args:
        variables: the environment; make puts variables of its command line there too.
        directory: that relative paths start from.

    Raises:
        SetupError: naming the variable, its value and what it may be.
    """
    mode = variables.get("MODE") or FLEET
    if mode not in {FLEET, STANDALONE}:
        raise SetupError(f"MODE={mode}: must be {FLEET} or {STANDALONE}")
    ports = {
        name: _port(variables, name, default)
        for name, default in (("DEFENDER_PORT", 9998), ("CONTROLLER_PORT", 8083), ("CHANNEL_PORT", 8084))
    }
    if mode == FLEET and len(set(ports.values())) < len(ports):
        said = ", ".join(f"{name}={port}" for name, port in ports.items())
        raise SetupError(f"{said}: these must be three different ports")
    listen = variables.get("LISTEN") or "tcp"
    if listen not in MODES:
        raise SetupError(f"LISTEN={listen}: must be one of {', '.join(MODES)}")
    engine = variables.get("ENGINE") or None
    if engine is not None and not re.fullmatch(r"unix:///.+", engine):
        raise SetupError(f"ENGINE={engine}: must be a unix socket, written as {DEFAULT_ENGINE}")
    name = variables.get("DEFENDER_NAME") or None
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}", name):
        raise SetupError(f"DEFENDER_NAME={name}: must be a host name (letters, digits, '.', '_', '-')")
    policy = None
    if variables.get("POLICY"):
        policy = _absolute(variables["POLICY"], directory)
        if not policy.is_file():
            raise SetupError(f"POLICY={variables['POLICY']}: there is no file {policy}")
    if not variables.get("FLEET_STATE", "").isprintable():
        raise SetupError("FLEET_STATE: a path with control characters is not accepted")
    state = _absolute(variables.get("FLEET_STATE") or ".state", directory)
    return Choices(
        state=state,
        engine=engine,
        name=name,
        port=ports["DEFENDER_PORT"],
        listen=listen,
        policy=policy,
        mode=mode,
        controller_port=ports["CONTROLLER_PORT"],
        channel_port=ports["CHANNEL_PORT"],
    )


def _absolute(text: str, directory: Path) -> Path:
    return Path(os.path.normpath(directory / text))


def _port(variables: Mapping[str, str], name: str, default: int) -> int:
    text = variables.get(name) or str(default)
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise SetupError(f"{name}={text}: must be a port number, 1 to 65535")
    return int(text)
