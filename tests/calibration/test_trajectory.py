"""Full-precision trajectories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import nn

from accuquant.calibration.trajectory import record_trajectories
from accuquant.denoising.process import DenoisingProcess, seeded_generators
from accuquant.networks.network import call

SHAPE = (1, 4, 4)


def test_trajectory_k_starts_from_seed_plus_k(pointwise: nn.Module, process: DenoisingProcess) -> None:
    batches = record_trajectories(pointwise, process, SHAPE, num_trajectories=5, batch_size=2, seed=40)
    assert [len(batch) for batch in batches] == [2, 2, 1]
    starts = torch.cat([batch.latents[0] for batch in batches])
    for k, start in enumerate(starts):
        generator = torch.Generator().manual_seed(40 + k)
        assert torch.equal(start, torch.randn((1, *SHAPE), generator=generator)[0])


@pytest.mark.parametrize("scheduler", [DDIMScheduler(), DDPMScheduler()])
def test_latents_are_those_of_the_denoising_loop(pointwise: nn.Module, scheduler: Any) -> None:
    process = DenoisingProcess(scheduler, 5)
    (batch,) = record_trajectories(pointwise, process, SHAPE, num_trajectories=3, batch_size=3, seed=7)
    assert batch.latents.shape == (6, 3, *SHAPE)
    generators = seeded_generators([7, 8, 9])
    latents = [process.initial_latents(SHAPE, generators)]
    with torch.no_grad():
        process.sample(
            lambda x, t: call(pointwise, x, t),
            latents[0],
            generators,
            callback=lambda _step, _timestep, after: latents.append(after),
        )
    assert torch.equal(batch.latents, torch.stack(latents))
    assert not batch.latents.requires_grad


@pytest.mark.parametrize("scheduler", [DDIMScheduler(), DDPMScheduler()])
def test_every_state_gives_its_step_again(pointwise: nn.Module, scheduler: Any) -> None:
    process = DenoisingProcess(scheduler, 5)
    (batch,) = record_trajectories(pointwise, process, SHAPE, num_trajectories=3, batch_size=3, seed=7)
    with torch.no_grad():
        for step in (3, 0, 4, 2, 1, 3):
            generators = process.restore_state(batch.states[step])
            after = process.step(batch.bind(pointwise), batch.latents[step], step, generators)
            assert torch.equal(after, batch.latents[step + 1])


def test_the_batch_size_does_not_change_a_trajectory(make_unet: Callable[..., nn.Module]) -> None:
    unet, process = make_unet(), DenoisingProcess(DDPMScheduler(), 3)
    all_latents = [
        torch.cat([b.latents for b in record_trajectories(
            unet, process, (1, 8, 8), num_trajectories=4, batch_size=size, seed=0)], dim=1)
        for size in (1, 3, 4)
    ]  # fmt: skip
    torch.testing.assert_close(all_latents[0], all_latents[1])
    torch.testing.assert_close(all_latents[0], all_latents[2])


def test_conditioning_is_split_with_the_batches(pointwise: nn.Module, process: DenoisingProcess) -> None:
    labels = torch.tensor([0, 5, 9])
    batches = record_trajectories(
        pointwise,
        process,
        SHAPE,
        num_trajectories=3,
        batch_size=2,
        seed=0,
        conditioning={"class_labels": labels},
    )
    assert [batch.conditioning.arguments()["class_labels"].tolist() for batch in batches] == [[0, 5], [9]]
    x = torch.zeros(2, *SHAPE)
    bound = batches[0].bind(pointwise)(x, torch.tensor(1)).detach()
    torch.testing.assert_close(bound[:, 0, 0, 0], torch.tensor([0.1, 0.6]))


def test_every_step_of_every_batch_is_announced(pointwise: nn.Module, process: DenoisingProcess) -> None:
    seen: list[int] = []
    record_trajectories(
        pointwise, process, SHAPE, num_trajectories=3, batch_size=2, seed=0, before_step=seen.append
    )
    assert seen == [0, 1, 2, 3, 4, 5] * 2
