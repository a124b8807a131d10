"""The test vectors of docs/specification/bundle.md: bytes that were not made by the code that is tested."""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from twisted.trial.unittest import SynchronousTestCase

from defender.bundles.commands import Ack, Activate, Nack, PersistBundle
from defender.bundles.restoring import Stored
from defender.bundles.streams import Streams
from defender.contract.bundle import NOWHERE, BundleError, Position, open_envelope, sign_bundle
from defender.contract.canonical import canonical, read_canonical
from defender.contract.envelope import (
    BUNDLE_TYPE,
    KeyRing,
    key_id,
    pae,
    read_envelope,
    signer_of,
    verify,
)
from defender.contract.high_water import HighWater, decode_high_water
from defender.contract.snapshot import open_snapshot
from defender.contract.trust import first_root, newer_roots

_REPOSITORY: Final = Path(__file__).resolve().parents[3]
_BUNDLES: Final = _REPOSITORY / "defender" / "bundles"
VECTORS: Final[dict[str, Any]] = json.loads(
    (_REPOSITORY / "tests" / "data" / "bundle" / "vectors.json").read_text("utf-8")
)
ROOT: Final = first_root(b64decode(VECTORS["root"]))
DEFENDER: Final[str] = VECTORS["defender"]
NOW: Final[int] = VECTORS["now"]


def position(value: list[Any] | None) -> Position:
    return NOWHERE if value is None else Position(value[0], value[1], bytes.fromhex(value[2]))


