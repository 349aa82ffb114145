"""Round weights so that the errors, theirs and the activations', cancel on the inputs that really occur."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from accuquant.errors import unknown_name
from accuquant.networks.network import weight_of
from accuquant.qparams import LayerQParams, level_bounds
from accuquant.scales.observer import weight_scale

from .input_moments import Moments

ROUNDINGS = ("gptq", "nearest")
_DAMPING = 0.01
_BLOCK = 128


def check_rounding(name: str) -> None:
    """Raise UsageError, with the valid names, unless `name` is one of ROUNDINGS."""
    if name not in ROUNDINGS:
        raise unknown_name("rounding", name, ROUNDINGS)


def compensate(layer: nn.Module, qparams: LayerQParams, moments: Moments) -> LayerQParams:
    """Return `qparams` with weight levels that make up for all rounding, and their bias correction.

    Minimizes E||W x - W^ (x + n)||^2 over the levels of W^, where x are the layer's inputs and n is the
    rounding noise of its activations, uniform with variance s^2 / 12. Without levels the minimum lies
    at W C (C + s^2/12 I)^-1 with C = cov(x): a Wiener filter, which turns down the directions
    that carry more noise than signal. GPTQ then rounds towards it with the covariance of x + n. What
    is left of the mean goes into the bias: bias_correction [O] = (W - W^) E[x] (Nagel et al.,
    arXiv 1906.04721, section 4.2).
    """
    weight = weight_of(layer)
    matrix = weight.reshape(weight.shape[0], -1).double().cpu()
    noise = float(np.square(qparams.activation_scale, dtype=np.float64).mean()) / 12
    moments = Moments(moments.mean.cpu(), moments.covariance.cpu())
    noisy = moments.covariance + torch.eye(len(moments.covariance), dtype=torch.float64) * noise
    filtered = torch.linalg.solve(noisy, moments.covariance @ matrix.T).T
    scales = weight_scale(filtered.numpy(), qparams.weight_bits, 0)
    scale = torch.from_numpy(scales).double()
    levels = gptq(filtered, scale, noisy, qparams.weight_bits)
    correction = (matrix - levels * scale[:, None]) @ moments.mean
    return replace(
        qparams,
        weight_scale=scales,
        weight_levels=levels.to(torch.int8).reshape(weight.shape).numpy(),
        bias_correction=correction.numpy().astype(np.float32),
    )


def gptq(weight: Tensor, scale: Tensor, covariance: Tensor, bits: int) -> Tensor:
    """Return integer levels [O, d] for weight [O, d] at the scales [O], given E[x x^T] [d, d].

    Columns are rounded one after the other, those with the most input power first; the error of each
    is spread over the columns that are still free, in the direction that the inverse covariance gives
    (Frantar et al., GPTQ, arXiv 2210.17323, algorithm 1). Everything in float64.
    """
    qmin, qmax = level_bounds(bits)
    order = torch.argsort(covariance.diagonal(), descending=True, stable=True)
    upper = _inverse_factor(covariance[order][:, order])
    free = weight[:, order].clone()
    levels = torch.zeros_like(free)
    for start in range(0, free.shape[1], _BLOCK):
        block = slice(start, min(start + _BLOCK, free.shape[1]))
        factor = upper[block, block]
        errors = torch.zeros_like(free[:, block])
        for column in range(factor.shape[0]):
            at = start + column
            levels[:, at] = (free[:, at] / scale).round().clamp(qmin, qmax)
            errors[:, column] = (free[:, at] - levels[:, at] * scale) / factor[column, column]
            free[:, at : block.stop] -= torch.outer(errors[:, column], factor[column, column:])
        free[:, block.stop :] -= errors @ upper[block, block.stop :]
    restored = torch.empty_like(levels)
    restored[:, order] = levels
    return restored


def _inverse_factor(covariance: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the damped covariance's inverse."""
    power = covariance.diagonal().mean().clamp(min=1e-30)
    damped = covariance + torch.eye(len(covariance), dtype=covariance.dtype) * power * _DAMPING
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor
