"""The command `accuquant calibrate`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from accuquant.cli._cluster import cluster_options, take_cluster
from accuquant.cli._command import Command
from accuquant.cli._options import (
    Source,
    device_option,
    lora_option,
    new_file,
    take_weights_options,
    weights_options,
)
from accuquant.cli._output import console_beside_json, json_option, write_json
from accuquant.cli._source import loading_options, network_option, take_loading
from accuquant.cli._task import take_task, task_options

if TYPE_CHECKING:
    from accuquant._util.progress import Progress
    from accuquant.calibration.estimate import Estimate
    from accuquant.pipelines.source import Source as LoadedSource
    from accuquant.recipe import Recipe

#: Spelled out so that --help need not load torch; the library knows the same names.
GRADIENTS = ("accuquant", "independent", "exact", "checkpoint")
OBSERVERS = ("mse", "norm", "minmax", "percentile")
ROUNDINGS = ("gptq", "nearest", "adaround")
EQUALIZERS = ("smoothquant", "rotate")
PRESETS = ("fast", "balanced", "best")
METHODS = (
    *("accuquant", "minmax", "percentile", "mse", "q-diffusion", "ptq4dm", "tfmq", "ptqd", "pcr"),
    "smoothquant",
)
FORMATS = ("int8", "fp8")
_BITS = click.IntRange(2, 8)
_COUNT = click.IntRange(min=1)


@click.command(
    "calibrate",
    cls=Command,
    context_settings={"show_default": True},
)
@click.argument("source", type=Source())
@click.option(
    "-o", "--output", type=new_file, default=Path("recipe.safetensors"), help="The recipe to write."
)
@click.option(
    "--preset",
    "preset_name",
    type=click.Choice(PRESETS),
    default="balanced",
    help="How much to spend: sets the defaults of the options below.",
)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="accuquant",
    help="How to calibrate: AccuQuant, or a published rival on the same layers (docs/methods.md).",
)
@click.option("--steps", type=_COUNT, default=50, help="Sampler steps that images will be made with.")
@click.option(
    "--calibration-steps",
    type=_COUNT,
    show_default="--steps; at most 8 where nothing is learned",
    help="Steps of the trajectories to learn from; the groups hold every timestep of --steps all the same.",
)
@click.option("--group-size", type=_COUNT, default=5, help="Consecutive steps that share scales.")
@click.option("--num-trajectories", type=_COUNT, default=64, help="Full-precision images to learn from.")
@click.option(
    "--iterations",
    type=click.IntRange(min=0),
    show_default="0 at W8A8, 32 at fewer bits",
    help="Learning steps a group.",
)
@click.option(
    "--shared-iterations",
    type=click.IntRange(min=0),
    show_default="0 at W8A8, 16 at fewer bits",
    help="Learning steps, through whole trajectories, for what all groups share: weight scales and biases.",
)
@click.option(
    "--probe/--no-probe",
    default=True,
    help="Learn a group only where the gradients of two batches agree that there is something to gain.",
)
@click.option("--batch-size", type=_COUNT, default=8, help="Images a learning step.")
@click.option(
    "--format",
    type=click.Choice(FORMATS),
    default="int8",
    help="What weights and activations are rounded to: integers, or FP8 (E4M3), which GPUs from Ada on "
    "compute (docs/fp8.md).",
)
@click.option("--weight-bits", type=_BITS, default=8, help="Bits of a weight.")
@click.option("--activation-bits", type=_BITS, default=8, help="Bits of an activation.")
@click.option(
    "--gradient",
    type=click.Choice(GRADIENTS),
    default="accuquant",
    help="How the loss at a group's end reaches its steps.",
)
@click.option(
    "--observer", type=click.Choice(OBSERVERS), default="norm", help="How the first scales are found."
)
@click.option(
    "--refine/--no-refine",
    default=True,
    help="Move each first scale to where its layer's output errs least.",
)
@click.option(
    "--rounding",
    type=click.Choice(ROUNDINGS),
    default="gptq",
    help="How weights are rounded: so that errors compensate each other, to the nearest level, or learned "
    "block by block from the first.",
)
@click.option(
    "--equalize",
    type=click.Choice(EQUALIZERS),
    show_default="nothing",
    help="Flatten activations first, by what folds into the weights: factors of channels, or rotations.",
)
@click.option(
    "--affine/--symmetric",
    default=True,
    help="Let one-sided activations use a zero-point, or keep every zero-point at 0.",
)
@click.option(
    "--float-budget",
    type=click.FloatRange(0, 1),
    default=0.0,
    help="Share of the multiply-accumulates to leave in float, spent on the most sensitive layers.",
)
@click.option(
    "--sensitivity/--no-sensitivity",
    default=False,
    help="Measure what each layer alone does to a step, for the report; --float-budget does so anyway.",
)
@click.option(
    "--include", multiple=True, metavar="PATTERN", help="Quantize these layers, although float by default."
)
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave these layers in float.")
@click.option(
    "--learning-rate",
    type=click.FloatRange(1e-8, 1),
    default=1e-3,
    help="Adam's step on the log-scales of a group.",
)
@click.option(
    "--shared-learning-rate",
    type=click.FloatRange(1e-8, 1),
    default=0.01,
    help="Adam's step on what all groups share, in units of the relative error before it.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=0, help="The same seed gives the same recipe."
)
@click.option(
    "--checkpoint-blocks/--keep-activations",
    "checkpoint",
    default=None,
    show_default="as the free memory says",
    help="Compute activations twice while learning, in a third more time, or keep them: the same figures.",
)
@click.option(
    "--decoder",
    is_flag=True,
    help="Calibrate the autoencoder's decoder in place of the network, on latents that the float network "
    "makes in --steps; by default from 16 images, one at a time.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Time a few calls, print what would be done here, how long it takes and what memory, and write no "
    "recipe.",
)
@json_option("what --dry-run prints")
@device_option
@weights_options
@cluster_options
@lora_option("none by default")
@network_option
@loading_options
@task_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    source: str,
    output: Path,
    dry_run: bool,
    json_file: Path | None,
    **settings: Any,
) -> None:
    """Learn int8 or FP8 scales for the pipeline SOURCE and write them as a recipe.

    SOURCE is a diffusers pipeline: a folder with a model_index.json, or a Hub id; or the folder of a
    generator of one step (accuquant.feed_forward_source), which takes --steps 1 and 256 images by default.
    Give the prompts, images and guidance that you sample with; what you leave out is the pipeline's own
    default. Run an interrupted command again to resume it. PATTERN is a module name in which * stands for
    any text.
    """
    given = _without_defaults(ctx, settings)
    if dry_run and given.get("decoder"):
        raise click.UsageError("--dry-run estimates the network's calibration: leave out --decoder.")
    if dry_run:
        if not _dry_run(source, given, json_file).fits:
            ctx.exit(1)
        return
    if json_file is not None:
        raise click.UsageError("--json holds what --dry-run prints: give both, or neither.")
    recipe = run(source, output, given)
    print_summary(recipe, output)
    names = ["--recipe", "RECIPE", "--decoder-recipe"] if given.get("decoder") else ["--recipe"]
    words = shlex.join(["accuquant", "export", source, *names, str(output)])
    click.echo(f"Next: {words} -o OUT")


def _without_defaults(ctx: click.Context, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what the command line and --config said: for the rest, the preset decides."""
    default = click.core.ParameterSource.DEFAULT
    return {name: value for name, value in settings.items() if ctx.get_parameter_source(name) != default}


