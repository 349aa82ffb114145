"""The command `accuquant sample`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from accuquant.cli._command import Command
from accuquant.cli._options import (
    Source,
    class_labels_option,
    device_option,
    engine_option,
    engine_precision_option,
    exported_folder,
    lora_option,
    new_folder,
    num_images_option,
    seed_option,
    steps_option,
    trust_option,
)
from accuquant.cli._output import STDOUT, console_beside_json, json_option, print_table, write_json
from accuquant.cli._source import loading_options, take_loading
from accuquant.cli._task import take_task, task_options

if TYPE_CHECKING:
    from rich.console import Console

    from accuquant.runtime.loop_profile import LoopProfile


#: What says how the network was read, which is in the engine.
_OF_NETWORK = ("network", "controlnets", "ip_adapters")


@click.command("sample", cls=Command)
@click.argument("folder", type=exported_folder, metavar="OUT")
@engine_option
@engine_precision_option
@trust_option
@num_images_option(16)
@steps_option
@seed_option(0)
@click.option(
    "--batch-size", type=click.IntRange(min=1), show_default="as the model allows", help="Images at a time."
)
@click.option(
    "--output-dir", type=new_folder, default=Path("samples"), show_default=True, help="Where images go."
)
@click.option(
    "--pipeline",
    type=Source(),
    metavar="SOURCE",
    show_default="where it was exported from",
    help="The pipeline whose text encoder and decoder are used.",
)
@click.option(
    "--parts",
    type=click.Choice(("auto", "engine", "torch")),
    default="auto",
    show_default=True,
    help="What runs text encoders and decoder; auto is the engine where OUT holds them (--whole-pipeline).",
)
@class_labels_option
@device_option
@lora_option("those that OUT was calibrated with by default")
@loading_options
@task_options
@click.option("--profile", is_flag=True, help="Say where the seconds went, part by part.")
@json_option("where the seconds went")
def command(folder: Path, output_dir: Path, profile: bool, json_file: Path | None, **options: Any) -> None:
    """Sample images from the exported folder OUT: one PNG each, and a grid of all; videos as animated WebP.

    Pixel-space pipelines with DDIM or DDPM need no torch. Others run in diffusers with the engine as their
    network: give them a prompt; guidance and strength are the calibrated ones unless you change them.
    """
    from accuquant.runtime.loop_profile import LoopProfile

    found = LoopProfile(first="loading") if profile or json_file else None
    grid = run(folder, output_dir, options, profile=found)
    line = f"{options['num_images']} images in {output_dir}, all of them in {grid}"
    click.echo(line, err=str(json_file) == STDOUT)
    if found is not None and json_file:
        write_json(json_file, json.dumps(found.to_dict(), indent=2))
    if found is not None and profile:
        print_profile(console_beside_json(json_file), found)


def print_profile(console: Console, profile: LoopProfile) -> None:
    """Print where the seconds went, and what the loop adds to the network."""
    print_table(console, ("part", "seconds", "share", "calls", "what counts"), profile.rows())
    console.print(f"{profile.total:.3f} s without loading.")
    if profile.overhead is not None:
        console.print(
            f"Drop-in, scheduler and guidance add {profile.overhead:.2%} to the network's own time."
        )


def run(
    folder: Path, output_dir: Path, options: dict[str, Any], *, profile: LoopProfile | None = None
) -> Path:
    """Sample with progress on stderr and save the images -> the path of the grid."""
    from accuquant.cli._progress import Bars
    from accuquant.runtime.open_runner import precision_options
    from accuquant.runtime.save_images import save_images
    from accuquant.runtime.save_videos import save_videos
    from accuquant.sample_folder import sample

    task, loading = take_task(options), take_loading(options)
    options |= {name: value for name, value in vars(loading).items() if name not in _OF_NETWORK}
    options |= precision_options(options.get("engine", "openvino"), options.pop("engine_precision", "auto"))
    _check_channels(folder)
    with Bars() as progress:
        progress.stage(f"sampling on {options['engine']}", 0)
        images = sample(folder, task, progress=progress.reached, profile=profile, **options)
    if profile is not None:
        profile.end()
    return (save_videos if images.ndim == 5 else save_images)(images, output_dir)[-1]


def _check_channels(folder: Path) -> None:
    """Refuse images that no PNG holds before they are sampled; a pipeline's decoder makes RGB of latents."""
    from accuquant.manifest import FEED_FORWARD, Manifest
    from accuquant.runtime.sample import runs_without_torch
    from accuquant.runtime.save_images import check_channels

    manifest = Manifest.load(folder)
    if runs_without_torch(folder, manifest):
        signature = manifest.signature
        made = signature.output if manifest.pipeline_class == FEED_FORWARD else signature.sample
        check_channels(made.resolve({"batch": 1, **signature.sizes})[1])
