"""`make up`: a controller, and its first defender in front of this host's Engine, ready to use.

Every step looks first at what is there, so that running it again changes only what has to change: another
listener or policy is taken over by the running defender, and its open streams go on. Standard library only;
run by the system's Python, which makes the virtual environment of the rest.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import shlex
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy import packages
from deploy.choices import DEFAULT_ENGINE, FLEET, ROOT, Choices, SetupError, read_choices
from deploy.client import proof, write_environment
from deploy.docker_api import ApiError, answers, connection
from deploy.engine import CGROUP, NEEDED, EngineError, OwnEngine, ensure_cgroups
from deploy.fleet import ADMIN, Fleet
from deploy.guard import Guard
from deploy.images import BUSYBOX, HELLO, load_small_images
from deploy.output import say
from deploy.virtualenv import Virtualenv

FOLDERS = ("audit", "certs", "engine", "pki", "tls")
OTHERS = ("bundles", "defenderctl", "fleet", "signing", "sinks", "store", "policy.yaml")
LOCK = "up.lock"
SMALL = f"{BUSYBOX} and {HELLO}"

START_POLICY = """\
# Written by make up, once. Edit it: a standalone defender reads it again when it changes; for a fleet,
# make up publishes it again.
schema: 1
rules:
  - name: admin_rule
    users: [{admin}]
    via: [tls]
    effect: allow
    actions: ["*"]
  - name: owner_rule
    users: [{owner}]
    via: [unix]
    effect: allow
    actions: ["*"]
# What no rule allows is denied.
"""

SETTINGS = """\
# Written by make up from its variables, anew each time; run twistd yourself to use settings of your own.
[defender]
{name}state = {state}

[engine]
address = {engine}

[listen]
mode = {mode}
tcp = [{tcp}]
unix = [{unix}]
unix_group = {group}

[policy]
file = {policy}
"""


def quoted(text: object) -> str:
    """Return a TOML basic string, which is also a YAML double-quoted scalar; JSON's escapes are both's."""
    return json.dumps(str(text))


def find_engine(choices: Choices) -> str:
    """Return the address of an Engine that answers, started here if there is none and `ENGINE` is not set.

    Raises:
        SetupError: saying who does not answer and what to do.
    """
    own = OwnEngine(choices.state / "engine")
    if choices.engine is not None:
        why = why_silent(choices.engine)
        if why:
            raise SetupError(
                f"no Engine answers at ENGINE={choices.engine} ({why}): start it, give its address, or leave "
                "ENGINE unset to use this host's or have one started"
            )
        return choices.engine
    if own.process() is not None and answers(own.address):
        return own.address
    why = why_silent(DEFAULT_ENGINE)
    if not why:
        return DEFAULT_ENGINE
    if why == "Permission denied":
        raise SetupError(
            f"you may not open {DEFAULT_ENGINE}: run make up as root, or as a user who may (group docker)"
        )
    say(f"No Engine answers at {DEFAULT_ENGINE} ({why}).")
    if os.geteuid() != 0:
        raise SetupError(
            "run make up as root, which has one installed and started; or start this host's own; or name one "
            "that you may use with ENGINE=unix:///..."
        )
    lacking = packages.missing(NEEDED)
    try:
        if lacking:
            packages.require(NEEDED, "An Engine of our own")
            if answers(DEFAULT_ENGINE):  # the package started it
                say(f"The package's own Engine answers at {DEFAULT_ENGINE}: adding the images {SMALL}")
                load_small_images(DEFAULT_ENGINE)
                return DEFAULT_ENGINE
        if ensure_cgroups():
            say(f"Mounted the control groups at {CGROUP}, which this host lacked; they stay.")
        say(f"Starting an Engine of our own in {own.root}, with the images {SMALL}")
        own.start()
    except (EngineError, ApiError, OSError) as error:
        raise SetupError(str(error)) from error
    return own.address


def why_silent(address: str) -> str:
    """Return why nobody answers at an address, or an empty text when somebody does."""
    if answers(address):
        return ""
    link = connection(address, timeout=5)
    try:
        link.connect()
    except OSError as error:
        return error.strerror or str(error)
    finally:
        link.close()
    return "it accepts connections and does not answer GET /_ping"


def prepare_state(choices: Choices) -> None:
    """Make the state directory; others may pass through to the socket and see nothing else.

    Raises:
        SetupError: for a directory that is something else, such as a home; its mode stays as it is.
    """
    try:
        choices.state.mkdir(parents=True, exist_ok=True)
        status = choices.state.stat()
        # Whoever can write there could place links for us to write through, or a policy.
        if status.st_uid not in {0, os.geteuid(), ROOT.stat().st_uid}:
            raise SetupError(
                f"FLEET_STATE={choices.state}: this directory belongs to user {status.st_uid}; name another"
            )
        if status.st_mode & stat.S_IWOTH:
            raise SetupError(
                f"FLEET_STATE={choices.state}: everybody may write to this directory; name another one"
            )
        present = {path.name for path in choices.state.iterdir()}
        foreign = sorted(present - {*FOLDERS, *OTHERS})
        if foreign and LOCK not in present:
            raise SetupError(
                f"FLEET_STATE={choices.state}: this directory holds other things ({foreign[0]}); "
                "name an empty one, or one that is not there yet"
            )
        choices.state.chmod(0o711)
        for name in FOLDERS:
            (choices.state / name).mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise SetupError(f"FLEET_STATE={choices.state}: {error.strerror}") from error


@contextmanager
def locked(state: Path) -> Iterator[None]:
    """Let one make up or make down at a time work on a state directory."""
    with (state / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def owner_name() -> str:
    """Return the user name of the uid that runs this, as the defender will read it from a unix peer."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid:{os.geteuid()}"


