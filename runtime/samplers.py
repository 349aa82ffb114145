"""DDIM and DDPM sampling in numpy: functions from latents to latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from accuquant.errors import UsageError
from accuquant.runtime.noise_schedule import Float32Array, alphas_cumprod
from accuquant.runtime.prediction import predicted_epsilon, predicted_x0
from accuquant.runtime.scheduler_config import SchedulerConfig
from accuquant.runtime.timestep_spacing import spaced_timesteps

#: (sample [B, C, H, W], timestep) -> the network's output [B, C, H, W]; conditioning is bound before.
Network = Callable[[Float32Array, int], Float32Array]
#: () -> standard normal noise [B, C, H, W].
Noise = Callable[[], Float32Array]
#: (step, timestep, latents after the step); the latents are the callee's to keep.
StepCallback = Callable[[int, int, Float32Array], None]


@dataclass(frozen=True)
class Schedule:
    """A sampler's timesteps and signal levels at a number of steps: `Schedule.create(config, 50)`."""

    config: SchedulerConfig
    timesteps: npt.NDArray[np.int64]
    abar: Float32Array
    num_steps: int

    @classmethod
    def create(cls, config: SchedulerConfig, num_steps: int) -> Schedule:
        """Lay out `num_steps` steps. Raises UsageError for a number the schedule has no room for."""
        return cls(config, spaced_timesteps(config, num_steps), alphas_cumprod(config), num_steps)


def sample_ddim(
    network: Network,
    x: Float32Array,
    schedule: Schedule,
    noise: Noise,
    *,
    eta: float = 0.0,
    callback: StepCallback | None = None,
) -> Float32Array:
    """Denoise x [B, C, H, W] by DDIM: Song et al., arXiv 2010.02502, equations 12 and 16.

    x_{t-1} = sqrt(abar_{t-1}) x_0 + sqrt(1 - abar_{t-1} - sigma^2) eps + sigma z, where sigma is `eta`
    times DDPM's. eps is not derived again from a clipped x_0. t - 1 means t - T // num_steps, as in
    diffusers, whatever the spacing.
    """
    config, abar = schedule.config, schedule.abar
    if not 0 <= eta <= 1:
        raise UsageError(
            "eta",
            got=f"{eta:g}",
            expected="0 (deterministic) to 1 (as DDPM)",
            remedy="Give --eta in that range",
        )
    one = np.float32(1)
    final = one if config.set_alpha_to_one else abar[0]
    stride = config.num_train_timesteps // schedule.num_steps
    for step, timestep in enumerate(schedule.timesteps.tolist()):
        output = network(x, timestep)
        before = timestep - stride
        abar_t, abar_before = abar[timestep], abar[before] if before >= 0 else final
        variance = (one - abar_before) / (one - abar_t) * (one - abar_t / abar_before)
        sigma = np.float32(eta) * np.sqrt(variance)
        x0 = predicted_x0(config, output, x, abar_t)
        direction = np.sqrt(one - abar_before - sigma**2)
        x = np.sqrt(abar_before) * x0 + direction * predicted_epsilon(config, output, x, abar_t)
        if eta > 0:
            x = x + sigma * noise()
        if callback is not None:
            callback(step, timestep, x)
    return x


def sample_ddpm(
    network: Network,
    x: Float32Array,
    schedule: Schedule,
    noise: Noise,
    *,
    callback: StepCallback | None = None,
) -> Float32Array:
    """Denoise x [B, C, H, W] by ancestral sampling: Ho et al., arXiv 2006.11239, algorithm 2.

    The posterior mean is equation 7 and its variance beta~_t ("fixed_small") or beta_t
    ("fixed_large"), with alpha_t = abar_t / abar_{t-1} between neighbours of the schedule. No noise
    is drawn at timestep 0.
    """
    config, abar = schedule.config, schedule.abar
    one = np.float32(1)
    timesteps = schedule.timesteps.tolist()
    for step, timestep in enumerate(timesteps):
        output = network(x, timestep)
        abar_t = abar[timestep]
        abar_before = abar[timesteps[step + 1]] if step + 1 < len(timesteps) else one
        alpha_t = abar_t / abar_before
        beta_t = one - alpha_t
        x0 = predicted_x0(config, output, x, abar_t)
        x0_weight = np.sqrt(abar_before) * beta_t / (one - abar_t)
        x_weight = np.sqrt(alpha_t) * (one - abar_before) / (one - abar_t)
        x = x0_weight * x0 + x_weight * x
        if timestep > 0:
            small = np.maximum((one - abar_before) / (one - abar_t) * beta_t, np.float32(1e-20))
            x = x + np.sqrt(beta_t if config.variance_type == "fixed_large" else small) * noise()
        if callback is not None:
            callback(step, timestep, x)
    return x
