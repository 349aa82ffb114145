"""What is kept of all shards: numbers an image in memory, features and their moments on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from accuquant.units.tensor_tree import Tree
from accuquant.verification.measure.feature_networks import FEATURES, LOGITS, SPATIAL
from accuquant.verification.measure.frechet import Moments
from accuquant.verification.measure.metrics import Curve

from .block_moments import BlockMoments
from .bootstrap import block_edges
from .inception_score import BlockScores
from .shard import STEP_ERRORS

Array = npt.NDArray[np.float64]


class FeatureRows:
    """Features [N, D] in a file, written in the order of the images."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._width = 0

    def add(self, features: npt.NDArray[np.float32]) -> None:
        """Append the features of the next images."""
        self._width = features.shape[1]
        with open(self._path, "ab") as file:
            file.write(np.ascontiguousarray(features, np.float32).tobytes())

    def rows(self) -> npt.NDArray[np.float32]:
        """Return all of them, mapped."""
        return np.memmap(self._path, np.float32, mode="r").reshape(-1, self._width)


class Gathered:
    """The results of shards, taken in their order; `folder` holds what is large, and may be lost."""

    def __init__(self, folder: Path, num_images: int, *, keep_features: bool) -> None:
        """`keep_features` keeps the features of all images, for precision, which compares each with each."""
        self.edges = block_edges(num_images)
        self._folder, self._keep = folder, keep_features
        self._values: dict[str, list[npt.NDArray[np.floating[Any]]]] = {}
        self.moments: dict[str, BlockMoments] = {}
        self.scores: dict[str, BlockScores] = {}
        self._rows: dict[str, FeatureRows] = {}

    def add(self, shard: Tree) -> None:
        """Take in the result of the next shard."""
        for name, values in shard.items():
            kind, branch = name.split(".")
            if kind in (FEATURES, SPATIAL):
                moments = BlockMoments(self._folder, name, self.edges)
                self.moments.setdefault(name, moments).add(values.numpy())
            if kind == FEATURES and self._keep:
                rows = FeatureRows(self._folder / f"{name}.rows")
                self._rows.setdefault(branch, rows).add(values.numpy())
            if kind == LOGITS:
                self.scores.setdefault(branch, BlockScores(self.edges)).add(values)
            if kind not in (FEATURES, SPATIAL, LOGITS):
                self._values.setdefault(name, []).append(values.numpy())

    def values(self, metric: str, branch: str) -> Array:
        """Return a value for each image [N]."""
        return np.concatenate(self._values[f"{metric}.{branch}"]).astype(np.float64)

    def features(self, branch: str) -> npt.NDArray[np.float32]:
        """Return the features of all images [N, D], mapped."""
        return self._rows[branch].rows()

    def step_errors(self, branch: str) -> Curve:
        """Return the latent error after each step, over the images."""
        return Curve.of(np.concatenate(self._values[f"{STEP_ERRORS}.{branch}"]).T)


class RealSet:
    """Real images as sets of features: moments, and the features where they are compared one by one."""

    def __init__(self, folder: Path, outputs: Sequence[str], *, keep_features: bool) -> None:
        self.moments = {output: Moments() for output in outputs if output != LOGITS}
        self._rows = FeatureRows(folder / "real.rows") if keep_features else None

    def add(self, shard: Tree) -> None:
        """Take in the result of the next shard."""
        for output, moments in self.moments.items():
            moments.add(shard[output].numpy())
        if self._rows is not None:
            self._rows.add(shard[FEATURES].numpy())

    def features(self) -> npt.NDArray[np.float32]:
        """Return the features of all real images [M, D], mapped."""
        assert self._rows is not None
        return self._rows.rows()
