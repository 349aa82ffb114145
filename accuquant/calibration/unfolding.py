"""A layer as a matrix product: its weight as matrices, its input as rows that they multiply."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from accuquant.networks.network import weight_shape

#: Numbers that are gathered at once: a step on the way copies them, and all rows of a wide layer are large.
_NUMBERS = 2**22


def group_count(layer: nn.Module) -> int:
    """Return into how many independent products a layer falls: `groups` of a convolution, else 1."""
    return layer.groups if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) else 1


def as_matrices(layer: nn.Module, weight: Tensor) -> Tensor:
    """Return `weight`, of the layer's shape, as one matrix for each group [G, O / G, d].

    A linear layer and a convolution [O, I / G, kh, kw] are that already; a transposed convolution
    [I, O / G, kh, kw] keeps its inputs first. d counts an output's inputs, I / G * kh * kw.
    """
    groups = group_count(layer)
    if not isinstance(layer, nn.ConvTranspose2d):
        return weight.reshape(groups, weight.shape[0] // groups, -1)
    inputs, outputs = weight.shape[:2]
    split = weight.reshape(groups, inputs // groups, outputs, -1)
    return split.transpose(1, 2).reshape(groups, outputs, -1)


def from_matrices(layer: nn.Module, matrices: Tensor) -> Tensor:
    """Return what `as_matrices` made of a weight as a tensor of the weight's shape again."""
    shape = weight_shape(layer)
    if not isinstance(layer, nn.ConvTranspose2d):
        return matrices.reshape(shape)
    groups, outputs = matrices.shape[:2]
    return matrices.reshape(groups, outputs, shape[0] // groups, -1).transpose(1, 2).reshape(shape)


def input_width(layer: nn.Module) -> int:
    """Return how many numbers an output is a sum over: d of `as_matrices`."""
    shape = weight_shape(layer)
    outputs = shape[1] if isinstance(layer, nn.ConvTranspose2d) else shape[0] // group_count(layer)
    return shape.numel() // (group_count(layer) * outputs)


def random_rows(layer: nn.Module, x: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Return the unfolded input at `count` random output positions: x [B, C, H, W] or [..., C] -> [n, G * d].

    A row holds what one output position sees, padding included, group after group, in the order of the
    columns of `as_matrices`. No position is taken twice: n is `count`, or all where there are fewer.
    """
    if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        flat = x.reshape(-1, x.shape[-1])
        return flat[_some(len(flat), count, rng).to(x.device)]
    height, width = _output_size(layer, x)
    taken = _some(len(x) * height * width, count, rng)
    image, row, column = taken // (height * width), taken // width % height, taken % width
    i, inside_i = _taps(layer, 0, x.shape[2], row)
    j, inside_j = _taps(layer, 1, x.shape[3], column)
    inside = inside_i[:, :, None] & inside_j[:, None, :]
    rows = x.new_empty(len(taken), x.shape[1] * inside[0].numel())
    size = max(1, _NUMBERS // rows.shape[1])
    for part in (slice(first, first + size) for first in range(0, len(taken), size)):
        places = (image[part, None, None], i[part, :, None], j[part, None, :])
        which, at_i, at_j = (place.to(x.device) for place in places)
        seen = x[which, :, at_i, at_j] * inside[part, ..., None].to(x.device)
        rows[part] = seen.permute(0, 3, 1, 2).flatten(1)
    return rows


def output_positions(layer: nn.Module, x: Tensor) -> int:
    """Return how many outputs the layer computes of each channel, in a batch x [B, C, H, W] or [..., C]."""
    if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        return x.numel() // x.shape[-1]
    height, width = _output_size(layer, x)
    return len(x) * height * width


def _output_size(layer: nn.Conv2d | nn.ConvTranspose2d, x: Tensor) -> tuple[int, int]:
    return _outputs(layer, 0, x.shape[2]), _outputs(layer, 1, x.shape[3])


def _some(total: int, count: int, rng: torch.Generator) -> Tensor:
    """Return `count` of the numbers below `total`, none twice, or all of them."""
    return torch.randperm(total, generator=rng)[:count]


def _outputs(layer: nn.Conv2d | nn.ConvTranspose2d, axis: int, extent: int) -> int:
    """Return how many outputs the layer has along an axis of an image of `extent`."""
    stride, reach = layer.stride[axis], _reach(layer, axis)
    if isinstance(layer, nn.ConvTranspose2d):
        around = 2 * int(layer.padding[axis])
        return (extent - 1) * stride - around + reach + layer.output_padding[axis] + 1
    before, after = _padding(layer, axis, reach)
    return (extent + before + after - reach - 1) // stride + 1


def _reach(layer: nn.Conv2d | nn.ConvTranspose2d, axis: int) -> int:
    return layer.dilation[axis] * (layer.kernel_size[axis] - 1)


def _taps(
    layer: nn.Conv2d | nn.ConvTranspose2d, axis: int, extent: int, outputs: Tensor
) -> tuple[Tensor, Tensor]:
    """Return which inputs the kernel's taps read at `outputs` [n] along one axis of an image of `extent`.

    -> index [n, k], always a valid one, and whether there is an input at all [n, k].
    """
    stride = layer.stride[axis]
    taps = torch.arange(layer.kernel_size[axis]) * layer.dilation[axis]
    if isinstance(layer, nn.ConvTranspose2d):
        # output p sums x[q] w[k] over p = q * stride - padding + k * dilation
        steps = outputs[:, None] + int(layer.padding[axis]) - taps
        index = steps.div(stride, rounding_mode="floor")
        return index.clamp(0, extent - 1), (steps % stride == 0) & (index >= 0) & (index < extent)
    before, _ = _padding(layer, axis, _reach(layer, axis))
    index = outputs[:, None] * stride - before + taps
    inside = (index >= 0) & (index < extent)
    if layer.padding_mode == "zeros":
        return index.clamp(0, extent - 1), inside
    return _wrapped(index, extent, layer.padding_mode), torch.ones_like(inside)


def _padding(layer: nn.Conv2d, axis: int, reach: int) -> tuple[int, int]:
    if layer.padding == "valid":
        return 0, 0
    if layer.padding == "same":
        return reach // 2, reach - reach // 2
    return int(layer.padding[axis]), int(layer.padding[axis])


def _wrapped(index: Tensor, extent: int, mode: str) -> Tensor:
    """Return where torch's padding modes take a position outside of the image from."""
    if mode == "circular":
        return index % extent
    if mode == "reflect":
        index = index.abs()
        return torch.minimum(index, 2 * (extent - 1) - index)
    return index.clamp(0, extent - 1)
