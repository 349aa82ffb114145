"""Weight rounding whose errors cancel on the inputs that really occur."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import torch
from pretend_device import pretend_device
from torch import Tensor, nn

from accuquant.calibration import rounding, row_store
from accuquant.calibration.factor import Factor
from accuquant.calibration.rounding import (
    blocks_of,
    check_rounding,
    compensate,
    gptq,
    place_for,
    shrinkage,
)
from accuquant.calibration.row_store import RowPart, RowSums, filed_moments, row_keys
from accuquant.calibration.unfolding import group_count, input_width
from accuquant.errors import CalibrationError, UsageError
from accuquant.networks.device import CPU
from accuquant.networks.network import layer_kind
from accuquant.qparams import WEIGHT_AXIS, LayerQParams, fingerprint, quantize
from accuquant.scales.fp8_observer import fp8_weight_scale
from accuquant.scales.observer import weight_scale

INPUTS = 40
Array = npt.NDArray[np.float64]


def correlated(count: int = 4000, seed: int = 0, width: int = INPUTS) -> Tensor:
    """Return inputs [count, width] with strong correlations and a mean."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(99)) / 4
    x = torch.randn(count, width, generator=generator) @ (mixing + torch.eye(width) * 0.3)
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


def qparams_of(layer: nn.Module, bits: int = 4) -> LayerQParams:
    weight = layer.get_parameter("weight").detach().numpy()
    kind = layer_kind(layer)
    assert kind is not None
    scales = weight_scale(weight, bits, WEIGHT_AXIS[kind])
    activation = np.array([0.02, 0.04], np.float32)
    return LayerQParams("l", kind, weight.shape, fingerprint(weight), scales, activation, weight_bits=bits)


def compensated(layer: nn.Module, x: Tensor, bits: int = 4) -> LayerQParams:
    """Return what `compensate` makes of a layer whose unfolded inputs are x [N, G * d]."""
    store = RowSums(group_count(layer), input_width(layer))
    store.add(x.float())
    return compensate(layer, qparams_of(layer, bits), store.moments())