def run(source: str, output: Path, settings: dict[str, Any]) -> Recipe:
    """Calibrate with progress on stderr; `settings` are those options of the command that were given."""
    from accuquant._util.files import check_new_file
    from accuquant._util.stage_clock import StageClock
    from accuquant.calibration import calibrate
    from accuquant.cli._progress import Bars

    check_new_file("--output", output)
    with Bars() as bars:
        progress = StageClock(bars)
        cluster = take_cluster(settings)
        if settings.get("decoder") and cluster is None:
            recipe = _run_decoder(source, output, dict(settings), progress)
        else:
            _refuse_decoder(settings)
            loaded, checkpoint, arguments = _prepared(source, settings, progress)
            recipe = calibrate(
                loaded, output=output, checkpoint=checkpoint, cluster=cluster, progress=progress, **arguments
            )
        progress.message(f"Time: {progress.line()}")
    return recipe


def _run_decoder(source: str, output: Path, settings: dict[str, Any], progress: Progress) -> Recipe:
    """Calibrate the decoder: few images suffice, whose activations are large."""
    from accuquant.decoder_calibration import calibrate_decoder

    settings.pop("decoder")
    if settings.pop("checkpoint", None) is not None:
        raise click.UsageError("--decoder keeps activations: leave out --checkpoint-blocks.")
    defaults = {"num_trajectories": 16, "batch_size": 1}
    loaded, _, arguments = _prepared(source, {**defaults, **settings}, progress)
    return calibrate_decoder(loaded, output=output, progress=progress, **arguments)


