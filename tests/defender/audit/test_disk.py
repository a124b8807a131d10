"""The thread that the spool's disk work is done in."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.trial.unittest import TestCase

from defender.audit.commands import Open, Survey
from defender.audit.disk import DiskThread
from defender.audit.store import Answer, Opening, Store, There
from tests.defender.audit.disks import SEGMENT


class DiskThreadTests(TestCase):
    @inlineCallbacks
    def test_answer_that_cannot_be_used_is_not_the_last(self) -> Any:
        disk = DiskThread(Store(Path(self.mktemp()), "web1", segment_bytes=SEGMENT), reactor)
        self.addCleanup(disk.stop)
        answers: list[Answer] = []
        second: Deferred[Answer] = Deferred()

        def refuse(answer: Answer) -> None:
            answers.append(answer)
            raise ValueError("no use for it")

        disk.submit(Open(), refuse)
        disk.submit(Survey(), second.callback)
        answers.append((yield second))
        self.assertEqual([type(answer) for answer in answers], [Opening, There])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_thread_that_has_ended_is_found(self) -> None:
        disk = DiskThread(Store(Path(self.mktemp()), "web1", segment_bytes=SEGMENT), reactor)
        self.assertEqual(disk.check(), "", "not started is not ended")
        disk._thread = threading.Thread(target=lambda: None)
        disk.submit(Open(), lambda _: None)
        self.addCleanup(os.close, disk.fileno())
        self.addCleanup(disk.stop)
        disk._thread.join()
        self.assertEqual(disk.check(), "the thread of the audit disk has ended")
