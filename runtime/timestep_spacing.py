"""Which training timesteps a sampler with fewer steps visits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from accuquant.errors import UsageError
from accuquant.runtime.scheduler_config import SchedulerConfig


def spaced_timesteps(config: SchedulerConfig, num_steps: int) -> npt.NDArray[np.int64]:
    """Return the falling timesteps of a run with `num_steps` steps, int64.

    The three spacings are those of Lin et al., arXiv 2305.08891, table 2. For 1000 training timesteps
    and 10 steps: leading 900 ... 0 (plus `steps_offset`), trailing 999 ... 99, linspace 999 ... 0.
    """
    total = config.num_train_timesteps
    if not 1 <= num_steps <= total:
        raise UsageError(
            "number of steps",
            got=str(num_steps),
            expected=f"1 to {total}, the steps that the network was trained with",
            remedy="Give --steps in that range",
        )
    if config.timestep_spacing == "linspace":
        timesteps = np.linspace(0, total - 1, num_steps).round()[::-1].astype(np.int64)
    elif config.timestep_spacing == "leading":
        timesteps = np.arange(num_steps)[::-1] * (total // num_steps) + config.steps_offset
    else:
        timesteps = np.round(np.arange(total, 0, -total / num_steps)).astype(np.int64) - 1
    if timesteps[0] >= total:
        raise UsageError(
            "first timestep",
            got=f"{timesteps[0]} (steps_offset {config.steps_offset})",
            expected=f"a timestep below {total}",
            remedy="Take fewer steps",
        )
    return np.ascontiguousarray(timesteps, dtype=np.int64)
