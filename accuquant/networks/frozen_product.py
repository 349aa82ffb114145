"""Products with a frozen weight that exists only while they run: made anew where a gradient needs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_Sides = tuple[int, ...]


@dataclass(frozen=True)
class FrozenProduct:
    """What a Linear, Conv2d or ConvTranspose2d computes, its weight left open.

    `padded` is what is put around an input first, as functional.pad takes it, in `padding_mode`; `padding` is
    the convolution's own. A linear layer has no `stride`.
    """

    stride: _Sides = ()
    padding: _Sides = (0, 0)
    dilation: _Sides = (1, 1)
    output_padding: _Sides = (0, 0)
    groups: int = 1
    transposed: bool = False
    padded: _Sides = ()
    padding_mode: str = "constant"

    @classmethod
    def of(cls, layer: nn.Module) -> FrozenProduct:
        """Return the product that `layer` computes."""
        if isinstance(layer, nn.Linear):
            return cls()
        assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
        shared = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
        if isinstance(layer, nn.ConvTranspose2d):
            return cls(
                **shared,  # type: ignore[arg-type]
                padding=_integers(layer.padding),
                output_padding=layer.output_padding,
                transposed=True,
            )
        around = tuple(layer._reversed_padding_repeated_twice)
        if layer.padding_mode != "zeros":
            return cls(**shared, padded=around, padding_mode=layer.padding_mode)  # type: ignore[arg-type]
        left, right, upper, lower = around
        # "same" may need more on one side, which torch puts there first
        more = (0, right - left, 0, lower - upper) if (left, upper) != (right, lower) else ()
        return cls(**shared, padding=(upper, left), padded=more)  # type: ignore[arg-type]

    def __call__(self, x: Tensor, make_weight: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        """Return the layer's output for x [B, C, H, W] or [..., C] and a weight and bias that do not learn.

        `make_weight` is called here, and again when the gradient at x is computed: between the two nothing
        of the weight is kept, nor of x.
        """
        if self.padded:
            x = functional.pad(x, self.padded, self.padding_mode)
        if torch.is_grad_enabled() and x.requires_grad:
            output: Tensor = _MadeTwice.apply(x, make_weight, bias, self)  # type: ignore[no-untyped-call]
            return output
        return self.forward(x, make_weight(), bias)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the output for a padded input."""
        if not self.stride:
            return functional.linear(x, weight, bias)
        if self.transposed:
            return functional.conv_transpose2d(
                x, weight, bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
            )
        return functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def input_gradient(
        self, grad: Tensor, shape: torch.Size, weight: Tensor, *, channels_last: bool = False
    ) -> Tensor:
        """Return the gradient at an input of `shape` in that memory format, given the one at the output."""
        if not self.stride:
            return grad @ weight
        # only shape and format count: the format chooses the kernel, and so the last bits
        wanted = torch.channels_last if channels_last else torch.contiguous_format
        like_input = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=wanted)
        gradients: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
            grad, like_input, weight, None, self.stride, self.padding, self.dilation, self.transposed,
            self.output_padding, self.groups, (True, False, False),
        )  # fmt: skip
        return gradients[0]


class _MadeTwice(torch.autograd.Function):
    """A product whose weight is made once for the output and once for the gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, make_weight: Callable[[], Tensor], bias: Tensor | None, product: FrozenProduct
    ) -> Tensor:
        ctx.made = make_weight, product, x.shape, _is_channels_last(x)
        return product.forward(x, make_weight(), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        make_weight, product, shape, channels_last = ctx.made
        gradient = product.input_gradient(grads[0], shape, make_weight(), channels_last=channels_last)
        return gradient, None, None, None


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _integers(padding: Any) -> _Sides:
    return tuple(int(side) for side in padding)
