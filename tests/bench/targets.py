"""The programs that the bench compares, and how each is started in front of the free Engine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent

POLICY = """\
schema: 1
rules:
  - name: operators
    groups: ["Operators"]
    effect: allow
    actions: ["container_*", "image_*", "docker_*", "network_*", "volume_*"]
  - name: developers
    groups: ["Dev team"]
    effect: allow
    actions: [container_list, container_inspect, container_logs, container_create, container_start,
              container_exec_create, container_exec_start, image_list, image_save, image_load, docker_info,
              docker_ping, docker_version]
"""
"""What all policy-aware targets decide by: two rules, the second one is the load client's."""

HAPROXY = """\
global
    nbthread 1
    maxconn 4096
    log /dev/null local0
defaults
    mode http
    option http-keep-alive
    http-reuse always
    timeout connect 10s
    timeout client 10m
    timeout server 10m
    timeout http-keep-alive 10m
frontend docker
    bind 127.0.0.1:{port} ssl crt {pem} ca-file {client_ca} verify required {tls}
    http-request deny unless METH_GET or METH_POST or METH_HEAD or METH_PUT or METH_DELETE
{rules}
    http-request deny
    default_backend engine
backend engine
    server engine unix@{engine} pool-max-conn -1
"""

HAPROXY_TLS = "ssl-min-ver TLSv1.3 no-tls-tickets curves X25519 ciphersuites TLS_AES_128_GCM_SHA256"

SECTIONS = (
    ("containers/[a-zA-Z0-9_.-]+/((stop)|(restart)|(kill))", False),
    ("containers/[a-zA-Z0-9_.-]+/start", False),
    ("containers/[a-zA-Z0-9_.-]+/stop", False),
    ("auth", False),
    ("build", False),
    ("commit", False),
    ("configs", False),
    ("containers", True),
    ("distribution", False),
    ("events", True),
    ("exec", True),
    ("grpc", False),
    ("images", True),
    ("info", True),
    ("networks", False),
    ("nodes", False),
    ("_ping", True),
    ("plugins", False),
    ("secrets", False),
    ("services", False),
    ("session", False),
    ("swarm", False),
    ("system", False),
    ("tasks", False),
    ("version", True),
    ("volumes", False),
)
"""Sections of the API in docker-socket-proxy's manner, in order: (path, allowed)."""


class TargetError(Exception):
    """A program of the bench is missing or did not start; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What all targets share: a directory, the Engine's socket, certificates, and the core of the proxy."""

    directory: Path
    engine: Path
    chain: Path
    key: Path
    client_ca: Path
    proxy_core: int

    def log(self, name: str) -> Path:
        """Where a target's output goes."""
        return self.directory / f"{name}.log"


class Running:
    """A started target."""

    def __init__(self, name: str, port: int, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.port = port
        self.process = process

    def cpu_seconds(self) -> float:
        """User and system time of the process so far."""
        return cpu_seconds(self.process.pid)

    def stop(self) -> None:
        """End the process by its id: politely, then not."""
        stop_process(self.process)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, in steps of a clock tick."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def stop_process(process: subprocess.Popen[bytes]) -> None:
    """Terminate one child and wait for it; kill it after ten seconds."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def pinned(core: int, command: list[str]) -> list[str]:
    """Prefix a command so that it stays on one core, where ``taskset`` exists and there is more than one."""
    taskset = shutil.which("taskset")
    if taskset is None or len(os.sched_getaffinity(0)) < 2:
        return command
    return [taskset, "-c", str(core), *command]


def environment() -> dict[str, str]:
    """Return the environment of Python children: this checkout first on the path."""
    known = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG", "TMPDIR")}
    return {**known, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


def launch(scene: Scene, name: str, command: list[str], port: int, *, core: int | None = None) -> Running:
    """Start a target and wait until its port answers; raises `TargetError` with the end of its log."""
    log = scene.log(name)
    with log.open("wb") as output:
        process = subprocess.Popen(
            pinned(scene.proxy_core if core is None else core, command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=scene.directory,
            env=environment(),
        )
    try:
        wait_for_port(process, port, log)
    except TargetError:
        stop_process(process)
        raise
    return Running(name, port, process)


def wait_for_port(process: subprocess.Popen[bytes], port: int, log: Path, seconds: float = 20.0) -> None:
    """Return when something listens on the port; raises `TargetError` when the process ends or time is up."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
            continue
        return
    tail = "\n".join(log.read_text("utf-8", "replace").splitlines()[-8:])
    raise TargetError(f"{log.stem} did not start listening on 127.0.0.1:{port}; the end of its log:\n{tail}")


def start_haproxy(scene: Scene) -> Running:
    """HAProxy with mutual TLS, keep-alive to the Engine, and one rule per section of the API."""
    program = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise TargetError("haproxy is not installed (Debian: apt-get install haproxy)")
    port = free_port()
    pem = scene.directory / "haproxy.pem"
    pem.touch(0o600)
    pem.write_bytes(scene.chain.read_bytes() + scene.key.read_bytes())
    rules = "\n".join(_haproxy_rule(section, allowed) for section, allowed in SECTIONS)
    config = scene.directory / "haproxy.cfg"
    files = {"pem": pem, "client_ca": scene.client_ca, "engine": scene.engine}
    config.write_text(HAPROXY.format(port=port, tls=HAPROXY_TLS, rules=rules, **files))
    return launch(scene, "haproxy", [program, "-db", "-f", str(config)], port)


def _haproxy_rule(section: str, allowed: bool) -> str:
    effect = "allow" if allowed else "deny"
    return f"    http-request {effect} if {{ path,url_dec -m reg -i ^(/v[\\d\\.]+)?/{section} }}"


def start_web(scene: Scene) -> Running:
    """Our proxy on ``twisted.web``."""
    policy = scene.directory / "policy.yaml"
    policy.write_text(POLICY)
    port = free_port()
    files = [str(path) for path in (scene.engine, scene.chain, scene.key, scene.client_ca, policy)]
    return launch(scene, "web", [sys.executable, "-m", "tests.bench.web_proxy", str(port), *files], port)


def defender_settings(scene: Scene, state: Path, port: int) -> str:
    """Return the defender's settings: everything by default but places and names."""
    return f"""\
[defender]
state = "{state}"
name = "bench"
[engine]
address = "unix://{scene.engine}"
[listen]
mode = "tcp"
tcp = ["127.0.0.1:{port}"]
[tls]
certificate = "{scene.chain}"
key = "{scene.key}"
client_ca = "{scene.directory / "users.pem"}"
[policy]
file = "{state / "policy.yaml"}"
"""


def start_defender(scene: Scene) -> Running:
    """``twistd defender`` of this checkout, audit and policy on."""
    port = free_port()
    state = scene.directory / "state"
    state.mkdir(mode=0o700, exist_ok=True)
    (state / "policy.yaml").write_text(POLICY)
    config = state / "defender.toml"
    config.write_text(defender_settings(scene, state, port))
    start = "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"
    options = ["--nodaemon", f"--pidfile={state / 'twistd.pid'}", "defender", "--config", str(config)]
    return launch(scene, "defender", [sys.executable, "-c", start, *options], port)


TARGETS = {"defender": start_defender, "web": start_web, "haproxy": start_haproxy}
"""Starters by name, in the order of the table."""
