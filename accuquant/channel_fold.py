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
    """

    producer: str
    consumers: tuple[str, ...]
    factors: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        values = self.factors
        if values.ndim != 1 or values.dtype != np.float32 or values.size == 0:
            self._refuse(f"factors of type {values.dtype} and shape {values.shape}", "float32 [C]")
        if not (np.isfinite(values) & (values > 0)).all():
            self._refuse("a factor that is not above 0, or not finite", "finite factors above 0")

    def _refuse(self, got: str, expected: str) -> None:
        raise RecipeError(
            f"fold into '{self.producer}'",
            got=got,
            expected=expected,
            remedy="The file is damaged or was edited. Run `accuquant calibrate` again",
        )
