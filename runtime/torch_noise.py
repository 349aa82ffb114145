"""The noise of torch's CPU generator without torch: the same seed gives the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from accuquant.errors import UsageError
from accuquant.runtime.noise_schedule import Float32Array

# ATen, native/cpu/DistributionTemplates.h: tensors of at least this many values are filled in blocks
# of 16 by Box-Muller in single precision, smaller ones value by value in double precision.
_BLOCK = 16
_TWO_PI = np.float32(2 * math.pi)


class TorchNoise:
    """What `torch.Generator("cpu").manual_seed(seed)` gives to torch.randn in float32.

    Equal to about 5e-7: the uniform numbers are identical, logarithms and sines differ in the last
    bit. torch seeds its Mersenne twister with the low 32 bits of `seed`; so does this class.
    """

    def __init__(self, seed: int) -> None:
        if not -(2**63) <= seed < 2**64:
            raise UsageError(
                "seed",
                got=str(seed),
                expected="an integer from -2**63 to 2**64 - 1",
                remedy="Use a smaller seed",
            )
        # RandomState seeds as torch does (init_genrand); MT19937(seed) would not.
        seeded: Any = np.random.RandomState(seed & 0xFFFFFFFF).get_state(legacy=False)
        self._twister = np.random.MT19937()
        self._twister.state = seeded
        self._next_normal: float | None = None

    def randn(self, shape: Sequence[int]) -> Float32Array:
        """Draw standard normal noise, float32 `shape`; equals torch.randn(shape, generator=g)."""
        size = math.prod(shape)
        if size < _BLOCK:
            return np.array([self._normal() for _ in range(size)], np.float32).reshape(shape)
        values = self._uniform(size)
        whole = size - size % _BLOCK
        values[:whole] = _box_muller(values[:whole])
        if whole < size:
            # The last block overlaps its neighbour: torch draws all of its 16 values again.
            values[-_BLOCK:] = _box_muller(self._uniform(_BLOCK))
        return values.reshape(shape)

    def _uniform(self, size: int) -> Float32Array:
        bits = self._twister.random_raw(size).astype(np.uint32) & np.uint32(0xFFFFFF)
        values: Float32Array = bits.astype(np.float32) * np.float32(2**-24)
        return values

    def _normal(self) -> float:
        """Draw one value as at::normal_distribution<double> does, which keeps every second one."""
        if self._next_normal is not None:
            value, self._next_normal = self._next_normal, None
            return value
        theta = 2 * math.pi * self._uniform_double()
        radius = math.sqrt(-2 * math.log1p(-self._uniform_double()))
        self._next_normal = radius * math.sin(theta)
        return radius * math.cos(theta)

    def _uniform_double(self) -> float:
        # torch takes the first number as the high half.
        high, low = self._twister.random_raw(2).tolist()
        bits: int = (high << 32 | low) & (2**53 - 1)
        return bits * 2.0**-53


def _box_muller(uniform: Float32Array) -> Float32Array:
    """Turn blocks of 16 uniform numbers in [0, 1) into normal ones: 8 radii, then 8 angles."""
    blocks = uniform.reshape(-1, 2, _BLOCK // 2)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - blocks[:, 0]))
    theta = _TWO_PI * blocks[:, 1]
    return np.stack([radius * np.cos(theta), radius * np.sin(theta)], axis=1).reshape(-1)
