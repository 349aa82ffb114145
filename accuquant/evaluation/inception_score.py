"""The inception score from sums, so that no probability has to stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .bootstrap import Array, Counts

#: As many parts have a score of their own; the figure is their mean.
SPLITS = 10


class BlockScores:
    """Sums of class probabilities and of their entropies, by blocks of images.

    Salimans et al., arXiv 1606.03498, sec. 4: exp(E KL(p(y|x) || p(y))) = exp(E sum p log p - sum q log q)
    with q the mean of p.
    """

    def __init__(self, edges: Sequence[int]) -> None:
        self._edges = np.array(edges)
        self._seen = 0
        self._probabilities: Array = np.zeros((len(edges) - 1, 0))
        self._negentropy: Array = np.zeros(len(edges) - 1)

    def add(self, logits: Tensor) -> None:
        """Take in the logits [N, K] of the next images."""
        values = logits.double()
        probabilities = values.softmax(1)
        negentropy = (probabilities * values.log_softmax(1)).sum(1).numpy()
        if not self._seen:
            self._probabilities = np.zeros((len(self._edges) - 1, values.shape[1]))
        images = np.arange(self._seen, self._seen + len(values))
        blocks = np.searchsorted(self._edges, images, side="right") - 1
        np.add.at(self._probabilities, blocks, probabilities.numpy())
        np.add.at(self._negentropy, blocks, negentropy)
        self._seen += len(values)

    def score(self, counts: Counts) -> float:
        """Return the mean score of ten parts; each block is in them as often as `counts` says."""
        chosen = np.repeat(np.arange(len(counts)), counts)
        splits = min(SPLITS, len(chosen))
        if np.all(counts == 1):
            parts = np.array_split(chosen, splits)  # neighbours, as torch-fidelity takes them unshuffled
        else:
            parts = [chosen[part::splits] for part in range(splits)]  # a block drawn twice is in two parts
        return float(np.mean([self._of(part) for part in parts]))

    def _of(self, blocks: npt.NDArray[np.integer[Any]]) -> float:
        count = np.diff(self._edges)[blocks].sum()
        mean = torch.from_numpy(self._probabilities[blocks].sum(0) / count)
        return float(np.exp(self._negentropy[blocks].sum() / count - torch.xlogy(mean, mean).sum().item()))
