"""Batches over real HTTPS: answers of every kind, slow receivers, receivers that go away."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from controller.peer_tls import peer_context
from controller.sinks.answers import Answer, Refused, Taken, TooLarge, Unavailable, judge
from controller.sinks.hec import HecFormat, judge_hec
from controller.sinks.https import MAX_ANSWER, HttpsReceiver
from controller.sinks.jsonl import event_line
from controller.sinks.webhook import Signer
from tests.controller.sinks.receivers import Asked, Certificates, HttpServer, Reply, event, reactor

SECRET = "whsec_a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="
LINES = [event_line(event(n)) for n in (1, 2)]


class HttpsReceiverTests(TestCase):
    """The request and its answer."""

    timeout = 60.0

    def setUp(self) -> None:
        self.certificates = Certificates()

    def serve(self, reply: Any = lambda asked: (200, {}, b"")) -> HttpServer:
        server = HttpServer(self.certificates.proper(), reply)
        self.addCleanup(server.stop)
        return server

    def receiver(self, server: HttpServer, **more: Any) -> HttpsReceiver:
        signer = Signer.from_text(SECRET)
        receiver = HttpsReceiver(
            reactor,
            server.url,
            peer_context(self.certificates.anchors),
            more.pop("post", signer.post),
            more.pop("judge", judge),
            wall=lambda: 1763763183.0,
            **more,
        )
        self.addCleanup(receiver.close)
        return receiver

    async def answer(self, reply: Reply, **more: Any) -> Answer:
        server = self.serve(lambda asked: reply)
        answer = await self.receiver(server, **more).deliver(1, LINES)
        self.assertEqual(len(server.asked), 1)
        return answer

    async def test_a_signed_batch_arrives(self) -> None:
        server = self.serve()
        self.assertEqual(await self.receiver(server).deliver(1, LINES), Taken())
        (asked,) = server.asked
        self.assertEqual(json.loads(asked.body), [event(1), event(2)])
        identity, stamp = asked.fields["webhook-id"], asked.fields["webhook-timestamp"]
        signature = Signer.from_text(SECRET).signature(identity, stamp, asked.body)
        self.assertEqual(asked.fields["webhook-signature"], signature)
        self.assertEqual(asked.fields["content-type"], "application/json")

    async def test_batches_share_a_connection(self) -> None:
        server = self.serve()
        receiver = self.receiver(server)
        for ticket in range(5):
            self.assertEqual(await receiver.deliver(ticket, LINES), Taken())
        self.assertEqual((len(server.asked), server.connected), (5, 1))

    async def test_answers(self) -> None:
        self.assertIsInstance(await self.answer((400, {}, b"no")), Refused)
        self.assertIsInstance(await self.answer((413, {}, b"")), TooLarge)
        self.assertEqual(
            await self.answer((503, {"Retry-After": "7"}, b"busy")),
            Unavailable("the receiver answered 503: busy", 7),
        )

    async def test_a_collectors_answers(self) -> None:
        form = HecFormat("0a1b2c3d-0000-1111-2222-333344445555")
        more = {"post": form.post, "judge": judge_hec, "hidden": (form.token,)}
        said = b'{"text":"Invalid data format","code":6,"invalid-event-number":1}'
        self.assertEqual(
            await self.answer((400, {}, said), **more),
            Refused("the receiver answered 400: Invalid data format", 1),
        )
        self.assertEqual(await self.answer((200, {}, b'{"text":"Success","code":0}'), **more), Taken())

    async def test_a_receiver_that_repeats_the_token_does_not_make_us_repeat_it(self) -> None:
        form = HecFormat("0a1b2c3d-0000-1111-2222-333344445555")

        def echo(asked: Asked) -> Reply:
            return 403, {}, json.dumps({"code": 4, "text": asked.fields["authorization"]}).encode()

        server = self.serve(echo)
        receiver = self.receiver(server, post=form.post, judge=judge_hec, hidden=(form.token,))
        answer = await receiver.deliver(1, LINES)
        assert isinstance(answer, Unavailable)
        self.assertIn("[hidden]", answer.reason)
        self.assertNotIn(form.token, answer.reason)

    async def test_a_redirection_takes_nothing_elsewhere(self) -> None:
        other = self.serve()
        server = self.serve(lambda asked: (307, {"Location": other.url}, b""))
        answer = await self.receiver(server).deliver(1, LINES)
        self.assertIsInstance(answer, Unavailable)
        self.assertEqual(other.asked, [])

    async def test_a_receiver_that_does_not_answer_is_given_up(self) -> None:
        server = self.serve(lambda asked: Deferred())
        answer = await self.receiver(server, timeout=0.3).deliver(1, LINES)
        self.assertEqual(answer, Unavailable("no answer within 0.3 s"))

    async def test_one_that_does_not_end_its_answer_is_given_up(self) -> None:
        server = self.serve(lambda asked: (200, {"Content-Length": "50"}, b"begun"))
        answer = await self.receiver(server, timeout=0.3).deliver(1, LINES)
        self.assertEqual(answer, Unavailable("no answer within 0.3 s"))

    async def test_an_endless_answer_is_cut(self) -> None:
        answer = await self.answer((200, {}, b"x" * (MAX_ANSWER + 1)))
        self.assertEqual(answer, Unavailable(f"its answer is longer than {MAX_ANSWER} octets"))

    async def test_endless_header_fields_are_cut(self) -> None:
        fields = {f"X-{n}": "x" * 8000 for n in range(10)}
        answer = await self.answer((200, fields, b""))
        self.assertEqual(answer, Unavailable(f"its answer is longer than {MAX_ANSWER} octets"))

    async def test_the_bound_is_one_answers_not_the_connections(self) -> None:
        server = self.serve(lambda asked: (200, {}, b"x" * (MAX_ANSWER // 2)))
        receiver = self.receiver(server)
        for ticket in range(4):
            self.assertEqual(await receiver.deliver(ticket, LINES), Taken())
        self.assertEqual(server.connected, 1)

    async def test_one_that_goes_away_is_tried_again(self) -> None:
        server = self.serve()

        def leave(asked: Asked) -> Deferred[Reply]:
            for connection in list(server.connections):
                connection.transport.abortConnection()
            return Deferred()

        server.reply = leave
        receiver = self.receiver(server)
        answer = await receiver.deliver(1, LINES)
        assert isinstance(answer, Unavailable)
        self.assertIn("the connection ended before the answer", answer.reason)
        server.reply = lambda asked: (200, {}, b"")
        self.assertEqual(await receiver.deliver(2, LINES), Taken())
        one, two = server.asked
        self.assertEqual(one.fields["webhook-id"], two.fields["webhook-id"])

    async def test_nobody_there(self) -> None:
        server = self.serve()
        await server.stop()
        answer = await self.receiver(server).deliver(1, LINES)
        assert isinstance(answer, Unavailable)
        self.assertIn("localhost: cannot connect", answer.reason)

    async def test_a_certificate_without_names_gets_no_event_and_no_secret(self) -> None:
        """Twisted's own Agent would have sent both."""
        server = HttpServer(self.certificates.odd(None))
        self.addCleanup(server.stop)
        answer = await self.receiver(server).deliver(1, LINES)
        assert isinstance(answer, Unavailable)
        self.assertIn("(san)", answer.reason)
        self.assertEqual(server.asked, [])

    async def test_a_request_that_is_no_longer_wanted_ends(self) -> None:
        server = self.serve(lambda asked: Deferred())
        receiver = self.receiver(server)
        delivering = receiver.deliver(1, LINES)
        await server.until(1)
        delivering.cancel()
        await delivering.addErrback(lambda _: None)
        await server.stop()
