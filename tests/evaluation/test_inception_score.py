from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from accuquant.evaluation.bootstrap import block_edges
from accuquant.evaluation.inception_score import BlockScores


def plain_score(logits: npt.NDArray[np.float64], splits: int) -> float:
    """Return the score as its paper and torch-fidelity write it, without shuffling."""
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    scores = []
    for part in range(splits):
        chunk = p[part * len(p) // splits : (part + 1) * len(p) // splits]
        kl = (chunk * (np.log(chunk) - np.log(chunk.mean(0)))).sum(1)
        scores.append(np.exp(kl.mean()))
    return float(np.mean(scores))


@pytest.mark.parametrize(("images", "splits"), [(203, 10), (60, 10), (5, 5)])
def test_the_score_from_sums_is_that_of_all_probabilities(images: int, splits: int) -> None:
    logits = np.random.default_rng(0).normal(0, 2, (images, 12))
    scores = BlockScores(block_edges(images))
    for first in range(0, images, 16):
        scores.add(torch.from_numpy(logits[first : first + 16]))
    ones = np.ones(min(20, images), np.int64)
    assert scores.score(ones) == pytest.approx(plain_score(logits, splits), rel=1e-12)


def test_sure_and_varied_classes_score_their_number() -> None:
    scores = BlockScores(block_edges(40))
    scores.add(torch.eye(4).repeat(10, 1) * 1000)
    assert scores.score(np.ones(20, np.int64)) == pytest.approx(4.0)
