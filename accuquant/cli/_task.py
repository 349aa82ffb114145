"""Options that say what a pipeline is sampled with: prompts, images, guidance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from accuquant.cli._options import Function, existing_file, existing_folder

if TYPE_CHECKING:
    from accuquant.pipelines.task import Task

_NAMES = (
    "prompts", "negative_prompt", "images", "masks", "guidance_scale", "true_cfg_scale",
    "image_guidance_scale", "guidance_rescale", "strength", "image_size", "control_images", "control_scale",
    "ip_adapter_images", "num_frames",
)  # fmt: skip


class _ImageSize(click.ParamType):  # type: ignore[type-arg]  # no generic before click 8.2
    """A side in pixels, or WIDTHxHEIGHT."""

    name = "image size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | tuple[int, int]:
        """Return one number for a square, else width and height."""
        sides = str(value).lower().split("x")
        if len(sides) > 2 or not all(side.isdecimal() and int(side) >= 8 for side in sides):
            self.fail(f"'{value}' is neither a side of at least 8 pixels nor WIDTHxHEIGHT.", param, ctx)
        return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


_OPTIONS: tuple[Callable[[Function], Function], ...] = (
    click.option("--prompt", multiple=True, metavar="TEXT", help="A prompt; may be given several times."),
    click.option(
        "--prompts",
        type=existing_file,
        metavar="FILE",
        help="File of prompts: text with one a line, a JSON list, or COCO captions.",
    ),
    click.option("--negative-prompt", metavar="TEXT", help="What the images should not show."),
    click.option(
        "--images",
        type=existing_folder,
        metavar="FOLDER",
        help="Images to start from: image-to-image, inpainting, editing, super-resolution.",
    ),
    click.option(
        "--masks", type=existing_folder, metavar="FOLDER", help="Masks to inpaint, white where it is painted."
    ),
    click.option(
        "--control-images",
        type=existing_folder,
        multiple=True,
        metavar="FOLDER",
        help="Images for a control network: edges, poses, depths; once for each control network.",
    ),
    click.option(
        "--ip-adapter-images",
        type=existing_folder,
        multiple=True,
        metavar="FOLDER",
        help="Images for an IP-Adapter; once for each.",
    ),
    click.option(
        "--control-scale",
        type=click.FloatRange(0),
        multiple=True,
        metavar="NUMBER",
        help="What a control network's residuals are multiplied by; for all, or once for each.",
    ),
    click.option(
        "--guidance-scale", type=click.FloatRange(0), help="Scale of the guidance; 1 or less switches it off."
    ),
    click.option(
        "--true-cfg-scale",
        type=click.FloatRange(0),
        help="Scale of Flux's guidance by a negative prompt; needs --negative-prompt.",
    ),
    click.option(
        "--image-guidance-scale", type=click.FloatRange(0), help="Scale of the image's guidance (editing)."
    ),
    click.option("--guidance-rescale", type=click.FloatRange(0, 1), help="Share of the rescaled guidance."),
    click.option(
        "--strength",
        type=click.FloatRange(0.01, 1),
        help="How much noise an image is given, so where its trajectory starts.",
    ),
    click.option(
        "--image-size", type=_ImageSize(), metavar="SIDE|WIDTHxHEIGHT", help="Size of the images in pixels."
    ),
    click.option("--num-frames", type=click.IntRange(min=1), help="Frames of a video."),
)


def task_options(function: Function) -> Function:
    """Add the options of a Task."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def take_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take what was given for a Task out of `options`, unread."""
    taken = {name: options.pop(name) for name in ("prompt", *_NAMES) if name in options}
    return {name: value for name, value in taken.items() if value not in (None, ())}


def take_task(options: dict[str, Any]) -> Task:
    """Take the options of a Task out of `options` and read what they point at."""
    from accuquant.pipelines.task import Task

    given = take_options(options)
    prompts = tuple(given.pop("prompt", ()))
    task = Task.read(**given)
    return replace(task, prompts=prompts + task.prompts)
