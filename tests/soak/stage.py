"""What a soak runs on: an Engine, a defender in front of it, and what their operator does to them."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import tarfile
import time
from collections.abc import Callable, Mapping
from typing import Any

from controller.cli.local import ask
from defender.contract.local import make_request
from deploy.processes import wait_until
from tests.engine.dockerd import client_environment, docker_clis, engine
from tests.engine.guarded import Guarded, certificates, scratch
from tests.soak.samples import Sample, cpu_seconds, descriptors, elapsed, engine_side, memory, quantiles
from tests.soak.work import Books, Weather, WorkError

SEGMENT = 128 * 1024
SPOOL = 8 * SEGMENT
"""Small, so that the spool rotates many times."""

BRUCE = "bruce@example.com"
LOCKED = "mallory@example.com"
EXACT = ("reader-1@example.com", "reader-2@example.com", "newcomer@example.com", "probe@example.com", LOCKED)
"""Users whose every request is counted at both ends, and the denied ones of `STRANGER` with them."""
STRANGER = "stranger@example.com"

_RULES = f"""\
  - {{name: admins, users: [admin], effect: allow}}
  - {{name: local, users: [root], via: [unix], effect: allow}}
  - name: readers
    users: [{", ".join(EXACT)}]
    effect: allow
    actions: [docker_ping, docker_version, docker_info, container_list, container_inspect, image_list]
  - {{name: bruce, users: [{BRUCE}], effect: allow, durability: best_effort, actions: ["container_*"]}}
