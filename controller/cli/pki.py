"""``defenderctl pki``: the certificate authority of one host or of a fleet, on the command line."""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import click
from cryptography import x509

from controller.cli.output import complain, json_option, print_json, printable, state_option
from controller.pki.authority import (
    SERVER_LIFE,
    USER_LIFE,
    USER_LIFE_ADVISED,
    USER_LIFE_MAX,
    Authority,
    AuthorityError,
)
from controller.pki.credentials import (
    ForeignCredentialsError,
    certificate_hosts,
    ensure_server_files,
    issue_user_files,
    user_directory,
)
from controller.pki.custody import CustodyError
from controller.pki.names import local_names, short_host_name
from controller.pki.storage import (
    MissingAuthorityError,
    create_authority,
    open_authority,
    pki_directory,
    read_certificate,
)
from controller.pki.view import CertificateView, iso_time, view_certificate
from defender.contract.errors import IdentityError
from defender.contract.identity import (
    TRUST_DOMAIN_DEFAULT,
    check_trust_domain,
    check_user_name,
)

_P = ParamSpec("_P")
_R = TypeVar("_R")

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_TTL = re.compile(r"([1-9][0-9]{0,8})([smhd])")


class TTL(click.ParamType[timedelta]):
    """A time to live: 30m, 8h, 7d."""

    name = "TTL"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return the time; a usage error for anything but a whole number and one of s, m, h, d."""
        if isinstance(value, timedelta):
            return value
        match = _TTL.fullmatch(str(value))
        if match is None:
            self.fail(
                f"{value!r} is no time to live; write a number and a unit, as 30m, 8h or 7d", param, ctx
            )
        return timedelta(seconds=int(match[1]) * _UNITS[match[2]])


def _now() -> datetime:
    return datetime.now(UTC)


def _plain_errors(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turn what a person can do something about into one line and exit code 1."""

    @wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return command(*args, **kwargs)
        except MissingAuthorityError as error:
            state = error.directory.parent
            raise click.ClickException(
                f"{error}; make one with: defenderctl pki init --state {state}"
            ) from error
        except (AuthorityError, CustodyError, ForeignCredentialsError) as error:
            raise click.ClickException(printable(str(error))) from error
        except OSError as error:
            raise click.ClickException(
                f"{error.filename or 'the disk'}: {error.strerror or error}"
            ) from error

    return run


@click.group(
    epilog="\b\nFirst steps:\n  defenderctl pki init\n  defenderctl pki server\n"
    "  defenderctl pki issue --user alice@example.com --group 'Dev team' --install",
)
def pki() -> None:
    """Make certificates: an authority, users, defenders.

    One root signs two intermediates: one for users, one for defenders. A user's certificate carries the name
    and the groups that rules speak about.
    """


@pki.command(epilog="\b\nExamples:\n  defenderctl pki init --state /var/lib/defender")
@state_option
@click.option(
    "--trust-domain",
    metavar="TD",
    help=f"The name all certificates share, as in spiffe://TD/user/ID. [default: {TRUST_DOMAIN_DEFAULT}]",
)
@click.option(
    "--replace",
    is_flag=True,
    help="Make a new authority although there is one; the old one is moved aside and its certificates end.",
)
@_plain_errors
def init(state: Path, trust_domain: str | None, replace: bool) -> None:
    """Make the authority, unless it is there.

    An authority that is there is checked and kept. Exit code: 0 if it is complete and valid, 1 if not.
    """
    if trust_domain is not None:
        _check_option(check_trust_domain, trust_domain, "--trust-domain")
    directory = pki_directory(state).absolute()
    if not replace:
        try:
            authority = open_authority(state, _now())
        except MissingAuthorityError:
            pass
        else:
            _report_existing(authority, directory, trust_domain)
            return
    try:
        authority, aside = create_authority(
            state, trust_domain or TRUST_DOMAIN_DEFAULT, _now(), replace=replace
        )
    except FileExistsError:  # somebody else made it just now
        _report_existing(open_authority(state, _now()), directory, trust_domain)
        return
    if aside is not None:
        click.echo(f"The old authority is now {aside.absolute()}; certificates that it issued are refused.")
    click.echo(f"Made an authority for trust domain {authority.trust_domain} in {directory}")
    click.echo(f"  root   until {_day(authority.root)}   {directory / 'root.key'} may be taken off line")
    click.echo(f"  users  until {_day(authority.users)}")
    click.echo(f"  fleet  until {_day(authority.fleet)}")


