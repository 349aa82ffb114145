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


def engine_option(function: Function) -> Function:
    """Add --engine."""
    return click.option(
        "--engine",
        type=click.Choice(ENGINES),
        default="openvino",
        show_default=True,
        help="What runs the model.",
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


def device_option(function: Function) -> Function:
    """Add --device and --tf32."""
    function = click.option(
        "--tf32",
        is_flag=True,
        help="Let an NVIDIA GPU round products to TF32: faster, and the figures differ a little.",
    )(function)
    return click.option(
        "--device",
        default="auto",
        show_default=True,
        metavar="auto|cpu|cuda|cuda:N|mps",
        help="Where PyTorch computes; auto takes a GPU that works.",
    )(function)


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