"""
POLICY = f"schema: 1\nrules:\n{_RULES}"
NOT_BRUCE = f"""\
schema: 1
rules:
  - {{name: no_bruce, users: [{BRUCE}], effect: deny, actions: [container_exec_start]}}
{_RULES}"""
BROKEN = POLICY.replace("effect: allow", "effect: perhaps", 1)

LARGE = 16 * 1024 * 1024
_BUGS = ("Traceback", "Unhandled", "raised; ", "unforeseen", "failed; it is cut")
PATIENCE = 60.0
DRAIN_PATIENCE = 120.0

SETTINGS: Mapping[str, str] = {
    "audit": f"segment_bytes = {SEGMENT}\nmax_bytes = {SPOOL}",
    "limits": "spool_share = 0",  # of so small a spool every share is used up at once
    "engine": "pool = 8",
}


class Stage:
    """An Engine and a defender; `open` starts them."""

    def __init__(self, *, settings: Mapping[str, str] = SETTINGS, wrapper: tuple[str, ...] = ()) -> None:
        self.weather = Weather()
        self.books = Books()
        self.engine = engine()
        self.defender = Guarded(policy=POLICY, settings=settings, wrapper=wrapper)
        self.large = scratch() / "large"
        self._boxes: dict[str, tuple[str, ...]] = {
            "box": ("sleep", "1000000"),
            "talker": ("sh", "-c", "while true; do date; usleep 200000; done"),
        }

    def open(self) -> Stage:
        """Start the defender, and make the images and containers that the work needs."""
        for user in (*EXACT, BRUCE, STRANGER):
            certificates(user)
        with tarfile.open(self.large, "w") as archive:
            member = tarfile.TarInfo("random")
            member.size = LARGE
            archive.addfile(member, io.BytesIO(os.urandom(LARGE)))
        self.direct("import", str(self.large), "large")
        for name, command in self._boxes.items():
            run = ("run", "-d", "--network=none", "--stop-signal=KILL", "--log-opt=max-size=1m")
            self.direct(*run, "--name", name, "busybox", *command)
        self.defender.start()
        return self

    def close(self) -> None:
        """End the defender, and leave the Engine, which ends with this process, to the next stage."""
        self.defender.stop()
        with contextlib.suppress(AssertionError):  # one that was never made, or whose Engine is gone
            self.direct("rm", "-f", *self._boxes)

    def direct(self, *arguments: str) -> None:
        """Run a docker command past the defender."""
        docker_clis()[-1].run(*arguments, environment=client_environment(self.engine.address))

    # -- what the operator does

    def ask(self, verb: str, **arguments: object) -> Mapping[str, Any]:
        """Ask the defender over its control socket; raises `WorkError` with its reason."""
        answer = ask(self.defender.state / "control.sock", make_request(verb, arguments))
        if not answer.ok:
            raise WorkError(f"{verb}: {answer.error}")
        return answer.result

    def status(self) -> Mapping[str, Any]:
        """How it is."""
        return self.ask("status")

    def _until(self, holds: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
        if not wait_until(holds, patience, 0.1):
            raise WorkError(f"not within {patience:g} s: {what}")

    def switch_listeners(self) -> None:
        """Close the unix listener, and open it again."""
        with self.weather.disturbed("unix"):
            self.ask("listener_set", mode="tcp")
            time.sleep(3)
            self.ask("listener_set", mode="unix+tcp")

    def _offer(self, text: str) -> None:
        before = self.status()["policy"]
        self.defender.policy.write_text(text, "utf-8")
        self._until(lambda: self.status()["policy"] != before, "the policy is read")

    def change_policy(self) -> None:
        """Deny bruce his streams for a while."""
        with self.weather.disturbed("policy"):
            self._offer(NOT_BRUCE)
            time.sleep(1)
            self._offer(POLICY)

    def break_policy(self) -> None:
        """Offer a policy that cannot be read; nothing may come of it."""
        self._offer(BROKEN)
        time.sleep(1)
        self._offer(POLICY)

    def lock(self) -> None:
        """Lock a user out for a while."""
        self.ask("lock_add", kind="user", value=LOCKED)
        time.sleep(3)
        self.ask("lock_remove", kind="user", value=LOCKED)

    def hang_up(self) -> None:
        """Have it read everything again."""
        os.kill(self.defender.pid, signal.SIGHUP)

    def stall_engine(self) -> None:
        """Stop the Engine in its tracks for a moment."""
        process = self.engine.process()
        if process is None:
            raise WorkError("the Engine does not run")
        os.kill(process.pid, signal.SIGSTOP)
        try:
            time.sleep(2)
        finally:
            os.kill(process.pid, signal.SIGCONT)

    def restart_engine(self) -> None:
        """Stop the Engine, start it, and start the containers that were running."""
        with self.weather.disturbed("engine"):
            self.engine.stop()
            self.engine.start()
            self.direct("start", *self._boxes)

    # -- what is seen

    def sample(self, since: float) -> Sample:
        """Look at everything; `since` is the begin of the phase."""
        defender, process = self.defender, self.engine.process()
        status = self.status()
        anonymous, whole = memory(defender.pid)
        kept = ("listener", "engine", "clients", "counters", "audit")
        try:
            files = len(os.listdir(f"/proc/{process.pid}/fd")) if process is not None else 0
        except FileNotFoundError:
            files = 0
        return Sample(
            at=elapsed(since),
            rss_anon=anonymous,
            rss=whole,
            cpu=round(cpu_seconds(defender.pid), 2),
            descriptors=descriptors(
                defender.pid,
                port=defender.port,
                unix=defender.socket,
                control=defender.state / "control.sock",
            ),
            engine_side=engine_side(self.engine.socket),
            engine_files=files,
            status={key: status[key] for key in kept},
            probe=quantiles(self.books.take_round_trips()),
            load=self.books.load(),
        )

    def drained(self) -> bool:
        """Whether nobody is connected, and every Engine connection is an idle one."""
        status = self.status()
        pool = status["engine"]
        return bool(
            status["clients"] == {"connections": 0, "streams": 0}
            and status["listener"]["connections"] == 0
            and pool["connections"] == pool["idle"]
            and status["audit"]["waiting"] == 0
        )

    def drain(self) -> bool:
        """Wait for it; False when it takes too long."""
        return wait_until(self.drained, DRAIN_PATIENCE, 0.5)

    def complaints(self) -> list[str]:
        """Lines of the defender's log, rotated ones too, that tell of a bug."""
        files = sorted(self.defender.state.glob(f"{self.defender.log.name}*"))
        lines = "".join(file.read_text("utf-8", "replace") for file in files).splitlines()
        return [line for line in lines if any(mark in line for mark in _BUGS)]