@pki.command(
    epilog="\b\nExamples:\n"
    "  defenderctl pki issue --user alice@example.com --group 'Dev team' --group ops --install\n"
    "  defenderctl pki issue --user ci-42 --ttl 30m --out ./ci-certificates",
)
@state_option
@click.option("--user", required=True, metavar="NAME", help="The user's name, as rules see it.")
@click.option("--group", "groups", multiple=True, metavar="NAME", help="A group of the user; repeat it.")
@click.option(
    "--ttl",
    type=TTL(),
    default="8h",
    show_default=True,
    help="How long it lives: 30m, 8h, 7d. More than 24h is warned of, 365d is the most.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the files go. [default: STATE/certs/NAME]",
)
@click.option(
    "--install",
    is_flag=True,
    help="Put the files where docker looks: DOCKER_CERT_PATH, else DOCKER_CONFIG, else ~/.docker.",
)
@click.option("--force", is_flag=True, help="Overwrite credentials that another authority issued.")
@_plain_errors
def issue(
    state: Path,
    user: str,
    groups: tuple[str, ...],
    ttl: timedelta,
    out: Path | None,
    install: bool,
    force: bool,
) -> None:
    """Issue a user's certificate: ca.pem, cert.pem and key.pem, readable by their owner only."""
    if out is not None and install:
        raise click.UsageError("--out and --install say two different places; give one of them")
    if ttl > USER_LIFE_MAX:
        raise click.BadParameter(f"at most {USER_LIFE_MAX.days}d", param_hint="--ttl")
    _check_option(check_user_name, user, "--user")
    groups = tuple(dict.fromkeys(groups))
    authority = open_authority(state, _now())
    directory = (_docker_directory() if install else out or user_directory(state, user)).absolute()
    now = _now()
    issued = issue_user_files(authority, directory, user, groups, now=now, life=ttl, force=force)
    if ttl > USER_LIFE_ADVISED:
        _warn(
            f"this certificate lives longer than {_span(USER_LIFE_ADVISED)}: whoever holds its key keeps "
            f"these groups until then (default: {_span(USER_LIFE)})"
        )
    if issued.not_after < now + ttl - timedelta(seconds=1):
        _warn(f"its life was cut to that of the user authority, which ends on {_day(authority.users)}")
    click.echo(f"Certificate for {user}, valid until {_minute(issued.not_after)}")
    click.echo(f"  groups  {', '.join(groups) or 'none'}")
    click.echo(f"  serial  {issued.leaf.serial_number:x}")
    click.echo(f"  files   {directory}/ca.pem cert.pem key.pem")
    click.echo("\nTo use it:")
    click.echo(f"  export DOCKER_HOST=tcp://{_defender_host(state)}:{_defender_port(state)}")
    click.echo("  export DOCKER_TLS_VERIFY=1")
    click.echo(f"  export DOCKER_CERT_PATH={shlex.quote(str(directory))}")


@pki.command(
    epilog="\b\nExamples:\n"
    "  defenderctl pki server\n"
    "  defenderctl pki server --name web1.example.com --name 10.0.0.7 --defender web1",
)
@state_option
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="HOST_OR_IP",
    help="A name or address that clients connect to; repeat it. [default: this host's names and addresses]",
)
@click.option("--defender", metavar="NAME", help="The defender's name. [default: this host's short name]")
@click.option("--ttl", type=TTL(), default="365d", show_default=True, help="How long it lives, as 30d.")
@_plain_errors
def server(state: Path, names: tuple[str, ...], defender: str | None, ttl: timedelta) -> None:
    """Issue the defender's own certificate, unless the one that is there still does.

    Writes STATE/tls/server.pem, server.key and client-ca.pem. A new one is issued when the names change or a
    third of its life or less is left.
    """
    if ttl > SERVER_LIFE:
        raise click.BadParameter(f"at most {SERVER_LIFE.days}d", param_hint="--ttl")
    authority = open_authority(state, _now())
    directory = (state / "tls").absolute()
    outcome = ensure_server_files(
        authority,
        directory,
        defender or short_host_name(),
        names or local_names(),
        exact=bool(names),
        now=_now(),
        life=ttl,
    )
    until = _minute(outcome.certificate.not_valid_after_utc)
    if outcome.reason:
        click.echo(f"Server certificate issued ({printable(outcome.reason)}), valid until {until}")
    else:
        click.echo(f"Server certificate still valid until {until}")
    click.echo(f"  names   {', '.join(certificate_hosts(outcome.certificate))}")
    click.echo(f"  files   {directory}/server.pem server.key client-ca.pem")


