"""What a convolution's zero padding leaves out of its kernel's sum, at each output position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]


def missing_taps(
    kernel: Float64Array,
    image: Sequence[int],
    pads: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> Float64Array:
    """Return the sum of the kernel's elements that lie outside of the image: [O, H', W'].

    `kernel` [O, kh, kw] is summed over input channels, `image` is (H, W), `pads` all starts, then all ends.
    0 where the kernel lies inside.
    """
    rows, columns = (
        _inside(
            image[axis], kernel.shape[1 + axis], pads[axis], pads[2 + axis], strides[axis], dilations[axis]
        )
        for axis in range(2)
    )
    inside = np.matmul(np.matmul(rows, kernel), columns.T)
    return np.asarray(kernel.sum(axis=(1, 2), keepdims=True) - inside)


def _inside(size: int, taps: int, before: int, after: int, stride: int, dilation: int) -> Float64Array:
    """Return [H', kh]: 1 where an element of the kernel lies inside of the image."""
    positions = (size + before + after - dilation * (taps - 1) - 1) // stride + 1
    index = np.arange(positions)[:, None] * stride + np.arange(taps) * dilation - before
    return np.asarray((index >= 0) & (index < size), np.float64)
