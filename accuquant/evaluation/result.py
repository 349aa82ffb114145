"""The result of an evaluation: plain data, written as JSON for machines and HTML for people.

The JSON object has these keys; a key is added, never renamed or removed, while `schema_version` is 1:

    schema_version  1
    model           {name, pipeline_class, component, parameters, image_shape}
    settings        engine, bits, num_images, steps, seed, metrics, features, ...
    versions        package -> version
    figures         [{metric, branch, value, low, high}]; branch is "int8", "fp32" or "other"
    differences     [{metric, first, second, value, low, high, differ, better}]: first minus second
    sentences       [text]: the differences in words
    by_count        {counts, curves: metric -> values}: int8's figures over the images so far
    by_step         branch -> {median, mean, p10, p90}: the latent error against FP32 after each step
    images          "metric.branch" -> one value an image, in the order of the seeds
    notes           [text], what a reader should know

`low` and `high` bound what other seeds would give, in 95 of 100 cases: docs/evaluation.md says how.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accuquant._util.files import write_text
from accuquant._util.finite import finite_or_null
from accuquant.verification.measure.metrics import Curve

from .branches import FP32, INT8, OTHER
from .figures import Difference, Figure
from .metrics import metric_of

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Evaluation:
    """All that an evaluation measured. See the module's docstring for the JSON it becomes."""

    model: Mapping[str, Any]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    figures: tuple[Figure, ...]
    differences: tuple[Difference, ...]
    counts: tuple[int, ...]
    by_count: Mapping[str, tuple[float, ...]]
    by_step: Mapping[str, Curve]
    images: Mapping[str, tuple[float, ...]]
    notes: tuple[str, ...] = ()

    def figure(self, metric: str, branch: str = INT8) -> Figure:
        """Return a figure by its names. Raises KeyError where it was not measured."""
        for figure in self.figures:
            if (figure.metric, figure.branch) == (metric, branch):
                return figure
        raise KeyError(f"{metric} of {branch}")

    @property
    def labels(self) -> dict[str, str]:
        """What people call the branches."""
        names = {INT8: self.settings["folder"], OTHER: self.settings["against"], FP32: "FP32"}
        return {branch: str(name) for branch, name in names.items() if name is not None}

    @property
    def sentences(self) -> tuple[str, ...]:
        """The differences in words."""
        return tuple(in_words(d, self.labels, self.settings["num_images"]) for d in self.differences)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; numbers that are not finite become null."""
        data = {
            "schema_version": SCHEMA_VERSION,
            "model": dict(self.model),
            "settings": dict(self.settings),
            "versions": dict(self.versions),
            "figures": [figure.to_dict() for figure in self.figures],
            "differences": [difference.to_dict() for difference in self.differences],
            "sentences": list(self.sentences),
            "by_count": {"counts": list(self.counts), "curves": dict(self.by_count)},
            "by_step": {name: curve.to_dict() for name, curve in self.by_step.items()},
            "images": dict(self.images),
            "notes": list(self.notes),
        }
        finite: dict[str, Any] = finite_or_null(data)
        return finite

    def to_json(self) -> str:
        """Return the result as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON to `path`, atomically."""
        write_text(path, self.to_json())


def in_words(difference: Difference, labels: Mapping[str, str], num_images: int) -> str:
    """Say whether two branches differ, and which one is better."""
    metric, interval = metric_of(difference.metric), difference.interval
    first, second = labels[difference.first], labels[difference.second]
    bounds = f"95 % interval {shown(interval.low, signed=True)} to {shown(interval.high, signed=True)}"
    measured = f"{shown(interval.value, signed=True)} {metric.unit}".rstrip()
    said = f"{metric.title}, {first} minus {second}: {measured} ({bounds}). "
    if difference.better is None:
        return said + f"{num_images} images show no difference."
    return said + f"They differ: {labels[difference.better]} is better."


def shown(value: float, *, signed: bool = False) -> str:
    """Format a figure for people, four digits."""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:+.4g}" if signed else f"{value:.4g}"
