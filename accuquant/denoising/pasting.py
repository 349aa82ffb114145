"""Inpainting with a network that does not know the mask: the original is pasted into the latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pasting:
    """What is pasted into the latents of N trajectories after every step.

    `mask` [N, 1, H, W], or [N, patches, C] for packed latents, is 1 where the network paints. Elsewhere the
    latents become `original` [N, C, H, W], noised by `noise` to the next timestep (RePaint, arXiv
    2201.09865, equation 8, without its resampling). So the error of a step vanishes there, and a gradient
    that comes back through a step is multiplied by the mask.
    """

    mask: Tensor
    original: Tensor
    noise: Tensor

    def paste(self, scheduler: Any, latents: Tensor, next_timestep: Tensor | None) -> Tensor:
        """Return `latents` after a step of `scheduler` with the original pasted; None after the last step.

        The order of operations is diffusers', so that its pipelines' latents are met bit for bit.
        """
        original = self.original
        if next_timestep is not None:
            at = torch.tensor([next_timestep])
            if hasattr(scheduler, "scale_noise"):  # flow matching
                original = scheduler.scale_noise(original, at, self.noise)
            else:
                original = scheduler.add_noise(original, self.noise, at)
        pasted: Tensor = (1 - self.mask) * original + self.mask * latents
        return pasted

    def to(self, device: torch.device) -> Pasting:
        """Return the same on `device`."""
        return Pasting(self.mask.to(device), self.original.to(device), self.noise.to(device))

    def rows(self, members: slice | list[int]) -> Pasting:
        """Return what is pasted into some of the trajectories."""
        return Pasting(self.mask[members], self.original[members], self.noise[members])

    def to_tensors(self) -> dict[str, Tensor]:
        """Return a dict of tensors; `from_tensors` reads it back."""
        return dict(vars(self))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Pasting | None:
        """Read what `to_tensors` returned; an empty dict stands for no pasting."""
        return cls(**tensors) if tensors else None
