"""The Docker SDK for Python, over TLS and over the unix socket."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from typing import Any, TypeVar
from unittest import mock

import docker
from docker.errors import APIError, NotFound
from docker.tls import TLSConfig
from twisted.trial.unittest import SynchronousTestCase

from tests.engine.clients import shared_box
from tests.engine.guarded import BRUCE, certificates, guarded
from tests.engine.test_cli_run import noise
from tests.engine.test_cli_streams import tar_of

FOREIGN = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
"""Variables that would replace the authority we name."""


class SDKCase(SynchronousTestCase):
    """A client of one transport; `transports` makes the classes."""

    __test__ = False
    transport: str

    def setUp(self) -> None:
        kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        patch = mock.patch.dict(os.environ, kept, clear=True)
        patch.start()
        self.addCleanup(patch.stop)
        self.client = self.connected()

    def connected(self, user: str = "admin", *groups: str) -> Any:
        """Return a client that is closed at the end of the test."""
        defender = guarded()
        if self.transport == "unix":
            client = docker.DockerClient(base_url=defender.unix_address, version="auto")
        else:
            folder = certificates(user, *groups)
            tls = TLSConfig(
                client_cert=(str(folder / "cert.pem"), str(folder / "key.pem")),
                ca_cert=str(folder / "ca.pem"),
                verify=True,
            )
            client = docker.DockerClient(base_url=defender.tcp_address, tls=tls, version="auto")
        self.addCleanup(client.close)
        return client


_Case = TypeVar("_Case", bound=type[SDKCase])


def transports(*names: str) -> Callable[[_Case], _Case]:
    """Make one class of tests for each transport."""

    def make(base: _Case) -> _Case:
        for name in names:
            title = f"{base.__name__}_{name}"
            attributes = {"__test__": True, "transport": name, "__module__": __name__, "__qualname__": title}
            globals()[title] = type(title, (base,), attributes)
        return base

    return make


@transports("tls", "unix")
class SDKTests(SDKCase):
    """What programs do with it."""

    def test_ping_and_version(self) -> None:
        self.assertTrue(self.client.ping())
        self.assertEqual(self.client.version()["ApiVersion"], "1.41")
        self.assertEqual(self.client.api.api_version, "1.41")

    def test_run_and_its_output(self) -> None:
        said = self.client.containers.run(
            "busybox", ["sh", "-c", "echo out; echo err >&2"], remove=True, stderr=True, network_mode="none"
        )
        self.assertEqual(sorted(said.split()), [b"err", b"out"])

    def test_logs_as_they_come(self) -> None:
        script = "for i in 1 2 3; do echo line $i; usleep 100000; done; exit 3"
        box = self.client.containers.run("busybox", ["sh", "-c", script], detach=True, network_mode="none")
        self.addCleanup(box.remove, force=True)
        self.assertEqual(b"".join(box.logs(stream=True)), b"line 1\nline 2\nline 3\n")
        self.assertEqual(box.wait()["StatusCode"], 3)

    def test_exec(self) -> None:
        box = self.client.containers.get(shared_box())
        code, output = box.exec_run(["sh", "-c", "echo here; echo there >&2; exit 5"], demux=True)
        self.assertEqual((code, output), (5, (b"here\n", b"there\n")))
        streamed = box.exec_run(["sh", "-c", "echo a; echo b"], stream=True)
        self.assertEqual(b"".join(streamed.output), b"a\nb\n")

    def test_exec_with_input(self) -> None:
        api = self.client.api
        identifier = api.exec_create(shared_box(), ["head", "-n", "1"], stdin=True)["Id"]
        socket = api.exec_start(identifier, socket=True)
        self.addCleanup(socket.close)
        raw = getattr(socket, "_sock", socket)
        raw.sendall(b"typed\n")
        answer = b""
        while part := raw.recv(4096):
            answer += part
        self.assertEqual(answer, b"\x01\0\0\0\0\0\0\x06typed\n")

    def test_archives(self) -> None:
        box = self.client.containers.create("busybox", network_mode="none")
        self.addCleanup(box.remove, force=True)
        self.assertTrue(box.put_archive("/tmp", tar_of(one=noise(2))))
        parts, facts = box.get_archive("/tmp/one")
        self.assertEqual((facts["name"], facts["size"]), ("one", len(noise(2))))
        with tarfile.open(fileobj=io.BytesIO(b"".join(parts))) as archive:
            member = archive.extractfile("one")
            assert member is not None
            self.assertEqual(member.read(), noise(2))
        with self.assertRaises(NotFound):
            box.get_archive("/no/such")

    def test_images(self) -> None:
        images = self.client.images
        name = f"sdk-{self.transport}"
        self.client.api.import_image(src=tar_of(name=name.encode()), repository=name)
        image = images.get(name)
        saved = b"".join(image.save(named=True))
        image.tag(name, "other")
        self.assertEqual(set(images.get(name).tags), {f"{name}:latest", f"{name}:other"})
        images.remove(f"{name}:other")
        images.remove(name)
        with self.assertRaises(NotFound):
            images.get(name)
        (loaded,) = images.load(saved)
        self.assertEqual(loaded.id, image.id)
        images.remove(name)

    def test_build_and_events(self) -> None:
        events = self.client.events(decode=True, filters={"type": "image", "event": "tag"})
        self.addCleanup(events.close)
        text = io.BytesIO(f"FROM busybox\nRUN echo {self.transport} > /built\n".encode())
        image, _ = self.client.images.build(fileobj=text, tag=f"sdk-built-{self.transport}", rm=True)
        self.assertEqual(next(events)["id"], image.id)
        self.client.images.remove(image.tags[0])


@transports("tls")
class DeniedSDKTests(SDKCase):
    """A denial is an API error with the denial's words."""

    def test_denied(self) -> None:
        client = self.connected(BRUCE, "Dev team")
        self.assertTrue(client.ping())
        self.assertIsInstance(client.api.containers(), list)
        with self.assertRaises(APIError) as caught:
            client.images.pull("nginx", tag="1")
        self.assertEqual(caught.exception.status_code, 403)
        self.assertEqual(
            caught.exception.explanation,
            "[Defender] The command 'image_create' denied for user 'bruce@example.com' by rule 'devs_rule'",
        )
