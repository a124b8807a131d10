"""``python -m tests.system.hosts [COUNT [fleet]]``: a test network to look at by hand, until input ends."""

from __future__ import annotations

import sys

from tests.system.hosts.hosts import Hosts


def main() -> None:
    """Start one, say how to enter its nodes, and wait."""
    hosts = Hosts(int(sys.argv[1]) if len(sys.argv) > 1 else 3, fleet="fleet" in sys.argv[2:]).start()
    try:
        for node in (*hosts.nodes, hosts.network.switch):
            print(f"{node.name} {node.address}: {' '.join(node.command())}")
        certificates = hosts.certificates("admin")
        print(f"on client: DOCKER_TLS_VERIFY=1 DOCKER_CERT_PATH={certificates} docker -H tcp://host1:2376 ps")
        print("ready", flush=True)
        sys.stdin.read()
    finally:
        hosts.stop()


if __name__ == "__main__":
    main()
