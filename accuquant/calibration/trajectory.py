"""Full-precision trajectories: the latents that both branches of the calibration fork from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from accuquant.denoising import DenoisingProcess, NetworkFn, ProcessState, seeded_generators
from accuquant.network import call


@dataclass(frozen=True)
class TrajectoryBatch:
    """Some trajectories that run together.

    `latents` [T + 1, B, C, H, W]: before every step, then after the last. `states` [T]: what the sampler
    remembered before every step. `conditioning` maps names to tensors [B, ...].
    """

    latents: Tensor
    states: tuple[ProcessState, ...]
    conditioning: dict[str, Tensor]

    def __len__(self) -> int:
        return int(self.latents.shape[1])

    def bind(self, network: nn.Module) -> NetworkFn:
        """Return `network` as a function of sample and timestep, with this batch's conditioning."""
        return lambda sample, timestep: call(network, sample, timestep, self.conditioning)


@torch.no_grad()
def record_trajectories(
    network: nn.Module,
    process: DenoisingProcess,
    shape: tuple[int, ...],
    *,
    num_trajectories: int,
    batch_size: int,
    seed: int,
    conditioning: dict[str, Tensor] | None = None,
    before_step: Callable[[int], None] | None = None,
) -> list[TrajectoryBatch]:
    """Sample `num_trajectories` latents [*shape] with the float network and keep every step.

    Trajectory k starts from seed + k. `conditioning` holds tensors [num_trajectories, ...];
    `before_step` is told the loop index of every step of every batch.
    """
    batches = []
    for start in range(0, num_trajectories, batch_size):
        members = slice(start, min(start + batch_size, num_trajectories))
        bound = {name: tensor[members] for name, tensor in (conditioning or {}).items()}
        batch = _record(
            network, process, shape, range(seed + members.start, seed + members.stop), bound, before_step
        )
        batches.append(batch)
    return batches


def _record(
    network: nn.Module,
    process: DenoisingProcess,
    shape: tuple[int, ...],
    seeds: range,
    conditioning: dict[str, Tensor],
    before_step: Callable[[int], None] | None,
) -> TrajectoryBatch:
    generators = seeded_generators(seeds)
    latents = process.initial_latents(shape, generators)
    kept, states = [latents], []
    for step in range(len(process)):
        if before_step is not None:
            before_step(step)
        states.append(process.save_state(generators))
        latents = process.step(lambda x, t: call(network, x, t, conditioning), latents, step, generators)
        kept.append(latents)
    return TrajectoryBatch(torch.stack(kept), tuple(states), conditioning)
