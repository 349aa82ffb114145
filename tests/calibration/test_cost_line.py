from __future__ import annotations

import pytest

from accuquant.calibration.cost_line import CostLine


def test_two_points_give_both_prices() -> None:
    line = CostLine.through([(10, 1000, 10 * 0.5 + 1000 * 0.002), (40, 64000, 40 * 0.5 + 64000 * 0.002)])
    assert line.per_call == pytest.approx(0.5)
    assert line.per_product == pytest.approx(0.002)
    assert line.seconds(100, 10**6) == pytest.approx(100 * 0.5 + 2000)


@pytest.mark.parametrize(
    "points",
    [
        [(10.0, 1000.0, 3.0)],
        [(10.0, 1000.0, 9.0), (10.0, 2000.0, 6.0)],  # the larger was faster: noise
        [(10.0, 1000.0, 0.1), (20.0, 2000.0, 6.0)],  # in proportion
    ],
)
def test_points_that_say_too_little_or_contradict_each_other_are_paid_by_product(
    points: list[tuple[float, float, float]],
) -> None:
    calls, products, seconds = points[-1]
    line = CostLine.through(points)
    assert line.per_call == 0
    assert line.seconds(calls, products) == pytest.approx(seconds)
    assert line.seconds(0, 3 * products) == pytest.approx(3 * seconds)


def test_no_work_has_no_price() -> None:
    assert CostLine.through([]).seconds(5, 5) == 0
