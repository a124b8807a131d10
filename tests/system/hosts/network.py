"""The cable and the switch between nodes, and what goes wrong with them.

The switch is a bridge in a network namespace of its own; each node has one end of a veth pair (veth(4)),
``eth0``, and the switch the other, ``port-NAME``. Nothing of it is on the machine's own network.
"""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

from tests.system.hosts.node import Node, must, tool

NETWORK = ipaddress.IPv4Network("10.214.0.0/24")
BRIDGE = "switch"


def address(number: int) -> str:
    """Return the address of a node: the first has number 1."""
    return str(NETWORK[number])


def port_of(node: Node) -> str:
    """Return the name of a node's port of the switch."""
    return f"port-{node.name}"


class Network:
    """Args:
    directory: the switch's own.
    """

    def __init__(self, directory: Path) -> None:
        self.switch = Node("switch", "", directory)

    def start(self, hosts_file: Path) -> None:
        """Make the switch."""
        self.switch.start(hosts_file)
        self._ip(self.switch, "link", "add", BRIDGE, "type", "bridge")
        self._ip(self.switch, "link", "set", BRIDGE, "up")

    def connect(self, node: Node) -> None:
        """Lay a node's cable."""
        port = port_of(node)
        peer = ("peer", "name", "eth0", "netns", str(node.pid))
        self._ip(self.switch, "link", "add", port, "type", "veth", *peer)
        self._ip(self.switch, "link", "set", port, "master", BRIDGE, "up")
        self._ip(node, "address", "add", f"{node.address}/{NETWORK.prefixlen}", "dev", "eth0")
        self._ip(node, "link", "set", "eth0", "up")

    def stop(self) -> None:
        """Remove it, with all cables."""
        self.switch.stop()

    # -- a cable that is pulled

    def cut(self, node: Node) -> None:
        """Pull a node's cable: its interface has no carrier, and it reaches nobody but itself."""
        self._ip(self.switch, "link", "set", port_of(node), "down")

    def join(self, node: Node) -> None:
        """Put the cable back."""
        self._ip(self.switch, "link", "set", port_of(node), "up")

    def has_carrier(self, node: Node) -> bool:
        """Tell whether a node's interface sees the other end of its cable."""
        (link,) = json.loads(self._ip(node, "-json", "link", "show", "dev", "eth0"))
        return "LOWER_UP" in link["flags"]

    # -- packets that are lost, and nobody is told

    def lose(self, source: Node, destination: Node) -> None:
        """Lose every packet from one node to another from now on; the other direction goes on."""
        self._filter("-I", source, destination)

    def deliver(self, source: Node, destination: Node) -> None:
        """End what `lose` began.

        Raises:
            AssertionError: when it had not.
        """
        self._filter("-D", source, destination)

    def part(self, one: Node, other: Node) -> None:
        """Make what is open between two nodes half-open: both have a carrier and neither hears the other."""
        self.lose(one, other)
        self.lose(other, one)

    def mend(self, one: Node, other: Node) -> None:
        """End what `part` began."""
        self.deliver(one, other)
        self.deliver(other, one)

    def _filter(self, verb: str, source: Node, destination: Node) -> None:
        # On arrival, before all rules of an Engine there: the sender's own filter would tell its TCP.
        rule = ("PREROUTING", "-i", "eth0", "-s", source.address, "-j", "DROP")
        must(*destination.command(tool("iptables"), "-w", "-t", "raw", verb, *rule))

    def _ip(self, node: Node, *arguments: str) -> str:
        return must(*node.command(tool("ip"), *arguments))
