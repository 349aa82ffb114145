"""The command `accuquant bench`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from accuquant.cli._command import Command
from accuquant.cli._options import (
    Numbers,
    Source,
    engine_precision_option,
    exported_folder,
    steps_option,
    trust_option,
)
from accuquant.cli._output import console_beside_json, json_option, print_table, write_json
from accuquant.cli._source import LOADING, loading_options, network_option, take_loading
from accuquant.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from accuquant.bench.bench import BenchReport
    from accuquant.bench.throughput import Load, ThroughputReport

#: What --throughput alone takes.
_LOADED = ("streams", "batches", "seconds", "steps")


@click.command("bench", cls=Command)
@click.argument("folder", type=exported_folder, metavar="OUT")
@click.option(
    "--reference",
    type=Source(),
    metavar="SOURCE",
    help="The pipeline that OUT was exported from, to time PyTorch as well.",
)
@click.option(
    "--against",
    type=exported_folder,
    metavar="OTHER",
    help="Another export of the same network, to time int8 and FP8 in the same rounds.",
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
@network_option
@loading_options
@click.option(
    "--throughput",
    is_flag=True,
    help="Measure images a second against latency instead: several calls at a time in OpenVINO, and batches.",
)
@click.option(
    "--streams",
    type=Numbers(),
    metavar="N,N,...",
    show_default="1, 2, 4, ... up to the threads",
    help="Calls at a time (--throughput).",
)
@click.option(
    "--batches", type=Numbers(), metavar="N,N,...", show_default="1,2,4", help="Rows a call (--throughput)."
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    show_default="2",
    help="How long each setting is loaded in each of three rounds (--throughput).",
)
@steps_option
@json_option("every time")
def command(
    folder: Path, reference: str | None, json_file: Path | None, throughput: bool, **options: Any
) -> None:
    """Time one network call of the exported folder OUT in every engine that is there.

    The engines take turns, so that a busy moment hits all alike. Beside int8 it times the same network
    without int8: "INT8 is slower here" is a good answer too.

    With --throughput, OpenVINO is kept busy instead, with more calls at a time and more rows a call.
    """
    if throughput:
        served = run_loaded(folder, reference, options)
        if json_file:
            write_json(json_file, json.dumps(served.to_dict(), indent=2))
        print_throughput(console_beside_json(json_file), served)
        return
    _only_with("--throughput", options, _LOADED)
    report = run(folder, reference, options)
    if json_file:
        write_json(json_file, json.dumps(report.to_dict(), indent=2))
    print_report(console_beside_json(json_file), report)


def run(folder: Path, reference: str | None, options: dict[str, Any]) -> BenchReport:
    """Measure with progress on stderr; `options` are those of the command."""
    from accuquant.bench.bench import run_bench
    from accuquant.cli._progress import Bars

    source = None
    given: dict[str, Any] = {name: options.pop(name) for name in LOADING if name in options}
    if reference is not None:
        from accuquant.manifest import RECIPE_NAME
        from accuquant.pipelines.source import load_source
        from accuquant.recipe import Recipe

        recorded = Recipe.load(folder / RECIPE_NAME).facts.loading
        source = load_source(reference, **vars(take_loading(given, recorded)))
    with Bars() as progress:
        return run_bench(folder, reference=source, progress=progress, **options)


def run_loaded(folder: Path, reference: str | None, options: dict[str, Any]) -> ThroughputReport:
    """Measure throughput with progress on stderr; `options` are those of the command."""
    from accuquant.bench.throughput import run_throughput
    from accuquant.cli._progress import Bars

    given = {name: options[name] for name in (*_LOADED, "num_threads") if options[name] is not None}
    others = {
        "reference": reference,
        "against": options["against"],
        **{name: options[name] for name in (*LOADING, "trust_engines")},
    }
    _only_with("no --throughput", others, tuple(others))
    with Bars() as progress:
        return run_throughput(
            folder, engine_precision=options["engine_precision"], progress=progress, **given
        )


def _only_with(mode: str, options: dict[str, Any], names: Sequence[str]) -> None:
    """Take `names` out of `options`; refuse those that were given, which mean something with `mode` alone."""
    given = [f"--{name.replace('_', '-')}" for name in names if options.pop(name)]
    if given:
        raise UsageError(
            ", ".join(given),
            got="a choice",
            expected=f"none: it needs {mode}",
            remedy="Leave one of them out",
        )


def print_throughput(console: Console, report: ThroughputReport) -> None:
    """Print a row for each setting, the best and the quickest."""
    rows = [
        (
            str(load.setting.streams),
            str(load.setting.batch),
            f"{load.rate:.2f}",
            f"{load.latency:.1f}",
            f"{report.images_per_second(load):.3f}",
            f"{report.seconds_per_image(load):.2f}",
        )
        for load in report.loads
    ]
    headings = ("streams", "batch", "rows/s", "ms a call", "images/s", "s an image")
    print_table(console, headings, rows)
    threads = f"{report.num_threads} threads" if report.num_threads else "all cores"
    console.print(
        f"{report.processor}, {threads}, {report.rounds} interleaved rounds of {report.seconds:g} s each; an "
        f"image takes {report.steps} calls of {report.rows_per_image} rows, the network alone.",
        markup=False,
    )
    best, quickest = report.best, report.quickest
    console.print(
        f"[bold]Most images: {_named(best)}, {report.images_per_second(best):.3f} a second. Soonest: "
        f"{_named(quickest)}, {report.seconds_per_image(quickest):.2f} s an image.[/bold]"
    )


def _named(load: Load) -> str:
    streams, batch = load.setting.streams, load.setting.batch
    return f"{streams} stream{'s' * (streams != 1)} with batch {batch}"


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
