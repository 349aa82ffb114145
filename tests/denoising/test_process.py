"""The denoising loop against diffusers' own pipelines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
)
from torch import Tensor, nn

from accuquant.denoising.process import DenoisingProcess, seeded_generators
from accuquant.errors import CalibrationError
from accuquant.networks.network import call

SEEDS = (5, 6, 7)
STEPS = 4
RANGES: list[dict[str, Any]] = [
    {"clip_sample": True},
    {"clip_sample": False},
    {"clip_sample": True, "clip_sample_range": 0.5},
    {"clip_sample": False, "thresholding": True, "sample_max_value": 1.5},
]


def latents_of(pipeline: Any) -> list[Tensor]:
    """Run a diffusers pipeline; return the latents after every step."""
    seen: list[Tensor] = []
    step = pipeline.scheduler.step

    def spy(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        seen.append(result.prev_sample)
        return result

    pipeline.scheduler.step = spy
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    pipeline(batch_size=3, generator=generators, num_inference_steps=STEPS, output_type="np")
    return seen


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("ranges", RANGES, ids=str)
@pytest.mark.parametrize(
    ("scheduler_class", "pipeline_class"), [(DDIMScheduler, DDIMPipeline), (DDPMScheduler, DDPMPipeline)]
)
def test_equals_the_pipeline_of_diffusers_latent_by_latent(
    make_unet: Callable[..., nn.Module],
    scheduler_class: Any,
    pipeline_class: Any,
    ranges: dict[str, Any],
    prediction: str,
) -> None:
    unet = make_unet()
    scheduler = scheduler_class(prediction_type=prediction, **ranges)
    process = DenoisingProcess(scheduler, STEPS)
    generators = seeded_generators(SEEDS)
    latents = process.initial_latents((1, 8, 8), generators)
    ours: list[Tensor] = []
    timesteps: list[float] = []

    def keep(step: int, timestep: float, after: Tensor) -> None:
        assert step == len(ours)
        timesteps.append(timestep)
        ours.append(after)

    with torch.no_grad():
        end = process.sample(lambda x, t: call(unet, x, t), latents, generators, callback=keep)
    theirs = latents_of(pipeline_class(unet, scheduler))
    assert timesteps == process.timesteps
    assert len(ours) == len(theirs) == STEPS
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert torch.equal(end, theirs[-1])


def test_one_image_alone_equals_the_same_seed_in_a_batch(make_unet: Callable[..., nn.Module]) -> None:
    unet = make_unet()
    process = DenoisingProcess(DDPMScheduler(), STEPS)
    ends = []
    for seeds in (SEEDS, SEEDS[1:2]):
        generators = seeded_generators(seeds)
        latents = process.initial_latents((1, 8, 8), generators)
        with torch.no_grad():
            ends.append(process.sample(lambda x, t: call(unet, x, t), latents, generators))
    torch.testing.assert_close(ends[0][1:2], ends[1])


def test_some_of_the_steps_can_be_run(make_unet: Callable[..., nn.Module]) -> None:
    process = DenoisingProcess(DDIMScheduler(clip_sample=False), STEPS)
    latents = torch.randn(2, 1, 8, 8)
    whole = process.sample(lambda x, _: 0.3 * x, latents)
    middle = process.sample(lambda x, _: 0.3 * x, latents, steps=range(2))
    assert torch.equal(process.sample(lambda x, _: 0.3 * x, middle, steps=range(2, STEPS)), whole)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_refuses_a_number_of_steps_outside_the_training_schedule(steps: int) -> None:
    with pytest.raises(CalibrationError, match=r"number of steps: .* expected 1 to 1000"):
        DenoisingProcess(DDIMScheduler(), steps)


def test_the_given_scheduler_is_left_alone() -> None:
    scheduler = DDIMScheduler()
    DenoisingProcess(scheduler, 7)
    assert len(scheduler.timesteps) == 1000


@pytest.mark.parametrize("scheduler", [DDIMScheduler(), DDPMScheduler()])
def test_a_saved_state_gives_the_same_steps_again(scheduler: Any) -> None:
    process = DenoisingProcess(scheduler, 6)
    generators = seeded_generators(SEEDS)
    latents = process.initial_latents((1, 4, 4), generators)
    network = torch.nn.Identity()
    middle = process.sample(lambda x, _: network(x), latents, generators, steps=range(2))
    state = process.save_state(generators)
    end = process.sample(lambda x, _: network(x), middle, generators, steps=range(2, 6))
    for _ in range(2):
        again = process.restore_state(state)
        assert torch.equal(process.sample(lambda x, _: network(x), middle, again, steps=range(2, 6)), end)


def test_states_that_are_rows_of_one_tensor_are_restored() -> None:
    process = DenoisingProcess(DDPMScheduler(), 3)
    generators = seeded_generators(SEEDS)
    state = process.save_state(generators)
    rows = torch.stack(state.generators)
    restored = process.restore_state(dataclasses.replace(state, generators=tuple(rows)))
    for ours, theirs in zip(restored, generators, strict=True):
        assert torch.equal(torch.randn(5, generator=ours), torch.randn(5, generator=theirs))


def test_ddpm_noise_comes_from_the_generators_and_not_from_the_global_one() -> None:
    process = DenoisingProcess(DDPMScheduler(), 3)
    ends = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        generators = seeded_generators(SEEDS)
        latents = process.initial_latents((1, 4, 4), generators)
        ends.append(process.sample(lambda x, _: x, latents, generators))
    assert torch.equal(*ends)
    assert not torch.equal(ends[0][0], ends[0][1])


def test_initial_latents_are_one_draw_for_each_seed() -> None:
    latents = DenoisingProcess(DDIMScheduler(), 3).initial_latents((2, 4, 5), seeded_generators(SEEDS))
    for row, seed in zip(latents, SEEDS, strict=True):
        assert torch.equal(row, torch.randn((1, 2, 4, 5), generator=torch.Generator().manual_seed(seed))[0])


def test_a_step_is_differentiable_in_latents_and_prediction() -> None:
    process = DenoisingProcess(DDIMScheduler(clip_sample=False), 10)
    alphas = process.scheduler.alphas_cumprod.double()
    now, before = alphas[900], alphas[800]
    a = (before / now).sqrt()
    b = (1 - before).sqrt() - a * (1 - now).sqrt()
    x = torch.randn(1, 1, 2, 2, requires_grad=True)
    eps = torch.randn(1, 1, 2, 2, requires_grad=True)
    assert process.timesteps[0] == 900
    process.step(lambda _x, _t: eps, x, 0).sum().backward()
    assert x.grad is not None
    assert eps.grad is not None
    torch.testing.assert_close(x.grad, torch.full_like(x, a.item()))
    torch.testing.assert_close(eps.grad, torch.full_like(x, b.item()), rtol=1e-4, atol=1e-5)
