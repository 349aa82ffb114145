"""Observers: from sampled values to qparams. Pure functions of arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from accuquant.errors import CalibrationError, unknown_name
from accuquant.qparams import FloatArray, along_axis, level_bounds

Float32 = npt.NDArray[np.float32]
#: (values [N], bits, zero_point) -> scale
Observer = Callable[[FloatArray, int, int], float]

#: Values of a weight that are searched at once: they stay in the processor's cache.
_AT_ONCE = 1 << 16
#: The search for a scale asks after so many candidates whether any other can be better.
_ASKED = 4
_TINY = float(np.finfo(np.float32).tiny) * 1e6
_CANDIDATES = 80
_PERCENTILE = 99.99
#: Bins that stand for a sample in a search: at 8 bits, 16 for every level.
_BINS = 4096


def min_max_scale(values: FloatArray, bits: int, zero_point: int = 0) -> float:
    """Return the smallest scale that clips none of `values` [N]."""
    return _scale_for(float(values.min()), float(values.max()), bits, zero_point)


def percentile_scale(values: FloatArray, bits: int, zero_point: int = 0) -> float:
    """Return the scale that clips 0.01 % of `values` [N] at each end."""
    check_finite(float(values.min()), float(values.max()))
    low, high = np.percentile(values, (100 - _PERCENTILE, _PERCENTILE))
    return _scale_for(float(low), float(high), bits, zero_point)


def mse_scale(values: FloatArray, bits: int, zero_point: int = 0) -> float:
    """Return the scale with the least mean squared quantization error over `values` [N].

    Searches 80 scales between 0.2 and 1 times the min-max scale (from 0.05 at 4 bits and below).
    """
    return _searched(values, bits, zero_point, power=2.0)


def norm_scale(values: FloatArray, bits: int, zero_point: int = 0) -> float:
    """Return the scale with the least mean |error|^2.4 over `values` [N]: clips less than `mse_scale`.

    The exponent is Q-Diffusion's (Li et al., arXiv 2302.04304, section 4). The search is that of `mse_scale`.
    """
    return _searched(values, bits, zero_point, power=2.4)


OBSERVERS: dict[str, Observer] = {
    "mse": mse_scale,
    "norm": norm_scale,
    "minmax": min_max_scale,
    "percentile": percentile_scale,
}


def observer_named(name: str) -> Observer:
    """Return the observer called `name`; raise UsageError that lists them where there is none."""
    if name not in OBSERVERS:
        raise unknown_name("observer", name, OBSERVERS)
    return OBSERVERS[name]


def choose_zero_point(groups: Sequence[FloatArray], bits: int) -> int:
    """Return the zero_point that one layer shares over its step groups; 0 for two-sided values.

    `groups` holds the observed values [N] of each step group. A zero_point only pays where the range is
    lopsided (after SiLU, values reach down to -0.28 only): 17 candidates are compared by the summed,
    per-group normalized squared error at each group's best scale.
    """
    low = min(float(v.min()) for v in groups)
    high = max(float(v.max()) for v in groups)
    check_finite(low, high)
    if low < 0 < high and 0.5 < -low / high < 2.0:
        return 0
    qmin, qmax = level_bounds(bits)
    ideal = round(qmin - low / max((high - low) / (qmax - qmin), _TINY))
    ideal = min(max(ideal, qmin), qmax)
    # a range that clips its long side needs more levels on the short side than min-max gives it
    span = (qmax - qmin) // 4
    towards = 1 if ideal < 0 else -1
    candidates = [0, *(ideal + towards * (span * k // 16) for k in range(16))]
    # four groups, spread over the trajectory, tell as much as all of them
    spread = groups[:: max(1, len(groups) // 4)]
    histograms = [Histogram.of(v) for v in spread]
    costs = [sum(_least_share_of_power(h, bits, z) for h in histograms) for z in candidates]
    return candidates[int(np.argmin(costs))]


def weight_scale(weight: FloatArray, bits: int, axis: int) -> Float32:
    """Return the scale [O] of each output channel with the least squared rounding error.

    `weight` [O, I, kh, kw] with axis 0 -> [O]. Searches 80 scales between 0.3 and 1 times the
    min-max scale of the channel. A channel of zeros gets the smallest scale of the others, so that it is
    the last to decide what all channels share; 1 where there is no other.
    """
    qmin, qmax = level_bounds(bits)

    def limit(rows: Float32) -> Float32:
        found: Float32 = np.maximum(rows.max(1) / qmax, rows.min(1) / qmin)
        return found

    return scale_of_channels(weight, axis, limit, lambda rows, top: _searched_scales(rows, top, qmin, qmax))


def scale_of_channels(
    weight: FloatArray,
    axis: int,
    limit: Callable[[Float32], Float32],
    search: Callable[[Float32, Float32], Float32],
) -> Float32:
    """Return the scale [O] that `search` finds for each channel of `weight` along `axis`.

    `limit` gives the min-max scales [R] of rows [R, I], and `search` takes both. A channel of zeros gets the
    smallest scale of the others, 1 where there is no other.
    """
    rows = np.moveaxis(np.asarray(weight, np.float32), axis, 0).reshape(weight.shape[axis], -1)
    highest = limit(rows)
    live = highest > _TINY
    highest = np.where(live, highest, 1.0).astype(np.float32)
    size = max(1, _AT_ONCE // rows.shape[1])
    parts = [slice(start, start + size) for start in range(0, len(rows), size)]
    best: Float32 = np.concatenate([search(rows[part], highest[part]) for part in parts])
    best[~live] = best[live].min() if live.any() else 1
    return best


def _searched_scales(rows: Float32, limit: Float32, qmin: int, qmax: int) -> Float32:
    best: Float32 = limit.copy()
    least, error = np.full(limit.shape, np.inf), np.empty_like(rows)
    for index, share in enumerate(np.linspace(0.3, 1.0, 80, dtype=np.float32)[::-1]):
        scale = limit * share
        column = along_axis(scale, 2, 0)
        if index % _ASKED == _ASKED - 1:
            # what is clipped errs more with every smaller scale: where that alone is too much, all is found
            np.clip(rows, qmin * column, qmax * column, out=error)
            error -= rows
            if (np.square(error, out=error).sum(1) > 1.001 * least).all():
                break
        np.divide(rows, column, out=error)
        np.rint(error, out=error)
        np.clip(error, qmin, qmax, out=error)
        error *= column
        error -= rows
        total = np.square(error, out=error).sum(1)
        better = total < least
        best[better], least[better] = scale[better], total[better]
    return best


def _scale_for(low: float, high: float, bits: int, zero_point: int) -> float:
    check_finite(low, high)
    qmin, qmax = level_bounds(bits)
    above, below = qmax - zero_point, zero_point - qmin
    scale = max(high / above if above else 0.0, -low / below if below else 0.0)
    return max(scale, _TINY)


def check_finite(low: float, high: float) -> None:
    """Raise CalibrationError unless the extremes of what was observed are finite."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise CalibrationError(
            "observed activations",
            got=f"values from {low:g} to {high:g}",
            expected="finite values",
            remedy="The float network diverges on these inputs: repair the inputs or the weights",
        )


