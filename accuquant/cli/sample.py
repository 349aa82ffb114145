"""The command `accuquant sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from accuquant.cli._command import Command
from accuquant.cli._options import (
    engine_option,
    existing_folder,
    new_path,
    num_images_option,
    seed_option,
)


@click.command("sample", cls=Command, short_help="Sample images from an exported model.")
@click.argument("folder", type=existing_folder, metavar="OUT")
@engine_option
@num_images_option(16)
@click.option(
    "--steps", type=click.IntRange(min=1), show_default="as calibrated", help="Sampler steps an image."
)
@seed_option
@click.option(
    "--batch-size", type=click.IntRange(min=1), show_default="as the model allows", help="Images at a time."
)
@click.option(
    "--output-dir", type=new_path, default=Path("samples"), show_default=True, help="Where images go."
)
def command(folder: Path, output_dir: Path, **options: Any) -> None:
    """Sample images from the exported folder OUT: one PNG each, and a grid of all. Needs no torch."""
    grid = run(folder, output_dir, options)
    click.echo(f"{options['num_images']} images in {output_dir}, all of them in {grid}")


def run(folder: Path, output_dir: Path, options: dict[str, Any]) -> Path:
    """Sample with progress on stderr and save the images -> the path of the grid."""
    from accuquant.cli._progress import Bars
    from accuquant.runtime.sample import sample_images
    from accuquant.runtime.save_images import save_images

    with Bars() as progress:
        progress.stage(f"sampling on {options['engine']}", 0)
        images = sample_images(folder, progress=progress.reached, **options)
    return save_images(images, output_dir)[-1]
