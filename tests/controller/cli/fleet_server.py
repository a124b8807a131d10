"""A controller's API on loopback TLS in a thread of its own, so that `defenderctl` runs in this process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from twisted.internet.epollreactor import EPollReactor
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.trial.unittest import SynchronousTestCase

from controller.api.app import Api
from controller.api.catalog import ROUTES
from controller.api.site import ApiSite
from controller.cli.login import Login, write_login
from controller.cli.main import defenderctl
from tests.controller.api.doubles import EVERYTHING, World
from tests.controller.cli.test_client import Tls, Tracked
from tests.controller.sinks.receivers import Certificates


class Server:
    """Serves a world of doubles until `stop`."""

    def __init__(self) -> None:
        self.certificates = Certificates()
        self.world = World(ROUTES)
        self.reactor: Any = EPollReactor()
        self.port = 0
        api = Api(self.world.ports(), self.reactor, version="0", check_answers=True)
        site = ApiSite(api.resource(), self.reactor, api.dispatcher.metrics)
        self.tracked = Tracked(site)
        tls = TLSMemoryBIOFactory(Tls(self.certificates.proper()), False, self.tracked, clock=self.reactor)
        tls.noisy = False
        started = threading.Event()

        def listen() -> None:
            self.port = self.reactor.listenTCP(0, tls, interface="127.0.0.1").getHost().port
            started.set()

        self.reactor.callWhenRunning(listen)
        self._thread = threading.Thread(target=self.reactor.run, kwargs={"installSignalHandlers": False})
        self._thread.start()
        started.wait()

    @property
    def host(self) -> str:
        """As commands name it."""
        return f"localhost:{self.port}"

    @property
    def authority(self) -> str:
        """The certificates that it is known by."""
        return self.certificates.anchors.decode()

    def soon(self, act: Callable[..., Any], *args: Any) -> None:
        """Call something in the server's thread."""
        self.reactor.callFromThread(act, *args)

    def stop(self) -> None:
        """End the thread."""
        self.soon(self.reactor.stop)
        self._thread.join()
        self.reactor.disconnectAll()


class FleetTestCase(SynchronousTestCase):
    """Somebody is signed in at a controller."""

    def setUp(self) -> None:
        self.server = Server()
        self.addCleanup(self.server.stop)
        self.world = self.server.world
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.file = self.folder / "config" / "login.json"
        self.sign_in()

    def sign_in(self, token: str = EVERYTHING) -> None:
        """As somebody who may do this."""
        login = Login(f"https://{self.server.host}", self.server.authority, "admin", token)
        write_login(self.file, login)

    def run_command(self, *arguments: str, stdin: str = "") -> Result:
        """Run `defenderctl`; whatever it raises is shown."""
        environment = {"DEFENDERCTL_CONFIG": str(self.file.parent), "FLEET_STATE": None}
        result = CliRunner().invoke(defenderctl, list(arguments), env=environment, input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def good(self, *arguments: str, stdin: str = "") -> str:
        """The standard output of a command that is to work, which names its controller."""
        result = self.run_command(*arguments, stdin=stdin)
        self.assertEqual(result.exit_code, 0, result.output)
        self.assertIn(f"controller {self.server.host}", result.stderr)
        for line in () if "--json" in arguments else result.stdout.splitlines():
            self.assertLessEqual(len(line), 100, line)
        return result.stdout

    def bad(self, *arguments: str, code: int = 1, stdin: str = "") -> str:
        """The standard error of a command that is to fail."""
        result = self.run_command(*arguments, stdin=stdin)
        self.assertEqual(result.exit_code, code, result.output)
        self.assertNotIn("Traceback", result.output)
        return result.stderr
