"""Fake quantization with gradients: what the engine computes, in float, for PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from accuquant.e4m3 import LARGEST
from accuquant.qparams import LayerQParams, level_bounds


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
        return *_gradients(grad, x, scale, levels.clamp_(low, high), inside), None, None, None


class _FakeQuantizeFp8(torch.autograd.Function):
    """The same for the numbers of E4M3."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return round_to_e4m3(x, scale).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (grad,) = grads
        x, scale = ctx.saved_tensors
        inside = (x / scale).abs_() <= LARGEST
        return _gradients(grad, x, scale, round_to_e4m3(x, scale), inside)


def _gradients(
    grad: Tensor, x: Tensor, scale: Tensor, levels: Tensor, inside: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients at x and at its scale; `levels` are clamped, `inside` says where they were not.

    d x^ / d s = level - x / s inside the range, the bound outside (LSQ, arXiv 1902.08153, eq. 3).
    """
    grad_x = grad * inside
    grad_scale = (levels * grad).sum() - (grad_x * x).sum() / scale
    return grad_x, grad_scale.reshape(scale.shape)


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


def round_to_e4m3(x: Tensor, scale: Tensor) -> Tensor:
    """Return x / scale rounded to the nearest number of E4M3, ties to even, 448 at most; in the type of x."""
    # torch itself makes NaN of what is too large on some devices
    return (x / scale).clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn).to(x.dtype)


def fake_quantize_fp8(x: Tensor, scale: Tensor) -> Tensor:
    """Quantize `x` [any shape] to E4M3 and dequantize it, with one scale (0-d tensor).

    The gradients are those of `fake_quantize`.
    """
    if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad):
        result: Tensor = _FakeQuantizeFp8.apply(x, scale)  # type: ignore[no-untyped-call]
        return result
    return round_to_e4m3(x, scale).mul_(scale)


def quantize_input(x: Tensor, scale: Tensor, layer: LayerQParams) -> Tensor:
    """Quantize and dequantize the input `x` of a layer, in its format, with one of its scales."""
    if layer.format == "fp8":
        return fake_quantize_fp8(x, scale)
    return fake_quantize(x, scale, layer.zero_point, *level_bounds(layer.activation_bits))
