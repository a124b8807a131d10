"""What people are shown of a rollout: plain values in the words of the API.

`sent` and `queued` are both "waiting" there, and *settled* is "done".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from controller.distribution import Distribution
from controller.releases import Cause, Halted, Phase, Progress, Refusal, Standing
from defender.contract.errors import one_line

MAX_NAMED: Final = 3
"""So many hosts are named in a sentence; the list has the others."""

STATES: Final[Mapping[Phase, str]] = {
    Phase.RUNNING: "running",
    Phase.HALTED: "halted",
    Phase.ABORTED: "aborted",
    Phase.SETTLED: "done",
}


@dataclass(frozen=True, slots=True)
class Step:
    """How far one defender is: "acked", "refused", "waiting" or "offline", and why."""

    defender: str
    name: str
    state: str
    detail: str


def describe_halt(halted: Halted, name_of: Callable[[str], str], patience: float) -> str:
    """Why a rollout is halted, in a sentence."""
    names = [one_line(name_of(who)) for who in halted.defenders]
    who = ", ".join(names[:MAX_NAMED])
    if len(names) > MAX_NAMED:
        who += f" and {len(names) - MAX_NAMED} more"
    if halted.cause is Cause.REFUSED:
        return one_line(f"{who} refused it: {halted.detail}")
    if halted.cause is Cause.SILENT:
        return f"{who} did not answer within {patience:g} s"
    return one_line(f"halted by hand: {halted.detail}" if halted.detail else "halted by hand")


def counts(progress: Progress) -> dict[str, int]:
    """The counts by name; the first four add up to the total."""
    return {
        "acked": progress.acked,
        "refused": progress.refused,
        "waiting": progress.waiting,
        "offline": progress.offline,
        "total": progress.total,
    }


def steps(stream: Distribution, line: str, name_of: Callable[[str], str]) -> Iterator[Step]:
    """Every defender of a rollout, those that refused first, then by name."""
    order = (Standing.REFUSED, Standing.SENT, Standing.QUEUED, Standing.OFFLINE, Standing.ACKED)
    rows = [
        (order.index(standing), name_of(who).casefold(), who, standing, refusal)
        for who, standing, refusal in stream.standings(line)
    ]
    for _, _, who, standing, refusal in sorted(rows, key=lambda row: row[:3]):
        yield Step(who, name_of(who), _state(standing), _detail(standing, refusal))


def _state(standing: Standing) -> str:
    return "waiting" if standing in (Standing.SENT, Standing.QUEUED) else standing.value


def _detail(standing: Standing, refusal: Refusal | None) -> str:
    if refusal is not None:
        return one_line(f"{refusal.code}: {refusal.detail}" if refusal.detail else refusal.code)
    if standing is Standing.SENT:
        return "sent, not answered yet"
    return "its turn has not come" if standing is Standing.QUEUED else ""
