"""The moments of what each layer multiplies its weight with, gathered from random positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from accuquant.networks.network import weight_shape

from .row_store import PRECISE_WIDTH, RowFile, RowSums
from .unfolding import group_count, input_width, random_rows

#: Rows gathered for each layer over the whole recording; wider layers get one for each of their inputs.
ROWS = 8192
#: Bytes that sums and rows of all layers together may take, at most and at least, and as a share of the
#: network's weights in float32; the widest layers' rows go to files instead.
MEMORY, _LEAST, _SHARE = 2**30, 2**28, 0.125
_BLOCK = 512


class Moments(Protocol):
    """Mean [G, d] and covariances of a layer's unfolded inputs in its G groups, d inputs an output.

    `rows` of them were looked at, `distinct` of which differ: a prompt's tokens come back in every step.
    """

    @property
    def mean(self) -> Tensor:
        """Mean [G, d] in float64."""

    @property
    def rows(self) -> int:
        """How many rows there were."""

    @property
    def distinct(self) -> int:
        """How many of them differ."""

    def covariance(self, group: int, columns: slice) -> Tensor:
        """Return the covariance of some of a group's inputs, a tensor that the caller may overwrite."""


class MomentSampler:
    """Gathers random rows of the layers' unfolded inputs while a network runs."""

    def __init__(self, layers: Mapping[str, nn.Module], calls: int, seed: int, folder: Path) -> None:
        """Prepare for `calls` calls of the network; `folder` takes the files of the widest layers."""
        self._layers = dict(layers)
        self._rows = {
            name: max(1, max(ROWS, input_width(layer)) // max(1, calls)) for name, layer in layers.items()
        }
        self._rng = torch.Generator().manual_seed(seed)
        self._pending: dict[str, list[Tensor]] = {name: [] for name in self._layers}
        self._stores = _stores(self._layers, folder)

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

    def names(self) -> list[str]:
        """Return the layers whose moments were not taken yet."""
        return list(self._stores)

    def take(self, name: str) -> Moments:
        """Return the moments of a layer, and forget them: those of all layers at once may not fit."""
        self._flush(name)
        return self._stores.pop(name).moments()

    def _observe(self, name: str, x: Tensor) -> None:
        rows = random_rows(self._layers[name], x.detach(), self._rows[name], self._rng).cpu()
        self._pending[name].append(rows.float().cpu())
        in_a_file = isinstance(self._stores[name], RowFile)
        if in_a_file or len(self._pending[name]) * self._rows[name] >= _BLOCK:
            self._flush(name)

    def _flush(self, name: str) -> None:
        if self._pending[name]:
            self._stores[name].add(torch.cat(self._pending[name]))
            self._pending[name] = []


def memory_of(layers: Mapping[str, nn.Module]) -> int:
    """Return how many bytes the sums for `layers` may take: an eighth of their weights, within bounds."""
    weights = sum(4 * weight_shape(layer).numel() for layer in layers.values())
    return int(min(MEMORY, max(_LEAST, _SHARE * weights)))


def _stores(layers: Mapping[str, nn.Module], folder: Path) -> dict[str, RowSums | RowFile]:
    """Return where each layer's rows go: sums in memory for the narrowest, files for what is left."""
    stores: dict[str, RowSums | RowFile] = {}
    left = memory_of(layers)
    for name in sorted(layers, key=lambda name: input_width(layers[name])):
        groups, width = group_count(layers[name]), input_width(layers[name])
        left -= groups * width * (8 * width + 4 * _BLOCK)  # the sums, and the rows on their way to them
        if left >= 0 and width <= PRECISE_WIDTH:
            stores[name] = RowSums(groups, width)
        else:
            stores[name] = RowFile(folder / f"{len(stores)}.rows", groups, width)
    return {name: stores[name] for name in layers}
