"""The command `accuquant export`, also known as `accuquant-export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from accuquant.cli._command import Command
from accuquant.cli._options import existing_file, new_path
from accuquant.errors import UsageError

if TYPE_CHECKING:
    from accuquant.recipe import Recipe


@click.command(
    "export",
    cls=Command,
    short_help="Write an ONNX model with int8 weights.",
    context_settings={"show_default": True},
)
@click.argument("source")
@click.option(
    "--recipe",
    type=existing_file,
    help="What `accuquant calibrate` wrote; without it, a pipeline is calibrated first.",
)
@click.option(
    "-o", "--output", type=new_path, required=True, help="A folder, or an .onnx file where SOURCE is one."
)
@click.option(
    "--lowering",
    type=click.Choice(("rescale", "hybrid", "per-group")),
    default="rescale",
    help="One graph that finds the step group itself (hybrid: one scale for all groups where TensorRT would "
    "lose a fusion and the scales are close), or one graph a step group.",
)
@click.option("--precision", type=click.Choice(("fp32", "fp16")), default="fp32", help="What is not int8.")
@click.option(
    "--affine",
    type=click.Choice(("shift", "zero_point")),
    default="shift",
    help="Zero-points as an addition around a symmetric QDQ pair (for every engine) or inside it.",
)
@click.option("--opset", type=click.IntRange(min=19), default=21, help="ONNX opset of the graph.")
@click.option(
    "--external-data/--inline-data",
    default=None,
    show_default="external above 2 GB",
    help="Keep weights in a file beside the graph, or inside it.",
)
def command(source: str, recipe: Path | None, output: Path, **options: Any) -> None:
    """Write SOURCE as an ONNX model with int8 weights and QDQ pairs.

    SOURCE is a diffusers pipeline (a folder or a Hub id): OUTPUT becomes a folder in Optimum's layout.
    Or SOURCE is a float .onnx file of such a network, and OUTPUT an .onnx file.
    """
    run(source, recipe, output, options)
    click.echo(f"Exported {output}")


def run(source: str, recipe: Path | None, output: Path, options: dict[str, Any]) -> None:
    """Export a pipeline or an .onnx file, with progress on stderr."""
    from accuquant.cli._progress import Bars
    from accuquant.recipe import Recipe

    write = _write_graph if source.endswith(".onnx") else _write_pipeline
    if recipe is not None:
        loaded = Recipe.load(recipe)
    elif write is _write_pipeline:
        loaded = _calibrate_first(source, output)
    else:
        raise UsageError(
            "--recipe",
            got="no recipe for an .onnx file",
            expected="the file that `accuquant calibrate` wrote for its pipeline",
            remedy="Calibrate the pipeline that the file was exported from, and give its recipe",
        )
    with Bars() as progress:
        progress.stage(f"exporting {source}", 100)
        write(source, loaded, output, progress=progress.share, **options)


def _write_graph(source: str, recipe: Recipe, output: Path, **options: Any) -> None:
    from accuquant.export.onnx_file import export_onnx

    export_onnx(Path(source), recipe, output, **options)


def _write_pipeline(source: str, recipe: Recipe, output: Path, **options: Any) -> None:
    from accuquant.export.pipeline_folder import export_pipeline
    from accuquant.pipelines import load_source

    export_pipeline(load_source(source), recipe, output, **options)


def _calibrate_first(source: str, output: Path) -> Recipe:
    """Calibrate with the defaults of `accuquant calibrate`, and keep the recipe beside `output`."""
    from accuquant.cli.calibrate import print_summary
    from accuquant.cli.calibrate import run as calibrate

    path = output.with_name(f"{output.name}.recipe.safetensors")
    click.echo(f"No --recipe: calibrating first, into {path}", err=True)
    recipe = calibrate(source, path, {})
    print_summary(recipe, path)
    return recipe
