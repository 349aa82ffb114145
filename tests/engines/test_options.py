"""Tests of the ranges of shapes."""

from __future__ import annotations

import pytest

from accuquant.engines.options import ShapeRange
from accuquant.errors import UsageError


def test_a_fixed_shape_is_one_shape() -> None:
    assert ShapeRange.fixed((2, 3)) == ShapeRange((2, 3), (2, 3), (2, 3))


@pytest.mark.parametrize(
    ("shapes", "match"),
    [
        (((4, 3), (2, 3), (8, 3)), "min 4x3, opt 2x3, max 8x3, expected min <= opt <= max"),
        (((1, 3), (9, 3), (8, 3)), "expected min <= opt <= max"),
        (((1, 3), (1, 3, 8), (8, 3)), "as many extents"),
        (((0, 3), (1, 3), (8, 3)), "at least 1"),
    ],
)
def test_shapes_out_of_order_are_refused(shapes: tuple[tuple[int, ...], ...], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        ShapeRange(*shapes)
