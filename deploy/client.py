"""What a person needs to use the defender: a shell file, and the proof that it works."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from deploy.choices import FLEET, Choices, SetupError
from deploy.docker_api import ApiError, call, connection


def variables(choices: Choices) -> dict[str, str | None]:
    """Return the variables that lead Docker's clients to the defender; None: must not be set.

    With both listeners it is the TLS one; with none there is nowhere to lead to.
    """
    tls = choices.listens_on_tcp
    address = choices.tcp_address if tls else choices.unix_address if choices.listens_on_unix else None
    return {
        "DOCKER_HOST": address,
        "DOCKER_TLS_VERIFY": "1" if tls else None,
        "DOCKER_CERT_PATH": str(choices.certificates) if tls else None,
    }


def write_environment(choices: Choices, programs: Path) -> list[str]:
    """Write env.sh, and return the lines of it that a person would paste.

    Args:
        choices: where, and how it listens.
        programs: directory of defenderctl and the others.
    """
    lines = []
    for name, value in variables(choices).items():
        lines.append(f"unset {name}" if value is None else f"export {name}={shlex.quote(value)}")
    folder = shlex.quote(str(programs))
    signed_in = shlex.quote(str(choices.sign_in))
    text = "\n".join(
        [
            "# Written by make up. Use it with:  . " + str(choices.state / "env.sh"),
            *lines,
            f"export FLEET_STATE={shlex.quote(str(choices.state))}",
            *([f"export DEFENDERCTL_CONFIG={signed_in}"] if choices.mode == FLEET else []),
            f'case ":$PATH:" in *:{folder}:*) ;; *) PATH={folder}:$PATH; export PATH ;; esac',
            "",
        ]
    )
    file = choices.state / "env.sh"
    fresh = file.with_name("env.sh.new")
    fresh.write_text(text, "utf-8")
    os.replace(fresh, file)
    return lines


def proof(choices: Choices) -> Iterator[str]:
    """Make one call through each listener, and say in a line each what came of it.

    A denial is an answer too: a policy of one's own may deny the admin.

    Raises:
        SetupError: when a call fails in any other way.
    """
    if choices.listens_on_tcp:
        yield _proof(choices, choices.tcp_address, choices.certificates)
    if choices.listens_on_unix:
        yield _proof(choices, choices.unix_address, None)
    if choices.listen == "none":
        yield "The defender listens nowhere (LISTEN=none): no proof call was made."


def _proof(choices: Choices, address: str, certificates: Path | None) -> str:
    docker = shutil.which("docker")
    try:
        if docker is not None:
            version = _docker_version(docker, address, certificates)
            return f"Proof: docker version through {address}: Engine {version}"
        version = call(connection(address, certificates), "GET", "/version")["Version"]
    except ApiError as error:
        if "denied for user" in str(error):
            return f"Proof: {address} answers, and the policy denies: {error}"
        raise SetupError(f"the proof call through {address} failed: {error}; see {choices.log}") from error
    return f"Proof: GET /version through {address}: Engine {version}"


def _docker_version(docker: str, address: str, certificates: Path | None) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")}
    environment["DOCKER_HOST"] = address
    if certificates is not None:
        environment |= {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(certificates)}
    done = subprocess.run(
        [docker, "version", "--format", "{{.Server.Version}}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
    )
    if done.returncode:
        raise ApiError(done.stderr.strip() or done.stdout.strip())
    return done.stdout.strip()
