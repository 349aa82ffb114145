"""PTQD: the correlated part and the bias of an error are found, and every loop takes them off."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from accuquant._util.progress import Silent
from accuquant.calibration import CalibrationSettings
from accuquant.calibration.methods.method import Run
from accuquant.calibration.methods.ptqd import ErrorMoments, measure
from accuquant.calibration.placement import place
from accuquant.calibration.trajectory import record_trajectories
from accuquant.denoising.process import DenoisingProcess
from accuquant.groups import StepGroups
from accuquant.networks.network import call, count_macs
from accuquant.pipelines.source import Source


def test_a_planted_error_is_found_exactly() -> None:
    rng = np.random.default_rng(0)
    exact = rng.normal(0.3, 2.0, (40, 7, 3))
    bias = np.array([0.5, -0.2, 0.1])
    flat = exact.reshape(-1, 3)
    moments = ErrorMoments(3)
    error = 0.07 * flat + bias
    for part in np.array_split(np.arange(len(flat)), 4):
        moments.add(torch.from_numpy(flat[part]), torch.from_numpy(error[part]))
    # the bias differs by channel, and is no part of the slope that numpy finds for all of them together
    slope, found = moments.fit()
    wanted = np.polyfit(flat.ravel(), error.ravel(), 1)[0]
    assert slope == pytest.approx(wanted, rel=1e-9)
    np.testing.assert_allclose(found.numpy(), (error - wanted * flat).mean(0), rtol=1e-9)
    alone = ErrorMoments(1)
    alone.add(torch.from_numpy(flat[:, :1]), torch.from_numpy(error[:, :1]))
    slope, found = alone.fit()
    assert slope == pytest.approx(0.07, rel=1e-9)
    assert float(found[0]) == pytest.approx(0.5, rel=1e-9)


def test_a_negative_slope_counts_as_none_and_leaves_the_mean_as_bias() -> None:
    exact = torch.linspace(-1, 1, 50).reshape(-1, 1) + 0.4
    moments = ErrorMoments(1)
    moments.add(exact, -0.1 * exact)
    slope, bias = moments.fit()
    assert slope == 0
    assert float(bias[0]) == pytest.approx(-0.1 * 0.4, rel=1e-5)


class Wrong(nn.Module):
    """A network whose prediction is (1 + k) times too large and off by a bias, both by the timestep."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        share = float(timestep.reshape(-1)[0]) / 1000
        return (self.network(sample, timestep).sample * (1.1 + share) + 0.2 * share,)


@pytest.fixture(scope="module")
def run(tiny_source: Source) -> Run:
    settings = CalibrationSettings.preset(
        "balanced", method="ptqd", steps=4, num_trajectories=4, batch_size=2, iterations=0
    )
    process = DenoisingProcess(tiny_source.scheduler, 4)
    batches = record_trajectories(
        tiny_source.network, process, (1, 8, 8), num_trajectories=4, batch_size=2, seed=0
    )
    groups = StepGroups.from_timesteps(process.timesteps, group_size=4, num_train_timesteps=1000)
    placement = place(tiny_source.network, count_macs(tiny_source.network, tiny_source.signature))
    return Run(tiny_source, settings, process, groups, placement, batches, Silent())


def test_the_error_of_a_whole_network_is_recovered_step_by_step(run: Run) -> None:
    network = run.source.network
    correction, slopes = measure(run, Wrong(network).eval())
    timesteps = np.array(run.process.timesteps)
    np.testing.assert_allclose(slopes, 0.1 + timesteps / 1000, rtol=1e-4)
    np.testing.assert_allclose(correction.bias[:, 0], 0.2 * timesteps / 1000, atol=1e-5)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for step, t in enumerate(run.process.timesteps):
        with torch.no_grad():
            wrong = Wrong(network)(x, torch.tensor(t))[0]
            right = call(network, x, torch.tensor(t))
        corrected = (wrong - float(correction.bias[step, 0])) * float(correction.factor[step, 0])
        torch.testing.assert_close(corrected, right, rtol=1e-4, atol=1e-5)
