"""`defenderctl local`: speaks with the defender of this machine over its control socket."""

from __future__ import annotations

import contextlib
import json
import socket
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from controller.cli.output import complain, json_option, print_json, print_line, print_table, state_option
from defender.contract.errors import ContractError
from defender.contract.local import (
    MAX_ANSWER,
    MODES,
    Answer,
    LocalError,
    Request,
    make_request,
    parse_duration,
    read_answer,
    write_request,
)
from defender.contract.locks import Lock, dump_locks, load_locks, make_lock

TIMEOUT: Final = 60.0
"""Seconds to wait for the defender; a switch with several listeners probes each for up to 5."""


class NotRunningError(LocalError):
    """No defender answers."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the defender of a state directory keeps its files, as its settings say or by default."""

    control: Path
    locks: Path
    mode_file: Path
    configured: str | None


def place_of(state: Path) -> Place:
    """Find the files of the defender with this state directory.

    Settings that cannot be read count as none: the defaults are what most people have.
    """
    folder, document = state, dict[str, Any]()
    for candidate in (state, state / "defender"):
        try:
            document = tomllib.loads((candidate / "defender.toml").read_text("utf-8"))
        except (OSError, ValueError):
            continue
        folder = candidate
        break

    def given(table: str, key: str) -> str | None:
        part = document.get(table)
        value = part.get(key) if isinstance(part, dict) else None
        return value if isinstance(value, str) else None

    own = folder / (given("defender", "state") or ".")
    control, locks = given("control", "socket"), given("policy", "locks")
    return Place(
        folder / control if control else own / "control.sock",
        folder / locks if locks else own / "locks.json",
        own / "listener.json",
        given("listen", "mode") or ("tcp" if document else None),
    )


def ask(path: Path, request: Request, timeout: float = TIMEOUT) -> Answer:
    """Send one request to the socket at `path` and return the answer.

    Raises:
        NotRunningError: nobody listens there.
        LocalError: the socket may not be used, or what came back is no answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(timeout)
        try:
            client.connect(str(path))
            # Who is turned away may find the socket closed already, with the reason in it.
            with contextlib.suppress(BrokenPipeError):
                client.sendall(write_request(request))
            line = _read_line(client)
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotRunningError(
                f"no defender answers at {path}; start it (`make up`, `systemctl start defender`), or name "
                "its state directory with --state"
            ) from None
        except PermissionError:
            raise LocalError(
                f"{path} is for root and the defender's own user only; try it with sudo"
            ) from None
        except TimeoutError:
            raise LocalError(f"the defender did not answer within {timeout:g} s at {path}") from None
        except OSError as error:
            raise LocalError(f"{path}: {error.strerror or error}") from None
    if not line:
        raise LocalError("the defender closed the connection without an answer")
    return read_answer(line)


def _read_line(client: socket.socket) -> bytes:
    answer = bytearray()
    while not answer.endswith(b"\n"):
        piece = client.recv(65536)
        if not piece:
            break
        answer += piece
        if len(answer) > MAX_ANSWER:
            raise LocalError(f"the answer is longer than {MAX_ANSWER} bytes")
    return bytes(answer)


def _fail(text: str) -> NoReturn:
    complain(text)
    raise SystemExit(1)


def _result(state: Path, verb: str, arguments: Mapping[str, object] | None = None) -> Mapping[str, Any]:
    """Ask the defender of `state`; on a refusal print the reason and exit with 1."""
    try:
        answer = ask(place_of(state).control, make_request(verb, arguments or {}))
    except LocalError as error:
        _fail(str(error))
    if not answer.ok:
        _fail(answer.error)
    return answer.result


class Duration(click.ParamType[float]):
    """`90s`, `10m`, `2h` or `1d`; `0` for no limit."""

    name = "TIME"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds; a usage error for anything else."""
        try:
            return parse_duration(str(value))
        except LocalError as error:
            self.fail(str(error), param, ctx)