class Vectors(SynchronousTestCase):
    def refused(self, vector: dict[str, Any], call: Any, *arguments: Any, **named: Any) -> None:
        with self.assertRaises(BundleError, msg=vector["why"]) as caught:
            call(*arguments, **named)
        self.assertEqual(caught.exception.code, vector["code"], vector["why"])

    def test_keys(self) -> None:
        for name, vector in VECTORS["keys"].items():
            key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vector["seed"]))
            public = signer_of(key).public
            self.assertEqual((public.hex(), key_id(public).hex()), (vector["public"], vector["keyid"]), name)

    def test_pae(self) -> None:
        for vector in VECTORS["pae"]:
            self.assertEqual(pae(vector["type"], b64decode(vector["payload"])), b64decode(vector["signed"]))

    def test_canonical(self) -> None:
        for payload in map(b64decode, VECTORS["canonical"]):
            self.assertEqual(canonical(read_canonical(payload)), payload)
        for vector in VECTORS["not_canonical"]:
            vector["why"] = vector["payload"]
            self.refused(vector, read_canonical, b64decode(vector["payload"]))

    def test_roots(self) -> None:
        for vector in VECTORS["roots"]:
            push = [b64decode(frame) for frame in vector["push"]]
            if "code" in vector:
                self.refused(vector, newer_roots, ROOT, push)
            else:
                held = [ROOT, *(root for root, _ in newer_roots(ROOT, push))]
                self.assertEqual(held[-1].version, vector["version"], vector["why"])

    def offered(self, stream: str, data: bytes) -> Ack | Nack:
        """What a defender that holds the first root, and nothing else, answers."""
        streams = Streams(
            trust_domain=ROOT.trust_domain, defender=DEFENDER, agent_version=VECTORS["agent_version"]
        )
        water = HighWater(ROOT.version, ROOT.digest).encode()
        self.assertEqual(streams.start(Stored(b64decode(VECTORS["root"]), water), NOW), [])
        commands = list(streams.offered(stream, 1, data, NOW))
        for command in commands:
            if isinstance(command, PersistBundle):
                commands += streams.persisted(command.ticket, NOW)
            elif isinstance(command, Activate):
                commands += streams.activated(command.ticket, NOW)
        (answer,) = (each for each in commands if isinstance(each, Ack | Nack))
        return answer

    def test_bundles(self) -> None:
        for vector in VECTORS["bundles"]:
            answer = self.offered(vector["stream"], b64decode(vector["envelope"]))
            if isinstance(answer, Nack):
                self.assertEqual(answer.code, vector.get("code"), f"{vector['why']}: {answer.detail}")
            else:
                self.assertEqual("", vector.get("code", ""), vector["why"])
                self.assertEqual(answer.position, position(vector["position"]), vector["why"])

    def test_every_code_is_specified_and_has_a_vector(self) -> None:
        raised = set()
        for path in sorted([*(_REPOSITORY / "defender" / "contract").glob("*.py"), *_BUNDLES.glob("*.py")]):
            raised |= set(re.findall(r'BundleError\(\s*"([a-z-]+)"', path.read_text("utf-8")))
        page = (_REPOSITORY / "docs" / "specification" / "bundle.md").read_text("utf-8")
        table = page.partition("| code | when |")[2].partition("\n\n")[0]
        specified = set(re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE))
        self.assertEqual(raised, specified)
        lists = (VECTORS["roots"], VECTORS["bundles"], VECTORS["snapshots"])
        shown = {vector["code"] for each in lists for vector in each if "code" in vector}
        shown |= {vector["outcome"] for vector in VECTORS["judged"]}
        # What depends on more than bytes: the size, the clock, the disk, an earlier snapshot.
        beyond = {
            "too-large",
            "clock-jump",
            "older-snapshot",
            "storage",
            "not-activated",
            "missing",
            "no-root",
        }
        self.assertEqual(specified - shown, beyond)

    def test_what_is_signed_here_is_the_same(self) -> None:
        """The same bundle, signed with the same keys, has the same bytes."""
        vector = next(each for each in VECTORS["bundles"] if each["why"] == "every field")
        data = b64decode(vector["envelope"])
        bundle = open_envelope(
            data, ROOT, stream="policy", defender=DEFENDER, agent_version=VECTORS["agent_version"], now=NOW
        )
        names = {each["keyid"]: each["seed"] for each in VECTORS["keys"].values()}
        signers = [
            signer_of(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(names[keyid.hex()])))
            for keyid in bundle.signers
        ]
        self.assertEqual(b64encode(sign_bundle(bundle, signers)), b64encode(data))
        ring = KeyRing(tuple(signer.public for signer in signers), 2)
        self.assertEqual(verify(read_envelope(data, BUNDLE_TYPE), ring), bundle.signers)

    def test_snapshots(self) -> None:
        for vector in VECTORS["snapshots"]:
            data = b64decode(vector["envelope"])
            if "code" in vector:
                self.refused(vector, open_snapshot, data, ROOT, defender=DEFENDER)
            else:
                found = open_snapshot(data, ROOT, defender=DEFENDER).positions
                wanted = {stream: position(at) for stream, at in vector["positions"].items()}
                self.assertEqual(found, wanted, vector["why"])

    def test_marks(self) -> None:
        for vector in VECTORS["marks"]:
            data = b64decode(vector["file"])
            if "code" in vector:
                self.refused(vector, decode_high_water, data)
                continue
            water = decode_high_water(data)
            self.assertEqual(water.encode(), data)
            self.assertEqual(
                (water.root_version, water.root_digest.hex(), water.floor_ms, water.snapshot_ms),
                tuple(vector[name] for name in ("root_version", "root_digest", "floor_ms", "snapshot_ms")),
            )
            for stream, mark in vector["streams"].items():
                found = water.mark(stream)
                self.assertEqual(
                    (found.high, found.active), (position(mark["high"]), position(mark["active"]))
                )
                self.assertEqual(found.confirmed_ms, mark["confirmed_ms"])

    def test_judged(self) -> None:
        water = decode_high_water(b64decode(VECTORS["marks"][0]["file"]))
        for vector in VECTORS["judged"]:
            try:
                outcome = "new" if water.judge(vector["stream"], position(vector["position"])) else "same"
            except BundleError as error:
                outcome = error.code
            self.assertEqual(outcome, vector["outcome"], vector)
