"""Fill the tokens of a prompt up to a length, behind which a mask says that there are none."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

#: Prompts have a multiple of these tokens in graphs, so that engines see few shapes.
MULTIPLE = 32


def filled(tokens: Tensor, length: int) -> Tensor:
    """Return [B, T, ...] with zeros, or False, behind its T tokens: [B, length, ...]."""
    missing = length - tokens.shape[1]
    return pad(tokens, (0, 0) * (tokens.ndim - 2) + (0, missing)) if missing else tokens


def next_multiple(length: int) -> int:
    """Return the smallest multiple of MULTIPLE that is `length` or more."""
    return -(-length // MULTIPLE) * MULTIPLE
