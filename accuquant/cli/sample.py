"""The command `accuquant sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
from accuquant.cli._source import loading_options
from accuquant.cli._task import take_task, task_options


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
@class_labels_option
@device_option
@lora_option("those that OUT was calibrated with by default")
@loading_options
@task_options
def command(folder: Path, output_dir: Path, **options: Any) -> None:
    """Sample images from the exported folder OUT: one PNG each, and a grid of all.

    Pixel-space pipelines with DDIM or DDPM need no torch. Others run in diffusers with the engine as their
    network: give them a prompt; guidance and strength are the calibrated ones unless you change them.
    """
    grid = run(folder, output_dir, options)
    click.echo(f"{options['num_images']} images in {output_dir}, all of them in {grid}")


def run(folder: Path, output_dir: Path, options: dict[str, Any]) -> Path:
    """Sample with progress on stderr and save the images -> the path of the grid."""
    from accuquant.cli._progress import Bars
    from accuquant.runtime.open_runner import precision_options
    from accuquant.runtime.save_images import save_images
    from accuquant.sample_folder import sample

    task = take_task(options)
    options |= precision_options(options.get("engine", "openvino"), options.pop("engine_precision", "auto"))
    _check_channels(folder)
    with Bars() as progress:
        progress.stage(f"sampling on {options['engine']}", 0)
        images = sample(folder, task, progress=progress.reached, **options)
    return save_images(images, output_dir)[-1]


def _check_channels(folder: Path) -> None:
    """Refuse images that no PNG holds before they are sampled; a pipeline's decoder makes RGB of latents."""
    from accuquant.manifest import Manifest
    from accuquant.runtime.sample import runs_without_torch
    from accuquant.runtime.save_images import check_channels

    manifest = Manifest.load(folder)
    if runs_without_torch(folder, manifest):
        sample = manifest.signature.sample
        check_channels(sample.resolve({"batch": 1, **manifest.signature.sizes})[1])
