"""The control socket: who may use it, what it does, and what is noted of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.trial.unittest import TestCase

from defender.contract.errors import ContractError
from defender.contract.local import MAX_LINE, Answer
from defender.listener.acceptor import listen_privately
from defender.local import control
from defender.local.control import ControlService, Verb

reactor: Any = global_reactor


class Trail:
    """A recorder that keeps everything."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def record(self, event: dict[str, Any]) -> None:
        self.events.append(event)


class Control(TestCase):
    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.path = str(self.folder / "control.sock")
        self.trail = Trail()
        self.asked: list[Mapping[str, object]] = []
        self.patch(ControlService, "log", Logger(observer=lambda event: None))  # type: ignore[arg-type]

    def serve(self, owner: int | None = None, **verbs: Verb) -> ControlService:
        service = ControlService(
            reactor,
            lambda took: listen_privately(reactor, self.path, took),
            verbs,
            self.trail,
            owner=owner,
        )
        service.startService()

        async def stop() -> None:
            if service.running:
                service.stopService()
            while service._lines:
                moment: Deferred[None] = Deferred()
                reactor.callLater(0.01, moment.callback, None)
                await moment

        self.addCleanup(lambda: Deferred.fromCoroutine(stop()))
        return service

    def threaded(self, call: Callable[[], Any]) -> Deferred[Any]:
        return deferToThreadPool(reactor, reactor.getThreadPool(), call)

    async def tell(self, *data: bytes) -> list[Any]:
        """Send bytes, end, and return the answers."""

        def talk() -> bytes:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(20)
                client.connect(self.path)
                # Who is refused may find the socket closed already, with the answer in it.
                with contextlib.suppress(BrokenPipeError):
                    for piece in data:
                        client.sendall(piece)
                answers = b""
                while answers.count(b"\n") < len(b"".join(data).splitlines()):
                    piece = client.recv(65536)
                    if not piece:
                        break
                    answers += piece
                return answers

        return [json.loads(line) for line in (await self.threaded(talk)).splitlines()]


class Using(Control):
    def test_the_file_is_private(self) -> None:
        self.serve()
        self.assertEqual(stat.S_IMODE(os.lstat(self.path).st_mode), 0o600)

    async def test_a_verb_is_performed_and_noted(self) -> None:
        def switch(arguments: Mapping[str, object]) -> Deferred[Answer]:
            self.asked.append(arguments)
            return succeed(Answer(True, {"outcome": "switched"}))

        self.serve(listener_set=switch)
        answers = await self.tell(b'{"verb":"listener_set","mode":"unix","drain":5}\n')
        self.assertEqual(answers, [{"ok": True, "result": {"outcome": "switched"}}])
        self.assertEqual(self.asked, [{"mode": "unix", "drain": 5.0}])
        [event] = self.trail.events
        self.assertEqual((event["kind"], event["req"]["action"]), ("control", "listener_set"))
        self.assertEqual(event["req"]["fields"], {"mode": "unix", "drain": 5.0})
        self.assertEqual((event["actor"]["uid"], event["actor"]["pid"]), (os.getuid(), os.getpid()))
        self.assertEqual(event["result"], {"ok": True, "detail": "switched"})

    async def test_several_requests_in_pieces_are_answered_in_order(self) -> None:
        later: Deferred[Answer] = Deferred()
        self.serve(status=lambda _: later, reload=lambda _: Answer(True, {"said": []}))
        reactor.callLater(0.05, later.callback, Answer(True, {"n": 1}))
        answers = await self.tell(b'{"verb":"sta', b'tus"}\n{"verb":"reload"}\n')
        self.assertEqual([answer["result"] for answer in answers], [{"n": 1}, {"said": []}])

    async def test_a_coroutine_may_answer(self) -> None:
        async def status(_: Mapping[str, object]) -> Answer:
            return Answer(True, {"n": 2})

        self.serve(status=status)
        self.assertEqual((await self.tell(b'{"verb":"status"}\n'))[0]["result"], {"n": 2})

    async def test_failures_are_said_and_noted(self) -> None:
        def broken(_: Mapping[str, object]) -> Answer:
            raise RuntimeError("secret")

        def refusing(_: Mapping[str, object]) -> Answer:
            raise ContractError("no such file")

        self.serve(status=broken, reload=refusing, lock_list=lambda _: Answer(False, {}, "no"))
        answers = await self.tell(b'{"verb":"status"}\n{"verb":"reload"}\n{"verb":"lock_list"}\n')
        errors = [answer["error"] for answer in answers]
        self.assertEqual(errors, ["internal error; the defender's log says more", "no such file", "no"])
        self.assertEqual([event["result"]["ok"] for event in self.trail.events], [False] * 3)

    async def test_a_verb_that_this_defender_lacks(self) -> None:
        self.serve()
        self.assertIn("does not do reload", (await self.tell(b'{"verb":"reload"}\n'))[0]["error"])


class Refusing(Control):
    async def test_another_uid_is_told_and_noted(self) -> None:
        service = self.serve(status=lambda _: Answer(True))
        service._allowed = frozenset({12345})
        [answer] = await self.tell(b'{"verb":"status"}\n')
        self.assertIn("only root and the defender's own user", answer["error"])
        [event] = self.trail.events
        self.assertIn(f"uid {os.getuid()}", event["decision"]["reason"])
        self.assertFalse(event["result"]["ok"])

    def test_root_and_the_owner_are_let_in(self) -> None:
        self.assertEqual(self.serve(owner=1234)._allowed, {0, 1234})

    async def test_what_cannot_be_read_is_said_noted_and_ends_the_line(self) -> None:
        self.serve(status=lambda _: Answer(True))
        for line in (b"x\n", b'{"verb":"shutdown"}\n', b"y" * (MAX_LINE + 2)):
            answers = await self.tell(line, b'{"verb":"status"}\n')
            self.assertEqual([answer["ok"] for answer in answers], [False])
        self.assertEqual(len(self.trail.events), 3)

    async def test_a_silent_peer_is_cut(self) -> None:
        self.patch(control, "TIMEOUT", 0.05)
        self.serve()
        self.assertEqual(await self.tell(b'{"verb"'), [])

    async def test_more_than_a_few_connections_are_refused(self) -> None:
        self.patch(control, "MAX_CONNECTIONS", 1)
        service = self.serve(status=lambda _: Answer(True))
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(self.path)
            while not service._lines:
                moment: Deferred[None] = Deferred()
                reactor.callLater(0.01, moment.callback, None)
                await moment
            [answer] = await self.tell(b'{"verb":"status"}\n')
            self.assertIn("1 connections are open", answer["error"])

    async def test_requests_may_not_pile_up(self) -> None:
        service = self.serve(status=lambda _: Deferred())
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(self.path)
            client.sendall(b'{"verb":"status"}\n' * 20)
            client.settimeout(20)

            def ended() -> bytes:
                try:
                    return client.recv(1)
                except ConnectionResetError:
                    return b""

            self.assertEqual(await self.threaded(ended), b"")
        self.assertEqual(service._lines, set())

    def test_a_path_that_is_taken_is_said_and_the_service_goes_on(self) -> None:
        Path(self.path).write_text("")
        service = self.serve()
        self.assertIn("not a socket", service.problem)
        service.stopService()

    def test_a_stop_removes_the_socket(self) -> None:
        self.serve().stopService()
        self.assertFalse(os.path.lexists(self.path))
