"""The numbers that a weight is rounded to, one int8 level each: integers, or those of E4M3 by their bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from accuquant.e4m3 import LARGEST, Format
from accuquant.qparams import level_bounds


class Grid(Protocol):
    """Rounds what is divided by its scale already."""

    def levels(self, x: Tensor) -> Tensor:
        """Return the int8 levels of the numbers nearest to `x` [any shape], which may be changed."""

    def values(self, levels: Tensor) -> Tensor:
        """Return the numbers that int8 `levels` [any shape] stand for; integers may stay int8."""


@dataclass(frozen=True)
class IntegerGrid:
    """The integers from `low` to `high`."""

    low: int
    high: int

    def levels(self, x: Tensor) -> Tensor:
        """Round half to even."""
        return x.round_().clamp_(self.low, self.high).to(torch.int8)

    def values(self, levels: Tensor) -> Tensor:
        """Return the levels: they are the numbers."""
        return levels


class Fp8Grid:
    """The numbers of E4M3."""

    def levels(self, x: Tensor) -> Tensor:
        """Round half to even, in float32, at most to 448."""
        return x.float().clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn).view(torch.int8)

    def values(self, levels: Tensor) -> Tensor:
        """Return the numbers in float32."""
        return levels.view(torch.float8_e4m3fn).float()


def grid_of(bits: int, levels_of: Format) -> Grid:
    """Return what a weight of `bits` in a format is rounded to."""
    return Fp8Grid() if levels_of == "fp8" else IntegerGrid(*level_bounds(bits))
