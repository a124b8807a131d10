"""Events of simulated defenders: sealed records as a spool has them, cut into what one EVENTS carries."""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import dataclass
from typing import Final

from defender.contract.messages import MAX_BATCH
from defender.contract.packing import assemble, pack_body
from defender.contract.spool import first_chain, seal

USERS: Final = 200
ACTIONS: Final = ("container_list", "container_inspect", "container_logs", "image_list", "docker_info")

#: The subject of events that somebody waits for.
MARKED: Final = "marked@example.com"


@dataclass(frozen=True, slots=True)
class Batch:
    """The fields of one EVENTS; `chain` is that of its last record."""

    first_seq: int
    count: int
    previous: bytes
    records: bytes
    chain: bytes


def _body(user: str, action: str) -> tuple[int, bytes]:
    return pack_body(
        {
            "kind": "engine",
            "phase": "result",
            "actor": {
                "user": user,
                "groups": ["Dev team", "Operators"],
                "via": "tls",
                "src": "10.1.2.3:51234",
                "serial": "7f21c0de5a1144b7a6f0c3d29e88b1d4",
            },
            "req": {
                "action": action,
                "method": "GET",
                "api": "1.41",
                "path": "/containers/json",
                "query": {"all": "1"},
            },
            "decision": {
                "effect": "allow",
                "rule": "developers",
                "version": 12,
                "digest": "sha256:8b1f2e6c0d9a47b5e3c1f0a29d84b6c7550e1f3a2b4c6d8e9f0a1b2c3d4e5f60",
                "reason": "",
            },
            "result": {"status": 200, "bytes": 1180, "ms": 0.4},
        }
    )


class Recorder:
    """One epoch of one defender: makes its records, one after the other."""

    _bodies: tuple[tuple[int, bytes], ...] = ()

    def __init__(self, agent: str) -> None:
        self.agent = agent
        self.epoch = int.from_bytes(os.urandom(8), "big") or 1
        self.seq = 0
        self.chain = first_chain(agent, self.epoch)
        if not Recorder._bodies:
            users = [f"user{number}@example.com" for number in range(USERS)]
            Recorder._bodies = tuple(_body(user, action) for user in users for action in ACTIONS)
        self._next = itertools.cycle(Recorder._bodies).__next__

    def batch(self, count: int = MAX_BATCH, user: str = "") -> Batch:
        """The next `count` records, at most as many as one EVENTS takes; all of `user`, if one is given."""
        first, previous = self.seq + 1, self.chain
        micros, mono = time.time_ns() // 1000, time.monotonic_ns()
        payloads = []
        for number in range(count):
            pairs, body = _body(user, ACTIONS[0]) if user else self._next()
            identity = bytearray((micros // 1000).to_bytes(6, "big") + os.urandom(10))
            identity[6] = 0x70 | identity[6] & 0x0F
            identity[8] = 0x80 | identity[8] & 0x3F
            payloads.append(assemble(pairs, body, bytes(identity), micros + number, mono + number * 1000))
        records, self.chain = seal(self.chain, first, payloads)
        self.seq += count
        return Batch(first, count, previous, records, self.chain)
