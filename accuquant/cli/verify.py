"""The command `accuquant verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from accuquant.cli._cluster import take_cluster
from accuquant.cli._command import Command
from accuquant.cli._comparison import comparison_options, opened_reference
from accuquant.cli._limits import LIMITS, limit_options
from accuquant.cli._options import new_file
from accuquant.cli._output import console_beside_json, json_option, print_table, write_json
from accuquant.cli._task import take_task

if TYPE_CHECKING:
    from rich.console import Console

    from accuquant.verification.report.report import Report


@click.command("verify", cls=Command)
@comparison_options(num_images=64)
@click.option("--layers", is_flag=True, help="Compare layer by layer as well.")
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
    from accuquant.verification.report.thresholds import Thresholds
    from accuquant.verification.verify import verify

    task, cluster = take_task(options), take_cluster(options)
    folder = folder.absolute()  # workers have folders of their own to start from
    thresholds = Thresholds(**{name: options.pop(name) for name in LIMITS if name in options})
    with Bars() as progress, opened_reference(folder, reference, options) as (source, tf32):
        return verify(
            folder, source,
            task=task, thresholds=thresholds, tf32=tf32, cluster=cluster, progress=progress, **options,
        )  # fmt: skip


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
