"""Figures with their intervals, differences between branches, and how figures settle with more images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from accuquant.verification.measure.feature_networks import FEATURES, SPATIAL
from accuquant.verification.measure.frechet import Gaussian

from .bootstrap import (
    Array,
    Counts,
    Interval,
    block_draws,
    drawn_figures,
    mean_interval,
    set_interval,
)
from .branches import FP32, INT8, OTHER
from .gathered import Gathered, RealSet
from .manifold import inside, radii
from .metrics import METRICS, RECALL, Metric, metric_of

_SPACE = {"fid": FEATURES, "sfid": SPATIAL}


@dataclass(frozen=True)
class Figure:
    """A metric of a branch, and its interval over other seeds."""

    metric: str
    branch: str
    interval: Interval

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {"metric": self.metric, "branch": self.branch, **vars(self.interval)}


@dataclass(frozen=True)
class Difference:
    """A metric of a branch minus that of another, image by image from the same seeds."""

    metric: str
    first: str
    second: str
    interval: Interval

    @property
    def differ(self) -> bool:
        """Whether the interval leaves 0 out."""
        return not self.interval.holds_zero

    @property
    def better(self) -> str | None:
        """The branch that is better, where they differ."""
        if not self.differ:
            return None
        return (
            self.first
            if (self.interval.value > 0) == metric_of(self.metric).higher_is_better
            else self.second
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "metric": self.metric, "first": self.first, "second": self.second, **vars(self.interval),
            "differ": self.differ, "better": self.better,
        }  # fmt: skip


class Judge:
    """Makes figures of what was gathered; `real` holds what FID compares with."""

    def __init__(
        self,
        gathered: Gathered,
        branches: tuple[str, ...],
        *,
        resamples: int,
        real: Mapping[str, Gaussian],
        real_set: RealSet | None,
    ) -> None:
        self._gathered, self._branches, self._resamples = gathered, branches, resamples
        self._real = real
        self._draws = block_draws(len(gathered.edges) - 1, resamples)
        self._drawn: dict[tuple[str, str], Array] = {}
        self._images: dict[tuple[str, str], Array] = {}
        if real_set is not None:
            self._find_neighbours(real_set)

    def figures(self, metrics: tuple[str, ...]) -> Iterator[Figure]:
        """Yield the figures of each metric, for every branch that it judges; recall after precision."""
        for name in metrics:
            for branch in self._judged(METRICS[name]):
                yield Figure(name, branch, self._interval(METRICS[name], branch))
            if name == "precision":
                for branch in self._branches:
                    recalled = self._images[RECALL.name, branch]
                    yield Figure(RECALL.name, branch, mean_interval(recalled, self._resamples))

    def differences(self, metrics: tuple[str, ...]) -> Iterator[Difference]:
        """Yield int8 minus the other export, and minus FP32 where a metric judges that too."""
        for name in metrics:
            judged = self._judged(METRICS[name])
            for second in (FP32, OTHER):
                if second in judged:
                    yield Difference(name, INT8, second, self._difference(METRICS[name], second))

    def images(self, metric: str, branch: str) -> Array:
        """Return a value an image of a metric that has them: [N]."""
        if (metric, branch) not in self._images:
            self._images[metric, branch] = self._gathered.values(metric, branch)
        return self._images[metric, branch]

    def curve(self, metric: Metric) -> Array:
        """Return a metric of int8 over the images so far, at the end of each block; NaN where too few."""
        ends = self._gathered.edges[1:]
        if not metric.sets:
            sums = self.images(metric.name, INT8).cumsum()
            return np.array([sums[end - 1] / end for end in ends])
        figure = self._of_sets(metric.name, INT8)
        blocks = len(ends)
        return np.array(
            [
                figure((np.arange(blocks) <= last).astype(np.int64)) if ends[last] > 1 else np.nan
                for last in range(blocks)
            ]
        )

    def _judged(self, metric: Metric) -> tuple[str, ...]:
        return tuple(b for b in self._branches if not (metric.paired and b == FP32))

    def _interval(self, metric: Metric, branch: str) -> Interval:
        if not metric.sets:
            return mean_interval(self.images(metric.name, branch), self._resamples)
        value = self._value(metric.name, branch)
        return set_interval(value, self._resampled(metric.name, branch), floor=0.0)

    def _difference(self, metric: Metric, second: str) -> Interval:
        name = metric.name
        if not metric.sets:
            return mean_interval(self.images(name, INT8) - self.images(name, second), self._resamples)
        drawn = self._resampled(name, INT8) - self._resampled(name, second)
        return set_interval(self._value(name, INT8) - self._value(name, second), drawn)

    def _value(self, name: str, branch: str) -> float:
        return self._of_sets(name, branch)(np.ones(len(self._gathered.edges) - 1, np.int64))

    def _resampled(self, name: str, branch: str) -> Array:
        if (name, branch) not in self._drawn:
            self._drawn[name, branch] = drawn_figures(self._draws, self._of_sets(name, branch))
        return self._drawn[name, branch]

    def _of_sets(self, name: str, branch: str) -> Callable[[Counts], float]:
        """Return the figure as a function of how often each block of images counts."""
        if name == "is":
            return self._gathered.scores[branch].score
        if name == "fid2fp32":
            own, truth = (self._gathered.moments[f"{FEATURES}.{b}"] for b in (branch, FP32))
            return lambda counts: own.merged(counts).distance(truth.merged(counts))
        space = _SPACE[name]
        moments, real = self._gathered.moments[f"{space}.{branch}"], self._real[space]
        return lambda counts: moments.merged(counts).distance(real)

    def _find_neighbours(self, real_set: RealSet) -> None:
        real = real_set.features()
        reach = radii(real)
        for branch in self._branches:
            features = self._gathered.features(branch)
            self._images["precision", branch] = inside(features, real, reach).numpy()
            self._images[RECALL.name, branch] = inside(real, features, radii(features)).numpy()