@click.group()
def local() -> None:
    """Steer the defender of this machine.

    Root and the user that the defender runs as may do this; every use is audited.
    """


@local.command()
@state_option
@json_option
def status(state: Path, as_json: bool) -> None:
    """Show what the defender does: listeners, policy, Engine, counters."""
    result = _result(state, "status")
    if as_json:
        print_json(result)
        return
    rows = list(_facts({key: value for key, value in result.items() if key != "listener"}))
    if rows:
        print_table(("what", "value"), rows, fold=1)
        click.echo()
    _print_listeners(result.get("listener"))


def _facts(document: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield every leaf of nested objects with its dotted name."""
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from _facts(value, f"{before}{key}.")
        elif isinstance(value, list):
            yield f"{before}{key}", ", ".join(map(str, value)) or "-"
        else:
            yield f"{before}{key}", _text(value)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None or value == "" else str(value)


def _print_listeners(listener: Any) -> None:
    if not isinstance(listener, Mapping):
        return
    desired, actual = listener.get("desired"), listener.get("actual")
    configured = listener.get("configured")
    line = f"Listener mode {actual}"
    if desired != actual:
        line += f"; wanted is {desired}"
    if configured != desired:
        line += f"; the settings say {configured}, overridden by `defenderctl local listener set`"
    print_line(line)
    if listener.get("last_error"):
        print_line(f"Last problem: {listener['last_error']}")
    listeners = listener.get("listeners") or []
    rows = []
    for each in listeners:
        bound = ", ".join(each.get("bound") or [])
        left = each.get("drain_left")
        condition = f"{each.get('state')}, {left:g} s left" if left is not None else each.get("state")
        rows.append((bound or each.get("address"), condition, each.get("connections")))
    if rows:
        print_table(("address", "state", "connections"), rows, fold=0)


@local.command(name="reload")
@state_option
def reload_(state: Path) -> None:
    """Read the settings, the policy, the locks and the certificates again.

    A defender that waits before it tries its controller again tries at once.
    """
    for line in _result(state, "reload").get("said") or ["reloaded"]:
        print_line(str(line))


@local.group()
def listener() -> None:
    """Show or change where clients reach the defender."""


@listener.command(name="set")
@click.argument("mode", type=click.Choice(MODES))
@click.option(
    "--drain",
    type=Duration(),
    help="How long open requests and streams of closed listeners may go on: 90s, 10m, 2h; 0 for no limit. "
    "Without it, the setting listen.drain.",
)
@state_option
def set_(mode: str, drain: float | None, state: Path) -> None:
    """Switch to another listener mode, now and after restarts.

    The new listeners are open before the old ones stop accepting, and open streams go on. If a new one
    cannot be opened, the old ones stay, the reason is printed and the exit code is 1.
    """
    arguments: dict[str, object] = {"mode": mode}
    if drain is not None:
        arguments["drain"] = drain
    result = _result(state, "listener_set", arguments)
    listeners = result.get("listeners") or []
    where = [name for each in listeners if each.get("state") == "accepting" for name in each["bound"]]
    print_line(f"Listener mode {result.get('mode')}" + (f": {', '.join(where)}" if where else ""))
    draining = sum(each.get("connections", 0) for each in listeners if each.get("state") == "draining")
    if draining:
        print_line(f"{draining} connections of closed listeners go on until they end.")
    if result.get("warning"):
        complain(str(result["warning"]))


@listener.command()
@state_option
@json_option
def show(state: Path, as_json: bool) -> None:
    """Show the listeners; without a running defender, the mode that it will start in."""
    place = place_of(state)
    try:
        answer = ask(place.control, make_request("status", {}))
    except NotRunningError as error:
        if place.configured is None:
            _fail(str(error))
        document: Any = {"running": False, "configured": place.configured, "desired": _mode_at_start(place)}
    except LocalError as error:
        _fail(str(error))
    else:
        if not answer.ok:
            _fail(answer.error)
        document = {"running": True, **_mapping(answer.result.get("listener"))}
    if as_json:
        print_json(document)
    elif document["running"]:
        _print_listeners(document)
    else:
        print_line(f"The defender does not run. It will start in listener mode {document['desired']}.")


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _mode_at_start(place: Place) -> str:
    """Return the mode that a defender will start in: the one chosen at run time, unless the settings have
    changed since."""
    configured = place.configured or "tcp"
    try:
        chosen = _mapping(json.loads(place.mode_file.read_text("utf-8")))
    except (OSError, ValueError):
        return configured
    mode = chosen.get("mode")
    return mode if chosen.get("over") == configured and mode in MODES else configured


@local.group()
def lock() -> None:
    """Shut a user, a group, one certificate or everybody out at once, whatever the policy says."""


def _which(issuer: str, **named: str | None) -> Lock:
    given = [(kind, value) for kind, value in named.items() if value]
    if len(given) != 1:
        raise click.UsageError("name exactly one of --user, --group, --serial and --defender")
    try:
        return make_lock(*given[0], issuer)
    except ContractError as error:
        raise click.UsageError(str(error)) from None


def _selectors(command: Any) -> Any:
    for option in (
        click.option("--issuer", default="", metavar="DN", help="With --serial: the issuer it counts for."),
        click.option(
            "--defender", metavar="NAME", help="This defender, by its name: nobody may do anything."
        ),
        click.option("--serial", metavar="HEX", help="Serial number of a certificate."),
        click.option("--group", metavar="NAME", help="Every member of a group."),
        click.option("--user", metavar="NAME", help="A user, however they prove to be it."),
        state_option,
    ):
        command = option(command)
    return command


def _change(verb: str, state: Path, chosen: Lock) -> bool:
    arguments: dict[str, object] = {"kind": chosen.kind, "value": chosen.value}
    if chosen.issuer:
        arguments["issuer"] = chosen.issuer
    return bool(_result(state, verb, arguments).get("changed", True))


@lock.command()
@_selectors
def add(state: Path, issuer: str, **named: str | None) -> None:
    """Lock a user, a group, a certificate or everybody; open streams are cut too."""
    chosen = _which(issuer, **named)
    changed = _change("lock_add", state, chosen)
    print_line(f"Locked: {chosen.describe()}" if changed else f"Locked already: {chosen.describe()}")


@lock.command()
@_selectors
def remove(state: Path, issuer: str, **named: str | None) -> None:
    """Remove a lock."""
    chosen = _which(issuer, **named)
    if not _change("lock_remove", state, chosen):
        _fail(f"not locked: {chosen.describe()}")
    print_line(f"No longer locked: {chosen.describe()}")


@lock.command(name="list")
@state_option
@json_option
def list_(state: Path, as_json: bool) -> None:
    """List the locks, whether or not the defender runs."""
    place = place_of(state)
    try:
        answer = ask(place.control, make_request("lock_list", {}))
        if not answer.ok:
            _fail(answer.error)
        entries: Any = answer.result.get("locks") or []
        locks = frozenset(
            make_lock(str(each["kind"]), str(each["value"]), str(each.get("issuer", ""))) for each in entries
        )
    except NotRunningError:
        locks = _locks_in(place.locks)
    except ContractError as error:
        _fail(str(error))
    if as_json:
        click.echo(dump_locks(locks), nl=False)
    elif locks:
        rows = [(each.kind, each.value, each.issuer or "-") for each in sorted(locks)]
        print_table(("kind", "value", "issuer"), rows, fold=1)
    else:
        print_line("Nobody is locked.")


def _locks_in(path: Path) -> frozenset[Lock]:
    try:
        return load_locks(path.read_text("utf-8")).locks
    except FileNotFoundError:
        return frozenset()
    except (OSError, UnicodeDecodeError) as error:
        _fail(f"{path}: {error}")
    except ContractError as error:
        _fail(f"{path}: {error}")
