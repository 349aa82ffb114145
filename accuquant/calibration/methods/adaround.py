"""AdaRound's pure part: rounding as a soft choice between the level below and the one above."""

from __future__ import annotations

import torch
from torch import Tensor

#: The rectified sigmoid is stretched to this range: Nagel et al., arXiv 2004.10568, equation 23.
GAMMA, ZETA = -0.1, 1.1
#: The exponent of the regularizer falls from the first to the second value, after a share without it.
BETAS, WARM_UP = (20.0, 2.0), 0.2


def soft_step(alpha: Tensor) -> Tensor:
    """Return h(alpha) in [0, 1]: how much of the way to the level above is taken (equation 23)."""
    return (torch.sigmoid(alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def first_alpha(rest: Tensor) -> Tensor:
    """Return the alpha at which h(alpha) is `rest`, what rounding down leaves of a weight, in [0, 1)."""
    return -torch.log((ZETA - GAMMA) / (rest - GAMMA) - 1)


def between(ratio: Tensor, levels: Tensor, bounds: tuple[int, int], trust: float) -> tuple[Tensor, Tensor]:
    """Return the lower of two levels for each weight, and how much of the way to the upper one is gone.

    The two are the one of `levels` that it has and its neighbour towards `ratio`, the weight in units of its
    scale; both are in `bounds`. `trust` 1 begins at the level, 0 at the weight or the level beside it.
    """
    missing = (ratio - levels).clamp(-1, 1)
    below = torch.where(missing >= 0, levels, levels - 1).clamp(bounds[0], bounds[1] - 1)
    # at an end, a rectified sigmoid would have no gradient; a tie is the level's
    rest = (levels + (1 - trust) * missing * (1 - 1e-4) - below).clamp(1e-3, 1 - 1e-3)
    return below, rest


def undecided(alpha: Tensor, beta: float) -> Tensor:
    """Return sum 1 - |2 h - 1|^beta: 0 where every weight has chosen its level (equation 24)."""
    return (1 - (2 * soft_step(alpha) - 1).abs().pow(beta)).sum()


def beta_at(iteration: int, iterations: int) -> float | None:
    """Return the exponent at an iteration, None during the warm-up: it falls linearly."""
    begun = WARM_UP * iterations
    if iteration < begun:
        return None
    share = (iteration - begun) / max(1.0, iterations - begun)
    return BETAS[1] + (BETAS[0] - BETAS[1]) * (1 - share)
