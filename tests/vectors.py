"""The request vectors: raw requests, what real Engines made of them, and what the defender may make of
them.

`tests/data/vectors/GROUP.jsonl` holds the facts, recorded on Engine 20.10.24 and on the routes of the
newest Engine; `tests/data/vectors/expected.tsv` the decisions. The same vectors are run through the readers
alone, through the whole defender on the fake Engine, and on a real one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

FOLDER = Path(__file__).parent / "data" / "vectors"

GROUPS = ("VER", "PATH", "LINE", "ROUTE", "QRY", "FORM", "CT", "HTTP", "HIJ")

REFUSED = "refused"
"""The outcome of a request that is answered with 400, 417, 431, 501 or 505; the connection is then closed."""

SMUGGLED = b"GET /_ping HTTP/1.1\r\nHost: smuggled\r\n\r\n"
"""The follow-up request that many vectors try to hide."""

Outcome = tuple[str, ...]
"""What becomes of the requests on one connection, in order: actions (canonical names, `unknown` included)
and, as the last one only, `refused`. Empty: none was complete."""

_SAMPLES: Mapping[str, str] = {
    "EXEC": "3735" * 16,
    "P": "POST /images/prune?filters=%7B%22label%22%3A%5B%22nosuch%22%5D%7D HTTP/1.1\r\nHost: x\r\n",
    "SM": SMUGGLED.decode("ascii"),
}
"""Values for the placeholders of the recording; only EXEC, the id of an exec instance, matters to an
Engine."""

_EXEC_PATH = re.compile(r"(?<=/exec/)[0-9a-f]{64}(?=/start)")
_URLENCODED = re.compile(r"<urlencoded (.*)> HTTP/1\.1\Z")
_CUT = re.compile(r"\.\.\.\[([0-9]+) bytes\]\Z")
_LENGTH = re.compile(r"\r\nContent-Length: ([0-9]+)\r\n")
# The recording cut long requests at 2000 characters without a mark, or at 400 with one. What stood behind the
# padding is in the vector's name.
_CUT_SILENTLY = 2000
_TAILS: Mapping[str, str] = {"FORM-037": "isolation=zzz"}


@dataclass(frozen=True, slots=True)
class Vector:
    """One raw request (or several on one connection) with its facts and the decision about it.

    `template`: the recorded text with `{EXEC}` where the run's exec id stood. `placeholders`: names to fill
    in for a real Engine. `expected`: the acceptable outcomes. `reason`: why the defender refuses what an
    Engine takes, or takes what one refuses; "" when both agree. `facts`: the recorded results by name of
    the reader.
    """

    id: str
    group: str
    name: str
    template: str
    placeholders: tuple[str, ...]
    expected: tuple[Outcome, ...]
    reason: str
    facts: Mapping[str, Any]

    @property
    def request(self) -> bytes:
        """The bytes to send, with samples in the place of values of the run. Made anew: one of them is 10
        MiB.
        """
        return self.filled({})

    def filled(self, values: Mapping[str, str]) -> bytes:
        """The bytes to send, with `values` for the placeholders (samples for those that are missing)."""
        text = self.template
        for name in self.placeholders:
            text = text.replace("{" + name + "}", values.get(name, _SAMPLES[name]))
        return _unpadded(self.id, text).encode("latin-1")


def expectation(vector: Vector) -> tuple[Outcome, ...]:
    """The acceptable outcomes of `vector`."""
    return vector.expected


def _unpadded(identifier: str, text: str) -> str:
    """`text` with its padding at full length."""
    cut = _CUT.search(text)
    if cut is not None:
        kept = text[: cut.start()]
        tail = _TAILS.get(identifier, "")
        return kept + kept[-1] * (int(cut[1]) - len(kept) - len(tail)) + tail
    length = _LENGTH.search(text)
    if len(text) == _CUT_SILENTLY and length is not None:
        body = len(text) - text.index("\r\n\r\n") - 4
        return text + text[-1] * (int(length[1]) - body)
    return text


def _template(recorded: str) -> str:
    text = _URLENCODED.sub(lambda match: quote(match[1], safe="") + " HTTP/1.1\r\nHost: x\r\n\r\n", recorded)
    return _EXEC_PATH.sub("{EXEC}", text)


def read_vector(line: str, decisions: Mapping[str, tuple[tuple[Outcome, ...], str]]) -> Vector:
    """One line of a vector file. A vector without a decision gets no acceptable outcome."""
    record: dict[str, Any] = json.loads(line)
    text = _template(record["request"])
    expected, reason = decisions.get(record["id"], ((), ""))
    known = ("id", "group", "name", "request")
    return Vector(
        id=record["id"],
        group=record["group"],
        name=record["name"],
        template=text,
        placeholders=tuple(name for name in _SAMPLES if "{" + name + "}" in text),
        expected=expected,
        reason=reason,
        facts={key: value for key, value in record.items() if key not in known},
    )


def read_decisions(text: str) -> dict[str, tuple[tuple[Outcome, ...], str]]:
    """The table of decisions: id, acceptable outcomes (actions separated by a space, outcomes by `|`),
    reason.
    """
    decisions: dict[str, tuple[tuple[Outcome, ...], str]] = {}
    for line in text.splitlines()[1:]:
        identifier, outcomes, reason = line.split("\t")
        decisions[identifier] = (tuple(tuple(outcome.split()) for outcome in outcomes.split("|")), reason)
    return decisions


def load_vectors(folder: Path = FOLDER) -> tuple[Vector, ...]:
    """Every vector of the groups, in the order of GROUPS and of the files."""
    decisions = read_decisions((folder / "expected.tsv").read_text("utf-8"))
    return tuple(
        read_vector(line, decisions)
        for group in GROUPS
        for line in (folder / f"{group.lower()}.jsonl").read_text("utf-8").splitlines()
    )


VECTORS = load_vectors()
