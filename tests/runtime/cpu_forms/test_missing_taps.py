import itertools

import numpy as np
import pytest

from accuquant.runtime.cpu_forms.missing_taps import missing_taps


@pytest.mark.parametrize(
    ("image", "taps", "pads", "strides", "dilations"),
    [
        ((5, 7), (3, 3), (1, 1, 1, 1), (1, 1), (1, 1)),
        ((6, 5), (3, 2), (0, 1, 1, 2), (2, 1), (1, 1)),
        ((9, 9), (3, 3), (2, 2, 2, 2), (1, 1), (2, 2)),
        ((2, 1), (5, 5), (2, 2, 2, 2), (1, 1), (1, 1)),
    ],
)
def test_what_padding_leaves_out_is_what_a_loop_over_the_kernel_leaves_out(
    image: tuple[int, int],
    taps: tuple[int, int],
    pads: tuple[int, int, int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
) -> None:
    kernel = np.random.default_rng(0).normal(size=(2, *taps))
    extents = [
        (image[axis] + pads[axis] + pads[2 + axis] - dilations[axis] * (taps[axis] - 1) - 1) // strides[axis]
        + 1
        for axis in range(2)
    ]
    expected = np.zeros((2, *extents))
    for row, column, i, j in itertools.product(*(range(n) for n in (*extents, *taps))):
        y = row * strides[0] + i * dilations[0] - pads[0]
        x = column * strides[1] + j * dilations[1] - pads[1]
        if not (0 <= y < image[0] and 0 <= x < image[1]):
            expected[:, row, column] += kernel[:, i, j]
    np.testing.assert_allclose(missing_taps(kernel, image, pads, strides, dilations), expected, atol=1e-12)
