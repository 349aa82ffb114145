"""Fake quantization with gradients: what the engine computes, in float, for PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _FakeQuantize(torch.autograd.Function):
    """Straight-through estimator for x, learned-step-size gradient for the scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: int, qmin: int, qmax: int) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.bounds = (float(qmin - zero_point), float(qmax - zero_point))
        return round_to_grid(x, scale, *ctx.bounds).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (grad,) = grads
        x, scale = ctx.saved_tensors
        low, high = ctx.bounds
        levels = (x / scale).round_()
        inside = (levels >= low) & (levels <= high)
        grad_x = grad * inside
        # d x^ / d s = level - x / s inside the range, the bound outside (LSQ, arXiv 1902.08153, eq. 3)
        clamped = (levels.clamp_(low, high) * grad).sum()
        grad_scale = clamped - (grad_x * x).sum() / scale
        return grad_x, grad_scale.reshape(scale.shape), None, None, None


def round_to_grid(x: Tensor, scale: Tensor, low: float, high: float) -> Tensor:
    """Return clamp(round_half_even(x / scale), low, high), in float."""
    return (x / scale).round_().clamp_(low, high)


def fake_quantize(x: Tensor, scale: Tensor, zero_point: int, qmin: int, qmax: int) -> Tensor:
    """Quantize and dequantize `x` [any shape] with one scale (0-d tensor).

    Returns (clamp(round(x / s) + z, qmin, qmax) - z) * s. The gradient is straight-through inside the
    range and zero outside for x, and the learned-step-size one for the scale (Esser et al., LSQ,
    arXiv 1902.08153, eq. 3).
    """
    if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad):
        result: Tensor = _FakeQuantize.apply(x, scale, zero_point, qmin, qmax)  # type: ignore[no-untyped-call]
        return result
    return round_to_grid(x, scale, float(qmin - zero_point), float(qmax - zero_point)).mul_(scale)
