"""What one denoising step is: the network call and everything that the scheduler does around it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from accuquant.errors import CalibrationError

#: (sample [B, C, H, W], timestep) -> prediction [B, C, H, W]; conditioning is bound beforehand.
NetworkFn = Callable[[Tensor, Tensor], Tensor]
#: (step, timestep, latents after the step)
StepCallback = Callable[[int, float, Tensor], None]

#: Schedulers whose step depends on its arguments alone.
SUPPORTED_SCHEDULERS = ("DDIMScheduler", "DDPMScheduler")


@dataclass(frozen=True)
class ProcessState:
    """What a sampler remembers between steps: one random state a sample, the scheduler's history."""

    generators: tuple[Tensor, ...]
    scheduler: dict[str, Any]


class DenoisingProcess:
    """The sampler that the user will sample with: a scheduler at a number of steps.

    The network's output may be a noise, velocity or sample prediction; clipping, thresholding and
    the sampler's own noise are whatever `scheduler` (diffusers) is configured to do. `step` is
    differentiable with respect to the latents and the network's output.
    """

    def __init__(self, scheduler: Any, num_steps: int) -> None:
        name = type(scheduler).__name__
        if name not in SUPPORTED_SCHEDULERS:
            raise CalibrationError(
                f"scheduler {name}",
                got="a scheduler that AccuQuant does not simulate yet",
                expected=" or ".join(SUPPORTED_SCHEDULERS),
                remedy="Sample with DDIM: pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config), "
                "then save the pipeline",
            )
        self.scheduler = copy.deepcopy(scheduler)
        maximum = int(self.scheduler.config.num_train_timesteps)
        if not 1 <= num_steps <= maximum:
            raise CalibrationError(
                "number of steps",
                got=str(num_steps),
                expected=f"1 to {maximum}, the steps that the model was trained with",
                remedy="Give --steps in that range",
            )
        self.scheduler.set_timesteps(num_steps)
        self.timesteps: list[float] = [float(t) for t in self.scheduler.timesteps]

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def num_train_timesteps(self) -> int:
        """The length of the training schedule."""
        return int(self.scheduler.config.num_train_timesteps)

    def step(
        self, network: NetworkFn, latents: Tensor, step: int, generators: Sequence[torch.Generator] = ()
    ) -> Tensor:
        """Return the latents after loop index `step`: [B, C, H, W] -> [B, C, H, W]."""
        timestep = self.scheduler.timesteps[step]
        prediction = network(self.scheduler.scale_model_input(latents, timestep), timestep)
        result = self.scheduler.step(
            prediction, timestep, latents, generator=list(generators) or None, return_dict=False
        )
        after: Tensor = result[0]
        return after

    def sample(
        self,
        network: NetworkFn,
        latents: Tensor,
        generators: Sequence[torch.Generator] = (),
        *,
        steps: range | None = None,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """Run the loop over `steps` (all by default) and return the last latents."""
        for step in steps if steps is not None else range(len(self)):
            latents = self.step(network, latents, step, generators)
            if callback is not None:
                callback(step, self.timesteps[step], latents)
        return latents

    def initial_latents(self, shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
        """Draw one starting latent [1, *shape] a generator, as diffusers does -> [B, *shape]."""
        noise = torch.cat([torch.randn((1, *shape), generator=g) for g in generators])
        return noise * float(self.scheduler.init_noise_sigma)

    def save_state(self, generators: Sequence[torch.Generator] = ()) -> ProcessState:
        """Return what the next steps depend on beside the latents."""
        return ProcessState(tuple(g.get_state() for g in generators), _mutable(self.scheduler))

    def restore_state(self, state: ProcessState) -> list[torch.Generator]:
        """Go back to `state`; return generators that continue where it was saved."""
        vars(self.scheduler).update(
            {k: list(v) if isinstance(v, list) else v for k, v in state.scheduler.items()}
        )
        generators = []
        for saved in state.generators:
            generator = torch.Generator()
            # torch 2.13 reads a view (a row of a stored tensor) from the wrong place, or crashes
            generator.set_state(saved.clone())
            generators.append(generator)
        return generators


def seeded_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """Return one CPU generator a seed; image k of a run uses seed + k."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _mutable(scheduler: Any) -> dict[str, Any]:
    """Copy the attributes that a step may replace; tensors are replaced, never written to."""
    return {
        key: list(value) if isinstance(value, list) else value
        for key, value in vars(scheduler).items()
        if key != "_internal_dict"
    }
