"""The state of a line as the store keeps it: JSON, and back, with every field checked.

A document that cannot be read is refused, never half believed: a rollout that was halted must not go on
because somebody edited a row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from controller.releases import (
    Cause,
    Halted,
    LineState,
    Phase,
    Plan,
    Position,
    Release,
    Wave,
)

SCHEMA: Final = 1

_TOP: Final = frozenset(
    [
        "schema",
        "line",
        "release",
        "base",
        "plan",
        "phase",
        "wave",
        "reached",
        "picked",
        "proven",
        "halted",
        "reissues",
    ]
)


class DocumentError(ValueError):
    """A kept state that cannot be read; the text says which part."""


def dump_state(state: LineState) -> str:
    """The text of a state; the same state always gives the same text."""
    halted = state.halted
    document = {
        "schema": SCHEMA,
        "line": state.line,
        "release": _release(state.release),
        "base": None if state.base is None else _release(state.base),
        "plan": {
            "waves": [[wave.least, wave.percent] for wave in state.plan.waves],
            "halts": state.plan.halts,
            "patience": state.plan.patience,
        },
        "phase": state.phase.value,
        "wave": state.wave,
        "reached": sorted(state.reached),
        "picked": sorted(state.picked),
        "proven": state.proven,
        "halted": None
        if halted is None
        else {"cause": halted.cause.value, "defenders": list(halted.defenders), "detail": halted.detail},
        "reissues": [_release(release) for release in state.reissues],
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def load_state(text: str) -> LineState:
    """The state of a text; raises DocumentError."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"the state of a rollout is not JSON: {error}") from None
    if not isinstance(document, dict) or set(document) != _TOP or document["schema"] != SCHEMA:
        raise DocumentError("the state of a rollout has other keys, or another schema")
    try:
        release = _read_release(document["release"])
        plan = _read_plan(document["plan"])
        state = LineState(
            line=_text(document["line"]),
            release=release,
            base=None if document["base"] is None else _read_release(document["base"]),
            plan=plan,
            phase=Phase(document["phase"]),
            wave=_number(document["wave"], len(plan.waves)),
            reached=_names(document["reached"]),
            picked=_names(document["picked"]),
            proven=_flag(document["proven"]),
            halted=_read_halted(document["halted"], _text(document["line"]), release.position),
            reissues=tuple(_read_release(each) for each in document["reissues"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DocumentError(f"the state of a rollout cannot be read: {error}") from None
    if not state.picked <= state.reached:
        raise DocumentError("the state of a rollout has defenders in a wave that it never reached")
    return state


def _release(release: Release) -> dict[str, Any]:
    return {
        "position": list(release.position),
        "digest": release.digest.hex(),
        "origin": list(release.origin),
        "audience": None if release.audience is None else sorted(release.audience),
    }


def _read_release(document: Mapping[str, Any]) -> Release:
    audience = document["audience"]
    return Release(
        position=_read_position(document["position"]),
        digest=bytes.fromhex(document["digest"]),
        origin=_read_position(document["origin"]),
        audience=None if audience is None else _names(audience),
    )


def _read_position(value: Any) -> Position:
    epoch, version = value
    return Position(_number(epoch, 2**64 - 1), _number(version, 2**64 - 1))


def _read_plan(document: Mapping[str, Any]) -> Plan:
    waves = tuple(Wave(_number(least, 10**9), _number(percent, 100)) for least, percent in document["waves"])
    patience = document["patience"]
    if isinstance(patience, bool) or not isinstance(patience, int | float) or not patience > 0:
        raise ValueError(f"patience {patience!r}")
    return Plan(waves, _flag(document["halts"]), float(patience))


def _read_halted(document: Mapping[str, Any] | None, line: str, position: Position) -> Halted | None:
    if document is None:
        return None
    names = tuple(_text(each) for each in document["defenders"])
    return Halted(line, position, Cause(document["cause"]), names, _text(document["detail"]))


def _number(value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError(f"{value!r} is not a number from 0 to {most}")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value


def _names(value: Any) -> frozenset[str]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is not a list")
    return frozenset(_text(each) for each in value)
