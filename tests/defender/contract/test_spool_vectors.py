"""The test vectors of docs/specification/spool.md: bytes that were not made by the code that is tested."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from twisted.trial.unittest import SynchronousTestCase

from defender.contract.packing import assemble, is_closing, micros_of, pack_body, unpack
from defender.contract.spool import (
    HEADER_SIZE,
    SegmentHeader,
    SpoolError,
    decode_header,
    encode_header,
    first_chain,
    scan,
    seal,
)
from defender.contract.spool_reading import Entry, Finding, read_spool

VECTORS: Final[dict[str, list[dict[str, Any]]]] = json.loads(
    (Path(__file__).resolve().parents[2] / "data" / "spool.json").read_text("utf-8")
)


class Vectors(SynchronousTestCase):
    def test_headers(self) -> None:
        for vector in VECTORS["headers"]:
            header = SegmentHeader(
                vector["agent"],
                int(vector["epoch"], 16),
                vector["first_seq"],
                bytes.fromhex(vector["previous"]),
                vector["created"],
                vector["boot"],
                int(vector["predecessor"], 16),
                vector["predecessor_seq"],
                bytes.fromhex(vector["predecessor_chain"]),
            )
            self.assertEqual(encode_header(header).hex(), vector["hex"])
            self.assertEqual(decode_header(bytes.fromhex(vector["hex"])), header)

    def test_bad_headers(self) -> None:
        for vector in VECTORS["bad_headers"]:
            with self.assertRaises(SpoolError, msg=vector["why"]):
                decode_header(bytes.fromhex(vector["hex"]))

    def test_first_chains(self) -> None:
        for vector in VECTORS["first_chains"]:
            self.assertEqual(first_chain(vector["agent"], int(vector["epoch"], 16)).hex(), vector["hex"])

    def test_records(self) -> None:
        for vector in VECTORS["records"]:
            payloads = [bytes.fromhex(payload) for payload in vector["payloads"]]
            previous, data = bytes.fromhex(vector["previous"]), bytes.fromhex(vector["hex"])
            self.assertEqual(
                seal(previous, vector["first_seq"], payloads), (data, bytes.fromhex(vector["chains"][-1]))
            )
            header = SegmentHeader("web1", 1, vector["first_seq"], previous)
            records = scan(bytes(HEADER_SIZE) + data, header).records
            self.assertEqual([record.payload for record in records], payloads)
            self.assertEqual([record.chain.hex() for record in records], vector["chains"])

    def test_payloads(self) -> None:
        for vector in VECTORS["payloads"]:
            corr = bytes.fromhex(vector["corr"])
            payload = assemble(
                *pack_body(vector["own"]), bytes.fromhex(vector["id"]), vector["t"], vector["m"], corr
            )
            self.assertEqual(payload.hex(), vector["hex"])
            event = unpack(payload, agent="web1", epoch=0x9F3C0A6D51E8B274, seq=4711)
            self.assertEqual(event, vector["event"])
            self.assertEqual(list(event), list(vector["event"]))
            self.assertEqual(micros_of(payload), vector["t"])
            self.assertEqual(is_closing(payload), vector["own"]["req"]["action"] == "audit_close")

    def test_bad_payloads(self) -> None:
        for vector in VECTORS["bad_payloads"]:
            with self.assertRaises(SpoolError, msg=vector["why"]):
                unpack(bytes.fromhex(vector["hex"]), agent="web1", epoch=1, seq=1)

    def test_spools(self) -> None:
        for vector in VECTORS["spools"]:
            files = [(name, bytes.fromhex(data)) for name, data in vector["files"].items()]
            items = list(read_spool(files, "web1"))
            records = [[item.epoch.text, item.record.seq] for item in items if isinstance(item, Entry)]
            self.assertEqual(records, vector["records"], vector["why"])
            findings = [
                {
                    "kind": item.trouble.value,
                    "file": item.file,
                    "offset": item.offset,
                    "first_seq": item.first_seq,
                    "last_seq": item.last_seq,
                }
                for item in items
                if isinstance(item, Finding)
            ]
            self.assertEqual(findings, vector["findings"], vector["why"])
