"""Precision and recall: which images lie among those of another set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from accuquant.errors import UsageError

#: Neighbours that reach from an image to the border of its set.
NEIGHBOURS = 3
#: What is in memory at a time.
_ROWS, _COLUMNS = 256, 4096

Features = npt.NDArray[np.float32]


def radii(features: Features) -> Tensor:
    """Return the distance of each of features [N, D] to its third neighbour in the set: [N].

    Kynkäänniemi et al., arXiv 1904.06991, eq. 1. Raises UsageError for fewer than four images.
    """
    if len(features) <= NEIGHBOURS:
        raise UsageError(
            "precision",
            got=f"{len(features)} images",
            expected=f"more than {NEIGHBOURS}, real and sampled: it looks for neighbours",
            remedy="Give more images, or leave precision out",
        )
    parts = [
        torch.kthvalue(distances, NEIGHBOURS + 1, dim=1).values  # the nearest is the image itself
        for distances in _distances(features, features)
    ]
    return torch.cat(parts)


def inside(features: Features, others: Features, reach: Tensor) -> Tensor:
    """Return 1.0 for each of features [N, D] within `reach` [M] of one of `others` [M, D], else 0.0."""
    return torch.cat([(distances <= reach).any(1) for distances in _distances(features, others)]).double()


def _distances(first: Features, second: Features) -> Iterator[Tensor]:
    """Yield the distances [n, M] of some rows at a time; features may be mapped from a file."""
    # distances do not depend on the centre, and their rounding errors do
    centre = torch.from_numpy(second.mean(0, dtype=np.float64))

    def part(features: Features, begin: int, size: int) -> Tensor:
        return torch.from_numpy(np.array(features[begin : begin + size])).double() - centre

    for begin in range(0, len(first), _ROWS):
        rows = part(first, begin, _ROWS)
        yield torch.cat(
            [torch.cdist(rows, part(second, k, _COLUMNS)) for k in range(0, len(second), _COLUMNS)], 1
        )
