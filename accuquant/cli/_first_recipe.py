"""What `accuquant export` does where no recipe is given: calibrate the pipeline, or observe the graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from accuquant.errors import UsageError

if TYPE_CHECKING:
    from accuquant.recipe import Recipe


def is_graph(source: str) -> bool:
    """Return whether SOURCE is an .onnx file, however its ending is written."""
    return source.lower().endswith(".onnx")


def take_device(options: dict[str, Any], recipe: Path | None) -> dict[str, Any]:
    """Return where what comes before the export computes; refuse a choice where nothing comes before it."""
    from accuquant._util.device_name import check_device_name

    device, tf32 = options.pop("device", "auto"), options.pop("tf32", False)
    check_device_name(device)
    given = [name for name, chosen in (("--device", device != "auto"), ("--tf32", tf32)) if chosen]
    if given and recipe is not None:
        raise UsageError(
            ", ".join(given),
            got="a choice for a calibration that does not run",
            expected="no --recipe: the export itself computes nothing there",
            remedy="Leave it out, or give it to `accuquant calibrate`",
        )
    return {"device": device, "tf32": tf32}


def recipe_of(
    source: str, recipe: Path | None, output: Path, graph_options: dict[str, Any], task: dict[str, Any]
) -> Recipe:
    """Load the recipe, or make one from what there is."""
    from accuquant.recipe import Recipe

    if recipe is not None:
        return Recipe.load(recipe)
    if is_graph(source):
        return _observe_first(source, output, graph_options, task["device"], tf32=task["tf32"])
    return _calibrate_first(source, output, task)


def _observe_first(source: str, output: Path, options: dict[str, Any], device: str, *, tf32: bool) -> Recipe:
    """Observe the graph alone, and keep the recipe beside `output`."""
    from accuquant.cli._progress import Bars
    from accuquant.observation.observe_onnx import OBSERVED, observe_onnx

    with Bars() as progress:
        progress.stage(f"observing {source}", 100)
        recipe = observe_onnx(Path(source), device=device, tf32=tf32, progress=progress.share, **options)
    given = f"the inputs in {options['inputs']}" if options["inputs"] else "random inputs"
    click.echo(f"No --recipe: scales are {OBSERVED}, on {given}.", err=True)
    click.echo(
        "For images that stay the same, run `accuquant calibrate` on its pipeline and give --recipe.",
        err=True,
    )
    recipe.save(output.with_name(f"{output.name}.recipe.safetensors"))
    return recipe


def _calibrate_first(source: str, output: Path, task: dict[str, Any]) -> Recipe:
    """Calibrate with the defaults of `accuquant calibrate`, and keep the recipe beside `output`."""
    from accuquant.cli.calibrate import print_summary
    from accuquant.cli.calibrate import run as calibrate

    path = output.with_name(f"{output.name}.recipe.safetensors")
    click.echo(f"No --recipe: calibrating first, into {path}", err=True)
    recipe = calibrate(source, path, task)
    print_summary(recipe, path)
    return recipe