def _lowest(bits: int) -> float:
    return 0.2 if bits > 4 else 0.05


@dataclass(frozen=True)
class Histogram:
    """A sample as the means of its bins and how many values each holds.

    A search over every value would be slow, and one over a random part of them would miss the rare large
    activations: with 4096 of 32768 values one calibration of the bundled model lost 10 dB.
    """

    means: npt.NDArray[np.float32]
    counts: npt.NDArray[np.float64]

    @classmethod
    def of(cls, values: FloatArray) -> Histogram:
        """Sort `values` [any shape] into 4096 bins of one width."""
        flat = np.asarray(values, np.float32).ravel()
        low, width = float(flat.min()), (float(flat.max()) - float(flat.min())) / _BINS
        bins = np.clip((flat - low) / max(width, _TINY), 0, _BINS - 1).astype(np.int64)
        counts = np.bincount(bins, minlength=_BINS).astype(np.float64)
        sums = np.bincount(bins, weights=flat, minlength=_BINS)
        filled = counts > 0
        return cls((sums[filled] / counts[filled]).astype(np.float32), counts[filled])

    def mean(self, values: FloatArray) -> float:
        """Return the mean over the sample of a function given at the bins' means."""
        return float((values * self.counts).sum() / self.counts.sum())


def _searched(values: FloatArray, bits: int, zero_point: int, *, power: float) -> float:
    limit = min_max_scale(values, bits, zero_point)
    histogram = Histogram.of(values)
    scales = limit * np.linspace(_lowest(bits), 1.0, _CANDIDATES)
    errors = [_error(histogram, scale, bits, zero_point, power) for scale in scales]
    return float(scales[int(np.argmin(errors))])


def _error(histogram: Histogram, scale: float, bits: int, zero_point: int, power: float) -> float:
    qmin, qmax = level_bounds(bits)
    step = np.float32(scale)
    levels = np.clip(np.rint(histogram.means / step), qmin - zero_point, qmax - zero_point)
    return histogram.mean(np.abs(levels * step - histogram.means) ** power)


def _least_share_of_power(histogram: Histogram, bits: int, zero_point: int) -> float:
    """Return the mean squared error at the best scale, as a share of the mean square."""
    low, high = float(histogram.means.min()), float(histogram.means.max())
    limit = _scale_for(low, high, bits, zero_point)
    mean_square = histogram.mean(np.square(histogram.means)) or 1.0
    shares = np.linspace(_lowest(bits), 1.0, 25)
    return min(_error(histogram, limit * share, bits, zero_point, 2.0) for share in shares) / mean_square
