"""Calibrate by PTQ4DM: a calibration set whose timesteps are normally distributed."""

from __future__ import annotations

from .calibration_set import normally_distributed
from .method import Found, Method, Run
from .observed import batch_sizes, observe
from .ranges import ranged

#: Latents of each trajectory; with 64 trajectories the 1,024 of section 4.1.
DRAWS = 16


def find(run: Run) -> Found:
    """Return one scale a layer, by the latents of normally distributed timesteps."""
    picks = normally_distributed(
        batch_sizes(run),
        run.process.timesteps,
        train=run.process.num_train_timesteps,
        draws=DRAWS,
        seed=run.settings.seed,
    )
    latents = sum(len(pick.rows) for pick in picks)
    return Found(ranged(run, observe(run, picks), "norm"), {"calls": len(picks), "latents": latents})


METHOD = Method(
    name="ptq4dm",
    meaning="latents of normally distributed timesteps, one set for all steps, weights to the nearest level",
    source="Shang et al., arXiv 2211.15736, section 3.3 (DNTC); mean and deviation of the timesteps, 0.4"
    " of all, are ours: the repository leaves them to the command line",
    matched="latents on the way of the float sampler, t ~ N(0.4 T, (0.4 T)^2) cut off at the ends, scales"
    " by |error|^2.4, nearest rounding (the repository's path without --use_adaround)",
    not_matched="a sampler visits --steps timesteps: a draw takes the nearest of them, and a latent that is "
    "drawn twice counts once. The first and last layer have 8 bits there, and stay in float here,"
    " for all methods",
    find=find,
    every_step=True,
)
