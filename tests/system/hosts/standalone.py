"""A defender of the test network that has no controller."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.engine.guarded import POLICY
from tests.fakes.authority import TestAuthority
from tests.system.hosts.host import Host, HostDefender
from tests.system.hosts.program import Clock


class StandaloneDefender(HostDefender):
    """``twistd defender`` on a host, with a policy file of its own.

    Args:
        host: where it runs.
        pki: signs its server certificate, and those of its clients.
        probe: DOCKER_CERT_PATH of the client with which the tests ask whether it serves.
        clock: its own, if it is not to have the machine's.
        settings: more keys of its settings by table, as TOML text: ``{"limits": "linger = 1"}``.
        policy: text of its policy.
    """

    def __init__(
        self,
        host: Host,
        pki: TestAuthority,
        probe: Path,
        *,
        clock: Clock | None = None,
        settings: Mapping[str, str] | None = None,
        policy: str = POLICY,
    ) -> None:
        super().__init__(host, clock=clock)
        self.policy = host.directory / "policy.yaml"
        self._probe = probe
        self.policy.write_text(policy, "utf-8")
        tls = host.directory / "tls"
        pki.write_server(tls, pki.server((host.name, host.address), defender=host.name))
        files = {"certificate": "server.pem", "key": "server.key", "client_ca": "client-ca.pem"}
        tables = {
            "tls": "\n".join(f'{key} = "{tls / name}"' for key, name in files.items()),
            "policy": f'file = "{self.policy}"',
        }
        self.write_settings(tables, settings or {})

    @property
    def probe(self) -> Path:
        return self._probe
