"""The proxy one would write first: ``twisted.web`` on both sides, mutual TLS, the defender's policy decision.

The bench's second opponent. It does what such a proxy can: it reads whole bodies before it forwards them and
whole answers before it sends them on. Hijacked streams are beyond it.

    python -m tests.bench.web_proxy PORT ENGINE_SOCKET CHAIN KEY CLIENT_CA POLICY
"""

from __future__ import annotations

import re
import sys
from typing import Any
from urllib.parse import unquote

from OpenSSL import SSL
from twisted.internet import defer
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.ssl import Certificate as TLSCertificate
from twisted.internet.ssl import CertificateOptions, PrivateCertificate, TLSVersion, trustRootFromCertificates
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, readBody
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site
from zope.interface import implementer

from defender.contract.actions import recognize
from defender.contract.facts import Subject
from defender.contract.identity import TRUST_DOMAIN_DEFAULT, subject_of_certificate
from defender.contract.policy import PolicyTable
from defender.contract.policy_schema import load_policy

HOP_BY_HOP = (
    b"connection",
    b"keep-alive",
    b"transfer-encoding",
    b"upgrade",
    b"host",
    b"content-length",
    b"expect",
)


@implementer(IBodyProducer)
class WholeBody:
    """A request body that ``twisted.web`` has spooled already."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.length = len(data)

    def startProducing(self, consumer: Any) -> defer.Deferred[None]:  # noqa: N802 - IBodyProducer's name
        consumer.write(self.data)
        return defer.succeed(None)

    def pauseProducing(self) -> None: ...

    def resumeProducing(self) -> None: ...

    def stopProducing(self) -> None: ...


@implementer(IAgentEndpointFactory)
class EngineEndpoint:
    """Every request goes to the Engine's socket."""

    def __init__(self, reactor: Any, path: str) -> None:
        self._endpoint = UNIXClientEndpoint(reactor, path)

    def endpointForURI(self, uri: Any) -> UNIXClientEndpoint:  # noqa: N802 - IAgentEndpointFactory's name
        return self._endpoint


class Proxy(Resource):
    """The one resource: decide, then forward."""

    isLeaf = True  # noqa: N815 - twisted.web's name

    def __init__(self, reactor: Any, engine: str, table: PolicyTable) -> None:
        super().__init__()
        self._table = table
        self._subjects: dict[bytes, Subject] = {}
        pool = HTTPConnectionPool(reactor)
        pool.maxPersistentPerHost = 128
        self._agent = Agent.usingEndpointFactory(reactor, EngineEndpoint(reactor, engine), pool=pool)

    def render(self, request: Request) -> Any:
        """Answer 403 or start forwarding."""
        path = unquote(request.path.decode("latin-1"))
        operation, _ = recognize(request.method.decode("latin-1"), re.sub(r"\A/v1\.[0-9]+(?=/)", "", path))
        decision = self._table.decide(self._subject(request), operation)
        if not decision.allowed:
            request.setResponseCode(403)
            request.setHeader(b"Content-Type", b"application/json")
            return b'{"message":"[Defender] denied"}\n'
        headers = Headers()
        for name, values in request.requestHeaders.getAllRawHeaders():
            if name.lower() not in HOP_BY_HOP:
                headers.setRawHeaders(name, values)
        data = request.content.read() if request.content is not None else b""
        body = WholeBody(data) if data else None
        answered = self._agent.request(request.method, b"http://docker" + request.uri, headers, body)
        answered.addCallback(_answer, request)
        answered.addErrback(_fail, request)
        return NOT_DONE_YET

    def _subject(self, request: Request) -> Subject:
        certificate = request.channel.transport.getPeerCertificate()  # type: ignore[union-attr]
        fingerprint = certificate.digest("sha256")
        subject = self._subjects.get(fingerprint)
        if subject is None:
            known = subject_of_certificate(certificate.to_cryptography(), TRUST_DOMAIN_DEFAULT)
            subject = Subject(known.user, known.groups, address=request.getClientAddress().host)
            self._subjects[fingerprint] = subject
        return subject


def _answer(response: Any, request: Request) -> defer.Deferred[None]:
    request.setResponseCode(response.code, response.phrase)
    for name, values in response.headers.getAllRawHeaders():
        if name.lower() not in HOP_BY_HOP:
            request.responseHeaders.setRawHeaders(name, values)

    def send(body: bytes) -> None:
        request.setHeader(b"Content-Length", b"%d" % len(body))
        request.write(body)
        request.finish()

    read: defer.Deferred[bytes] = readBody(response)
    return read.addCallback(send)


def _fail(failure: Failure, request: Request) -> None:
    request.setResponseCode(502)
    request.finish()


def server_options(chain: str, key: str, client_ca: str) -> CertificateOptions:
    """Mutual TLS 1.3 as the defender's listener has it: client certificate required, no tickets."""
    with open(chain, "rb") as one, open(key, "rb") as two, open(client_ca, "rb") as three:
        pem, private, trusted = one.read(), two.read(), three.read()
    certificates = re.findall(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", pem, re.S)
    leaf = PrivateCertificate.loadPEM(certificates[0] + private)
    roots = re.findall(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", trusted, re.S)
    options = CertificateOptions(
        privateKey=leaf.privateKey.original,
        certificate=leaf.original,
        extraCertChain=[TLSCertificate.loadPEM(item).original for item in certificates[1:]],
        trustRoot=trustRootFromCertificates([TLSCertificate.loadPEM(item) for item in roots]),
        raiseMinimumTo=TLSVersion.TLSv1_3,
    )
    options.getContext().set_options(SSL.OP_NO_TICKET)
    return options


def main(arguments: list[str]) -> None:
    """Serve until terminated."""
    from twisted.internet import reactor

    port, engine, chain, key, client_ca, policy_file = arguments
    with open(policy_file, encoding="utf-8") as file:
        table = PolicyTable(load_policy(file.read(), policy_file), "bench")
    site = Site(Proxy(reactor, engine, table))
    site.noisy = False
    core: Any = reactor
    core.listenSSL(
        int(port), site, server_options(chain, key, client_ca), interface="127.0.0.1", backlog=1024
    )
    core.run()


if __name__ == "__main__":
    main(sys.argv[1:])
