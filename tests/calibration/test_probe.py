"""The probe before learning: is there anything to gain, as two batches see it?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from accuquant.calibration.descent import HeldOutJudge, LearningSettings
from accuquant.calibration.gradient import GRADIENT_ARMS
from accuquant.calibration.learning import end_point_loss, learn_group
from accuquant.calibration.probe import WORTH, Probe, nothing_to_gain, promised
from accuquant.calibration.shared_learning import learn_shared
from accuquant.calibration.trajectory import TrajectoryBatch
from accuquant.denoising.process import DenoisingProcess
from accuquant.groups import StepGroups
from accuquant.networks.simulate import quantize_network, quantized_layers
from accuquant.qparams import LayerQParams
from accuquant.recipe import GroupResult, Recipe

MakeQParams = Callable[..., LayerQParams]
GAIN = LearningSettings("exact", iterations=30, learning_rate=0.1, probe=True)


def test_a_promise_is_what_the_signs_of_one_batch_do_to_the_loss_of_another() -> None:
    rng = np.random.default_rng(0)
    gradients, losses = rng.normal(size=(3, 40)).astype(np.float32), [2.0, 0.5, 1.0]
    found = promised([torch.from_numpy(g) for g in gradients], losses, 0.01)
    others: list[float] = []
    own: list[float] = []
    for i in range(3):
        for j in range(3):
            # a linear loss with that gradient, moved along batch i's signs
            fall = -float(gradients[j] @ (-0.01 * np.sign(gradients[i]))) / losses[j]
            (own if i == j else others).append(fall)
    assert found.gain == pytest.approx(np.mean(others), rel=1e-5)
    assert found.own == pytest.approx(np.mean(own), rel=1e-5)


def test_batches_whose_gradients_are_noise_promise_each_other_nothing() -> None:
    noise = torch.randn(4, 4000, generator=torch.Generator().manual_seed(0))
    alike = torch.randn(4000, generator=torch.Generator().manual_seed(1))
    nothing = promised(list(noise[:2]), [1.0, 1.0], 1e-3)
    assert nothing.own > 20 * abs(nothing.gain)
    assert not nothing.worth_learning
    assert promised(list(0.1 * noise[:2] + alike), [1.0, 1.0], 1e-3).worth_learning


def test_a_promise_that_is_no_number_leaves_it_to_the_descent_to_find_out() -> None:
    assert Probe(float("nan"), 1.0).worth_learning
    assert not Probe(0.99 * WORTH, 1.0).worth_learning
    assert Probe(WORTH, 1.0).worth_learning


@pytest.fixture
def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows with every gradient that is taken."""
    calls: list[int] = []
    arm = GRADIENT_ARMS["exact"]

    def counted(*arguments: Any) -> float:
        calls.append(1)
        return arm(*arguments)

    monkeypatch.setitem(GRADIENT_ARMS, "exact", counted)
    return calls


@pytest.fixture
def learn(
    pointwise: nn.Module,
    groups: StepGroups,
    process: DenoisingProcess,
    batches: list[TrajectoryBatch],
    pointwise_qparams: MakeQParams,
) -> Callable[..., GroupResult]:
    def run(scale: float, settings: LearningSettings, **changes: Any) -> GroupResult:
        network = quantize_network(pointwise, [pointwise_qparams((scale, 0.2), **changes)], groups)
        result = learn_group(network, process, range(3), 0, batches[:3], batches[3:], settings, seed=0)
        (layer,) = quantized_layers(network).values()
        assert not layer.learning
        assert (layer.scale_of(0) != np.float32(scale)) == (result.status == "learned")
        return result

    return run


def test_a_scale_that_is_far_off_is_worth_learning(
    learn: Callable[..., GroupResult], count_calls: list[int]
) -> None:
    assert learn(2.0, GAIN).status == "learned"
    assert len(count_calls) > 2


def test_where_there_is_nothing_to_gain_nothing_is_learned_and_the_result_says_so(
    learn: Callable[..., GroupResult], count_calls: list[int]
) -> None:
    result = learn(0.02, LearningSettings("exact", 32, 1e-3, probe=True), activation_bits=8)
    assert result.status == "initial"
    assert result.note.startswith("nothing to gain: the gradients of 2 batches promise each other")
    assert result.final_loss == result.initial_loss > 0
    assert len(count_calls) == 2


def test_without_the_probe_the_descent_begins(
    learn: Callable[..., GroupResult], count_calls: list[int]
) -> None:
    learn(0.02, LearningSettings("exact", 3, 1e-3), activation_bits=8)
    assert len(count_calls) == 3


def test_one_batch_cannot_be_asked(
    pointwise: nn.Module,
    groups: StepGroups,
    process: DenoisingProcess,
    batches: list[TrajectoryBatch],
    pointwise_qparams: MakeQParams,
) -> None:
    network = quantize_network(pointwise, [pointwise_qparams()], groups)
    (layer,) = quantized_layers(network).values()
    layer.learning = True
    parameters = [p for p in network.parameters() if p.requires_grad]
    given = (range(3), end_point_loss, GAIN)
    assert nothing_to_gain(network, process, parameters, batches[:1], *given, 0.0) == ""
    assert nothing_to_gain(network, process, parameters, batches[:2], *given, 0.0)


@pytest.mark.parametrize(
    ("gain", "shift", "rate", "status"), [(1.2, 0.08, 0.03, "learned"), (1.0, 0.0, 1e-4, "initial")]
)
def test_a_wrong_weight_scale_is_worth_learning_and_what_rounding_leaves_is_not_at_a_small_rate(
    gain: float,
    shift: float,
    rate: float,
    status: str,
    pointwise: nn.Module,
    pointwise_source: Any,
    groups: StepGroups,
    process: DenoisingProcess,
    batches: list[TrajectoryBatch],
    pointwise_qparams: MakeQParams,
) -> None:
    layer = pointwise_qparams(
        (0.04, 0.04),  # nothing is clipped
        activation_bits=8,
        weight_scale=np.array([0.01 * gain], np.float32),
        weight_levels=np.full((1, 1, 1, 1), 70, np.int8),
        bias_correction=np.array([shift], np.float32),
    )
    start = Recipe(groups, {"conv": layer}, pointwise_source.signature, {}, "hash")
    settings = LearningSettings(iterations=20, learning_rate=rate, probe=True)
    recipe, result = learn_shared(pointwise, process, start, batches[:3], batches[3:], settings, seed=0)
    assert result.status == status
    assert (recipe is start) == (status == "initial")


def test_a_judge_does_not_keep_what_most_trajectories_find_worse() -> None:
    judge = HeldOutJudge(torch.ones(16))
    # the mean of the logarithms falls by 3.4 of its standard errors, but nine of sixteen end worse
    assert not judge.is_best(torch.tensor([1.2] * 9 + [0.1] * 7))
    assert not judge.found_better
    assert judge.is_best(torch.tensor([1.2] * 7 + [0.1] * 9))
    assert judge.best_loss == pytest.approx(0.1)


def test_a_gain_that_is_luck_half_of_the_time_is_not_kept() -> None:
    judge = HeldOutJudge(torch.ones(16))
    changes = torch.linspace(-1, 1, 16)
    error = float(changes.std()) / 4
    assert not judge.is_best((changes - 1.9 * error).exp())
    assert judge.is_best((changes - 2.1 * error).exp())