def prepare_policy(choices: Choices, tools: Virtualenv) -> Path:
    """Return the policy to use: the chosen one, checked, or the start policy, written if it is missing."""
    policy = choices.policy
    if policy is None:
        policy = choices.state / "policy.yaml"
        if not policy.exists():
            policy.write_text(START_POLICY.format(admin=quoted(ADMIN), owner=quoted(owner_name())), "utf-8")
            policy.chmod(0o600)
    checked = tools.run("defenderctl", "policy", "check", str(policy))
    if checked.returncode:
        raise SetupError(f"the policy cannot be used:\n{checked.stdout.strip()}")
    return policy


def settings_text(choices: Choices, engine: str, policy: Path) -> str:
    """Return the text of defender.toml."""
    return SETTINGS.format(
        name=f"name = {quoted(choices.name)}\n" if choices.name else "",
        state=quoted(choices.state),
        engine=quoted(engine),
        mode=quoted(choices.listen),
        tcp=quoted(f"0.0.0.0:{choices.port}"),
        unix=quoted(choices.socket),
        group=quoted("docker" if may_give_to_docker() else ""),
        policy=quoted(policy),
    )


def may_give_to_docker() -> bool:
    """Tell whether the socket can belong to the group docker, as the Engine's own does."""
    import grp

    try:
        group = grp.getgrnam("docker").gr_gid
    except KeyError:
        return False
    return os.geteuid() == 0 or group in os.getgroups()


def ctl(tools: Virtualenv, *arguments: str) -> str:
    """Run defenderctl; raise SetupError with its words when it fails."""
    done = tools.run("defenderctl", *arguments)
    if done.returncode:
        raise SetupError(f"defenderctl {' '.join(arguments[:2])}: {done.stdout.strip()}")
    return done.stdout


def prepare_certificates(choices: Choices, tools: Virtualenv) -> None:
    """Make the authority and the defender's certificate, or keep the ones that hold."""
    state = ("--state", str(choices.state))
    ctl(tools, "pki", "init", *state)
    ctl(tools, "pki", "server", *state, *(("--defender", choices.name) if choices.name else ()))


def prepare_admin(choices: Choices, tools: Virtualenv) -> None:
    """Issue the admin's certificate when it is missing, refused, or more than half of its life is over."""
    certificate = choices.certificates / "cert.pem"
    shown = tools.run("defenderctl", "pki", "show", "--state", str(choices.state), "--json", str(certificate))
    if not shown.returncode:
        life = json.loads(shown.stdout)
        begin, end = moment(life["not_before"]), moment(life["not_after"])
        if (choices.certificates / "key.pem").is_file() and end - time.time() > (end - begin) / 2:
            return
    where = ("--state", str(choices.state), "--out", str(choices.certificates))
    ctl(tools, "pki", "issue", "--user", ADMIN, *where, "--force")
    say(f"Issued a certificate for {ADMIN} in {choices.certificates}")


def moment(value: float | str) -> float:
    """Return a time as unix seconds; it comes as such or as ISO 8601 text."""
    from datetime import datetime

    return datetime.fromisoformat(value).timestamp() if isinstance(value, str) else value


def guard_alone(choices: Choices, tools: Virtualenv, engine: str, policy: Path) -> None:
    """Have a defender that stands alone; a controller that ran here before is ended."""
    if Fleet(choices, tools).stop():
        say("Stopped the controller: MODE=standalone has none.")
    prepare_certificates(choices, tools)
    prepare_admin(choices, tools)
    Guard(choices, tools).ensure(settings_text(choices, engine, policy))


def guard_in_fleet(choices: Choices, tools: Virtualenv, engine: str, policy: Path) -> None:
    """Have a controller, and a defender that belongs to its fleet."""
    fleet, guard = Fleet(choices, tools), Guard(choices, tools)
    name = choices.name or socket.gethostname().partition(".")[0]
    guard.check_port()
    fleet.ensure()
    prepare_admin(choices, tools)
    joining = fleet.admit(name, guard)
    fleet.set_listener(name)
    guard.ensure(settings_text(choices, engine, policy) + fleet.settings(name), joining)
    fleet.settle(name)
    fleet.publish(policy)


def up(choices: Choices) -> None:
    """Do all of it.

    Raises:
        SetupError: for the first thing that stands in the way.
    """
    prepare_state(choices)
    with locked(choices.state):
        engine = find_engine(choices)
        tools = Virtualenv()
        tools.ensure()
        policy = prepare_policy(choices, tools)
        if choices.mode == FLEET:
            guard_in_fleet(choices, tools, engine, policy)
        else:
            guard_alone(choices, tools, engine, policy)
        lines = write_environment(choices, tools.bin)
        say(f"The defender guards {engine}; policy {policy}; log {choices.log}")
        for line in proof(choices):
            say(line)
    say("\nTo use it, paste:\n")
    for line in lines:
        say(f"  {line}")
    say(f"\nor: . {shlex.quote(str(choices.state / 'env.sh'))}")


def main() -> int:
    """Run `make up`; return the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        up(read_choices(os.environ, Path.cwd()))
    except SetupError as error:
        print(f"make up: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