def published_gptq(weight: Array, scale: float, covariance: Array, bits: int) -> Array:
    """Return the levels [d] of one output: Frantar et al., algorithm 1, without blocks and Cholesky."""
    order = np.argsort(covariance.diagonal(), kind="stable")[::-1]
    hessian, free = covariance[np.ix_(order, order)], weight[order].copy()
    levels = np.empty(len(free))
    for column in range(len(free)):
        inverse = np.linalg.inv(hessian[column:, column:])
        levels[column] = np.clip(np.rint(free[column] / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        error = free[column] - levels[column] * scale
        free[column:] -= error / inverse[0, 0] * inverse[0]
    restored = np.empty(len(free))
    restored[order] = levels
    return restored


def filters_of(layer: nn.Module) -> Iterator[tuple[int, int, tuple[Any, ...]]]:
    """Yield for each output its group, its scale's index and where its weights are."""
    groups, shape = group_count(layer), layer.get_parameter("weight").shape
    if isinstance(layer, nn.ConvTranspose2d):
        inputs = shape[0] // groups
        for output in range(shape[1] * groups):
            group, within = divmod(output, shape[1])
            yield group, within, (slice(group * inputs, (group + 1) * inputs), within)
    else:
        for output in range(shape[0]):
            yield output // (shape[0] // groups), output, (output,)


LAYERS = {
    "linear": lambda: nn.Linear(18, 5),
    "convolution": lambda: nn.Conv2d(2, 5, 3),
    "grouped": lambda: nn.Conv2d(6, 4, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(3, 3, 3, groups=3),
    "transposed": lambda: nn.ConvTranspose2d(4, 5, 2),
    "transposed grouped": lambda: nn.ConvTranspose2d(8, 6, 2, groups=2),
}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", LAYERS)
def test_every_kind_of_layer_is_rounded_as_the_paper_s_algorithm_rounds(kind: str, bits: int) -> None:
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    groups, width = group_count(layer), input_width(layer)
    x = correlated(width=groups * width)
    found = compensated(layer, x, bits)
    assert found.weight_levels is not None
    assert found.bias_correction is not None
    weight = layer.get_parameter("weight").detach().double().numpy()
    noise = np.square(found.activation_scale.astype(np.float64)).mean() / 12
    corrections = []
    for group, channel, at in filters_of(layer):
        rows = x.float().double().numpy()[:, group * width : (group + 1) * width]
        covariance = np.cov(rows.T, bias=True)
        covariance += np.eye(width) * (0.05 * covariance.diagonal().mean() + noise)
        scale = float(found.weight_scale[channel])
        levels = published_gptq(weight[at].ravel(), scale, covariance, bits)
        np.testing.assert_array_equal(found.weight_levels[at].ravel(), levels)
        corrections.append((weight[at].ravel() - levels * scale) @ rows.mean(0))
    np.testing.assert_allclose(found.bias_correction, corrections, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_uncorrelated_inputs_are_rounded_to_nearest(bits: int) -> None:
    weight, scale = weight_and_scale(bits)
    power = torch.diag(torch.linspace(0.1, 3, INPUTS).double())
    assert torch.equal(
        gptq(weight, scale, Factor.of_(power), bits), nearest(weight, scale, bits).to(torch.int8)
    )


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_errors_cancel_on_correlated_inputs(bits: int) -> None:
    weight, scale = weight_and_scale(bits)
    levels = gptq(weight, scale, Factor.of_(covariance_of(correlated())), bits)
    assert levels.min() >= -(2 ** (bits - 1))
    assert levels.max() <= 2 ** (bits - 1) - 1
    held_out = correlated(seed=5)
    error = output_error(weight, levels, scale, held_out)
    assert error < 0.75 * output_error(weight, nearest(weight, scale, bits), scale, held_out)


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, scale = weight_and_scale(4)
    factor = Factor.of_(covariance_of(correlated()))
    whole = gptq(weight, scale, factor, 4)
    monkeypatch.setattr("accuquant.calibration.factor.COLUMNS", 7)
    assert torch.equal(gptq(weight, scale, factor, 4), whole)


def test_inputs_that_never_change_are_rounded_to_nearest() -> None:
    layer = nn.Linear(INPUTS, 7)
    found = compensated(layer, torch.full((100, INPUTS), 0.7))
    expected = quantize(layer.weight.detach().numpy(), found.weight_scale[:, None], 4)
    np.testing.assert_array_equal(found.weight_levels, expected)


def test_the_bias_correction_cancels_the_mean_error() -> None:
    layer = nn.Conv2d(10, 7, 2)
    x = correlated()
    matrix = layer.weight.detach().reshape(7, -1).double()
    result = compensated(layer, x)
    assert result.weight_levels is not None
    assert result.bias_correction is not None
    scale = torch.from_numpy(result.weight_scale).double()
    rounded = torch.from_numpy(result.weight_levels).reshape(7, -1).double() * scale[:, None]
    added = x @ rounded.T + torch.from_numpy(result.bias_correction).double() - x @ matrix.T
    assert added.mean(0).abs().max() < 1e-6
    assert added.std() > 1e-3


@pytest.mark.parametrize("bits", [8, 4])
def test_inputs_that_were_never_seen_are_rounded_to_nearest_at_worst(bits: int) -> None:
    layer = nn.Linear(INPUTS, 64, bias=False)
    seen = correlated()
    seen[:, INPUTS // 2 :] = 0
    unseen = correlated(seed=1)
    unseen[:, : INPUTS // 2] = 0
    found = compensated(layer, seen, bits)
    weight = layer.weight.detach().double()
    scale = torch.from_numpy(found.weight_scale).double()
    levels = torch.from_numpy(found.weight_levels).double()
    error, usual = (
        output_error(weight, some, scale, unseen) for some in (levels, nearest(weight, scale, bits))
    )
    assert error <= usual * (1 + 1e-12)
    error, usual = (
        output_error(weight, some, scale, seen) for some in (levels, nearest(weight, scale, bits))
    )
    assert error < usual


@pytest.mark.parametrize("bits", [8, 4])
def test_directions_that_were_never_seen_stay_whole(bits: int) -> None:
    # what cancels in one half of all directions lies in the other: worse than nearest there, but bounded
    layer = nn.Linear(INPUTS, 64, bias=False)
    generator = torch.Generator().manual_seed(4)
    turn = torch.linalg.qr(torch.randn(INPUTS, INPUTS, generator=generator).double())[0]
    halves = turn[: INPUTS // 2], turn[INPUTS // 2 :]
    seen, unseen = (torch.randn(3000, INPUTS // 2, generator=generator).double() @ half for half in halves)
    found = compensated(layer, seen, bits)
    weight = layer.weight.detach().double()
    scale = torch.from_numpy(found.weight_scale).double()
    levels = torch.from_numpy(found.weight_levels).double()
    usual = nearest(weight, scale, bits)
    assert output_error(weight, levels, scale, seen) < 0.4 * output_error(weight, usual, scale, seen)
    assert output_error(weight, levels, scale, unseen) < 8 * output_error(weight, usual, scale, unseen)


def test_very_wide_inputs_fall_into_blocks_of_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "MAX_WIDTH", 15)
    assert [columns for _, _, columns in blocks_of(1, 7, INPUTS)] == [
        slice(0, 14),
        slice(14, 28),
        slice(28, 40),
    ]
    layer = nn.Linear(INPUTS, 7)
    x = correlated()
    found = compensated(layer, x)
    assert found.weight_levels is not None
    weight, scale = layer.weight.detach().double(), torch.from_numpy(found.weight_scale).double()
    noise = float(np.square(found.activation_scale).mean()) / 12
    covariance = covariance_of(x.float().double())
    for start, stop in ((0, 14), (14, 28), (28, 40)):
        some = covariance[start:stop, start:stop].clone()
        some += torch.eye(len(some)) * (0.05 * some.diagonal().mean() + noise)
        expected = gptq(weight[:, start:stop], scale, Factor.of_(some), 4)
        np.testing.assert_array_equal(found.weight_levels[:, start:stop], expected.numpy())


@pytest.mark.parametrize("kind", [nn.Linear(12, 5), nn.Conv2d(4, 6, 3, groups=2)], ids=["linear", "grouped"])
@pytest.mark.parametrize("precise", [100, 10], ids=["float64", "float32"])
def test_a_layer_on_a_device_is_rounded_there_as_on_the_cpu(
    kind: nn.Module, precise: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (rounding, row_store):
        monkeypatch.setattr(module, "PRECISE_WIDTH", precise)
    groups, width = group_count(kind), input_width(kind)
    rows = correlated(300, width=groups * width).float()
    parts, keys = [RowPart(tmp_path / "rows", 0, len(rows))], [row_keys(rows)]
    parts[0].path.write_bytes(rows.numpy().tobytes())
    moments = filed_moments(parts, groups, width, keys)
    here = compensate(kind, qparams_of(kind, 8), moments)
    assert here.weight_levels is not None
    with pretend_device() as device:
        there = compensate(copy.deepcopy(kind).to(device), qparams_of(kind, 8), moments, device)
    assert list(tmp_path.iterdir()) == [parts[0].path]
    assert there.bias_correction is not None
    assert here.bias_correction is not None
    np.testing.assert_array_equal(there.weight_levels, here.weight_levels)
    np.testing.assert_allclose(there.bias_correction, here.bias_correction, atol=1e-6)


def test_a_layer_is_rounded_where_it_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    for free, expected in ((3 * 10**9, gpu), (2 * 10**9, CPU)):
        monkeypatch.setattr(rounding, "free_memory", lambda device, free=free: free)
        assert place_for(gpu, 1280, 23040) == expected
    assert place_for(torch.device("mps"), 1, 1) == place_for(CPU, 1, 1) == CPU


def test_inputs_that_are_not_finite_are_an_error_that_names_the_layer() -> None:
    x = correlated()
    x[3, 5] = float("inf")
    with pytest.raises(CalibrationError, match=r"layer 'l': got inputs of mean variance nan"):
        compensated(nn.Linear(INPUTS, 2), x)


def test_few_distinct_inputs_shrink_the_covariance_more() -> None:
    assert shrinkage(40, 4000) == shrinkage(40, 40) == 0.05
    assert shrinkage(40, 10) == 0.2
    layer, x = nn.Linear(INPUTS, 7), correlated(10)
    found = compensated(layer, x.repeat(5, 1))
    rows = x.float().double()
    covariance = covariance_of(rows)
    noise = float(np.square(found.activation_scale).mean()) / 12
    covariance += torch.eye(INPUTS) * (0.2 * covariance.diagonal().mean() + noise)
    scale = torch.from_numpy(found.weight_scale).double()
    expected = gptq(layer.weight.detach(), scale, Factor.of_(covariance), 4)
    np.testing.assert_array_equal(found.weight_levels, expected.numpy())


def test_an_unknown_rounding_lists_the_known_ones() -> None:
    check_rounding("gptq")
    with pytest.raises(UsageError, match=r"rounding 'floor': .* expected gptq or nearest"):
        check_rounding("floor")


def test_fp8_weights_are_rounded_to_nearest_where_inputs_are_uncorrelated() -> None:
    weight, _ = weight_and_scale(8)
    scale = torch.from_numpy(fp8_weight_scale(weight.float().numpy(), 0)).double()
    power = torch.diag(torch.linspace(0.1, 3, INPUTS).double())
    levels = gptq(weight, scale, Factor.of_(power), 8, "fp8")
    expected = (weight / scale[:, None]).float().numpy().astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(levels.numpy().view(np.uint8), expected.view(np.uint8))


def test_fp8_errors_cancel_on_correlated_inputs() -> None:
    weight, _ = weight_and_scale(8)
    scale = torch.from_numpy(fp8_weight_scale(weight.float().numpy(), 0)).double()
    levels = gptq(weight, scale, Factor.of_(covariance_of(correlated())), 8, "fp8")

    def error(numbers: npt.NDArray[Any]) -> float:
        difference = torch.from_numpy(numbers.astype(np.float64)) * scale[:, None] - weight
        return float((correlated(seed=5).double() @ difference.T).var(0).mean())  # the bias takes the mean

    numbers = levels.numpy().view(ml_dtypes.float8_e4m3fn)
    assert error(numbers) < 0.75 * error((weight / scale[:, None]).numpy().astype(ml_dtypes.float8_e4m3fn))


def test_an_fp8_layer_is_compensated_with_its_bias() -> None:
    layer = nn.Linear(INPUTS, 7)
    weight, x = layer.weight.detach().numpy(), correlated() + 0.3
    qparams = LayerQParams(
        "l", "linear", weight.shape, fingerprint(weight), fp8_weight_scale(weight, 0),
        np.array([0.02], np.float32), format="fp8",
    )  # fmt: skip
    store = RowSums(1, INPUTS)
    store.add(x.float())
    found = compensate(layer, qparams, store.moments())
    assert found.weight_levels is not None
    assert found.bias_correction is not None
    numbers = found.weight_levels.view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    mean = x.float().double().numpy().mean(0)
    expected = (weight - numbers * found.weight_scale[:, None].astype(np.float64)) @ mean
    np.testing.assert_allclose(found.bias_correction, expected, atol=1e-6)
