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

    None for a pipeline without control networks and T2I-Adapters.
    """
    if _reader(pipe) is None:
        return None
    accepted = inspect.signature(pipe.__call__).parameters
    return "control_image" if "control_image" in accepted else "image"


def control_images(pipe: Any, task: Task, indices: Sequence[int], size: tuple[int, int]) -> Any:
    """Return the control images of the images `indices`, a tensor [B, C, H, W] in [0, 1] for each network.

    Raises UsageError where there are none, for another number of folders than control networks, and for a
    size that a control network does not halve to that of the latents.
    """
    nets, several = _nets(pipe)
    _check_counts(type(pipe).__name__, task, len(nets))
    for net in nets:
        if hasattr(net.config, "conditioning_embedding_out_channels"):
            _check_pixels(net, int(pipe.vae_scale_factor))
    modes = ["L" if getattr(net.config, "in_channels", 3) == 1 else "RGB" for net in nets]
    paired = zip(task.control_images, modes, strict=True)
    stacks = [_stack(paths, indices, size, mode) for paths, mode in paired]
    return stacks if several else stacks[0]


def control_scales(pipe: Any, task: Task) -> dict[str, Any]:
    """Return the argument with what residuals are multiplied by, where it was chosen."""
    if task.control_scale is None:
        return {}
    nets, several = _nets(pipe)
    scales = list(task.control_scale) * (len(nets) if len(task.control_scale) == 1 else 1)
    if len(scales) != len(nets):
        raise _another_number("--control-scale", len(scales), "numbers", len(nets))
    name = "controlnet" if getattr(pipe, "controlnet", None) is not None else "adapter"
    return {f"{name}_conditioning_scale": scales if several else scales[0]}


def _reader(pipe: Any) -> Any:
    """Return what reads a pipeline's control images, None where nothing does."""
    return getattr(pipe, "controlnet", None) or getattr(pipe, "adapter", None)


def _nets(pipe: Any) -> tuple[list[Any], bool]:
    """Return the control networks or adapters of a pipeline, and whether it has a list of them."""
    reader = _reader(pipe)
    several = getattr(reader, "nets", None) or getattr(reader, "adapters", None)
    return ([reader], False) if several is None else (list(several), True)


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


def _stack(paths: Sequence[str], indices: Sequence[int], size: tuple[int, int], mode: str) -> Any:
    import numpy as np
    import torch

    pictures = [open_picture(paths[k % len(paths)], mode, size) for k in indices]
    pixels = np.stack([np.asarray(picture, np.float32) for picture in pictures]) / np.float32(255)
    return torch.from_numpy(pixels[:, None] if mode == "L" else pixels.transpose(0, 3, 1, 2).copy())
