"""Seconds by stage, on a clock that the test moves."""

from __future__ import annotations

from accuquant._util.progress import Silent
from accuquant._util.stage_clock import StageClock


class Told(Silent):
    """Keeps the names of the stages, the units and the lines."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def stage(self, name: str, total: int) -> None:
        self.heard.append((name, total))

    def advance(self, units: int = 1) -> None:
        self.heard.append(units)

    def message(self, text: str) -> None:
        self.heard.append(text)


def test_the_seconds_of_a_stage_are_those_until_the_next_begins() -> None:
    times = iter([10.0, 12.0, 15.5, 16.0, 56.0])
    clock = StageClock(Silent(), lambda: next(times))
    clock.stage("initial scales", 1)
    clock.stage("step group 1/12", 8)
    clock.stage("step group 2/12", 8)
    assert clock.line() == "46 s in all, loading 2 s, initial scales 4 s, step groups 40 s"
    assert clock.seconds == {"loading": 2.0, "initial scales": 3.5, "step groups": 40.5}


def test_a_stage_that_took_no_time_is_not_told_but_counts() -> None:
    times = iter([0.0, 0.4, 0.8, 7.0])
    clock = StageClock(Silent(), lambda: next(times))
    clock.stage("a", 1)
    clock.stage("b", 1)
    assert clock.line() == "7 s in all, b 6 s"


def test_everything_is_handed_on() -> None:
    told = Told()
    clock = StageClock(told)
    clock.stage("a", 3)
    clock.advance(2)
    clock.message("text")
    assert told.heard == [("a", 3), 2, "text"]
