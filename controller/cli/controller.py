"""`defenderctl controller`: what is done to a controller's files on its own host."""

from __future__ import annotations

import getpass
import sqlite3
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import click

from controller.cli import at_rest
from controller.cli.at_rest import AtRestError
from controller.cli.output import json_option, print_json, print_line
from controller.pki.custody import CustodyError
from controller.pki.signing import BUNDLE, ROLES
from controller.store.errors import StoreError, fault_text

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _plain_errors(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turn what a person can do something about into one line and exit code 1."""

    @wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return command(*args, **kwargs)
        except (AtRestError, CustodyError, StoreError) as error:
            raise click.ClickException(str(error)) from error
        except sqlite3.Error as error:
            raise click.ClickException(f"the store cannot be used: {fault_text(error)}") from error
        except OSError as error:
            raise click.ClickException(
                f"{error.filename or 'the disk'}: {error.strerror or error}"
            ) from error

    return run


_state = click.option(
    "--state",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    required=True,
    help="The controller's state directory (its setting controller.state).",
)


@click.group()
def controller() -> None:
    """Back a controller up, replace its signing keys, and bring it back. On its own host, as its user.

    \b
    Examples:
      defenderctl controller backup --state /var/lib/defender-controller --out /backup/fleet-1122
      defenderctl controller replace-key bundle --state /var/lib/defender-controller
    """


@controller.command("backup")
@_state
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="The directory to make; whoever can read it can be the fleet.",
)
@json_option
@_plain_errors
def backup(state: Path, out: Path, as_json: bool) -> None:
    """Copy everything that a controller has on its disk, while it runs.

    The copy is a state directory: a controller can be started on it, or on a copy of it.

    \b
    Example:
      defenderctl controller backup --state /var/lib/defender-controller --out /backup/fleet-1122
    """
    files = at_rest.back_up(state.absolute(), out.absolute())
    if as_json:
        print_json({"directory": str(out.absolute()), "files": files})
        return
    print_line(
        f"Copied to {out}: {len(files)} files. They hold every key of the fleet: keep them like those."
    )


@controller.command("replace-key")
@click.argument("role", type=click.Choice(ROLES))
@_state
@click.option(
    "--keep-old", is_flag=True, help="Of bundle: let the old one count too, until retire-key; cuts no stream."
)
@click.option("--stolen", is_flag=True, help="Of bundle: end all that was signed before, by a new key epoch.")
@click.option(
    "--even-now",
    is_flag=True,
    help="Of bundle: also while a policy is on its way, which falls back or restarts.",
)
@json_option
@_plain_errors
def replace_key(role: str, state: Path, keep_old: bool, stolen: bool, even_now: bool, as_json: bool) -> None:
    """Replace a key that signs bundles, root documents or snapshots. The controller must not run.

    Its next start signs what is in force with the new key, and defenders take that as soon as they are
    connected.

    \b
    Examples:
      defenderctl controller replace-key bundle --keep-old --state /var/lib/defender-controller
      defenderctl controller replace-key bundle --stolen --state /var/lib/defender-controller
    """
    if (stolen or keep_old) and role != BUNDLE:
        raise click.UsageError("--stolen and --keep-old are for the key of bundles")
    if stolen and keep_old:
        raise click.UsageError("--stolen and --keep-old exclude each other: what was stolen must not count")
    version = at_rest.replace_key(
        state.absolute(), role, getpass.getuser(), stolen=stolen, even_now=even_now, keep_old=keep_old
    )
    if as_json:
        print_json({"role": role, "root": version})
        return
    print_line(f"There is a new {role} key, named by root document {version}. Start the controller.")


@controller.command("retire-key")
@_state
@json_option
@_plain_errors
def retire_key(state: Path, as_json: bool) -> None:
    """Let the old key of bundles count no more, after replace-key --keep-old. The controller must not run.

    First let it run with the new one until every defender has what that signs.

    \b
    Example:
      defenderctl controller retire-key --state /var/lib/defender-controller
    """
    version = at_rest.retire_key(state.absolute(), getpass.getuser())
    if as_json:
        print_json({"role": BUNDLE, "root": version})
        return
    print_line(f"Root document {version} names one bundle key. Start the controller.")


@controller.command("take-back")
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@_state
@json_option
@_plain_errors
def take_back(files: tuple[Path, ...], state: Path, as_json: bool) -> None:
    """Give a controller that was restored the newest bundles that defenders hold. It must not run.

    FILES are bundles as they lie on a defender: STATE/bundles/locks/*.bundle and so on. What is locked there
    is locked again; a policy becomes a draft; no number is given twice.

    \b
    Example:
      defenderctl controller take-back web1/locks/*.bundle --state /var/lib/defender-controller
    """
    told = at_rest.take_back(state.absolute(), files, getpass.getuser())
    if as_json:
        print_json(
            {"bundles": [{"stream": t.stream, "version": t.version, "news": list(t.news)} for t in told]}
        )
        return
    for each in told:
        for news in each.news:
            print_line(f"{each.stream}{f' {each.version}' if each.version else ''}: {news}")
