"""Factors of channels that are moved from one part of a network into the next, at no cost when it runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from accuquant.errors import RecipeError


@dataclass(frozen=True)
class ChannelFold:
    """What `producer` writes is divided by `factors` [C], and the `consumers` multiply it back.

    All three are names in the float network: a normalization, or a linear layer whose first C outputs are
    meant, and linear layers that read C inputs. The network computes the same; its activations are flatter.

    `rotated`, a power of two: behind the factors, each block of so many channels is multiplied by the
    Hadamard matrix of that size, divided by the root of it, which is its own inverse. Linear producers only.
    """

    producer: str
    consumers: tuple[str, ...]
    factors: npt.NDArray[np.float32]
    rotated: int = 1

    def __post_init__(self) -> None:
        values = self.factors
        if values.ndim != 1 or values.dtype != np.float32 or values.size == 0:
            self._refuse(f"factors of type {values.dtype} and shape {values.shape}", "float32 [C]")
        if not (np.isfinite(values) & (values > 0)).all():
            self._refuse("a factor that is not above 0, or not finite", "finite factors above 0")

        if self.rotated < 1 or self.rotated & (self.rotated - 1) or values.size % self.rotated:
            self._refuse(
                f"a rotation of {self.rotated} channels of {values.size}", "a power of two that divides them"
            )

    def _refuse(self, got: str, expected: str) -> None:
        raise RecipeError(
            f"fold into '{self.producer}'",
            got=got,
            expected=expected,
            remedy="The file is damaged or was edited. Run `accuquant calibrate` again",
        )
