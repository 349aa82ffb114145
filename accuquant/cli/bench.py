"""The command `accuquant bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from accuquant.cli._command import Command
from accuquant.cli._options import Source, engine_precision_option, exported_folder, trust_option
from accuquant.cli._output import console_beside_json, json_option, print_table, write_json
from accuquant.cli._source import loading_options, take_loading

if TYPE_CHECKING:
    from rich.console import Console

    from accuquant.bench.bench import BenchReport


@click.command("bench", cls=Command)
@click.argument("folder", type=exported_folder, metavar="OUT")
@click.option(
    "--reference",
    type=Source(),
    metavar="SOURCE",
    help="The pipeline that OUT was exported from, to time PyTorch as well.",
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=1, show_default=True, help="Images at a time."
)
@click.option("--rounds", type=click.IntRange(min=2), default=30, show_default=True, help="Timed rounds.")
@click.option(
    "--threads", "num_threads", type=click.IntRange(min=1), show_default="all cores", help="CPU threads."
)
@engine_precision_option
@trust_option
@loading_options
@json_option("every time")
def command(folder: Path, reference: str | None, json_file: Path | None, **options: Any) -> None:
    """Time one network call of the exported folder OUT in every engine that is there.

    The engines take turns, so that a busy moment hits all alike. Beside int8 it times the same network
    without int8: "INT8 is slower here" is a good answer too.
    """
    report = run(folder, reference, options)
    if json_file:
        write_json(json_file, json.dumps(report.to_dict(), indent=2))
    print_report(console_beside_json(json_file), report)


def run(folder: Path, reference: str | None, options: dict[str, Any]) -> BenchReport:
    """Measure with progress on stderr; `options` are those of the command."""
    from accuquant.bench.bench import run_bench
    from accuquant.cli._progress import Bars

    source = None
    given: dict[str, Any] = {name: options.pop(name) for name in ("variant", "without") if name in options}
    if reference is not None:
        from accuquant.manifest import RECIPE_NAME
        from accuquant.pipelines.source import load_source
        from accuquant.recipe import Recipe

        recorded = Recipe.load(folder / RECIPE_NAME).facts.loading
        source = load_source(reference, **vars(take_loading(given, recorded)))
    with Bars() as progress:
        return run_bench(folder, reference=source, progress=progress, **options)


def print_report(console: Console, report: BenchReport) -> None:
    """Print the times, what was left out, and the recommendation."""
    from rich.markup import escape

    from accuquant.bench.recommend import Speed

    slowest = max(report.times.values(), key=lambda times: times.median)
    rows = []
    for contender in sorted(report.contenders, key=lambda c: report.times[c.name].median):
        times = report.times[contender.name]
        columns = [times.median, *(times.percentile(share) for share in (10, 90, 99))]
        speed = Speed.of(times, slowest).median
        rows.append(
            (
                contender.name,
                contender.device,
                *(f"{value:.2f}" for value in columns),
                f"{speed:.2f}x",
            )
        )
    headings = ("engine", "device", "median ms", "p10", "p90", "p99", "speed")
    print_table(console, headings, rows)
    for line in report.chosen:
        console.print(f"[dim]{escape(line)}[/dim]")
    for entry in report.left_out:
        console.print(f"[dim]not timed: {escape(entry.name)}: {escape(entry.reason)}[/dim]")
    console.print(f"Batch {report.batch_size}, {report.rounds} interleaved rounds.")
    console.print(f"[bold]{escape(report.recommendation)}[/bold]")
