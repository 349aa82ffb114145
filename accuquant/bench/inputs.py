"""The inputs of a timed call: noise of the right shapes, in the middle of the calibrated timesteps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from accuquant.manifest import Manifest
from accuquant.networks.signature import TensorSpec

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Inputs:
    """A batch for one network call. The weights do not care what is in it, and neither does the time."""

    sample: Array
    timestep: float
    conditioning: dict[str, Array]

    @property
    def batch_size(self) -> int:
        """The number of samples."""
        return len(self.sample)


def make_inputs(manifest: Manifest, batch_size: int) -> Inputs:
    """Return inputs for a batch of `batch_size` at the network's default sizes, from a fixed seed."""
    signature = manifest.signature
    sizes = {**signature.sizes, "batch": batch_size}
    rng = np.random.default_rng(0)
    middle = float(int((manifest.groups.edges[0] + manifest.groups.edges[-1]) / 2))
    conditioning = {spec.name: noise(spec, sizes, rng) for spec in signature.conditioning}
    return Inputs(noise(signature.sample, sizes, rng), middle, conditioning)


def noise(spec: TensorSpec, sizes: Mapping[str, int], rng: np.random.Generator) -> Array:
    """Return normal noise for a float tensor, zeros for another: the time does not depend on the values."""
    shape, dtype = spec.resolve(sizes), np.dtype(spec.dtype)
    return rng.standard_normal(shape).astype(dtype) if dtype.kind == "f" else np.zeros(shape, dtype)
