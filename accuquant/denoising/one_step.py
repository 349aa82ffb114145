"""A sampler of one step: what the network makes of the noise is the image, as a GAN's generator does."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor


class OneStepScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # diffusers shows checkers Any
    """Hands on what the network returns, once, at timestep 0.

    The output may have another shape than the latents [B, ...] that went in.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, num_train_timesteps: int = 1, prediction_type: str = "sample") -> None:
        self.timesteps = torch.zeros(1)

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Take one step, and no other number: raises ValueError."""
        if num_inference_steps != 1:
            raise ValueError(f"{num_inference_steps} steps of a generator that makes an image in one")

    def step(
        self, model_output: Tensor, timestep: Tensor, sample: Tensor, return_dict: bool = False
    ) -> tuple[Tensor]:
        """Return the network's output [B, C, H, W]."""
        return (model_output,)
