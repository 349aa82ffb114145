"""A generator that makes an image of a latent in one call: a GAN's, a distilled model's."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from accuquant.networks.aten_program import AtenNetwork, Program


class FeedForwardNetwork(AtenNetwork):
    """Latents [B, ...] -> images [B, C, H, W] in [-1, 1], with the call of a denoising network.

    `config` has `latent_shape` and `image_shape`, without the batch.
    """

    def __init__(self, config: dict[str, Any], program: Program, tensors: dict[str, Tensor]) -> None:
        super().__init__(program, tensors)
        self.config = dict(config)

    def forward(self, sample: Tensor, timestep: Any = None, return_dict: bool = False) -> tuple[Tensor]:
        """Return the images of `sample`; there is one timestep, and it changes nothing."""
        return (self.compute(sample),)
