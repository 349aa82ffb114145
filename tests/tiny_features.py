"""A feature function of a user's, for images of any size: fast, and of four values."""

from __future__ import annotations

import torch
from torch import Tensor


def quarters(images: Tensor) -> Tensor:
    """Return the mean and the deviation of the left and the right half: [N, C, H, W] -> [N, 4]."""
    halves = torch.chunk(images.double(), 2, dim=3)
    return torch.stack([f(half) for half in halves for f in (_mean, _deviation)], 1)


def _mean(images: Tensor) -> Tensor:
    return images.mean((1, 2, 3))


def _deviation(images: Tensor) -> Tensor:
    return images.flatten(1).std(1)
