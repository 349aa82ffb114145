"""Learning what all step groups share, on a network whose best weight scale and bias are known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from accuquant.calibration.descent import LearningSettings
from accuquant.calibration.gradient import GRADIENT_ARMS
from accuquant.calibration.learning import held_out_errors
from accuquant.calibration.shared_learning import _Judge, learn_shared
from accuquant.calibration.trajectory import TrajectoryBatch
from accuquant.denoising.process import DenoisingProcess
from accuquant.groups import StepGroups
from accuquant.networks.simulate import quantize_network
from accuquant.qparams import LayerQParams
from accuquant.recipe import GroupResult, Recipe

#: eps(x) = 0.7 x + 0.1: at 70 levels of the weight its scale should be 0.01, and no bias is missing.
TRUE_SCALE, LEVELS = 0.01, 70
Learn = Callable[..., tuple[Recipe, GroupResult]]


@pytest.fixture
def make_recipe(
    pointwise_source: object, groups: StepGroups, pointwise_qparams: Callable[..., LayerQParams]
) -> Callable[[float, float], Recipe]:
    """Return a function that makes a recipe with a given error in the weight scale and the bias."""

    def make(gain: float, shift: float) -> Recipe:
        layer = pointwise_qparams(
            (0.02, 0.02),
            activation_bits=8,
            weight_scale=np.array([TRUE_SCALE * gain], np.float32),
            weight_levels=np.full((1, 1, 1, 1), LEVELS, np.int8),
            bias_correction=np.array([shift], np.float32),
        )
        signature = pointwise_source.signature  # type: ignore[attr-defined]
        return Recipe(groups, {"conv": layer}, signature, {}, "hash")

    return make


@pytest.fixture
def learn(pointwise: nn.Module, process: DenoisingProcess, batches: list[TrajectoryBatch]) -> Learn:
    def run(
        recipe: Recipe,
        settings: LearningSettings,
        *,
        seed: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[Recipe, GroupResult]:
        return learn_shared(
            pointwise, process, recipe, batches[:3], batches[3:], settings, seed=seed, progress=progress
        )

    return run


@pytest.mark.parametrize("gradient", GRADIENT_ARMS)
def test_a_wrong_weight_scale_and_bias_are_put_right(
    gradient: str, learn: Learn, make_recipe: Callable[[float, float], Recipe]
) -> None:
    recipe, result = learn(make_recipe(1.2, 0.08), LearningSettings(gradient, 240, 0.3))
    assert result.status == "learned"
    assert result.final_loss < result.initial_loss / 50
    layer = recipe.layers["conv"]
    assert layer.weight_scale[0] == pytest.approx(TRUE_SCALE, rel=0.02)
    assert layer.bias_correction is not None
    assert layer.bias_correction[0] == pytest.approx(0, abs=0.01)
    assert layer.weight_levels is not None
    assert layer.weight_levels.item() == LEVELS


def test_the_recipe_has_the_loss_that_the_result_says(
    learn: Learn,
    make_recipe: Callable[[float, float], Recipe],
    pointwise: nn.Module,
    process: DenoisingProcess,
    batches: list[TrajectoryBatch],
) -> None:
    start = make_recipe(1.2, 0.08)
    recipe, result = learn(start, LearningSettings(iterations=20, learning_rate=0.2))

    def loss(recipe: Recipe) -> float:
        network = quantize_network(pointwise, recipe.layers.values(), recipe.groups)
        return float(held_out_errors(network, process, range(6), batches[3:]).median())

    assert loss(start) == pytest.approx(result.initial_loss, rel=1e-4)
    assert loss(recipe) == pytest.approx(result.final_loss, rel=1e-3)


def test_the_activation_scales_of_every_group_are_learned_too(
    learn: Learn, make_recipe: Callable[[float, float], Recipe]
) -> None:
    start = make_recipe(1.2, 0.08)
    recipe, _ = learn(start, LearningSettings(iterations=40, learning_rate=0.1))
    assert (recipe.layers["conv"].activation_scale != start.layers["conv"].activation_scale).all()


def test_a_recipe_that_only_gets_worse_comes_back_as_it_was(
    learn: Learn, make_recipe: Callable[[float, float], Recipe]
) -> None:
    start = make_recipe(1.0, 0.0)
    recipe, result = learn(start, LearningSettings(iterations=2, learning_rate=30.0))
    assert recipe is start
    assert result.status == "rolled_back"
    assert result.final_loss == result.initial_loss
    assert "no moment was better on held-out trajectories" in result.note


@pytest.mark.parametrize("gradient", ["exact", "accuquant"])
def test_a_loss_that_is_not_a_number_is_reported(
    gradient: str,
    learn: Learn,
    make_recipe: Callable[[float, float], Recipe],
    pointwise: nn.Module,
) -> None:
    pointwise.broken = True  # type: ignore[assignment]
    start = make_recipe(1.2, 0.0)
    recipe, result = learn(start, LearningSettings(gradient, iterations=5))
    assert recipe is start
    # a step's own gradient is NaN although the loss, taken without gradients, is not yet
    assert (result.status, result.note) == ("rolled_back", "the loss became nan at iteration 2")


def test_the_seed_decides_the_order_and_nothing_else_does(
    learn: Learn, make_recipe: Callable[[float, float], Recipe]
) -> None:
    def scale(seed: int) -> float:
        recipe, _ = learn(make_recipe(1.2, 0.08), LearningSettings(iterations=7), seed=seed)
        return float(recipe.layers["conv"].weight_scale[0])

    assert scale(1) == scale(1)
    assert scale(1) != scale(2)


def test_every_iteration_is_reported(learn: Learn, make_recipe: Callable[[float, float], Recipe]) -> None:
    seen: list[int] = []
    learn(make_recipe(1.2, 0.08), LearningSettings(iterations=7), progress=seen.append)
    assert seen == [1] * 7


def test_the_float_network_is_left_as_it_was(
    learn: Learn, make_recipe: Callable[[float, float], Recipe], pointwise: nn.Module
) -> None:
    before = {name: value.clone() for name, value in pointwise.state_dict().items()}
    learn(make_recipe(1.2, 0.08), LearningSettings(iterations=3))
    assert all(torch.equal(value, before[name]) for name, value in pointwise.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pointwise.modules())


def errors_of(*rounds: list[float]) -> Callable[[], torch.Tensor]:
    """Return a source of end-point errors, a round a call."""
    left = [torch.tensor(row) for row in rounds]
    return lambda: left.pop(0)


def test_the_judge_wants_more_than_one_standard_error() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    judge = _Judge(errors_of([1.0, 1.0, 1.0, 1.0], [0.1, 1.9, 0.9, 1.2], [0.9, 0.8, 0.9, 0.8]), [parameter])
    with torch.no_grad():
        parameter.fill_(1.0)
        judge()  # lower on average, but by one trajectory
        assert not judge.restore()
        parameter.fill_(2.0)
        judge()
        parameter.fill_(3.0)
    assert judge.restore()
    assert parameter.item() == 2.0
    nearly: Any = pytest.approx(0.8)
    assert judge.result("learned") == GroupResult(1.0, nearly, "learned")
    assert dataclasses.asdict(judge.result("rolled_back"))["final_loss"] == 1.0
