"""Full-precision trajectories: the latents that both branches of the calibration fork from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from accuquant.denoising.conditioning import Conditioning
from accuquant.denoising.process import DenoisingProcess, NetworkFn, ProcessState, moved_states
from accuquant.denoising.start import Start, seeded_starts
from accuquant.errors import CalibrationError
from accuquant.networks.device import CPU, device_of
from accuquant.networks.network import call


@dataclass(frozen=True)
class TrajectoryBatch:
    """Some trajectories that run together.

    `latents` [T + 1, B, C, H, W]: before every step, then after the last. Where the one step of a generator
    ends with images of another shape, these are the `end`, and `latents` has its start alone. `states` [T]:
    what the sampler remembered before every step. What is recorded is on the CPU; `to` brings it to the
    network. What needs a step asks for it by `latents_before` and `state_before`: in a StoredBatch it is read
    from a file.
    """

    latents: Tensor
    states: tuple[ProcessState, ...]
    conditioning: Conditioning
    end: Tensor | None = None

    def __len__(self) -> int:
        return int(self.latents.shape[1])

    def latents_before(self, step: int) -> Tensor:
        """Return the latents [B, C, H, W] before `step`, or after the last step."""
        return self.end if self.end is not None and step == len(self.states) else self.latents[step]

    def state_before(self, step: int) -> ProcessState:
        """Return what the sampler remembered before `step`."""
        return self.states[step]

    def to(self, device: torch.device) -> TrajectoryBatch:
        """Return the same on `device`, itself where it is there; a tensor of several states is moved once."""
        if self.latents.device == device:
            return self
        return TrajectoryBatch(
            self.latents.to(device),
            moved_states(self.states, device),
            self.conditioning.to(device),
            None if self.end is None else self.end.to(device),
        )

    def bind(self, network: nn.Module) -> NetworkFn:
        """Return `network` as a function of sample and timestep, with this batch's conditioning."""
        return bound(network, self.conditioning)


def bound(network: nn.Module, conditioning: Conditioning) -> NetworkFn:
    """Return `network` as a function of sample and timestep."""
    return conditioning.bind(lambda sample, timestep, given: call(network, sample, timestep, given))


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
    """Sample `num_trajectories` latents [*shape] from noise with the float network and keep every step.

    Trajectory k starts from seed + k. `conditioning` holds tensors [num_trajectories, ...].
    """
    starts = seeded_starts(
        process, shape, count=num_trajectories, batch_size=batch_size, seed=seed, conditioning=conditioning
    )
    return record_from(network, process, starts, before_step=before_step)


def record_from(
    network: nn.Module,
    process: DenoisingProcess,
    starts: Iterable[Start],
    *,
    before_step: Callable[[int], None] | None = None,
) -> list[TrajectoryBatch]:
    """Run the float network from `starts` and keep every step.

    `before_step` is told the loop index of every step of every batch. The network runs where it is; what is
    recorded comes to the CPU.
    """
    return [record_batch(network, process, start, before_step) for start in starts]


def record_batch(
    network: nn.Module,
    process: DenoisingProcess,
    start: Start,
    before_step: Callable[[int], None] | None = None,
) -> TrajectoryBatch:
    """Run the float network from one start, as `record_from` does from several."""
    return _record(network, process, start.to(device_of(network)), before_step).to(CPU)


def place_of(step: int, process: DenoisingProcess) -> str:
    """Return how errors name a step: counted from 1, with its timestep."""
    return f"step {step + 1} of {len(process)} (timestep {process.timesteps[step]:g})"


def _check_finite(latents: Tensor, step: int, process: DenoisingProcess) -> None:
    """Raise CalibrationError where the float network's own trajectories leave the finite numbers."""
    broken = int((~torch.isfinite(latents).flatten(1).all(1)).sum())
    if broken:
        raise CalibrationError(
            f"full-precision trajectories, {place_of(step, process)}",
            got=f"NaN or infinity in {broken} of {len(latents)} latents after it",
            expected="finite latents",
            remedy="Sample with the pipeline itself: its images are broken there too. Change scheduler, "
            "steps or size; nothing was written",
        )


@torch.no_grad()
def _record(
    network: nn.Module,
    process: DenoisingProcess,
    start: Start,
    before_step: Callable[[int], None] | None,
) -> TrajectoryBatch:
    generators, latents = start.fresh_generators(), start.latents
    predict = bound(network, start.conditioning)
    kept, states = [latents], []
    process.reset()
    for step in range(len(process)):
        if before_step is not None:
            before_step(step)
        states.append(process.save_state(generators))
        latents = process.step(predict, latents, step, generators)
        _check_finite(latents, step, process)
        kept.append(latents)
    end = kept.pop() if kept[-1].shape != kept[0].shape else None
    return TrajectoryBatch(torch.stack(kept), tuple(states), start.conditioning, end)
