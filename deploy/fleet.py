"""`make up` of a fleet: its controller, the sign-in of its admin, the membership of this host's defender."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import time
import tomllib
from pathlib import Path
from typing import Any

from deploy.choices import Choices, SetupError
from deploy.daemon import Daemon
from deploy.guard import Guard
from deploy.output import say
from deploy.ports import check_port
from deploy.processes import remove, wait_until
from deploy.virtualenv import Virtualenv

ADMIN = "admin"
POLICY = "start"
"""What the policy is called that make up publishes."""

START_PATIENCE = 60.0
LINK_PATIENCE = 60.0
TOKEN_LIFE = 90 * 86400.0

SETTINGS = """\
# Written by make up from its variables, anew each time; run twistd yourself to use settings of your own.
[controller]
state = {state}
names = [{names}]

[https]
listen = "0.0.0.0:{https}"

[channel]
listen = "0.0.0.0:{channel}"
"""


class Fleet:
    """The controller of one state directory, and this host's place in its fleet.

    Args:
        choices: where it is and which ports it has.
        tools: the virtual environment it runs in.
    """

    def __init__(self, choices: Choices, tools: Virtualenv) -> None:
        self.choices = choices
        self._tools = tools
        self._daemon = Daemon("controller", choices.state, tools)
        self._member = choices.state / "fleet" / "member.json"
        self._published = choices.state / "published.json"
        self._defenders: dict[str, Any] = {}
        """Those of the fleet by name, as they are shown, since `ensure`."""

    # -- the controller

    def ensure(self) -> None:
        """Have the controller run and its admin signed in.

        Raises:
            SetupError: when a port is taken, it does not come up, or the admin cannot sign in.
        """
        daemon, choices = self._daemon, self.choices
        process = daemon.process()
        ours = self._ports() if process is not None else set()
        for name, port in (
            ("CONTROLLER_PORT", choices.controller_port),
            ("CHANNEL_PORT", choices.channel_port),
        ):
            if port not in ours:
                check_port(name, port)
        need = daemon.write_settings(self._settings())
        if process is not None and (need == "fixed" or not daemon.is_of_present_code()):
            daemon.stop()
            process = None
        if process is None:
            say(f"Starting the controller: HTTPS {choices.controller_port}, channel {choices.channel_port}")
            daemon.start()
        elif need == "live":
            os.kill(process.pid, signal.SIGHUP)
        if not wait_until(self._serves_or_ended, START_PATIENCE, 0.2) or daemon.process() is None:
            running = "runs" if daemon.process() is not None else "has ended"
            raise SetupError(
                f"the controller {running} and is not ready at https://127.0.0.1:{choices.controller_port}; "
                f"the end of its log:\n{daemon.log_end()}"
            )
        self._sign_in()

    def stop(self) -> bool:
        """End the controller, if it runs; return whether it did run."""
        return self._daemon.stop()

    def _settings(self) -> str:
        names = _own_names()
        return SETTINGS.format(
            state=json.dumps(str(self.choices.state)),
            names=", ".join(json.dumps(name) for name in names if name.isascii() and name),
            https=self.choices.controller_port,
            channel=self.choices.channel_port,
        )

    def _ports(self) -> set[int]:
        """The ports of the present settings file."""
        try:
            settings = tomllib.loads(self._daemon.config.read_text("utf-8"))
            return {int(settings[table]["listen"].rpartition(":")[2]) for table in ("https", "channel")}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return set()

    def _serves_or_ended(self) -> bool:
        return self._serves() or self._daemon.process() is None

    def _serves(self) -> bool:
        """Tell whether it says that it is ready, with a certificate of this state directory's authority."""
        try:
            context = ssl.create_default_context(cafile=str(self.choices.state / "pki" / "root.pem"))
            link = http.client.HTTPSConnection(
                "127.0.0.1", self.choices.controller_port, timeout=5, context=context
            )
            try:
                link.request("GET", "/readyz")
                return link.getresponse().status == 200
            finally:
                link.close()
        except (OSError, http.client.HTTPException):
            return False

    # -- its admin

    def ctl(self, *arguments: str) -> str:
        """Run defenderctl, signed in; raise SetupError with its words when it fails."""
        done = self._tools.run_apart("defenderctl", *arguments, **self._place)
        if done.returncode:
            said = (done.stderr + done.stdout).strip()
            raise SetupError(f"defenderctl {' '.join(arguments[:2])}: {said}")
        return done.stdout

    def ask(self, *arguments: str) -> Any:
        """Run defenderctl with ``--json``; return the document, None when it says no."""
        done = self._tools.run_apart("defenderctl", *arguments, "--json", **self._place)
        try:
            return None if done.returncode else json.loads(done.stdout)
        except ValueError:
            return None

    @property
    def _place(self) -> dict[str, str]:
        return {"DEFENDERCTL_CONFIG": str(self.choices.sign_in)}

    def _sign_in(self) -> None:
        """Have the admin signed in with an API token, which ends later and not after an hour's rest."""
        state, where = self.choices.state, f"127.0.0.1:{self.choices.controller_port}"
        file = self.choices.sign_in / "login.json"
        try:
            known = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError):
            known = {}
        same = known.get("controller") == f"https://{where}" and self._is_fresh(known.get("expires_at"))
        if same and self._look():
            return
        first, own = state / "first-admin-password", state / "admin-password"
        options = ["--ca", str(state / "pki" / "root.pem"), "--user", ADMIN]
        if first.exists():
            _write_private(own, secrets.token_urlsafe(24) + "\n")
            options += ["--password-file", str(first), "--new-password-file", str(own)]
        else:
            options += ["--password-file", str(own)]
        done = self._tools.run("defenderctl", "login", where, *options, **self._place)
        if done.returncode:
            raise SetupError(
                f"the controller does not let {ADMIN} in: {done.stdout.strip()}\n"
                f"If the password was changed, write it into {own} and run make up again."
            )
        remove(first)
        permissions = self._tools.run(
            "python", "-c", "from controller.accounts import PERMISSIONS; print(*PERMISSIONS)"
        ).stdout.split()
        wanted = [word for name in permissions for word in ("--permission", name)]
        made = self.ctl("api-tokens", "create", "make up", *wanted, "--expires", f"{TOKEN_LIFE / 86400:.0f}d")
        token = state / "api-token"
        _write_private(token, made.strip() + "\n")
        try:
            self.ctl("login", where, "--ca", str(state / "pki" / "root.pem"), "--token-file", str(token))
        finally:
            remove(token)
        self._look()
        say(f"Signed defenderctl in at https://{where} as {ADMIN}, whose password is in {own}")

    def _look(self) -> bool:
        """Look at the fleet's defenders; tell whether the controller let us."""
        found = self.ask("defenders", "list")
        self._defenders = {each["name"]: each for each in found or ()}
        return found is not None

    def _is_fresh(self, expires: object) -> bool:
        from datetime import datetime

        if not isinstance(expires, str) or not expires:
            return False
        try:
            return datetime.fromisoformat(expires).timestamp() - time.time() > TOKEN_LIFE / 2
        except ValueError:
            return False

    # -- the defender

    def settings(self, name: str) -> str:
        """Return what stands in the defender's settings of its fleet."""
        hosts = dict.fromkeys([name, *_own_names(), "localhost", "127.0.0.1", "::1"])
        names = ", ".join(json.dumps(each) for each in hosts)
        address = json.dumps(f"127.0.0.1:{self.choices.channel_port}")
        return f"\n[controller]\naddress = {address}\nnames = [{names}]\n"

    def admit(self, name: str, guard: Guard) -> list[str]:
        """Return the options with which the defender starts: a join token, unless it belongs to the fleet.

        A membership under another name, or one that the controller does not know, is given up first.
        """
        defenders = self._defenders
        member = self._member_name()
        if member == name and name in defenders:
            return []
        if self._member.parent.exists():
            guard.stop()
            for folder in ("fleet", "bundles"):
                shutil.rmtree(self.choices.state / folder, ignore_errors=True)
        if member is not None and member in defenders and member != name:
            self.ctl("defenders", "remove", member, "--yes")
        token = self.choices.state / "join-token"
        hosts = [word for host in dict.fromkeys([name, *_own_names()]) for word in ("--host", host)]
        made = self.ctl(
            "tokens", "create", "--name", name, *hosts, "--expires", "10m", "--comment", "make up"
        )
        _write_private(token, made.strip() + "\n")
        say(f"The defender joins the fleet as {name}")
        return ["--join-token-file", str(token)]

    def set_listener(self, name: str) -> None:
        """Have the fleet want the listener that was chosen, if it wants any of this defender."""
        shown = self._defenders.get(name)
        if shown is not None and shown["listener"]["desired"]:
            self.ctl("defenders", "set-listener", name, self.choices.listen, "--no-wait")

    def settle(self, name: str) -> None:
        """Wait until the defender has its session with the controller; raise SetupError if it gets none."""
        remove(self.choices.state / "join-token")

        def linked() -> bool:
            shown = self.ask("defenders", "show", name)
            return shown is not None and shown["state"] == "online"

        if not wait_until(linked, LINK_PATIENCE, 0.2):
            raise SetupError(f"the defender has no session with the controller; see {self.choices.log}")

    def publish(self, policy: Path) -> None:
        """Publish the policy, once: again only when another one is chosen, or its text has changed."""
        digest = hashlib.sha256(policy.read_bytes()).hexdigest()
        try:
            before = json.loads(self._published.read_text("utf-8"))["digest"]
        except (OSError, ValueError, KeyError, TypeError):
            before = ""
        if before == digest and self.ask("policy", "history", POLICY):
            return
        options = ("--name", POLICY, "--everywhere", "--at-once", "--yes", "--timeout", "60s")
        self.ctl("policy", "publish", str(policy), *options, "--comment", "make up")
        _write_private(self._published, json.dumps({"digest": digest}) + "\n")
        say(f"Published {policy} to the fleet as policy {POLICY}")

    def _member_name(self) -> str | None:
        try:
            return str(json.loads(self._member.read_text("utf-8"))["name"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _own_names() -> list[str]:
    """The names of this host, and the addresses that they lead to but for the loop."""
    host = socket.gethostname()
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        found = []
    addresses = (str(each[4][0]).partition("%")[0] for each in found)
    others = [each for each in addresses if not each.startswith(("127.", "::1", "fe80"))]
    return list(dict.fromkeys([host, socket.getfqdn(), *others]))


def _write_private(path: Path, text: str) -> None:
    remove(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
