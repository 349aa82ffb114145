"""Rounding held against the formulas that it cites, computed once more in numpy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from accuquant.calibration.input_moments import Moments
from accuquant.calibration.rounding import compensate, gptq
from accuquant.qparams import LayerQParams, fingerprint

Array = npt.NDArray[np.float64]
OUTPUTS, INPUTS = 5, 12


def covariance(seed: int = 0) -> Array:
    mixing = np.random.default_rng(seed).normal(size=(INPUTS, INPUTS))
    return mixing @ mixing.T / INPUTS + np.diag(np.linspace(0.05, 0.4, INPUTS))


def layer_and_qparams(bits: int, activation_scale: tuple[float, ...]) -> tuple[nn.Linear, LayerQParams]:
    layer = nn.Linear(INPUTS, OUTPUTS)
    weight = np.random.default_rng(7).normal(size=(OUTPUTS, INPUTS)).astype(np.float32)
    layer.weight.data = torch.from_numpy(weight)
    scale = np.ones(OUTPUTS, np.float32)
    activations = np.array(activation_scale, np.float32)
    qparams = LayerQParams(
        "l", "linear", weight.shape, fingerprint(weight), scale, activations, weight_bits=bits
    )
    return layer, qparams


def dequantized(qparams: LayerQParams) -> Array:
    assert qparams.weight_levels is not None
    return qparams.weight_levels.astype(np.float64) * qparams.weight_scale.astype(np.float64)[:, None]


def optimal_brain_rounding(weight: Array, scale: Array, matrix: Array, bits: int) -> Array:
    """GPTQ as it is derived (arXiv 2210.17323, equations 2 and 3): one column after the other is rounded, its
    error spread over those that are free by H^-1, and eliminated from H^-1. No factor, no blocks."""
    hessian = matrix + np.eye(len(matrix)) * np.diag(matrix).mean() * 0.01
    order = sorted(range(len(matrix)), key=lambda column: -matrix[column, column])
    inverse, free, levels = np.linalg.inv(hessian), weight.copy(), np.zeros_like(weight)
    for column in order:
        levels[:, column] = np.clip(np.rint(free[:, column] / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        error = (free[:, column] - levels[:, column] * scale) / inverse[column, column]
        free -= np.outer(error, inverse[column])
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return levels


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("seed", range(4))
def test_the_levels_are_those_of_the_derivation(bits: int, seed: int) -> None:
    weight = np.random.default_rng(100 + seed).normal(size=(OUTPUTS, INPUTS))
    scale = np.abs(weight).max(1) / (2 ** (bits - 1) - 1)
    matrix = covariance(seed)
    levels = gptq(*map(torch.from_numpy, (weight, scale, matrix)), bits)
    np.testing.assert_array_equal(levels.numpy(), optimal_brain_rounding(weight, scale, matrix, bits))


@pytest.mark.parametrize("power", [1e-12, 1.0, 1e6])
def test_the_size_of_the_inputs_does_not_matter(power: float) -> None:
    weight = torch.from_numpy(np.random.default_rng(3).normal(size=(OUTPUTS, INPUTS)))
    scale = weight.abs().amax(1) / 7
    matrix = torch.from_numpy(covariance())
    assert torch.equal(gptq(weight, scale, matrix * power, 4), gptq(weight, scale, matrix, 4))


def test_inputs_that_are_all_one_direction_do_not_stop_the_factorization() -> None:
    weight = torch.from_numpy(np.random.default_rng(3).normal(size=(OUTPUTS, INPUTS)))
    scale = weight.abs().amax(1) / 7
    matrix = torch.ones(INPUTS, INPUTS, dtype=torch.float64)
    levels = gptq(weight, scale, matrix, 4)
    # all inputs are one number: what is left of each output's error is less than one level
    assert (((weight - levels * scale[:, None]).sum(1) / scale).abs() < 0.75).all()


def test_independent_inputs_are_turned_down_by_their_share_of_noise() -> None:
    """With a diagonal covariance the Wiener filter is c / (c + s^2 / 12) an input, and nothing is spread."""
    layer, qparams = layer_and_qparams(8, (0.6, 1.8))
    power = np.linspace(0.02, 2, INPUTS)
    mean = np.linspace(-1, 3, INPUTS)
    result = compensate(layer, qparams, Moments(torch.from_numpy(mean), torch.from_numpy(np.diag(power))))
    weight = layer.weight.detach().numpy().astype(np.float64)
    noise = (0.6**2 + 1.8**2) / 2 / 12  # of both step groups alike
    filtered = weight * (power / (power + noise))
    nearest = np.clip(np.rint(filtered / result.weight_scale[:, None].astype(np.float64)), -128, 127)
    np.testing.assert_array_equal(result.weight_levels, nearest)
    moved, rounded = np.abs(filtered - weight), np.abs(filtered - dequantized(result))
    assert moved.max() > 3 * rounded.max(), "the noise moved the weight far"
    assert result.bias_correction is not None
    np.testing.assert_allclose(result.bias_correction, (weight - dequantized(result)) @ mean, rtol=1e-5)
    # the scale is made for the filtered weight, not for the one that the layer has
    assert (result.weight_scale * 127 <= np.abs(filtered).max(1) * 1.0001).all()


@pytest.mark.parametrize("activation_scale", [0.05, 1.0, 3.0])
def test_the_error_is_next_to_the_least_that_any_weight_has(activation_scale: float) -> None:
    """E||W x - W^ (x + n)||^2 has its minimum at W C (C + s^2/12 I)^-1: at 8 bits rounding costs little."""
    layer, qparams = layer_and_qparams(8, (activation_scale,))
    matrix, weight = covariance(), layer.weight.detach().numpy().astype(np.float64)
    noise = activation_scale**2 / 12

    def error(candidate: Array) -> float:
        apart = weight - candidate
        return float(np.trace(apart @ matrix @ apart.T) + noise * np.trace(candidate @ candidate.T))

    result = compensate(layer, qparams, Moments(torch.zeros(INPUTS).double(), torch.from_numpy(matrix)))
    best = error(weight @ matrix @ np.linalg.inv(matrix + noise * np.eye(INPUTS)))
    assert error(dequantized(result)) < best * 1.05 + 2e-3
    if activation_scale >= 3:
        assert error(weight) > best * 1.1, "the layer's own weight is worse"
    assert result.weight_levels is not None
    assert result.weight_levels.dtype == np.int8


def test_a_mean_of_zero_needs_no_correction_and_the_rest_of_the_layer_stays() -> None:
    layer, qparams = layer_and_qparams(8, (0.1,))
    result = compensate(layer, qparams, Moments(torch.zeros(INPUTS).double(), torch.from_numpy(covariance())))
    assert result.bias_correction is not None
    assert not result.bias_correction.any()
    assert (result.name, result.weight_bits, result.fingerprint) == ("l", 8, qparams.fingerprint)
    np.testing.assert_array_equal(result.activation_scale, qparams.activation_scale)
