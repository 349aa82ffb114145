"""Observers for FP8: from sampled values to the scales of E4M3. Pure functions of arrays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from accuquant.e4m3 import LARGEST, round_to_e4m3
from accuquant.errors import unknown_name
from accuquant.qparams import FloatArray, along_axis
from accuquant.scales.observer import Float32, Histogram, check_finite, scale_of_channels

#: Values [N] -> scale.
Fp8Observer = Callable[[FloatArray], float]

#: Candidates, as factors on the min-max scale. They span an octave, behind which the numbers of E4M3 repeat:
#: half the scale has the same ones but for the largest and the smallest, so that clipping gains nothing, and
#: what there is to find is how the values lie between the numbers.
SHARES = np.exp2(np.linspace(-0.25, 0.75, 24, endpoint=False)).astype(np.float32)
_TINY = float(np.finfo(np.float32).tiny) * 1e6
_PERCENTILE = 99.99


def min_max_scale(values: FloatArray) -> float:
    """Return the smallest scale that clips none of `values` [N]: the largest becomes 448."""
    low, high = float(values.min()), float(values.max())
    check_finite(low, high)
    return _scale_for(low, high)


def percentile_scale(values: FloatArray) -> float:
    """Return the scale that clips 0.01 % of `values` [N] at each end."""
    check_finite(float(values.min()), float(values.max()))
    low, high = np.percentile(values, (100 - _PERCENTILE, _PERCENTILE))
    return _scale_for(float(low), float(high))


def mse_scale(values: FloatArray) -> float:
    """Return the scale of SHARES with the least mean squared rounding error over `values` [N]."""
    return _searched(values, power=2.0)


def norm_scale(values: FloatArray) -> float:
    """Return the scale of SHARES with the least mean |error|^2.4 over `values` [N] (see observer.py)."""
    return _searched(values, power=2.4)


OBSERVERS: dict[str, Fp8Observer] = {
    "mse": mse_scale,
    "norm": norm_scale,
    "minmax": min_max_scale,
    "percentile": percentile_scale,
}


def fp8_observer_named(name: str) -> Fp8Observer:
    """Return the observer called `name`; raise UsageError that lists them where there is none."""
    if name not in OBSERVERS:
        raise unknown_name("observer", name, OBSERVERS)
    return OBSERVERS[name]


def fp8_weight_scale(weight: FloatArray, axis: int) -> Float32:
    """Return the scale [O] of SHARES of each output channel with the least squared rounding error.

    `weight` [O, I, kh, kw] with axis 0 -> [O]. A channel of zeros gets the smallest of the others, 1 where
    there is no other.
    """

    def limit(rows: Float32) -> Float32:
        found: Float32 = np.abs(rows).max(1) / np.float32(LARGEST)
        return found

    return scale_of_channels(weight, axis, limit, _searched_scales)


def _searched_scales(rows: Float32, limit: Float32) -> Float32:
    scales = limit * SHARES[:, None]
    errors = [np.square(_rounded(rows, along_axis(scale, 2, 0)) - rows).sum(1) for scale in scales]
    best: npt.NDArray[np.intp] = np.argmin(errors, axis=0)
    chosen: Float32 = np.take_along_axis(scales, best[None], axis=0)[0]
    return chosen


def _searched(values: FloatArray, *, power: float) -> float:
    limit, histogram = min_max_scale(values), Histogram.of(values)
    scales = np.float32(limit) * SHARES
    errors = [
        histogram.mean(np.abs(_rounded(histogram.means, scale) - histogram.means) ** power)
        for scale in scales
    ]
    return float(scales[int(np.argmin(errors))])


def _rounded(values: Float32, scale: FloatArray | np.float32) -> Float32:
    return np.asarray(round_to_e4m3(values / scale) * scale, np.float32)


def _scale_for(low: float, high: float) -> float:
    return max(high / LARGEST, -low / LARGEST, _TINY)
