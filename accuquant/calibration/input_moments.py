"""The moments of what each layer multiplies its weight with, gathered from random positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from .row_store import PRECISE_WIDTH, RowFile, RowSums
from .unfolding import group_count, input_width, random_rows

#: Rows gathered for each layer over the whole recording; wider layers get one for each of their inputs.
ROWS = 8192
#: Sums that all layers together may keep in memory, in bytes; the widest layers' rows go to files instead.
MEMORY = 2**30
_BLOCK = 512
#: What it takes to know a row again, in bytes: a number and its place in a set.
_HASH = 80


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
        self._rows = {name: _rows_a_call(input_width(layer), calls) for name, layer in layers.items()}
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


@dataclass(frozen=True)
class RowNeed:
    """What the rows of all layers take until they are rounded: `memory` and `disk` in bytes.

    `sums` and `files` [(groups, width)] are the layers whose rows are summed, and those whose rows lie in
    files, the narrowest first.
    """

    memory: int
    disk: int
    sums: tuple[tuple[int, int], ...]
    files: tuple[tuple[int, int], ...]


def rows_of(width: int, calls: int) -> int:
    """Return how many rows a layer of `width` inputs gives in `calls` calls of the network."""
    return _rows_a_call(width, calls) * calls


def _rows_a_call(width: int, calls: int) -> int:
    return max(1, max(ROWS, width) // max(1, calls))


def row_need(layers: Mapping[str, nn.Module], calls: int) -> RowNeed:
    """Return what a MomentSampler of these layers takes at the end of `calls` calls."""
    memory = disk = 0
    sums, files = [], []
    for layer, summed in _places(layers):
        groups, width = group_count(layer), input_width(layer)
        rows = rows_of(width, calls)
        memory += _HASH * rows
        if summed:
            sums.append((groups, width))
            memory += 8 * groups * width**2 + 4 * min(_BLOCK, rows) * groups * width
        else:
            files.append((groups, width))
            disk += 4 * rows * groups * width
    return RowNeed(memory, disk, tuple(sums), tuple(files))


def _places(layers: Mapping[str, nn.Module]) -> Iterator[tuple[nn.Module, bool]]:
    """Yield the layers, the narrowest first, and whether their sums stay in memory."""
    left = MEMORY
    for layer in sorted(layers.values(), key=input_width):
        width = input_width(layer)
        left -= 8 * group_count(layer) * width**2
        yield layer, left >= 0 and width <= PRECISE_WIDTH


def _stores(layers: Mapping[str, nn.Module], folder: Path) -> dict[str, RowSums | RowFile]:
    """Return where each layer's rows go: sums in memory for the narrowest, files for what is left."""
    stores: dict[nn.Module, RowSums | RowFile] = {}
    for layer, summed in _places(layers):
        groups, width = group_count(layer), input_width(layer)
        stores[layer] = (
            RowSums(groups, width) if summed else RowFile(folder / f"{len(stores)}.rows", groups, width)
        )
    return {name: stores[layer] for name, layer in layers.items()}
