"""How many different inputs each layer will see in a recording, told from two of its calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from accuquant.networks.network import quantizable_layers, watching_inputs

from .care import facts_of
from .input_moments import rows_of
from .unfolding import input_width, output_positions


@dataclass(frozen=True)
class Recorded:
    """What is recorded: `images` that differ, of which a call holds `batch`; `prompts` of them differ too."""

    images: int
    prompts: int
    batch: int
    steps: int
    calls: int


class InputWatch:
    """Looks at the inputs of layers in a call each at two steps.

    A text layer sees the same rows in every step, and no more of them than there are prompts. `positions`
    are each layer's output positions in a call.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._rows: dict[str, list[_Rows]] = {name: [] for name in names}
        self._sizes: dict[int, int] = {}
        self.positions: dict[str, int] = {}
        self._held: list[Tensor] = []  # of one call, so that no two inputs have one id

    @contextmanager
    def watch(self, network: nn.Module) -> Iterator[None]:
        """Look at what the layers are given inside the block, one call of the network."""
        layers = quantizable_layers(network)
        self._sizes.clear()
        try:
            with watching_inputs(
                {name: layers[name] for name in self._rows}, lambda n, x: self._observe(layers[n], n, x)
            ):
                yield
        finally:
            self._held.clear()

    def sizes(self) -> list[int]:
        """Return how many numbers each input has, one tensor that several layers read once."""
        return list(self._sizes.values())

    def rounding_facts(self, layers: dict[str, nn.Module], recorded: Recorded) -> dict[str, dict[str, float]]:
        """Return what each layer's rounding will be based on, as `care.rounding_facts`, at most."""
        facts = {}
        for name, layer in layers.items():
            rows = rows_of(input_width(layer), recorded.calls, self.positions[name])
            distinct = min(rows, _different(self._rows[name], recorded)) if self._rows[name] else rows
            facts[name] = facts_of(layer, rows, distinct)
        return facts

    def _observe(self, layer: nn.Module, name: str, x: Tensor) -> None:
        self._held.append(x)
        self._sizes[id(x)] = x.numel()
        self.positions[name] = output_positions(layer, x)
        if isinstance(layer, nn.Linear):  # what a convolution unfolds differs from place to place
            self._rows[name].append(_Rows.of(x.detach()))


@dataclass(frozen=True)
class _Rows:
    """Which rows an input had, by their hashes: in all images, and whether each image had all of them."""

    hashes: frozenset[int]
    alike: bool

    @classmethod
    def of(cls, x: Tensor) -> _Rows:
        """Look at x [N, ..., C]."""
        images = [
            frozenset(hash(row.tobytes()) for row in image.reshape(-1, x.shape[-1]).numpy())
            for image in x.to(torch.float32).cpu()
        ]
        return cls(frozenset().union(*images), all(image == images[0] for image in images))


def _different(calls: list[_Rows], recorded: Recorded) -> int:
    """Return at most how many rows differ in all of a recording."""
    first = calls[0]
    fixed = recorded.steps > 1 and all(call.hashes == first.hashes for call in calls[1:])
    images = min(recorded.images, recorded.prompts) if fixed else recorded.images
    copies = 1.0 if first.alike else max(1.0, images / recorded.batch)
    return int(len(first.hashes) * copies * (1 if fixed else recorded.steps))
