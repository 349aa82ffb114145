"""The entry points of `accuquant` and `accuquant-export`."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

import click

from accuquant import __version__
from accuquant.cli._command import LazyGroup
from accuquant.cli._failure import explain
from accuquant.cli._session import Session
from accuquant.cli._signals import terminable
from accuquant.errors import FloatLayersWarning


@click.group("accuquant", cls=LazyGroup, invoke_without_command=True)
@click.version_option(__version__, "-V", "--version")
@click.pass_context
def command(ctx: click.Context) -> None:
    """Take a trained diffusion model to int8 on real engines without losing its images.

    Start with `accuquant demo`, or with `accuquant doctor` where something does not work.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(args: Sequence[str] | None = None) -> int:
    """Run `accuquant` and return its exit code."""
    return run(command, "accuquant", args)


def export_main(args: Sequence[str] | None = None) -> int:
    """Run `accuquant-export`, another name for `accuquant export`, and return its exit code."""
    from accuquant.cli.export import command as export_command

    return run(export_command, "accuquant-export", args)


def run(target: click.Command, name: str, args: Sequence[str] | None = None) -> int:
    """Run a click command: errors become one line on stderr and an exit code."""
    session = Session()
    _let_threads_sleep()
    _hush_libraries(sys.argv if args is None else args)
    _show_own_warnings(name)
    try:
        with terminable():
            code = target.main(args, prog_name=name, obj=session, standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:
        if session.debug:
            import traceback

            traceback.print_exception(error)
        line, code = explain(error)
        click.echo(f"{name}: {line}", err=True)
    return code if isinstance(code, int) else 0


def _let_threads_sleep() -> None:
    """Let threads that wait for each other sleep soon, not spin: read by OpenMP when torch is first imported.

    Beside other work a spinning thread takes the processor from the one that it waits for; with nothing
    beside it, a thread that sleeps at once is woken late. benchmarks/crowded.py measures both.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _hush_libraries(args: Sequence[str]) -> None:
    """Keep other packages' warnings off the screen, unless --debug asks for them and for our own log."""
    if "--debug" in args:
        logging.basicConfig(format="%(message)s")
        logging.getLogger("accuquant").setLevel(logging.INFO)
    else:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=FloatLayersWarning)
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _show_own_warnings(name: str) -> None:
    """Show a warning of ours as one line on stderr, without the line of code that Python adds."""
    others = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, FloatLayersWarning):
            click.echo(f"{name}: warning: {message}", err=True)
        else:
            others(message, category, filename, lineno, file, line)

    warnings.showwarning = show
