"""``defenderctl controller rotate-ca``: an intermediate follows another, and no host is left behind.

A controller that starts publishes whatever intermediates there are. So a step is taken while it rests, and
the next one when its defenders have taken what it published: this looks that up in the store.
"""

from __future__ import annotations

import getpass
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
from cryptography import x509

from controller.cli.at_rest import AtRestError, record_change, stopped
from controller.cli.controller import controller
from controller.cli.output import json_option, print_json, print_line
from controller.pki.authority import FLEET_CA, USER_CA, Authority, AuthorityError, certificate_pem
from controller.pki.custody import CustodyError
from controller.pki.kept import certificates_of, chains_of
from controller.pki.storage import MissingAuthorityError, open_authority, pki_directory
from controller.pki.succession import make_successor, retire, switch
from controller.publisher_steps import ALL, content_of, read_states
from controller.store import bundles, defenders, positions
from controller.store.bundles import PositionRow
from controller.store.errors import StoreError
from defender.contract.trust import TRUST

KINDS: Final = {"fleet": FLEET_CA, "users": USER_CA}
_NAMED: Final = 5


def rotate(state: Path, which: str, step: str, user: str, *, even_now: bool = False) -> str:
    """Take a step; gives what is to be done next, a sentence for people.

    Raises AtRestError if a defender would be left behind, AuthorityError and CustodyError, OSError.
    """
    kind, directory, now = KINDS[which], pki_directory(state), datetime.now(UTC)
    with stopped(state) as connection:
        try:
            authority = open_authority(state, now)
        except MissingAuthorityError as error:
            raise AtRestError(str(error)) from None
        before = _shown(authority, which)
        if step == "prepare":
            make_successor(directory, kind, authority.trust_domain, authority.root, now)
            told = "Start the controller: it tells the defenders. When they know, stop it and switch."
        elif step == "switch":
            _refuse_for(even_now, _unaware(connection, authority, which), "do not know the other one yet")
            switch(directory, kind)
            told = (
                "Start the controller: the other one signs. What the one before has signed stays good "
                "until you retire it; another switch takes this back."
            )
        else:
            old = (authority.all_fleet if which == "fleet" else authority.all_users)[1:]
            if which == "fleet" and old:
                _refuse_for(even_now, _holders(connection, old[0]), "still have a certificate of it")
            retire(directory, kind)
            told = "Start the controller: what the old one has signed is good no more."
        record_change(connection, user, "ca_rotate", which, before, _shown(open_authority(state, now), which))
        return told


def _shown(authority: Authority, which: str) -> dict[str, object]:
    trusted = authority.all_fleet if which == "fleet" else authority.all_users
    names = [each.subject.rfc4514_string() for each in trusted]
    return {"signs": names[0], "trusted": names}


def _unaware(connection: sqlite3.Connection, authority: Authority, which: str) -> list[str]:
    """Names of the defenders that have not taken a trust with every intermediate that there is."""
    line = read_states(connection, TRUST).get(ALL)
    row = None if line is None else bundles.find(connection, TRUST, PositionRow(*line.release.position))
    trusted = authority.all_fleet if which == "fleet" else authority.all_users
    listed: list[str] = []
    if row is not None:
        listed = content_of(row.envelope)["authorities"]["fleet" if which == "fleet" else "user"]
    if row is None or not {certificate_pem(each).decode() for each in trusted} <= set(listed):
        raise AtRestError("the other one is not published yet: start the controller once, and stop it again")
    known = {
        each.defender
        for each in positions.held(connection, TRUST)
        if each.position is not None and each.position >= row.position
    }
    return [each.name for each in defenders.every(connection) if not each.lock and each.id not in known]


def _holders(connection: sqlite3.Connection, issuer: x509.Certificate) -> list[str]:
    """Names of the defenders whose certificate comes from this intermediate."""
    found = []
    for each in defenders.every(connection):
        known = certificates_of(connection, each.id)
        if each.lock or known is None:
            continue
        chain, _ = chains_of(connection, each.id, known.used)
        # Of one that a restored store does not know the chain is not there.
        if not chain or x509.load_der_x509_certificate(chain[0]).issuer == issuer.subject:
            found.append(each.name)
    return found


def _refuse_for(even_now: bool, names: list[str], why: str) -> None:
    if names and not even_now:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        raise AtRestError(
            f"{', '.join(names[:_NAMED])}{more} {why}, and would be left behind: wait for them, or remove or "
            "lock them (--even-now: do it all the same; they join anew)"
        )


@controller.command("rotate-ca")
@click.argument("which", type=click.Choice(tuple(KINDS)))
@click.argument("step", type=click.Choice(("prepare", "switch", "retire")))
@click.option(
    "--state",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    required=True,
    help="The controller's state directory (its setting controller.state).",
)
@click.option("--even-now", is_flag=True, help="Also where that leaves defenders behind.")
@json_option
def rotate_ca(which: str, step: str, state: Path, even_now: bool, as_json: bool) -> None:
    """Have another intermediate sign certificates of the fleet or of users. The controller must not run.

    \b
    prepare  makes the other one; with its next start the controller tells the defenders of it
    switch   has it sign, once all defenders know it; a second time takes that back
    retire   ends what the old one has signed; for the fleet once no defender has that, which takes a week

    The root's key is needed for prepare. Users' certificates of the old one end with retire.

    \b
    Example:
      defenderctl controller rotate-ca fleet prepare --state /var/lib/defender-controller
    """
    try:
        told = rotate(state.absolute(), which, step, getpass.getuser(), even_now=even_now)
    except (AtRestError, AuthorityError, CustodyError, StoreError) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"{error.filename or 'the disk'}: {error.strerror or error}") from error
    if as_json:
        print_json({"which": which, "step": step})
        return
    print_line(told)


__all__ = ["controller", "rotate", "rotate_ca"]
