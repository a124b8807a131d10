"""How far something is on its way through the fleet, as the API shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from controller.distribution import RolloutError
from controller.ports.orders import Orders
from controller.rollout_view import Step, counts

STANDINGS = ("acked", "refused", "waiting", "offline")


def counts_of(orders: Orders, stream: str, line: str) -> Mapping[str, int]:
    """`Counts` of a line; all 0 if nothing was ever sent on it."""
    try:
        return counts(orders.rollout(stream, line).progress)
    except RolloutError:
        return {**dict.fromkeys(STANDINGS, 0), "total": 0}


def count_steps(steps: Iterable[Step]) -> Mapping[str, int]:
    """`Counts` of some steps."""
    found = Counter(step.state for step in steps)
    return {**{state: found[state] for state in STANDINGS}, "total": found.total()}


def show_step(step: Step) -> Mapping[str, Any]:
    """`Step`."""
    return {
        "defender": step.defender,
        "name": step.name[:255],
        "state": step.state,
        "detail": step.detail[:2000],
    }
