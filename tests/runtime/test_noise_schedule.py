import json
from typing import Any

import diffusers
import numpy as np
import pytest

from accuquant.errors import UsageError
from accuquant.runtime.noise_schedule import alphas_cumprod
from accuquant.runtime.scheduler_config import SchedulerConfig
from accuquant.runtime.timestep_spacing import spaced_timesteps

SCHEDULES: list[dict[str, Any]] = [
    {},
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 100},
    {"beta_schedule": "laplace"},
    {"beta_schedule": "sigmoid"},
    {"rescale_betas_zero_snr": True},
    {"rescale_betas_zero_snr": True, "beta_schedule": "scaled_linear"},
    {"trained_betas": [0.001 * k for k in range(1, 51)], "num_train_timesteps": 50},
]


@pytest.mark.parametrize("given", SCHEDULES, ids=lambda given: "-".join(given) or "defaults")
def test_signal_levels_equal_diffusers(given: dict[str, Any]) -> None:
    scheduler = diffusers.DDPMScheduler(**given)
    ours = alphas_cumprod(SchedulerConfig.from_dict(json.loads(scheduler.to_json_string())))
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, scheduler.alphas_cumprod.numpy(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("scheduler_class", ["DDIMScheduler", "DDPMScheduler"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(("steps", "offset"), [(1, 0), (7, 0), (50, 1), (300, 0), (999, 0), (1000, 0)])
def test_timesteps_equal_diffusers(scheduler_class: str, spacing: str, steps: int, offset: int) -> None:
    scheduler = getattr(diffusers, scheduler_class)(timestep_spacing=spacing, steps_offset=offset)
    scheduler.set_timesteps(steps)
    ours = spaced_timesteps(SchedulerConfig.from_dict(json.loads(scheduler.to_json_string())), steps)
    np.testing.assert_array_equal(ours, scheduler.timesteps.numpy())


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_refuses_more_steps_than_the_training_had(steps: int) -> None:
    with pytest.raises(UsageError, match=f"number of steps: got {steps}, expected 1 to 1000"):
        spaced_timesteps(SchedulerConfig("DDIMScheduler"), steps)


def test_refuses_a_first_timestep_beyond_the_training() -> None:
    with pytest.raises(UsageError, match=r"got 1000 \(steps_offset 1\), expected a timestep below 1000"):
        spaced_timesteps(SchedulerConfig("DDIMScheduler", steps_offset=1), 1000)


@pytest.mark.parametrize(
    ("given", "listed"),
    [
        ({"_class_name": "EulerDiscreteScheduler"}, "DDIMScheduler, DDPMScheduler"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "sigmoid"}, "squaredcos_cap_v2"),
        ({"_class_name": "DDPMScheduler", "beta_schedule": "cubic"}, "sigmoid"),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned_range"}, "fixed_small, .*fixed_large"),
        ({"_class_name": "DDPMScheduler", "prediction_type": "flow"}, "epsilon, sample, v_prediction"),
    ],
)
def test_lists_what_the_loop_implements(given: dict[str, Any], listed: str) -> None:
    with pytest.raises(UsageError, match=f"expected one of .*{listed}.*EngineUNet"):
        SchedulerConfig.from_dict(given)
