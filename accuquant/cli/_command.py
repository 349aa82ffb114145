"""The two kinds of click command that AccuQuant uses."""

from __future__ import annotations

import importlib
from typing import Any

import click

from accuquant.cli._names import COMMANDS
from accuquant.cli._session import session_options

CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Command(click.Command):
    """A command with the options that every one has: --config, --debug, --quiet."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        from accuquant.cli._config import config_option  # not for the help of the root command

        super().__init__(*args, **kwargs)
        self.short_help = COMMANDS.get(str(self.name), self.short_help)
        self.context_settings = {**CONTEXT_SETTINGS, **self.context_settings}
        if any(param.expose_value for param in self.params):
            self.params.append(config_option())
        self.params += session_options()


class LazyGroup(click.Group):
    """The root command; a subcommand's module is imported when it is asked for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.context_settings = {**CONTEXT_SETTINGS, **self.context_settings}
        self.params += session_options()

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the help text."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command, or None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"accuquant.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, and list the valid names where there is none of that name."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"No command '{args[0]}'; the commands are {', '.join(COMMANDS)}.", ctx)
        return super().resolve_command(ctx, args)
