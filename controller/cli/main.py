"""`defenderctl`: the root command.  Commands are imported when they are used."""

from __future__ import annotations

import importlib.metadata
import os
import sys

import click

from controller.cli.groups import LazyGroup, Places
from controller.cli.output import complain

GROUPS = {
    "api-tokens": ("controller.cli.tokens:api_tokens", "Make what programs sign in with."),
    "audit": ("controller.cli.audit:audit", "Show what was asked, by whom, and what was decided."),
    "controller": ("controller.cli.rotation:controller", "Back up and restore a controller, on its host."),
    "defenders": ("controller.cli.defenders:defenders", "Show and steer the fleet's defenders."),
    "lock": ("controller.cli.locks:lock", "Shut somebody out of the whole fleet at once."),
    "login": ("controller.cli.login_commands:login", "Sign in to a controller."),
    "logout": ("controller.cli.login_commands:logout", "Sign out."),
    "local": ("controller.cli.local:local", "Steer the defender of this machine."),
    "pki": ("controller.cli.pki:pki", "Make and show certificates."),
    "policy": ("controller.cli.policy:policy", "Check, explain and publish policies."),
    "status": ("controller.cli.status:status", "Show the fleet in a few numbers."),
    "tokens": ("controller.cli.tokens:tokens", "Make what lets new defenders in."),
}
"""Command -> where it is defined, as `module:attribute`, and its line in `--help`."""


class RootGroup(LazyGroup):
    """The root command: everything is imported when it is used."""

    @property
    def places(self) -> Places:
        """Where the commands are."""
        return GROUPS


EPILOG = """\b
Examples:
  defenderctl policy check policy.yaml
  defenderctl pki issue --user bruce --group "Dev team" --out ~/.docker

\b
Exit codes: 0 ok or allowed, 1 denied or invalid, 2 wrong usage.
Completion: eval "$(_DEFENDERCTL_COMPLETE=bash_source defenderctl)"; zsh and fish likewise.
"""


def _print_version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    try:
        version = importlib.metadata.version("defender-fleet")
    except importlib.metadata.PackageNotFoundError:
        version = "from a checkout that is not installed"
    click.echo(f"defenderctl {version}")
    ctx.exit(0)


@click.group(
    cls=RootGroup,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def defenderctl() -> None:
    """Check policies, make certificates, steer defenders and read what they recorded."""


def main() -> None:
    """The console script: errors are one line on standard error, never a stack trace.

    `DEFENDERCTL_TRACE=1` shows the stack trace of an error that should not happen.
    """
    try:
        defenderctl(prog_name="defenderctl")
    except Exception as error:
        if os.environ.get("DEFENDERCTL_TRACE"):
            raise
        told = str(error).splitlines()
        complain(f"Error: {told[0] if told else type(error).__name__}")
        if not isinstance(error, OSError):
            complain(
                f"This is a fault of defenderctl ({type(error).__name__}); DEFENDERCTL_TRACE=1 shows where."
            )
        sys.exit(1)


if __name__ == "__main__":
    main()
