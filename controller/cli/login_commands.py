"""`defenderctl login` and `logout`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Final

import click

from controller.cli.client import Client, ClientError
from controller.cli.fleet import fail, shown_time, with_controller
from controller.cli.login import (
    Login,
    LoginError,
    controller_address,
    forget_login,
    login_file,
    read_login,
    write_login,
)
from controller.cli.output import complain, json_option, print_json, print_line

MAX_CA: Final = 256 * 1024
MAX_SECRET: Final = 2048

_PEM: Final = "-----BEGIN CERTIFICATE-----"


@click.command(
    epilog="\b\nExamples:\n  defenderctl login controller.example.com --ca fleet-ca.pem --user admin\n"
    "  defenderctl login controller.example.com --ca fleet-ca.pem --token-file token.txt\n"
    "  defenderctl login --password-file old.txt --new-password-file new.txt\n"
    "  defenderctl login            # again, where you were"
)
@click.argument("controller", metavar="[HOST[:PORT]]", required=False)
@click.option(
    "--ca",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The fleet's authority, PEM. It is kept: only the first sign-in needs it.",
)
@click.option("--user", metavar="NAME", help="Who you are; asked for if it is not said.")
@click.option(
    "--password-file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="Read the password from here, - for standard input, instead of asking.",
)
@click.option(
    "--new-password-file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="Change the password, after signing in, to the one that stands here.",
)
@click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="Sign in with an API token that stands here, - for standard input.",
)
@json_option
def login(
    controller: str | None,
    ca: Path | None,
    user: str | None,
    password_file: str | None,
    new_password_file: str | None,
    token_file: str | None,
    as_json: bool,
) -> None:
    """Sign in to a controller, and stay so for the commands that follow.

    The connection is trusted by the fleet's own authority alone. The sign-in is kept in
    ~/.config/defenderctl, for you only. A password that somebody else has set, as the first admin's, must be
    changed at once; a new one is asked for, or read from --new-password-file.
    """
    if (password_file, new_password_file) == ("-", "-"):
        raise click.UsageError("only one password can come from standard input")
    if token_file and (password_file or new_password_file or user):
        raise click.UsageError("--token-file stands alone: a token says whose it is")
    path = login_file(os.environ)
    place = _place(path, controller, ca)
    if token_file:
        made = _by_token(place, _secret(token_file))
    else:
        name = user or place.user or click.prompt("User", err=True)
        secret = _secret(password_file) if password_file else _asked(name)
        wanted = _secret(new_password_file) if new_password_file else ""
        made, must_change = _by_password(place, name, secret)
        if must_change and not wanted:
            wanted = _chosen(made)
        if wanted:
            _change_password(made, secret, wanted)
    try:
        write_login(path, made)
    except LoginError as error:
        fail(str(error))
    if as_json:
        told = {"controller": made.controller, "user": made.user, "expires_at": made.expires_at}
        print_json({**told, "file": str(path)})
    else:
        print_line(f"Signed in at {made.controller} as {made.user}, until {shown_time(made.expires_at)} UTC.")


def _place(path: Path, controller: str | None, ca: Path | None) -> Login:
    """Where to sign in, as far as it is said or known from the last time."""
    known: Login | None = None
    # One that is unusable is replaced; what was said must then be all that is needed.
    try:
        known = read_login(path)
    except LoginError as error:
        if controller is None or ca is None:
            fail(str(error) if controller is None else f"{error}; the authority is needed: --ca FILE")
    try:
        address = controller_address(controller) if controller else known.controller if known else ""
    except LoginError as error:
        raise click.BadParameter(str(error), param_hint="HOST") from None
    same = known is not None and known.controller == address
    user = known.user if known and same else ""
    if ca is not None:
        return Login(address, _authority(ca), user)
    if known is None or not same:
        raise click.UsageError(f"{address} is new here; its authority is needed: --ca FILE")
    return Login(address, known.authority, user)


def _authority(ca: Path) -> str:
    try:
        data = ca.read_bytes()[: MAX_CA + 1]
        text = data.decode("ascii")
    except OSError as error:
        fail(f"{ca}: {error.strerror or error}")
    except UnicodeDecodeError:
        text = ""
    if len(text) > MAX_CA or _PEM not in text:
        raise click.BadParameter(f"{ca} holds no certificates in PEM", param_hint="--ca")
    return text


def _asked(name: str) -> str:
    # Without a terminal a prompt would wait for nobody.
    if not sys.stdin.isatty():
        raise click.UsageError("nobody can be asked for the password here; use --password-file")
    password: str = click.prompt(f"Password of {name}", hide_input=True, err=True)
    return password


def _secret(file: str) -> str:
    """The first line."""
    with click.open_file(file, "r", encoding="utf-8", errors="strict") as stream:
        try:
            line: str = stream.readline(MAX_SECRET + 1).rstrip("\r\n")
        except UnicodeDecodeError:
            line = ""
    if not line or len(line) > MAX_SECRET:
        fail(f"{'standard input' if file == '-' else file} holds no secret in its first line")
    return line


def _chosen(made: Login) -> str:
    """A new password."""
    told = "this password was set by somebody else and must be changed"
    if not sys.stdin.isatty():
        _end(made, again=True)
        fail(f"{told}; nobody can be asked for a new one here; use --new-password-file")
    complain(told)
    password: str = click.prompt("New password", hide_input=True, confirmation_prompt=True, err=True)
    return password


def _change_password(made: Login, present: str, wanted: str) -> None:
    async def act(client: Client) -> str:
        try:
            body = {"present": present, "wanted": wanted}
            await client.ask("PUT", "/api/v1/accounts/current/password", body=body)
        except ClientError as error:
            return str(error)
        return ""

    trouble = with_controller(act, made, again=True)
    if trouble:
        _end(made, again=True)
        fail(f"the password stays as it is: {trouble}")


def _by_password(place: Login, user: str, password: str) -> tuple[Login, bool]:
    """The sign-in, and whether the password must be changed before anything else."""

    async def act(client: Client) -> Any:
        body = {"user": user, "password": password}
        return (await client.ask("POST", "/api/v1/sessions", body=body)).document

    made = with_controller(act, Login(place.controller, place.authority))
    whole = Login(place.controller, place.authority, made["user"], made["token"], made["expires_at"])
    return whole, made["must_change_password"]


def _by_token(place: Login, token: str) -> Login:
    if not token.isascii() or not token.isprintable() or " " in token:
        fail("that is no token")

    async def act(client: Client) -> Any:
        return (await client.ask("GET", "/api/v1/sessions/current")).document

    whose = with_controller(act, Login(place.controller, place.authority, "", token))
    return Login(place.controller, place.authority, whose["user"], token, whose["expires_at"])


@click.command(epilog="\b\nExample:\n  defenderctl logout")
@click.option("--keep-session", is_flag=True, help="Forget it here only; the controller is not told.")
def logout(keep_session: bool) -> None:
    """End the sign-in, at the controller and here.

    An API token is only forgotten here; it is revoked with `defenderctl api-tokens revoke`.
    """
    path = login_file(os.environ)
    try:
        known = read_login(path)
        if not keep_session and not known.is_over:
            _end(known)
        forget_login(path)
    except LoginError as error:
        fail(str(error))
    print_line(f"Signed out of {known.controller}.")


def _end(known: Login, *, again: bool = False) -> None:
    async def act(client: Client) -> str:
        try:
            whose = (await client.ask("GET", "/api/v1/sessions/current")).document
            if whose["via"] == "session":
                await client.ask("DELETE", "/api/v1/sessions/current")
        except ClientError as error:
            # Whatever it is, the sign-in is not to stay here.
            return "" if error.status == 401 else str(error)
        return ""

    trouble = with_controller(act, known, again=again)
    if trouble:
        when = f" at {shown_time(known.expires_at)} UTC" if known.expires_at else ""
        complain(f"{trouble}; the session ends by itself{when}")
