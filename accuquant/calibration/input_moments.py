"""The second moments of what each layer multiplies its weight with, gathered from random positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from accuquant.networks.network import weight_of

#: Rows gathered for each layer over the whole recording: several times the widest input, 2304 numbers.
ROWS = 8192
#: Layers with more inputs than this keep round-to-nearest: their covariance would take gigabytes.
MAX_INPUTS = 6144
_BLOCK = 512


@dataclass(frozen=True)
class Moments:
    """Mean [d] and covariance [d, d] of a layer's unfolded inputs, d = C * kh * kw."""

    mean: Tensor
    covariance: Tensor


class MomentSampler:
    """Accumulates E[x] and E[x x^T] of the layers' unfolded inputs while a network runs."""

    def __init__(self, layers: Mapping[str, nn.Module], calls: int, seed: int) -> None:
        """Prepare for `calls` calls of the network; layers that `unfolds` refuses are skipped."""
        self._layers = {name: layer for name, layer in layers.items() if unfolds(layer)}
        self._rows = max(16, ROWS // max(1, calls))
        self._rng = torch.Generator().manual_seed(seed)
        self._pending: dict[str, list[Tensor]] = {name: [] for name in self._layers}
        self._sums: dict[str, tuple[Tensor, Tensor, int]] = {}

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Observe the layers in every call inside the block."""
        hooks = [
            layer.register_forward_pre_hook(lambda _m, args, name=name: self._observe(name, args[0]))
            for name, layer in self._layers.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def moments(self) -> dict[str, Moments]:
        """Return the moments of every observed layer."""
        for name in self._layers:
            self._flush(name)
        return {name: _moments(*sums) for name, sums in self._sums.items()}

    def _observe(self, name: str, x: Tensor) -> None:
        self._pending[name].append(random_rows(self._layers[name], x.detach(), self._rows, self._rng))
        if len(self._pending[name]) * self._rows >= _BLOCK:
            self._flush(name)

    def _flush(self, name: str) -> None:
        if not self._pending[name]:
            return
        rows = torch.cat(self._pending[name])
        self._pending[name] = []
        product, total, count = self._sums.get(name, (0.0, 0.0, 0))
        self._sums[name] = (product + rows.T @ rows, total + rows.sum(0), count + len(rows))


def _moments(product: Tensor, total: Tensor, count: int) -> Moments:
    mean = total.double() / count
    return Moments(mean, product.double() / count - torch.outer(mean, mean))


def unfolds(layer: nn.Module) -> bool:
    """Say whether a layer is a matrix product of its unfolded input: Linear, ungrouped Conv2d."""
    if isinstance(layer, nn.Linear):
        return layer.in_features <= MAX_INPUTS
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1 or isinstance(layer.padding, str):
        return False
    return layer.padding_mode == "zeros" and weight_of(layer)[0].numel() <= MAX_INPUTS


def random_rows(layer: nn.Module, x: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Return `count` random rows of the unfolded input: x [B, C, H, W] or [..., C] -> [count, d].

    A row holds what one output position sees, padding included, in the order of weight[o].flatten().
    """
    if not isinstance(layer, nn.Conv2d):
        flat = x.reshape(-1, x.shape[-1])
        return flat[torch.randint(len(flat), (count,), generator=rng).to(x.device)]
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    ph, pw = int(layer.padding[0]), int(layer.padding[1])
    padded = functional.pad(x, (pw, pw, ph, ph))
    batch, _, height, width = padded.shape
    rows_out = (height - dh * (kh - 1) - 1) // sh + 1
    columns_out = (width - dw * (kw - 1) - 1) // sw + 1
    image = torch.randint(batch, (count, 1, 1), generator=rng)
    top = torch.randint(rows_out, (count, 1, 1), generator=rng) * sh
    left = torch.randint(columns_out, (count, 1, 1), generator=rng) * sw
    i = top + torch.arange(kh).reshape(1, kh, 1) * dh
    j = left + torch.arange(kw).reshape(1, 1, kw) * dw
    image, i, j = (index.to(x.device) for index in (image, i, j))
    return padded[image, :, i, j].permute(0, 3, 1, 2).reshape(count, -1)
