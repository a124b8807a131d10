"""Every recorded request through the whole defender: what reaches the Engine, and what it says to it."""

from __future__ import annotations

import json
from typing import ClassVar

from deploy.docker_api import call, connection
from tests.proxying.base import OnFake, OnReal, ProxyCase
from tests.proxying.play import Played, Player
from tests.proxying.reading import Request
from tests.proxying.running import READABLE
from tests.vectors import GROUPS, REFUSED, VECTORS, Vector

EXEC = {"AttachStdin": True, "AttachStdout": True, "AttachStderr": True, "Cmd": ["cat"]}
OTHER_STATE = {
    "ROUTE-074": "names the first digits of an id",
}
"""Vectors whose recorded status hangs on state of the recording Engine that a test does not make."""


def replayed(request: Request) -> bytes:
    """The bytes of a request that was forwarded, to send them once more."""
    body = bytes(request.body.data)
    if request.framing == "chunked":
        body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
    return request.raw_head + body


class Bodies:
    """Run on both Engines below."""

    class Vectors(ProxyCase):
        """The recorded vectors, raw over TLS."""

        recorded: ClassVar[bool] = False

        def new_exec(self) -> str:
            """Create an exec that has not run yet; its id."""
            raise NotImplementedError

        def filled(self, vector: Vector) -> bytes:
            return vector.filled({"EXEC": self.new_exec()} if "EXEC" in vector.placeholders else {})

        def status_of(self, request: Request) -> int:
            """What the Engine itself says to a request that was forwarded."""
            raw = replayed(request).replace(b"rsch1", b"rsch2")  # a session's id is taken while it is open
            if request.target.startswith("/v1.41/exec/") and len(request.target) == 82:
                old = request.target.split("/")[3].encode()
                raw = raw.replace(old, self.new_exec().encode())
            peer = self.direct()
            try:
                return peer.send(raw).head(request.method).status
            finally:
                peer.close()

        def compare(self, vector: Vector, played: Played) -> None:
            """The Engine's verdict of the canonical form is the one that came through the defender."""
            for step in played.steps:
                if step.forwarded:
                    self.assertEqual(step.answer.status, self.status_of(step.forwarded[0]), vector.id)

        def check_as_admin(self, group: str) -> None:
            player = Player(self)
            for vector in VECTORS:
                if vector.group != group:
                    continue
                played = player.play(self.filled(vector), vector.id)
                self.assertIn(played.outcome, vector.expected, vector.id)
                self.compare(vector, played)
                self.compare_with_recording(vector, played)

        def compare_with_recording(self, vector: Vector, played: Played) -> None:
            """What runs gets the status that was recorded on an Engine of this version."""
            fact = str(vector.facts.get("engine_20_10_24", {}).get("status", ""))
            runs = played.outcome[0] not in (REFUSED, "unknown")
            if self.recorded and runs and fact and vector.id not in OTHER_STATE:
                self.assertEqual(played.steps[0].answer.status, int(fact[9:12]), vector.id)

        def check_as_reader(self, group: str) -> None:
            player = Player(self, "reader", READABLE)
            for vector in VECTORS:
                if vector.group == group:
                    played = player.play(self.filled(vector), vector.id)
                    for step in played.steps:
                        for request in step.forwarded:
                            path = request.target.partition("?")[0]
                            self.assertRegex(path, r"\A/v1\.[0-9]+/(_ping|containers/json)\Z", vector.id)


for _group in GROUPS:

    def _as_admin(self: Bodies.Vectors, group: str = _group) -> None:
        self.check_as_admin(group)

    def _as_reader(self: Bodies.Vectors, group: str = _group) -> None:
        self.check_as_reader(group)

    setattr(Bodies.Vectors, f"test_{_group.lower()}_as_one_who_may_do_everything", _as_admin)
    setattr(Bodies.Vectors, f"test_{_group.lower()}_as_one_who_may_only_look", _as_reader)


class FakeVectors(OnFake, Bodies.Vectors):
    """On the fake Engine."""

    def new_exec(self) -> str:
        return self.engine.add_exec({"AttachStdin": True})


class RealVectors(OnReal, Bodies.Vectors):
    """On the real Engine."""

    recorded = True
    container: ClassVar[str]

    @classmethod
    def setUpClass(cls) -> None:
        """Make what the recording Engine had."""
        super().setUpClass()
        cls._call("POST", "/images/busybox/tag?repo=bb")
        cls.addClassCleanup(cls._call, "DELETE", "/images/bb")
        for name in ("rsch-run", "rsch-stopped"):
            options = {"Image": "busybox", "Cmd": ["cat"], "OpenStdin": True}
            created = cls._call("POST", f"/containers/create?name={name}", options)
            cls.addClassCleanup(cls._call, "DELETE", f"/containers/{created['Id']}?force=1")
        cls._call("POST", "/containers/rsch-run/start")

    @classmethod
    def _call(cls, method: str, path: str, body: object = None) -> dict[str, str]:
        link = connection(f"unix://{cls.engine_path}")
        if body is None:
            answer = call(link, method, path)
        else:
            kind = {"Content-Type": "application/json"}
            answer = call(link, method, path, json.dumps(body).encode(), **kind)
        return answer if isinstance(answer, dict) else {}

    def new_exec(self) -> str:
        return self._call("POST", "/containers/rsch-run/exec", EXEC)["Id"]

    def compare(self, vector: Vector, played: Played) -> None:
        self.forget_created(played)
        super().compare(vector, played)
        self.forget_created(played)

    def forget_created(self, played: Played) -> None:
        """Remove the container that a vector made, so that its name is free."""
        if played.outcome == ("container_create",):
            self._call("DELETE", "/containers/rsch-n1?force=1")
