"""The command `accuquant evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from accuquant.cli._cluster import take_cluster
from accuquant.cli._command import Command
from accuquant.cli._comparison import comparison_options, opened_reference
from accuquant.cli._options import (
    LocalPath,
    class_labels_option,
    existing_path,
    exported_folder,
    new_file,
    new_folder,
)
from accuquant.cli._output import console_beside_json, json_option, print_table, write_json
from accuquant.cli._task import take_task

if TYPE_CHECKING:
    from rich.console import Console

    from accuquant.evaluation.result import Evaluation


class _Names(click.ParamType):  # type: ignore[type-arg]  # no generic before click 8.2
    """Names, separated by commas; the library knows which there are."""

    name = "names"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Return the names."""
        if isinstance(value, tuple):
            return value
        return tuple(name.strip() for name in str(value).split(",") if name.strip())


class _NamedPath(click.ParamType):  # type: ignore[type-arg]  # no generic before click 8.2
    """NAME=PATH, whose `~` is the home folder."""

    name = "named path"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Path]:
        """Return the two."""
        name, separator, path = str(value).partition("=")
        if not (name and separator and path):
            self.fail(f"'{value}' is not NAME=PATH.", param, ctx)
        return name, Path(LocalPath().convert(path, param, ctx))


@click.command("evaluate", cls=Command)
@comparison_options(num_images=50_000)
@click.option(
    "--metrics",
    type=_Names(),
    default="fid2fp32,psnr,ssim",
    show_default=True,
    metavar="NAME,NAME,...",
    help="Of fid2fp32, psnr, ssim, lpips, fid, sfid, is, precision, clip, image-reward.",
)
@click.option(
    "--against",
    type=exported_folder,
    metavar="OTHER",
    help="Another export of SOURCE, compared with OUT image by image.",
)
@click.option(
    "--real",
    type=existing_path,
    metavar="FOLDER|FILE.npz",
    help="Real images, or their statistics, for fid, sfid and precision.",
)
@click.option(
    "--shard-size",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Images of a unit of work: what is lost at most when the command is killed.",
)
@click.option(
    "--weights",
    type=_NamedPath(),
    multiple=True,
    metavar="NAME=WHERE",
    help="Where weights lie: inception, clean-fid, lpips, clip, image-reward; may be given several times.",
)
@click.option(
    "--resamples",
    type=click.IntRange(min=20),
    default=200,
    show_default=True,
    help="Draws that an interval is made of.",
)
@class_labels_option
@click.option(
    "--keep-images", type=new_folder, metavar="FOLDER", help="Write every image as PNG, by branch and number."
)
@click.option(
    "--work-dir",
    "work",
    type=new_folder,
    metavar="FOLDER",
    show_default="OUT.evaluation, removed at the end",
    help="Where finished shards are kept; a named one stays, for more images later.",
)
@json_option("the figures")
@click.option(
    "--html", "html_file", type=new_file, metavar="FILE", help="Write the figures as one HTML page."
)
def command(
    folder: Path, reference: str, json_file: Path | None, html_file: Path | None, **options: Any
) -> None:
    """Judge the exported folder OUT on many images, beside the FP32 pipeline SOURCE from the same seeds.

    Run an interrupted command again to resume it: it goes on at the first shard that is not finished, to the
    same figures. Intervals say what other seeds would give, in 95 of 100 cases. `accuquant verify` judges a
    few images by thresholds; this measures what papers report, on as many images as they do.
    """
    evaluation = run(folder, reference, options)
    print_evaluation(console_beside_json(json_file), evaluation)
    if json_file:
        write_json(json_file, evaluation.to_json())
    if html_file:
        from accuquant.evaluation.page import write_page

        write_page(evaluation, html_file)


def run(folder: Path, reference: str, options: dict[str, Any]) -> Evaluation:
    """Evaluate with progress on stderr; `options` are those of the command."""
    from accuquant.cli._progress import Bars
    from accuquant.evaluation.evaluate import evaluate
    from accuquant.evaluation.evaluation_settings import EvaluationSettings

    task, cluster = take_task(options), take_cluster(options)
    folder = folder.absolute()  # workers have folders of their own to start from
    with Bars() as progress, opened_reference(folder, reference, options) as (source, tf32):
        steps, work = options.pop("steps", None), options.pop("work", None)
        settings = EvaluationSettings(**options | {"weights": dict(options.get("weights", ()))})
        return evaluate(
            folder, source, settings, steps=steps, task=task, work=work, tf32=tf32, cluster=cluster,
            progress=progress,
        )  # fmt: skip


def print_evaluation(console: Console, evaluation: Evaluation) -> None:
    """Print the figures, the differences in words, and what a reader should know."""
    from accuquant.evaluation.metrics import metric_of
    from accuquant.evaluation.result import shown

    rows = []
    for figure in evaluation.figures:
        metric, interval = metric_of(figure.metric), figure.interval
        rows.append(
            (
                metric.title,
                evaluation.labels[figure.branch],
                f"{shown(interval.value)} {metric.unit}".rstrip(),
                f"{shown(interval.low)} to {shown(interval.high)}",
                "higher" if metric.higher_is_better else "lower",
            )
        )
    print_table(console, ("metric", "of", "value", "95 % interval", "better"), rows)
    for line in (*evaluation.sentences, *(f"Note: {note}" for note in evaluation.notes)):
        console.print(line, markup=False)
