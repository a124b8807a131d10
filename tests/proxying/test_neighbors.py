"""Requests next to the recorded ones: each gets the verdict of its canonical form, or is refused.

Three readers have to agree on what is let through: the defender, the pure readers that say what to expect,
and the fake Engine, which is as lenient as Go's and is sent the same bytes without a defender.
"""

from __future__ import annotations

import os
import pwd
import re
from urllib.parse import parse_qsl, unquote

from tests.fakes.engine import EngineRequest
from tests.proxying.base import OnFake
from tests.proxying.neighbors import GENERATORS
from tests.proxying.play import Played, Player
from tests.proxying.reading import Request
from tests.proxying.running import READABLE

_VERSION = re.compile(r"\A/v[0-9.]+(?=/)")


class NeighborTests(OnFake):
    """On the fake Engine."""

    def read_by_engine(self, raw: bytes) -> list[EngineRequest]:
        """What the fake makes of the same bytes."""
        before = len(self.engine.requests)
        peer = self.direct()
        peer.send(raw)
        if not peer.over:
            peer.end()
        peer.rest()
        peer.close()
        return self.engine.requests[before:]

    def assert_same(self, ours: Request, theirs: EngineRequest, what: str) -> None:
        """What was forwarded is what the Engine would have read from the client's own bytes."""
        path, _, query = ours.target.partition("?")
        self.assertEqual(ours.method, theirs.method, what)
        self.assertEqual(
            _VERSION.sub("", unquote(path, errors="strict")), _VERSION.sub("", theirs.path), what
        )
        pairs = [parse_qsl(text, keep_blank_values=True) for text in (query, theirs.query)]
        self.assertEqual(pairs[0], pairs[1], what)
        if ours.body.count:
            self.assertEqual(bytes(ours.body.data), bytes(theirs.body), what)

    def check(self, player: Player, name: str, raw: bytes) -> Played:
        played = player.play(raw, name)
        if any(step.forwarded for step in played.steps):
            theirs = self.read_by_engine(raw)
            for number, step in enumerate(played.steps):
                for request in step.forwarded:
                    if number >= len(theirs) and re.search(rb"xpect: *100-", raw) is not None:
                        continue  # the Engine ends a connection that promised a body it did not want
                    self.assertLess(number, len(theirs), f"{name}: more requests than the Engine reads")
                    self.assert_same(request, theirs[number], name)
        return played


def _count(generator: str, least: int) -> None:
    requests = list(next(g for g in GENERATORS if g.__name__ == generator)())

    def as_admin(self: NeighborTests) -> None:
        player = Player(self, pwd.getpwuid(os.geteuid()).pw_name)
        player.connect = self.defender.local
        for name, raw in requests:
            self.check(player, f"{generator}: {name}", raw)

    def as_reader(self: NeighborTests) -> None:
        player = Player(self, "reader", READABLE)
        # What is read is the same for all; of the sweeps over all bytes a sample is enough.
        for name, raw in requests[:: 7 if len(requests) > 1000 else 1]:
            player.play(raw, f"{generator}: {name}")

    assert len(requests) >= least, f"{generator}: {len(requests)}"
    setattr(NeighborTests, f"test_{generator}_as_one_who_may_do_everything", as_admin)
    setattr(NeighborTests, f"test_{generator}_as_one_who_may_only_look", as_reader)


for _generator in GENERATORS:
    _count(_generator.__name__, 10)
