"""Which latents of the recorded trajectories a method looks at, and how the network is called on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from accuquant.calibration.trajectory import TrajectoryBatch, bound
from accuquant.denoising.process import DenoisingProcess
from accuquant.networks.device import device_of

#: PTQ4DM's calibration set, in the authors' repository: t / T is normal with this mean and deviation.
NORMAL_MEAN, NORMAL_DEVIATION = 0.4, 0.4


@dataclass(frozen=True)
class Pick:
    """Some trajectories, the `rows` of one batch, before one step: one call of the network."""

    batch: int
    step: int
    rows: tuple[int, ...]


def every_step(sizes: Sequence[int], steps: int) -> list[Pick]:
    """Return every step of every batch; `sizes` are the batches' numbers of trajectories."""
    return evenly_spaced(sizes, steps, steps)


def evenly_spaced(sizes: Sequence[int], steps: int, count: int) -> list[Pick]:
    """Return `count` of the `steps`, as far apart as they can be, of every batch.

    Q-Diffusion, arXiv 2302.04304, section 4.1: inputs of neighbouring steps are alike, so that every c-th
    step is enough.
    """
    chosen = sorted({int(step) for step in np.linspace(0, steps - 1, min(count, steps)).round()})
    return [Pick(batch, step, tuple(range(size))) for step in chosen for batch, size in enumerate(sizes)]


def normally_distributed(
    sizes: Sequence[int], timesteps: Sequence[float], *, train: int, draws: int, seed: int
) -> list[Pick]:
    """Return `draws` steps of every trajectory, drawn by a normal law of the timestep.

    t ~ N(0.4 T, (0.4 T)^2), cut off at 0 and T: PTQ4DM, arXiv 2211.15736, section 3.3 (mean below T / 2). A
    sampler visits only some timesteps: a draw takes the nearest of `timesteps`. `train` is T.
    """
    rng = np.random.default_rng(seed)
    visited = np.asarray(timesteps, np.float64)
    chosen: dict[tuple[int, int], set[int]] = {}
    for batch, size in enumerate(sizes):
        drawn = np.clip(rng.normal(NORMAL_MEAN, NORMAL_DEVIATION, (size, draws)), 0, 1) * (train - 1)
        for row, values in enumerate(drawn):
            for value in values:
                step = int(np.abs(visited - value).argmin())
                chosen.setdefault((step, batch), set()).add(row)
    return [Pick(batch, step, tuple(sorted(rows))) for (step, batch), rows in sorted(chosen.items())]


def sizes_of(batches: Sequence[TrajectoryBatch]) -> list[int]:
    """Return the number of trajectories of each batch."""
    return [len(batch) for batch in batches]


@torch.no_grad()
def predict(
    network: nn.Module, process: DenoisingProcess, batches: Sequence[TrajectoryBatch], pick: Pick
) -> Tensor:
    """Return what `network` predicts for the latents that were picked [copies * n, C, H, W]."""
    batch = batches[pick.batch].to(device_of(network))
    process.restore_state(batch.state_before(pick.step))
    rows = list(pick.rows)
    latents = batch.latents_before(pick.step)[rows]
    sample = process.network_sample(latents, pick.step)
    timestep = torch.tensor(process.timesteps[pick.step], device=latents.device)
    return bound(network, batch.conditioning.rows(rows))(sample, timestep)


def run_all(
    network: nn.Module,
    process: DenoisingProcess,
    batches: Sequence[TrajectoryBatch],
    picks: Sequence[Pick],
    done: Callable[[], None],
) -> None:
    """Call `network` on all `picks`, for what watches it."""
    for pick in picks:
        predict(network, process, batches, pick)
        done()
