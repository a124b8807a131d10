"""The client on a real loopback site with TLS: the API behind it stands on doubles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from cryptography import x509
from OpenSSL import SSL
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, DeferredList, gatherResults, maybeDeferred
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThreadPool
from twisted.protocols.policies import WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from controller.api.app import Api
from controller.api.catalog import ROUTES
from controller.api.ports import UnavailableError
from controller.api.site import ApiSite
from controller.cli.client import Client, ClientError, LinkError, UnreachedError, problem_error
from controller.cli.login import Login
from tests.controller.api.doubles import EVERYTHING, World, example
from tests.controller.sinks.receivers import Certificates
from tests.fakes.authority import Credentials
from tests.test_docs import ROOT

reactor: Any = _reactor

Act = Callable[[Client], Awaitable[Any]]

ACCOUNT = {"user": "bruce", "password": "tall glass of cold water", "roles": ["operator"]}


def event(seq: int) -> dict[str, Any]:
    """An event with a number."""
    made: dict[str, Any] = example("StoredEvent")["event"]
    return {**made, "seq": seq}


@implementer(IOpenSSLServerConnectionCreator)
class Tls:
    """The server's side of TLS."""

    def __init__(self, credentials: Credentials) -> None:
        self.context = SSL.Context(SSL.TLS_SERVER_METHOD)
        self.context.use_certificate(credentials.chain[0])
        for each in credentials.chain[1:]:
            self.context.add_extra_chain_cert(each)
        self.context.use_privatekey(credentials.key)

    def serverConnectionForTLS(self, protocol: object) -> SSL.Connection:  # noqa: N802
        """A connection."""
        connection = SSL.Connection(self.context, None)
        connection.set_accept_state()
        return connection


class Tracked(WrappingFactory):
    """Knows the connections of another factory, so that a test can cut them."""

    noisy = False

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.open: dict[Any, Deferred[None]] = {}

    def registerProtocol(self, protocol: Any) -> None:  # noqa: N802
        """One more; Twisted's TLS says so twice."""
        super().registerProtocol(protocol)
        self.open.setdefault(protocol, Deferred())

    def unregisterProtocol(self, protocol: Any) -> None:  # noqa: N802
        """One less."""
        super().unregisterProtocol(protocol)
        self.open.pop(protocol).callback(None)

    def cut(self) -> None:
        """End every connection."""
        for protocol in list(self.open):
            protocol.abortConnection()


class ClientTestCase(TestCase):
    """Has a controller."""

    timeout = 120.0

    def setUp(self) -> None:
        self.certificates = Certificates()
        self.world = World(ROUTES)
        self.api = Api(self.world.ports(), reactor, version="0", check_answers=True)
        self.site = ApiSite(self.api.resource(), reactor, self.api.dispatcher.metrics)
        self.serve(self.site, self.certificates.proper())

    def serve(self, factory: Any, credentials: Credentials, port: int = 0) -> None:
        """Listen, with this certificate."""
        self.tracked = Tracked(factory)
        tls = TLSMemoryBIOFactory(Tls(credentials), False, self.tracked)
        tls.noisy = False
        self.listening = reactor.listenTCP(port, tls, interface="127.0.0.1")
        self.port: int = self.listening.getHost().port

    async def stop(self) -> None:
        """Listen no more, and end what is open."""
        await maybeDeferred(self.listening.stopListening)
        waiting = list(self.tracked.open.values())
        self.tracked.cut()
        await gatherResults(waiting)

    def login(self, token: str = EVERYTHING, host: str = "localhost") -> Login:
        """A sign-in there."""
        authority = self.certificates.anchors.decode()
        return Login(f"https://{host}:{self.port}", authority, "admin", token)

    async def with_client(self, act: Act, login: Login | None = None) -> Any:
        """What `act` gives; afterwards nothing is open."""
        client = Client(reactor, login or self.login())
        try:
            return await act(client)
        finally:
            await client.close()
            await self.stop()

    async def failure(
        self, act: Callable[[Client], Awaitable[Any]], login: Login | None = None
    ) -> ClientError:
        """The error of `act`, one line without the token."""
        try:
            await self.with_client(act, login)
        except ClientError as error:
            self.assertEqual(len(str(error).splitlines()), 1)
            self.assertNotIn(EVERYTHING, str(error))
            return error
        raise AssertionError("nothing was refused")


