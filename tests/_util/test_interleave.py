"""Tests of the interleaved timing."""

from __future__ import annotations

import pytest

from accuquant._util import interleave
from accuquant._util.interleave import Times, time_interleaved


def test_calls_take_turns_and_each_round_is_reported() -> None:
    order: list[str] = []
    times = time_interleaved(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")},
        rounds=2,
        warm_up=1,
        after_round=lambda: order.append("."),
    )
    assert "".join(order) == "ab.ab.ab."
    assert {name: len(taken.values) for name, taken in times.items()} == {"a": 2, "b": 2}


class Clock:
    """A clock that moves when something sleeps on it, and at no other time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(interleave, "time", self)

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_pause_is_made_and_not_timed(clock: Clock) -> None:
    (taken,) = time_interleaved({"a": lambda: None}, rounds=3, warm_up=1, pause=0.5).values()
    assert taken.values == (0, 0, 0)
    assert clock.now == 4 * 0.5


def test_lead_in_calls_come_right_before_and_are_not_timed(clock: Clock) -> None:
    order: list[str] = []
    waits = iter([8.0, 0.25, 8.0, 0.5])

    def slow_first() -> None:
        order.append("a")
        clock.sleep(next(waits))

    calls = {"a": slow_first, "b": lambda: order.append("b")}
    times = time_interleaved(calls, rounds=2, warm_up=0, lead_in=1)
    assert "".join(order) == "aabb" * 2
    assert times["a"].values == (250, 500)
    assert times["b"].values == (0, 0)


def test_the_call_is_timed_in_milliseconds_and_the_warm_up_is_not(clock: Clock) -> None:
    waits = iter([9.0, 0.03125, 0.0625])
    (taken,) = time_interleaved({"a": lambda: clock.sleep(next(waits))}, rounds=2, warm_up=1).values()
    assert taken.values == (31.25, 62.5)


def test_percentiles() -> None:
    times = Times(tuple(float(value) for value in range(101)))
    assert (times.median, times.p90, times.percentile(99)) == (50.0, 90.0, 99.0)
