"""The oracle is diffusers: latent by latent, over a closed-form network."""

import json
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from accuquant.errors import EngineError, UsageError
from accuquant.runtime.samplers import Schedule, sample_ddim, sample_ddpm
from accuquant.runtime.scheduler_config import SchedulerConfig
from accuquant.runtime.torch_noise import TorchNoise

SHAPE = (2, 3, 8, 8)
COMMON: list[dict[str, Any]] = [
    {},
    {"prediction_type": "v_prediction"},
    {"prediction_type": "sample"},
    {"clip_sample": False},
    {"clip_sample_range": 0.7},
    {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9},
    {"thresholding": True, "sample_max_value": 100.0},
    {"timestep_spacing": "trailing"},
    {"timestep_spacing": "linspace"},
    {"steps_offset": 1, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    {"trained_betas": [0.001 * k for k in range(1, 51)], "num_train_timesteps": 50},
]


def network(x: np.ndarray, timestep: int) -> np.ndarray:
    shift = np.float32(0.1 * np.cos(timestep / 100))
    return (np.float32(0.8) * np.tanh(x[:, ::-1] * np.float32(1.3)) + shift).astype(np.float32)


def reference(scheduler: Any, steps: int, seed: int, **step: Any) -> list[np.ndarray]:
    """Run diffusers' own scheduler over the same network; return the latents after each step."""
    generators = [torch.Generator().manual_seed(seed + k) for k in range(SHAPE[0])]
    x = torch.cat([torch.randn((1, *SHAPE[1:]), generator=g) for g in generators])
    scheduler.set_timesteps(steps)
    latents = []
    for timestep in scheduler.timesteps:
        output = torch.from_numpy(network(x.numpy(), int(timestep)))
        x = scheduler.step(output, timestep, x, generator=generators, **step).prev_sample
        latents.append(x.numpy())
    return latents


def ours(scheduler: Any, steps: int, seed: int, **options: Any) -> list[np.ndarray]:
    config = SchedulerConfig.from_dict(json.loads(scheduler.to_json_string()))
    noises = [TorchNoise(seed + k) for k in range(SHAPE[0])]
    seen: list[tuple[int, int]] = []
    latents: list[np.ndarray] = []

    def draw() -> np.ndarray:
        return np.concatenate([noise.randn((1, *SHAPE[1:])) for noise in noises])

    def record(step: int, timestep: int, x: np.ndarray) -> None:
        assert x.dtype == np.float32
        seen.append((step, timestep))
        latents.append(x)

    sample = sample_ddim if isinstance(scheduler, diffusers.DDIMScheduler) else sample_ddpm
    schedule = Schedule.create(config, steps)
    last = sample(network, draw(), schedule, draw, callback=record, **options)
    assert last is latents[-1]
    assert seen == list(enumerate(schedule.timesteps.tolist()))
    return latents


def assert_same(mine: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    assert len(mine) == len(theirs)
    for step, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        scale = max(1.0, float(np.abs(b).max()))
        np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=1e-5, err_msg=f"step {step}")


@pytest.mark.parametrize(
    "given", [*COMMON, {"set_alpha_to_one": False}], ids=lambda given: "-".join(given) or "defaults"
)
def test_ddim_equals_diffusers_at_every_step(given: dict[str, Any]) -> None:
    scheduler = diffusers.DDIMScheduler(**given)
    assert_same(ours(scheduler, 20, seed=3), reference(scheduler, 20, seed=3))


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_stochastic_ddim_equals_diffusers_at_every_step(eta: float, prediction: str) -> None:
    scheduler = diffusers.DDIMScheduler(prediction_type=prediction)
    assert_same(ours(scheduler, 20, seed=5, eta=eta), reference(scheduler, 20, seed=5, eta=eta))


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_ddim_equals_diffusers_at_any_number_of_steps(steps: int) -> None:
    scheduler = diffusers.DDIMScheduler()
    assert_same(ours(scheduler, steps, seed=0), reference(scheduler, steps, seed=0))


@pytest.mark.parametrize(
    "given",
    [
        *COMMON,
        {"variance_type": "fixed_large"},
        {"variance_type": "fixed_small_log"},
        {"beta_schedule": "sigmoid"},
    ],
    ids=lambda given: "-".join(given) or "defaults",
)
def test_ddpm_equals_diffusers_at_every_step(given: dict[str, Any]) -> None:
    scheduler = diffusers.DDPMScheduler(**given)
    assert_same(ours(scheduler, 20, seed=3), reference(scheduler, 20, seed=3))


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_ddpm_equals_diffusers_at_any_number_of_steps(steps: int) -> None:
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=100)
    assert_same(ours(scheduler, steps, seed=0), reference(scheduler, steps, seed=0))


def counted(draws: list[int]) -> np.ndarray:
    draws.append(1)
    return np.ones(SHAPE, np.float32)


def test_deterministic_ddim_draws_no_noise_and_needs_no_callback() -> None:
    """What is drawn moves the generator on, and with it every image that comes after."""
    schedule = Schedule.create(SchedulerConfig.from_dict({"_class_name": "DDIMScheduler"}), 5)
    start, draws = np.full(SHAPE, 0.5, np.float32), list[int]()
    still = sample_ddim(network, start, schedule, lambda: counted(draws))
    assert draws == []
    moved = sample_ddim(network, start, schedule, lambda: counted(draws), eta=0.5)
    assert len(draws) == 5
    assert np.abs(still - moved).max() > 0.01


def test_ddpm_draws_noise_at_every_timestep_but_the_last() -> None:
    schedule = Schedule.create(SchedulerConfig.from_dict({"_class_name": "DDPMScheduler"}), 5)
    assert schedule.timesteps[-1] == 0
    draws: list[int] = []
    sample_ddpm(network, np.full(SHAPE, 0.5, np.float32), schedule, lambda: counted(draws))
    assert len(draws) == 4


@pytest.mark.parametrize("eta", [-0.1, 1.5])
def test_refuses_an_eta_outside_its_range(eta: float) -> None:
    with pytest.raises(UsageError, match=f"eta: got {eta}, expected 0"):
        ours(diffusers.DDIMScheduler(), 5, seed=0, eta=eta)


def test_refuses_epsilon_prediction_where_no_signal_is_left() -> None:
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(EngineError, match="without any signal"):
        ours(scheduler, 5, seed=0)
