"""Calibration sets: which steps, and that the network is called as the sampler calls it."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from accuquant.calibration.methods.calibration_set import (
    Pick,
    evenly_spaced,
    every_step,
    normally_distributed,
    predict,
)
from accuquant.calibration.trajectory import record_trajectories
from accuquant.denoising.process import DenoisingProcess
from accuquant.pipelines.source import Source


def test_evenly_spaced_steps_reach_both_ends_in_every_batch() -> None:
    picks = evenly_spaced([8, 3], 50, 5)
    assert [pick.step for pick in picks if pick.batch == 0] == [0, 12, 24, 37, 49]
    assert {pick.rows for pick in picks if pick.batch == 1} == {(0, 1, 2)}
    assert [pick.step for pick in every_step([2], 4)] == [0, 1, 2, 3]
    assert len(evenly_spaced([2], 3, 20)) == 3


def test_timesteps_follow_the_normal_law_cut_off_at_both_ends() -> None:
    timesteps = [float(t) for t in range(999, -1, -1)]
    drawn = np.zeros(1000)
    for seed in range(20):
        for pick in normally_distributed([200], timesteps, train=1000, draws=2, seed=seed):
            drawn[int(timesteps[pick.step])] += len(pick.rows)

    def law(t: float) -> float:
        return 0.5 * (1 + math.erf((t / 999 - 0.4) / (0.4 * math.sqrt(2))))

    shares = np.cumsum(drawn) / drawn.sum()
    # what lies below 0 or above T is drawn at the end itself: a jump there
    for t in (100, 250, 400, 600, 800, 950):
        assert shares[t] == pytest.approx(law(t), abs=0.02)
    assert drawn[0] / drawn.sum() == pytest.approx(law(0), abs=0.02)
    assert drawn[999] / drawn.sum() == pytest.approx(1 - law(999), abs=0.02)


def test_draws_take_the_nearest_step_that_the_sampler_visits() -> None:
    picks = normally_distributed([4, 2], [750, 500, 250, 0], train=1000, draws=5, seed=1)
    assert {pick.step for pick in picks} <= {0, 1, 2, 3}
    assert all(pick.rows == tuple(sorted(set(pick.rows))) for pick in picks)
    assert {row for pick in picks if pick.batch == 1 for row in pick.rows} <= {0, 1}
    assert picks == normally_distributed([4, 2], [750, 500, 250, 0], train=1000, draws=5, seed=1)


def test_a_pick_is_called_as_diffusers_calls_the_network(tiny_source: Source) -> None:
    process = DenoisingProcess(tiny_source.scheduler, 4)
    batches = record_trajectories(
        tiny_source.network, process, (1, 8, 8), num_trajectories=2, batch_size=2, seed=3
    )
    network: nn.Module = tiny_source.network
    scheduler = copy.deepcopy(tiny_source.scheduler)
    scheduler.set_timesteps(4)
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        for t in scheduler.timesteps[:2]:
            x = scheduler.step(network(x, t).sample, t, x).prev_sample
        wanted = network(x, scheduler.timesteps[2]).sample
    found = predict(network, process, batches, Pick(0, 2, (1,)))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
