"""The scale of a layer's activation as the graph sees it: one constant, or one a step group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from accuquant.errors import ExportError
from accuquant.qparams import LayerQParams


@dataclass(frozen=True)
class ActivationScales:
    """Scales [G] of one activation and the constant `reference` that its QDQ pair carries.

    One scale: the pair carries it. Several: the input is divided by `scales[g] / reference` before
    the pair and the layer's output multiplied by it behind. The reference is a power of two, so that
    both steps round exactly as x / scales[g] would; it is close to the scales, so that float16 can
    hold what lies between.
    """

    scales: npt.NDArray[np.float32]

    @property
    def is_grouped(self) -> bool:
        """Whether the scale depends on the step group."""
        return self.scales.size > 1

    @property
    def reference(self) -> float:
        """The scale of the QDQ pair."""
        if not self.is_grouped:
            return float(self.scales[0])
        return float(2.0 ** np.rint(np.mean(np.log2(self.scales.astype(np.float64)))))

    def factors(self, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return scales / reference [G] in the float type of the graph."""
        factors: npt.NDArray[Any] = (self.scales / np.float32(self.reference)).astype(dtype)
        return factors


def scales_of(layer: LayerQParams, group: int | None) -> ActivationScales:
    """Return the scales of `layer` in one group, or in all of them where `group` is None."""
    scales = np.asarray(layer.activation_scale, np.float32)
    if group is not None:
        return ActivationScales(scales[group : group + 1])
    return ActivationScales(scales if layer.is_grouped else scales[:1])


def check_representable(layer: LayerQParams, scale: npt.NDArray[Any]) -> None:
    """Raise ExportError where a scale has become zero or infinite in the graph's float type."""
    if not np.isfinite(scale) or scale <= 0:
        raise ExportError(
            f"layer '{layer.name}'",
            got=f"an activation scale that is {scale} in {scale.dtype}",
            expected="a scale that the precision can hold",
            remedy="Export with --precision fp32, or leave this layer out of the recipe",
        )
