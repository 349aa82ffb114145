"""Moments of features by blocks of images, on disk: what resampling adds up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from accuquant.verification.measure.frechet import Gaussian, Moments

from .bootstrap import Counts


class BlockMoments:
    """Moments of features [N, D] that come in the order of their images, one for each block.

    One block's are in memory, the others' in files: for 2048 features a block takes 33 MB.
    """

    def __init__(self, folder: Path, name: str, edges: Sequence[int]) -> None:
        """Cut blocks at `edges`, the first 0, the last the number of images."""
        self._folder, self._name, self._edges = folder, name, tuple(edges)
        self._blocks: list[Moments] = []
        self._current, self._seen = Moments(), 0

    def add(self, features: npt.NDArray[np.floating[Any]]) -> None:
        """Take in the features of the next images."""
        while len(features):
            room = self._edges[len(self._blocks) + 1] - self._seen
            self._current.add(np.asarray(features[:room], np.float64))
            self._seen += min(room, len(features))
            features = features[room:]
            if self._seen == self._edges[len(self._blocks) + 1]:
                self._blocks.append(self._on_disk(self._current))
                self._current = Moments()

    def merged(self, counts: Counts) -> Gaussian:
        """Return mean and covariance of all images, those of each block as often as `counts` says."""
        return Moments.merged(zip(map(int, counts), self._blocks, strict=True)).gaussian

    def _on_disk(self, moments: Moments) -> Moments:
        path = self._folder / f"{self._name}-{len(self._blocks):02d}.npy"
        np.save(path, moments.scatter)
        kept = Moments()
        kept.count, kept.mean = moments.count, moments.mean
        kept.scatter = np.load(path, mmap_mode="r")
        return kept
