"""`defenderctl`: the root command.  Groups are imported when they are used."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys

import click

from controller.cli.output import complain

GROUPS = {
    "audit": ("controller.cli.audit:audit", "Show what was asked, by whom, and what was decided."),
    "local": ("controller.cli.local:local", "Steer the defender of this machine."),
    "pki": ("controller.cli.pki:pki", "Make and show certificates."),
    "policy": ("controller.cli.policy:policy", "Check policies and explain what they decide."),
}
"""Group -> where it is defined, as `module:attribute`, and its line in `--help`."""


class LazyGroup(click.Group):
    """A group whose subgroups are imported by name, one at a time: `--help` and completion import none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All groups, whether or not they can be imported."""
        return sorted(GROUPS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one group; `None` for an unknown name."""
        if cmd_name not in GROUPS:
            return None
        module, _, attribute = GROUPS[cmd_name][0].partition(":")
        try:
            command: click.Command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            raise click.UsageError(f"this installation has no command {cmd_name!r}") from None
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of groups in `--help`, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, GROUPS[name][1]) for name in self.list_commands(ctx)])


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
    cls=LazyGroup,
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
