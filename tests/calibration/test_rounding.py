"""Weight rounding whose errors cancel on the inputs that really occur."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from accuquant.calibration import rounding
from accuquant.calibration.input_moments import Moments
from accuquant.calibration.rounding import check_rounding, compensate, gptq
from accuquant.errors import UsageError
from accuquant.qparams import LayerQParams, fingerprint
from accuquant.scales.observer import weight_scale

INPUTS = 40


def correlated(count: int = 4000, seed: int = 0) -> Tensor:
    """Return inputs [count, 40] with strong correlations and a mean."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(INPUTS, INPUTS, generator=torch.Generator().manual_seed(99)) / 4
    x = torch.randn(count, INPUTS, generator=generator) @ (mixing + torch.eye(INPUTS) * 0.3)
    return x.double() + 0.5


def weight_and_scale(bits: int) -> tuple[Tensor, Tensor]:
    weight = torch.randn(7, INPUTS, generator=torch.Generator().manual_seed(1))
    return weight.double(), torch.from_numpy(weight_scale(weight.numpy(), bits, 0)).double()


def nearest(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    return (weight / scale[:, None]).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def output_error(weight: Tensor, levels: Tensor, scale: Tensor, x: Tensor) -> float:
    """Return the variance of what rounding adds to the outputs."""
    added = x @ (weight - levels * scale[:, None]).T
    return float((added - added.mean(0)).square().mean())


def covariance_of(x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    return centred.T @ centred / len(x)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_uncorrelated_inputs_are_rounded_to_nearest(bits: int) -> None:
    weight, scale = weight_and_scale(bits)
    power = torch.diag(torch.linspace(0.1, 3, INPUTS).double())
    assert torch.equal(gptq(weight, scale, power, bits), nearest(weight, scale, bits))


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_errors_cancel_on_correlated_inputs(bits: int) -> None:
    weight, scale = weight_and_scale(bits)
    levels = gptq(weight, scale, covariance_of(correlated()), bits)
    assert torch.equal(levels, levels.round())
    assert levels.min() >= -(2 ** (bits - 1))
    assert levels.max() <= 2 ** (bits - 1) - 1
    held_out = correlated(seed=5)
    error = output_error(weight, levels, scale, held_out)
    assert error < 0.75 * output_error(weight, nearest(weight, scale, bits), scale, held_out)


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, scale = weight_and_scale(4)
    covariance = covariance_of(correlated())
    whole = gptq(weight, scale, covariance, 4)
    monkeypatch.setattr(rounding, "_BLOCK", 7)
    assert torch.equal(gptq(weight, scale, covariance, 4), whole)


def test_inputs_that_are_always_zero_are_rounded_too() -> None:
    weight, scale = weight_and_scale(4)
    levels = gptq(weight, scale, torch.zeros(INPUTS, INPUTS).double(), 4)
    assert torch.equal(levels, nearest(weight, scale, 4))


def test_the_bias_correction_cancels_the_mean_error() -> None:
    layer = nn.Conv2d(10, 7, 2)
    x = correlated()
    matrix = layer.weight.detach().reshape(7, -1).double()
    qparams = LayerQParams(
        "l",
        "conv2d",
        (7, 10, 2, 2),
        fingerprint(layer.weight.detach().numpy()),
        weight_scale(layer.weight.detach().numpy(), 4, 0),
        np.ones(2, np.float32),
        weight_bits=4,
    )
    result = compensate(layer, qparams, Moments(x.mean(0), covariance_of(x)))
    assert result.weight_levels is not None
    assert result.bias_correction is not None
    scale = torch.from_numpy(result.weight_scale).double()
    rounded = torch.from_numpy(result.weight_levels).reshape(7, -1).double() * scale[:, None]
    added = x @ rounded.T + torch.from_numpy(result.bias_correction).double() - x @ matrix.T
    assert added.mean(0).abs().max() < 1e-6
    assert added.std() > 1e-3


def test_an_unknown_rounding_lists_the_known_ones() -> None:
    check_rounding("gptq")
    with pytest.raises(UsageError, match=r"rounding 'floor': .* expected gptq or nearest"):
        check_rounding("floor")
