"""Learning the scales of one step group."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from accuquant.calibration.descent import LearningSettings
from accuquant.calibration.gradient import GRADIENT_ARMS
from accuquant.calibration.learning import (
    _Judge,
    end_point_loss,
    held_out_errors,
    learn_group,
    sample_errors,
)
from accuquant.calibration.trajectory import TrajectoryBatch
from accuquant.denoising.process import DenoisingProcess
from accuquant.groups import StepGroups
from accuquant.networks.simulate import QuantizedLayer, quantize_network, quantized_layers
from accuquant.qparams import LayerQParams
from accuquant.recipe import GroupResult

Learn = Callable[..., GroupResult]
START = (2.0, 0.2)


@pytest.fixture
def network(
    pointwise: nn.Module, groups: StepGroups, pointwise_qparams: Callable[..., LayerQParams]
) -> nn.Module:
    """Return the quantized network; the scale of its first group is far too large."""
    return quantize_network(pointwise, [pointwise_qparams(START)], groups)


@pytest.fixture
def layer(network: nn.Module) -> QuantizedLayer:
    (layer,) = quantized_layers(network).values()
    return layer


@pytest.fixture
def learn(network: nn.Module, process: DenoisingProcess, batches: list[TrajectoryBatch]) -> Learn:
    def run(
        settings: LearningSettings, *, seed: int = 0, progress: Callable[[int], None] | None = None
    ) -> GroupResult:
        return learn_group(
            network, process, range(0, 3), 0, batches[:3], batches[3:], settings, seed=seed, progress=progress
        )

    return run


@pytest.mark.parametrize("gradient", GRADIENT_ARMS)
def test_learning_lowers_the_loss_on_trajectories_that_were_held_out(
    gradient: str,
    learn: Learn,
    layer: QuantizedLayer,
    network: nn.Module,
    process: DenoisingProcess,
    batches: list[TrajectoryBatch],
) -> None:
    result = learn(LearningSettings(gradient, iterations=30, learning_rate=0.1))
    assert result.status == "learned"
    assert result.final_loss < 0.5 * result.initial_loss
    errors = held_out_errors(network, process, range(0, 3), batches[3:])
    assert float(errors.median()) == result.final_loss
    assert 0 < layer.scale_of(0) < START[0]
    assert layer.scale_of(1) == np.float32(START[1])
    assert not layer.learning


def test_no_iterations_change_nothing(learn: Learn, layer: QuantizedLayer) -> None:
    result = learn(LearningSettings(iterations=0))
    assert (result.status, result.final_loss) == ("initial", result.initial_loss)
    assert result.initial_loss > 0
    assert layer.scale_of(0) == START[0]


@pytest.mark.parametrize("gradient", GRADIENT_ARMS)
def test_a_loss_that_turns_nan_rolls_the_group_back(
    gradient: str, learn: Learn, layer: QuantizedLayer, network: Any
) -> None:
    network.broken = True
    result = learn(LearningSettings(gradient, iterations=5))
    assert result.status == "rolled_back"
    assert "nan" in result.note
    assert result.final_loss == result.initial_loss
    assert layer.scale_of(0) == START[0]
    assert layer.scale_of(1) == np.float32(START[1])
    assert torch.isfinite(layer.log_scale).all()
    assert not layer.learning


def test_a_loss_that_diverges_rolls_the_group_back(learn: Learn, layer: QuantizedLayer) -> None:
    layer.set_scale(0, 0.45)
    result = learn(LearningSettings(iterations=3, learning_rate=1e3))
    assert result.status == "rolled_back"
    assert result.note
    assert layer.scale_of(0) == np.float32(0.45)
    assert math.isfinite(result.final_loss)


def test_a_loss_that_rises_on_held_out_trajectories_rolls_the_group_back(
    learn: Learn, layer: QuantizedLayer
) -> None:
    layer.set_scale(0, 0.45)
    result = learn(LearningSettings(iterations=1, learning_rate=1.5))
    assert result.status == "rolled_back"
    assert "held-out" in result.note
    assert layer.scale_of(0) == np.float32(0.45)


def test_learning_goes_on_after_a_group_that_was_rolled_back(
    learn: Learn, layer: QuantizedLayer, network: Any
) -> None:
    network.broken = True
    assert learn(LearningSettings(iterations=2)).status == "rolled_back"
    network.broken = False
    assert learn(LearningSettings(iterations=30, learning_rate=0.1)).status == "learned"


def test_the_same_seed_learns_the_same_scale(learn: Learn, layer: QuantizedLayer) -> None:
    scales: list[float] = []
    for seed in (0, 0, 1):
        layer.set_scale(0, START[0])
        torch.manual_seed(len(scales))
        learn(LearningSettings(iterations=7, learning_rate=0.1), seed=seed)
        scales.append(layer.scale_of(0))
    assert scales[0] == scales[1] != scales[2]


def test_a_descent_without_progress_ends_early(
    learn: Learn, layer: QuantizedLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    arm = GRADIENT_ARMS["exact"]

    def counted(*arguments: Any) -> float:
        calls.append(1)
        return arm(*arguments)

    monkeypatch.setitem(GRADIENT_ARMS, "exact", counted)
    layer.set_scale(0, 0.45)
    seen: list[int] = []
    result = learn(LearningSettings("exact", iterations=64, learning_rate=1.5), progress=seen.append)
    assert result.status == "rolled_back"
    assert len(calls) == 16  # 1/16, 1/8 and 1/4 of the iterations brought nothing
    assert sum(seen) == 64


def test_a_gain_within_one_standard_error_is_no_gain(
    network: nn.Module, process: DenoisingProcess, batches: list[TrajectoryBatch], layer: QuantizedLayer
) -> None:
    layer.set_scale(0, 0.45)
    judge = _Judge(network, process, range(0, 3), batches[3:], 0)
    errors = held_out_errors(network, process, range(0, 3), batches[3:])
    with_luck = errors * torch.tensor([0.2, 1.2, 1.2])  # log changes: mean -0.4, standard error 0.6
    steady = errors * torch.tensor([0.8, 0.9, 0.85])
    judge._errors = lambda: with_luck  # type: ignore[method-assign]
    assert judge()
    assert not judge.found_better
    judge._errors = lambda: steady  # type: ignore[method-assign]
    assert judge()
    assert judge.found_better
    assert judge.best_loss == pytest.approx(float(steady.median()))


def test_every_iteration_is_reported(learn: Learn) -> None:
    seen: list[int] = []
    learn(LearningSettings(iterations=7), progress=seen.append)
    assert sum(seen) == 7


def test_sample_errors_are_mean_squares_of_each_sample() -> None:
    end, target = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = [((e - t) ** 2).mean().item() for e, t in zip(end.numpy(), target.numpy(), strict=True)]
    assert sample_errors(end, target).tolist() == pytest.approx(expected)
    assert end_point_loss(end, target).item() == pytest.approx(np.mean(expected))


def test_the_robust_loss_does_not_let_one_sample_decide() -> None:
    target = torch.zeros(3, 1, 2, 2)
    end = torch.full_like(target, 0.1)
    end[2] = 100
    errors = [0.01, 0.01, 1e4]
    expected = np.mean([0.02 * math.log1p(e / 0.02) for e in errors])
    assert end_point_loss(end, target, 0.02).item() == pytest.approx(expected, rel=1e-5)
    # far below the scale it is the plain loss
    assert end_point_loss(end[:2], target[:2], 1e3).item() == pytest.approx(0.01, rel=1e-3)


def test_held_out_errors_are_those_of_every_sample(
    network: nn.Module, process: DenoisingProcess, batches: list[TrajectoryBatch]
) -> None:
    errors = []
    for batch in batches:
        x = batch.latents[3]
        with torch.no_grad():
            for step in range(3, 6):
                x = process.step(batch.bind(network), x, step)
        errors += [((a - b) ** 2).mean() for a, b in zip(x.numpy(), batch.latents[6].numpy(), strict=True)]
    found = held_out_errors(network, process, range(3, 6), batches)
    np.testing.assert_allclose(found, errors, rtol=1e-5)
