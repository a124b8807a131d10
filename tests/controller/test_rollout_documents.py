"""The kept state of a rollout comes back as it went, or not at all."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from controller.releases import (
    AT_ONCE,
    GRADUAL,
    Cause,
    Halted,
    LineState,
    Phase,
    Plan,
    Position,
    Release,
    Wave,
)
from controller.rollout_documents import DocumentError, dump_state, load_state

WHO = st.sampled_from(["a", "b", "c"])
POSITIONS = st.builds(Position, st.integers(0, 3), st.integers(0, 2**64 - 1))
RELEASES = st.builds(Release, POSITIONS, st.binary(max_size=32), POSITIONS, st.none() | st.frozensets(WHO))


@st.composite
def states(draw: st.DrawFn) -> LineState:
    release = draw(RELEASES)
    plan = draw(st.sampled_from([AT_ONCE, GRADUAL, Plan((Wave(3, 50),), patience=2.5)]))
    reached = draw(st.frozensets(WHO))
    halted = Halted("p", release.position, draw(st.sampled_from(Cause)), ("a", "b"), "schema: no")
    return LineState(
        line="p",
        release=release,
        base=draw(st.none() | RELEASES),
        plan=plan,
        phase=draw(st.sampled_from(Phase)),
        wave=draw(st.integers(0, len(plan.waves))),
        reached=reached,
        picked=frozenset(who for who in reached if draw(st.booleans())),
        proven=draw(st.booleans()),
        halted=draw(st.sampled_from([None, halted])),
        reissues=tuple(draw(st.lists(RELEASES, max_size=3))),
    )


class DocumentTests(SynchronousTestCase):
    good = dump_state(
        LineState("p", Release(Position(1, 2), b"d", Position(1, 2)), None, GRADUAL, Phase.RUNNING)
    )

    @given(states())
    def test_it_comes_back_as_it_went(self, state: LineState) -> None:
        self.assertEqual(load_state(dump_state(state)), state)

    def test_what_is_refused(self) -> None:
        def changed(**changes: Any) -> str:
            return json.dumps({**json.loads(self.good), **changes})

        release = json.loads(self.good)["release"]
        for text in (
            "",
            "[]",
            "[" * 100_000,
            changed(schema=2),
            changed(more=1),
            changed(phase="paused"),
            changed(wave=3),
            changed(wave=-1),
            changed(wave=True),
            changed(proven=1),
            changed(picked=["a"]),
            changed(reached="abc"),
            changed(reached=[1]),
            changed(line=None),
            changed(base=[]),
            changed(release={**release, "digest": "xy"}),
            changed(release={**release, "position": [1]}),
            changed(release={**release, "position": [1, 2**64]}),
            changed(plan={"waves": [[1, 101]], "halts": True, "patience": 60}),
            changed(plan={"waves": [], "halts": True, "patience": 0}),
            changed(halted={"cause": "mood", "defenders": [], "detail": ""}),
            changed(reissues=[None]),
        ):
            with self.assertRaises(DocumentError):
                load_state(text)
        self.assertEqual(load_state(changed()).plan, GRADUAL)

    @given(st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda e: st.lists(e, max_size=3)))
    def test_nothing_else_is_raised(self, value: object) -> None:
        for key in json.loads(self.good):
            try:
                load_state(json.dumps({**json.loads(self.good), key: value}))
            except DocumentError:
                pass