class AskTests(ClientTestCase):
    """Single requests."""

    async def test_an_answer(self) -> None:
        async def act(client: Client) -> None:
            reply = await client.ask("GET", "/api/v1/policies/builders")
            self.assertEqual(
                (reply.status, reply.document["name"], reply.etag), (200, "builders", "12-8b1f2e6c")
            )
            body = {"text": "schema: 1\nrules: []\n"}
            saved = await client.ask("PUT", "/api/v1/policies/builders/draft", body=body, etag=reply.etag)
            self.assertEqual(saved.etag, "12-8b1f2e6cx")
            await client.ask("PUT", "/api/v1/policies/new/draft", body=body, absent=True)
            gone = await client.ask("DELETE", "/api/v1/locks/k7c3q")
            self.assertEqual((gone.status, gone.document), (204, None))

        await self.with_client(act)

    async def test_one_connection_serves_many_requests(self) -> None:
        async def act(client: Client) -> None:
            for _ in range(5):
                await client.ask("GET", "/api/v1/locks")
            self.assertEqual(len(self.tracked.open), 1)

        await self.with_client(act)

    async def test_queries(self) -> None:
        async def act(client: Client) -> None:
            query = {"name": "a b&c=\u00fc", "label": ["a=1", "b=2"], "limit": 7, "state": None}
            await client.ask("GET", "/api/v1/defenders", query=query)
            self.assertEqual(self.world.fleet.selected[-1].names, ("a b&c=\u00fc",))
            self.assertEqual(self.world.fleet.selected[-1].labels, {"a": "1", "b": "2"})

        await self.with_client(act)

    async def test_problems_are_one_line(self) -> None:
        error = await self.failure(lambda client: client.ask("POST", "/api/v1/locks", body={"kind": "usr"}))
        self.assertEqual(
            str(error),
            f"localhost:{self.port}: /kind must be one of user, group, serial, defender; /value is required",
        )
        self.assertEqual((error.status, error.code), (422, "invalid"))

    async def test_who_is_not_signed_in_is_told_how(self) -> None:
        error = await self.failure(lambda client: client.ask("GET", "/api/v1/locks"), self.login("wrong"))
        self.assertIn("(defenderctl login)", str(error))
        self.assertEqual(error.status, 401)

    async def test_pages_are_followed(self) -> None:
        cursors: list[str] = []

        def defenders(wanted: Any, page: Any) -> Any:
            cursors.append(page.cursor)
            found = example("DefenderPage")
            found["next"] = {"": "two", "two": "three"}.get(page.cursor)
            return Deferred.fromCoroutine(self._give(found))

        self.world.fleet.defenders = defenders  # type: ignore[method-assign]

        async def act(client: Client) -> int:
            return len([item async for item in client.pages("/api/v1/defenders")])

        self.assertEqual(await self.with_client(act), 3)
        self.assertEqual(cursors, ["", "two", "three"])

    async def _give(self, value: Any) -> Any:
        return value

    async def test_a_lost_answer_is_asked_for_once_more_and_acts_once(self) -> None:
        begun: Deferred[None] = Deferred()
        answers: list[Deferred[Any]] = []

        def slow(actor: Any, wanted: Any, allowed: Any) -> Deferred[Any]:
            self.world.accounts.created += 1
            answers.append(Deferred())
            begun.callback(None)
            return answers[-1]

        self.patch(self.world.accounts, "create_account", slow)

        async def act(client: Client) -> Any:
            asking: Deferred[Any] = Deferred.fromCoroutine(
                client.ask("POST", "/api/v1/accounts", body=ACCOUNT)
            )
            # Whichever is first: a request that fails before it begins shall fail the test, not its patience.
            either: list[Deferred[Any]] = [begun, asking]
            await DeferredList(either, fireOnOneCallback=True, fireOnOneErrback=True)
            self.tracked.cut()
            reactor.callLater(0, answers[0].callback, example("Account"))
            return await asking

        reply = await self.with_client(act)
        self.assertEqual((reply.status, self.world.accounts.created), (201, 1))


class PeerTests(ClientTestCase):
    """Who is at the other end."""

    async def test_a_certificate_without_names_is_refused_though_its_chain_holds(self) -> None:
        """Twisted's own check, and so treq's, lets it pass for every host."""
        await self.stop()
        heard: list[bytes] = []

        class Listener(Protocol):
            def dataReceived(self, data: bytes) -> None:
                heard.append(data)

        for names in (None, [x509.DNSName("other.example.com")]):
            self.serve(Factory.forProtocol(Listener), self.certificates.odd(names))
            error = await self.failure(lambda client: client.ask("GET", "/api/v1/locks"))
            self.assertIsInstance(error, UnreachedError)
            self.assertIn("not the peer that was meant", str(error))
        self.assertEqual(heard, [])

    async def test_another_authority_is_refused(self) -> None:
        login = self.login()
        other = Login(login.controller, Certificates().anchors.decode(), "admin", EVERYTHING)
        error = await self.failure(lambda client: client.ask("GET", "/api/v1/locks"), other)
        self.assertIn("certificate does not hold", str(error))

    async def test_nobody_there(self) -> None:
        await self.stop()
        error = await self.failure(lambda client: client.ask("GET", "/api/v1/locks"))
        self.assertIsInstance(error, UnreachedError)

    async def test_no_authority(self) -> None:
        login = Login(self.login().controller, "nonsense", "admin", EVERYTHING)
        self.assertRaises(ClientError, Client, reactor, login)
        await self.stop()


