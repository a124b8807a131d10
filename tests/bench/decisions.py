"""What a policy decision costs by itself: ten rules and a thousand, for a thousand users."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence

from defender.contract.actions import Operation, recognize
from defender.contract.facts import Subject
from defender.contract.policy import PolicyTable
from defender.contract.policy_schema import load_policy

USERS = 1000
RULES = (10, 1000)
BATCHES = 7

CALLS = (
    ("GET", "/containers/json"),
    ("GET", "/info"),
    ("POST", "/containers/create"),
    ("POST", "/containers/web/start"),
    ("DELETE", "/containers/web"),
)

_RULE = """\
  - name: team-{number}
    groups: ["Team {number}"]
    effect: allow
    actions: [container_list, container_inspect, container_create, container_start, docker_info]
"""


def policy_text(rules: int) -> str:
    """A policy with one rule for each of as many groups."""
    return "schema: 1\nrules:\n" + "".join(_RULE.format(number=number) for number in range(rules))


def subjects(rules: int) -> list[Subject]:
    """A thousand users, spread over the groups that the rules are for."""
    return [Subject(f"user-{number}@example.com", (f"Team {number % rules}",)) for number in range(USERS)]


def policy_cost(rounds: int) -> dict[str, float]:
    """Microseconds of one decision by number of rules.

    Args:
        rounds: decisions in one of the `BATCHES`, whose median counts.

    Returns:
        ``us_10`` and ``us_1000``: a decision about a user who has asked before; ``first_us_10`` and
        ``first_us_1000``: about one who has not; ``ratio``: of the former two.
    """
    operations = [recognize(method, path)[0] for method, path in CALLS]
    order = random.Random(1)
    work: dict[int, list[tuple[Subject, Operation]]] = {}
    tables: dict[int, PolicyTable] = {}
    figures: dict[str, float] = {}
    for rules in RULES:
        users = subjects(rules)
        policy = load_policy(policy_text(rules), "bench")
        tables[rules] = PolicyTable(policy, "bench")
        first = [(subject, operations[0]) for subject in users]
        figures[f"first_us_{rules}"] = _time(tables[rules], first)
        pairs = [(subject, operation) for subject in users for operation in operations]
        _time(tables[rules], pairs)
        work[rules] = [order.choice(pairs) for _ in range(rounds)]
    taken: dict[int, list[float]] = {rules: [] for rules in RULES}
    for _ in range(BATCHES):
        for rules in RULES:
            taken[rules].append(_time(tables[rules], work[rules]))
    figures.update({f"us_{rules}": statistics.median(times) for rules, times in taken.items()})
    return {**figures, "ratio": figures["us_1000"] / figures["us_10"]}


def _time(table: PolicyTable, work: Sequence[tuple[Subject, Operation]]) -> float:
    decide = table.decide
    began = time.perf_counter()
    for subject, operation in work:
        decide(subject, operation)
    return (time.perf_counter() - began) / len(work) * 1e6
