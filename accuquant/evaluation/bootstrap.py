"""How far a figure would move with other seeds: intervals by resampling, the same in every run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
#: Share of the resamples that an interval holds.
LEVEL = 0.95
#: Groups of neighbouring images that a metric of sets is resampled by.
BLOCKS = 20
_SEED = 20_251_020
#: Deviations of a normal distribution that hold LEVEL of it.
_DEVIATIONS = 1.959964
_PER_DRAW = 4


@dataclass(frozen=True)
class Interval:
    """A value and what it would be with other seeds, in 95 of 100 cases."""

    value: float
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """Whether 0 is in it: for a difference, that none is shown."""
        return self.low <= 0.0 <= self.high


def mean_interval(values: npt.ArrayLike, resamples: int) -> Interval:
    """Return the mean of values [N] and its percentile interval over images drawn with replacement.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), sec. 13.3. Paired differences go in as
    they are.
    """
    array = np.asarray(values, np.float64)
    rng = np.random.default_rng(_SEED)
    count = len(array)
    means = [array[rng.integers(count, size=count)].mean() for _ in range(resamples)]
    low, high = _percentiles(np.array(means))
    return Interval(float(array.mean()), low, high)


def block_draws(blocks: int, resamples: int) -> Counts:
    """Return how often each block is drawn: [draws, blocks], the same for every figure and every run.

    A deviation takes fewer draws than percentiles do: a quarter of `resamples`.
    """
    rng = np.random.default_rng(_SEED)
    return rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=resamples // _PER_DRAW)


def set_interval(value: float, drawn: Array, *, floor: float | None = None) -> Interval:
    """Return the interval of a figure of a set of images, from the figures of resampled sets.

    The bootstrap's standard interval (Efron and Tibshirani 1993, sec. 12.4): 1.96 deviations around `value`.
    Percentiles would mislead: such a figure depends on the number of images (FID falls with it), and a
    resampled set, which holds images several times, is as good as a smaller one. So the interval says what
    other seeds would change at this number of images, not what more of them would.
    """
    reach = _DEVIATIONS * float(drawn.std(ddof=1))
    return Interval(value, value - reach if floor is None else max(value - reach, floor), value + reach)


def drawn_figures(draws: Counts, figure: Callable[[Counts], float]) -> Array:
    """Return the figure of each resampled set of blocks."""
    return np.array([figure(counts) for counts in draws], np.float64)


def block_edges(num_images: int) -> tuple[int, ...]:
    """Return where each block of neighbouring images begins, and the number of images."""
    blocks = min(BLOCKS, num_images)
    return tuple(block * num_images // blocks for block in range(blocks + 1))


def _percentiles(values: Array) -> tuple[float, float]:
    low, high = np.percentile(values, (50 - 50 * LEVEL, 50 + 50 * LEVEL))
    return float(low), float(high)
