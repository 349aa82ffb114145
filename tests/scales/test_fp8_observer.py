"""Scales of E4M3 against a search over every candidate, value by value, with ml_dtypes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from accuquant.errors import CalibrationError, UsageError
from accuquant.scales.fp8_observer import OBSERVERS, SHARES, fp8_observer_named, fp8_weight_scale

Array = npt.NDArray[Any]


def error(values: Array, scale: float, power: float = 2.0) -> float:
    levels = np.clip(values / np.float32(scale), -448, 448).astype(ml_dtypes.float8_e4m3fn)
    return float((np.abs(levels.astype(np.float64) * scale - values) ** power).mean())


def sample(seed: int = 0) -> Array:
    return (np.random.default_rng(seed).normal(size=4000) ** 3).astype(np.float32)


def test_min_max_makes_the_largest_magnitude_the_largest_number() -> None:
    assert OBSERVERS["minmax"](np.array([-3.0, 0.0, 2.0], np.float32)) == pytest.approx(3 / 448)
    assert OBSERVERS["minmax"](np.zeros(4, np.float32)) > 0


@pytest.mark.parametrize(("name", "power"), [("mse", 2.0), ("norm", 2.4)])
def test_a_search_finds_the_best_of_an_octave(name: str, power: float) -> None:
    values = sample()
    limit = float(np.abs(values).max()) / 448
    found = OBSERVERS[name](values)
    least = min(error(values, limit * share, power) for share in SHARES)
    # bins stand for values
    assert error(values, found, power) <= 1.02 * least
    assert error(values, found, power) <= error(values, limit, power) * 1.0001
    assert SHARES.max() / SHARES.min() == pytest.approx(2, rel=0.05)


def test_percentile_lets_the_rarest_values_saturate() -> None:
    values = np.concatenate([np.linspace(-1, 1, 100_000), [50.0]]).astype(np.float32)
    assert OBSERVERS["percentile"](values) == pytest.approx(1 / 448, rel=0.01)


def test_weights_get_the_best_scale_of_each_channel_along_any_axis() -> None:
    weight = np.random.default_rng(1).normal(size=(5, 7, 3, 3)).astype(np.float32) * np.logspace(
        -3, 1, 7
    ).astype(np.float32).reshape(1, 7, 1, 1)
    found = fp8_weight_scale(weight, axis=1)
    assert found.shape == (7,)
    for channel, scale in enumerate(found):
        values = weight[:, channel]
        limit = float(np.abs(values).max()) / 448
        assert error(values, scale) <= 1.0001 * min(error(values, limit * share) for share in SHARES)


def test_a_channel_of_zeros_gets_the_smallest_scale_of_the_others() -> None:
    weight = np.array([[1.0, 2.0], [0.0, 0.0], [4.0, -8.0]], np.float32)
    found = fp8_weight_scale(weight, axis=0)
    assert found[1] == found[[0, 2]].min()
    np.testing.assert_array_equal(fp8_weight_scale(np.zeros((2, 3), np.float32), axis=0), 1)


def test_values_that_are_not_finite_and_unknown_names_are_refused() -> None:
    with pytest.raises(CalibrationError, match="finite values"):
        OBSERVERS["mse"](np.array([1.0, np.nan], np.float32))
    with pytest.raises(UsageError, match=r"'entropy'.*mse or norm or minmax"):
        fp8_observer_named("entropy")