def _refuse_decoder(settings: dict[str, Any]) -> None:
    if settings.pop("decoder", False):
        raise click.UsageError(
            "--decoder is calibrated in one process: leave out the options of the cluster."
        )


def _dry_run(source: str, settings: dict[str, Any], json_file: Path | None) -> Estimate:
    """Estimate with progress on stderr, and print what was found."""
    from accuquant.calibration.estimate import estimate
    from accuquant.cli._estimate import print_estimate
    from accuquant.cli._progress import Bars

    with Bars() as progress:
        take_cluster(settings)  # an estimate is of this machine
        loaded, _, arguments = _prepared(source, settings, progress)
        found = estimate(loaded, progress=progress, **arguments)
    if json_file is not None:
        write_json(json_file, json.dumps(found.to_dict(), indent=2))
    print_estimate(console_beside_json(json_file), found)
    return found


def _prepared(
    source: str, settings: dict[str, Any], progress: Progress
) -> tuple[LoadedSource, bool | None, dict[str, Any]]:
    """Load the pipeline onto its device -> it, `checkpoint`, what calibrate and estimate take beside it."""
    from accuquant.calibration import CalibrationSettings
    from accuquant.networks.device import check_offload, choose_device, describe
    from accuquant.pipelines.lora import find_loras
    from accuquant.pipelines.source import is_generator, load_source

    task = take_task(settings)
    loras = find_loras(settings.pop("loras", ()))
    loading, tf32 = take_loading(settings), settings.pop("tf32", False)
    device = choose_device(settings.pop("device", "auto"), tf32=tf32)
    weights, checkpoint = take_weights_options(settings), settings.pop("checkpoint", None)
    if weights["offload"]:
        check_offload(device)
    if is_generator(source):  # its steps are few: one
        settings = {"steps": 1, "num_trajectories": 256, **settings}
    checked = CalibrationSettings.preset(settings.pop("preset_name", "balanced"), **settings)
    progress.message(f"Device: {describe(device)}")
    loaded = load_source(source, loras, **vars(loading), as_stored=weights["as_stored"])
    loaded = loaded.to(device, offload=weights["offload"])
    return loaded, checkpoint, {"settings": checked, "task": task, "tf32": tf32}


def print_summary(recipe: Recipe, output: Path) -> None:
    """Print what was learned, and how many groups were rolled back."""
    share = recipe.facts.int8_mac_share or 0.0
    click.echo(
        f"Recipe {output}: {len(recipe.layers)} layers, {share:.1%} of the multiply-accumulates, in "
        f"{recipe.format}; {len(recipe.groups)} step groups."
    )
    rolled_back = [str(g + 1) for g, result in enumerate(recipe.results) if result.status == "rolled_back"]
    if rolled_back:
        click.echo(
            f"Step groups whose learning did not help keep their initial scales: {', '.join(rolled_back)}."
        )
