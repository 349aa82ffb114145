"""What commands print on stdout: tables for people, JSON for scripts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from accuquant._util.files import check_new_file
from accuquant.cli._options import Function, NewPath
from accuquant.errors import printable

if TYPE_CHECKING:
    from rich.console import Console

STDOUT = "-"


def json_option(what: str) -> Callable[[Function], Function]:
    """Return a decorator that adds --json FILE."""
    return click.option(
        "--json",
        "json_file",
        type=NewPath(check_new_file, allow_dash=True),
        metavar="FILE",
        help=f"Write {what} as JSON to this file; - for stdout.",
    )


def write_json(target: Path, text: str) -> None:
    """Write JSON to a file, atomically, or to stdout for `-`."""
    from accuquant._util.files import write_text

    if str(target) == STDOUT:
        click.echo(text, nl=not text.endswith("\n"))
    else:
        write_text(target, text)


def console_beside_json(json_file: Path | None) -> Console:
    """Return the console for people: stdout, or stderr where stdout carries the JSON.

    A sentence is one line, which the terminal wraps, so that it can be searched for and copied.
    """
    from rich.console import Console

    return Console(stderr=str(json_file) == STDOUT, highlight=False, soft_wrap=True)


def print_table(
    console: Console, columns: Sequence[str], rows: Iterable[Sequence[str]], *, unbroken: str | None = None
) -> None:
    """Print a plain table; cells may hold rich markup.

    Names from a file cannot move the cursor. Long cells are folded, but for those of the column `unbroken`: a
    path has to be copied in one piece, so that the table may be wider than the terminal.
    """
    from rich.box import SIMPLE_HEAD
    from rich.measure import Measurement
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == unbroken)
    for row in rows:
        table.add_row(*map(_without_controls, row))
    if unbroken is None:
        console.print(table, soft_wrap=False)
        return
    roomy = console.options.update(max_width=10_000)
    width = console.width
    console.width = max(width, Measurement.get(console, roomy, table).maximum)
    console.print(table, crop=False, soft_wrap=False)
    console.width = width


def _without_controls(cell: str) -> str:
    return "\n".join(printable(line, 20_000) for line in cell.split("\n"))
