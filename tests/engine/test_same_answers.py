"""What the defender passes on is what the Engine said: status, headers and body, byte for byte."""

from __future__ import annotations

import http.client
import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from deploy.docker_api import connection
from tests.engine.clients import shared_box
from tests.engine.dockerd import engine
from tests.engine.guarded import certificates, guarded

ROUTES = (
    "GET /_ping",
    "HEAD /_ping",
    "GET /version",
    "GET /v1.24/version",
    "GET /v1.41/version",
    "GET /images/json",
    "GET /v1.41/images/json?all=1&digests=1",
    "GET /images/json?filters=%7B%22reference%22%3A%5B%22busy*%22%5D%7D",
    "GET /images/busybox/json",
    "GET /images/busybox:latest/history",
    "GET /images/no/such/image/json",
    "GET /containers/json",
    "GET /v1.30/containers/json?all=1&size=1",
    "GET /v1.41/containers/BOX/json",
    "GET /v1.41/containers/BOX/json?size=true",
    "GET /v1.41/containers/BOX/changes",
    "GET /v1.41/containers/BOX/top?ps_args=-o%20pid,args",
    "GET /v1.41/containers/BOX/logs?stdout=1&stderr=1",
    "GET /v1.41/containers/BOX/logs",
    "GET /v1.41/containers/BOX/archive?path=/etc/passwd",
    "HEAD /v1.41/containers/BOX/archive?path=/etc/passwd",
    "HEAD /v1.41/containers/BOX/archive?path=/no/such",
    "GET /v1.41/containers/BOX/archive?path=/etc",
    "GET /v1.41/containers/no-such/json",
    "GET /networks",
    "GET /networks/bridge",
    "GET /networks/bridge?verbose=true&scope=local",
    "GET /v1.41/networks/no-such",
    "GET /volumes",
    "GET /volumes/no-such",
    "GET /plugins",
    "GET /v1.41/plugins/no-such/json",
    "GET /swarm",
    "GET /services",
    "GET /nodes",
    "GET /tasks",
    "GET /secrets",
    "GET /configs",
    "GET /system/df",
    "GET /v1.41/events?since=1&until=2",
    "GET /v1.41/exec/no-such/json",
    "GET /v1.41/distribution/127.0.0.1:1/x/json",
    "POST /v1.41/containers/no-such/start",
    "POST /v1.41/containers/no-such/kill?signal=HUP",
    "DELETE /v1.41/containers/no-such?force=1",
    "DELETE /v1.41/images/no-such",
)

Answer = tuple[int, str, dict[str, str], bytes]


def ask(link: http.client.HTTPConnection, route: str) -> Answer:
    """Make one call and return status, reason, headers and body; the connection stays open."""
    method, _, target = route.partition(" ")
    link.putrequest(method, target, skip_accept_encoding=True)
    link.putheader("Connection", "keep-alive")
    if method == "POST":
        link.putheader("Content-Length", "0")
    link.endheaders()
    response = link.getresponse()
    headers = {name: value for name, value in response.getheaders() if name != "Date"}
    return response.status, response.reason, headers, response.read()


def shuffled(answer: Answer) -> Answer:
    """Return an answer without the order of its lists: the Engine gives images of one second in any order."""
    return (*answer[:3], bytes(sorted(answer[3])))


class SameAnswerTests(SynchronousTestCase):
    """Each route asked of the Engine and of the defender, on one connection each."""

    def links(self) -> tuple[http.client.HTTPConnection, list[tuple[str, http.client.HTTPConnection]]]:
        defender = guarded()
        direct = connection(engine().address)
        through = [
            ("tls", connection(defender.tcp_address, certificates("admin"))),
            ("unix", connection(defender.unix_address)),
        ]
        for link in (direct, *(link for _, link in through)):
            self.addCleanup(link.close)
        return direct, through

    def test_every_route(self) -> None:
        direct, through = self.links()
        box = shared_box()
        for route in ROUTES:
            call = route.replace("BOX", box)
            expected = ask(direct, call)
            for name, link in through:
                answer = ask(link, call)
                if answer != expected:
                    answer, expected = shuffled(answer), shuffled(expected)
                self.assertEqual(answer, expected, f"{name}: {route}")

    def test_info_but_for_what_is_counted_at_that_moment(self) -> None:
        direct, through = self.links()
        expected = self.steady(ask(direct, "GET /v1.41/info"))
        for name, link in through:
            self.assertEqual(self.steady(ask(link, "GET /v1.41/info")), expected, name)

    def steady(self, answer: Answer) -> tuple[int, dict[str, str], dict[str, Any]]:
        status, _, headers, body = answer
        facts = json.loads(body)
        for counted in ("SystemTime", "NFd", "NGoroutines", "NEventsListener"):
            facts.pop(counted)
        headers.pop("Content-Length", None)
        return status, headers, facts
