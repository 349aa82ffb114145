"""Options of the commands that compare an exported folder with the pipeline that it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from accuquant.cli._cluster import cluster_options
from accuquant.cli._options import (
    Function,
    Source,
    device_option,
    engine_option,
    engine_precision_option,
    exported_folder,
    lora_option,
    num_images_option,
    seed_option,
    steps_option,
    take_weights_options,
    trust_option,
    weights_options,
)
from accuquant.cli._source import loading_options, take_loading
from accuquant.cli._task import task_options

if TYPE_CHECKING:
    from accuquant.pipelines import source


def comparison_options(num_images: int) -> Callable[[Function], Function]:
    """Return a decorator that adds OUT, --reference and all that says how both are sampled, and where."""

    def add(function: Function) -> Function:
        for option in reversed((*_what(num_images), *_WHERE)):
            function = option(function)
        return function

    return add


def _what(num_images: int) -> tuple[Any, ...]:
    return (
        click.argument("folder", type=exported_folder, metavar="OUT"),
        click.option(
            "--reference",
            type=Source(),
            required=True,
            metavar="SOURCE",
            help="The pipeline that OUT was exported from.",
        ),
        engine_option,
        engine_precision_option,
        trust_option,
        num_images_option(num_images),
        steps_option,
        seed_option(10_000),
        click.option(
            "--batch-size",
            type=click.IntRange(min=1),
            default=16,
            show_default=True,
            help="Images at a time.",
        ),
        click.option(
            "--features",
            default="auto",
            show_default=True,
            help="Feature network: auto, fashion, inception, clean-fid, none, or package.module:callable.",
        ),
        click.option(
            "--allow-other-scheduler",
            is_flag=True,
            help="Go on with a scheduler other than the calibrated one.",
        ),
    )


_WHERE: tuple[Any, ...] = (
    cluster_options,
    device_option,
    weights_options,
    lora_option("those that OUT was calibrated with by default"),
    loading_options,
    task_options,
)


@contextmanager
def opened_reference(
    folder: Path, reference: str, options: dict[str, Any]
) -> Iterator[tuple[source.Source, bool]]:
    """Take what loads the pipeline out of `options` -> it, on its device, and whether --tf32 was given.

    What was not chosen is as the recipe in `folder` says. Torch computes as --tf32 says while the block runs.
    """
    from accuquant.manifest import RECIPE_NAME, Manifest
    from accuquant.networks.device import check_offload, choose_device, repeatable
    from accuquant.pipelines.lora import find_loras, loras_of_recipe
    from accuquant.pipelines.source import load_source
    from accuquant.recipe import Recipe

    Manifest.load(folder)  # a folder that is no export should be named as such
    given = find_loras(options.pop("loras", ()))
    calibrated = Recipe.load(folder / RECIPE_NAME).facts
    loras, loading = loras_of_recipe(calibrated.loras, given), take_loading(options, calibrated.loading)
    tf32 = options.pop("tf32", False)
    device = choose_device(options.pop("device", "auto"), tf32=tf32)
    weights = take_weights_options(options)
    if weights["offload"]:
        check_offload(device)
    with repeatable(device, tf32=tf32):
        loaded = load_source(reference, loras, **vars(loading), as_stored=weights["as_stored"])
        yield loaded.to(device, offload=weights["offload"]), tf32
