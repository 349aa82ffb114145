"""The command `accuquant verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from accuquant.cli._command import Command
from accuquant.cli._limits import LIMITS, limit_options
from accuquant.cli._options import (
    Source,
    device_option,
    engine_option,
    engine_precision_option,
    exported_folder,
    lora_option,
    new_file,
    num_images_option,
    seed_option,
    steps_option,
    take_weights_options,
    trust_option,
    weights_options,
)
from accuquant.cli._output import console_beside_json, json_option, print_table, write_json
from accuquant.cli._source import loading_options, take_loading
from accuquant.cli._task import take_task, task_options

if TYPE_CHECKING:
    from rich.console import Console

    from accuquant.verification.report.report import Report


@click.command("verify", cls=Command)
@click.argument("folder", type=exported_folder, metavar="OUT")
@click.option(
    "--reference",
    type=Source(),
    required=True,
    metavar="SOURCE",
    help="The pipeline that OUT was exported from.",
)
@engine_option
@engine_precision_option
@trust_option
@num_images_option(64)
@steps_option
@seed_option(10_000)
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Images at a time."
)
@click.option(
    "--features",
    default="auto",
    show_default=True,
    help="Feature network of FID2FP32: auto, fashion, inception, clean-fid, none, package.module:callable.",
)
@click.option("--layers", is_flag=True, help="Compare layer by layer as well.")
@click.option(
    "--allow-other-scheduler", is_flag=True, help="Go on with a scheduler other than the calibrated one."
)
@device_option
@weights_options
@lora_option("those that OUT was calibrated with by default")
@loading_options
@task_options
@limit_options
@json_option("the report")
@click.option("--html", "html_file", type=new_file, metavar="FILE", help="Write the report as one HTML page.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    folder: Path,
    reference: str,
    json_file: Path | None,
    html_file: Path | None,
    **options: Any,
) -> None:
    """Compare the exported folder OUT with the FP32 pipeline SOURCE on the same seeds.

    A pipeline that takes prompts or images needs some here too, best others than it was calibrated with; the
    guidance and the strength are the calibrated ones unless you change them.

    Exits with 1 where a threshold (--min-..., --max-...) fails; `none` switches one off. With all of them off
    nothing is judged, and the exit code is 0.
    """
    report = run(folder, reference, options)
    print_verdict(console_beside_json(json_file), report)
    if json_file:
        write_json(json_file, report.to_json())
    if html_file:
        from accuquant.verification.report.html import write_html

        write_html(report, html_file)
    if report.passed is False:
        ctx.exit(1)


def run(folder: Path, reference: str, options: dict[str, Any]) -> Report:
    """Verify with progress on stderr; `options` are those of the command."""
    from accuquant.cli._progress import Bars
    from accuquant.manifest import RECIPE_NAME, Manifest
    from accuquant.networks.device import check_offload, choose_device, repeatable
    from accuquant.pipelines.lora import find_loras, loras_of_recipe
    from accuquant.pipelines.source import load_source
    from accuquant.recipe import Recipe
    from accuquant.verification.report.thresholds import Thresholds
    from accuquant.verification.verify import verify

    task = take_task(options)
    thresholds = Thresholds(**{name: options.pop(name) for name in LIMITS if name in options})
    Manifest.load(folder)  # a folder that is no export should be named as such
    given = find_loras(options.pop("loras", ()))
    calibrated = Recipe.load(folder / RECIPE_NAME).facts
    loras, loading = loras_of_recipe(calibrated.loras, given), take_loading(options, calibrated.loading)
    tf32 = options.pop("tf32", False)
    device = choose_device(options.pop("device", "auto"), tf32=tf32)
    weights = take_weights_options(options)
    if weights["offload"]:
        check_offload(device)
    with Bars() as progress, repeatable(device, tf32=tf32):
        source = load_source(reference, loras, **vars(loading), as_stored=weights["as_stored"])
        source = source.to(device, offload=weights["offload"])
        return verify(folder, source, task=task, thresholds=thresholds, progress=progress, **options)


def print_verdict(console: Console, report: Report) -> None:
    """Print each check, what a reader should know, and the verdict."""
    rows = [
        (
            check.name,
            f"{check.value:.4g} {check.unit}",
            f"{check.relation} {check.limit:g}",
            "[green]passed[/green]" if check.passed else "[red]failed[/red]",
        )
        for check in report.verdict.checks
    ]
    print_table(console, ("check", "measured", "wanted", ""), rows)
    if (share := report.placement.get("int8_share_run")) is not None:
        console.print(f"{share:.1%} of the calibrated work ran in int8.", markup=False)
    for note in report.notes:
        console.print(f"Note: {note}", markup=False)
    if report.passed is None:
        console.print("[bold yellow]NOT JUDGED[/bold yellow]: every threshold is off")
    else:
        console.print("[bold green]PASSED[/bold green]" if report.passed else "[bold red]FAILED[/bold red]")
