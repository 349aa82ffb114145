"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])
#: The names that accuquant.runtime.open_runner knows; spelled out so that --help loads no engine.
ENGINES = ("openvino", "onnxruntime", "onnxruntime-cuda", "tensorrt")

existing_folder = click.Path(exists=True, file_okay=False, path_type=Path)
existing_file = click.Path(exists=True, dir_okay=False, path_type=Path)
new_path = click.Path(path_type=Path)


class ExportedFolder(click.Path):
    """A folder, or "user/name" or "user/name@revision" of the Hub, which is fetched."""

    name = "exported folder"

    def __init__(self, *, file_okay: bool = False) -> None:
        super().__init__(exists=True, file_okay=file_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path of the folder."""
        from accuquant.hub.fetch import local_folder

        return super().convert(local_folder(value), param, ctx)


exported_folder = ExportedFolder()


def engine_option(function: Function) -> Function:
    """Add --engine."""
    return click.option(
        "--engine",
        type=click.Choice(ENGINES),
        default="openvino",
        show_default=True,
        help="What runs the model.",
    )(function)


def trust_option(function: Function) -> Function:
    """Add --trust-engines."""
    return click.option(
        "--trust-engines",
        is_flag=True,
        help="Run TensorRT engines that came with a download too; they are executable code.",
    )(function)


def lora_option(otherwise: str) -> Callable[[Function], Function]:
    """Return a decorator that adds --lora; `otherwise` says what happens without it."""
    return click.option(
        "--lora",
        "loras",
        multiple=True,
        metavar="PATH_OR_HUB_ID[:SCALE]",
        help=f"A LoRA to fuse into the weights, may be given several times; {otherwise}.",
    )


def steps_option(function: Function) -> Function:
    """Add --steps."""
    return click.option(
        "--steps", type=click.IntRange(min=1), show_default="as calibrated", help="Sampler steps an image."
    )(function)


def seed_option(default: int) -> Callable[[Function], Function]:
    """Return a decorator that adds --seed."""
    return click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=default,
        show_default=True,
        help="Image k starts from this seed plus k.",
    )


def num_images_option(default: int) -> Callable[[Function], Function]:
    """Return a decorator that adds --num-images."""
    return click.option(
        "--num-images",
        type=click.IntRange(min=1),
        default=default,
        show_default=True,
        help="Number of images.",
    )
