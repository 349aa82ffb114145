"""The images that control networks read, as their pipelines take them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from accuquant.errors import UsageError
from accuquant.networks.control_signature import pixels_per_latent
from accuquant.pipelines.picture import open_picture
from accuquant.pipelines.task import Task


def control_argument(pipe: Any) -> str | None:
    """Return the argument that holds control images: `image` where the pipeline starts from noise.

    None for a pipeline without control networks.
    """
    if getattr(pipe, "controlnet", None) is None:
        return None
    accepted = inspect.signature(pipe.__call__).parameters
    return "control_image" if "control_image" in accepted else "image"


def control_images(pipe: Any, task: Task, indices: Sequence[int], size: tuple[int, int]) -> Any:
    """Return the control images of the images `indices`, [B, 3, H, W] in [0, 1], one tensor a control network.

    Raises UsageError where there are none, for another number of folders than control networks, and for a
    size that a control network does not halve to that of the latents.
    """
    controls = getattr(pipe.controlnet, "nets", None)
    nets = [pipe.controlnet] if controls is None else list(controls)
    _check_counts(type(pipe).__name__, task, len(nets))
    for net in nets:
        _check_pixels(net, int(pipe.vae_scale_factor))
    stacks = [_stack(paths, indices, size) for paths in task.control_images]
    return stacks[0] if controls is None else stacks


def control_scales(pipe: Any, task: Task) -> dict[str, Any]:
    """Return the argument with what residuals are multiplied by, where it was chosen."""
    if task.control_scale is None:
        return {}
    several = getattr(pipe.controlnet, "nets", None)
    count = 1 if several is None else len(several)
    scales = list(task.control_scale) * (count if len(task.control_scale) == 1 else 1)
    if len(scales) != count:
        raise _another_number("--control-scale", len(scales), "numbers", count)
    return {"controlnet_conditioning_scale": scales[0] if several is None else scales}


def _check_counts(name: str, task: Task, count: int) -> None:
    if not task.control_images or not all(task.control_images):
        raise UsageError(
            f"pipeline {name}",
            got="no control images",
            expected="some of those that you sample with: its control network reads one for each image",
            remedy="Give --control-images FOLDER",
        )
    if len(task.control_images) != count:
        raise _another_number("--control-images", len(task.control_images), "folders", count)


def _another_number(option: str, given: int, what: str, count: int) -> UsageError:
    return UsageError(
        option,
        got=f"{given} {what if given > 1 else what.removesuffix('s')}",
        expected=f"{count}: one for each control network, in their order",
        remedy=f"Give {option} once for each control network",
    )


def _check_pixels(net: Any, pixels: int) -> None:
    own = pixels_per_latent(net.config)
    if own != pixels:
        raise UsageError(
            "control network",
            got=f"one that makes a latent of {own}x{own} pixels",
            expected=f"{pixels}x{pixels}, as the pipeline's autoencoder",
            remedy="Use a control network that was trained for this pipeline",
        )


def _stack(paths: Sequence[str], indices: Sequence[int], size: tuple[int, int]) -> Any:
    import numpy as np
    import torch

    pictures = [np.asarray(open_picture(paths[k % len(paths)], "RGB", size), np.float32) for k in indices]
    return torch.from_numpy(np.stack(pictures).transpose(0, 3, 1, 2) / 255.0)
