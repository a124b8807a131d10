"""A spool in memory, written with the contract's own functions: what a defender leaves in its directory."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from defender.contract.audit import Event
from defender.contract.packing import CLOSING, assemble, pack_body
from defender.contract.spool import (
    HEADER_SIZE,
    NO_CHAIN,
    SegmentHeader,
    encode_header,
    first_chain,
    quarantine_name,
    seal,
    segment_name,
)

START = 1_800_000_000_000_000
"""Unix microseconds of the first event: 2027-01-15T08:00:00Z."""


class SpoolWriter:
    """Writes segments of `size` bytes; `files` has their contents by name.

    `now` is the clock in unix microseconds; each event takes one second of it.
    """

    def __init__(self, agent: str = "web1", *, size: int = 16 * 1024, now: int = START) -> None:
        self.agent = agent
        self.size = size
        self.now = now
        self.files: dict[str, bytes] = {}
        self.epoch = 0
        self.seq = 0
        self.chain = b""
        self.name = ""
        self._epochs = itertools.count(0x9F3C00000000AAAA, 0x1111)
        self._identities = itertools.count(1)
        self._predecessor = (0, 0, NO_CHAIN)
        self._end = 0
        self._written: list[tuple[bytes, bytes]] = []  # of this epoch: chain and payload

    def start(self, epoch: int = 0) -> None:
        """Begin an epoch, whether or not the one before was closed."""
        if self.epoch:
            self._predecessor = (self.epoch, self.seq, self.chain)
        self.epoch = epoch or next(self._epochs)
        self.seq = 0
        self.chain = first_chain(self.agent, self.epoch)
        self._written.clear()
        self.segment()

    def segment(self, name: str = "") -> str:
        """Begin a segment; gives its name."""
        header = SegmentHeader(
            self.agent, self.epoch, self.seq + 1, self.chain, self.now, "boot", *self._predecessor
        )
        self.name = name or segment_name(self.epoch, self.seq + 1)
        self.files[self.name] = encode_header(header).ljust(self.size, b"\0")
        self._end = HEADER_SIZE
        return self.name

    def payload(self, event: Event, corr: bytes = b"") -> bytes:
        """One event's payload, of the present second."""
        return self._assemble(*pack_body(event), corr)

    def _assemble(self, pairs: int, body: bytes, corr: bytes) -> bytes:
        number = next(self._identities)
        identity = (self.now // 1000).to_bytes(6, "big") + b"\x70\0\x80" + number.to_bytes(7, "big")
        micros, self.now = self.now, self.now + 1_000_000
        return assemble(pairs, body, identity, micros, number * 1_000_000, corr)

    def put(self, *events: Event) -> None:
        """Record events, in a new segment where the present one is full."""
        for event in events:
            self.append([self.payload(event)])

    def append(self, payloads: Sequence[bytes]) -> None:
        """Record payloads as one batch."""
        if self._end + sum(map(len, payloads)) + 48 * len(payloads) > self.size:
            self.segment()
        for payload in payloads:
            data, self.chain = seal(self.chain, self.seq + 1, [payload])
            self.seq += 1
            self._written.append((self.chain, payload))
            self.write(self._end, data)
            self._end += len(data)

    def write(self, offset: int, data: bytes, name: str = "") -> None:
        """Put bytes into a file, by default the present segment."""
        content = bytearray(self.files[name or self.name])
        content[offset : offset + len(data)] = data
        self.files[name or self.name] = bytes(content)

    @property
    def end(self) -> int:
        """Where the next record goes in the present segment."""
        return self._end

    def close(self) -> None:
        """Record the epoch's closing record."""
        self.append([self._assemble(*CLOSING, b"")])

    def quarantine(self, name: str = "", number: int = 0) -> str:
        """Rename a segment, by default the present one; gives its new name."""
        name = name or self.name
        new = quarantine_name(name, number)
        self.files[new] = self.files.pop(name)
        return new

    def poison(self, unsynced: int, again: int = -1) -> str:
        """Put the present segment aside since its sync failed, and write to a new one the last `unsynced`
        records, or the first `again` of them; gives the name of the former."""
        payloads = [payload for _, payload in self._written[len(self._written) - unsynced :]]
        name = self.quarantine()
        self.seq -= unsynced
        del self._written[self.seq :]
        self.chain = self._written[-1][0] if self._written else first_chain(self.agent, self.epoch)
        self.segment()
        self.append(payloads if again < 0 else payloads[:again])
        return name

    def save(self, directory: Path) -> None:
        """Write the files that changed, and remove those that are gone."""
        directory.mkdir(parents=True, exist_ok=True)
        for path in directory.glob("*.seg*"):
            if path.name not in self.files:
                path.unlink()
        for name, data in self.files.items():
            path = directory / name
            if not path.exists():
                path.write_bytes(data)
            elif path.read_bytes() != data:
                # In place: who reads it meanwhile has it open.
                with path.open("r+b") as file:
                    file.write(data)
