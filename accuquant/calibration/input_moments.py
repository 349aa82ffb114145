"""The moments of what each layer multiplies its weight with, gathered from random positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from accuquant.networks.network import watching_inputs

from .row_store import BUFFER, PRECISE_WIDTH, RowPart, RowSums, RowWriter, filed_moments, row_keys
from .unfolding import group_count, input_width, random_rows

#: Rows gathered for each layer over the whole recording; wider layers get one for each of their inputs.
#: A call gives no more than it has output positions.
ROWS = 8192
#: Sums that all layers together may take in memory, and in the file of a batch, in bytes.
MEMORY = 2**28
_BLOCK = 512
#: What it takes to know a row again, in bytes.
_KEY = 8


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

    def covariance(self, group: int, columns: slice, device: torch.device) -> Tensor:
        """Return the covariance of some of a group's inputs on `device`; the caller may overwrite it."""


@dataclass(frozen=True)
class RowPlan:
    """What is kept of one layer: up to `rows` for each call, as sums or as they are."""

    rows: int
    summed: bool


def plan_rows(layers: Mapping[str, nn.Module], calls: int, batches: int = 1) -> dict[str, RowPlan]:
    """Return what is kept of each layer in `calls` calls of the network, in so many batches of them.

    ROWS rows over all calls, or as many as the layer has inputs. Sums where they take less room than a
    batch's rows, for the narrowest layers until they take MEMORY together.
    """
    plans, left = {}, MEMORY
    for name in sorted(layers, key=lambda name: input_width(layers[name])):
        groups, width = group_count(layers[name]), input_width(layers[name])
        rows = _rows_a_call(width, calls)
        size = 8 * groups * width**2
        smaller = size < 4 * groups * width * rows * max(1, calls // batches)
        summed = smaller and width <= PRECISE_WIDTH and size <= left
        left -= size if summed else 0
        plans[name] = RowPlan(rows, summed)
    return {name: plans[name] for name in layers}


#: What a sampler drew in one batch: tensors by name, and the file in which rows lie.
Drawn = tuple[Mapping[str, Tensor], Path]


class MomentSampler:
    """Gathers random rows of the layers' unfolded inputs while a network runs on one batch."""

    def __init__(
        self, layers: Mapping[str, nn.Module], plans: Mapping[str, RowPlan], seed: int, path: Path
    ) -> None:
        """Prepare to draw what `plan_rows` says with the batch's own `seed`; `path` takes rows."""
        self._layers, self._plans = dict(layers), plans
        self._rng = torch.Generator().manual_seed(seed)
        self._sums: dict[str, RowSums] = {}
        self._waiting: dict[str, list[Tensor]] = {name: [] for name in self._layers}
        self._keys: dict[str, list[Tensor]] = {}
        self._writer = RowWriter(path)

    def watch(self) -> AbstractContextManager[None]:
        """Observe the layers in every call inside the block."""
        return watching_inputs(self._layers, self._observe)

    def finish(self) -> dict[str, Tensor]:
        """Write the rows that wait, and return what is known of each layer, by names that say what it is."""
        for name in self._waiting:
            self._add_up(name)
        drawn = {
            f"{kind}/{name}": tensor
            for name, sums in self._sums.items()
            for kind, tensor in sums.sums().items()
        }
        drawn |= {f"rows/{name}": places for name, places in self._writer.finish().items()}
        return drawn | {f"keys/{name}": torch.cat(keys) for name, keys in self._keys.items()}

    def close(self) -> None:
        """Let go of the file of rows."""
        self._writer.close()

    def _observe(self, name: str, x: Tensor) -> None:
        plan = self._plans[name]
        rows = random_rows(self._layers[name], x.detach(), plan.rows, self._rng).cpu().float()
        if not plan.summed:
            self._keys.setdefault(name, []).append(row_keys(rows))
            self._writer.add(name, rows)
            return
        self._waiting[name].append(rows)
        if len(self._waiting[name]) * plan.rows >= _BLOCK:
            self._add_up(name)

    def _add_up(self, name: str) -> None:
        if not self._waiting[name]:
            return
        rows, self._waiting[name] = torch.cat(self._waiting[name]), []
        if name not in self._sums:
            layer = self._layers[name]
            self._sums[name] = RowSums(group_count(layer), input_width(layer))
        self._sums[name].add(rows)


@dataclass(frozen=True)
class RowShape:
    """How many rows [groups * width] a layer gives in a whole recording."""

    name: str
    groups: int
    width: int
    rows: int


@dataclass(frozen=True)
class RowNeed:
    """What the rows of all layers take until they are rounded: `memory`, of one batch, and `disk`, in bytes.

    `sums` are the layers whose rows are summed, `files` those whose rows lie in files.
    """

    memory: int
    disk: int
    sums: tuple[RowShape, ...]
    files: tuple[RowShape, ...]


def rows_of(width: int, calls: int, positions: int) -> int:
    """Return how many rows a layer of `width` inputs gives in `calls` calls, of so many positions each."""
    return min(_rows_a_call(width, calls), positions) * calls


def _rows_a_call(width: int, calls: int) -> int:
    return max(1, max(ROWS, width) // max(1, calls))


def row_need(
    layers: Mapping[str, nn.Module], positions: Mapping[str, int], calls: int, batches: int
) -> RowNeed:
    """Return what samplers of these layers take in `calls` calls of the network, in so many batches.

    `positions` are each layer's in a call (`output_positions`).
    """
    memory = disk = waiting = 0
    sums, files = [], []
    for name, plan in plan_rows(layers, calls, batches).items():
        groups, width = group_count(layers[name]), input_width(layers[name])
        rows = min(plan.rows, positions[name]) * calls
        if plan.summed:
            sums.append(RowShape(name, groups, width, rows))
            size = 8 * groups * width**2
            memory += size + 4 * min(_BLOCK, rows) * groups * width
            disk += size * batches
        else:
            files.append(RowShape(name, groups, width, rows))
            waiting += 4 * rows // batches * groups * width
            disk += 4 * rows * groups * width
        disk += _KEY * rows
    return RowNeed(memory + min(waiting, BUFFER), disk, tuple(sums), tuple(files))


def moments_of(name: str, layer: nn.Module, batches: Sequence[Drawn]) -> Moments:
    """Return the moments of a layer's inputs in all batches, added up in their order."""
    groups, width = group_count(layer), input_width(layer)
    if f"mean/{name}" in batches[0][0]:
        total = RowSums(groups, width)
        for drawn, _ in batches:
            total.add_sums({kind: drawn[f"{kind}/{name}"] for kind in ("mean", "products", "keys")})
        return total.moments()
    parts = [
        RowPart(path, first, count)
        for drawn, path in batches
        for first, count in drawn[f"rows/{name}"].tolist()
    ]
    return filed_moments(parts, groups, width, [drawn[f"keys/{name}"] for drawn, _ in batches])
