"""Rotary position embeddings (RoFormer, arXiv 2104.09864) as angles, not as complex numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def frequencies(dim: int, theta: float) -> Tensor:
    """Return theta^(-2k / dim) for k < dim / 2, in float64."""
    return torch.from_numpy(theta ** -(np.arange(0, dim, 2) / dim))


def rotations(angles: Tensor) -> Tensor:
    """Return the complex numbers of modulus 1 with these angles, of the same shape."""
    return torch.complex(angles.cos(), angles.sin())


def angle_table(length: int, dim: int, theta: float, device: torch.device) -> Tensor:
    """Return the angles of positions 0 to length - 1, [length, dim / 2] in float32, rounded from float64."""
    positions = torch.arange(length, dtype=torch.float64)
    return torch.outer(positions, frequencies(dim, theta)).float().to(device)


def looked_up(tables: Sequence[Tensor], positions: Tensor) -> Tensor:
    """Return the angles of positions [..., axes], an axis behind the other: [..., sum of the dims / 2]."""
    found = [table[axis] for table, axis in zip(tables, positions.unbind(-1), strict=True)]
    return torch.cat(found, dim=-1)
