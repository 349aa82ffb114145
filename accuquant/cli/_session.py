"""What one run of the command line shares between its parts."""

from __future__ import annotations

from dataclasses import dataclass

import click


@dataclass
class Session:
    """The global switches; they may stand before or after the command's name."""

    debug: bool = False
    quiet: bool = False


def current_session() -> Session:
    """Return the session of the command that is running now."""
    return click.get_current_context().ensure_object(Session)


def _switch(name: str, text: str) -> click.Option:
    def set_switch(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value:
            setattr(ctx.ensure_object(Session), name, True)

    return click.Option(
        [f"--{name}"], is_flag=True, is_eager=True, expose_value=False, callback=set_switch, help=text
    )


def session_options() -> list[click.Parameter]:
    """Return fresh --debug and --quiet options."""
    return [
        _switch("debug", "Show the traceback of an error, and the libraries' warnings."),
        _switch("quiet", "Show no progress."),
    ]