@pki.command(epilog="\b\nExamples:\n  defenderctl pki show ~/.docker/cert.pem")
@state_option
@click.option(
    "--trust-domain",
    metavar="TD",
    help="The trust domain to check against. [default: that of the state, else the certificate's own]",
)
@json_option
@click.argument("certificate", type=click.Path(dir_okay=False, exists=True, path_type=Path), metavar="CERT")
@_plain_errors
def show(state: Path, trust_domain: str | None, as_json: bool, certificate: Path) -> None:
    """Show what a defender reads from a client's certificate, and every check that it fails.

    Exit code: 0 if a defender would accept it now, 1 if not. The issuer is checked if the state holds an
    authority.
    """
    if trust_domain is not None:
        _check_option(check_trust_domain, trust_domain, "--trust-domain")
    view = view_certificate(read_certificate(certificate), state, trust_domain, _now())
    if as_json:
        print_json(view.to_json())
    else:
        _show_for_people(view)
    if view.failed:
        raise SystemExit(1)


def _show_for_people(view: CertificateView) -> None:
    seen = view.examination
    groups = "unreadable" if seen.claims is None else ", ".join(seen.claims.groups) or "none"
    issuer = "checked" if view.issuer_checked else "not checked: no authority in the state directory"
    if any(failed.check == "issuer" for failed in view.failed):
        issuer = "not this state's user authority"
    rows = [
        ("user", seen.user),
        ("groups", groups),
        ("identity", seen.identity),
        ("serial", seen.serial),
        ("issuer", f"{seen.issuer} ({issuer})"),
        ("valid from", iso_time(seen.not_before)),
        ("valid until", iso_time(seen.not_after)),
    ]
    if view.hosts:
        rows.append(("host names", ", ".join(view.hosts)))
    for label, value in rows:
        click.echo(f"{label:<12} {printable(value or 'unreadable')}")
    verdict = _styled("refused", "red") if view.failed else _styled("accepted", "green")
    click.echo(f"{'verdict':<12} {verdict}")
    for failed in view.failed:
        click.echo(f"  {failed.check}: {printable(failed.detail)}")


def _report_existing(authority: Authority, directory: Path, trust_domain: str | None) -> None:
    if trust_domain is not None and trust_domain != authority.trust_domain:
        raise AuthorityError(
            f"{directory} holds an authority for trust domain {authority.trust_domain!r}, "
            f"not {trust_domain!r}; use another state directory, or --replace"
        )
    end = min(authority.users.not_valid_after_utc, authority.fleet.not_valid_after_utc)
    click.echo(
        f"There is an authority for trust domain {authority.trust_domain} in {directory}: complete, and "
        f"valid until {end:%Y-%m-%d}. Nothing was changed."
    )


def _check_option(check: Callable[[str], None], value: str, option: str) -> None:
    try:
        check(value)
    except IdentityError as error:
        raise click.BadParameter(error.detail, param_hint=option) from error


def _docker_directory() -> Path:
    """Return where docker's clients look for certificates, in the order in which they look."""
    for variable in ("DOCKER_CERT_PATH", "DOCKER_CONFIG"):
        if os.environ.get(variable):
            return Path(os.environ[variable])
    return Path.home() / ".docker"


def _defender_port(state: Path) -> str:
    """The port of the first TLS address in the defender's settings, if they are here and name one."""
    try:
        with (state / "defender.toml").open("rb") as file:
            address = tomllib.load(file)["listen"]["tcp"][0]
        port = str(address).rpartition(":")[2]
    except (OSError, ValueError, LookupError, TypeError):
        port = ""
    return port if port.isdecimal() and port != "0" else os.environ.get("DEFENDER_PORT") or "9998"


def _defender_host(state: Path) -> str:
    """Return a name under which clients reach the defender: one from its certificate, else this host's."""
    try:
        hosts = certificate_hosts(read_certificate(state / "tls" / "server.pem"))
    except AuthorityError:
        hosts = ()
    if not hosts:
        return short_host_name()
    return f"[{hosts[0]}]" if ":" in hosts[0] else hosts[0]


def _warn(text: str) -> None:
    complain(f"Warning: {text}")


def _styled(text: str, color: str) -> str:
    return text if os.environ.get("NO_COLOR") else click.style(text, fg=color)


def _span(life: timedelta) -> str:
    return f"{int(life.total_seconds()) // 3600}h"


def _day(certificate: x509.Certificate) -> str:
    return f"{certificate.not_valid_after_utc:%Y-%m-%d}"


def _minute(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
