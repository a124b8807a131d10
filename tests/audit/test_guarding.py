"""A whole defender whose spool fails: calls that change something are refused, others go on."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from defender.contract.local import Request, write_request
from tests.audit.base import Writing, WritingCase
from tests.fakes.engine import FakeEngine
from tests.proxying.running import RunningDefender, wait_until
from tests.spool import events_in, findings

CREATE = b"POST /v1.41/containers/create HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\n"
CREATE += b'Content-Length: 19\r\n\r\n{"Image":"busybox"}'
LIST = b"GET /v1.41/containers/json HTTP/1.1\r\nHost: docker\r\n\r\n"


class GuardingCase(WritingCase):
    def guard(self, settings: str, wrapper: list[str] | None = None) -> RunningDefender:
        folder = tempfile.mkdtemp(prefix="dfe-", dir="/tmp")
        self.addCleanup(os.rmdir, folder)
        engine = FakeEngine(f"{folder}/engine.sock").start()
        self.addCleanup(engine.stop)
        defender = RunningDefender(engine.path, settings={"audit": f"segment_bytes = 65536\n{settings}"})
        self.addCleanup(defender.stop)
        if wrapper:
            defender._limits = wrapper
        return defender.start()

    def ask(self, defender: RunningDefender, request: bytes) -> tuple[int, str]:
        """Status of the answer, and the message of a refusal."""
        peer = defender.tls()
        self.addCleanup(peer.close)
        answer = peer.ask(request)
        refused = answer.status >= 400
        return answer.status, json.loads(answer.body.data)["message"] if refused else ""

    def audit(self, defender: RunningDefender) -> dict[str, Any]:
        """What an operator sees of the spool."""
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(defender.state / "control.sock"))
            peer.sendall(write_request(Request("status")))
            with peer.makefile("rb") as answers:
                audit: dict[str, Any] = json.loads(answers.readline())["result"]["audit"]
                return audit


class FullDiskTests(GuardingCase):
    def full(self, settings: str = "") -> tuple[RunningDefender, Path]:
        """A defender whose spool is on a small disk, and the file with which somebody else fills that."""
        spool = self.directory.parent / "disk"
        spool.mkdir()
        mount = f"mount -t tmpfs -o size=512k,mode=0700 tmpfs {spool}"
        wrapper = ["unshare", "--mount", "--", "sh", "-c", f'{mount} && exec "$@"', "sh"]
        defender = self.guard(f'directory = "{spool}/audit"\n{settings}', wrapper)
        ballast = Path(f"/proc/{defender.pid}/root{spool}/ballast")
        wait_until(lambda: self.audit(defender)["segments"], "the spool is begun")
        self.assertEqual(self.ask(defender, CREATE)[0], 201)
        with ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                return defender, ballast

    def test_strict(self) -> None:
        defender, ballast = self.full()
        statuses: list[int] = []
        while not statuses or statuses[-1] == 201:
            status, message = self.ask(defender, CREATE)
            statuses.append(status)
        self.assertEqual(statuses[-1], 503)
        self.assertGreater(len(statuses), 20, "what was allocated before is used first")
        self.assertIn("cannot be recorded", message)
        self.assertIn("No space left on device", message)
        self.assertEqual(self.ask(defender, LIST), (200, ""))
        self.assertIn("No space left on device", self.audit(defender)["problem"])
        ballast.unlink()
        wait_until(lambda: not self.audit(defender)["problem"], "the disk is written again")
        self.assertEqual(self.ask(defender, CREATE)[0], 201)
        wait_until(lambda: not self.audit(defender)["waiting"], "all is on disk")
        spool = ballast.parent / "audit"
        self.assertEqual(findings(spool), [])
        events = events_in(spool)
        refused = [each for each in events if each.get("result", {}).get("status") == 503]
        self.assertEqual(len(refused), 1)
        self.assertEqual(defender.complaints, [])

    def test_best_effort(self) -> None:
        defender, _ = self.full('durability = "best_effort"')
        while not self.audit(defender)["problem"]:
            self.assertEqual(self.ask(defender, CREATE)[0], 201)
        for _ in range(3):
            self.assertEqual(self.ask(defender, CREATE)[0], 201)


class SharedSpoolTests(GuardingCase):
    def test_a_defender_whose_spool_is_in_use(self) -> None:
        first = Writing(self.directory, "segment=65536")
        self.addCleanup(first.close)
        first.until("segments", 0)
        wait_until((self.directory / "lock").exists, "the first one has it")
        defender = self.guard(f'directory = "{self.directory}"')
        wait_until(lambda: self.audit(defender)["problem"], "the second one has noticed")
        reason = f"the audit spool is in use by process {first.pid}"
        self.assertIn(reason, self.audit(defender)["problem"])
        status, message = self.ask(defender, CREATE)
        self.assertEqual(status, 503)
        self.assertIn(reason, message)
        self.assertEqual(self.ask(defender, LIST), (200, ""))
        self.assertIn(reason, defender.log)
        first.kill()
        wait_until(lambda: not self.audit(defender)["problem"], "the second one has the spool")
        self.assertEqual(self.ask(defender, CREATE)[0], 201)