class StreamTests(ClientTestCase):
    """Long answers."""

    async def test_lines(self) -> None:
        self.world.audit.add(*(event(seq) for seq in range(1, 4)))
        seen: list[int] = []
        ended: Deferred[None] = Deferred()

        def take(line: dict[str, Any]) -> None:
            seen.append(line["event"]["seq"])
            if len(seen) == 4:
                self.world.audit.trouble = UnavailableError("the store is away")
                self.world.audit.add(event(5))

        async def act(client: Client) -> Any:
            return await client.follow("/api/v1/audit/stream", {"beginning": True}, take, interrupted)

        def interrupted(reason: str) -> None:
            self.assertEqual(reason, "the store is away")
            if not ended.called:
                ended.callback(None)
            self.world.audit.trouble = None
            self.world.accounts.ended.add(EVERYTHING)

        reactor.callLater(0, self.world.audit.add, event(4))
        error = await self.failure(act)
        self.assertEqual((error.status, seen), (401, [1, 2, 3, 4]))
        await ended

    async def test_a_stream_goes_on_where_it_was_cut(self) -> None:
        seen: list[int] = []
        reasons: list[str] = []
        done: Deferred[None] = Deferred()

        def take(line: dict[str, Any]) -> None:
            seen.append(line["event"]["seq"])
            if len(seen) == 2:
                self.tracked.cut()
                self.world.audit.add(event(3))
            elif len(seen) == 3:
                done.callback(None)

        async def act(client: Client) -> None:
            following = Deferred.fromCoroutine(
                client.follow("/api/v1/audit/stream", {"after": "0"}, take, reasons.append)
            )
            await done
            following.addErrback(lambda failure: None)
            following.cancel()

        self.world.audit.add(event(1), event(2))
        await self.with_client(act)
        self.assertEqual(seen, [1, 2, 3])
        self.assertEqual(len(reasons), 1)

    async def test_a_download(self) -> None:
        self.world.audit.add(*(event(seq) for seq in range(1, 1001)))
        data = bytearray()

        async def act(client: Client) -> None:
            await client.download("/api/v1/audit/export", {"format": "jsonl"}, data.extend)

        await self.with_client(act)
        self.assertEqual([json.loads(line)["seq"] for line in data.splitlines()], list(range(1, 1001)))

    async def test_a_download_that_is_cut_is_not_whole(self) -> None:
        self.world.audit.add(*(event(seq) for seq in range(1, 401)))
        after = self.world.audit.after

        def fail_later(position: str, *rest: Any, **more: Any) -> Any:
            if position:
                self.world.audit.trouble = UnavailableError("the store is away")
            return after(position, *rest, **more)

        self.world.audit.after = fail_later  # type: ignore[method-assign]
        error = await self.failure(
            lambda client: client.download("/api/v1/audit/export", None, lambda data: None)
        )
        self.assertIsInstance(error, LinkError)

    async def test_a_refused_download_says_why(self) -> None:
        error = await self.failure(
            lambda client: client.download("/api/v1/audit/export", {"format": "xls"}, lambda data: None)
        )
        self.assertIn("/format must be one of jsonl, csv", str(error))


class ProblemTests(SynchronousTestCase):
    """What other servers may say."""

    def test_whatever_it_is_it_is_one_line(self) -> None:
        odd = {"detail": "a\nb\x1b[2J", "errors": 3, "code": "invalid"}
        documents: tuple[Any, ...] = (None, [], {}, {"detail": 7}, odd)
        for document in documents:
            text = str(problem_error("host", 500, document))
            self.assertTrue(text.isprintable(), text)
            self.assertTrue(text.startswith("host: "))

    def test_a_fault_has_its_number(self) -> None:
        error = problem_error("host", 500, {"detail": "a fault", "instance": "urn:uuid:1"})
        self.assertEqual(str(error), "host: a fault (urn:uuid:1)")


PROGRAM = """
import sys
from controller.cli.client import ClientError, run
from controller.cli.login import Login
login = Login(sys.argv[1], sys.stdin.read(), "admin", sys.argv[2])
async def main(client):
    return (await client.ask("GET", "/api/v1/locks")).document["items"][0]["value"]
for _ in range(2):
    try:
        print(run(login, main))
    except ClientError as error:
        print("error:", error.status)
from twisted.internet import reactor
print(reactor.getDelayedCalls())
"""


class RunTests(ClientTestCase):
    """`run`, in a process of its own, since this one's reactor is busy."""

    async def outcome(self, token: str) -> list[str]:
        def program() -> bytes:
            return subprocess.run(
                [sys.executable, "-c", PROGRAM, self.login().controller, token],
                input=self.certificates.anchors,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                check=True,
            ).stdout

        output = await deferToThreadPool(reactor, reactor.getThreadPool(), program)
        await self.stop()
        return output.decode().split("\n")

    async def test_it_runs_again_and_again_and_leaves_the_global_reactor_alone(self) -> None:
        self.assertEqual(await self.outcome(EVERYTHING), ["bruce@example.com"] * 2 + ["[]", ""])

    async def test_errors_come_out(self) -> None:
        self.assertEqual(await self.outcome("wrong"), ["error: 401"] * 2 + ["[]", ""])
