"""Tests of the interleaved timing."""

from __future__ import annotations

import time

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


def test_a_pause_is_not_timed() -> None:
    (taken,) = time_interleaved({"a": lambda: None}, rounds=3, warm_up=0, pause=0.05).values()
    assert max(taken.values) < 40


def test_lead_in_calls_come_right_before_and_are_not_timed() -> None:
    order: list[str] = []
    waits = iter([0.2, 0.0, 0.2, 0.0])

    def slow_first() -> None:
        order.append("a")
        time.sleep(next(waits))

    calls = {"a": slow_first, "b": lambda: order.append("b")}
    times = time_interleaved(calls, rounds=2, warm_up=0, lead_in=1)
    assert "".join(order) == "aabb" * 2
    assert max(times["a"].values) < 150


def test_the_call_is_timed_in_milliseconds() -> None:
    (taken,) = time_interleaved({"a": lambda: time.sleep(0.03)}, rounds=1, warm_up=0).values()
    assert taken.median >= 30


def test_percentiles() -> None:
    times = Times(tuple(float(value) for value in range(101)))
    assert (times.median, times.p90, times.percentile(99)) == (50.0, 90.0, 99.0)
