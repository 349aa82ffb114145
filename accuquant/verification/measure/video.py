"""Videos as what metrics and pages take: frames in a row, frames one by one, frames side by side."""

from __future__ import annotations

import torch
from torch import Tensor

from accuquant.networks.signature import Signature
from accuquant.verification.measure.metrics import to_images

#: Frames of a video that a page shows side by side, spread evenly from the first to the last.
SHOWN_FRAMES = 5
#: What a network of packed latents is told of their places, besides tensors.
_SIDES = ("num_frames", "height", "width")


def is_video(image_shape: tuple[int, ...]) -> bool:
    """Say whether decoded samples are videos [F, C, H, W], not images [C, H, W]."""
    return len(image_shape) == 4


def unpacked_video(latents: Tensor, signature: Signature, patch: tuple[int, int]) -> Tensor:
    """Undo LTX's packing: [N, P, C * pt * p * p] -> [N, C, F, H, W]; latents of another form are returned.

    `patch` has the frames pt and the side p of a patch. How many patches there are along each axis is told
    to the network beside its tensors, so a graph has one size, and its `signature` knows it.
    """
    told = {} if signature.call is None else signature.call.constants
    if latents.ndim != 3 or any(told.get((name,)) is None for name in _SIDES):
        return latents
    count, height, width = (int(told[name,]) for name in _SIDES)
    frames, size = patch
    grid = latents.reshape(len(latents), count, height, width, -1, frames, size, size)
    return grid.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def to_videos(decoded: Tensor) -> Tensor:
    """Map what a decoder makes of videos, [N, C, F, H, W] in [-1, 1], to frames [N, F, C, H, W] in [0, 1]."""
    return to_images(decoded.transpose(1, 2))


def every_frame(images: Tensor) -> Tensor:
    """Return the frames of videos [N, F, C, H, W] as images [N * F, C, H, W]; images are returned."""
    return images.flatten(0, 1) if images.ndim == 5 else images


def strip(images: Tensor) -> Tensor:
    """Return SHOWN_FRAMES of each video [N, F, C, H, W] side by side, [N, C, H, frames * W]; images as is."""
    if images.ndim != 5:
        return images
    count = images.shape[1]
    shown = torch.linspace(0, count - 1, min(count, SHOWN_FRAMES)).round().long()
    return torch.cat(images[:, shown].unbind(1), dim=-1)
