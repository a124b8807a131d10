"""What a defender recorded, read from the spool in its state directory as any other program would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from defender.contract.packing import unpack
from defender.contract.spool import parse_segment_name
from defender.contract.spool_reading import Entry, Finding, read_spool

Event = dict[str, Any]


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
    return [
        unpack(
            item.record.payload, agent=item.segment.header.agent, epoch=item.epoch.number, seq=item.record.seq
        )
        for item in read_spool(read_files(Path(state_directory) / "audit"))
        if isinstance(item, Entry)
    ]


def findings(directory: Path | str) -> list[Finding]:
    """What a reader of the spool in `directory` finds amiss, what is harmless left out."""
    return [
        item
        for item in read_spool(read_files(Path(directory)))
        if isinstance(item, Finding) and not item.harmless
    ]
