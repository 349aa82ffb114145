"""Observers against brute force."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from accuquant.errors import UsageError
from accuquant.scales.observer import (
    OBSERVERS,
    choose_zero_point,
    min_max_scale,
    mse_scale,
    norm_scale,
    observer_named,
    percentile_scale,
    weight_scale,
)

Floats = npt.NDArray[np.float32]


def gaussian(count: int = 4000, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(0, 1.5, count).astype(np.float32)


def silu(x: Floats) -> Floats:
    return (x / (1 + np.exp(-x))).astype(np.float32)


def bounds(bits: int) -> tuple[int, int]:
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def error(x: Floats, scale: float, bits: int, zero_point: int = 0, power: float = 2) -> float:
    qmin, qmax = bounds(bits)
    levels = np.clip(np.rint(x.astype(np.float64) / scale) + zero_point, qmin, qmax) - zero_point
    return float((np.abs(levels * scale - x) ** power).mean())


@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize("zero_point", [0, -5, 3])
def test_min_max_is_the_smallest_scale_that_clips_nothing(bits: int, zero_point: int) -> None:
    x = gaussian()
    qmin, qmax = bounds(bits)
    scale = min_max_scale(x, bits, zero_point)
    assert scale == pytest.approx(max(x.max() / (qmax - zero_point), x.min() / (qmin - zero_point)))


def test_min_max_at_the_end_of_the_grid_looks_at_one_side_only() -> None:
    x = np.array([0.0, 2.55], np.float32)
    assert min_max_scale(x, 8, -128) == pytest.approx(0.01)
    assert min_max_scale(-x, 8, 127) == pytest.approx(0.01)


@pytest.mark.parametrize("name", OBSERVERS)
def test_a_tensor_of_zeros_gets_a_positive_scale(name: str) -> None:
    scale = observer_named(name)(np.zeros(10, np.float32), 8, 0)
    assert np.float32(scale) > 0
    assert math.isfinite(scale)


def test_percentile_ignores_a_few_outliers() -> None:
    x = gaussian(100_000)
    x[:3] = 1000
    kept = np.sort(x)[int(len(x) * 0.9999) - 1]
    assert percentile_scale(x, 8) == pytest.approx(kept / 127, rel=0.05)
    assert min_max_scale(x, 8) == pytest.approx(1000 / 127)


@pytest.mark.parametrize(("bits", "zero_point"), [(8, 0), (6, 0), (4, 0), (3, 0), (2, 0), (8, -100), (4, -6)])
@pytest.mark.parametrize("kind", ["gaussian", "silu", "uniform"])
def test_mse_is_as_good_as_brute_force_on_a_fine_grid(bits: int, zero_point: int, kind: str) -> None:
    x = gaussian()
    x = {"gaussian": x, "silu": silu(x), "uniform": np.clip(x, -1, 1)}[kind]
    limit = min_max_scale(x, bits, zero_point)
    best = min(error(x, limit * share, bits, zero_point) for share in np.linspace(0.02, 1.05, 1500))
    assert error(x, mse_scale(x, bits, zero_point), bits, zero_point) <= 1.03 * best


@pytest.mark.parametrize("bits", [8, 6])
@pytest.mark.parametrize(("search", "power"), [(mse_scale, 2.0), (norm_scale, 2.4)])
def test_a_search_sees_every_rare_large_value(search: Callable[..., float], power: float, bits: int) -> None:
    x = gaussian(60_000)
    x[5::15_000] = (25, 30, 35, 40)  # a random part of the sample would miss most of them
    limit = min_max_scale(x, bits)
    best = min(error(x, limit * share, bits, power=power) for share in np.linspace(0.02, 1.0, 300))
    assert error(x, search(x, bits), bits, power=power) <= 1.03 * best


def test_the_norm_of_2_4_clips_less_than_the_squared_error() -> None:
    x = np.random.default_rng(0).laplace(size=8000).astype(np.float32)
    assert mse_scale(x, 6) < norm_scale(x, 6) < min_max_scale(x, 6)


def test_mse_clips_where_min_max_cannot() -> None:
    x = np.random.default_rng(0).laplace(size=8000).astype(np.float32)
    assert error(x, mse_scale(x, 4), 4) < 0.6 * error(x, min_max_scale(x, 4), 4)


def test_an_unknown_observer_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"observer 'max': .* expected mse or norm or minmax or percentile"):
        observer_named("max")


@pytest.mark.parametrize("bits", [8, 4])
def test_two_sided_values_keep_the_zero_point_0(bits: int) -> None:
    assert choose_zero_point([gaussian(), 3 * gaussian(seed=1)], bits) == 0


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_values_after_silu_get_a_strongly_negative_zero_point_and_a_lower_error(bits: int) -> None:
    groups = [silu(gaussian(seed=s) * k) for s, k in ((0, 1.0), (1, 2.0))]
    z = choose_zero_point(groups, bits)
    qmin, _ = bounds(bits)
    assert qmin <= z <= qmin / 2
    for x in groups:
        assert error(x, mse_scale(x, bits, z), bits, z) < 0.6 * error(x, mse_scale(x, bits), bits)


def test_values_that_gain_nothing_keep_the_zero_point_0() -> None:
    assert choose_zero_point([np.zeros(10, np.float32)], 8) == 0


def test_values_below_zero_get_a_positive_zero_point() -> None:
    assert choose_zero_point([-silu(gaussian())], 8) > 60


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(
    "values", [[0.0], [3.0], [-3.0], [0.0, 5.0], [7.0, 9.0], [-9.0, -7.0], [-1e-30, 1.0]], ids=str
)
def test_a_zero_point_is_always_on_the_grid(bits: int, values: list[float]) -> None:
    qmin, qmax = bounds(bits)
    assert qmin <= choose_zero_point([np.array(values * 8, np.float32)], bits) <= qmax


@pytest.mark.parametrize("bits", [8, 4, 3])
@pytest.mark.parametrize(("shape", "axis"), [((5, 3, 3, 3), 0), ((3, 5, 2, 2), 1), ((5, 40), 0)])
def test_weight_scales_are_as_good_as_a_search_row_by_row(
    shape: tuple[int, ...], axis: int, bits: int
) -> None:
    weight = np.random.default_rng(bits).normal(size=shape).astype(np.float32)
    weight *= np.expand_dims(np.geomspace(0.01, 10, 5), [i for i in range(len(shape)) if i != axis])
    scales = weight_scale(weight, bits, axis)
    assert scales.shape == (5,)
    assert scales.dtype == np.float32
    qmin, qmax = bounds(bits)
    for channel, scale in enumerate(scales):
        row = np.take(weight, channel, axis).ravel()
        limit = max(row.max() / qmax, row.min() / qmin)
        best = min(error(row, limit * share, bits) for share in np.linspace(0.3, 1.0, 80))
        assert error(row, scale, bits) == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_channel_of_zeros_gets_the_smallest_scale_of_the_others(bits: int) -> None:
    weight = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32) * 1e-3
    weight[2] *= 1e-4
    live = weight_scale(weight, bits, 0)
    weight[1] = 0
    scales = weight_scale(weight, bits, 0)
    np.testing.assert_array_equal(scales, [live[0], live[2], live[2]])
    assert 0 < scales[1] < 1e-6


def test_a_weight_of_zeros_gets_the_scale_1() -> None:
    np.testing.assert_array_equal(weight_scale(np.zeros((3, 4), np.float32), 8, 0), np.ones(3))
