from __future__ import annotations

from types import SimpleNamespace

import pytest

from accuquant._util import interleave
from accuquant.verification.measure.latency import Latency, measure_latencies


def test_candidates_take_turns() -> None:
    order: list[str] = []
    measure_latencies(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, batch_size=1, rounds=3, warm_up=1
    )
    assert "".join(order) == "aabb" * 4


def test_the_warm_up_and_the_call_before_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    #: (call before, call) of the untimed round, then of the timed ones.
    takes = iter([64.0, 64.0, 64.0, 0.25, 64.0, 0.5, 64.0, 1.0])

    def call() -> None:
        nonlocal now
        now += next(takes)

    clock = SimpleNamespace(perf_counter=lambda: now, sleep=lambda _: None)
    monkeypatch.setattr(interleave, "time", clock)
    (latency,) = measure_latencies({"a": call}, batch_size=4, rounds=3, warm_up=1)
    assert latency == Latency("a", median_ms=500, fastest_ms=250, batch_size=4, rounds=3)
