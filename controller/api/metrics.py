"""Metrics as Prometheus reads them: families of numbers, and the text that shows them.

Written here rather than with prometheus_client: that library keeps its numbers in a registry of the process,
takes a lock with every count and reads files for multi-process servers, while all that is wanted is sixty
lines that put the numbers of one reactor thread into text.

Format: Prometheus text exposition 0.0.4.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of a histogram of seconds."""

_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_KINDS: Final = ("counter", "gauge", "histogram")


@dataclass(frozen=True, slots=True)
class Sample:
    """One number. `suffix` goes after the family's name (`_bucket`, `_sum`, `_count` of a histogram)."""

    value: float
    labels: Mapping[str, str] = field(default_factory=dict)
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class Family:
    """Numbers of one name. `kind` is counter, gauge or histogram; `about` is one line.

    Raises:
        ValueError: a name that Prometheus would not read.
    """

    name: str
    kind: str
    about: str
    samples: Sequence[Sample]

    def __post_init__(self) -> None:
        if _NAME.fullmatch(self.name) is None or self.kind not in _KINDS:
            raise ValueError(f"{self.kind} {self.name} is no family of metrics")
        for sample in self.samples:
            for label in sample.labels:
                if _LABEL.fullmatch(label) is None:
                    raise ValueError(f"{self.name}: {label!r} is no label")


def exposition(families: Iterable[Family]) -> bytes:
    """The text of all families, in their order."""
    lines: list[str] = []
    for family in families:
        about = family.about.replace("\\", r"\\").replace("\n", r"\n")
        lines += [f"# HELP {family.name} {about}", f"# TYPE {family.name} {family.kind}"]
        lines.extend(_line(family.name, sample) for sample in family.samples)
    return ("\n".join(lines) + "\n").encode("utf-8", "replace") if lines else b""


def _line(name: str, sample: Sample) -> str:
    labels = ",".join(f'{label}="{_escaped(value)}"' for label, value in sample.labels.items())
    return (
        f"{name}{sample.suffix}{{{labels}}} {_number(sample.value)}"
        if labels
        else (f"{name}{sample.suffix} {_number(sample.value)}")
    )


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(float(value))


class ApiMetrics:
    """What the API counts of itself."""

    def __init__(self) -> None:
        self.streams = 0
        """Event streams and exports that are open."""
        self.refused_bodies = 0
        """Requests that were cut off because their body was too large."""
        self._calls: dict[tuple[str, int], int] = {}
        self._seconds: dict[str, list[float]] = {}

    def called(self, operation: str, status: int, seconds: float) -> None:
        """Count an answer. Operations are those of the program, so there is a bounded number of them."""
        key = (operation, status)
        self._calls[key] = self._calls.get(key, 0) + 1
        found = self._seconds.setdefault(operation, [0.0] * (len(BUCKETS) + 2))
        for place, bound in enumerate(BUCKETS):
            if seconds <= bound:
                found[place] += 1
        found[-2] += 1
        found[-1] += seconds

    def families(self) -> Iterable[Family]:
        """All of it."""
        yield Family(
            "dfleet_api_requests_total",
            "counter",
            "Requests that the API has answered.",
            [
                Sample(count, {"operation": operation, "status": str(status)})
                for (operation, status), count in sorted(self._calls.items())
            ],
        )
        yield Family(
            "dfleet_api_request_seconds",
            "histogram",
            "Time from the end of a request to its answer.",
            [sample for name, found in sorted(self._seconds.items()) for sample in _histogram(name, found)],
        )
        yield Family(
            "dfleet_api_streams", "gauge", "Event streams and exports that are open.", [Sample(self.streams)]
        )
        yield Family(
            "dfleet_api_refused_bodies_total",
            "counter",
            "Requests whose body was too large to be read.",
            [Sample(self.refused_bodies)],
        )


def _histogram(operation: str, found: Sequence[float]) -> Iterable[Sample]:
    for place, bound in enumerate(BUCKETS):
        yield Sample(found[place], {"operation": operation, "le": repr(bound)}, "_bucket")
    yield Sample(found[-2], {"operation": operation, "le": "+Inf"}, "_bucket")
    yield Sample(found[-1], {"operation": operation}, "_sum")
    yield Sample(found[-2], {"operation": operation}, "_count")
