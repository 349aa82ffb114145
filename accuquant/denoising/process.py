"""What one denoising step is: the network call and everything that happens around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from accuquant.denoising.conditioning import BoundNetwork
from accuquant.denoising.guidance import Guidance
from accuquant.denoising.schedulers import (
    SchedulerMemory,
    check_signal,
    history_tensors,
    scheduler_facts,
    takes_generator,
    with_steps,
    with_tensors,
)

#: (sample [copies * B, C, H, W], timestep) -> prediction; conditioning is bound beforehand.
NetworkFn = Callable[[Tensor, Tensor], Tensor]
#: (step, timestep, latents after the step)
StepCallback = Callable[[int, float, Tensor], None]


@dataclass(frozen=True)
class ProcessState:
    """What a sampler remembers between steps: one random state a sample, the scheduler's history."""

    generators: tuple[Tensor, ...]
    scheduler: dict[str, Any]


class DenoisingProcess:
    """The sampler that the user will sample with: a scheduler at a number of steps, and the guidance.

    The network's output may be a noise, velocity or sample prediction; clipping, thresholding, a
    multistep history and the sampler's own noise are whatever `scheduler` (diffusers) is configured to
    do. A step is one call of the network: Heun's has two steps for each of the `num_steps`. `step` is
    differentiable with respect to the latents, the network's output and the history.
    """

    def __init__(self, scheduler: Any, num_steps: int, guidance: Guidance | None = None) -> None:
        scheduler_facts(scheduler)
        self._set_up(with_steps(scheduler, num_steps), 0, guidance or Guidance())

    @classmethod
    def prepared(cls, scheduler: Any, first: int, guidance: Guidance) -> DenoisingProcess:
        """Take over a scheduler whose timesteps a pipeline has set, at the index `first` of them."""
        process = cls.__new__(cls)
        scheduler_facts(scheduler)
        process._set_up(scheduler, first, guidance)
        return process

    def _set_up(self, scheduler: Any, first: int, guidance: Guidance) -> None:
        self.scheduler = scheduler
        self.guidance = guidance
        self.first = first
        self._visited = list(scheduler.timesteps[first:])
        self.timesteps: list[float] = [float(t) for t in self._visited]
        check_signal(scheduler, self.timesteps)
        self._takes_generator = takes_generator(scheduler)
        self._memory = SchedulerMemory(scheduler)

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def num_train_timesteps(self) -> int:
        """The length of the training schedule."""
        return int(self.scheduler.config.num_train_timesteps)

    def step(
        self, network: NetworkFn, latents: Tensor, step: int, generators: Sequence[torch.Generator] = ()
    ) -> Tensor:
        """Return the latents after loop index `step`: [B, C, H, W] -> [B, C, H, W].

        A scheduler with a history takes steps in order, or from `restore_state`; step 0 starts anew. Where
        `network` is bound to trajectories that are inpainted by pasting, the original is pasted at the end.
        """
        if step == 0:
            self.reset()
        timestep = self._visited[step]
        prediction = network(self.network_sample(latents, step), timestep)
        prediction = self.guidance.combine(prediction, latents.shape[1])
        noise = {"generator": list(generators) or None} if self._takes_generator else {}
        result = self.scheduler.step(prediction, timestep, latents, return_dict=False, **noise)
        after: Tensor = result[0]
        if not isinstance(network, BoundNetwork) or network.pasting is None:
            return after
        following = self._visited[step + 1] if step + 1 < len(self) else None
        return network.pasting.paste(self.scheduler, after, following)

    def network_sample(self, latents: Tensor, step: int) -> Tensor:
        """Return what the network is given for `latents`: scaled, one copy for each prediction."""
        sample = self.guidance.expand(latents)
        scale = getattr(self.scheduler, "scale_model_input", None)
        scaled: Tensor = sample if scale is None else scale(sample, self._visited[step])
        return scaled

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
        return noise * float(getattr(self.scheduler, "init_noise_sigma", 1.0))

    def reset(self) -> None:
        """Forget every step: the next trajectory has no history."""
        self._memory.reset()

    def save_state(self, generators: Sequence[torch.Generator] = ()) -> ProcessState:
        """Return what the next steps depend on beside the latents."""
        return ProcessState(tuple(g.get_state() for g in generators), self._memory.save())

    def restore_state(self, state: ProcessState) -> list[torch.Generator]:
        """Go back to `state`; return generators that continue where it was saved."""
        self._memory.restore(state.scheduler)
        return restored_generators(state.generators)


def moved_states(states: Sequence[ProcessState], device: torch.device) -> tuple[ProcessState, ...]:
    """Return `states` with their history on `device`; random states stay on the CPU.

    A multistep solver remembers one output in several states: it is moved once, and stays one tensor.
    """
    moved: dict[int, Tensor] = {}

    def move(state: ProcessState) -> ProcessState:
        history = {
            name: moved.setdefault(id(tensor), tensor.to(device))
            for name, tensor in history_tensors(state.scheduler)
        }
        return replace(state, scheduler=with_tensors(state.scheduler, history)) if history else state

    return tuple(move(state) for state in states)


def seeded_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """Return one CPU generator a seed; image k of a run uses seed + k."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def restored_generators(states: Sequence[Tensor]) -> list[torch.Generator]:
    """Return one CPU generator for each state that `torch.Generator.get_state` gave."""
    generators = []
    for state in states:
        generator = torch.Generator()
        # torch 2.13 reads a view (a row of a stored tensor) from the wrong place, or crashes
        generator.set_state(state.clone())
        generators.append(generator)
    return generators
