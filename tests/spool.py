"""What a defender recorded, read from the spool in its state directory as any other program would."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from defender.contract.local import Request, write_request
from defender.contract.packing import micros_of, unpack
from defender.contract.spool import HEADER_SIZE, Place, Scan, SegmentHeader, begin, parse_segment_name, scan
from defender.contract.spool_order import segment_of
from defender.contract.spool_reading import Entry, Finding, read_spool

Event = dict[str, Any]

_BLOCK = 256 * 1024


def read_files(directory: Path) -> list[tuple[str, bytes]]:
    """The segments of a spool: names and contents. One that goes meanwhile is left out."""
    files = []
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:
        if parse_segment_name(path.name) is not None:
            try:
                files.append((path.name, path.read_bytes()))
            except FileNotFoundError:
                continue
    return files


def read_events(state_directory: Path | str) -> list[Event]:
    """All events of the defender whose state directory this is, in order; those on disk at this moment."""
    return events_in(Path(state_directory) / "audit")


def events_in(directory: Path | str) -> list[Event]:
    """All events of the spool in a directory."""
    return [
        unpack(
            item.record.payload, agent=item.segment.header.agent, epoch=item.epoch.number, seq=item.record.seq
        )
        for item in read_spool(read_files(Path(directory)))
        if isinstance(item, Entry)
    ]


def findings(directory: Path | str) -> list[Finding]:
    """What a reader of the spool in `directory` finds amiss, what is harmless left out."""
    return [
        item
        for item in read_spool(read_files(Path(directory)))
        if isinstance(item, Finding) and not item.harmless
    ]


class Follower:
    """Reads a running defender's events as they come; cheap enough to be asked again and again.

    It follows one epoch after the other and takes the spool as whole, which is what a defender leaves.
    """

    def __init__(self, state_directory: Path | str) -> None:
        self._state = Path(state_directory)
        self._directory = self._state / "audit"
        self._at: dict[str, tuple[SegmentHeader, Place]] = {}
        self._events: list[tuple[int, Event]] = []
        self._last = 0

    def read(self, since: int = 0) -> list[Event]:
        """The events on disk that were recorded at `since` (unix microseconds) or later."""
        self._catch_up()
        return [event for micros, event in self._events if micros >= since]

    def take(self) -> list[Event]:
        """The events on disk since the last call; they are forgotten here, so this can go on for hours."""
        self._catch_up()
        taken, self._events = self._events, []
        return [event for _, event in taken]

    def settle(self, patience: float = 20.0) -> None:
        """Wait until everything that the defender has recorded up to now is on disk."""
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(patience)
            peer.connect(str(self._state / "control.sock"))
            peer.sendall(write_request(Request("status")))
            with peer.makefile("rb") as answers:
                audit = json.loads(answers.readline())["result"]["audit"]
        end = time.monotonic() + patience
        while self._caught_up() < audit["durable_seq"] + audit["waiting"]:
            if time.monotonic() > end:
                raise AssertionError(f"what was recorded is not on disk: {audit}")
            time.sleep(0.005)

    def _caught_up(self) -> int:
        self._catch_up()
        return self._last

    def _catch_up(self) -> None:
        try:
            names = sorted(name for name in os.listdir(self._directory) if parse_segment_name(name))
        except FileNotFoundError:
            return
        for name in names:
            if name not in self._at or name == names[-1] or name in list(self._at)[-1:]:
                self._read(name)

    def _read(self, name: str) -> None:
        try:
            file = (self._directory / name).open("rb")
        except FileNotFoundError:
            return
        with file:
            if name not in self._at:
                segment = segment_of(name, file.read(HEADER_SIZE))
                if segment is None or segment.problem:
                    return
                self._at[name] = segment.header, begin(segment.header)
            header, place = self._at[name]
            size = _BLOCK
            while True:
                file.seek(place.offset)
                data = file.read(size)
                found = _before_damage(scan(data, header, place), place)
                if found.place == place:
                    if not found.torn or len(data) < size:
                        break
                    size *= 4
                    continue
                place = found.place
                for record in found.records:
                    event = unpack(record.payload, agent=header.agent, epoch=header.epoch, seq=record.seq)
                    self._events.append((micros_of(record.payload), event))
                    self._last = record.seq
            self._at[name] = header, place


def _before_damage(found: Scan, place: Place) -> Scan:
    """What stands before the first damage: the defender is writing there in this moment.

    A commit of several pages may be seen with the second one before the first.
    """
    if not found.damage:
        return found
    end = found.damage[0].start
    records = [record for record in found.records if record.offset < end]
    if records:
        place = Place(end, records[-1].seq, records[-1].chain)
    return Scan(records, [], place)


def now() -> int:
    """A mark for `Follower.read`."""
    return time.time_ns() // 1000
