"""Groups whose commands are imported when they are used: `--help` and completion import none of them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click

Places = Mapping[str, tuple[str, str]]
"""Command -> where it is defined, as `module:attribute`, and its line in `--help`."""


class LazyGroup(click.Group):
    """A group with commands of its own and others that are imported by name, one at a time.

    Args:
        places: the others. The mapping is looked into each time, so it may be replaced.
    """

    def __init__(self, *args: Any, places: Places | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._places: Places = places or {}

    @property
    def places(self) -> Places:
        """Where the others are."""
        return self._places

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, whether or not they can be imported."""
        return sorted({*super().list_commands(ctx), *self.places})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command; `None` for an unknown name."""
        if cmd_name not in self.places:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self.places[cmd_name][0].partition(":")
        try:
            command: click.Command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            raise click.UsageError(f"this installation has no command {cmd_name!r}") from None
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands in `--help`, without importing them."""
        rows = []
        for name in self.list_commands(ctx):
            if name in self.places:
                rows.append((name, self.places[name][1]))
            elif (command := super().get_command(ctx, name)) is not None:
                rows.append((name, command.get_short_help_str(formatter.width)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)
