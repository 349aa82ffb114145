"""Lines of progress where there is no terminal, by a clock that the test moves."""

from __future__ import annotations

import pytest

from accuquant.cli._durations import duration, size
from accuquant.cli._stage_line import StageLine


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def line(clock: Clock) -> StageLine:
    return StageLine(clock)


def test_a_short_stage_says_nothing(line: StageLine, clock: Clock) -> None:
    line.begin("initial scales", 10)
    for _ in range(10):
        clock.now += 2.9
        line.advance(1)
        assert line.due() is None


def test_a_long_stage_says_its_share_and_what_is_left(line: StageLine, clock: Clock) -> None:
    line.begin("weight rounding", 100)
    clock.now += 120
    line.advance(25)
    assert line.due() == "weight rounding: 25% after 2 min, about 6 min left"


def test_lines_are_thirty_seconds_apart(line: StageLine, clock: Clock) -> None:
    line.begin("weight rounding", 1000)
    said = []
    for second in range(1, 181):
        clock.now += 1
        line.advance(1)
        if line.due() is not None:
            said.append(second)
    assert said == [30, 60, 90, 120, 150, 180]


def test_a_long_unit_is_reported_while_it_runs_and_what_is_left_shrinks(
    line: StageLine, clock: Clock
) -> None:
    line.begin("refined scales", 4)
    clock.now += 40
    assert line.due() == "refined scales: 0% after 40 s"
    clock.now += 560
    line.advance(1)  # 10 minutes a unit: 30 more
    clock.now += 300
    assert line.due() == "refined scales: 25% after 15 min, about 25 min left"


def test_nothing_is_promised_once_a_unit_takes_longer_than_those_before(
    line: StageLine, clock: Clock
) -> None:
    line.begin("refined scales", 2)
    clock.now += 60
    line.advance(1)
    clock.now += 240
    assert line.due() == "refined scales: 50% after 5 min"


def test_no_line_is_said_twice(line: StageLine, clock: Clock) -> None:
    line.begin("weight rounding", 0)
    clock.now += 3 * 3600
    assert line.due() == "weight rounding: 3.0 h"
    clock.now += 60
    assert line.due() is None
    clock.now += 300
    assert line.due() == "weight rounding: 3.1 h"


def test_a_new_stage_counts_from_its_beginning(line: StageLine, clock: Clock) -> None:
    line.begin("initial scales", 2)
    clock.now += 50
    line.begin("refined scales", 8)
    assert line.due() is None
    clock.now += 30
    line.reach(4, 8)
    assert line.due() == "refined scales: 50% after 30 s, about 30 s left"


def test_a_stage_may_change_its_name_and_total(line: StageLine, clock: Clock) -> None:
    line.begin("export", 100)
    clock.now += 31
    line.reach(50, 100, "compiling step group 1")
    assert line.due() == "compiling step group 1: 50% after 31 s, about 31 s left"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (600, "10 min"), (9000, "2.5 h")]
)
def test_durations_are_rounded_as_people_would(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 MB"), (8.5e8, "850 MB"), (1.25e10, "12.5 GB")])
def test_sizes_are_in_megabytes_or_gigabytes(count: float, text: str) -> None:
    assert size(count) == text
